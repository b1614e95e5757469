"""An API key's account: credits, slots, request rate."""

import random
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal

from simulator.listing import Listing
from simulator.tasks import Task


@dataclass(slots=True)
class Account:
    """Everything that belongs to the key that it began with, and to those that open it later.

    Tasks of another account can't be seen from here.
    """

    api_key: str
    number: int
    total: Decimal
    used: Decimal = Decimal(0)
    enabled: bool = True
    # Overrides the configured limit for this account.
    max_concurrent: int | None = None
    # Cost of all tasks that have not ended.
    pending_cost: Decimal = Decimal(0)
    at_work: int = 0
    waiting: deque[Task] = field(default_factory=deque)
    listing: Listing = field(default_factory=Listing)
    phantoms: list[Task] = field(default_factory=list)
    seen_prompts: dict[str, int] = field(default_factory=dict)
    tokens: float = 0.0
    tokens_at: float | None = None

    @property
    def remaining(self) -> Decimal:
        """Credits left."""
        return self.total - self.used

    def take_token(self, rate: float, burst: int, now: float) -> bool:
        """Whether one more request fits the rate (a bucket of `burst`, filled at `rate`)."""
        if self.tokens_at is None:
            self.tokens = float(burst)
        else:
            self.tokens = min(float(burst), self.tokens + (now - self.tokens_at) * rate)
        self.tokens_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def draw_seed(rng: random.Random) -> int:
    """A seed as the provider draws one when it is told none."""
    return rng.randrange(2**31)
