"""`notify` at the door: what is kept, and what is refused with its field and what is allowed."""

import re

import pytest

from api_client import InvalidRequest
from worker.notify import ALLOW_PRIVATE, check_notify, private_allowed
from worker.requests import new_generation

HOOK = "https://shop.example/hook?key=1"
REQUEST = {"content": [{"type": "text", "text": "a cat"}]}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ({"webhook": HOOK}, {"webhook": HOOK, "on": "end"}),
        ({"webhook": HOOK, "on": None, "task": None}, {"webhook": HOOK, "on": "end"}),
        (
            {"task": "shop.video_done", "queue": "shop", "on": "change"},
            {"task": "shop.video_done", "queue": "shop", "on": "change"},
        ),
        (
            {"task": "a", "queue": "b", "webhook": "https://1.1.1.1:8443/x"},
            {"task": "a", "queue": "b", "webhook": "https://1.1.1.1:8443/x", "on": "end"},
        ),
        ({"webhook": "HTTPS://Shop.example/A"}, {"webhook": "https://Shop.example/A", "on": "end"}),
        (
            {"webhook": "https://[2606:4700::1]/"},
            {"webhook": "https://[2606:4700::1]/", "on": "end"},
        ),
    ],
)
def test_what_is_kept(given, kept):
    assert check_notify(given, private=False) == kept
    assert new_generation(REQUEST, notify=given).notify == kept


@pytest.mark.parametrize(
    ("given", "field", "allowed"),
    [
        ("https://shop.example/hook", "notify", "an object"),
        ({}, "notify", "an object"),
        ({"on": "end"}, "notify", "an object"),
        ({"url": HOOK}, "notify.url", "only webhook, task, queue, on"),
        ({"webhook": HOOK, "on": "start"}, "notify.on", '"end" or "change"'),
        ({"webhook": HOOK, "on": ["end"]}, "notify.on", '"end" or "change"'),
        ({"queue": "shop"}, "notify.task", "task"),
        ({"task": "shop.done"}, "notify.queue", "Celery queue"),
        ({"task": "", "queue": "shop"}, "notify.task", "Celery task"),
        ({"task": "shop.done", "queue": ""}, "notify.queue", "Celery queue"),
        ({"task": "a b", "queue": "shop"}, "notify.task", "Celery task"),
        ({"task": 7, "queue": "shop"}, "notify.task", "Celery task"),
        ({"task": "a" * 201, "queue": "shop"}, "notify.task", "200"),
        ({"task": "seedance.generate", "queue": "shop"}, "notify.task", "of your own"),
        ({"task": "shop.done", "queue": "seedance.stages"}, "notify.queue", "of your own"),
        ({"task": "shop.done", "queue": "celery"}, "notify.queue", "of your own"),
        # What kombu keeps in Redis beside the queues.
        ({"task": "shop.done", "queue": "unacked_mutex"}, "notify.queue", "of your own"),
        ({"task": "shop.done", "queue": "_kombu.binding.shop"}, "notify.queue", "of your own"),
        ({"webhook": HOOK, "queue": "shop"}, "notify.queue", "beside a task"),
    ],
)
def test_what_is_refused_names_field_and_bound(given, field, allowed):
    with pytest.raises(InvalidRequest, match=re.escape(allowed)) as caught:
        new_generation(REQUEST, notify=given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "address",
    [
        *("http://shop.example/", "ftp://shop.example/", "shop.example/hook", "", "https://"),
        *(
            "https:///hook",
            "https://user@shop.example/",
            "https://u:p@shop.example/",
            "https://h:0",
        ),
        *("https://shop.example/#part", "https://shop.example:99999/", "https://shop example/"),
        *("https://[::1", "https://shop.example/\n", "https://shöp.example/", "//shop.example"),
        "https://shop.example/" + "x" * 2_000,
    ],
)
def test_an_address_of_a_forbidden_kind(address):
    with pytest.raises(InvalidRequest) as caught:
        check_notify({"webhook": address}, private=False)
    assert caught.value.field == "notify.webhook"


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
    *("100.64.0.1", "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fd00::1]"),
    *("[ff02::1]", "[::ffff:10.0.0.1]", "[::ffff:7f00:1]", "localhost", "LOCALHOST", "localhost."),
    *("a.localhost", "printer.local", "db.internal", "127.1", "0x7f.1", "2130706433", "0177.0.0.1"),
]


@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_host_only_where_it_is_allowed(host):
    with pytest.raises(InvalidRequest, match=f"public host.*{ALLOW_PRIVATE}"):
        check_notify({"webhook": f"https://{host}/hook"}, private=False)
    for scheme in ("https", "http"):
        assert check_notify({"webhook": f"{scheme}://{host}/hook"}, private=True)


@pytest.mark.parametrize("host", ["localhost.example", "1.1.1.1", "10.example", "internal.example"])
def test_a_public_host_that_looks_like_one(host):
    assert check_notify({"webhook": f"https://{host}/"}, private=False)


def test_the_refused_address_is_shown_without_its_query():
    with pytest.raises(InvalidRequest) as caught:
        check_notify({"webhook": "http://shop.example/hook?key=s3cret"}, private=False)
    assert "shop.example/hook" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "allowed"),
    [("true", True), ("1", True), ("ON", True), ("false", False), ("", False), ("perhaps", False)],
)
def test_a_producer_takes_the_permission_from_its_environment(value, allowed, monkeypatch):
    assert not private_allowed()
    monkeypatch.setenv(ALLOW_PRIVATE, value)
    assert private_allowed() is allowed
    local = {"webhook": "http://127.0.0.1:9000/"}
    if allowed:
        assert new_generation(REQUEST, notify=local).notify
    else:
        with pytest.raises(InvalidRequest):
            new_generation(REQUEST, notify=local)
