"""Breakers, flow control, pauses and the shared rate: what delays work instead of failing it."""

from tests.protections.protection import Edit, Protection

BREAKERS = "tests/integration/test_breakers.py"
FLOW = "tests/integration/test_flow_control.py"
INTENT = "tests/integration/test_submission.py"
ANSWERS = "tests/integration/test_answers.py"
STAGE = "tests/integration/test_submit_stage.py"
RESOLVE = "tests/integration/test_resolve_stage.py"
DISPATCHER = "tests/integration/test_dispatcher.py"
PAUSES = "tests/integration/test_pauses.py"
BUDGETS = "tests/integration/test_budgets.py"
RETRIES = "tests/integration/test_retries.py"
RATE = "tests/integration/test_limiter_redis.py"
PURE = "tests/unit/test_flow_rules.py"

MODEL = "models/flow_control/breakers.py"
EVIDENCE = "models/flow_control/evidence.py"
RULES_OF_FLOW = "models/flow_control/rules.py"
SUBMIT = "worker/stages/submit.py"

PROTECTIONS = (
    Protection(
        "402-stores-the-estimate",
        "a 402 stores the refused estimate",
        (
            Edit(
                "worker/flow.py",
                "            refused_estimate=estimate if name is BreakerName.CREDIT else None,\n",
                "            refused_estimate=None,\n",
            ),
        ),
        (
            f"{ANSWERS}::test_a_402_keeps_the_estimate_that_was_refused",
            f"{BREAKERS}::test_expensive_generation_waits_while_cheap_ones_pass",
        ),
    ),
    Protection(
        "rows-that-fit-the-balance-pass",
        "a dear row's 402 does not hold up what the balance covers",
        (
            Edit(
                MODEL,
                "            if breaker.name is BreakerName.CREDIT and self._affordable(breaker, estimate):\n",
                "            if breaker.name is BreakerName.CREDIT and not breaker.name:\n",
            ),
            Edit(
                MODEL,
                '            return min(self.remaining, breaker.refused_estimate - Decimal("0.0001"))\n',
                "            return Decimal(-1)\n",
            ),
        ),
        (
            f"{BREAKERS}::test_expensive_generation_waits_while_cheap_ones_pass",
            f"{PURE}::test_refusal_of_an_expensive_generation_lets_cheaper_ones_pass",
        ),
    ),
    Protection(
        "402-fails-nothing",
        "402 holds: what is dearer than what was refused waits",
        (
            Edit(
                MODEL,
                "            and estimate < breaker.refused_estimate\n",
                "            and breaker.refused_estimate is not None\n            and estimate is not None\n",
            ),
        ),
        (f"{PURE}::test_refusal_of_an_expensive_generation_lets_cheaper_ones_pass",),
    ),
    Protection(
        "401-holds-everything",
        "401 opens the breaker: nothing new is sent, nothing fails",
        (
            Edit(
                "api_client/verdicts.py",
                '"INVALID_API_KEY": _row(_H, _H, _H, _H, _H)',
                '"INVALID_API_KEY": _row(_P, _H, _H, _H, _H)',
            ),
        ),
        (
            f"{BREAKERS}::test_rejected_key_blocks_everything_and_fails_nothing",
            f"{ANSWERS}::test_an_error_of_the_provider[error-INVALID_API_KEY-mapped]",
        ),
    ),
    Protection(
        "probes-are-sparing",
        "each probe is handed out once",
        (
            Edit(
                MODEL,
                "        .values(probe_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, pause))\n",
                "        .values(probe_at=func.now() + 0 * func.make_interval(0, 0, 0, 0, 0, 0, pause))\n",
            ),
        ),
        (
            f"{BREAKERS}::test_each_probe_is_given_out_once",
            f"{BREAKERS}::test_probe_after_a_402_is_given_out_once",
        ),
    ),
    Protection(
        "probes-are-not-put-off",
        "many refusals do not put a planned probe off",
        (
            Edit(
                MODEL,
                "probe_at=func.coalesce(b.probe_at, in_seconds(probe_in)),",
                "probe_at=in_seconds(probe_in),",
            ),
        ),
        (f"{BREAKERS}::test_further_refusals_do_not_delay_the_probe",),
    ),
    Protection(
        "an-answered-balance-closes-breakers",
        "an answered balance closes the breakers that it may",
        (
            Edit(
                MODEL,
                "    closed = [BreakerName.API_KEY] if close(conn, BreakerName.API_KEY, account=account) else []\n",
                "    closed: list[BreakerName] = []\n",
            ),
        ),
        (
            f"{BREAKERS}::test_answered_balance_shows_that_the_key_is_valid",
            f"{DISPATCHER}::test_an_open_breaker_is_probed_and_closed_by_the_answer",
        ),
    ),
    Protection(
        "running-is-followed-behind-breakers",
        "running tasks are followed while every breaker is open",
        (
            Edit(
                "worker/stages/poll.py",
                "    if row is None or row.status != Status.RUNNING or row.remote_task_id is None:\n        return\n",
                "    if row is None or row.status != Status.RUNNING or row.remote_task_id is None:\n        return\n"
                "    from models.flow_control import breakers\n"
                "    with rt.engine.connect() as conn:\n"
                "        if breakers.read(conn).open:\n            return\n",
            ),
        ),
        (f"{BREAKERS}::test_running_tasks_are_followed_while_every_breaker_is_open",),
    ),
    # --- refusals for now -------------------------------------------------------------------
    Protection(
        "retry-delay-is-the-generations-own",
        "a refusal about one request delays that request, and no other",
        (
            Edit(
                SUBMIT,
                "        if error.code == TOO_MANY or not flow.is_throttling(error):\n            return\n",
                "        if error.code == TOO_MANY:\n            return\n",
            ),
        ),
        (
            f"{STAGE}::test_a_busy_answer_delays_that_generation_alone",
            f"{ANSWERS}::test_an_error_of_the_provider[error-SERVICE_BUSY-mapped]",
        ),
    ),
    Protection(
        "retry-delay-grows",
        "a generation that is refused again and again is tried more and more seldom",
        (
            Edit(
                RULES_OF_FLOW,
                "RETRY_BASE * RETRY_GROWTH ** min(max(refusals, 1) - 1, 64)",
                "RETRY_BASE * RETRY_GROWTH ** min(refusals, 0)",
            ),
        ),
        (
            f"{STAGE}::test_the_retry_delay_grows_with_each_refusal_and_is_capped",
            f"{PURE}::test_retry_delay_has_full_jitter_and_grows_to_its_bound",
        ),
    ),
    Protection(
        "refusals-are-bounded-in-time",
        "what is refused for too long fails, with what the provider said",
        (
            Edit(
                SUBMIT,
                "        if refusals.since is not None and refusals.since > rt.settings.retry_for:\n",
                "        if refusals.since is not None and refusals.since > 1e9:\n",
            ),
        ),
        (f"{STAGE}::test_refusals_for_longer_than_retry_for_fail_it_with_the_providers_code",),
    ),
    Protection(
        "the-often-refused-delay-no-other",
        "a Retry-After for one that is refused again and again is its own",
        (
            Edit(
                SUBMIT,
                "        if refusals.count > (_LONE_RATE_REFUSALS if",
                "        if refusals.count > 10**6 + (_LONE_RATE_REFUSALS if",
            ),
        ),
        (f"{STAGE}::test_retry_after_for_a_generation_that_was_refused_twice_delays_it_alone",),
    ),
    Protection(
        "retry-after-holds-every-request",
        "Retry-After is honoured by all requests of all workers",
        (
            Edit(
                "worker/limiter.py",
                "        while (pause := self._flow().resume_in) > 0:\n",
                "        while (pause := 0.0) > 0:\n",
            ),
        ),
        (
            f"{STAGE}::test_throttling_stops_every_request_for_retry_after_and_lowers_the_rate",
            f"{RATE}::test_pause_holds_every_request",
        ),
    ),
    Protection(
        "longer-wait-is-not-shortened",
        "a longer Retry-After is not shortened by a shorter one",
        (
            Edit(
                EVIDENCE,
                '{"resume_at": func.greatest(f.resume_at, in_seconds(pause))}',
                '{"resume_at": in_seconds(pause)}',
            ),
        ),
        (f"{FLOW}::test_longest_retry_after_is_honoured",),
    ),
    Protection(
        "searching-is-throttled-too",
        "throttling of the list slows the fleet like that of a submit",
        (
            Edit(
                "worker/stages/early_scan.py",
                "            common.report(rt, error)\n",
                "            log.debug('%s %s', rt, error)\n",
            ),
        ),
        (f"{RESOLVE}::test_throttling_while_the_list_is_read_slows_the_fleet[early]",),
    ),
    # --- outages ----------------------------------------------------------------------------
    Protection(
        "outage-is-probed-one-at-a-time",
        "of an outage one POST is sent, and the others are put back",
        (
            Edit(
                EVIDENCE,
                "        .where(f.account == account, f.probe_at <= func.now())\n",
                "        .where(f.account == account, f.probe_at.is_not(None))\n",
            ),
        ),
        (
            f"{STAGE}::test_an_outage_sends_one_probe_and_puts_the_others_back",
            f"{INTENT}::test_a_due_probe_of_an_outage_makes_one_intent",
            f"{FLOW}::test_probe_is_given_to_one_of_many_concurrent_callers",
        ),
    ),
    Protection(
        "probes-are-spaced",
        "nothing is admitted in an outage before its next probe is due",
        (
            Edit(
                "models/flow_control/state.py",
                '        return Allowance(1 if state.probe_in <= 0 else 0, "outage")\n',
                '        return Allowance(1, "outage")\n',
            ),
        ),
        (
            f"{STAGE}::test_an_outage_sends_one_probe_and_puts_the_others_back",
            f"{FLOW}::test_outage_allows_a_probe_only_when_due_and_until_it_is_taken",
        ),
    ),
    Protection(
        "outage-stops-what-was-intended",
        "just before the POST: no outage, unless it is the probe",
        (
            Edit(
                "models/submission.py",
                "    if hold is None and flow.outage_age is not None and not intent.probe:\n",
                "    if hold is None and flow.outage_age is not None and not intent:\n",
            ),
        ),
        (f"{STAGE}::test_an_outage_that_begins_after_the_intent_stops_the_post",),
    ),
    Protection(
        "outage-ends-with-a-success",
        "the first success ends an outage, and submission is ramped up",
        (
            Edit(
                SUBMIT,
                "        if self._outage and evidence.recovered(conn):\n",
                "        if self._outage and not evidence:\n",
            ),
        ),
        (
            f"{STAGE}::test_a_probe_that_succeeds_ends_the_outage_and_starts_a_ramp",
            f"{STAGE}::test_a_refusal_of_the_work_itself_ends_an_outage",
        ),
    ),
    # --- limits -----------------------------------------------------------------------------
    Protection(
        "limit-has-a-floor",
        "a concurrency limit has floor 1",
        (
            Edit(
                RULES_OF_FLOW,
                "        value = max(1, min(self.value - 1 if fresh else self.value, present))\n",
                "        value = min(self.value - 1 if fresh else self.value, present)\n",
            ),
            Edit(
                EVIDENCE,
                "        limit = ConcurrencyLimit(max(1, present), max(1, present) + 1, 0.0)\n",
                "        limit = ConcurrencyLimit(present, present + 1, 0.0)\n",
            ),
        ),
        (
            f"{FLOW}::test_limit_is_one_at_least",
            f"{PURE}::test_concurrency_limit_is_never_below_one_and_a_refusal_never_raises_it",
        ),
    ),
    Protection(
        "limit-is-lowered-once",
        "a refusal of what was sent before the last change does not lower the limit again",
        (
            Edit(
                EVIDENCE,
                "        fresh = started_ago is not None and float(started_ago) <= current.age\n",
                "        fresh = started_ago is not None\n",
            ),
        ),
        (
            f"{STAGE}::test_two_refusals_of_posts_sent_at_once_lower_the_limit_once",
            f"{FLOW}::test_refusal_of_a_post_sent_before_the_limit_lowers_nothing_twice",
        ),
    ),
    Protection(
        "limit-is-lowered",
        "CONCURRENCY_LIMIT_REACHED lowers how many may be at work",
        (
            Edit(
                SUBMIT,
                "            limit = evidence.concurrency_refused(conn, intent.generation_id, intent.attempt)\n",
                "            limit = 0\n",
            ),
        ),
        (
            f"{ANSWERS}::test_a_limit_is_learned_and_never_falls_below_one",
            f"{STAGE}::test_a_concurrency_refusal_lowers_the_limit_and_leaves_it_uncertain",
        ),
    ),
    Protection(
        "limit-grows-again",
        "a concurrency limit is exceeded by one now and then",
        (
            Edit(
                EVIDENCE,
                "    if grown is not None:\n        _store_limit(conn, account, grown)",
                "    if grown is None:\n        _store_limit(conn, account, limit)",
            ),
        ),
        (f"{FLOW}::test_limit_is_probed_by_one_while_every_slot_is_in_use",),
    ),
    Protection(
        "rate-is-shared",
        "the request rate is shared by all workers",
        (
            Edit(
                "worker/limiter.py",
                "        if self._store is None or self._clock() < self._store_from:\n",
                "        if self._store is not None or self._clock() < self._store_from:\n",
            ),
        ),
        (f"{RATE}::test_two_workers_share_one_rate",),
    ),
    Protection(
        "rate-falls-back",
        "without a store each process keeps the rate alone, and work continues",
        (
            Edit(
                "worker/limiter.py",
                "            self._store_from = self._clock() + _RETRY_STORE\n",
                "            raise\n",
            ),
        ),
        (
            f"{RATE}::test_without_valkey_each_worker_keeps_the_rate_alone",
            f"{RATE}::test_valkey_that_was_never_there_stops_no_request",
        ),
    ),
    # --- pauses -----------------------------------------------------------------------------
    Protection(
        "pause-holds-admission",
        "of what is paused nothing is let in",
        (
            Edit(
                "models/schedule.py",
                'WHERE t.tenant IS NOT NULL AND NOT {paused_sql("t.tenant")}\n',
                "WHERE t.tenant IS NOT NULL\n",
            ),
        ),
        (
            f"{PAUSES}::test_what_is_accepted_waits_and_says_for_what",
            f"{PAUSES}::test_of_a_paused_tenant_alone",
        ),
    ),
    Protection(
        "pause-holds-the-intent",
        "intent: not paused",
        (
            Edit(
                "models/submission.py",
                "        hold=_paused(conn, row) or _flow_hold(conn, row, flow),\n",
                "        hold=_flow_hold(conn, row, flow),\n",
            ),
        ),
        (f"{PAUSES}::test_what_was_let_in_is_put_back_at_its_intent",),
    ),
    Protection(
        "check-reads-the-pause",
        "just before the POST: not paused",
        (
            Edit(
                "models/submission.py",
                "        hold=_paused(conn, row) or hold,\n",
                "        hold=hold,\n",
            ),
        ),
        (
            f"{PAUSES}::test_between_the_intent_and_its_check",
            f"{INTENT}::test_a_pause_that_began_meanwhile_stops_it",
        ),
    ),
    Protection(
        "paused-is-not-ahead",
        "an equal generation does not wait for a paused one",
        (
            Edit(
                "models/schedule.py",
                '               AND NOT {paused_sql("o.tenant")}\n               AND o.wait_reason',
                "               AND o.wait_reason",
            ),
        ),
        (f"{PAUSES}::test_an_equal_generation_of_another_tenant_goes_first_meanwhile",),
    ),
    Protection(
        "over-budget-is-not-ahead",
        "an equal generation does not wait for one whose tenant is over budget",
        (
            Edit(
                "models/schedule.py",
                "\n               AND o.wait_reason IS DISTINCT FROM '{WaitReason.BUDGET}'))\n",
                "))\n",
            ),
        ),
        (f"{BUDGETS}::test_an_older_equal_one_over_budget_does_not_hold_up_another_tenants",),
    ),
    Protection(
        "nothing-is-saved-up-for-the-paused",
        "credits are not saved up for what is paused",
        (
            Edit(
                "models/credit.py",
                '      AND NOT {paused_sql("generations.tenant")}\n      AND created_at',
                "      AND created_at",
            ),
        ),
        (f"{PAUSES}::test_credits_are_not_saved_up_for_what_is_paused",),
    ),
    Protection(
        "actions-are-append-only",
        "what operators did is never altered",
        (
            Edit(
                "alembic/versions/0007_operating.py",
                "    for statement in APPEND_ONLY:\n",
                "    for statement in APPEND_ONLY[:1]:\n",
            ),
        ),
        (f"{PAUSES}::test_what_operators_did_can_not_be_altered",),
    ),
    # --- retries ----------------------------------------------------------------------------
    Protection(
        "refused-for-good-is-never-retried",
        "moderation, copyright, privacy: final, whoever asks",
        (
            Edit(
                "models/operating/retries.py",
                "    if end.error_code in FINAL:\n        return Refusal.FINAL\n",
                "",
            ),
        ),
        (
            "tests/unit/test_retries.py::test_what_the_provider_refused_for_its_content_is_never_retried",
            f"{RETRIES}::test_a_refusal_of_the_content_is_final",
        ),
    ),
    Protection(
        "retried-at-the-end-of-the-chain",
        "an earlier link of the chain does not walk around a refusal",
        (
            Edit(
                "models/operating/retries.py",
                "    if again and row.retried_as is not None:\n",
                "    if again and row.retried_as is not None and not row.request:\n",
            ),
        ),
        (f"{RETRIES}::test_nor_is_it_walked_around_by_an_earlier_link_of_the_chain",),
    ),
    Protection(
        "retried-once",
        "of two that retry it at once one does",
        (
            Edit(
                "models/operating/retries.py",
                "    conn.execute(select(g.id).where(g.id == generation_id).with_for_update())\n",
                "    conn.execute(select(g.id).where(g.id == generation_id))\n",
            ),
        ),
        (
            f"{RETRIES}::test_of_two_that_retry_it_at_once_one_does",
            f"{RETRIES}::test_a_task_that_is_found_in_that_moment_counts",
        ),
    ),
    Protection(
        "given-up-is-not-retried-unsettled",
        "a retry waits until no task of the last attempt can appear",
        (
            Edit(
                "models/operating/retries.py",
                "    if end.unsettled:\n        return Refusal.UNSETTLED\n",
                "",
            ),
        ),
        (f"{RETRIES}::test_what_was_given_up_waits_until_no_task_of_it_can_appear",),
    ),
)
