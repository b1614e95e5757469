"""The submit protocol under every interleaving within small bounds, whole and with each rule out.

`make model` searches wider bounds, and prints how far it came.
"""

import os

import pytest

from tests.model.rules import ALL, RULES, Rule
from tests.model.scenarios import SCENARIOS, wider
from tests.model.search import Search, Violation
from tests.model.story import story, told

WIDE = os.environ.get("MODEL_BOUNDS") == "wide"
MOST = int(os.environ.get("MODEL_STATES", "400000"))
"""States at which a wide search ends; the others end by themselves."""

pytestmark = pytest.mark.timeout(3600 if WIDE else 300)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_promise_holds_in_every_interleaving(name: str, capsys: pytest.CaptureFixture[str]):
    scenario = wider(SCENARIOS[name]) if WIDE else SCENARIOS[name]
    result = Search(scenario, ALL).run(most=MOST if WIDE else None)
    with capsys.disabled():
        whole = "" if result.complete else ", not to the end"
        print(f"\n{name}: {result.states} states, {result.seconds:.1f} s{whole}", end="")
    assert result.violation is None, story(scenario, result.violation)
    assert result.states > 1_000


def violation_without(rule: Rule) -> Violation | None:
    with pytest.MonkeyPatch.context() as patch:
        rule.take_out(patch)
        return Search(SCENARIOS[rule.scenario], rule.steps).run().violation


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_without_a_rule_its_fault_is_found(rule: Rule):
    violation = violation_without(rule)
    assert violation is not None, "nothing breaks without it: is it needed, or the model too small?"
    assert violation.what == rule.breaks, story(SCENARIOS[rule.scenario], violation)


def test_a_violation_is_told_step_by_step():
    [rule] = [rule for rule in RULES if rule.name == "an intent older than B is not sent"]
    violation = violation_without(rule)
    assert violation is not None
    text = story(SCENARIOS[rule.scenario], violation)
    assert text.startswith("paid twice: two remote tasks of one generation  [drawn seeds]\n")
    assert "  1. generation A: the intent of attempt 1 is committed\n" in text
    assert "task P: of generation A, attempt" in text
    assert "task Q: of generation A, attempt" in text


def test_every_step_can_be_told():
    search = Search(SCENARIOS["drawn seeds, an operator"], ALL)
    search.run(most=8_000)
    labels = {came[1] for came in search.parents.values() if came is not None}
    assert len({label[0] for label in labels}) > 15
    for label in labels:
        assert "generation" in told(label) or "tick" in told(label) or "task" in told(label)


def test_every_rule_is_shown_by_a_scenario_there_is():
    assert {rule.scenario for rule in RULES} <= SCENARIOS.keys()
