"""The smaller parts: settings, pauses, headers, file types, upload bodies, drifting lists."""

import contextlib
import io
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client import ClientConfig, InvalidRequest, Task, TaskPage, media_type
from api_client.calls import pause_after
from api_client.listing import MAX_PASSES, STALE_PAGES, iterate
from api_client.media import check_filename, sniff
from api_client.transport import retry_after
from api_client.upload import Body
from api_client.wire import Abandoned

# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_key", ""),
        ("api_key", "two words"),
        ("api_key", "line\r\nX-Evil: 1"),
        ("api_key", "schlüssel"),
        ("api_key", None),
        ("base_url", "api.seedance2.movie"),
        ("base_url", "ftp://host"),
        ("base_url", "https://"),
        ("base_url", "https://user:pass@host"),
        ("base_url", "https://host?key=1"),
        ("connect_timeout", 0),
        ("read_timeout", float("nan")),
        ("total_timeout", float("inf")),
        ("upload_timeout", True),
        ("upload_timeout", "30"),
        ("backoff_base", -1),
        ("max_retry_after", -0.1),
        ("max_attempts", 0),
        ("max_attempts", 2.0),
        ("pool_size", True),
    ],
)
def test_settings_are_checked_when_built(field, value):
    with pytest.raises(InvalidRequest) as caught:
        ClientConfig(**{"api_key": "key", field: value})
    assert caught.value.field == field
    if field == "api_key" and value:
        assert str(value) not in str(caught.value)


def test_settings():
    config = ClientConfig(api_key="key", base_url="http://127.0.0.1:8080/seedance/", backoff_base=0)
    assert config.base_url == "http://127.0.0.1:8080/seedance"
    with pytest.raises(AttributeError):
        config.max_attempts = 5


# Pauses


def pauses(attempts, retry_after=None, draw=max, **fields):
    config = ClientConfig(api_key="key", **fields)
    return [pause_after(config, n, retry_after, lambda *bounds: draw(bounds)) for n in attempts]


def test_pauses_grow_and_are_capped():
    found = pauses([1, 2, 3, 4, 5, 6, 5000], backoff_base=0.5, backoff_cap=8.0)
    assert found == [0.5, 1, 2, 4, 8, 8, 8]


def test_pauses_are_drawn_from_zero():
    assert pauses([1, 4], draw=min) == [0, 0]


def test_retry_after_is_a_lower_bound_and_a_long_one_is_not_waited_for():
    for asked, expected in ((7.0, 7.5), (30.0, 30.5), (30.1, None)):
        assert pauses([1], asked, max_retry_after=30.0, backoff_base=0.5) == [expected]
    assert pauses([1], 7.0, draw=min) == [7.0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("5", 5),
        ("0", 0),
        ("1.5", 1.5),
        ("-3", 0),
        ("soon", None),
        ("", None),
        ("inf", None),
        ("nan", None),
        ("Wed, 15 Jan 2025 10:30:20 GMT", 20),
        ("Wed, 15 Jan 2025 10:29:00 GMT", 0),
        ("Wed, 15 Jan 99999 10:29:00 GMT", None),
    ],
)
def test_retry_after(header, seconds):
    # The answer's own Date is what a date is held against: clocks need not agree.
    answered = datetime(2025, 1, 15, 10, 30, tzinfo=UTC)
    assert retry_after(header, answered) == seconds


@given(st.text())
def test_any_retry_after_is_read_or_ignored(header):
    seconds = retry_after(header, None)
    assert seconds is None or seconds >= 0


# File types


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + b"\0\0\2\0" + b"".join(compatible)
    return struct.pack(">I", 4 + len(body)) + body + b"\0\0\0\x08free"


def ebml(doctype: bytes) -> bytes:
    return b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82" + bytes([0x80 | len(doctype)]) + doctype


FILES = {
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
    "a.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
    "a.jpeg": (b"\xff\xd8\xff\xdb\0\x43", "image/jpeg"),
    "a.webp": (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
    "a.webm": (ebml(b"webm"), "video/webm"),
    "isom.mp4": (ftyp(b"isom", b"isom", b"iso2", b"avc1", b"mp41"), "video/mp4"),
    "mp42.mp4": (ftyp(b"mp42", b"mp42"), "video/mp4"),
    "iso5.mp4": (ftyp(b"iso5", b"iso5", b"dash"), "video/mp4"),
    "avc1.mp4": (ftyp(b"avc1"), "video/mp4"),
    "m4v.mp4": (ftyp(b"M4V ", b"mp42"), "video/mp4"),
    "phone.mp4": (ftyp(b"3gp4", b"isom", b"3gp4"), "video/mp4"),
    "qt.mov": (ftyp(b"qt  ", b"qt  "), "video/quicktime"),
    "old.mov": (b"\0\0\0\x08wide\0\0\1\0mdat", "video/quicktime"),
}


@pytest.mark.parametrize("name", FILES)
def test_allowed_types(name):
    head, expected = FILES[name]
    assert media_type(head, name) == expected
    assert media_type(head, name.upper()) == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("other", FILES)
def test_content_and_extension_must_agree(name, other):
    (head, content), (_, named) = FILES[name], FILES[other]
    if content != named:
        with pytest.raises(InvalidRequest) as caught:
            media_type(head, other)
        assert content in str(caught.value)
        assert other in str(caught.value)


@pytest.mark.parametrize(
    ("head", "name", "found"),
    [
        (ftyp(b"heic", b"mif1"), "a.png", "image/heic"),
        (ftyp(b"avif"), "a.webp", "image/avif"),
        (ftyp(b"M4A ", b"mp42"), "a.mp4", "audio/mp4"),
        (ftyp(b"3gp4", b"3gp4"), "a.mp4", "video/3gpp"),
        (ebml(b"matroska"), "a.webm", "video/x-matroska"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a.webp", "unknown"),
        (b"GIF89a", "a.gif", "unknown"),
        (b"", "a.png", "unknown"),
        (b"ID3\x04", "a.mp3", "audio can't be uploaded"),
        (FILES["a.png"][0], "picture", "extension is missing"),
        (FILES["a.png"][0], ".png", "extension is missing"),
    ],
)
def test_refused_types_are_named(head, name, found):
    with pytest.raises(InvalidRequest) as caught:
        media_type(head, name)
    assert found in f"{caught.value.value} {caught.value.allowed}"


@given(st.binary(max_size=64), st.text(max_size=12))
def test_any_head_and_name(head, name):
    sniff(head)
    with contextlib.suppress(InvalidRequest):
        media_type(head, name)


@pytest.mark.parametrize(
    ("name", "bare"), [("a.png", "a.png"), ("/tmp/a.png", "a.png"), ("c:\\x\\a.png", "a.png")]
)
def test_filenames(name, bare):
    assert check_filename(name) == bare


@pytest.mark.parametrize("name", ["", "/", "x" * 125 + ".png"])
def test_refused_filenames(name):
    with pytest.raises(InvalidRequest, match="1 to 128 characters"):
        check_filename(name)


# Upload bodies


def test_a_body_counts_and_hashes_what_is_read():
    seen = []
    body = Body(io.BytesIO(b"abcdef"), 5, 60.0, lambda sent, size: seen.append((sent, size)))
    assert len(body) == 5
    assert [body.read(2), body.read(), body.read(2)] == [b"ab", b"cde", b""]
    assert body.sha256 == "36bbe50ed96841d10443bcb670d6554f0a34b761be67ec9c4a8ad2c0c44ca42c"
    assert seen == [(2, 5), (5, 5)]


def test_a_file_that_shrank_is_noticed():
    with pytest.raises(Abandoned) as caught:
        list(Body(io.BytesIO(b"abc"), 5, 60.0))
    assert isinstance(caught.value.original, InvalidRequest)


def test_an_upload_has_an_end():
    with pytest.raises(TimeoutError):
        Body(io.BytesIO(b"abc"), 3, -1.0).read(1)


# Lists


class Provider:
    """A list that changes between the pages: `changes[n]` is applied before the nth reading."""

    def __init__(self, ids, page_size, changes=(), total=True):
        self.ids = list(ids)
        self.page_size = page_size
        self.changes = list(changes)
        self.total = total
        self.reads = 0

    def __call__(self, page):
        if self.reads < len(self.changes):
            self.changes[self.reads](self.ids)
        self.reads += 1
        part = self.ids[(page - 1) * self.page_size : page * self.page_size]
        return TaskPage(
            data=tuple(Task(task_id=str(i), status="queued") for i in part),
            total=len(self.ids) if self.total else None,
        )

    def iterate(self):
        return [task.task_id for task in iterate(self, self.page_size)]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9, 10])
@pytest.mark.parametrize("total", [True, False])
def test_a_still_list_is_read_once_if_its_total_agrees(count, total):
    provider = Provider(range(count), 3, total=total)
    assert provider.iterate() == [str(i) for i in range(count)]
    if total:
        assert provider.reads == max(1, -(-count // 3))


def test_a_server_with_smaller_pages_than_asked_for():
    provider = Provider(range(7), 2)
    assert len(list(iterate(provider, 100))) == 7


def test_a_task_that_moved_up_is_found_in_the_next_pass():
    provider = Provider(range(9), 3, [lambda ids: None, lambda ids: ids.pop(0)])
    assert sorted(provider.iterate()) == [str(i) for i in range(9)]


def test_tasks_that_change_places_are_found_while_the_total_says_that_some_are_missing():
    def swap(ids):
        ids[0], ids[3] = ids[3], ids[0]

    provider = Provider(range(6), 3, [lambda ids: None, swap, lambda ids: None, swap])
    assert sorted(provider.iterate()) == [str(i) for i in range(6)]
    assert provider.reads == 6


def test_a_task_that_moved_down_comes_once():
    provider = Provider(range(9), 3, [lambda ids: None, lambda ids: ids.insert(0, 99)])
    assert sorted(provider.iterate(), key=int) == [*map(str, range(9)), "99"]


def test_a_server_that_repeats_itself_ends():
    page = TaskPage(data=(Task(task_id="a", status="queued"),), total=1000)
    reads = []
    assert len(list(iterate(lambda n: reads.append(n) or page, 100))) == 1
    assert len(reads) <= MAX_PASSES * (STALE_PAGES + 1)


def test_endless_drift_ends():
    provider = Provider(range(30), 3, [lambda ids: ids.insert(0, len(ids))] * 100)
    assert len(provider.iterate()) >= 30


CHANGES = st.lists(
    st.one_of(
        st.just(lambda ids: None),
        st.integers(0, 20).map(lambda n: lambda ids: ids.insert(min(n, len(ids)), max(ids) + 1)),
        st.integers(0, 20).map(lambda n: lambda ids: ids.append(ids.pop(n % len(ids)))),
    ),
    max_size=4,
)


@given(st.integers(1, 20), st.integers(1, 7), CHANGES)
def test_no_task_comes_twice_whatever_drifts(count, page_size, changes):
    found = Provider(range(count), page_size, changes).iterate()
    assert len(found) == len(set(found))


@given(st.integers(2, 20), st.integers(1, 7), st.integers(0, 5), st.integers(0, 20))
def test_one_removal_hides_nothing_that_stays(count, page_size, when, place):
    def remove(ids):
        ids.pop(place % len(ids))

    provider = Provider(range(count), page_size, [lambda ids: None] * when + [remove])
    found = set(provider.iterate())
    assert set(map(str, provider.ids)) <= found
