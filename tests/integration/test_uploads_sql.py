"""The same bytes are uploaded once while they are valid, whoever needs them."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Connection, Engine, update

from models import uploads
from models.base import table_of
from models.lifecycle import Status
from models.tables import Upload
from models.uploads import Content, SomebodyElse, Uploaded, Yours
from tests.integration import rows


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection whose changes are undone at the end."""
    with engine.connect() as conn:
        yield conn


def content(conn: Connection, sha: str = "a" * 64, kind: str = "image/png") -> Content:
    return Content(sha, kind, rows.make(conn, Status.UPLOADING), lease=7)


def claim(conn: Connection, what: Content):
    return uploads.claim(conn, what, size=10, lease_seconds=60)


def done(conn: Connection, what: Content, valid: float = 1000) -> None:
    uploads.done(conn, what, file_path="u/1.png", valid_seconds=valid)


def later(conn: Connection, seconds: float) -> None:
    """Let so much time pass."""
    u = table_of(Upload)
    shift = timedelta(seconds=seconds)
    names = ("claimed_until", "uploaded_at", "valid_until")
    conn.execute(update(u).values({name: u.c[name] - shift for name in names}))


def test_the_first_uploads_the_second_waits_the_third_finds_it(conn):
    first, second = content(conn), content(conn)
    assert claim(conn, first) == Yours()
    assert claim(conn, second) == SomebodyElse(same_message=False)
    done(conn, first)
    assert claim(conn, second) == Uploaded("u/1.png")
    assert claim(conn, first) == Uploaded("u/1.png")


def test_who_has_the_claim_gets_it_again_under_a_newer_lease(conn):
    """Its worker died and the generation was handed out again."""
    first = content(conn)
    again = replace(first, lease=first.lease + 1)
    assert claim(conn, first) == Yours()
    assert claim(conn, again) == Yours()
    done(conn, first)
    assert claim(conn, content(conn)) == SomebodyElse(same_message=False), "the first is fenced"
    done(conn, again)
    assert claim(conn, content(conn)) == Uploaded("u/1.png")


def test_the_same_message_twice_uploads_once(conn):
    first = content(conn)
    assert claim(conn, first) == Yours()
    assert claim(conn, first) == SomebodyElse(same_message=True)


def test_other_bytes_and_other_types_are_other_uploads(conn):
    assert claim(conn, content(conn)) == Yours()
    assert claim(conn, content(conn, "b" * 64)) == Yours()
    assert claim(conn, content(conn, kind="image/webp")) == Yours()


def test_a_claim_that_was_left_is_taken_over_and_its_holder_is_too_late(conn):
    first, second = content(conn), content(conn)
    claim(conn, first)
    later(conn, 61)
    assert claim(conn, second) == Yours()
    done(conn, first)
    assert claim(conn, content(conn)) == SomebodyElse(same_message=False)
    done(conn, second)
    assert claim(conn, first) == Uploaded("u/1.png")


def test_a_claim_is_kept_while_a_large_file_is_on_its_way(conn):
    first, second = content(conn), content(conn)
    claim(conn, first)
    later(conn, 50)
    uploads.renew(conn, first, seconds=60)
    uploads.renew(conn, second, seconds=6000)
    later(conn, 50)
    assert claim(conn, second) == SomebodyElse(same_message=False)
    later(conn, 11)
    assert claim(conn, second) == Yours()


def test_after_a_failure_the_next_may_try_at_once(conn):
    first, second = content(conn), content(conn)
    claim(conn, first)
    uploads.failed(conn, second)
    assert claim(conn, second) == SomebodyElse(same_message=False)
    uploads.failed(conn, first)
    assert claim(conn, second) == Yours()


def test_a_failure_that_is_told_late_does_not_undo_an_upload(conn):
    first = content(conn)
    claim(conn, first)
    done(conn, first)
    uploads.failed(conn, first)
    assert claim(conn, content(conn)) == Uploaded("u/1.png")


def test_what_is_no_longer_valid_is_uploaded_again(conn):
    """A path is not used up to its last moment: the provider must still be able to read it."""
    first, second = content(conn), content(conn)
    claim(conn, first)
    done(conn, first, valid=1000)
    later(conn, 940)
    assert claim(conn, second) == Uploaded("u/1.png")
    later(conn, 20)
    assert claim(conn, second) == Yours()
    assert claim(conn, first) == SomebodyElse(same_message=False)


def test_of_many_at_once_one_uploads(engine):
    with engine.begin() as conn:
        everyone = [content(conn, "c" * 64) for _ in range(6)]
    ready = threading.Barrier(len(everyone))

    def run(one: Content):
        with engine.begin() as conn:
            ready.wait(5)
            return claim(conn, one)

    with ThreadPoolExecutor(len(everyone)) as pool:
        results = list(pool.map(run, everyone))
    assert results.count(Yours()) == 1
    assert results.count(SomebodyElse(same_message=False)) == 5


def test_an_upload_outlives_the_generation_that_made_it(conn):
    first = content(conn, uuid.uuid4().hex * 2)
    claim(conn, first)
    done(conn, first)
    conn.exec_driver_sql("DELETE FROM generations")
    assert claim(conn, content(conn, first.sha256)) == Uploaded("u/1.png")
