"""Prices per second, and how they become the numbers that the provider prints."""

from decimal import ROUND_HALF_UP, Decimal

PRICES = {
    ("seedance-2.0", "1080p"): Decimal("4.5"),
    ("seedance-2.0", "720p"): Decimal("1.8"),
    ("seedance-2.0", "480p"): Decimal("0.9"),
    ("seedance-2.0-fast", "1080p"): Decimal("3.312"),
    ("seedance-2.0-fast", "720p"): Decimal("1.44"),
    ("seedance-2.0-fast", "480p"): Decimal("0.72"),
}

_CENT = Decimal("0.01")


def cost(model: str, resolution: str, duration: int) -> Decimal:
    """Credits for one video: price × duration, rounded half up to two places.

    The document prints 3.312 × 8 = 26.496 as 26.50 and states no rule; this is the plainest one
    that gives every number it prints.
    """
    exact = PRICES[model, resolution] * duration
    return exact.quantize(_CENT, rounding=ROUND_HALF_UP)


def as_number(amount: Decimal) -> int | float:
    """A JSON number: 10000 rather than 10000.0, 26.5 rather than a string."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)
