"""Notices: none lost, none invented, in order, signed, and to nobody inside the network."""

from tests.protections.protection import Edit, Protection

OUTBOX = "tests/integration/test_outbox.py"
DELIVER = "tests/integration/test_deliver_stage.py"
CLI = "tests/integration/test_notices_cli.py"
DISPATCH = "tests/integration/test_dispatcher.py"

MODEL = "models/notices/delivery.py"
STAGE = "worker/stages/deliver.py"
HOOKS = "worker/webhooks.py"

PROTECTIONS = (
    Protection(
        "notice-with-the-transition",
        "a transition puts out its notices in its own transaction",
        (
            Edit(
                "models/transitions/core.py",
                "    notices.write(conn, [row.id for row in rows if row.noticed])\n",
                "",
            ),
        ),
        (
            f"{OUTBOX}::test_the_end_is_told_to_each_target_and_what_leads_to_it_is_not",
            f"{OUTBOX}::test_many_that_are_moved_at_once_are_told_one_by_one",
        ),
    ),
    Protection(
        "notice-numbered-in-the-row",
        "notices of a generation are numbered without gaps and doubles",
        (
            Edit(
                "models/notices/writing.py",
                "    return case((wanted(target), g.notified + 1), else_=g.notified)\n",
                "    return case((wanted(target), g.notified), else_=g.notified)\n",
            ),
        ),
        (f"{OUTBOX}::test_each_change_is_told_and_numbered_where_that_is_wanted",),
    ),
    Protection(
        "notice-of-a-refusal-at-the-door",
        "who sent a request that is refused is told",
        (
            Edit(
                "models/intake.py",
                "    if created and refused.notify is not None:\n",
                "    if False:\n",
            ),
        ),
        (f"{OUTBOX}::test_a_request_that_is_refused_at_the_door_is_told",),
    ),
    Protection(
        "notices-in-order",
        "a notice goes after all earlier ones of its generation and target",
        (
            Edit(
                MODEL,
                "      AND earlier.sequence < n.sequence AND earlier.status = 'pending'\n",
                "      AND false\n",
            ),
        ),
        (
            f"{OUTBOX}::test_the_next_of_a_generation_goes_when_the_one_before_is_settled",
            f"{DELIVER}::test_changes_come_in_their_order",
        ),
    ),
    Protection(
        "notice-fenced-by-its-lease",
        "who lost a notice sends and settles nothing",
        (
            Edit(
                MODEL,
                "    WHERE n.id = :id AND n.lease = :lease AND n.status = 'pending'\n",
                "    WHERE n.id = :id AND n.status = 'pending'\n",
            ),
        ),
        (f"{DELIVER}::test_a_claim_that_was_lost_sends_nothing",),
    ),
    Protection(
        "receiver-has-little-room",
        "one receiver gets half of a process's room, and a few at most",
        (Edit(MODEL, "ORDER BY n.due_at LIMIT greatest(open.room, 0)", "ORDER BY n.due_at"),),
        (
            f"{OUTBOX}::test_one_receiver_gets_half_of_the_room_and_a_few_at_most",
            f"{OUTBOX}::test_a_failing_receiver_is_left_alone_then_tried_with_one",
        ),
    ),
    Protection(
        "receiver-left-alone",
        "a receiver that fails is left alone",
        (
            Edit(
                MODEL,
                "WHERE leaps.receiver IS NOT NULL AND (r.retry_at IS NULL OR r.retry_at <= now())",
                "WHERE leaps.receiver IS NOT NULL",
            ),
        ),
        (
            f"{OUTBOX}::test_a_failing_receiver_is_left_alone_then_tried_with_one",
            f"{DELIVER}::test_retry_after_is_honoured_for_all_that_is_for_it_within_bounds",
        ),
    ),
    Protection(
        "webhooks-signed-by-all-secrets",
        "every secret signs, so that secrets can be changed",
        (Edit(HOOKS, "for secret in self.secrets]", "for secret in self.secrets[:1]]"),),
        (f"{DELIVER}::test_all_secrets_sign_while_they_are_changed",),
    ),
    Protection(
        "webhooks-stamped-by-the-database",
        "a worker whose clock is off stamps as all others do",
        (Edit(HOOKS, "        now = at.astimezone(UTC)\n", "        now = datetime.now(UTC)\n"),),
        (f"{DELIVER}::test_a_worker_whose_clock_is_off_stamps_by_the_databases",),
    ),
    Protection(
        "webhooks-never-unsigned",
        "without a secret no webhook is sent",
        (
            Edit(
                STAGE,
                "    if notice.target is Target.WEBHOOK and not _secrets(rt):\n",
                "    if False:\n",
            ),
        ),
        (f"{DELIVER}::test_nothing_is_sent_unsigned",),
    ),
    Protection(
        "webhooks-to-public-addresses",
        "the address that a name leads to is checked when it is connected to",
        (
            Edit(
                HOOKS,
                "        if self.private:\n            return _OpenAdapter",
                "        if True:\n            return _OpenAdapter",
            ),
        ),
        (
            f"{DELIVER}::test_private_addresses_are_refused_once_looked_up",
            f"{DELIVER}::test_a_name_that_leads_to_a_private_address_is_refused",
        ),
    ),
    Protection(
        "webhooks-follow-no-redirect",
        "a receiver sends us nowhere else",
        (Edit(HOOKS, "allow_redirects=False", "allow_redirects=True"),),
        (f"{DELIVER}::test_no_redirect_is_followed",),
    ),
    Protection(
        "webhooks-have-a-bound",
        "a receiver that trickles holds a thread for seconds, not hours",
        (
            Edit(
                HOOKS,
                "        state = wire.Wire(timeout=total, total=total, max_idle=0.0)\n",
                "        state = wire.Wire(timeout=total, total=10**6, max_idle=0.0)\n",
            ),
        ),
        (f"{DELIVER}::test_one_that_trickles_has_a_bound",),
    ),
    Protection(
        "notice-goes-when-its-video-is-stored",
        "a notice that waits for the archive is due as soon as the archive has it",
        (
            Edit(
                "models/artifacts/storing.py",
                "        _tell(conn, key, Note.ARCHIVED, detail)\n"
                "        delivery.results_settled(conn, key.generation_id)\n",
                "        _tell(conn, key, Note.ARCHIVED, detail)\n",
            ),
        ),
        (f"{DELIVER}::test_it_goes_as_soon_as_the_video_is_stored_or_lost[False]",),
    ),
    Protection(
        "notice-not-forgotten-by-the-archive",
        "a result stored while its notice is looked at is not missed",
        (Edit(STAGE, "notice.generation_id, hold=True)", "notice.generation_id)"),),
        (f"{DELIVER}::test_one_that_is_looked_at_while_its_video_is_stored_is_not_forgotten",),
    ),
    Protection(
        "side-work-takes-turns",
        "a backlog of downloads keeps no notices waiting",
        (
            Edit(
                "worker/dispatcher.py",
                "        self._side_work.append(self._side_work.pop(0))\n",
                "",
            ),
        ),
        (f"{DISPATCH}::test_a_backlog_of_one_kind_of_side_work_keeps_no_other_waiting",),
    ),
    Protection(
        "unpruned-until-told",
        "a generation is not pruned before its producer was told",
        (
            Edit(
                "worker/upkeep/prune.py",
                "            ~exists().where(n.generation_id == g.id, n.status == State.PENDING),\n",
                "",
            ),
        ),
        (f"{CLI}::test_retention_removes_what_is_settled_and_nothing_that_waits",),
    ),
)
