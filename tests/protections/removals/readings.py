"""When a reading of the task list is complete, and how far the provider's clock may be off."""

from tests.protections.protection import Edit, Protection

RULES = "tests/unit/test_resolution.py"
STAGE = "tests/integration/test_resolve_stage.py"
DRIFT = "tests/integration/test_drift.py"
HARD = "tests/integration/test_hard_cases_watch.py"

RESOLUTION = "models/resolution.py"
READING = "worker/reading.py"

PROTECTIONS = (
    Protection(
        "full-needs-a-steady-total",
        "FULL: total the same on every page",
        (
            Edit(
                RESOLUTION,
                "page.total is None or page.unreadable or self._total not in (None, page.total)",
                "page.total is None or page.unreadable",
            ),
        ),
        (f"{RULES}::test_full_needs_a_total_that_stands_still_and_items_that_can_be_read",),
    ),
    Protection(
        "full-needs-every-task",
        "FULL: as many distinct ids as total says",
        (
            Edit(
                RESOLUTION,
                "return self._steady and self._total is not None and len(self.ids) == self._total",
                "return self._steady and self._total is not None and self.ended",
            ),
        ),
        (
            f"{RULES}::test_full_needs_every_distinct_task",
            f"{STAGE}::test_a_list_that_says_there_is_more_than_it_shows_decides_nothing",
        ),
    ),
    Protection(
        "counts-bear-each-other-out",
        "two readings complete by count: all that the first counted is still there",
        (
            Edit(
                RESOLUTION,
                "    return not first.by_count or (second.by_count and first.ids <= second.ids)\n",
                "    return True\n",
            ),
        ),
        (
            f"{DRIFT}::test_a_deletion_that_is_made_up_for_in_both_readings",
            f"{RULES}::test_a_count_that_was_fooled_is_not_borne_out",
        ),
    ),
    Protection(
        "stop-needs-a-known-task",
        "STOP: at least one task that we know in the window was seen",
        (
            Edit(
                RESOLUTION, "return older and bool(known) and known <=", "return older and known <="
            ),
        ),
        (f"{RULES}::test_stop_needs_a_known_task_to_be_seen",),
    ),
    Protection(
        "stop-needs-all-known-tasks",
        "STOP: every task that we know in the window was seen",
        (
            Edit(
                RESOLUTION,
                "return older and bool(known) and known <= self.ids",
                "return older and bool(known)",
            ),
        ),
        (f"{RULES}::test_stop_needs_a_known_task_to_be_seen",),
    ),
    Protection(
        "stop-needs-the-order",
        "STOP: created_at not increasing so far",
        (
            Edit(
                RESOLUTION,
                "            if task.created_at is None or (self._oldest and task.created_at > self._oldest):\n",
                "            if task.created_at is None:\n",
            ),
        ),
        (f"{RULES}::test_stop_ends_for_good_where_the_order_was_broken",),
    ),
    Protection(
        "stop-needs-both-stamps",
        "STOP: one whole page older than the window in both stamps",
        (
            Edit(
                RESOLUTION,
                "            and task.updated_at is not None\n            and task.updated_at < start\n",
                "",
            ),
        ),
        (f"{RULES}::test_stop_needs_both_stamps_older",),
    ),
    Protection(
        "stop-needs-a-whole-page",
        "STOP: one whole page, not the rest of one",
        (
            Edit(
                RESOLUTION,
                "page is None or not self._ordered or len(page.tasks) < page.size",
                "page is None or not self._ordered",
            ),
        ),
        (f"{RULES}::test_stop_needs_a_whole_page",),
    ),
    Protection(
        "stop-is-off-under-removal",
        "STOP: nothing may leave the list or move up in it",
        (
            Edit(
                RESOLUTION,
                "        if page.total < self._total or self._repeated > page.total - self._first_total:\n",
                "        if page.total < 0:\n",
            ),
        ),
        (
            f"{RULES}::test_stop_is_off_where_a_task_left_the_list_meanwhile",
            f"{RULES}::test_stop_is_off_where_a_task_moved_up_meanwhile",
            f"{RULES}::test_a_reading_that_claims_to_be_complete_has_missed_nothing",
        ),
    ),
    Protection(
        "list-of-our-account",
        "a list that shows none of our latest tasks is not ours",
        (
            Edit(
                RESOLUTION,
                "return not ours or not ours.isdisjoint(self.ids)",
                "return not ours or True",
            ),
        ),
        (f"{HARD}::test_the_list_of_another_account_decides_nothing",),
    ),
    Protection(
        "lag-of-the-list",
        "tasks that the list may not show yet are not demanded of it",
        (
            Edit(
                "models/watch.py",
                "                a.started_at >= since,\n                a.decided_at <= until,\n",
                "                a.started_at >= since,\n",
            ),
        ),
        ("tests/integration/test_watch.py::test_what_we_know_to_be_in_the_window",),
    ),
    # --- skew -------------------------------------------------------------------------------
    Protection(
        "window-moves-with-the-date",
        "skew from each answer's Date header",
        (
            Edit(
                READING,
                "        samples += _skew_of_answer(answer.exchange, clock)\n        samples += _skew_of_tasks(rt, seen)\n",
                "        samples += [Skew(timedelta(0), timedelta(0))]\n        samples += _skew_of_tasks(rt, seen)\n",
            ),
        ),
        (f"{STAGE}::test_skewed_clocks[3600-True]", f"{STAGE}::test_skewed_clocks[-3600-True]"),
    ),
    Protection(
        "window-widened-by-our-own",
        "the window is widened by created_at of our own answered submissions",
        (Edit(READING, "        samples += _skew_of_tasks(rt, seen)\n", ""),),
        (f"{STAGE}::test_stamps_of_another_clock_than_the_date_header",),
    ),
    Protection(
        "truncated-stamps",
        "stamps may come without their fraction of a second",
        (
            Edit(
                RESOLUTION,
                "self.started_at + skew.lowest - TRUNCATION,",
                "self.started_at + skew.lowest,",
            ),
        ),
        (f"{RULES}::TestSendAgain::test_truncated_stamps_are_inside_the_window",),
    ),
    Protection(
        "date-has-whole-seconds",
        "highest offset = Date + 1 s - sent",
        (
            Edit(
                RESOLUTION,
                "return Skew(date - received, date + TRUNCATION - sent)",
                "return Skew(date - received, date - sent)",
            ),
        ),
        (f"{RULES}::test_an_answers_date_bounds_the_offset",),
    ),
    Protection(
        "pause-at-the-clock",
        "a pause while the clock is sampled makes the window wider, never wrong",
        (
            Edit(
                READING,
                "return self.at + timedelta(seconds=monotonic - self.asked)",
                "return self.at + timedelta(seconds=monotonic - self.answered)",
            ),
            Edit(
                READING,
                "return self.at + timedelta(seconds=monotonic - self.answered)\n\n    def latest",
                "return self.at + timedelta(seconds=monotonic - self.asked)\n\n    def latest",
            ),
        ),
        (f"{HARD}::test_a_pause_while_the_clock_is_sampled_makes_the_window_wider",),
    ),
)
