"""What an answer of the POST means, and that the POST is one."""

from tests.protections.protection import Edit, Protection

ANSWERS = "tests/integration/test_answers.py"
STAGE = "tests/integration/test_submit_stage.py"
HARD = "tests/integration/test_hard_cases_answers.py"
WIRE = "tests/integration/test_api_client_wire.py"
MOVES = "tests/integration/test_transitions.py"

SUBMIT = "worker/stages/submit.py"
VERDICTS = "api_client/verdicts.py"
CALLS = "api_client/calls.py"
LIFECYCLE = "models/lifecycle.py"

_OURS = '        Event.SUBMIT: _t(\n            _S.RUNNING,\n            "the answer named the remote task, late or not",\n'

PROTECTIONS = (
    Protection(
        "submit-is-not-repeated",
        "one POST: the submit stage asks for no retry",
        (Edit(SUBMIT, "retry=False, throttled=True", "throttled=True"),),
        (f"{ANSWERS}::test_an_error_of_the_provider[error-SERVICE_BUSY-mapped]",),
    ),
    Protection(
        "doubt-is-not-repeated",
        "an ambiguous answer of a submit is never repeated by the client",
        (
            Edit(
                CALLS,
                "or error.disposition is not Disposition.RETRY",
                "or error.disposition is Disposition.PERMANENT",
            ),
        ),
        (
            f"{WIRE}::test_a_submit_whose_answer_is_lost_is_ambiguous_and_sent_once",
            f"{WIRE}::test_a_submit_with_a_doubtful_answer_is_ambiguous_and_sent_once",
        ),
    ),
    Protection(
        "no-redirect",
        "no redirect is followed, and the key goes with none",
        (Edit("api_client/transport.py", "allow_redirects=False", "allow_redirects=True"),),
        (f"{WIRE}::test_redirects_are_not_followed",),
    ),
    Protection(
        "late-answer-counts-uncertain",
        "a late answer with a task id still counts: uncertain",
        (
            Edit(
                LIFECYCLE,
                f"{_OURS}            _S.SUBMITTING,\n            _S.UNCERTAIN,\n",
                f"{_OURS}            _S.SUBMITTING,\n",
            ),
        ),
        (f"{STAGE}::test_a_late_answer_after_the_lease_was_lost[uncertain]",),
    ),
    Protection(
        "late-answer-counts-accepted",
        "a late answer with a task id still counts: accepted",
        (
            Edit(
                LIFECYCLE,
                f"{_OURS}            _S.SUBMITTING,\n            _S.UNCERTAIN,\n            _S.ACCEPTED,\n",
                f"{_OURS}            _S.SUBMITTING,\n            _S.UNCERTAIN,\n",
            ),
        ),
        (
            f"{STAGE}::test_a_late_answer_after_the_lease_was_lost[resolved]",
            f"{STAGE}::test_frozen_between_check_and_write_but_not_yet_sent_again_it_counts",
        ),
    ),
    Protection(
        "fenced-by-attempt",
        "an answer counts only for the row's latest attempt",
        (
            Edit(
                LIFECYCLE,
                "            _S.UPLOADING,\n            fence=_ATTEMPT,\n        ),\n        Event.ADOPT",
                "            _S.UPLOADING,\n        ),\n        Event.ADOPT",
            ),
        ),
        (
            f"{MOVES}::test_a_stale_caller_changes_nothing[submitted]",
            f"{HARD}::test_no_further_post_while_a_late_answer_may_be_the_generations_own_task",
        ),
    ),
    Protection(
        "second-task-flagged-by-its-answer",
        "a late answer of an older attempt is recorded as a second task",
        (
            Edit(
                SUBMIT,
                "        if moved is None and not watch.followed(conn, [answer.task_id]):\n",
                "        if moved is None and not answer.task_id:\n",
            ),
        ),
        (
            f"{STAGE}::test_frozen_between_check_and_write_it_is_flagged_and_never_silent",
            f"{STAGE}::test_a_late_answer_after_the_lease_was_lost[sent again]",
        ),
    ),
    Protection(
        "definite-outcome-stays",
        "a definite outcome of an attempt is never overwritten",
        (
            Edit(
                "models/transitions/answers.py",
                "    return or_(a.outcome.is_(None), a.outcome.in_(OPEN_OUTCOMES))\n",
                "    return or_(a.outcome.is_(None), a.outcome.is_not(None))\n",
            ),
        ),
        (f"{MOVES}::test_a_definite_outcome_is_never_overwritten",),
    ),
    Protection(
        "refusal-only-by-the-envelope",
        "a refusal is definite only in the provider's envelope",
        (
            Edit(
                VERDICTS,
                '    if endpoint == "submit" and not code:\n',
                '    if endpoint == "submit" and not code and not http_status:\n',
            ),
        ),
        (
            f"{HARD}::test_a_bare_status_after_creation_leaves_the_outcome_in_doubt",
            f"{HARD}::test_a_bare_401_after_creation_is_not_paid_twice_where_no_seed_is_shown",
            f"{ANSWERS}::test_any_other_answer[bare_after-401]",
        ),
    ),
    Protection(
        "bare-503-is-ambiguous",
        "a bare 503 from something in between is ambiguous",
        (
            Edit(
                VERDICTS,
                '    if endpoint == "submit" and not code:\n',
                '    if endpoint == "submit" and not code and http_status == 503:\n'
                "        return _R\n"
                '    if endpoint == "submit" and not code:\n',
            ),
        ),
        (f"{ANSWERS}::test_any_other_answer[bare_after-503-1]",),
    ),
    Protection(
        "unknown-code-is-ambiguous",
        "an unknown code on 2xx or 5xx is ambiguous",
        (Edit(VERDICTS, 'return _A if endpoint == "submit" else _R', "return _R"),),
        (
            f"{ANSWERS}::test_any_other_answer[error-NEVER_HEARD_OF-200]",
            f"{ANSWERS}::test_any_other_answer[error-NEVER_HEARD_OF-500]",
        ),
    ),
    Protection(
        "bare-502-is-ambiguous",
        "a gateway's HTML is ambiguous",
        (
            Edit(
                VERDICTS,
                '    if endpoint == "submit" and not code:\n',
                '    if endpoint == "submit" and not code and http_status == 502:\n'
                "        return _R\n"
                '    if endpoint == "submit" and not code:\n',
            ),
        ),
        (f"{ANSWERS}::test_any_other_answer[bare-502]",),
    ),
    Protection(
        "submit-failed-is-ambiguous",
        "TASK_SUBMIT_FAILED, CREDIT_DEDUCT_FAILED and INTERNAL_ERROR: the task may exist",
        (
            Edit(
                VERDICTS,
                '"TASK_SUBMIT_FAILED": _row(submit=_A, get=_P)',
                '"TASK_SUBMIT_FAILED": _row(submit=_R, get=_P)',
            ),
            Edit(
                VERDICTS,
                '"CREDIT_DEDUCT_FAILED": _row(submit=_A, get=_P)',
                '"CREDIT_DEDUCT_FAILED": _row(submit=_R, get=_P)',
            ),
            Edit(VERDICTS, '"INTERNAL_ERROR": _UNKNOWN_OUTCOME', '"INTERNAL_ERROR": _BUSY'),
        ),
        (
            f"{ANSWERS}::test_any_other_answer[error_after-TASK_SUBMIT_FAILED]",
            f"{ANSWERS}::test_any_other_answer[error_after-CREDIT_DEDUCT_FAILED]",
            f"{ANSWERS}::test_any_other_answer[error_after-INTERNAL_ERROR]",
        ),
    ),
    Protection(
        "queued-is-ambiguous",
        "429 task is queued without an id: the task may exist",
        (
            Edit(
                VERDICTS,
                '"CONCURRENCY_LIMIT_REACHED": _UNKNOWN_OUTCOME',
                '"CONCURRENCY_LIMIT_REACHED": _BUSY',
            ),
        ),
        (f"{ANSWERS}::test_any_other_answer[concurrency-created]",),
    ),
    Protection(
        "queued-with-an-id-is-a-success",
        "429 task is queued with an id: that task is followed",
        (
            Edit(
                CALLS,
                'envelope.code == "CONCURRENCY_LIMIT_REACHED" and envelope.task_id:',
                'envelope.code == "CONCURRENCY_LIMIT_REACHED" and not envelope.code:',
            ),
        ),
        (f"{ANSWERS}::test_any_other_answer[concurrency-created_with_id]",),
    ),
    Protection(
        "refusal-that-names-a-task",
        "a refusal that names a task is none",
        (
            Edit(
                SUBMIT,
                "match Disposition.AMBIGUOUS if error.task_id else error.disposition:",
                "match error.disposition:",
            ),
        ),
        (f"{STAGE}::test_a_refusal_that_names_a_task_is_none",),
    ),
    Protection(
        "success-without-a-result-is-ambiguous",
        "2xx without a usable body is ambiguous",
        (Edit(VERDICTS, "    SUCCESS: _UNKNOWN_OUTCOME,\n", "    SUCCESS: _BUSY,\n"),),
        (
            f"{ANSWERS}::test_any_other_answer[null_result]",
            f"{ANSWERS}::test_any_other_answer[no_task_id]",
        ),
    ),
    Protection(
        "sent-and-lost-is-ambiguous",
        "connection lost after sending: possibly processed",
        (Edit("api_client/transport.py", "if state.sent is None:", "if state.total:"),),
        (
            f"{ANSWERS}::test_any_other_answer[lost]",
            f"{ANSWERS}::test_any_other_answer[cut_json-True]",
            f"{ANSWERS}::test_an_answer_that_takes_too_long",
        ),
    ),
    Protection(
        "error-in-the-worker-is-doubt",
        "whatever goes wrong after the intent, the POST may have been written",
        (
            Edit(
                SUBMIT,
                "            self._record(lambda conn: self._uncertain(conn, why))\n",
                "            self._record(lambda conn: why)\n",
            ),
        ),
        (f"{STAGE}::test_a_post_that_breaks_in_the_worker_is_in_doubt",),
    ),
    Protection(
        "answer-outlives-the-database",
        "an answer with a task id is written again and again",
        (
            Edit(
                "worker/stages/common.py",
                "            if time.monotonic() + pause > deadline:\n",
                "            if time.monotonic() + pause > 0:\n",
            ),
        ),
        (f"{STAGE}::test_an_answer_outlives_an_outage_of_the_database",),
    ),
    Protection(
        "odd-values-cost-themselves",
        "what a table can't hold is cut from an answer",
        (Edit("models/storable.py", 'return value.replace("\\x00", "")', "return value"),),
        (
            f"{HARD}::test_nul_in_a_refusal_is_recorded",
            f"{HARD}::test_a_failure_with_nul_in_its_message_ends_the_generation",
        ),
    ),
)
