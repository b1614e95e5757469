"""What became of a lost answer: each rule of protocol.md's "Resolving", as a case."""

import random
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.lifecycle import Observation
from models.resolution import (
    TRUNCATION,
    UNKNOWN_SKEW,
    Absent,
    Adopt,
    Attempt,
    Case,
    Page,
    Reading,
    Seen,
    Skew,
    Undecided,
    Window,
    agree,
    borne_out,
    early,
    judge,
    still,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SEED = 4711
EXACT = Skew(timedelta(0), timedelta(0))
REQUEST = {
    "model": "seedance-2.0",
    "resolution": "720p",
    "ratio": "16:9",
    "duration": 5,
    "generate_audio": True,
}


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def attempt(number: int = 1, seed: int = SEED, *, drawn: bool = True, at: float = 0) -> Attempt:
    return Attempt(number, seed, drawn, after(at), after(at + 90))


def task(
    task_id: str = "t1", seed: int | None = SEED, at: float | None = 1, **shown
) -> Observation:
    created = None if at is None else after(at)
    fields = {**REQUEST, **shown}
    return Observation(
        task_id, "queued", seed=seed, created_at=created, updated_at=created, **fields
    )


def drawn_case(*attempts: Attempt) -> Case:
    return Case(uuid.UUID(int=1), REQUEST, attempts or (attempt(),))


def fixed_case(*attempts: Attempt, exclusive: bool = True, rival: bool = False) -> Case:
    return Case(
        uuid.UUID(int=1),
        {**REQUEST, "seed": SEED},
        attempts or (attempt(drawn=False),),
        key_exclusive=exclusive,
        rival=rival,
    )


# --- narrow to adopt ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", [-1e6, -1, 0, 1, 1e6, None])
def test_a_drawn_seed_is_adopted_whatever_its_stamps_say(at):
    verdict = judge(drawn_case(), [task(at=at)], EXACT)
    assert isinstance(verdict, Adopt)
    assert (verdict.task.task_id, verdict.attempt, verdict.by_mark) == ("t1", 1, True)


@pytest.mark.parametrize(
    "shown", [{"ratio": "9:16"}, {"resolution": None}, {"duration": 12}, {"model": "renamed"}]
)
def test_a_drawn_seed_is_adopted_whatever_else_is_shown(shown):
    assert isinstance(judge(drawn_case(), [task(**shown)], EXACT), Adopt)


def test_of_several_own_drawn_seeds_the_earliest_is_adopted_and_the_rest_named():
    case = drawn_case(attempt(1, 11), attempt(2, 22, at=100), attempt(3, 33, at=200))
    tasks = [task("c", 33, 201), task("a", 11, 205), task("b", 22, 101), task("x", 99, 150)]

    verdict = judge(case, tasks, EXACT)

    assert isinstance(verdict, Adopt)
    assert (verdict.task.task_id, verdict.attempt) == ("b", 2)
    assert [(other.task_id, number) for other, number in verdict.others] == [("c", 3), ("a", 1)]


def test_a_task_without_stamp_is_adopted_last():
    case = drawn_case(attempt(1, 11), attempt(2, 22, at=100))
    verdict = judge(case, [task("a", 11, None), task("b", 22, 101)], EXACT)
    assert isinstance(verdict, Adopt)
    assert verdict.task.task_id == "b"


def test_the_choice_does_not_depend_on_the_lists_order():
    case = drawn_case(attempt(1, 11), attempt(2, 22, at=100))
    tasks = [task("a", 11, 5), task("b", 22, 5), task("c", 22, None), task("d", None, 50)]
    verdicts = {repr(judge(case, random.Random(i).sample(tasks, 4), EXACT)) for i in range(10)}
    assert len(verdicts) == 1


def test_a_fixed_seed_is_adopted_where_everything_echoed_is_equal_and_the_key_is_ours():
    verdict = judge(fixed_case(), [task()], EXACT)
    assert isinstance(verdict, Adopt)
    assert verdict.by_mark is False, "it proves nothing by itself: two readings must agree"


def test_a_fixed_seed_is_not_adopted_where_others_use_the_key():
    verdict = judge(fixed_case(exclusive=False), [task()], EXACT)
    assert isinstance(verdict, Undecided)
    assert "exclusive" in verdict.why
    assert verdict.task_ids == ("t1",)


def test_a_fixed_seed_is_not_adopted_while_a_rival_has_an_open_attempt():
    verdict = judge(fixed_case(rival=True), [task()], EXACT)
    assert isinstance(verdict, Undecided)
    assert "another generation" in verdict.why


@pytest.mark.parametrize(
    "shown",
    [
        {"model": "seedance-2.0-fast"},
        {"resolution": "1080p"},
        {"ratio": "1280:720"},
        {"ratio": None},
        {"duration": 6},
        {"generate_audio": None},
    ],
)
def test_a_fixed_seed_with_a_field_shown_otherwise_is_neither_adopted_nor_sent_again(shown):
    assert isinstance(judge(fixed_case(), [task(**shown)], EXACT), Undecided)


def test_a_fixed_seed_outside_the_window_is_somebody_elses():
    outside = [task("old", at=-2), task("late", at=92)]
    assert judge(fixed_case(), outside, EXACT) == Absent()


def test_a_fixed_seed_without_a_stamp_is_not_adopted():
    assert isinstance(judge(fixed_case(), [task(at=None)], EXACT), Undecided)


def test_two_equal_tasks_for_one_fixed_seed_attempt_are_not_guessed_between():
    verdict = judge(fixed_case(), [task("a", at=1), task("b", at=2)], EXACT)
    assert isinstance(verdict, Undecided)
    assert verdict.task_ids == ("a", "b")


def test_two_equal_tasks_for_two_fixed_seed_attempts_are_adopted_and_flagged():
    case = fixed_case(attempt(1, drawn=False), attempt(2, drawn=False, at=100))
    verdict = judge(case, [task("b", at=101), task("a", at=1)], EXACT)
    assert isinstance(verdict, Adopt)
    assert verdict.task.task_id == "a"
    assert [other.task_id for other, _ in verdict.others] == ["b"]


def test_an_equal_task_beside_one_that_could_be_ours_is_not_adopted():
    verdict = judge(fixed_case(), [task("a"), task("b", seed=None)], EXACT)
    assert isinstance(verdict, Undecided)
    assert verdict.task_ids == ("a", "b")


# --- wide to send again ------------------------------------------------------------------------


@pytest.mark.parametrize("case", [drawn_case(), fixed_case()], ids=["drawn", "fixed"])
class TestSendAgain:
    def test_nothing_unknown(self, case):
        assert judge(case, [], EXACT) == Absent()

    def test_only_other_seeds(self, case):
        assert judge(case, [task(seed=1), task("t2", seed=0)], EXACT) == Absent()

    @pytest.mark.parametrize("seed", [None, -1])
    def test_a_task_that_shows_no_seed_could_be_ours(self, case, seed):
        verdict = judge(case, [task(seed=seed)], EXACT)
        assert isinstance(verdict, Undecided)
        assert verdict.task_ids == ("t1",)

    @pytest.mark.parametrize("seed", [None, -1])
    def test_other_fields_exclude_nothing(self, case, seed):
        shown = task(seed=seed, ratio="1280:720", model="x", duration=None, resolution="720P")
        assert isinstance(judge(case, [shown], EXACT), Undecided)

    def test_without_seed_and_stamp_it_could_be_ours(self, case):
        assert isinstance(judge(case, [task(seed=None, at=None)], EXACT), Undecided)

    @pytest.mark.parametrize("at", [-1.5, 91.5])
    def test_without_seed_but_outside_the_window_it_is_not(self, case, at):
        assert judge(case, [task(seed=None, at=at)], EXACT) == Absent()

    @pytest.mark.parametrize("at", [-1, 0, 90, 91])
    def test_truncated_stamps_are_inside_the_window(self, case, at):
        assert isinstance(judge(case, [task(seed=None, at=at)], EXACT), Undecided)


def test_the_window_of_each_open_attempt_counts():
    case = drawn_case(attempt(1, 11), attempt(2, 22, at=1000))
    for inside in (10, 1010):
        assert isinstance(judge(case, [task(seed=None, at=inside)], EXACT), Undecided)
    assert judge(case, [task(seed=None, at=500)], EXACT) == Absent()


def test_a_drawn_seed_is_never_adopted_by_looks():
    """A drawn seed that isn't shown leaves doubt, however equal the rest and the key ours."""
    case = replace(drawn_case(), key_exclusive=True)
    assert isinstance(judge(case, [task(seed=None)], EXACT), Undecided)


def test_a_producers_seed_is_no_mark():
    """Seed 0 and any other: equal seeds of a producer prove nothing."""
    case = replace(fixed_case(attempt(seed=0, drawn=False)), key_exclusive=False)
    assert isinstance(judge(case, [task(seed=0)], EXACT), Undecided)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, -1, 0, SEED, SEED + 1]),
            st.sampled_from([None, -500, -1, 0, 45, 91, 500]),
            st.sampled_from(["16:9", "1280:720", None]),
        ),
        max_size=4,
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_never_absent_with_a_possible_task_and_never_adopting_a_strange_seed(
    shown, drawn, exclusive, rival
):
    tasks = [task(f"t{i}", seed, at, ratio=ratio) for i, (seed, at, ratio) in enumerate(shown)]
    one = attempt(drawn=drawn)
    case = Case(uuid.UUID(int=1), REQUEST, (one,), key_exclusive=exclusive, rival=rival)

    verdict = judge(case, tasks, EXACT)

    def inside(at: float | None) -> bool:
        return at is None or -1 <= at <= 91

    possible = [
        (seed, at)
        for seed, at, _ in shown
        if (seed == SEED and (drawn or inside(at))) or (seed in (None, -1) and inside(at))
    ]
    assert isinstance(verdict, Absent) == (not possible)
    if isinstance(verdict, Adopt):
        assert verdict.task.seed == SEED
        assert drawn or (exclusive and not rival)


# --- two readings ------------------------------------------------------------------------------

ADOPT = Adopt(task(), 1, by_mark=False)
OTHER = Adopt(task("t2"), 1, by_mark=False)
MARKED = Adopt(task("t3"), 1, by_mark=True)


def test_two_readings_that_show_nothing_say_absent():
    assert agree(Absent(), Absent()) == Absent()


def test_two_readings_with_the_same_match_adopt_it():
    assert agree(ADOPT, ADOPT) == ADOPT


def test_a_task_that_got_further_between_the_readings_is_still_the_same_match():
    later = replace(ADOPT, task=replace(ADOPT.task, status="completed"))
    assert isinstance(agree(ADOPT, later), Adopt)


@pytest.mark.parametrize(
    ("first", "second"),
    [(Absent(), ADOPT), (ADOPT, Absent()), (ADOPT, OTHER), (Absent(), Undecided("?"))],
)
def test_readings_that_differ_decide_nothing(first, second):
    assert isinstance(agree(first, second), Undecided)
    assert isinstance(agree(second, first), Undecided)


@pytest.mark.parametrize("other", [Absent(), Undecided("?"), MARKED])
def test_a_drawn_seed_in_either_reading_is_enough(other):
    assert agree(other, MARKED) == MARKED
    assert agree(MARKED, other) == MARKED


# --- an early scan ----------------------------------------------------------------------------


@pytest.mark.parametrize("adoption", [ADOPT, MARKED])
def test_an_early_scan_adopts_by_a_mark_or_by_the_narrow_rule(adoption):
    assert early(adoption) == adoption


@pytest.mark.parametrize("verdict", [Absent(), Undecided("?", ("t1",))])
def test_an_early_scan_decides_nothing_but_adoption(verdict):
    assert early(verdict) is None


@pytest.mark.parametrize("case", [drawn_case(), fixed_case()])
def test_an_early_scan_that_shows_nothing_proves_no_absence(case):
    assert early(judge(case, [], EXACT)) is None


@pytest.mark.parametrize("case", [fixed_case(exclusive=False), fixed_case(rival=True)])
def test_an_early_scan_does_not_adopt_an_equal_task_that_could_be_of_another(case):
    assert early(judge(case, [task()], EXACT)) is None


def test_an_early_scan_keeps_the_further_tasks_of_the_generation():
    case = drawn_case(attempt(1, 11), attempt(2, 22, at=100))
    verdict = early(judge(case, [task("a", 11, 5), task("b", 22, 101)], EXACT))
    assert verdict is not None
    assert [(other.task_id, number) for other, number in verdict.others] == [("b", 2)]


def test_a_task_that_is_followed_by_now_is_not_adopted_by_an_early_scan():
    verdict = early(judge(fixed_case(), [task("t1")], EXACT))
    assert verdict is not None
    assert early(still(verdict, followed={"t1"})) is None
    assert early(still(verdict, followed={"t2"})) == verdict


# --- clocks ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    offset=st.floats(-4000, 4000),
    sent=st.floats(0, 100),
    there=st.floats(0, 20),
    back=st.floats(0, 20),
)
def test_an_answers_date_bounds_the_offset(offset, sent, there, back):
    """Whatever the delays, and though Date is cut to whole seconds."""
    stamped = after(sent + there + offset).replace(microsecond=0)
    skew = Skew.of_answer(date=stamped, sent=after(sent), received=after(sent + there + back))
    assert skew.lowest <= timedelta(seconds=offset) + timedelta(microseconds=2)
    assert timedelta(seconds=offset) - timedelta(microseconds=2) <= skew.highest


@settings(max_examples=60)
@given(
    offset=st.floats(-4000, 4000),
    created=st.floats(0, 30),
    answered=st.floats(0, 30),
    truncated=st.booleans(),
)
def test_a_task_of_ours_bounds_the_offset(offset, created, answered, truncated):
    stamp = after(created + offset)
    if truncated:
        stamp = stamp.replace(microsecond=0)
    skew = Skew.of_task(created=stamp, intended=NOON, answered=after(created + answered))
    assert skew.lowest <= timedelta(seconds=offset) + timedelta(microseconds=2)
    assert timedelta(seconds=offset) - timedelta(microseconds=2) <= skew.highest


def test_without_samples_the_clock_may_be_minutes_off_either_way():
    assert Skew.of([]) == Skew(-UNKNOWN_SKEW, UNKNOWN_SKEW)


def test_several_samples_widen_the_interval():
    second = timedelta(seconds=1)
    assert Skew.of([Skew(second, 2 * second), Skew(-second, second)]) == Skew(-second, 2 * second)


@pytest.mark.parametrize("offset", [-3600.0, -40.0, 0.0, 40.0, 3600.0])
def test_the_window_moves_with_the_providers_clock(offset):
    delta = timedelta(seconds=offset)
    window = attempt().window(Skew(delta, delta))
    for created in (0.0, 45.0, 90.0):
        assert window.holds(after(created) + delta)
        assert window.holds((after(created) + delta).replace(microsecond=0))
    assert not window.holds(after(-2) + delta)
    assert not window.holds(after(92) + delta)


def test_the_window_is_as_wide_as_the_skew_is_unsure():
    window = attempt().window(Skew(timedelta(seconds=-10), timedelta(seconds=20)))
    assert window == Window(after(-10) - TRUNCATION, after(110) + TRUNCATION)
    assert window.holds(None)


# --- a complete reading ------------------------------------------------------------------------

START = after(1000)
"""The window begins here in the simulation; tasks with stamps below are older."""


@dataclass
class Row:
    """A task in the simulated list."""

    task_id: str
    created: float
    updated: float

    def shown(self) -> Observation:
        return Observation(
            self.task_id,
            "queued",
            seed=1,
            created_at=after(self.created),
            updated_at=after(self.updated),
        )


ORDERS = {
    "newest first": lambda row: (-row.created, row.task_id),
    "oldest first": lambda row: (row.created, row.task_id),
    "last updated first": lambda row: (-row.updated, row.task_id),
    "first updated first": lambda row: (row.updated, row.task_id),
    "by id": lambda row: row.task_id,
}
DRIFTS = {
    "nothing": (),
    "insert": ("insert",),
    "update": ("update",),
    "delete": ("delete",),
    "insert and update": ("insert", "update"),
    "update and delete": ("update", "delete"),
    "insert and delete": ("insert", "delete"),
    "everything": ("insert", "update", "delete"),
}


@dataclass
class Drifting:
    """A list that changes while it is read, with one task in the window that nobody knows."""

    order: str
    drift: tuple[str, ...]
    rng: random.Random

    def __post_init__(self) -> None:
        self.now = 2000.0
        old = [self._row(i * 10.0) for i in range(self.rng.randrange(8))]
        recent = [self._row(1000 + i * 10.0) for i in range(self.rng.randrange(1, 6))]
        self.rows = old + recent
        self.lost = self.rng.choice(recent)
        self.known = frozenset(r.task_id for r in recent if r is not self.lost)

    def _row(self, created: float) -> Row:
        task_id = f"{self.rng.randrange(10**9):09}"
        return Row(task_id, created, created + self.rng.choice([0, 3, 30]))

    def change(self) -> None:
        changes = self.rng.choice([0, 0, 1, 1, 2, 3]) if self.drift else 0
        for kind in self.rng.choices(self.drift, k=changes):
            self.now += 10
            others = [row for row in self.rows if row is not self.lost]
            if kind == "insert":
                self.rows.append(self._row(self.now))
            elif kind == "update":
                self.rng.choice(self.rows).updated = self.now
            elif others:
                self.rows.remove(self.rng.choice(others))

    def page(self, number: int, size: int) -> Page:
        self.rows.sort(key=ORDERS[self.order])
        shown = self.rows[(number - 1) * size : number * size]
        return Page(tuple(row.shown() for row in shown), len(self.rows), size)

    def read(self, size: int) -> tuple[bool, bool, bool]:
        """Whether it claims FULL, whether STOP, and whether it has the task that nobody knows."""
        reading = Reading()
        while True:
            reading.add(self.page(reading.pages + 1, size))
            full, stop = reading.full, reading.stopped(START, self.known)
            if full or stop or reading.ended or reading.pages == 40:
                return full, stop, self.lost.task_id in reading.tasks
            if self.drift:
                self.change()

    def seen(self, size: int) -> Seen:
        """One reading to the list's end, for the next to be held against."""
        reading = Reading()
        while not (reading.full or reading.ended or reading.pages == 40):
            if reading.pages:
                self.change()
            reading.add(self.page(reading.pages + 1, size))
        return Seen(frozenset(reading.tasks), reading.full)


# With pages this small, tasks in no order at all look ordered by chance; with pages of 100 a
# hundred would have to. There only FULL is asked about.
BY_CHANCE = {"by id"}
# Where new tasks come last, a deletion and an insertion between two pages leave `total` as it
# was and pull a task past the reader: one FULL reading can be fooled, which is why two must agree.
TAIL_GROWS = {"oldest first", "first updated first", "by id"}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_reading_that_claims_to_be_complete_has_missed_nothing(order, drift):
    unsure = order in TAIL_GROWS and {"insert", "delete"} <= set(DRIFTS[drift])
    claimed = 0
    for seed in range(120):
        rng = random.Random(f"{order} {drift} {seed}")
        full, stop, has_it = Drifting(order, DRIFTS[drift], rng).read(rng.choice([2, 3, 5]))
        if order in BY_CHANCE:
            stop = False
        if unsure:
            full = False
        claimed += full or stop
        assert has_it or not (full or stop), f"seed {seed} missed it: {full=} {stop=}"
    if not unsure:
        assert claimed > 10, "a reading that is never complete proves nothing"


def test_two_full_readings_find_what_one_was_fooled_about():
    """A coincidence hides a task from one reading; the second, of a list at rest, shows it."""
    fooled = 0
    for seed in range(900):
        rng = random.Random(f"twice {seed}")
        listed = Drifting("oldest first", ("insert", "delete"), rng)
        full, _, has_it = listed.read(rng.choice([2, 3]))
        if not full or has_it:
            continue
        fooled += 1
        listed.drift = ()
        full, _, has_it = listed.read(3)
        assert full
        assert has_it
    assert fooled, "no coincidence was found: the simulation has lost its teeth"


@given(
    order=st.sampled_from(sorted(ORDERS)),
    drift=st.sampled_from(sorted(DRIFTS)),
    size=st.sampled_from([1, 2, 3, 5]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300)
def test_a_count_that_is_borne_out_has_missed_nothing(order, drift, size, seed):
    """Whatever drifts, in both readings, in every order."""
    listed = Drifting(order, DRIFTS[drift], random.Random(seed))
    first, second = listed.seen(size), listed.seen(size)
    if first.by_count and borne_out(first, second):
        assert listed.lost.task_id in first.ids


@pytest.mark.parametrize("order", ["oldest first", "by id"])
def test_a_count_that_was_fooled_is_not_borne_out(order):
    """The list goes on changing: the second reading may be fooled as well."""
    fooled = 0
    for seed in range(1_500):
        rng = random.Random(f"both {seed}")
        listed = Drifting(order, ("insert", "delete"), rng)
        first, second = listed.seen(2), listed.seen(2)
        if first.by_count and listed.lost.task_id not in first.ids:
            fooled += 1
            assert not borne_out(first, second)
    assert fooled, "no coincidence was found: the simulation has lost its teeth"


def test_a_count_is_borne_out_by_a_count_alone():
    whole = Seen(frozenset({"a", "b"}), by_count=True)
    assert borne_out(whole, whole)
    assert borne_out(whole, Seen(frozenset({"a", "b", "c"}), by_count=True))
    assert not borne_out(whole, Seen(frozenset({"a", "c"}), by_count=True))
    assert not borne_out(whole, Seen(frozenset({"a", "b"}), by_count=False))
    assert borne_out(Seen(frozenset({"a"}), by_count=False), Seen(frozenset(), by_count=False))


def pages(*stamps: list[float], total: int, size: int = 2) -> Reading:
    reading = Reading()
    for number, page in enumerate(stamps):
        rows = [Row(f"t{at:g}", at, at) for at in page]
        assert number + 1 == len(stamps) or len(page) == size
        reading.add(Page(tuple(row.shown() for row in rows), total, size))
    return reading


def test_full_needs_every_distinct_task():
    assert pages([4, 3], [2, 1], total=4).full
    assert not pages([4, 3], [3, 2], total=4).full
    assert not pages([4, 3], total=4).full


def test_full_needs_a_total_that_stands_still_and_items_that_can_be_read():
    changed = pages([4, 3], total=4)
    changed.add(Page((Row("t2", 2, 2).shown(),), 3, 2))
    assert len(changed.tasks) == 3
    assert not changed.full

    untold = Reading()
    untold.add(Page((), None, 2))
    assert not untold.full

    unreadable = Reading()
    unreadable.add(Page((Row("t1", 1, 1).shown(),), 1, 2, unreadable=1))
    assert not unreadable.full


def test_an_empty_list_is_full():
    reading = Reading()
    reading.add(Page((), 0, 100))
    assert reading.full
    assert reading.ended


def test_stop_ends_where_a_whole_page_is_older_and_all_we_know_was_seen():
    reading = pages([1020, 1010], [20, 10], total=50)
    assert reading.stopped(START, frozenset({"t1020"}))
    assert not reading.full


def test_stop_needs_a_known_task_to_be_seen():
    reading = pages([1020, 1010], [20, 10], total=50)
    assert not reading.stopped(START, frozenset())
    assert not reading.stopped(START, frozenset({"t1020", "t1015"}))


def test_stop_needs_a_whole_page():
    assert not pages([1020, 1010], [1005, 10], total=50).stopped(START, frozenset({"t1020"}))
    assert not pages([1020, 1010], [20], total=50).stopped(START, frozenset({"t1020"}))


def test_stop_needs_both_stamps_older():
    reading = pages([1020, 1010], total=50)
    reading.add(Page((Row("t20", 20, 1500).shown(), Row("t10", 10, 10).shown()), 50, 2))
    assert not reading.stopped(START, frozenset({"t1020"}))
    for missing in ("created_at", "updated_at"):
        reading = pages([1020, 1010], total=50)
        bare = replace(Row("t10", 10, 10).shown(), **{missing: None})
        reading.add(Page((Row("t20", 20, 20).shown(), bare), 50, 2))
        assert not reading.stopped(START, frozenset({"t1020"}))


def test_stop_ends_for_good_where_the_order_was_broken():
    reading = pages([1010, 1020], [20, 10], total=50)
    assert not reading.stopped(START, frozenset({"t1020"}))


def test_stop_allows_equal_stamps():
    assert pages([1020, 1020], [20, 20], total=50).stopped(START, frozenset({"t1020"}))


def test_stop_copes_with_steady_insertion():
    """Each new task shows one task again; the total grows by as much."""
    reading = pages([1030, 1020], total=50)
    reading.add(Page((Row("t1020", 1020, 1020).shown(), Row("t10", 10, 10).shown()), 51, 2))
    reading.add(Page((Row("t9", 9, 9).shown(), Row("t8", 8, 8).shown()), 51, 2))
    assert reading.stopped(START, frozenset({"t1020"}))


def test_stop_is_off_where_a_task_left_the_list_meanwhile():
    """[5 4 | 3 2]: 5 is deleted, 3 moves up to the page that was read already."""
    reading = pages([1050, 1040], total=50)
    reading.add(Page((Row("t20", 20, 20).shown(), Row("t10", 10, 10).shown()), 49, 2))
    assert not reading.stopped(START, frozenset({"t1050"}))


def test_stop_is_off_where_a_task_moved_up_meanwhile():
    """Seen again without a new one: something unread has moved to the front."""
    reading = pages([1050, 1040], total=50)
    reading.add(Page((Row("t1040", 1040, 1040).shown(), Row("t20", 20, 20).shown()), 50, 2))
    reading.add(Page((Row("t19", 19, 19).shown(), Row("t18", 18, 18).shown()), 50, 2))
    assert not reading.stopped(START, frozenset({"t1050"}))


def test_stop_is_off_where_the_list_tells_no_total():
    reading = Reading()
    for stamps in ((1020, 1010), (20, 10)):
        reading.add(Page(tuple(Row(f"t{at}", at, at).shown() for at in stamps), None, 2))
    assert not reading.stopped(START, frozenset({"t1020"}))


def test_a_seed_once_shown_stays_known():
    reading = Reading()
    shown = task(seed=7)
    reading.add(Page((shown,), 1, 1))
    reading.add(Page((replace(shown, seed=None, status="processing"),), 1, 1))
    assert reading.tasks["t1"].seed == 7
    assert reading.tasks["t1"].status == "processing"
