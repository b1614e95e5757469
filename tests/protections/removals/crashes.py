"""Each crash point with what brings the work back: a real worker dies there, another goes on."""

from tests.protections.protection import Edit, Protection

STOPPED = "tests/acceptance/test_stopped_worker.py"
DEATH = "tests/acceptance/test_crash_points.py::test_death_at_a_crash_point_costs_nothing"

# The broker brings back what was not acknowledged when the worker died.
NO_REDELIVERY = Edit(
    "worker/celeryconfig.py",
    '    "visibility_timeout": _setting("lease"),\n',
    '    "visibility_timeout": 10**6,\n',
)

_NEVER_DUE_AGAIN = (
    NO_REDELIVERY,
    Edit(
        "models/schedule.py",
        '            lease=g.lease + 1,\n            due_at=in_given("leased_for"),\n',
        "            lease=g.lease + 1,\n            due_at=in_seconds(10**7),\n",
    ),
    Edit(
        "models/workers.py",
        ".values(lease=g.lease + 1, due_at=func.now(), leased_until=None)",
        ".values(lease=g.lease + 1, leased_until=None)",
    ),
    Edit(
        "models/transitions/before.py",
        '"leased_for": timedelta(seconds=lease_seconds)',
        '"leased_for": timedelta(seconds=10**7)',
    ),
    Edit(
        "worker/stages/common.py",
        "            .values(due_at=in_seconds(seconds), leased_until=in_seconds(seconds))\n",
        "            .values(due_at=in_seconds(10**7), leased_until=in_seconds(seconds))\n",
    ),
)

PROTECTIONS = (
    Protection(
        "crash-reclaimed-by-the-lease",
        "a row whose worker died is claimed again, once that is noticed or its lease ends",
        _NEVER_DUE_AGAIN,
        tuple(
            f"{DEATH}[{point}]"
            for point in (
                "dispatch.after_claim",
                "upload.before_put",
                "upload.after_put",
                "submit.before_intent",
                "resolve.after_reading",
                "poll.after_get",
            )
        ),
    ),
    Protection(
        "crash-after-the-intent-is-resolved",
        "a row that died as submitting is resolved: adopted, or sent again",
        (
            Edit(
                "models/watch.py",
                "g.status.in_([Status.SUBMITTING, Status.UNCERTAIN]),",
                "g.status.in_([Status.UNCERTAIN]),",
            ),
        ),
        (
            f"{DEATH}[submit.after_intent]",
            f"{DEATH}[submit.after_check]",
            f"{DEATH}[submit.after_post]",
        ),
    ),
    Protection(
        "crash-after-the-post-is-adopted",
        "a task whose answer died with its worker is known by its drawn seed",
        (
            Edit(
                "worker/stages/submit.py",
                '{"seed": intent.seed}',
                '{"seed": intent.seed ^ 1}',
            ),
        ),
        (f"{DEATH}[submit.after_post]",),
    ),
    Protection(
        "crash-after-the-result-is-polled",
        "a running row is due by itself, whoever submitted it",
        (
            Edit(
                "models/transitions/answers.py",
                '        "look_in": answer.look_in,\n',
                '        "look_in": 10.0**7,\n',
            ),
        ),
        (f"{DEATH}[submit.after_result]",),
    ),
    Protection(
        "crash-after-the-decision-is-polled",
        "an adopted row is due by itself, whoever decided",
        (
            Edit(
                "models/transitions/answers.py",
                '                "polls": 0,\n                "due_at": func.now(),\n',
                '                "polls": 0,\n                "due_at": in_seconds(10**7),\n',
            ),
        ),
        (f"{DEATH}[resolve.after_decision]",),
    ),
    Protection(
        "crash-before-the-commit-is-redelivered",
        "a request is acknowledged only when its row is committed",
        (
            Edit(
                "worker/tasks.py",
                "bind=True, acks_late=True, reject_on_worker_lost=True",
                "bind=True, acks_late=False",
            ),
            # An acknowledgement that is early needs a moment to reach the broker.
            Edit(
                "worker/stages/accept.py",
                '    reached("accept.before_commit")\n',
                '    __import__("time").sleep(2)\n    reached("accept.before_commit")\n',
            ),
        ),
        (f"{DEATH}[accept.before_commit]",),
    ),
    Protection(
        "crash-after-the-commit-is-one-row",
        "a message that comes again after its commit makes no second row",
        (
            Edit(
                "worker/stages/accept.py",
                "            generation_id=generation_id,\n            private",
                "            private",
            ),
        ),
        (f"{DEATH}[accept.after_commit]",),
    ),
    Protection(
        "crash-notice-is-reclaimed-by-its-lease",
        "a notice whose worker died is delivered by another when its lease ends",
        (
            Edit(
                "models/notices/delivery.py",
                "due_at = now() + make_interval(secs => :seconds)\n    FROM free",
                "due_at = now() + make_interval(days => 10)\n    FROM free",
            ),
            # The broker brings back what was not acknowledged when the worker died.
            _NEVER_DUE_AGAIN[0],
        ),
        (f"{DEATH}[deliver.before_send]", f"{DEATH}[deliver.after_send]"),
    ),
    Protection(
        "stopped-worker-checks",
        "a worker that was stopped beyond B and its lease sends nothing when it wakes",
        (
            Edit("models/decisions.py", "    return age > send_budget\n", "    return age < 0\n"),
            Edit(
                "models/decisions.py",
                "    if facts.status is not Status.SUBMITTING or facts.attempt != intended:\n"
                "        return TAKEN_OVER\n",
                "",
            ),
        ),
        (f"{STOPPED}::test_stopped_beyond_its_lease_before_the_check_it_sends_nothing",),
    ),
    Protection(
        "stopped-worker-is-flagged",
        "what a worker stopped between check and write pays twice is never silent",
        (
            Edit(
                "worker/stages/submit.py",
                "        if moved is None and not watch.followed(conn, [answer.task_id]):\n",
                "        if moved is None and not answer.task_id:\n",
            ),
        ),
        (f"{STOPPED}::test_stopped_between_check_and_write_the_second_task_is_flagged",),
    ),
)
