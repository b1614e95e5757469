"""Following many at once by the task list: no guarantee of a poll is lost by it."""

from tests.protections.protection import Edit, Protection
from tests.protections.removals.crashes import DEATH, NO_REDELIVERY

OBSERVE = "tests/integration/test_observe.py"
LOCKS = "tests/integration/test_lock_order.py"
TURNS = "models/observing/turns.py"
PAGE = "models/transitions/page.py"

PROTECTIONS = (
    Protection(
        "observer-whose-pass-died-is-replaced",
        "a turn whose worker died, or whose message was lost, is taken again",
        (
            Edit(
                TURNS,
                "(not row.due or (row.held and row.under_way))",
                "(not row.due or row.under_way)",
            ),
            Edit(
                TURNS,
                "engaged = row is not None and row.engaged and row.held",
                "engaged = row is not None and row.engaged",
            ),
            NO_REDELIVERY,
        ),
        (
            f"{OBSERVE}::test_a_lost_message_is_sent_again_and_meanwhile_nobody_is_forgotten",
            f"{DEATH}[observe.after_begin]",
            f"{DEATH}[observe.after_page]",
        ),
    ),
    Protection(
        "observer-one-at-a-time",
        "while a pass is under way nobody else begins one",
        (Edit(TURNS, "(not row.due or (row.held and row.under_way))", "(not row.due)"),),
        (f"{OBSERVE}::test_one_observer_at_a_time",),
    ),
    Protection(
        "observer-lease-fences",
        "a stale message reads nothing",
        (
            Edit(
                TURNS,
                ".where(_o.name == TASK_LIST, _o.lease == lease, _o.ended_at.is_(None))",
                ".where(_o.name == TASK_LIST)",
            ),
        ),
        (f"{OBSERVE}::test_a_stale_message_does_nothing",),
    ),
    Protection(
        "observer-poison",
        "a pass that workers die of is left alone",
        (Edit(TURNS, "row.tries >= choice.MOST_TRIES", "row.tries >= 10**6"),),
        (f"{OBSERVE}::test_a_pass_that_workers_die_of_is_left_alone",),
    ),
    Protection(
        "observed-missing-gets-its-own-get",
        "a task that the list does not show gets its own GET",
        (Edit(TURNS, "            by_its_own(conn, unseen + overdue)\n", "            pass\n"),),
        (f"{OBSERVE}::test_a_task_missing_in_the_list_gets_its_own_get",),
    ),
    Protection(
        "observed-young-and-passed-over-gets-its-own-get",
        "what ended at once does not wait for the list's lag where the list passed it over",
        (Edit(TURNS, "by_its_own(conn, unseen + overdue)", "by_its_own(conn, unseen)"),),
        (f"{OBSERVE}::test_what_is_young_and_was_passed_over_twice_gets_its_own_get",),
    ),
    Protection(
        "a-late-list-is-waited-for",
        "a list that shows tasks late does not cost a GET for each",
        (Edit(TURNS, "[] if len(missed) > most else _ids", "_ids"),),
        (f"{OBSERVE}::test_what_the_list_does_not_show_yet_is_not_sought_through_all_of_it",),
    ),
    Protection(
        "a-pass-reads-as-far-as-what-is-young-may-stand",
        "what is due is found behind hundreds of tasks that are as young",
        (Edit("worker/stages/observe.py", "(bool(self.young) or self.aged)", "True"),),
        (f"{OBSERVE}::test_what_is_due_is_sought_behind_all_that_is_as_young",),
    ),
    Protection(
        "observed-without-video-gets-its-own-get",
        "a completed task without its video is not ended by the list",
        (
            Edit(
                PAGE,
                'task.status == "completed" and task.video_url is None',
                'task.status == "none"',
            ),
        ),
        (f"{OBSERVE}::test_a_video_that_the_list_does_not_show_is_fetched_by_its_own_get",),
    ),
    Protection(
        "observed-cancel-is-sent",
        "a wish to cancel is carried out while the list is engaged",
        (
            Edit(
                TURNS,
                "    or_(g.cancel_requested_at.is_(None), g.cancel_sent_at.is_not(None)),\n",
                "",
            ),
        ),
        (f"{OBSERVE}::test_a_cancel_is_sent_while_the_list_is_engaged",),
    ),
    Protection(
        "observed-deadline-is-kept",
        "a deadline is kept while the list is engaged",
        (
            Edit(
                TURNS,
                "g.deadline_at.is_(None), g.deadline_at > func.now(),",
                "g.deadline_at.is_(None), g.deadline_at.is_not(None),",
            ),
        ),
        (f"{OBSERVE}::test_a_deadline_is_kept_while_the_list_is_engaged",),
    ),
    Protection(
        "observed-stalled-asks-for-an-operator",
        "a task that does not end is told while the list is engaged",
        (Edit(TURNS, "in_seconds(-stalled_after)", "in_seconds(-(10**7))"),),
        (f"{OBSERVE}::test_a_stalled_task_still_asks_for_an_operator",),
    ),
    Protection(
        "passes-wait-for-nobody",
        "a row that a producer's transaction holds keeps no other from being seen",
        (
            Edit(
                PAGE,
                "query.with_for_update(skip_locked=True) if lock",
                "query.with_for_update() if lock",
            ),
        ),
        (
            f"{OBSERVE}::test_a_producers_open_transaction_holds_up_nobody_else",
            f"{LOCKS}::test_a_pass_over_the_list_waits_for_nobody[observe]",
        ),
    ),
)
