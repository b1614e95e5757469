"""Once the task is known: watching, cancelling, observing, charging; and what operators decide."""

from tests.protections.protection import Edit, Protection

WATCH = "tests/integration/test_watch.py"
RECONCILE = "tests/integration/test_reconcile.py"
RESOLVE = "tests/integration/test_resolve_stage.py"
CANCEL = "tests/integration/test_cancel.py"
POLL = "tests/integration/test_poll_stage.py"
MOVES = "tests/integration/test_transitions.py"
OPERATOR = "tests/integration/test_operator.py"
HARD = "tests/integration/test_hard_cases_watch.py"
ODD = "tests/integration/test_hard_cases_answers.py"
RULES = "tests/unit/test_lifecycle.py"

LIFECYCLE = "models/lifecycle.py"
FOLLOWING = "models/transitions/following.py"
ENDING = "models/transitions/ending.py"
ANSWERS = "models/transitions/answers.py"

PROTECTIONS = (
    # --- watching ---------------------------------------------------------------------------
    Protection(
        "watch-adopts-while-accepted",
        "a task that shows its mark late is adopted while accepted or uncertain",
        (
            Edit(
                "models/decisions.py",
                "ADOPTING = frozenset({Status.ACCEPTED, Status.UPLOADING, Status.UNCERTAIN})",
                "ADOPTING = frozenset({Status.UPLOADING})",
            ),
        ),
        (
            f"{RESOLVE}::test_processed_after_settling_it_is_adopted_while_accepted",
            f"{RECONCILE}::test_a_lost_answer_is_adopted_before_it_settles",
            f"{RECONCILE}::test_a_late_task_is_adopted_before_anything_is_sent_again[accepted]",
        ),
    ),
    Protection(
        "watch-leaves-submitting-alone",
        "while its answer may still come the watch leaves a row alone",
        (
            Edit(
                "models/decisions.py",
                "    if status is Status.SUBMITTING or follows == task_id:\n",
                "    if follows == task_id:\n",
            ),
        ),
        (
            f"{RECONCILE}::test_a_submitting_row_is_left_to_its_answer",
            f"{WATCH}::test_while_its_answer_may_still_come_the_watch_leaves_it",
        ),
    ),
    Protection(
        "watch-flags-second-tasks",
        "row already running or ended: flagged as a second task",
        (
            Edit(
                "models/watch.py",
                "            flag_second(conn, generation_id, number, task)\n            result.second",
                "            result.second",
            ),
        ),
        (
            f"{RESOLVE}::test_processed_after_it_was_sent_again_it_is_flagged",
            f"{RESOLVE}::test_a_list_lag_above_l_can_pay_twice_and_says_so",
            f"{RECONCILE}::test_a_late_task_of_a_cancelled_generation_is_flagged",
            f"{WATCH}::test_a_further_task_of_a_generation_is_a_second_one_and_moves_nothing",
        ),
    ),
    Protection(
        "second-tasks-are-in-the-ledger",
        "the credits of a second task are in the ledger",
        (
            Edit(
                "models/submission.py",
                "    if row is not None:\n        ledger.charge_beside(",
                "    if row is not None and not row.generation_id:\n        ledger.charge_beside(",
            ),
        ),
        (f"{HARD}::test_the_credits_of_second_tasks_are_in_the_ledger",),
    ),
    Protection(
        "watch-adopts-only-marks",
        "the watch adopts by a drawn seed alone; a fixed one is for an operator",
        (
            Edit(
                "models/decisions.py",
                "    proven = match.sent.seed_drawn and shows_seed(task)\n",
                "    proven = shows_seed(task)\n",
            ),
        ),
        (
            f"{RECONCILE}::test_a_fixed_seed_is_possible_and_left_to_an_operator",
            f"{WATCH}::test_an_equal_task_of_a_fixed_seed_is_possible_and_never_adopted_by_the_watch",
        ),
    ),
    Protection(
        "watch-adopts-no-seedless-task",
        "a task that shows no seed is never adopted by the watch",
        (
            Edit(
                "models/decisions.py",
                "    proven = match.sent.seed_drawn and shows_seed(task)\n",
                "    proven = match.sent.seed_drawn\n",
            ),
        ),
        (f"{RECONCILE}::test_a_task_without_a_seed_is_never_adopted",),
    ),
    Protection(
        "foreign-is-never-adopted",
        "a task with a seed that is not ours is foreign: counted, never adopted",
        (
            Edit(
                "models/decisions.py",
                "    same_seed = [one for one in candidates if one.sent.seed == task.seed]\n",
                "    same_seed = list(candidates)\n",
            ),
            Edit(
                "models/watch.py",
                "near = [a.seed == task.seed, or_(a.seed_drawn, text(OPEN_ATTEMPT_SQL))]",
                "near = [or_(a.seed_drawn, text(OPEN_ATTEMPT_SQL))]",
            ),
        ),
        (
            f"{RECONCILE}::test_a_foreign_task_beside_one_in_doubt_is_never_adopted",
            f"{CANCEL}::test_a_foreign_task_is_never_cancelled",
        ),
    ),
    Protection(
        "older-attempts-are-recognised",
        "every unknown task is held against all attempts, not the latest alone",
        (
            Edit(
                "models/watch.py",
                "near = [a.seed == task.seed, or_(",
                "near = [a.seed == task.seed, a.number == g.attempt, or_(",
            ),
        ),
        (
            f"{WATCH}::test_the_task_of_an_older_attempt_counts_for_the_row",
            f"{RESOLVE}::test_processed_after_it_was_sent_again_it_is_flagged",
        ),
    ),
    # --- cancelling -------------------------------------------------------------------------
    Protection(
        "wish-of-the-doubtful-kept",
        "two empty complete readings and a wish: cancelled, not sent again",
        (
            Edit(
                "models/decisions.py",
                "    return taken_back(Event.EXHAUST if exhausted else Event.ABSENT, cancel_wished=cancel_wished)\n",
                "    return Event.EXHAUST if exhausted else Event.ABSENT\n",
            ),
        ),
        (
            f"{CANCEL}::test_uncertain_and_absent",
            f"{OPERATOR}::test_a_wished_cancel_is_carried_out_instead",
        ),
    ),
    Protection(
        "wish-is-carried-out-on-adoption",
        "adoption with a wish: remote cancel",
        (
            Edit(
                "worker/stages/poll.py",
                "        if (row.cancel_wished or overdue) and not row.cancel_sent:\n",
                "        if overdue and not row.cancel_sent:\n",
            ),
        ),
        (
            f"{CANCEL}::test_uncertain_and_found",
            f"{CANCEL}::test_after_the_check",
            f"{CANCEL}::test_running",
        ),
    ),
    Protection(
        "wish-outlives-a-refusal",
        "a wish that came with a refusal is carried out",
        (
            Edit(
                "models/decisions.py",
                "    return Event.CANCEL if cancel_wished else event\n",
                "    return event\n",
            ),
        ),
        (
            f"{ODD}::test_a_generation_declined_after_its_cancel_is_cancelled",
            f"{ODD}::test_a_cancel_that_races_a_decline_is_carried_out[cancel]",
        ),
    ),
    Protection(
        "cancel-locks-the-row-first",
        "a wish that races a transition is not lost between two statuses",
        (
            Edit(
                "models/transitions/cancelling.py",
                "    conn.execute(select(g.id).where(g.id.in_(ids)).order_by(*LOCK_ORDER).with_for_update())\n",
                "    conn.execute(select(g.id).where(g.id.in_(ids)))\n",
            ),
        ),
        (f"{ODD}::test_a_cancel_that_races_a_decline_is_carried_out[decline]",),
    ),
    Protection(
        "cancelled-is-only-a-hint",
        "the answer of a remote cancel is only a hint; the end comes from looking",
        (
            Edit(
                "worker/stages/poll.py",
                "    with rt.engine.begin() as conn:\n        transitions.cancel_sent(",
                '    with rt.engine.begin() as conn:\n        if answer in ("cancelled", "processing"):\n'
                "            from models.lifecycle import Observation\n"
                '            transitions.apply_observation(conn, Observation(task_id, "cancelled"))\n'
                "        transitions.cancel_sent(",
            ),
        ),
        (f"{CANCEL}::test_said_cancelled_then_completed_the_charge_is_ours",),
    ),
    Protection(
        "lost-cancel-is-asked-again",
        "a cancel whose answer is lost is asked again",
        (
            Edit(
                "worker/stages/poll.py",
                "        if not refused:\n",
                "        if refused is None:\n",
            ),
        ),
        (
            f"{CANCEL}::test_a_cancel_whose_answer_is_lost_is_asked_again[drop_before]",
            f"{ODD}::test_a_cancel_that_found_no_task_is_sent_again",
        ),
    ),
    Protection(
        "wish-settles-nothing-sooner",
        "a wish in doubt brings nothing forward: it waits for settle_at",
        (
            Edit(
                "models/transitions/cancelling.py",
                "due_at=case((g.status == Status.RUNNING, func.now()), else_=g.due_at),",
                "due_at=func.now(),",
            ),
        ),
        (
            f"{CANCEL}::test_uncertain_does_not_settle_sooner",
            f"{MOVES}::test_a_wish_in_doubt_does_not_bring_the_resolving_forward",
        ),
    ),
    # --- observing --------------------------------------------------------------------------
    Protection(
        "terminal-stays",
        "terminal stays, whatever is seen",
        (
            Edit(
                LIFECYCLE,
                "    if followed.status is not Status.RUNNING:\n        return Nothing()\n",
                "    if followed.status not in (TERMINAL | {Status.RUNNING}):\n        return Nothing()\n",
            ),
            Edit(
                LIFECYCLE,
                "        return Contradiction() if ended_otherwise else Nothing()\n",
                "        if not ended_otherwise:\n            return Nothing()\n",
            ),
            Edit(
                LIFECYCLE,
                '"the remote task failed", _S.RUNNING)',
                '"the remote task failed", _S.RUNNING, _S.COMPLETED)',
            ),
        ),
        (
            f"{RECONCILE}::test_another_end_than_the_recorded_one_is_told_once",
            f"{RULES}::test_nothing_leaves_a_terminal_status",
            f"{RULES}::test_another_end_than_the_recorded_one_is_told_and_not_followed",
        ),
    ),
    Protection(
        "transitions-name-their-sources",
        "a transition leaves only the statuses of the table",
        (
            Edit(
                "models/transitions/core.py",
                "        .where(g.status.in_(sorted(leaving)), *guards)\n",
                "        .where(g.status.in_(sorted(leaving | TERMINAL)), *guards)\n",
            ),
        ),
        (
            f"{MOVES}::test_moves_from_its_sources_and_from_nowhere_else",
            f"{CANCEL}::test_what_has_ended_stays_as_it_is",
        ),
    ),
    Protection(
        "rank-never-falls",
        "rank never falls: a stale observation changes nothing",
        (
            Edit(
                LIFECYCLE,
                "    if rank(seen.status) > rank(followed.remote_status):\n",
                "    if seen.status != followed.remote_status:\n",
            ),
        ),
        (
            f"{POLL}::test_a_slow_answer_of_an_old_state_moves_nothing_back",
            f"{RECONCILE}::test_odd_items_change_nothing[backwards]",
            f"{RULES}::test_rank_never_falls_and_the_first_end_is_final",
        ),
    ),
    Protection(
        "unknown-status-ends-nothing",
        "an unknown status is not terminal",
        (
            Edit(
                LIFECYCLE,
                "        return Finish(_ENDS[seen.status])\n",
                "        return Finish(_ENDS[seen.status])\n"
                "    if not is_known(seen.status):\n        return Finish(Event.FAIL)\n",
            ),
        ),
        (
            f"{ODD}::test_an_unknown_status_is_told_once_and_ends_nothing",
            f"{POLL}::test_nothing_that_a_get_says_fails_a_generation",
            f"{RULES}::test_an_unknown_status_ends_nothing_and_hides_nothing",
        ),
    ),
    Protection(
        "observation-of-its-own-task",
        "an answer that shows another task than was asked for moves nothing",
        (
            Edit(
                "worker/stages/poll.py",
                "    if task.task_id != row.remote_task_id:\n",
                "    if not task.task_id:\n",
            ),
        ),
        (f"{ODD}::test_a_look_that_shows_another_task_asks_an_operator_in_the_end",),
    ),
    Protection(
        "not-found-has-a-grace",
        "TASK_NOT_FOUND for a task we know: nothing within its grace",
        (
            Edit(
                "worker/stages/poll.py",
                "        if row.submitted_ago > NOT_FOUND_GRACE:\n",
                "        if row.submitted_ago >= 0:\n",
            ),
        ),
        (f"{POLL}::test_a_lagging_replica_within_the_grace",),
    ),
    Protection(
        "not-found-asks-an-operator",
        "TASK_NOT_FOUND after the grace: attention",
        (
            Edit(
                "worker/stages/poll.py",
                "        if row.submitted_ago > NOT_FOUND_GRACE:\n",
                "        if row.submitted_ago < 0:\n",
            ),
        ),
        (
            f"{POLL}::test_a_task_not_found_after_the_grace_needs_attention_and_is_not_failed",
            f"{POLL}::test_a_swapped_key_is_not_a_failure",
        ),
    ),
    Protection(
        "not-found-is-no-failure",
        "TASK_NOT_FOUND is never a failure: a replica or another key says the same",
        (
            Edit(
                "worker/stages/poll.py",
                "        if attention is not None:\n            transitions.need_attention",
                "        if attention is not None:\n"
                "            from models.lifecycle import Observation\n"
                '            transitions.apply_observation(conn, Observation(row.remote_task_id or "", "failed"))\n'
                "            transitions.need_attention",
            ),
        ),
        (
            f"{POLL}::test_a_task_not_found_after_the_grace_needs_attention_and_is_not_failed",
            f"{POLL}::test_a_swapped_key_is_not_a_failure",
        ),
    ),
    Protection(
        "unseen-is-looked-at",
        "a task that the list does not show gets its own GET",
        (
            Edit(
                "models/watch.py",
                "        .values(due_at=func.least(g.due_at, func.now()))\n        .execution",
                "        .values(due_at=g.due_at)\n        .execution",
            ),
        ),
        (f"{RECONCILE}::test_a_running_task_that_the_list_does_not_show_is_looked_at",),
    ),
    # --- credits ----------------------------------------------------------------------------
    Protection(
        "charge-of-the-end",
        "the charge is the one that the completed task shows",
        (
            Edit(
                ENDING,
                "func.coalesce(s.credit_cost, g.credit_cost) if charged else 0,",
                "g.credit_cost,",
            ),
        ),
        (
            f"{MOVES}::test_only_a_completed_task_is_charged",
            f"{POLL}::test_every_end_with_its_charge[failed]",
        ),
    ),
    Protection(
        "charge-recorded-once",
        "credits of an ended generation are never written again",
        (
            Edit(
                FOLLOWING,
                "        case Contradiction():\n",
                "        case Contradiction():\n"
                "            conn.execute(update(generations).where(g.id == row.id).values(credit_cost=seen.credit_cost))\n",
            ),
        ),
        (f"{RECONCILE}::test_another_end_than_the_recorded_one_changes_no_credits",),
    ),
    Protection(
        "charge-of-the-submission-stays",
        "a completed task that tells no cost keeps the one of its submission",
        (
            Edit(
                ENDING,
                "func.coalesce(s.credit_cost, g.credit_cost) if charged else 0,",
                "s.credit_cost if charged else 0,",
            ),
        ),
        (f"{MOVES}::test_a_completed_task_that_tells_no_cost_keeps_the_one_of_its_submission",),
    ),
    # --- operators --------------------------------------------------------------------------
    Protection(
        "decision-names-its-attempt",
        "a decision on an older attempt is refused",
        (
            Edit(
                "models/decisions.py",
                "    if ground.attempt != named:\n        return Refusal.STALE\n",
                "",
            ),
        ),
        (f"{OPERATOR}::test_a_decision_on_another_attempt_is_refused",),
    ),
    Protection(
        "decision-waits-until-settled",
        "sending again is refused before settle_at",
        (
            Edit(
                "models/decisions.py",
                "    if refusal is None and not ground.settled:\n        return Refusal.UNSETTLED\n",
                "",
            ),
        ),
        (f"{OPERATOR}::test_sends_again_only_when_the_attempt_has_settled",),
    ),
    Protection(
        "decision-takes-no-strange-seed",
        "an operator can't adopt a task that shows another seed",
        (Edit("worker/operator.py", "    if found is None:\n", "    if not ground.open_seeds:\n"),),
        (f"{OPERATOR}::test_never_adopts_what_shows_another_seed",),
    ),
)
