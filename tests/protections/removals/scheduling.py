"""Who works on what, and when: claims, leases, messages, slots, turns, and the fingerprint lock."""

from tests.protections.protection import Edit, Protection

SQL = "tests/integration/test_schedule.py"
DISPATCHER = "tests/integration/test_dispatcher.py"
RESOLVE = "tests/integration/test_resolve_stage.py"
POLL = "tests/integration/test_poll_stage.py"
SUBMIT = "tests/integration/test_submit_stage.py"
MOVES = "tests/integration/test_transitions.py"
HARD = "tests/integration/test_hard_cases_schedule.py"
ACCEPT = "tests/integration/test_accept_stage.py"
SERVICE = "tests/acceptance/test_service.py"

RELEASE = "tests/integration/test_workers.py"

SCHEDULE = "models/schedule.py"
WORKERS = "models/workers.py"
COMMON = "worker/stages/common.py"

PROTECTIONS = (
    # --- leases and messages ----------------------------------------------------------------
    Protection(
        "claim-ends-with-its-lease",
        "a claimed row is due again when its lease ends",
        (
            Edit(
                SCHEDULE,
                '            lease=g.lease + 1,\n            due_at=in_given("leased_for"),\n',
                "            lease=g.lease + 1,\n            due_at=in_seconds(10**7),\n",
            ),
        ),
        (f"{SQL}::test_a_claim_raises_the_lease_and_is_due_again_at_its_end",),
    ),
    Protection(
        "claim-raises-the-lease",
        "each claim raises the lease: whoever had the row has lost it",
        (
            Edit(
                SCHEDULE,
                '            lease=g.lease + 1,\n            due_at=in_given("leased_for"),\n',
                '            lease=g.lease,\n            due_at=in_given("leased_for"),\n',
            ),
        ),
        (
            f"{SQL}::test_a_claim_raises_the_lease_and_is_due_again_at_its_end",
            f"{DISPATCHER}::test_two_at_once_never_hand_out_the_same_lease",
            f"{POLL}::test_the_same_message_twice_and_an_old_one",
        ),
    ),
    Protection(
        "claims-do-not-wait",
        "dispatchers share due rows without waiting for each other",
        (
            Edit(
                SCHEDULE,
                '        .with_for_update(skip_locked=True)\n        .cte("due")',
                '        .with_for_update()\n        .cte("due")',
            ),
        ),
        (f"{SQL}::test_two_dispatchers_share_without_waiting_and_without_overlap",),
    ),
    Protection(
        "stages-hold-the-lease",
        "a stage works only while the row has its lease",
        (
            Edit(
                COMMON,
                "    .where(g.id == _CLAIMED.c.id, g.lease == _CLAIMED.c.lease, g.finished_at.is_(None))\n",
                "    .where(g.id == _CLAIMED.c.id, g.finished_at.is_(None))\n",
            ),
        ),
        (f"{POLL}::test_the_same_message_twice_and_an_old_one",),
    ),
    Protection(
        "resolving-holds-the-lease",
        "an old message resolves nothing",
        (
            Edit(
                "models/watch.py",
                "                g.lease == lease,\n                g.status.in_([Status.SUBMITTING",
                "                g.status.in_([Status.SUBMITTING",
            ),
        ),
        (f"{RESOLVE}::test_an_old_message_does_nothing",),
    ),
    Protection(
        "rescheduling-holds-the-lease",
        "only whoever has the lease says when a row is due next",
        (
            Edit(
                "models/transitions/following.py",
                ".where(g.id == generation_id, g.lease == lease, g.status.in_(sorted(LIVE)))",
                ".where(g.id == generation_id, g.status.in_(sorted(LIVE)))",
            ),
        ),
        (f"{MOVES}::test_reschedule_is_for_whoever_has_the_lease_of_a_live_row",),
    ),
    Protection(
        "lease-renewed-for-each-page",
        "leases are renewed per page read",
        (
            Edit(
                "worker/stages/resolve.py",
                "            common.renew(self._rt.engine, one.case.generation_id, one.lease, lease)\n",
                "            log.debug('%s %s', one.lease, lease)\n",
            ),
        ),
        (f"{RESOLVE}::test_a_lease_is_renewed_while_reading",),
    ),
    Protection(
        "unpublished-claims-go-back",
        "claims that could not be published are due again soon",
        (
            Edit(
                "worker/dispatcher.py",
                "                    schedule.release(conn, left, seconds=2.0)\n",
                "                    schedule.release(conn, [], seconds=2.0)\n",
            ),
        ),
        (f"{DISPATCHER}::test_a_publish_that_fails_gives_the_claims_back",),
    ),
    Protection(
        "publish-bound",
        "about twice as many messages as there are slots, no more",
        (
            Edit(
                "worker/dispatcher.py",
                "room = 2 * self._slots - depth",
                "room = 1000 - depth",
            ),
        ),
        (
            f"{DISPATCHER}::test_messages_are_refilled_to_twice_the_slots_once_no_more_wait_than_slots",
        ),
    ),
    Protection(
        "refilled-in-portions",
        "messages are published once no more wait than there are slots",
        (
            Edit(
                "worker/dispatcher.py",
                "        if depth > self._slots:\n",
                "        if depth >= 2 * self._slots:\n",
            ),
        ),
        (
            f"{DISPATCHER}::test_messages_are_refilled_to_twice_the_slots_once_no_more_wait_than_slots",
        ),
    ),
    # --- dead workers -----------------------------------------------------------------------
    Protection(
        "dead-workers-claims-are-released",
        "what a dead worker had claimed does not wait for its lease's end",
        (
            Edit(
                WORKERS,
                ".values(lease=g.lease + 1, due_at=func.now(), leased_until=None)",
                ".values(lease=g.lease + 1, leased_until=None)",
            ),
        ),
        (
            f"{DISPATCHER}::test_claims_of_a_dead_worker_are_released_within_two_ticks",
            f"{RELEASE}::test_begun_claims_of_a_dead_worker_are_released_under_a_raised_token",
        ),
    ),
    Protection(
        "release-raises-the-token",
        "a worker that was only cut off has lost its claims",
        (
            Edit(
                WORKERS,
                ".values(lease=g.lease + 1, due_at=func.now(), leased_until=None)",
                ".values(due_at=func.now(), leased_until=None)",
            ),
        ),
        (
            f"{DISPATCHER}::test_a_message_of_a_released_claim_does_nothing",
            f"{RELEASE}::test_begun_claims_of_a_dead_worker_are_released_under_a_raised_token",
            f"{RELEASE}::test_step_of_a_worker_that_was_only_cut_off_changes_nothing",
        ),
    ),
    Protection(
        "live-workers-claims-are-kept",
        "what a live worker has begun is not released with a dead one's claims",
        (
            Edit(
                WORKERS,
                "            or_(g.claimed_by.in_(ids), g.claimed_by.is_(None)),\n",
                "            or_(g.claimed_by.in_(ids), g.claimed_by.is_distinct_from(-1)),\n",
            ),
        ),
        (f"{RELEASE}::test_begun_claims_of_a_living_worker_stay",),
    ),
    Protection(
        "live-workers-are-alive",
        "a worker whose session holds its lock is not dead, however long it is silent",
        (
            Edit(
                WORKERS,
                "    _w.c.locked\n    & func.pg_try_advisory_xact_lock(",
                "    _w.c.locked\n    | func.pg_try_advisory_xact_lock(",
            ),
        ),
        (
            f"{DISPATCHER}::test_claims_of_a_live_worker_are_kept",
            f"{RELEASE}::test_living_workers_are_not_released",
        ),
    ),
    Protection(
        "scheduled-rows-are-not-claims",
        "a release leaves alone what is due by itself",
        (Edit(WORKERS, "            g.due_at == g.leased_until,\n", ""),),
        (f"{RELEASE}::test_generations_that_are_scheduled_are_untouched",),
    ),
    Protection(
        "posts-of-dead-workers-are-in-doubt",
        "what a dead worker was submitting is searched for, and not sent again",
        (
            Edit(
                WORKERS,
                "        .where(g.status == Status.SUBMITTING, g.claimed_by.in_(ids))\n",
                "        .where(g.status == Status.SUBMITTING, g.claimed_by.in_([]))\n",
            ),
        ),
        (
            f"{SUBMIT}::test_a_worker_that_was_taken_for_dead_does_not_send",
            f"{DISPATCHER}::test_a_post_of_a_dead_worker_is_searched_for_and_not_sent_again",
            f"{RELEASE}::test_submitting_generation_of_a_dead_worker_becomes_uncertain",
        ),
    ),
    Protection(
        "taken-for-dead-registers-anew",
        "a worker that was taken for dead finds it out",
        (
            Edit(
                "worker/dispatcher.py",
                "        if not alive:\n            raise TakenForDeadError",
                "        if alive is None:\n            raise TakenForDeadError",
            ),
        ),
        (f"{DISPATCHER}::test_a_worker_that_was_taken_for_dead_registers_anew",),
    ),
    Protection(
        "admission-missed-is-tried-again-soon",
        "a dispatcher that found another one admitting does not sleep for a tick",
        (Edit("worker/dispatcher.py", "return self._crowded or len(", "return len("),),
        (f"{DISPATCHER}::test_who_finds_somebody_else_admitting_looks_again_soon",),
    ),
    Protection(
        "dispatcher-outlives-everything",
        "nothing that goes wrong ends the dispatcher",
        (
            Edit(
                "worker/dispatcher.py",
                "                session.check()\n                self._rest(error)\n",
                "                session.check()\n                return\n",
            ),
            Edit(
                "worker/dispatcher.py",
                "outlive everything)\n                self._rest(error)\n",
                "outlive everything)\n                return\n",
            ),
        ),
        (
            f"{DISPATCHER}::test_the_loop_outlives_a_broker_that_is_away",
            f"{DISPATCHER}::test_the_loop_outlives_its_connections",
        ),
    ),
    Protection(
        "enqueuing-wakes",
        "dispatchers wake at once when something is enqueued",
        (
            Edit(
                SCHEDULE,
                'WAKE = func.pg_notify(CHANNEL, "")\n',
                'WAKE = func.length("")\n',
            ),
        ),
        (
            f"{SQL}::test_enqueuing_wakes_who_listens_at_the_commit",
            f"{DISPATCHER}::test_it_wakes_at_once_when_something_is_enqueued",
        ),
    ),
    # --- poison -----------------------------------------------------------------------------
    Protection(
        "poison-bound",
        "a generation of which workers die ends after a bound",
        (
            Edit(
                "worker/dispatcher.py",
                "            if claim.tries < self._rt.settings.max_tries:\n",
                "            if claim.tries < 10**6:\n",
            ),
        ),
        (
            f"{DISPATCHER}::test_what_workers_die_of_is_bounded_before_the_post",
            f"{DISPATCHER}::test_after_the_post_it_needs_attention_and_is_never_failed",
        ),
    ),
    Protection(
        "poison-counts-beginnings",
        "a try is counted when work begins, and stays if the worker dies",
        (
            Edit(
                COMMON,
                "            tries=func.least(g.tries + 1, MOST_TRIES),\n",
                "            tries=g.tries,\n",
            ),
        ),
        (f"{DISPATCHER}::test_what_workers_die_of_is_bounded_before_the_post",),
    ),
    Protection(
        "poison-forgets-progress",
        "polling is no attempt: progress takes the try back",
        (
            Edit(
                "models/transitions/following.py",
                'by_deadline(in_seconds(seconds)), "tries": 0}',
                "by_deadline(in_seconds(seconds))}",
            ),
        ),
        (f"{POLL}::test_polling_is_not_an_attempt",),
    ),
    Protection(
        "poison-never-fails-what-runs",
        "after the POST it needs attention and is never failed",
        (
            Edit(
                "worker/dispatcher.py",
                "                if claim.stage in (Stage.UPLOAD, Stage.SUBMIT):\n",
                "                if claim.stage in (Stage.UPLOAD, Stage.SUBMIT, Stage.POLL, Stage.RESOLVE):\n",
            ),
        ),
        (f"{DISPATCHER}::test_after_the_post_it_needs_attention_and_is_never_failed",),
    ),
    # --- slots and turns --------------------------------------------------------------------
    Protection(
        "slots-bounded",
        "max_in_flight bounds what is past admission",
        (
            Edit(
                SCHEDULE,
                "    free = min(limit, slots - standing.in_flight)\n",
                "    free = limit\n",
            ),
        ),
        (
            f"{SQL}::test_only_free_slots_are_filled",
            f"{DISPATCHER}::test_max_in_flight_bounds_what_is_past_admission",
        ),
    ),
    Protection(
        "one-admits-at-a-time",
        "two dispatchers together never exceed the slots",
        (Edit(SCHEDULE, "    if not locked:\n        return None\n", ""),),
        (f"{SQL}::test_only_one_admits_at_a_time_and_the_other_does_not_wait",),
    ),
    Protection(
        "turns-between-tenants",
        "a tenant with ten thousand waiting does not starve one with five",
        (
            Edit(
                SCHEDULE,
                "ORDER BY c.priority DESC, coalesce(b.n, 0) + c.turn, c.{first}",
                "ORDER BY c.priority DESC, c.{first}",
            ),
        ),
        (
            f"{SQL}::test_tenants_take_turns",
            f"{SQL}::test_ten_thousand_of_one_tenant_do_not_starve_five_of_another",
        ),
    ),
    Protection(
        "busy-tenants-wait-their-turn",
        "what a tenant has in flight counts for its turn",
        (Edit(SCHEDULE, "coalesce(b.n, 0) + c.turn", "c.turn"),),
        (f"{SQL}::test_who_is_busy_already_waits_for_its_turn",),
    ),
    Protection(
        "deadline-lapses-while-waiting",
        "a deadline passes also without a slot or behind a breaker",
        (Edit(SCHEDULE, "    if standing.late:\n        transitions.lapse_waiting(conn)\n", ""),),
        (
            f"{SQL}::test_a_deadline_that_passed_ends_it_before_admission_even_without_a_slot",
            f"{SQL}::test_deadline_passes_also_while_a_breaker_blocks_everything",
        ),
    ),
    Protection(
        "attention-gives-up-its-slot",
        "a row in attention gives up its slot",
        (
            Edit(
                SCHEDULE,
                '    " AND attention IS NULL"\n)\n',
                '    ""\n)\n',
            ),
        ),
        (
            f"{RESOLVE}::test_attention_gives_up_the_slot_and_keeps_the_lock",
            f"{SQL}::test_attention_and_ended_rows_hold_no_slot",
        ),
    ),
    Protection(
        "blocked-rows-starve-nobody",
        "blocked rows are looked past",
        (Edit(SCHEDULE, "_ADMISSION_ROUNDS = 10\n", "_ADMISSION_ROUNDS = 1\n"),),
        (
            f"{RESOLVE}::test_blocked_rows_starve_nobody",
            f"{SQL}::test_a_crowd_of_equal_seeds_does_not_keep_a_slot_from_the_rest",
        ),
    ),
    Protection(
        "locked-rows-hold-up-nobody",
        "a producer's open transaction on one row does not keep others from being admitted",
        (
            Edit(
                "models/transitions/before.py",
                "        # A producer's open transaction on one row must not hold up all the others.\n"
                "        skip_locked=True,\n    )\n\n\ndef put_back",
                "    )\n\n\ndef put_back",
            ),
        ),
        (f"{HARD}::test_a_row_locked_by_a_producer_does_not_keep_others_from_being_admitted",),
    ),
    # --- the fingerprint lock ---------------------------------------------------------------
    Protection(
        "lock-checked-at-admission",
        "a row whose fingerprint is in doubt stays accepted, and shows blocked_by",
        (Edit(SCHEDULE, "        if blocked_by is not None:\n", "        if not row.id:\n"),),
        (
            f"{SQL}::test_an_equal_one_in_doubt_blocks_and_is_named",
            f"{SQL}::test_of_equal_ones_the_oldest_goes_and_the_rest_wait_for_it",
        ),
    ),
    Protection(
        "lock-wakes-the-oldest",
        "leaving doubt wakes the oldest waiter, in the same transaction",
        (
            Edit(
                "models/transitions/core.py",
                "        conn.execute(_WAKE,",
                "        str([_WAKE]) if True else (_WAKE,",
            ),
        ),
        (
            f"{RESOLVE}::test_leaving_doubt_wakes_the_oldest_waiter_alone",
            f"{MOVES}::test_the_fingerprint_lock_wakes_the_oldest_waiter_when_it_is_released",
        ),
    ),
    Protection(
        "lock-is-kept-in-attention",
        "a row in attention keeps the lock",
        (
            Edit(
                SCHEDULE,
                "    WHERE o.finished_at IS NULL AND o.fingerprint = :mark AND o.id <> :id\n",
                "    WHERE o.finished_at IS NULL AND o.fingerprint = :mark AND o.id <> :id\n      AND o.attention IS NULL\n",
            ),
        ),
        (
            f"{RESOLVE}::test_attention_gives_up_the_slot_and_keeps_the_lock",
            f"{SQL}::test_a_row_in_attention_gives_up_its_slot_and_keeps_the_lock",
        ),
    ),
    # --- taking in --------------------------------------------------------------------------
    Protection(
        "redelivery-changes-nothing",
        "a message delivered twice makes one row",
        (
            Edit(
                "models/intake_rows.py",
                '        .from_select([*(column.name for column in _COLUMNS), "status", "due_at"], rows)\n        .on_conflict_do_nothing()\n',
                '        .from_select([*(column.name for column in _COLUMNS), "status", "due_at"], rows)\n',
            ),
        ),
        (
            f"{ACCEPT}::test_redelivery_changes_nothing",
            f"{ACCEPT}::test_the_same_message_to_two_workers_at_once",
            f"{ACCEPT}::test_an_idempotency_key_twice_is_one_row",
        ),
    ),
    Protection(
        "message-kept-while-the-database-is-away",
        "a message is given back while its row can't be committed",
        (
            Edit(
                "worker/tasks.py",
                "    except (OperationalError, InterfaceError, ProgrammingError, PoolTimeout) as error:\n",
                "    except ZeroDivisionError as error:\n",
            ),
        ),
        (f"{HARD}::test_a_message_is_given_back_while_every_connection_is_taken",),
    ),
    Protection(
        "unreadable-messages-are-set-aside",
        "a message that can't be read is kept apart before it kills the worker",
        (
            Edit(
                "worker/celeryconfig.py",
                'worker_consumer = "worker.consumer:Consumer"\n',
                'worker_consumer = "celery.worker.consumer:Consumer"\n',
            ),
        ),
        (f"{SERVICE}::test_bad_input_ends_as_a_failed_generation_and_garbage_is_set_aside",),
    ),
    Protection(
        "entries-that-are-no-messages",
        "an entry of a queue that is no message does not end the worker",
        (
            Edit(
                "worker/celeryconfig.py",
                '    broker_transport = "worker.transport:Transport"\n',
                '    broker_transport = "redis"\n',
            ),
        ),
        (f"{SERVICE}::test_bad_input_ends_as_a_failed_generation_and_garbage_is_set_aside",),
    ),
)
