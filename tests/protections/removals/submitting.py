"""Before the POST: attempts and their seeds, the intent's guards, the check on the open wire."""

from tests.protections.protection import Edit, Protection

SQL = "tests/integration/test_submission.py"
STAGE = "tests/integration/test_submit_stage.py"
TOGETHER = "tests/integration/test_submit_together.py"
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
                "    return list(fresh)\n",
                "    return [7 + n for n in range(count)]\n",
            ),
        ),
        (f"{STAGE}::test_each_attempt_draws_a_fresh_seed",),
    ),
    Protection(
        "seed-never-seen-before",
        "a drawn seed was never drawn, nor shown by any remote task",
        (Edit(SUBMISSION, "drawn.difference(taken)", "drawn.difference([])"),),
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
                "models/submission.py",
                "g.id == generation_id, g.lease == lease, g.status == Status.UPLOADING",
                "g.id == generation_id, g.status == Status.UPLOADING",
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
        "intent-needs-an-open-gate",
        "intent: gate open for this cost",
        (
            Edit(
                "models/decisions.py",
                "    if facts.gate is not None:\n        return Obstacle.GATE\n",
                "",
            ),
        ),
        (f"{STAGE}::test_a_gate_that_closed_since_the_admission_holds_it",),
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
                "    return Obstacle.HELD if facts.holder is not None else None\n",
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
            "tests/unit/test_gates.py::test_settling_takes_all_that_can_delay_a_task",
        ),
    ),
    Protection(
        "intent-before-the-post",
        "the intent is committed before the POST",
        (
            Edit(
                SUBMIT,
                "        with rt.engine.begin() as conn:\n            free = submission.begin_free(",
                "        with rt.engine.connect() as conn:\n            free = submission.begin_free(",
            ),
        ),
        (
            f"{STAGE}::test_the_intent_is_there_before_the_post",
            f"{TOGETHER}::test_one_transaction_each_for_all_intents_and_all_answers",
        ),
    ),
    Protection(
        "intent-before-the-post-alone",
        "the intent is committed before the POST, where something was to be looked at",
        (
            Edit(
                SUBMIT,
                "        with rt.engine.begin() as conn:\n            return submission.begin(",
                "        with rt.engine.connect() as conn:\n            return submission.begin(",
            ),
        ),
        (f"{STAGE}::test_seeds_of_the_producer[7-False]",),
    ),
    Protection(
        "commit-confirmed",
        "the POST follows only a COMMIT that was confirmed",
        (
            Edit(
                SUBMIT,
                "        with rt.engine.begin() as conn:\n            free = submission.begin_free(conn, wanted, rt.settings.timing)\n",
                "        import contextlib\n\n        from sqlalchemy.exc import OperationalError\n\n        with contextlib.suppress(OperationalError), rt.engine.begin() as conn:\n            free = submission.begin_free(conn, wanted, rt.settings.timing)\n",
            ),
        ),
        (f"{STAGE}::test_a_commit_of_unknown_outcome_sends_nothing",),
    ),
    Protection(
        "free-of-gates",
        "while a gate is closed each is looked at",
        (Edit(SUBMISSION, "        ~gates.any_closed(),\n", ""),),
        (f"{STAGE}::test_a_gate_that_closed_since_the_admission_holds_it",),
    ),
    Protection(
        "free-of-pauses",
        "what is paused is looked at",
        (Edit(SUBMISSION, "        ~pauses.holds(g.tenant),\n        ~gates", "        ~gates"),),
        (f"{TOGETHER}::test_those_that_something_stands_in_the_way_of_are_looked_at_each",),
    ),
    Protection(
        "free-of-deadlines",
        "what is late is looked at",
        (
            Edit(
                SUBMISSION,
                "        or_(g.deadline_at.is_(None), g.deadline_at > func.now()),\n",
                "",
            ),
        ),
        (
            f"{STAGE}::test_a_past_deadline_sends_nothing",
            f"{TOGETHER}::test_those_that_something_stands_in_the_way_of_are_looked_at_each",
        ),
    ),
    Protection(
        "free-of-limits",
        "under a learned limit each is looked at",
        (Edit(SUBMISSION, "        ~schedule.any_learned(),\n", ""),),
        (f"{TOGETHER}::test_a_learned_limit_holds_for_a_message_of_several",),
    ),
    Protection(
        "free-of-earlier-attempts",
        "of an earlier attempt a task may exist",
        (Edit(SUBMISSION, "        g.attempt == 0,\n", ""),),
        (f"{TOGETHER}::test_a_second_attempt_is_looked_at_by_itself",),
    ),
    Protection(
        "free-of-fixed-seeds",
        "a producer's seed is held against others",
        (
            Edit(
                SUBMISSION,
                "    rows = [row for row in rows if producer_seed(row.request) is None]\n",
                "",
            ),
        ),
        (f"{STAGE}::test_seeds_of_the_producer[7-False]",),
    ),
    Protection(
        "check-holds-for-a-moment",
        "what was read before one POST holds for the next ones only so long",
        (
            Edit(
                SUBMIT,
                "        if now - self._checked > CHECK_HOLDS:\n",
                "        if now - self._checked > 1e9:\n",
            ),
        ),
        (f"{TOGETHER}::test_what_was_read_before_a_post_holds_for_a_moment_only[0.0-2]",),
    ),
    Protection(
        "refusal-forgets-the-check",
        "what one is refused for may be what stops the rest",
        (
            Edit(
                SUBMIT,
                "            self._look_again()\n            _refused(",
                "            _refused(",
            ),
        ),
        (f"{TOGETHER}::test_a_gate_that_one_closes_stops_the_rest",),
    ),
    Protection(
        "unsent-is-what-was-not-begun",
        "not sent is said only of what no POST was begun of",
        (
            Edit(
                SUBMIT,
                "        self._unsent.remove(intent)\n        try:",
                "        try:",
            ),
        ),
        (
            f"{TOGETHER}::test_a_bug_at_one_leaves_it_in_doubt_keeps_what_was_answered_and_sends_no_more",
        ),
    ),
    Protection(
        "refused-answer-by-itself",
        "an answer that the tables refuse does not take the others with it",
        (
            Edit(
                SUBMIT,
                "        if len(answered) == 1 or not common.refused_as_data(error):\n",
                "        if True:\n",
            ),
        ),
        (f"{TOGETHER}::test_an_answer_that_the_tables_refuse_does_not_take_the_others_with_it",),
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
        "check-reads-the-gate",
        "just before the POST: gate still open",
        (
            Edit(
                "models/decisions.py",
                "    return facts.gate\n",
                "    return None\n",
            ),
        ),
        (
            f"{STAGE}::test_a_gate_that_closes_after_the_intent_stops_it",
            f"{SQL}::test_a_gate_that_closed_meanwhile_stops_it",
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
                "                raise TooLateError(retry(why)) from error\n",
                "                str(why)\n",
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
            "tests/integration/test_answers.py::test_what_was_never_sent_is_sent_again",
        ),
    ),
    Protection(
        "token-before-the-intent",
        "the rate-limit token is taken before the intent",
        (
            Edit(
                SUBMIT,
                '            rt.limiter.wait("submit", timeout=max(0.0, until - time.monotonic()))\n',
                "            pass\n",
            ),
            Edit(SUBMIT, "retry=False, throttled=True", "retry=False"),
        ),
        (f"{STAGE}::test_without_a_token_there_is_no_intent",),
    ),
    Protection(
        "committed-intents-are-sent",
        "an intent that can't be made leaves no committed one in doubt",
        (
            Edit(
                SUBMIT,
                "            if not intents:\n                raise\n",
                "            raise\n",
            ),
        ),
        (f"{TOGETHER}::test_one_that_its_intent_fails_for_leaves_no_other_in_doubt",),
    ),
    Protection(
        "one-that-is-held-holds-up-nobody",
        "a producer's open transaction on one keeps no other of its message from being sent",
        (Edit(SUBMIT, "skip_locked=len(claims) > 1", "skip_locked=False"),),
        (
            f"{TOGETHER}::test_a_producers_open_transaction_on_one_does_not_keep_the_others_from_being_sent",
        ),
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
