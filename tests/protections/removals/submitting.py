"""Before the POST: attempts and their seeds, the intent's guards, the check on the open wire."""

from tests.protections.protection import Edit, Protection

SQL = "tests/integration/test_submission.py"
STAGE = "tests/integration/test_submit_stage.py"
CANCEL = "tests/integration/test_cancel.py"
TABLES = "tests/integration/test_constraints.py"
WIRE = "tests/integration/test_api_client_wire.py"
HARD = "tests/integration/test_hard_cases_answers.py"

SUBMISSION = "models/submission.py"
BEFORE = "models/transitions/before.py"
SUBMIT = "worker/stages/submit.py"
MIGRATION = "alembic/versions/0001_the_tables.py"

PROTECTIONS = (
    # --- attempts ---------------------------------------------------------------------------
    Protection(
        "seed-fresh-for-each-attempt",
        "a seed drawn by the service is fresh for each attempt",
        (
            Edit(
                SUBMISSION,
                "        seed = _fresh_seed(conn) if row.taken else drawn\n",
                "        seed = 7 + row.attempt // 10\n",
            ),
            Edit(
                MIGRATION,
                '["seed"],\n        unique=True,',
                '["seed"],\n        unique=False,',
            ),
        ),
        (f"{STAGE}::test_each_attempt_draws_a_fresh_seed",),
    ),
    Protection(
        "seed-never-seen-before",
        "a drawn seed was never drawn, nor shown by any remote task",
        (
            Edit(
                SUBMISSION,
                "        seed = _fresh_seed(conn) if row.taken else drawn\n",
                "        seed = drawn\n",
            ),
        ),
        (f"{SQL}::test_a_seed_that_anything_had_before_is_not_drawn",),
    ),
    Protection(
        "seed-unique-in-the-table",
        "the table itself refuses a seed drawn twice",
        (
            Edit(
                MIGRATION,
                '["seed"],\n        unique=True,',
                '["seed"],\n        unique=False,',
            ),
        ),
        (f"{TABLES}::test_no_two_attempts_share_a_drawn_seed_and_fixed_ones_may",),
    ),
    Protection(
        "minus-one-is-no-seed",
        "a producer's -1 counts as not given",
        (Edit("models/marks.py", "seed is None or seed == -1", "seed is None"),),
        (
            f"{STAGE}::test_seeds_of_the_producer[-1-True]",
            f"{SQL}::test_minus_one_is_as_good_as_no_seed",
        ),
    ),
    Protection(
        "task-of-one-generation",
        "a remote task id is unique over all generations",
        (
            Edit(
                MIGRATION,
                '        sa.UniqueConstraint("remote_task_id", name=op.f("uq_generations_remote_task_id")),\n',
                "",
            ),
        ),
        (f"{TABLES}::test_a_remote_task_belongs_to_one_generation_for_ever",),
    ),
    # --- the intent -------------------------------------------------------------------------
    Protection(
        "intent-needs-the-lease",
        "intent: the row's lease is held",
        (
            Edit(
                SUBMISSION,
                '        g.lease == bindparam("held"),\n',
                "",
            ),
            Edit(
                "models/lifecycle.py",
                '"the intent to POST is committed", _S.UPLOADING, fence=_LEASE',
                '"the intent to POST is committed", _S.UPLOADING',
            ),
        ),
        (f"{SQL}::test_a_lost_lease_makes_no_intent",),
    ),
    Protection(
        "intent-needs-no-wish-to-cancel",
        "intent: no cancel asked",
        (
            Edit(
                "models/decisions.py",
                "    if facts.cancel_wished:\n        return Obstacle",
                "    if facts.cancel_wished and facts.late:\n        return Obstacle",
            ),
            Edit(BEFORE, "        g.cancel_requested_at.is_(None),\n", ""),
        ),
        (f"{SQL}::test_with_cancel_asked_it_is_cancelled",),
    ),
    Protection(
        "intent-needs-time-left",
        "intent: deadline not passed",
        (Edit("models/decisions.py", "    if facts.late:\n        return Obstacle.LATE\n", ""),),
        (
            f"{STAGE}::test_a_past_deadline_sends_nothing",
            f"{SQL}::test_past_its_deadline_it_expires",
        ),
    ),
    Protection(
        "intent-needs-no-hold",
        "intent: no open breaker, throttling, or lack of room for tasks",
        (
            Edit(
                "models/decisions.py",
                "    if facts.hold is not None:\n        return Obstacle.HOLD\n",
                "",
            ),
        ),
        (
            f"{STAGE}::test_a_breaker_that_opened_since_the_admission_holds_it",
            f"{SQL}::test_no_intent_is_made_before_retry_after_has_passed",
            f"{SQL}::test_no_more_intents_are_made_than_the_provider_runs_tasks",
        ),
    ),
    Protection(
        "intent-needs-no-match",
        "intent: no unknown remote task matches one of its open attempts",
        (
            Edit(
                "models/decisions.py",
                "    if facts.own_task is not None:\n        return Obstacle.OWN_TASK\n",
                "",
            ),
        ),
        (
            f"{STAGE}::test_an_unknown_task_that_matches_an_open_attempt_forbids_sending",
            f"{HARD}::test_no_further_post_while_a_late_answer_may_be_the_generations_own_task",
        ),
    ),
    Protection(
        "intent-locks-the-fingerprint",
        "intent: no other row with the same fingerprint is in doubt",
        (
            Edit(
                "models/decisions.py",
                "    return Obstacle.EQUAL if facts.holder is not None else None\n",
                "    return None\n",
            ),
        ),
        (
            f"{STAGE}::test_two_with_one_fingerprint_are_never_in_doubt_together",
            f"{SQL}::test_an_equal_one_in_doubt_blocks_it",
            f"{SQL}::test_a_seed_drawn_for_another_that_equals_the_producers_blocks_it",
        ),
    ),
    Protection(
        "fingerprint-unique-in-doubt",
        "the partial unique index is the last word",
        (
            Edit(
                MIGRATION,
                '["fingerprint"],\n        unique=True,',
                '["fingerprint"],\n        unique=False,',
            ),
        ),
        (
            f"{STAGE}::test_the_unique_index_is_the_last_word",
            f"{TABLES}::test_one_fingerprint_is_in_doubt_once",
            f"{SQL}::test_two_equal_ones_at_the_same_moment",
        ),
    ),
    Protection(
        "index-conflict-waits",
        "whoever loses at the unique index looks again, and waits",
        (
            Edit(
                SUBMIT,
                "    except IntegrityError:\n        # An equal",
                "    except ZeroDivisionError:\n        # An equal",
            ),
        ),
        (f"{STAGE}::test_the_unique_index_is_the_last_word",),
    ),
    Protection(
        "intent-raises-the-lease",
        "the intent raises the lease",
        (
            Edit(
                BEFORE,
                '            "lease": g.lease + 1,\n            "attempt": i.attempt,',
                '            "attempt": i.attempt,',
            ),
        ),
        (
            "tests/integration/test_transitions.py::test_moves_from_its_sources_and_from_nowhere_else[intend]",
        ),
    ),
    Protection(
        "settles-after-b-k-l",
        "settle_at = now + B + K + L + margin",
        (
            Edit(
                SUBMISSION,
                "return self.send_budget + self.late_creation + self.list_lag + self.margin",
                "return self.send_budget + self.margin",
            ),
        ),
        (
            f"{STAGE}::test_it_settles_after_b_k_l_and_the_margin",
            "tests/unit/test_flow_rules.py::test_settle_time_covers_everything_that_can_delay_a_task",
        ),
    ),
    Protection(
        "intent-before-the-post",
        "the intent is committed before the POST",
        (
            Edit(
                SUBMIT,
                "        with rt.engine.begin() as conn:\n            return submission.begin(",
                "        with rt.engine.connect() as conn:\n            return submission.begin(",
            ),
        ),
        (
            f"{STAGE}::test_the_intent_is_there_before_the_post",
            f"{STAGE}::test_seeds_of_the_producer[7-False]",
        ),
    ),
    Protection(
        "commit-confirmed",
        "the POST follows only a COMMIT that was confirmed",
        (
            Edit(
                SUBMIT,
                "        with rt.engine.begin() as conn:\n            return submission.begin(conn, wanted, rt.settings.timing)\n",
                "        import contextlib\n\n        from sqlalchemy.exc import OperationalError\n\n        with contextlib.suppress(OperationalError), rt.engine.begin() as conn:\n            made = submission.begin(conn, wanted, rt.settings.timing)\n        return made\n",
            ),
        ),
        (f"{STAGE}::test_a_commit_of_unknown_outcome_sends_nothing",),
    ),
    # --- just before the POST ---------------------------------------------------------------
    Protection(
        "age-of-the-intent",
        "age since before the intent's transaction is at most B",
        (Edit("models/decisions.py", "    return age > send_budget\n", "    return age < 0\n"),),
        (
            f"{STAGE}::test_a_pause_between_intent_and_check_is_seen",
            f"{STAGE}::test_an_intent_beyond_its_age_is_not_sent",
        ),
    ),
    Protection(
        "age-from-before-the-transaction",
        "the age counts from before the intent's transaction",
        (
            Edit(SUBMIT, "    started = waking_clock()\n", ""),
            Edit(
                SUBMIT,
                '    reached("submit.after_intent")\n',
                '    started = waking_clock()\n    reached("submit.after_intent")\n',
            ),
        ),
        (f"{STAGE}::test_an_intent_beyond_its_age_is_not_sent",),
    ),
    Protection(
        "check-reads-the-row",
        "a worker that slept past its lease is stopped by the check",
        (
            Edit(
                "models/decisions.py",
                "    if facts.status is not Status.SUBMITTING or facts.attempt != intended:\n        return TAKEN_OVER\n",
                "",
            ),
        ),
        (
            f"{STAGE}::test_a_pause_beyond_the_lease_sends_nothing",
            f"{STAGE}::test_a_worker_that_wakes_finds_the_row_elsewhere",
            f"{SQL}::test_a_later_attempt_stops_it",
        ),
    ),
    Protection(
        "check-reads-the-doubt",
        "a worker that was taken for dead finds its row uncertain, and does not send",
        (
            Edit(
                "models/decisions.py",
                "    if facts.status is not Status.SUBMITTING or facts.attempt != intended:\n",
                "    if facts.status not in IN_DOUBT or facts.attempt != intended:\n",
            ),
        ),
        (
            f"{STAGE}::test_a_worker_that_was_taken_for_dead_does_not_send",
            f"{SQL}::test_a_row_that_went_on_without_it_stops_it",
        ),
    ),
    Protection(
        "check-reads-the-account",
        "just before the POST: no breaker open, no throttling, no outage",
        (
            Edit(
                "models/decisions.py",
                "    return facts.hold\n",
                "    return None\n",
            ),
        ),
        (
            f"{STAGE}::test_a_breaker_that_opens_after_the_intent_stops_it",
            f"{STAGE}::test_an_outage_that_begins_after_the_intent_stops_the_post",
            f"{SQL}::test_a_breaker_that_opened_meanwhile_stops_it",
            f"{SQL}::test_throttling_that_came_meanwhile_stops_it",
        ),
    ),
    Protection(
        "check-reads-the-wish",
        "just before the POST: no cancel",
        (
            Edit(
                "models/decisions.py",
                '    if facts.cancel_wished:\n        return retry("cancel asked")\n',
                "",
            ),
        ),
        (
            f"{CANCEL}::test_before_the_check_of_the_intent",
            f"{SQL}::test_cancel_stops_it_on_the_last_metre",
        ),
    ),
    Protection(
        "check-that-fails-forbids",
        "no POST after a check that could not be made",
        (
            Edit(
                SUBMIT,
                "            raise TooLateError(retry(why)) from error\n",
                "            log.debug(why)\n            return\n",
            ),
        ),
        (f"{HARD}::test_no_post_after_a_check_that_could_not_be_made",),
    ),
    Protection(
        "check-on-the-open-connection",
        "nothing that can block stands between check and write: connected first",
        (
            Edit(
                "api_client/wire.py",
                "        if self.sock is None:\n            self.connect()\n        wire = _current.get()\n        if wire is not None:\n",
                "        wire = _current.get()\n        if wire is not None:\n            wire.begin()\n        if self.sock is None:\n            self.connect()\n        if wire is not None:\n",
            ),
            Edit(
                "api_client/wire.py",
                "            self.sock.settimeout(wire.timeout)\n            wire.begin()\n",
                "            self.sock.settimeout(wire.timeout)\n",
            ),
        ),
        (
            f"{WIRE}::test_before_send_runs_connected_and_before_the_first_byte",
            "tests/integration/test_answers.py::test_an_unreachable_provider_puts_it_back_and_counts_as_failing",
        ),
    ),
    Protection(
        "token-before-the-intent",
        "the rate-limit token is taken before the intent",
        (
            Edit(
                SUBMIT,
                '        rt.limiter.wait("submit", timeout=min(MAX_TURN, rt.settings.lease / 4))\n',
                "        pass\n",
            ),
            Edit(SUBMIT, "retry=False, throttled=True", "retry=False"),
        ),
        (f"{STAGE}::test_without_a_token_there_is_no_intent",),
    ),
    Protection(
        "not-sent-leaves-doubt-open",
        "only the submit stage says not sent, and only of a row that nobody is resolving",
        (
            Edit(
                "models/decisions.py",
                "    return not (status in IN_DOUBT and attempt == unsent)\n",
                "    return True\n",
            ),
        ),
        (
            f"{HARD}::test_a_sender_that_wakes_in_doubt_spoils_neither_its_own_resolving_nor_the_batch",
        ),
    ),
)
