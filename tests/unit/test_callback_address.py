"""The address of a callback: written and read alike, unguessable, and shown in no log."""

import io
import logging
import uuid

import pytest

from models.callbacks import Address
from worker import callback_address, logs
from worker.gateway import payload
from worker.gateway.door import Door
from worker.settings import Settings, load_settings

ID = uuid.UUID("11111111-2222-4333-8444-555555555555")


def settings(**given: str) -> Settings:
    needed = {"SEEDANCE_API_KEY": "k", "SEEDANCE_DATABASE_URL": "postgresql://h/d"}
    return load_settings({**needed, **given})


ON = settings(SEEDANCE_PUBLIC_URL="https://video.example.com/hooks/")


def test_what_is_written_is_read():
    secret = callback_address.draw(ON, {})
    assert secret is not None
    to = Address(ID, 3, secret)
    url = callback_address.url(ON, to)
    assert url == f"https://video.example.com/hooks/callbacks/{ID.hex}/3/{secret}"
    assert callback_address.read(url.removeprefix("https://video.example.com/hooks")) == to


def test_the_longest_address_fits_what_the_provider_takes():
    longest = settings(SEEDANCE_PUBLIC_URL="https://h/" + "p" * 390)
    assert len(callback_address.url(longest, Address(ID, 999_999, "s" * 43))) <= 512


def test_each_secret_is_fresh_and_has_256_bits():
    drawn = {callback_address.draw(ON, {}) for _ in range(1_000)}
    assert len(drawn) == 1_000
    assert {len(secret or "") for secret in drawn} == {43}


def test_no_callback_is_asked_for_without_an_address_or_over_the_producers_own():
    assert callback_address.draw(settings(), {}) is None
    assert callback_address.draw(ON, {"callback_url": "https://mine"}) is None
    assert callback_address.draw(ON, {"callback_url": None}) is not None


SECRET = "s" * 43


@pytest.mark.parametrize(
    "path",
    [
        "/callbacks/",
        f"/callbacks/{ID}/1/{SECRET}",  # with hyphens: not as it is written
        f"/callbacks/{ID.hex}/0/{SECRET}",
        f"/callbacks/{ID.hex}/01/{SECRET}",
        f"/callbacks/{ID.hex}/1/{SECRET}x",
        f"/callbacks/{ID.hex}/1/{SECRET}/",
        f"/callbacks/{ID.hex}/1/{SECRET}\n",
        f"/callbacks/{ID.hex}/1/{SECRET[1:]}",
        f"/callbacks/{ID.hex}/9999999/{SECRET}",
        f"/callbacks/{ID.hex.upper()}x/1/{SECRET}",
        f"/x/callbacks/{ID.hex}/1/{SECRET}",
        "/callbacks/../../etc/passwd",
        "/callbacks/\x00",
    ],
)
def test_any_other_path_is_nobodys(path):
    assert callback_address.read(path) is None


def test_no_log_shows_a_secret():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.formatter())
    url = callback_address.url(ON, Address(ID, 1, SECRET))
    record = logging.LogRecord("x", logging.INFO, "", 0, "POST %s, '%s'", (url, url), None)
    handler.emit(record)
    assert SECRET not in out.getvalue()
    assert f"https://video.example.com/hooks/callbacks/{ID.hex}/1/…" in out.getvalue()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"task_id": "t-1", "status": "completed"}', "t-1"),
        (b'{"code": "200", "result": {"task_id": "t-1"}}', "t-1"),
        (b'{"data": {"id": 17}}', "17"),
        (b'{"result": [], "task": {"taskId": "abc.d:e_f"}}', "abc.d:e_f"),
        (b"", None),
        (b"not json", None),
        (b"\xff\xfe\x00", None),
        (b"[" * 60_000, None),
        (b'["task_id"]', None),
        (b'{"task_id": null}', None),
        (b'{"task_id": true}', None),
        (b'{"task_id": "../balance"}', None),
        (b'{"task_id": "a b"}', None),
        (b'{"task_id": "' + b"x" * 201 + b'"}', None),
        (b'{"task_id": ' + b"9" * 4_000 + b"}", None),
        (b'{"task_id": "\\u0000"}', None),
    ],
)
def test_a_body_is_a_guess_at_most(body, said):
    assert payload.task_id(body) == said


def test_an_address_that_floods_uses_up_its_own_share_only():
    door = Door("100/second")
    assert sum(door.lets_in("/callbacks/one") for _ in range(1_000)) <= 40  # two windows at most
    assert door.lets_in("/callbacks/another")


def test_all_together_have_a_rate():
    door = Door("50/minute")
    assert sum(door.lets_in(f"/callbacks/{n}") for n in range(1_000)) <= 100  # the same
