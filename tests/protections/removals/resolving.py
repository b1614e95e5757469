"""Deciding what became of a lost answer: adopt narrowly, send again widely, else ask."""

from tests.protections.protection import Edit, Protection

STAGE = "tests/integration/test_resolve_stage.py"
RULES = "tests/unit/test_resolution.py"
ANSWERS = "tests/integration/test_answers.py"
WATCH = "tests/integration/test_watch.py"
HARD = "tests/integration/test_hard_cases_answers.py"

RESOLUTION = "models/resolution.py"
RESOLVE = "worker/stages/resolve.py"
SETTLING = "models/transitions/settling.py"

PROTECTIONS = (
    Protection(
        "settle-wait",
        "resolving starts after settle_at",
        (
            Edit(
                "models/decisions.py",
                "    return all(seconds <= 0 for seconds in settle_in)\n",
                "    return True\n",
            ),
        ),
        (
            f"{STAGE}::test_early_scans_that_find_nothing_decide_nothing",
            f"{WATCH}::test_every_open_attempt_is_part_of_the_case_and_settled_with_the_last",
        ),
    ),
    Protection(
        "intent-is-due-when-it-settles",
        "nothing is due between intent and settle_at",
        (
            Edit(
                "models/transitions/before.py",
                '"settles_in": timedelta(seconds=settle_seconds),',
                '"settles_in": timedelta(0),',
            ),
        ),
        (
            "tests/integration/test_submit_stage.py::test_nothing_is_due_between_the_intent_and_settling_while_no_answer_came",
        ),
    ),
    Protection(
        "early-scan-decides-presence-alone",
        "before settle_at a task that is seen is adopted, and nothing is found absent",
        (
            Edit(
                "worker/stages/early_scan.py",
                "        if verdict is not None and _adopt(rt, one, verdict):\n",
                "        if verdict is None:\n"
                "            from models import transitions\n"
                "            with rt.engine.begin() as conn:\n"
                "                transitions.absent(\n"
                "                    conn, one.case.generation_id, one.latest, max_attempts=5, detail={}\n"
                "                )\n"
                "        elif _adopt(rt, one, verdict):\n",
            ),
        ),
        (
            f"{STAGE}::test_early_scans_that_find_nothing_decide_nothing",
            f"{STAGE}::test_the_second_early_scan_adopts_a_task_that_appeared_later",
            f"{STAGE}::test_an_early_scan_adopts_no_fixed_seed_of_a_key_that_others_may_use",
        ),
    ),
    Protection(
        "early-scan-is-early",
        "a task whose answer was lost is searched for soon, and not only when it has settled",
        (
            Edit(
                "models/decisions.py",
                "    for after in (EARLY_SCAN, list_lag):\n",
                "    for after in (list_lag, list_lag):\n",
            ),
            Edit(
                "worker/stages/submit.py",
                "            search_in=decisions.EARLY_SCAN,\n",
                "",
            ),
        ),
        (
            "tests/integration/test_submit_stage.py::test_an_uncertain_outcome_is_searched_for_two_seconds_later",
            f"{STAGE}::test_early_scans_that_find_nothing_decide_nothing",
        ),
    ),
    Protection(
        "early-scan-is-repeated-after-the-lag",
        "a task that the list showed late is found by a second early scan",
        (
            Edit(
                "models/decisions.py",
                "    for after in (EARLY_SCAN, list_lag):\n",
                "    for after in (EARLY_SCAN, EARLY_SCAN):\n",
            ),
        ),
        (f"{STAGE}::test_the_second_early_scan_adopts_a_task_that_appeared_later",),
    ),
    Protection(
        "early-scan-reads-followed-again",
        "a task that another generation took since the page was read is not adopted",
        (
            Edit(
                "worker/stages/early_scan.py",
                "        if resolution.still(verdict, followed=taken) is not verdict:\n",
                "        if resolution.still(verdict, followed=()) is not verdict and taken:\n",
            ),
        ),
        (
            f"{STAGE}::test_what_another_generation_took_since_the_page_was_read_is_not_adopted_early",
        ),
    ),
    Protection(
        "early-scan-reads-an-ascending-list-from-its-end",
        "the newest tasks are found in whatever order the list is",
        (
            Edit(
                "worker/reading.py",
                "    numbers = range(last, 1, -1) if _oldest_first(tasks) else range(2, last + 1)\n",
                "    numbers = range(2, last + 1)\n",
            ),
        ),
        (f"{STAGE}::test_an_early_scan_reads_a_list_of_oldest_first_from_its_end",),
    ),
    Protection(
        "uncertain-hold-no-slot",
        "what is uncertain holds no slot",
        (
            Edit(
                "models/schedule.py",
                " AND status <> '{Status.UNCERTAIN}'",
                "",
            ),
        ),
        (
            f"{STAGE}::test_uncertain_generations_hold_no_slot",
            "tests/integration/test_schedule.py::test_only_free_slots_are_filled",
        ),
    ),
    Protection(
        "submitting-is-resolved",
        "submitting rows whose lease ended are resolved as well",
        (
            Edit(
                "models/watch.py",
                "g.status.in_([Status.SUBMITTING, Status.UNCERTAIN]),",
                "g.status.in_([Status.UNCERTAIN]),",
            ),
        ),
        (f"{STAGE}::test_a_submitting_row_whose_worker_died",),
    ),
    # --- narrow to adopt --------------------------------------------------------------------
    Protection(
        "adopt-only-a-drawn-seed",
        "adopt: only the attempt's own drawn seed is a mark",
        (
            Edit(
                RESOLUTION,
                "return attempt.seed_drawn and task.seed not in",
                "return task.seed not in",
            ),
        ),
        (
            f"{STAGE}::test_a_fixed_seed_is_adopted_only_with_an_exclusive_key",
            f"{RULES}::test_a_producers_seed_is_no_mark",
        ),
    ),
    Protection(
        "fixed-seed-needs-an-exclusive-key",
        "adopt a fixed seed: the key is declared exclusive",
        (Edit(RESOLUTION, "    if not case.key_exclusive:\n", "    if not case.attempts:\n"),),
        (
            f"{STAGE}::test_a_fixed_seed_is_adopted_only_with_an_exclusive_key",
            f"{RULES}::test_a_fixed_seed_is_not_adopted_where_others_use_the_key",
        ),
    ),
    Protection(
        "fixed-seed-needs-all-echoed-fields",
        "adopt a fixed seed: all echoed fields equal",
        (Edit(RESOLUTION, "    return echoed and task.seed ==", "    return task.seed =="),),
        (
            f"{STAGE}::test_a_fixed_seed_with_a_normalised_ratio_is_undecided",
            f"{RULES}::test_a_fixed_seed_with_a_field_shown_otherwise_is_neither_adopted_nor_sent_again",
        ),
    ),
    Protection(
        "fixed-seed-needs-the-window",
        "adopt a fixed seed: created inside the window",
        (
            Edit(
                RESOLUTION,
                "    return echoed and task.seed == attempt.seed and in_window\n",
                "    return echoed and task.seed == attempt.seed\n",
            ),
            Edit(RESOLUTION, "    return window.holds(task.created_at)\n", "    return True\n"),
        ),
        (
            f"{STAGE}::test_skewed_clocks[7-True]",
            f"{RULES}::test_a_fixed_seed_outside_the_window_is_somebody_elses",
        ),
    ),
    Protection(
        "fixed-seed-needs-no-rival",
        "adopt a fixed seed: no other generation has an open attempt with it",
        (Edit(RESOLUTION, "    if case.rival:\n", "    if not case.attempts:\n"),),
        (
            f"{STAGE}::test_a_rival_with_an_open_attempt_makes_it_undecided",
            f"{RULES}::test_a_fixed_seed_is_not_adopted_while_a_rival_has_an_open_attempt",
        ),
    ),
    Protection(
        "rival-in-any-status",
        "a rival counts in any status, as long as its attempt is open",
        (
            Edit(
                "models/watch.py",
                "                or_(other, lately),\n",
                "                other,\n",
            ),
        ),
        (
            f"{STAGE}::test_a_rival_with_an_open_attempt_makes_it_undecided",
            f"{WATCH}::test_an_open_attempt_of_another_with_this_fingerprint_is_a_rival_in_any_status",
        ),
    ),
    Protection(
        "no-guess-between-equals",
        "more equal tasks than attempts: undecided",
        (
            Edit(
                RESOLUTION,
                "    if possible != distinct or len(distinct) > len(case.attempts):\n",
                "    if possible != distinct:\n",
            ),
        ),
        (
            f"{STAGE}::test_two_equal_tasks_for_one_attempt_are_undecided",
            f"{RULES}::test_two_equal_tasks_for_one_fixed_seed_attempt_are_not_guessed_between",
        ),
    ),
    Protection(
        "drawn-seed-needs-no-stamp",
        "the window never discards a match of a drawn seed",
        (
            Edit(
                RESOLUTION,
                "        if carries_mark(attempt, task)\n    ]\n",
                "        if carries_mark(attempt, task) and attempt.window(skew).holds(task.created_at)\n    ]\n",
            ),
            Edit(RESOLUTION, "    if carries_mark(attempt, task):\n        return True\n", ""),
        ),
        (
            f"{STAGE}::test_a_drawn_seed_proves_itself_whatever_the_stamps_say",
            f"{RULES}::test_a_drawn_seed_is_adopted_whatever_its_stamps_say",
        ),
    ),
    Protection(
        "several-own-seeds-flag-the-rest",
        "several of our own drawn seeds: adopt one, flag the rest",
        (
            Edit(
                RESOLVE,
                "                    watch.flag_second(conn, generation_id, number, other)\n",
                "                    log.debug('%s %s', number, other)\n",
            ),
        ),
        (f"{STAGE}::test_processed_while_it_is_sent_again_both_are_found",),
    ),
    # --- wide to send again -----------------------------------------------------------------
    Protection(
        "seedless-could-be-ours",
        "send again: a task that shows no seed could be ours",
        (
            Edit(
                RESOLUTION,
                "    if task.seed not in NOT_A_SEED and task.seed not in _as_it",
                "    if task.seed not in _as_it",
            ),
        ),
        (
            f"{STAGE}::test_without_a_shown_seed_nothing_is_sent_again",
            f"{STAGE}::test_a_fresh_foreign_task_without_a_seed_could_be_ours",
            f"{RULES}::TestSendAgain::test_a_task_that_shows_no_seed_could_be_ours",
        ),
    ),
    Protection(
        "seedless-is-looked-at",
        "a task that shows no seed: GET it first",
        (
            Edit(
                "worker/reading.py",
                "        if task.seed in (None, -1):\n",
                "        if task.seed == -2:\n",
            ),
        ),
        (f"{STAGE}::test_a_seed_that_only_the_task_itself_shows",),
    ),
    Protection(
        "normalised-seed-could-be-ours",
        "a seed that was normalised differently still could be ours",
        (
            Edit(
                RESOLUTION,
                "    return {seed, seed % 2**31, low, low - 2**32 if low >= 2**31 else low}",
                "    return {seed}",
            ),
        ),
        (
            "tests/integration/test_hard_cases_watch.py::test_a_producers_seed_that_the_provider_shortened_could_still_be_ours",
        ),
    ),
    Protection(
        "normalised-fields-exclude-nothing",
        "a normalised ratio still could be ours",
        (
            Edit(
                RESOLUTION,
                "    if not possible:\n        return Absent()\n",
                "    if not distinct:\n        return Absent()\n",
            ),
        ),
        (
            f"{STAGE}::test_a_fixed_seed_with_a_normalised_ratio_is_undecided",
            f"{RULES}::TestSendAgain::test_other_fields_exclude_nothing",
        ),
    ),
    # --- two readings -----------------------------------------------------------------------
    Protection(
        "two-readings",
        "two complete readings that agree",
        (
            Edit(
                RESOLVE,
                "    again = _read(rt, cases, keep)\n    second = _judged(rt, cases, again, keep)\n",
                "    again, second = reading, first\n",
            ),
        ),
        (
            f"{STAGE}::test_a_request_that_never_came_through_is_sent_again",
            f"{STAGE}::test_readings_that_disagree_decide_nothing",
        ),
    ),
    Protection(
        "second-reading-after-the-first",
        "the second reading begins after the first ended",
        (
            Edit(
                RESOLVE,
                "    reading = _read(rt, cases, keep)\n    first = _judged(",
                "    from concurrent.futures import ThreadPoolExecutor\n\n    with ThreadPoolExecutor(2) as pool:\n        reading, two = pool.map(lambda _: _read(rt, cases, keep), (1, 2))\n    first = _judged(",
            ),
            Edit(RESOLVE, "    again = _read(rt, cases, keep)\n", "    again = two\n"),
        ),
        (f"{STAGE}::test_the_second_reading_begins_when_the_first_has_ended",),
    ),
    Protection(
        "readings-must-agree",
        "where two readings differ nothing is decided",
        (
            Edit(
                RESOLUTION,
                '            return Undecided("two readings of the task list disagree")\n',
                "            return first\n",
            ),
            Edit(
                RESOLUTION,
                "        case _, Undecided():\n            return second\n",
                "        case _, Undecided():\n            return first\n",
            ),
        ),
        (
            f"{STAGE}::test_readings_that_disagree_decide_nothing",
            f"{RULES}::test_readings_that_differ_decide_nothing",
        ),
    ),
    Protection(
        "only-complete-readings-decide",
        "a reading that is not complete decides nothing",
        (
            Edit(
                RESOLUTION,
                "    if complete or proven(verdict):\n        return verdict\n",
                "    if verdict is not None:\n        return verdict\n",
            ),
        ),
        (
            f"{STAGE}::test_a_list_that_says_there_is_more_than_it_shows_decides_nothing",
            "tests/integration/test_hard_cases_watch.py::test_the_list_of_another_account_decides_nothing",
        ),
    ),
    Protection(
        "unknown-is-judged-again",
        "unknown is judged again in the deciding transaction",
        (
            Edit(
                RESOLUTION,
                "    if isinstance(verdict, Adopt) and verdict.task.task_id in followed:\n",
                "    if isinstance(verdict, Adopt) and len(followed) > 1:\n",
            ),
        ),
        (
            f"{STAGE}::test_what_another_generation_took_between_reading_and_deciding_is_not_adopted",
        ),
    ),
    # --- bounds -----------------------------------------------------------------------------
    Protection(
        "attempts-bounded",
        "attempts are bounded in time, also under endless TASK_SUBMIT_FAILED",
        (
            Edit(
                "models/decisions.py",
                "max_attempts if counts else too_long\n",
                "max_attempts if counts else False\n",
            ),
        ),
        (f"{ANSWERS}::test_endless_submit_failures_are_bounded_in_time_and_not_in_number",),
    ),
    Protection(
        "refusals-burn-no-attempt",
        "only attempts that made no task count against the bound",
        (
            Edit(
                SETTLING,
                'func.count().filter(~mine, a.outcome == "absent", lost)',
                "func.count().filter(~mine)",
            ),
        ),
        (f"{HARD}::test_refusals_use_up_no_attempts",),
    ),
    Protection(
        "undecided-asks-an-operator",
        "undecidable after a bound: attention",
        (
            Edit(
                RESOLVE,
                "    if failures >= ATTENTION_AFTER:\n",
                "    if failures >= ATTENTION_AFTER + 99:\n",
            ),
        ),
        (
            f"{STAGE}::test_without_a_shown_seed_nothing_is_sent_again",
            f"{STAGE}::test_attention_gives_up_the_slot_and_keeps_the_lock",
        ),
    ),
    Protection(
        "outage-of-the-list-burns-nothing",
        "an outage of the list decides nothing and asks nobody",
        (
            Edit(
                RESOLVE,
                "                transitions.reschedule(\n                    conn, one.case.generation_id, one.lease, seconds=RETRY_BASE * 2\n                )\n",
                '                _wait(conn, one, "an outage", ())\n',
            ),
        ),
        (f"{STAGE}::test_an_outage_of_the_list_burns_nothing",),
    ),
)
