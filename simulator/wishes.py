"""Faults as a prompt asks for them: `submit=delay_after:5*2`."""

from simulator.effects import Effect, build

# The parameter that a directive's `kind:value` sets.
MAIN_PARAM = {
    "drop_before": "seconds",
    "drop_after": "seconds",
    "lost": "seconds",
    "delay_before": "seconds",
    "delay_after": "seconds",
    "error": "code",
    "error_after": "code",
    "rate_limited": "retry_after",
    "service_busy": "retry_after",
    "bare": "status",
    "bare_after": "status",
    "redirect": "location",
    "concurrency": "mode",
    "unknown_status": "status",
    "backwards": "status",
}


def from_directive(text: str) -> tuple[Effect, int]:
    """Read `kind`, `kind:value` and `kind:value*times`: the effect, and how often it applies."""
    kind, _, times = text.partition("*")
    kind, _, value = kind.partition(":")
    params = {MAIN_PARAM[kind]: value} if value and kind in MAIN_PARAM else {}
    try:
        return build(kind, params), int(times or 1)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
