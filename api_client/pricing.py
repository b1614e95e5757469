"""What a video costs, in credits (the document's section "Pricing").

Credits are taken only after a task completes. The document prints 3.312 × 8 = 26.496 as 26.50
and states no rounding rule: an estimate is exact and unrounded, and the server's `credit_cost`
is what counts. Compare the two with `ROUNDING` as tolerance.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, overload

from api_client.errors import InvalidRequest

if TYPE_CHECKING:
    from api_client.request import GenerationRequest

PRICES: Final[dict[tuple[str, str], Decimal]] = {
    ("seedance-2.0", "1080p"): Decimal("4.5"),
    ("seedance-2.0", "720p"): Decimal("1.8"),
    ("seedance-2.0", "480p"): Decimal("0.9"),
    ("seedance-2.0-fast", "1080p"): Decimal("3.312"),
    ("seedance-2.0-fast", "720p"): Decimal("1.44"),
    ("seedance-2.0-fast", "480p"): Decimal("0.72"),
}
"""Credits for one second of video, by model and resolution."""

ROUNDING: Final = Decimal("0.01")
"""How far the server's figure may be from an estimate."""


@overload
def estimate_cost(request: GenerationRequest, /) -> Decimal: ...


@overload
def estimate_cost(*, model: str, resolution: str, duration: int) -> Decimal: ...


def estimate_cost(
    request: GenerationRequest | None = None,
    /,
    *,
    model: str = "",
    resolution: str = "",
    duration: int = 0,
) -> Decimal:
    """Price per second × duration in credits, of a request or of the three values.

    Raises `InvalidRequest` for a pair of model and resolution that has no price.
    """
    if request is not None:
        model, resolution, duration = request.model, request.resolution, request.duration
    price = PRICES.get((model, resolution))
    if price is None:
        pairs = ", ".join(f"{m} {r}" for m, r in PRICES)
        raise InvalidRequest("model, resolution", f"{model} {resolution}", pairs)
    return price * duration
