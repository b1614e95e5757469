"""What must be tested, and where it is: the protocol's list, each fault, each crash point.

`python -m tests.protections --list` prints it; a unit test holds every name against the code.
"""

from dataclasses import dataclass
from typing import Final

from tests.protections.removals.crashes import DEATH

SUBMIT: Final = "tests/integration/test_submit_stage.py"
RESOLVE: Final = "tests/integration/test_resolve_stage.py"
ANSWERS: Final = "tests/integration/test_answers.py"
RECONCILE: Final = "tests/integration/test_reconcile.py"
CANCEL: Final = "tests/integration/test_cancel.py"
POLL: Final = "tests/integration/test_poll_stage.py"
MOVES: Final = "tests/integration/test_transitions.py"
SCHEDULE: Final = "tests/integration/test_schedule.py"
DISPATCHER: Final = "tests/integration/test_dispatcher.py"
OPERATOR: Final = "tests/integration/test_operator.py"
BREAKERS: Final = "tests/integration/test_breakers.py"
UPLOAD: Final = "tests/integration/test_upload_stage.py"
DRIFT: Final = "tests/integration/test_drift.py"
WATCH: Final = "tests/integration/test_watch.py"
HARD: Final = "tests/integration/test_hard_cases_answers.py"
LATE: Final = "tests/integration/test_hard_cases_schedule.py"
STOPPED: Final = "tests/acceptance/test_stopped_worker.py"
CRASHES: Final = "tests/acceptance/test_crash_points.py"
SERVICE: Final = "tests/acceptance/test_service.py"
KILLS: Final = "tests/chaos/test_processes.py"
STRIKES: Final = "tests/chaos/test_broker.py"
OUTAGES: Final = "tests/chaos/test_database.py"
CLOCKS: Final = "tests/chaos/test_clock.py"
RULES: Final = "tests/unit/test_resolution.py"
LIFECYCLE: Final = "tests/unit/test_lifecycle.py"


@dataclass(frozen=True)
class Proven:
    """Something that must hold, its tests, and the removals that they notice."""

    where: str
    """The protocol's own list, what fails (provider, process, broker, …), or "crash point"."""
    what: str
    tests: tuple[str, ...]
    removals: tuple[str, ...] = ()


def _in(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::{name}" for name in names)


PROTOCOL = tuple(
    Proven("protocol", what, tests, removals)
    for what, tests, removals in (
        (
            "pause after the intent beyond B: no POST",
            _in(
                SUBMIT,
                "test_a_pause_between_intent_and_check_is_seen",
                "test_an_intent_beyond_its_age_is_not_sent",
            ),
            ("age-of-the-intent", "age-from-before-the-transaction"),
        ),
        (
            "pause after the intent beyond the lease: no POST",
            (
                f"{SUBMIT}::test_a_pause_beyond_the_lease_sends_nothing",
                f"{STOPPED}::test_stopped_beyond_its_lease_before_the_check_it_sends_nothing",
            ),
            ("check-reads-the-row", "stopped-worker-checks"),
        ),
        (
            "stopped between check and write: flagged",
            (
                f"{SUBMIT}::test_frozen_between_check_and_write_it_is_flagged_and_never_silent",
                f"{STOPPED}::test_stopped_between_check_and_write_the_second_task_is_flagged",
            ),
            ("second-task-flagged-by-its-answer", "stopped-worker-is-flagged"),
        ),
        (
            "request processed after settle: flagged, or adopted while accepted",
            _in(
                RESOLVE,
                "test_processed_after_settling_it_is_adopted_while_accepted",
                "test_processed_after_it_was_sent_again_it_is_flagged",
                "test_processed_while_it_is_sent_again_both_are_found",
            ),
            ("watch-adopts-while-accepted", "watch-flags-second-tasks"),
        ),
        (
            "list lag just below and above L",
            _in(
                RESOLVE,
                "test_a_list_lag_just_below_l",
                "test_a_list_lag_above_l_can_pay_twice_and_says_so",
            ),
            ("settles-after-b-k-l", "watch-flags-second-tasks"),
        ),
        (
            "seed null, seed -1, ratio normalised",
            _in(
                RESOLVE,
                "test_without_a_shown_seed_nothing_is_sent_again",
                "test_a_fixed_seed_with_a_normalised_ratio_is_undecided",
                "test_however_the_provider_shows_it",
            ),
            ("seedless-could-be-ours", "normalised-fields-exclude-nothing"),
        ),
        (
            "equal fixed seeds with different prompts and a late task",
            _in(RESOLVE, "test_equal_fixed_seeds_with_different_prompts_and_a_late_task"),
            ("lock-checked-at-admission", "fixed-seed-needs-no-rival"),
        ),
        (
            "foreign task",
            (
                f"{RECONCILE}::test_foreign_tasks_are_counted_and_left_alone",
                f"{RECONCILE}::test_a_foreign_task_beside_one_in_doubt_is_never_adopted",
                f"{CANCEL}::test_a_foreign_task_is_never_cancelled",
            ),
            ("foreign-is-never-adopted",),
        ),
        (
            "late answer after the lease was lost",
            _in(SUBMIT, "test_a_late_answer_after_the_lease_was_lost"),
            ("late-answer-counts-uncertain", "late-answer-counts-accepted", "fenced-by-attempt"),
        ),
        (
            "the same message twice, same lease, at each step",
            (
                f"{SUBMIT}::test_the_same_message_to_two_workers_at_once_is_one_post",
                f"{UPLOAD}::test_the_same_message_to_two_workers_at_once_is_one_post",
                f"{RESOLVE}::test_the_same_message_to_two_workers_at_once",
                f"{POLL}::test_the_same_message_to_two_workers_at_once",
                f"{DISPATCHER}::test_every_message_twice_with_the_same_lease",
            ),
            ("upload-claim-per-bytes", "redelivery-changes-nothing", "stages-hold-the-lease"),
        ),
        (
            "stale operator decision",
            _in(
                OPERATOR,
                "test_a_decision_on_another_attempt_is_refused",
                "test_sends_again_only_when_the_attempt_has_settled",
            ),
            ("decision-names-its-attempt", "decision-waits-until-settled"),
        ),
        (
            "cancel in each status and racing the intent",
            _in(
                CANCEL,
                "test_accepted",
                "test_uploading",
                "test_before_the_check_of_the_intent",
                "test_after_the_check",
                "test_racing_the_intent",
                "test_uncertain_and_absent",
                "test_uncertain_and_found",
                "test_running",
                "test_what_has_ended_stays_as_it_is",
            ),
            (
                "check-reads-the-wish",
                "wish-of-the-doubtful-kept",
                "wish-is-carried-out-on-adoption",
            ),
        ),
        (
            "drift matrix: five orders by insert, update, delete",
            _in(
                DRIFT,
                "test_a_lost_task_is_never_taken_for_absent",
                "test_an_insertion_that_makes_up_for_a_deletion",
                "test_a_deletion_that_is_made_up_for_in_both_readings",
                "test_what_never_came_through_is_sent_again_once_the_list_stands_still",
            ),
            (
                "full-needs-a-steady-total",
                "counts-bear-each-other-out",
                "stop-is-off-under-removal",
            ),
        ),
        (
            "skew both ways, truncated seconds",
            (
                f"{RESOLVE}::test_skewed_clocks",
                f"{RESOLVE}::test_stamps_of_another_clock_than_the_date_header",
                f"{RULES}::TestSendAgain::test_truncated_stamps_are_inside_the_window",
            ),
            ("window-moves-with-the-date", "window-widened-by-our-own", "truncated-stamps"),
        ),
        (
            "404 from a replica, swapped key",
            _in(
                POLL,
                "test_a_lagging_replica_within_the_grace",
                "test_a_task_not_found_after_the_grace_needs_attention_and_is_not_failed",
                "test_a_swapped_key_is_not_a_failure",
            ),
            ("not-found-has-a-grace", "not-found-is-no-failure", "list-of-our-account"),
        ),
        (
            "cancelled answered, then completed: credits equal",
            _in(CANCEL, "test_said_cancelled_then_completed_the_charge_is_ours"),
            ("cancelled-is-only-a-hint", "charge-of-the-end"),
        ),
        (
            "starvation: attention rows and blocked rows against slots, equal seeds, a dear 402",
            (
                f"{RESOLVE}::test_attention_gives_up_the_slot_and_keeps_the_lock",
                f"{RESOLVE}::test_blocked_rows_starve_nobody",
                f"{SCHEDULE}::test_a_crowd_of_equal_seeds_does_not_keep_a_slot_from_the_rest",
                f"{SCHEDULE}::test_ten_thousand_of_one_tenant_do_not_starve_five_of_another",
                f"{BREAKERS}::test_expensive_generation_waits_while_cheap_ones_pass",
            ),
            (
                "attention-gives-up-its-slot",
                "blocked-rows-starve-nobody",
                "turns-between-tenants",
                "rows-that-fit-the-balance-pass",
            ),
        ),
        (
            "bare 503 after creation",
            _in(ANSWERS, "test_any_other_answer[bare_after-503-1]"),
            ("bare-503-is-ambiguous", "refusal-only-by-the-envelope"),
        ),
        (
            "COMMIT outcome unknown: no POST",
            _in(
                SUBMIT,
                "test_a_commit_of_unknown_outcome_sends_nothing",
                "test_a_commit_that_fails_sends_nothing",
            ),
            ("commit-confirmed", "intent-before-the-post"),
        ),
        (
            "transition table: terminal stays, rank never falls",
            (
                f"{MOVES}::test_moves_from_its_sources_and_from_nowhere_else",
                f"{LIFECYCLE}::test_nothing_leaves_a_terminal_status",
                f"{LIFECYCLE}::test_rank_never_falls_and_the_first_end_is_final",
            ),
            ("terminal-stays", "transitions-name-their-sources", "rank-never-falls"),
        ),
    )
)

_ANY = f"{ANSWERS}::test_any_other_answer"
_GET = f"{POLL}::test_nothing_that_a_get_says_fails_a_generation"

PROVIDER = tuple(
    Proven("provider", what, tests, removals)
    for what, tests, removals in (
        (
            "answer lost after processing",
            (f"{_ANY}[lost]", f"{RESOLVE}::test_a_lost_answer_is_adopted", f"{_GET}[lost-params1]"),
            ("sent-and-lost-is-ambiguous", "doubt-is-not-repeated"),
        ),
        (
            "answer lost, the task shows in the list at once, late or never",
            _in(
                RESOLVE,
                "test_the_first_early_scan_adopts_a_task_that_the_list_shows",
                "test_the_second_early_scan_adopts_a_task_that_appeared_later",
                "test_early_scans_that_find_nothing_decide_nothing",
            ),
            (
                "early-scan-decides-presence-alone",
                "early-scan-is-early",
                "early-scan-is-repeated-after-the-lag",
            ),
        ),
        (
            "answer delayed beyond the timeout",
            (f"{ANSWERS}::test_an_answer_that_takes_too_long",),
            ("sent-and-lost-is-ambiguous",),
        ),
        (
            "500 after processing",
            (f"{_ANY}[error_after-INTERNAL_ERROR]", f"{_ANY}[error_after-TASK_SUBMIT_FAILED]"),
            ("unknown-code-is-ambiguous", "submit-failed-is-ambiguous"),
        ),
        ("502 HTML", (f"{_ANY}[bare-502]", _GET), ("bare-502-is-ambiguous",)),
        (
            "null result",
            (f"{_ANY}[null_result]", _GET),
            ("success-without-a-result-is-ambiguous",),
        ),
        (
            "cut-off JSON",
            (f"{_ANY}[cut_json]", f"{_ANY}[cut_json-True]", _GET),
            ("sent-and-lost-is-ambiguous",),
        ),
        (
            "429 queued with and without task_id",
            (f"{_ANY}[concurrency-created]", f"{_ANY}[concurrency-created_with_id]"),
            ("queued-is-ambiguous", "queued-with-an-id-is-a-success"),
        ),
        (
            "503 storms, Retry-After",
            (
                f"{SUBMIT}::test_throttling_stops_every_request_for_retry_after_and_lowers_the_rate",
                f"{SUBMIT}::test_an_outage_sends_one_probe_and_puts_the_others_back",
                f"{SUBMIT}::test_a_busy_answer_delays_that_generation_alone",
            ),
            (
                "retry-after-holds-every-request",
                "outage-is-probed-one-at-a-time",
                "retry-delay-is-the-generations-own",
            ),
        ),
        ("list order random", (f"{DRIFT}::test_a_lost_task_is_never_taken_for_absent",), ()),
        (
            "list lag of some seconds",
            (
                f"{RESOLVE}::test_a_list_lag_just_below_l",
                f"{RECONCILE}::test_a_fresh_one_is_not_missed_yet",
            ),
            ("settles-after-b-k-l",),
        ),
        (
            "pages that drift",
            (f"{DRIFT}::test_a_lost_task_is_never_taken_for_absent",),
            ("full-needs-a-steady-total",),
        ),
        (
            "unknown statuses",
            (_GET, f"{HARD}::test_an_unknown_status_is_told_once_and_ends_nothing"),
            ("unknown-status-ends-nothing",),
        ),
        (
            "a GET that goes backwards",
            (f"{POLL}::test_a_slow_answer_of_an_old_state_moves_nothing_back",),
            ("rank-never-falls",),
        ),
        (
            "TASK_NOT_FOUND for a fresh task",
            (f"{POLL}::test_a_lagging_replica_within_the_grace",),
            ("not-found-has-a-grace",),
        ),
    )
)

PROCESSES = tuple(
    Proven("process", what, tests, removals)
    for what, tests, removals in (
        (
            "all workers killed at once",
            (
                f"{CRASHES}::test_all_workers_killed_at_once",
                f"{KILLS}::test_after_all_workers_were_killed_everything_moves_within_one_lease",
            ),
            ("crash-reclaimed-by-the-lease",),
        ),
        (
            "one of two workers dies",
            _in(
                DISPATCHER,
                "test_claims_of_a_dead_worker_are_released_within_two_ticks",
                "test_claims_of_a_live_worker_are_kept",
                "test_a_post_of_a_dead_worker_is_searched_for_and_not_sent_again",
            ),
            (
                "dead-workers-claims-are-released",
                "release-raises-the-token",
                "live-workers-claims-are-kept",
                "posts-of-dead-workers-are-in-doubt",
            ),
        ),
        (
            "one task kills its worker again and again",
            (
                f"{DISPATCHER}::test_what_workers_die_of_is_bounded_before_the_post",
                f"{DISPATCHER}::test_after_the_post_it_needs_attention_and_is_never_failed",
                f"{KILLS}::test_a_poison_generation_ends_failed_and_takes_no_other_along",
            ),
            ("poison-bound", "poison-counts-beginnings", "poison-never-fails-what-runs"),
        ),
        (
            "two dispatchers",
            (
                f"{DISPATCHER}::test_two_at_once_never_hand_out_the_same_lease",
                f"{SCHEDULE}::test_only_one_admits_at_a_time_and_the_other_does_not_wait",
                f"{KILLS}::test_two_dispatchers_on_every_tick",
            ),
            ("claim-raises-the-lease", "claims-do-not-wait", "one-admits-at-a-time"),
        ),
        (
            "SIGTERM hands work on, in mid-upload too",
            (
                f"{SERVICE}::test_sigterm_hands_the_work_on_at_once",
                f"{KILLS}::test_sigterm_in_the_middle_of_uploads_hands_the_work_on_at_once",
            ),
            (),
        ),
        (
            "no beat, two beats",
            (f"{RECONCILE}::test_two_at_once", f"{KILLS}::test_without_a_beat_and_with_two"),
            (),
        ),
    )
)

BROKER = tuple(
    Proven("broker", what, tests, removals)
    for what, tests, removals in (
        (
            "every message twice",
            (
                f"{DISPATCHER}::test_every_message_twice_with_the_same_lease",
                f"{STRIKES}::test_every_message_is_delivered_twice",
            ),
            ("stages-hold-the-lease",),
        ),
        (
            "old messages replayed",
            (
                f"{DISPATCHER}::test_old_messages_replayed_at_every_step_change_nothing",
                f"{STRIKES}::test_old_messages_are_replayed",
            ),
            ("stages-hold-the-lease", "claim-raises-the-lease"),
        ),
        (
            "messages lost",
            (
                f"{DISPATCHER}::test_a_lost_message_is_due_again_when_its_lease_ends",
                f"{STRIKES}::test_flushall",
                f"{STRIKES}::test_killed_and_its_data_lost",
            ),
            ("claim-ends-with-its-lease",),
        ),
        (
            "broker away",
            (
                f"{DISPATCHER}::test_the_loop_outlives_a_broker_that_is_away",
                f"{DISPATCHER}::test_a_publish_that_fails_gives_the_claims_back",
                f"{STRIKES}::test_frozen_for_longer_than_every_timeout",
            ),
            ("dispatcher-outlives-everything", "unpublished-claims-go-back"),
        ),
        (
            "restarted",
            (
                "tests/acceptance/test_broker_restart.py::test_workers_outlive_a_broker_restart",
                f"{STRIKES}::test_killed_with_its_data",
            ),
            (),
        ),
        (
            "garbage",
            (f"{SERVICE}::test_bad_input_ends_as_a_failed_generation_and_garbage_is_set_aside",),
            ("unreadable-messages-are-set-aside", "entries-that-are-no-messages"),
        ),
    )
)

DATABASE = tuple(
    Proven(where, what, tests, removals)
    for where, what, tests, removals in (
        (
            "database",
            "immediate shutdown and restart under load",
            (
                f"{OUTAGES}::test_immediate_shutdown_and_restart_under_load",
                f"{SUBMIT}::test_an_answer_outlives_an_outage_of_the_database",
            ),
            ("answer-outlives-the-database",),
        ),
        (
            "database",
            "connections cut",
            (
                f"{OUTAGES}::test_connections_are_cut_again_and_again",
                f"{DISPATCHER}::test_the_loop_outlives_its_connections",
            ),
            ("dispatcher-outlives-everything",),
        ),
        (
            "database",
            "a statement timeout",
            (f"{OUTAGES}::test_a_statement_that_waits_too_long_is_given_up",),
            (),
        ),
        (
            "database",
            "serialisation failures",
            _in(OUTAGES, "test_writes_fail", "test_a_worker_whose_transactions_are_serializable"),
            (),
        ),
        (
            "database",
            "away while a message comes",
            (f"{LATE}::test_a_message_is_given_back_while_every_connection_is_taken",),
            ("message-kept-while-the-database-is-away",),
        ),
        (
            "clock",
            "a worker whose clock is minutes off",
            _in(
                CLOCKS,
                "test_a_worker_whose_clock_is_minutes_off",
                "test_a_clock_ahead_takes_no_more_than_its_share_of_the_request_rate",
            ),
            (),
        ),
    )
)

CRASH_POINTS = tuple(
    Proven("crash point", point, (f"{DEATH}[{point}]",), removals)
    for point, removals in (
        ("deliver.before_send", ("crash-notice-is-reclaimed-by-its-lease",)),
        ("deliver.after_send", ("crash-notice-is-reclaimed-by-its-lease",)),
        ("upload.before_put", ("crash-reclaimed-by-the-lease",)),
        ("upload.after_put", ("crash-reclaimed-by-the-lease",)),
        ("submit.before_intent", ("crash-reclaimed-by-the-lease",)),
        ("submit.after_intent", ("crash-after-the-intent-is-resolved",)),
        ("submit.after_check", ("crash-after-the-intent-is-resolved",)),
        (
            "submit.after_post",
            ("crash-after-the-intent-is-resolved", "crash-after-the-post-is-adopted"),
        ),
        ("submit.after_result", ("crash-after-the-result-is-polled",)),
        ("resolve.after_reading", ("crash-reclaimed-by-the-lease",)),
        ("resolve.after_decision", ("crash-after-the-decision-is-polled",)),
        ("poll.after_get", ("crash-reclaimed-by-the-lease",)),
        ("observe.after_begin", ("observer-whose-pass-died-is-replaced",)),
        ("observe.after_page", ("observer-whose-pass-died-is-replaced",)),
        ("dispatch.after_claim", ("crash-reclaimed-by-the-lease",)),
        ("accept.before_commit", ("crash-before-the-commit-is-redelivered",)),
        ("accept.after_commit", ("crash-after-the-commit-is-one-row",)),
        ("archive.after_download", ("archive-claim-ends",)),
        ("archive.before_record", ("archive-claim-ends",)),
    )
)

INVENTORY: tuple[Proven, ...] = (
    *PROTOCOL,
    *PROVIDER,
    *PROCESSES,
    *BROKER,
    *DATABASE,
    *CRASH_POINTS,
)


def table() -> str:
    """The inventory for reading."""
    lines = []
    for one in INVENTORY:
        lines.append(f"{one.where}: {one.what}")
        lines += [f"    {test}" for test in one.tests]
        lines += [f"    fails without {name}" for name in one.removals]
    return "\n".join(lines)
