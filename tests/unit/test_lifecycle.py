"""The lifecycle's table and what observations do to it: design.md, "Lifecycle"."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.lifecycle import (
    IN_DOUBT,
    LIVE,
    TERMINAL,
    TRANSITIONS,
    UNSENT,
    Contradiction,
    Event,
    Finish,
    Followed,
    Nothing,
    Observation,
    Progress,
    Status,
    observe,
    rank,
)

S = Status

ARROWS = {
    # design.md: accepted → uploading → submitting → running → the ends
    (S.ACCEPTED, S.UPLOADING),
    (S.UPLOADING, S.SUBMITTING),
    (S.SUBMITTING, S.RUNNING),
    (S.RUNNING, S.COMPLETED),
    (S.RUNNING, S.FAILED),
    (S.RUNNING, S.CANCELLED),
    (S.RUNNING, S.EXPIRED),
    # submitting → uncertain → running | accepted; protocol.md adds cancelled | failed
    (S.SUBMITTING, S.UNCERTAIN),
    (S.UNCERTAIN, S.RUNNING),
    (S.UNCERTAIN, S.ACCEPTED),
    (S.UNCERTAIN, S.CANCELLED),
    (S.UNCERTAIN, S.FAILED),
    # "Just before the POST": not sent; "Answers": refused for now, or for good
    (S.SUBMITTING, S.ACCEPTED),
    (S.SUBMITTING, S.CANCELLED),
    (S.SUBMITTING, S.FAILED),
    # "Answers": a late answer still counts; "Watching": a mark found is adopted
    (S.ACCEPTED, S.RUNNING),
    (S.UPLOADING, S.RUNNING),
    # the guards of the intent, and of a deadline
    (S.UPLOADING, S.ACCEPTED),
    (S.ACCEPTED, S.EXPIRED),
    (S.UPLOADING, S.EXPIRED),
    # "Cancel": before the submission at once
    (S.ACCEPTED, S.CANCELLED),
    (S.UPLOADING, S.CANCELLED),
    # what can't be carried out, and an operator's end
    (S.ACCEPTED, S.FAILED),
    (S.UPLOADING, S.FAILED),
}


def arrows() -> set[tuple[Status, Status]]:
    return {(source, t.target) for t in TRANSITIONS.values() for source in t.sources}


def test_every_documented_arrow_is_there_and_nothing_else():
    assert arrows() == ARROWS


def test_nothing_leaves_a_terminal_status():
    assert not [(event, t) for event, t in TRANSITIONS.items() if t.sources & TERMINAL]


def test_every_status_is_reached_from_accepted():
    reached = {S.ACCEPTED}
    while more := {b for a, b in arrows() if a in reached} - reached:
        reached |= more
    assert reached == set(Status)


def test_from_every_status_an_end_can_be_reached():
    ending = set(TERMINAL)
    while more := {a for a, b in arrows() if b in ending} - ending:
        ending |= more
    assert ending == set(Status)


def test_every_event_but_acceptance_has_its_transition():
    assert set(Event) - set(TRANSITIONS) == {Event.ACCEPT}
    assert all(t.means and t.sources for t in TRANSITIONS.values())


def test_doubt_is_left_only_by_an_answer_or_a_decision():
    leaving = {e for e, t in TRANSITIONS.items() if S.UNCERTAIN in t.sources}
    assert leaving == {
        Event.SUBMIT,
        Event.ADOPT,
        Event.ABSENT,
        Event.EXHAUST,
        Event.CANCEL,
        Event.GIVE_UP,
    }


def test_only_the_submit_stages_own_knowledge_takes_back_an_intent():
    back = {e for e, t in TRANSITIONS.items() if S.SUBMITTING in t.sources and t.target in UNSENT}
    assert back == {Event.NOT_SENT, Event.DECLINE}


def test_the_groups_split_the_statuses():
    assert LIVE.isdisjoint(TERMINAL)
    assert LIVE | TERMINAL | {S.ACCEPTED} == set(Status)
    assert IN_DOUBT < LIVE
    assert UNSENT.isdisjoint(IN_DOUBT)


# --- observations ------------------------------------------------------------------------------

TASK = "task-1"
PROGRESSING = ["pending", "queued", "processing"]
ENDS = {
    "completed": S.COMPLETED,
    "failed": S.FAILED,
    "cancelled": S.CANCELLED,
    "expired": S.EXPIRED,
}
UNKNOWN = ["", "paused", "COMPLETED", "completed ", "archived", "done"]

RUNNING = Followed(S.RUNNING, TASK, None)


def seen(status: str, task_id: str = TASK) -> Observation:
    return Observation(task_id, status)


def apply(followed: Followed, observation: Observation) -> Followed:
    """The generation after the decision: what `transitions.apply_observation` writes."""
    match observe(followed, observation):
        case Finish(event):
            assert followed.status in TRANSITIONS[event].sources
            return replace(
                followed, status=TRANSITIONS[event].target, remote_status=observation.status
            )
        case Progress():
            return replace(followed, remote_status=observation.status)
        case _:
            return followed


def follow(statuses: list[str], followed: Followed = RUNNING) -> list[Followed]:
    return list(itertools.accumulate(map(seen, statuses), apply, initial=followed))


one_life = st.builds(
    lambda progress, end: [*progress, *end],
    st.lists(st.sampled_from(PROGRESSING + UNKNOWN), max_size=8),
    st.lists(st.sampled_from(sorted(ENDS)), max_size=1).map(lambda end: end * 3),
)


@given(one_life.flatmap(lambda life: st.tuples(st.just(life), st.permutations(life))))
def test_any_order_with_duplicates_gives_the_same_end(lives):
    life, shuffled = lives
    assert follow(life)[-1] == follow(shuffled)[-1]


@given(st.lists(st.sampled_from([*PROGRESSING, *ENDS, *UNKNOWN]), max_size=12))
def test_rank_never_falls_and_the_first_end_is_final(statuses):
    history = follow(statuses)
    ranks = [rank(step.remote_status) for step in history]
    assert ranks == sorted(ranks)
    ends = [step for step in history if step.status in TERMINAL]
    assert all(step == ends[0] for step in ends)
    first_end = next((status for status in statuses if status in ENDS), None)
    assert history[-1].status == (S.RUNNING if first_end is None else ENDS[first_end])


@given(st.lists(st.sampled_from([*PROGRESSING, *ENDS, *UNKNOWN]), max_size=8))
def test_a_replay_changes_nothing(statuses):
    once = follow(statuses)[-1]
    assert follow(statuses, once)[-1] == once


@pytest.mark.parametrize("status", UNKNOWN)
@pytest.mark.parametrize("before", [None, *PROGRESSING])
def test_an_unknown_status_ends_nothing_and_hides_nothing(status, before):
    assert observe(Followed(S.RUNNING, TASK, before), seen(status)) == Nothing()


@pytest.mark.parametrize(("status", "end"), list(ENDS.items()))
@pytest.mark.parametrize("before", [None, *PROGRESSING, "paused"])
def test_an_end_is_followed_from_wherever_it_was(status, end, before):
    decision = observe(Followed(S.RUNNING, TASK, before), seen(status))
    assert isinstance(decision, Finish)
    assert TRANSITIONS[decision.event].target is end


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("status", [*PROGRESSING, *UNKNOWN])
def test_a_stale_sighting_of_an_ended_task_says_nothing(end, status):
    assert observe(Followed(ENDS[end], TASK, end), seen(status)) == Nothing()


@pytest.mark.parametrize(("recorded", "shown"), list(itertools.product(ENDS, ENDS)))
def test_another_end_than_the_recorded_one_is_told_and_not_followed(recorded, shown):
    decision = observe(Followed(ENDS[recorded], TASK, recorded), seen(shown))
    assert decision == (Nothing() if recorded == shown else Contradiction())


@given(
    st.sampled_from(sorted(Status)),
    st.sampled_from([None, *PROGRESSING, *ENDS]),
    st.sampled_from([*PROGRESSING, *ENDS, *UNKNOWN]),
)
def test_an_observation_of_another_task_does_nothing(status, before, shown):
    followed = Followed(Status(status), TASK, before)
    assert observe(followed, seen(shown, "task-2")) == Nothing()
    assert observe(replace(followed, remote_task_id=None), seen(shown)) == Nothing()


@given(
    st.sampled_from(sorted(Status)),
    st.sampled_from([None, *PROGRESSING, *ENDS]),
    st.sampled_from([*PROGRESSING, *ENDS, *UNKNOWN]),
)
def test_only_a_running_generation_is_moved(status, before, shown):
    decision = observe(Followed(Status(status), TASK, before), seen(shown))
    if Status(status) is not S.RUNNING:
        assert isinstance(decision, Nothing | Contradiction)


def test_a_signed_url_is_not_in_the_repr():
    signed = "https://cdn.example/v.mp4?signature=secret"
    observation = Observation(TASK, "completed", video_url=signed, last_frame_url=signed)
    assert "secret" not in repr(observation)
