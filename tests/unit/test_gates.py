"""What a closed gate holds back, and that admission and intent agree about it."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.gates import GateName, GateState, Sending
from models.submission import Timing

credits_ = st.decimals(0, 10_000, places=4)


def closed(name: GateName, refused: Decimal | None = None) -> GateState:
    return GateState(name, "why", datetime(2026, 1, 1, tzinfo=UTC), None, refused, 1)


gates = st.lists(
    st.builds(closed, st.sampled_from(GateName), st.none() | credits_),
    max_size=3,
    unique_by=lambda gate: gate.name,
).map(tuple)


@given(gates, st.none() | credits_ | st.decimals(-100, 0, places=4), credits_)
def test_the_ceiling_lets_in_exactly_what_no_gate_holds(states, remaining, cost):
    sending = Sending(states, remaining)
    admitted = sending.ceiling is None or cost <= sending.ceiling
    assert admitted == (sending.obstacle(cost) is None)


def test_with_open_gates_everything_passes():
    sending = Sending((), None)
    assert sending.ceiling is None
    assert sending.obstacle(Decimal(10**9)) is None


@pytest.mark.parametrize("name", [GateName.API_KEY, GateName.BACKOFF])
def test_key_and_backoff_hold_everything(name):
    sending = Sending((closed(name, Decimal(5)),), Decimal(100))
    for cost in (Decimal(0), Decimal(4)):
        obstacle = sending.obstacle(cost)
        assert obstacle is not None
        assert obstacle.name is name


@pytest.mark.parametrize(
    ("remaining", "refused", "cost", "passes"),
    [
        ("10", "20", "9", True),
        ("10", "20", "10", True),
        ("10", "20", "10.0001", False),
        ("30", "20", "20", False),  # as dear as what was refused
        ("30", "20", "19.9999", True),
        ("0", "20", "0.0001", False),
    ],
)
def test_a_dear_refusal_does_not_hold_up_cheaper_work(remaining, refused, cost, passes):
    sending = Sending((closed(GateName.CREDIT, Decimal(refused)),), Decimal(remaining))
    assert (sending.obstacle(Decimal(cost)) is None) == passes


@pytest.mark.parametrize(("remaining", "refused"), [(None, Decimal(5)), (Decimal(5), None)])
def test_without_a_known_balance_or_refusal_nothing_passes(remaining, refused):
    sending = Sending((closed(GateName.CREDIT, refused),), remaining)
    assert sending.obstacle(Decimal(0)) is not None


def test_a_cheap_generation_is_still_held_by_another_gate():
    states = (closed(GateName.CREDIT, Decimal(50)), closed(GateName.API_KEY))
    obstacle = Sending(states, Decimal(40)).obstacle(Decimal(1))
    assert obstacle is not None
    assert obstacle.name is GateName.API_KEY


def test_settling_takes_all_that_can_delay_a_task():
    assert Timing(10, 60, 15, 5).settle == 90
