"""Redaction: what must not be shown is cut, wherever it stands, and nothing else is."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.redaction import CUT, Redactor, of_environment

ENVIRONMENT = {
    "SEEDANCE_API_KEY": "sk-live-0123456789",
    "SEEDANCE_DATABASE_URL": "postgresql+psycopg://app:d%40ta-pass@db:5432/videos",
    "SEEDANCE_BROKER_URL": "rediss://:broker-pass@valkey:6379/0",
    "SEEDANCE_METRICS_TOKEN": "scrape-me-not",
    "SEEDANCE_WEBHOOK_SECRETS": "whsec_bmV3ZXI=AAAA whsec_b2xkZXI=BBBB",
    "FLOWER_BASIC_AUTH": "operator:flower-pass",
    "AWS_SECRET_ACCESS_KEY": "aws+secret/key",
    "SEEDANCE_KEY_EXCLUSIVE": "false",
    "HOME": "/home/seedance",
}
SECRETS = (
    "sk-live-0123456789",
    "d%40ta-pass",
    "d@ta-pass",
    "broker-pass",
    "scrape-me-not",
    "flower-pass",
    "whsec_b2xkZXI=BBBB",
    "aws+secret/key",
)
CALLBACK = f"/callbacks/{uuid.UUID(int=7).hex}/1/"

redactor = of_environment(ENVIRONMENT)


@pytest.mark.parametrize("secret", SECRETS)
def test_each_secret_of_the_environment_is_cut_wherever_it_stands(secret: str) -> None:
    for text in (secret, f"x{secret}y", f"error near '{secret}' at 3", f"{{'k': '{secret}'}}"):
        assert secret not in redactor.text(text)
        assert secret not in json.dumps(redactor.value({"a": [{"b": (text,)}], text: 1}))


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("PUT https://s/f?X-Amz-Signature=abc failed", "PUT https://s/f?… failed"),
        ("connect to redis://:pw@h:6379/0", "connect to redis://…@h:6379/0"),
        ("postgresql://u:pw@h/db refused", "postgresql://…@h/db refused"),
        (f"POST {CALLBACK}s3cr3t now", f"POST {CALLBACK}… now"),
        ("Authorization: Bearer abc.def-123", "Authorization: …"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': '…'}"),
        ("sent Bearer abcdef.123456", "sent Bearer …"),
        ("'X-API-Key': 'sk-1'", "'X-API-Key': '…'"),
        ("host=h password=pw user=u", "host=h password=… user=u"),
        ("signed with whsec_MfKQ9r8GKYqrTwjU", "signed with whsec_…"),
        ("""{"type": "text", "text": "a \\"cat\\" naps"}""", """{"type": "text", "text": '…'}"""),
        ("{'type': 'text', 'text': 'a cat", "{'type': 'text', 'text': '…'"),
        ("""kwargs={'prompt': "it's", 'n': 1}""", "kwargs={'prompt': '…', 'n': 1}"),
        (
            json.dumps({"body": json.dumps({"text": 'a "cat", and', "n": 1})}),
            r"""{"body": "{\"text\": \"…\", \"n\": 1}"}""",
        ),
        (json.dumps(json.dumps({"text": "a cat"}))[:18], '"{\\"text\\": \\"…\\"'),
    ],
)
def test_a_text_is_cut(text: str, cut: str) -> None:
    assert redactor.text(text) == cut
    assert redactor.text(cut) == cut


@pytest.mark.parametrize(
    "text",
    [
        "generation 8c2f is completed",
        "gate api_key is closed: INVALID_API_KEY: the key is disabled",
        "the password authentication failed",
        "message 7 repeats idempotency key 'order-17': it is generation 8",
        "no room under 20 per 1 second for submit in 5 s",
        "SEEDANCE_KEY_EXCLUSIVE is false",
        "https://cdn.example/v.mp4 is there",
    ],
)
def test_an_ordinary_line_stays_as_it_is(text: str) -> None:
    assert redactor.text(text) == text


def test_what_is_named_a_secret_or_a_prompt_is_cut_at_any_depth() -> None:
    nested: dict[str, Any] = {
        "request": {
            "model": "seedance-2.0",
            "content": [
                {"type": "text", "text": "a secret cat"},
                {"type": "image_url", "image_url": "https://h/p.png?sig=1"},
            ],
        },
        "headers": {"X-API-Key": "k1", "Authorization": "Basic x", "Accept": "*/*"},
        "kwargs": "{'request': …}",
        "webhook_secret": "w1",
        "tries": 3,
        "none": {"token": None},
        "raw": b"bytes of a body",
    }
    assert redactor.value(nested) == {
        "request": {
            "model": "seedance-2.0",
            "content": [
                {"type": "text", "text": CUT},
                {"type": "image_url", "image_url": "https://h/p.png?…"},
            ],
        },
        "headers": {"X-API-Key": CUT, "Authorization": CUT, "Accept": "*/*"},
        "kwargs": CUT,
        "webhook_secret": CUT,
        "tries": 3,
        "none": {"token": None},
        "raw": "15 bytes",
    }


def test_an_object_is_shown_by_its_text_alone_and_a_loop_ends() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd at https://h/p?sig=1"

    endless: list[Any] = []
    endless.append(endless)
    assert redactor.value({"o": Odd()}) == {"o": "odd at https://h/p?…"}
    assert CUT in str(redactor.value(endless))


def test_a_short_value_is_no_secret_to_look_for() -> None:
    assert Redactor(["abc"]).text("abc abcdef") == "abc abcdef"


@given(st.text(max_size=300))
def test_no_text_is_too_odd(text: str) -> None:
    once = redactor.text(text)
    assert redactor.text(once) == once or CUT in once


@pytest.mark.parametrize("part", ["'text': '", '"text": "\\', "password=", "a?b/", "Bearer x" * 3])
def test_a_long_text_takes_no_long(part: str) -> None:
    redactor.text(part * 40_000)  # the test's timeout would tell a pattern that backtracks


FRAGMENTS = (
    *SECRETS,
    "https://s/f?X-Amz-Signature=abc",
    "/p?token=x",
    "redis://:pw@h:6379/0",
    f"{CALLBACK}s3cr3t",
    "Authorization: Bearer abc.def-123",
    "password=pw",
    "whsec_MfKQ9r8GKYqrTwjU",
    "{'text': 'a cat",
    '{\\"prompt\\": \\"a cat\\"}',
    "generation 0b0e7f1a is completed",
    "token",
    "'",
    '"',
    " ",
    "",
)
FIELDS = st.lists(st.sampled_from(FRAGMENTS), max_size=3).map("".join)
OTHERS = st.one_of(st.none(), st.integers(), st.binary(max_size=3), st.lists(FIELDS, max_size=2))


@given(st.dictionaries(st.sampled_from("abcdef"), st.one_of(FIELDS, FIELDS, OTHERS)))
def test_a_line_is_cut_as_each_of_its_fields_would_be(event: dict[str, Any]) -> None:
    assert redactor.event(event) == {name: redactor.value(part) for name, part in event.items()}
