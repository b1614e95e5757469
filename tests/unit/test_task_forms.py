"""What Flower and `celery inspect` show of messages: enough for a person, no prompt, no address."""

import pytest
from celery.exceptions import Reject

from worker import task_forms
from worker.app import app
from worker.task_request import Request, frames_of, kind_of

ID = "0b0e7f1a-1111-4222-8333-444455556666"
PROMPT = "A marmalade cat on a tin roof"
KEY = "sk-live-0123456789"
SIGNED = "https://storage.example/v.mp4?X-Amz-Signature=abc"


@pytest.mark.parametrize("stage", ["upload", "poll"])
def test_a_stage_tells_its_generation_and_its_lease(stage):
    assert task_forms.arguments(f"seedance.{stage}", [ID, 7]) == f"generation {ID} lease 7"


def test_message_of_one_submit_shows_its_generation_and_lease():
    assert task_forms.arguments("seedance.submit", [[[ID, 7]]]) == f"generation {ID} lease 7"
    assert task_forms.only([[[ID, 7]]]) == ID
    assert task_forms.only([[[ID, 7], [ID, 8]]]) is None
    assert task_forms.only([[["x" * 90, 7]]]) is None
    assert task_forms.only([]) is None


def test_side_work_tells_its_row():
    assert task_forms.arguments("seedance.deliver", [ID, 1]) == f"notice {ID} lease 1"
    told = task_forms.arguments("seedance.archive", [f"{ID}.video", 2])
    assert told == f"result {ID}.video lease 2"


def test_of_many_in_doubt_the_first_are_told():
    claims = [[ID, n] for n in range(50)]
    assert task_forms.arguments("seedance.resolve", [claims]) == (
        f"generations {ID} lease 0, {ID} lease 1, {ID} lease 2 and 47 more"
    )


def test_a_request_tells_what_it_is_not_what_it_says():
    request = {
        "model": "seedance-2.0",
        "duration": 5,
        "content": [
            {"type": "text", "text": PROMPT},
            {"type": "image_url", "image_url": {"url": SIGNED}},
        ],
    }
    told = task_forms.keywords(
        "seedance.generate",
        {"request": request, "tenant": "acme", "metadata": {"k": PROMPT}, "notify": SIGNED},
    )
    assert told == "tenant=acme model=seedance-2.0 duration=5 content=text,image_url"


JUNK = [
    None,
    3,
    True,
    PROMPT,
    SIGNED,
    KEY,
    [],
    {},
    [[]],
    [{}],
    [None],
    {"type": PROMPT},
    "x" * 100_000,
]


@pytest.mark.parametrize("junk", JUNK)
def test_whatever_was_sent_is_short_and_quotes_nothing(junk):
    """A form that raised would set the message aside; one that quoted would show the prompt."""
    for task in ("seedance.submit", "seedance.resolve", "seedance.archive", "seedance.generate"):
        shown = task_forms.arguments(task, [junk, junk])
        shown += task_forms.arguments(task, [[junk] * 9])
        shown += task_forms.arguments(task, [junk] * 3)
        shown += task_forms.keywords(task, {"request": junk, "metadata": junk})
        shown += task_forms.keywords(task, {"request": {"content": junk, "seed": junk}})
        shown += task_forms.keywords(task, {"request": {"content": [junk, {"type": junk}] * 99}})
        assert "cat" not in shown
        assert "Signature" not in shown
        assert KEY not in shown
        assert len(shown) < 1000


@pytest.mark.parametrize("name", [PROMPT, SIGNED, "x" * 65, "", ["acme"], {"acme": 1}])
def test_what_is_no_name_is_not_shown_as_one(name):
    assert task_forms.keywords("seedance.generate", {"tenant": name}) == "tenant=…"


class Message:
    """A message of a client that fills its headers as it likes."""

    content_type, content_encoding, delivery_info, properties = "application/json", "utf-8", {}, {}

    def __init__(self, task, args, kwargs):
        self.payload = self.body = (args, kwargs, {})
        self.headers = {
            "id": ID,
            "task": task,
            "shadow": PROMPT,
            "argsrepr": f"('{PROMPT}',)",
            "kwargsrepr": f"{{'text': '{PROMPT}'}}",
        }


class Eventer:
    enabled = True

    def __init__(self):
        self.sent = []

    def send(self, kind, **fields):
        self.sent.append((kind, fields))


def request_of(task, args, kwargs, eventer=None):
    return Request(Message(task, args, kwargs), app=app, task=app.tasks[task], eventer=eventer)


def test_every_task_of_ours_is_told_so():
    app.loader.import_default_modules()
    ours = [task for name, task in app.tasks.items() if name.startswith("seedance.")]
    assert len(ours) >= 10
    assert {task.Request for task in ours} == {"worker.task_request:Request"}


def test_the_clients_own_words_are_not_shown():
    app.loader.import_default_modules()
    request = request_of("seedance.generate", [], {"request": {"content": PROMPT}, "tenant": "a"})
    assert (request.name, request.argsrepr) == ("seedance.generate", "")
    assert request.kwargsrepr == "tenant=a content=…"
    for safe in (True, False):  # Flower asks for either
        assert PROMPT not in str(request.info(safe=safe))
    assert PROMPT not in f"{request!r} {request}"


def test_of_an_error_its_kind_and_its_place_are_told():
    app.loader.import_default_modules()
    eventer = Eventer()
    request = request_of("seedance.submit", [ID, 1], {}, eventer)
    trace = (
        "Traceback (most recent call last):\n"
        '  File "worker/stages/submit.py", line 3, in run\n'
        f"    raise ValueError('{PROMPT}')\n"
        f"ValueError: {PROMPT}\n  {KEY}\n"
    )
    request.send_event("task-failed", exception=f"ValueError('{PROMPT}')", traceback=trace)
    [(kind, fields)] = eventer.sent
    assert (kind, fields["uuid"]) == ("task-failed", ID)
    assert fields["exception"] == "ValueError: the log says what"
    assert fields["traceback"] == '  File "worker/stages/submit.py", line 3, in run'


def test_what_has_no_class_is_an_error():
    assert kind_of("") == "an error: the log says what"
    assert kind_of(repr(Reject(KEY))) == kind_of(KEY) == kind_of("")
    assert frames_of(None) == ""
