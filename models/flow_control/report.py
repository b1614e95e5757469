"""What limits submission at this moment, in words: what, why, since when, and what raises it."""

from dataclasses import dataclass

from sqlalchemy import Connection

from models.flow_control import rules
from models.flow_control.state import FlowState, allowance


@dataclass(frozen=True)
class Limit:
    """One limit that holds now."""

    name: str
    """`rate`, `throttled`, `concurrency`, `outage`, `ramp` or `failures`."""
    value: float | None
    """Requests per second, tasks at work, or seconds, as the name says."""
    seconds: float | None
    """For how long it has held."""
    text: str

    def __str__(self) -> str:
        return self.text


def limits(conn: Connection, state: FlowState) -> list[Limit]:
    """Return what limits submission beside the settings and the breakers; empty: nothing."""
    found = []
    because = f" ({state.reason})" if state.reason else ""
    if state.resume_in > 0:
        text = (
            f"no requests for another {state.resume_in:.0f} s: the provider asked for it{because}"
        )
        found.append(Limit("throttled", state.resume_in, None, text))
    if state.rate is not None:
        rate = state.rate
        text = (
            f"{rate.now:.3g} requests/s since the provider throttled at {rate.refused:.3g}/s"
            f" {rate.age:.0f} s ago{because}; rises while it does not throttle again"
        )
        found.append(Limit("rate", rate.now, rate.age, text))
    if state.concurrency is not None:
        limit = state.concurrency
        text = (
            f"{limit.value} tasks at work: the provider refused one more than"
            f" {limit.refused - 1} {limit.age:.0f} s ago; rises while all are in use"
        )
        if limit.value >= limit.refused:
            text = f"{limit.value} tasks at work, rising while all are in use"
        found.append(Limit("concurrency", limit.value, limit.age, text))
    if state.outage_age is not None:
        text = (
            f"outage for {state.outage_age:.0f} s{because}: one probe every"
            f" {rules.probe_interval(state.outage_age):.0f} s; the first success ends it"
        )
        found.append(Limit("outage", state.outage_age, state.outage_age, text))
    elif not state.calm:
        allowed = allowance(conn, state)
        if allowed is not None and allowed.cause == "ramp":
            text = "ramp-up: submits in progress double with each round of answers"
            found.append(Limit("ramp", allowed.count, state.ramp_age, text))
        if allowed is not None and allowed.cause == "failures":
            text = (
                "most submits of the last seconds failed: as many are sent as twice the successes"
            )
            found.append(Limit("failures", allowed.count, None, text))
    return found
