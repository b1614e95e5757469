"""Gates, limits and the shared rate: what holds work back instead of failing it."""

from tests.protections.protection import Edit, Protection

GATES = "tests/integration/test_balance_and_gates.py"
SQL = "tests/integration/test_gates_sql.py"
ANSWERS = "tests/integration/test_answers.py"
HARD = "tests/integration/test_hard_cases_schedule.py"
SCHEDULE = "tests/integration/test_schedule.py"
DISPATCHER = "tests/integration/test_dispatcher.py"
PAUSES = "tests/integration/test_pauses.py"
BUDGETS = "tests/integration/test_budgets.py"
RETRIES = "tests/integration/test_retries.py"
RATE = "tests/integration/test_limiter_redis.py"
PURE = "tests/unit/test_gates.py"
REOPENING = "tests/integration/test_reopening.py"

MODEL = "models/gates.py"
COMMON = "worker/stages/common.py"

PROTECTIONS = (
    Protection(
        "402-stores-the-estimate",
        "a 402 stores the refused estimate",
        (
            Edit(
                COMMON,
                "                    refused_estimate=estimate,\n",
                "                    refused_estimate=None,\n",
            ),
        ),
        (
            f"{ANSWERS}::test_a_402_keeps_the_estimate_that_was_refused",
            f"{GATES}::test_a_dear_row_waits_while_cheap_ones_pass",
        ),
    ),
    Protection(
        "rows-that-fit-the-balance-pass",
        "a dear row's 402 does not hold up what the balance covers",
        (
            Edit(
                MODEL,
                "            if gate.name is GateName.CREDIT and self._affordable(gate, estimate):\n",
                "            if gate.name is GateName.CREDIT and not gate.name:\n",
            ),
            Edit(
                MODEL,
                '            return min(self.remaining, gate.refused_estimate - Decimal("0.0001"))\n',
                "            return Decimal(-1)\n",
            ),
        ),
        (
            f"{GATES}::test_a_dear_row_waits_while_cheap_ones_pass",
            f"{PURE}::test_a_dear_refusal_does_not_hold_up_cheaper_work",
        ),
    ),
    Protection(
        "402-fails-nothing",
        "402 holds: what is dearer than what was refused waits",
        (
            Edit(
                MODEL,
                "            and estimate < gate.refused_estimate\n",
                "            and gate.refused_estimate\n",
            ),
        ),
        (f"{PURE}::test_a_dear_refusal_does_not_hold_up_cheaper_work",),
    ),
    Protection(
        "401-holds-everything",
        "401 closes the gate: nothing new is sent, nothing fails",
        (
            Edit(
                "api_client/verdicts.py",
                '"INVALID_API_KEY": _row(_H, _H, _H, _H, _H)',
                '"INVALID_API_KEY": _row(_P, _H, _H, _H, _H)',
            ),
        ),
        (
            f"{GATES}::test_a_bad_key_holds_everything_and_fails_nothing",
            f"{ANSWERS}::test_an_error_of_the_provider[error-INVALID_API_KEY-mapped]",
        ),
    ),
    Protection(
        "retry-after-holds-everybody",
        "429 and 503 close the backoff gate for as long as Retry-After says",
        (
            Edit(
                COMMON,
                "                if error.retry_after:\n",
                "                if error.retry_after and not error.endpoint:\n",
            ),
        ),
        (f"{ANSWERS}::test_a_refusal_holds_everybody_for_as_long_as_it_says",),
    ),
    Protection(
        "longer-wait-is-not-shortened",
        "a longer wait is not shortened by a shorter one",
        (
            Edit(
                MODEL, "opens_at=func.greatest(_gates.c.opens_at, opens_at),", "opens_at=opens_at,"
            ),
        ),
        (
            f"{GATES}::test_a_longer_wait_is_not_shortened_by_a_shorter_one",
            f"{SQL}::test_a_shorter_wait_does_not_shorten_a_longer_one",
        ),
    ),
    Protection(
        "backoff-grows",
        "a storm closes the gate for longer each time",
        (
            Edit(
                MODEL,
                "_gates.c.failures + (0 if was_closed else 1)",
                "_gates.c.failures",
            ),
        ),
        (f"{HARD}::test_the_backoff_gate_closes_for_longer_each_time",),
    ),
    Protection(
        "storm-counts-once",
        "many refusals of one moment are one closing",
        (
            Edit(
                MODEL,
                "_gates.c.failures + (0 if was_closed else 1)",
                "_gates.c.failures + 1",
            ),
        ),
        (f"{HARD}::test_many_refusals_of_one_moment_count_as_one",),
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
        (f"{SQL}::test_each_probe_is_handed_out_once", f"{GATES}::test_a_probe_is_handed_out_once"),
    ),
    Protection(
        "probes-are-not-put-off",
        "many refusals do not put a planned probe off",
        (
            Edit(
                MODEL, "probe_at=func.coalesce(_gates.c.probe_at, probe_at),", "probe_at=probe_at,"
            ),
        ),
        (f"{SQL}::test_refusals_do_not_put_the_probe_off",),
    ),
    Protection(
        "gates-open-by-themselves",
        "an answered balance opens the gates that it may",
        (
            Edit(
                MODEL,
                "    opened = [GateName.API_KEY] if open_(conn, GateName.API_KEY) else []\n",
                "    opened: list[GateName] = []\n",
            ),
        ),
        (
            f"{SQL}::test_an_answered_balance_shows_that_the_key_is_good",
            f"{DISPATCHER}::test_a_closed_gate_is_probed_and_opens_by_itself",
        ),
    ),
    Protection(
        "running-is-followed-behind-gates",
        "running tasks are followed while every gate is closed",
        (
            Edit(
                "worker/stages/poll.py",
                "    if row is None or row.status != Status.RUNNING or row.remote_task_id is None:\n        return\n",
                "    if row is None or row.status != Status.RUNNING or row.remote_task_id is None:\n        return\n"
                "    from models import gates\n"
                "    with rt.engine.connect() as conn:\n"
                "        if gates.sending(conn).closed:\n            return\n",
            ),
        ),
        (f"{GATES}::test_running_tasks_are_followed_while_every_gate_is_closed",),
    ),
    # --- limits -----------------------------------------------------------------------------
    Protection(
        "limit-has-a-floor",
        "a learned limit has floor 1",
        (
            Edit(
                "models/schedule.py",
                "    first = Limit(max(1, present), max(1, present) + 1, RAISE_AFTER)\n",
                "    first = Limit(present, max(1, present) + 1, RAISE_AFTER)\n",
            ),
            Edit(
                "models/schedule.py",
                "        value = max(1, min(self.value - 1 if fresh else self.value, present))\n",
                "        value = min(self.value - 1 if fresh else self.value, present)\n",
            ),
        ),
        (
            f"{SCHEDULE}::test_what_was_there_beside_a_refusal_is_the_limit_and_never_under_one[0-0-1]",
            f"{SCHEDULE}::test_a_refusal_under_the_limit_lowers_it",
        ),
    ),
    Protection(
        "limit-grows-again",
        "a learned limit grows again",
        (
            Edit(
                "models/schedule.py",
                "            .values(value=min(limit.raised, configured), changed_at=func.now())\n",
                "            .values(value=limit.value, changed_at=func.now())\n",
            ),
        ),
        (f"{SCHEDULE}::test_a_raise_needs_time_and_slots_that_are_in_use",),
    ),
    Protection(
        "limit-grows-quickly-beyond-what-was-refused",
        "a refusal that was of its moment doesn't slow the rest of the day",
        (
            Edit(
                "models/schedule.py",
                "(1 if self.value < self.refused else max(1, self.value // 2))",
                "1",
            ),
        ),
        (f"{SCHEDULE}::test_a_refusal_that_was_of_its_moment_does_not_slow_the_rest_of_the_day",),
    ),
    Protection(
        "limit-is-learned",
        "CONCURRENCY_LIMIT_REACHED lowers what is in flight",
        (
            Edit(
                "worker/stages/submit.py",
                "            limit = schedule.learn_lower(conn, intent.generation_id, intent.attempt)\n",
                "            limit = schedule.in_flight(conn)\n",
            ),
        ),
        (f"{ANSWERS}::test_a_limit_is_learned_and_never_falls_below_one",),
    ),
    Protection(
        "rate-is-shared",
        "the request rate is shared by all workers",
        (
            Edit(
                "worker/limiter.py",
                "        if self._store is not None and self._clock() >= self._shared_from:\n",
                "        if self._store is None and self._clock() < self._shared_from:\n",
            ),
        ),
        (f"{RATE}::test_two_workers_share_one_rate",),
    ),
    Protection(
        "rate-falls-back",
        "without Redis each process keeps the rate by itself, and work goes on",
        (
            Edit(
                "worker/limiter.py",
                "                self._shared_from = self._clock() + _RETRY_SHARED\n",
                "                raise\n",
            ),
        ),
        (
            f"{RATE}::test_without_valkey_each_worker_limits_itself_and_goes_on",
            f"{RATE}::test_a_valkey_that_was_never_there_stops_nobody",
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
                "gate=_paused(conn, row) or _held_back(",
                "gate=_held_back(",
            ),
        ),
        (f"{PAUSES}::test_what_was_let_in_is_put_back_at_its_intent",),
    ),
    Protection(
        "check-reads-the-pause",
        "just before the POST: not paused",
        (
            Edit(
                "models/decisions.py",
                "    if facts.pause is not None:\n        return facts.pause\n",
                "",
            ),
        ),
        (f"{PAUSES}::test_between_the_intent_and_its_check",),
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
    Protection(
        "the-often-refused-let-others-go-first",
        "one request that is always put off does not close the gate to everybody",
        (
            Edit(
                "worker/stages/submit.py",
                "gates.aside(conn, intent.generation_id) if put_off else 1.0",
                "1.0",
            ),
        ),
        (f"{REOPENING}::test_one_that_is_refused_again_and_again_does_not_hold_up_the_others",),
    ),
)
