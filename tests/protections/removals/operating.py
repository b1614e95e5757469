"""What those on call see and do: no words of a producer's, no event lost, nothing paid twice."""

from tests.protections.protection import Edit, Protection

FORMS = "worker/task_forms.py"
SHOWN = "tests/unit/test_task_forms.py"
REQUEST = "worker/task_request.py"
FIGURES = "tests/integration/test_metrics.py"
SLOWLY = "test_those_who_ask_slowly_hold_no_more_than_their_share_and_not_for_ever"
RETRIES = "models/operating/retries.py"
RETRIED = "tests/integration/test_retries.py"

PROTECTIONS = (
    Protection(
        "ids-not-words",
        "of an argument only what has the form of an id is shown",
        (Edit(FORMS, "told = of if is_id(of) else _CUT", "told = of"),),
        (f"{SHOWN}::test_whatever_was_sent_is_short_and_quotes_nothing",),
    ),
    Protection(
        "names-not-sentences",
        "a tenant or a model that is no name is cut",
        (
            Edit(
                FORMS,
                "return value if isinstance(value, str) and _NAME.fullmatch(value) else _CUT",
                "return str(value)",
            ),
        ),
        (f"{SHOWN}::test_what_is_no_name_is_not_shown_as_one",),
    ),
    Protection(
        "kinds-not-contents",
        "of a request's items only their kinds are shown",
        (
            Edit(
                FORMS,
                '",".join(k if isinstance(k, str) and _KIND.fullmatch(k) else _CUT for k in kinds)',
                '",".join(str(k) for k in content)',
            ),
        ),
        (f"{SHOWN}::test_a_request_tells_what_it_is_not_what_it_says",),
    ),
    Protection(
        "own-forms-not-the-clients",
        "a message's own repr of its arguments is not shown",
        (
            Edit(
                REQUEST,
                "        self._kwargsrepr = task_forms.keywords(self.type, self.kwargs)\n",
                "",
            ),
        ),
        (f"{SHOWN}::test_the_clients_own_words_are_not_shown",),
    ),
    Protection(
        "safe-forms-to-whoever-inspects",
        "what `inspect` asks for in full is answered in short forms",
        (Edit(REQUEST, "super().info(safe=True)", "super().info(safe=False)"),),
        (f"{SHOWN}::test_the_clients_own_words_are_not_shown",),
    ),
    Protection(
        "errors-by-kind",
        "of an error its kind and place are shown, not what it says",
        (
            Edit(
                REQUEST,
                'fields["exception"] = kind_of(fields["exception"])',
                'fields["exception"] = str(fields["exception"])',
            ),
        ),
        (f"{SHOWN}::test_of_an_error_its_kind_and_its_place_are_told",),
    ),
    Protection(
        "no-event-lost",
        "of the gathered events only those that were sent are taken off",
        (Edit("worker/event_sender.py", "del gathered[: len(batch)]", "gathered.clear()"),),
        (
            "tests/unit/test_event_sender.py::test_what_comes_while_a_batch_is_sent_goes_with_the_next",
        ),
    ),
    Protection(
        "charged-is-not-retried",
        "what failed and was charged all the same is retried only by who means to pay twice",
        (
            Edit(
                RETRIES,
                "    exists().where(c.generation_id == g.id, c.kind == Kind.CHARGED),\n",
                "",
            ),
        ),
        (f"{RETRIED}::test_what_was_charged_although_it_failed_would_be_paid_twice",),
    ),
    Protection(
        "no-lost-chain",
        "a chain of retries with a link that is gone is not gone on with",
        (Edit(RETRIES, "        end = replace(end, chain_lost=True)\n", ""),),
        (f"{RETRIED}::test_a_chain_with_a_link_that_is_gone_is_not_gone_on_with",),
    ),
    Protection(
        "scrapers-have-a-share",
        "who asks slowly holds no more than a share of the small server's threads",
        (
            Edit(
                "worker/metrics/serve.py",
                "if not self._free.acquire(blocking=False):",
                "if self._free.acquire(blocking=False) is None:",
            ),
        ),
        (f"{FIGURES}::{SLOWLY}",),
    ),
)
