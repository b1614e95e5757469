"""Budgets and purses without a database: what is checked, and what an admission may spend."""

from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client import InvalidRequest
from models.budgets import BudgetView, Period, Policy, Room
from models.credit import Funds, Purse, Senior
from worker.requests import new_budget

D = Decimal
ZERO = D(0)


@pytest.mark.parametrize(
    ("field", "given_"),
    [
        ("tenant", ("", "day", "1", "refuse")),
        ("tenant", ("a\nb", "day", "1", "refuse")),
        ("tenant", ("x" * 201, "day", "1", "refuse")),
        ("period", ("acme", "week", "1", "refuse")),
        ("period", ("acme", "", "1", "refuse")),
        ("amount", ("acme", "day", "-1", "refuse")),
        ("amount", ("acme", "day", "much", "refuse")),
        ("amount", ("acme", "day", "NaN", "refuse")),
        ("amount", ("acme", "day", "1e11", "refuse")),
        ("amount", ("acme", "day", "0.00001", "refuse")),
        ("policy", ("acme", "day", "1", "shrug")),
    ],
)
def test_a_wrong_budget_is_refused_with_field_value_and_what_is_allowed(
    field: str, given_: tuple[str, str, str, str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        new_budget(*given_)
    assert caught.value.field == field
    wrong = given_[["tenant", "period", "amount", "policy"].index(field)]
    assert repr(wrong)[:20] in str(caught.value)
    assert "allowed" in str(caught.value)


def test_a_budget_keeps_its_amount_exactly() -> None:
    assert new_budget("acme", "month", "12.3456", "wait") == BudgetView(
        "acme", Period.MONTH, D("12.3456"), Policy.WAIT
    )
    assert new_budget("acme", "total", "0", "refuse").amount == 0


def row(cost: Decimal, tenant: str = "t") -> Any:
    return SimpleNamespace(id=uuid4(), tenant=tenant, estimated_cost=cost)


def purse(free: Decimal, senior: Senior | None = None) -> Purse:
    made = Purse(Funds(free, 1.0, ZERO, ZERO, ZERO), senior)
    made._rooms = {"t": []}  # the tenant was looked up: it has no budget
    return made


costs = st.lists(st.decimals(0, 70, places=4), max_size=30)


@given(st.decimals(0, 500, places=4), costs)
def test_a_purse_never_gives_more_than_it_has(free: Decimal, wanted: list[Decimal]) -> None:
    mine = purse(free)
    asked = [row(cost) for cost in wanted]
    taken = set(mine.take(None, asked))  # type: ignore[arg-type]
    spent = sum((one.estimated_cost for one in asked if one.id in taken), ZERO)
    assert spent <= free
    assert mine.left == free - spent
    left = mine.left
    assert left is not None
    # Nobody who would still fit was turned away.
    assert all(one.estimated_cost > left for one in asked if one.id not in taken)
    assert mine.refused == (len(taken) < len(asked))


@given(st.decimals(0, 500, places=4), costs, st.decimals(1, 100, places=4))
def test_what_is_saved_up_for_one_is_not_given_to_others(
    free: Decimal, wanted: list[Decimal], dear: Decimal
) -> None:
    theirs = row(dear)
    mine = purse(free, Senior(theirs.id, dear))
    mine.take(None, [row(cost) for cost in wanted if cost > 0])  # type: ignore[arg-type]
    assert (theirs.id in mine.take(None, [theirs])) == (dear <= free)  # type: ignore[arg-type]


def test_without_funds_there_is_no_bound() -> None:
    mine = Purse(None)
    mine._rooms = {"t": []}
    asked = [row(D(10) ** 9)]
    assert mine.take(None, asked) == [asked[0].id]  # type: ignore[arg-type]
    assert mine.ceiling(None) is None
    assert mine.ceiling(D(3)) == 3
    assert purse(D(2)).ceiling(D(3)) == 2


def test_a_room_says_what_is_left_and_never_less_than_nothing() -> None:
    room = Room(BudgetView("acme", Period.TOTAL, D(10), Policy.REFUSE), D(8), D(4), None, None)
    assert room.left == -2
    assert room.explain(D(9)) == (
        "9 needed, and tenant 'acme' may spend 10: 8 are charged and 4 under way, which leaves 0"
    )
