"""What a search is about: how many generations, which faults how often, which order of steps."""

from dataclasses import dataclass, field

from models import submission
from tests.model.state import Left, Row, State


@dataclass(frozen=True)
class Steps:
    """Rules that are an order of steps rather than a decision. All hold, unless a test takes one
    out."""

    intent_before_post: bool = True
    """The POST follows only a confirmed COMMIT of its intent."""
    silence_is_doubt: bool = True
    """No answer, or an ambiguous one, is never taken for a POST that was not written."""
    two_readings: bool = True
    fresh_seeds: bool = True
    fingerprint_lock: bool = True
    one_follower: bool = True
    """A remote task is followed by one generation (unique in the table)."""
    cancel_waits: bool = True
    """In doubt, a cancel is a wish."""
    watching: bool = True
    """Every unknown task is held against all attempts."""


@dataclass(frozen=True)
class Scenario:
    """Bounds of one search. Ticks are the unit of B, K and L."""

    name: str
    generations: int = 1
    fixed_seed: bool = False
    """All requests are equal and carry the same seed of the producer; otherwise seeds are drawn."""
    seeds_shown: bool = True
    key_exclusive: bool = False
    attempts: int = 2
    """How many a generation may have; the bound on fruitless ones is the same."""
    send_budget: int = 0
    late_creation: int = 1
    list_lag: int = 1
    left: Left = field(default_factory=Left)
    decisions: tuple[str, ...] = ("adopt", "resubmit", "fail")
    """What the operator may do."""

    @property
    def settle(self) -> int:
        """Ticks from the intent until it may be resolved: the service's own sum, with no margin."""
        timing = submission.Timing(self.send_budget, self.late_creation, self.list_lag, margin=0)
        return int(timing.settle)

    @property
    def start(self) -> State:
        return State(rows=(Row(),) * self.generations, left=self.left)
