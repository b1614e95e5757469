"""Prices, checks, directives, time: the simulator's rules, held against the document."""

from decimal import Decimal

import pytest

from simulator.clock import Clock
from simulator.directives import parse
from simulator.errors import DESCRIPTIONS, ApiError, http_status
from simulator.pricing import as_number, cost
from simulator.rendering import ratio
from simulator.validation import list_query, presign, submission

PROMPT = {"type": "text", "text": "A cat"}


@pytest.mark.parametrize(
    ("model", "resolution", "printed"),
    [
        ("seedance-2.0", "1080p", "36.0"),
        ("seedance-2.0", "720p", "14.4"),
        ("seedance-2.0", "480p", "7.2"),
        ("seedance-2.0-fast", "1080p", "26.50"),
        ("seedance-2.0-fast", "720p", "11.52"),
        ("seedance-2.0-fast", "480p", "5.76"),
    ],
)
def test_an_eight_second_video_costs_what_the_document_prints(model, resolution, printed):
    assert cost(model, resolution, 8) == Decimal(printed)


def test_credits_are_plain_json_numbers():
    assert repr(as_number(Decimal("10000.00"))) == "10000"
    assert repr(as_number(Decimal("26.50"))) == "26.5"
    assert repr(as_number(Decimal("3250.57"))) == "3250.57"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_API_KEY", 401),
        ("INVALID_PARAMETER", 400),
        ("MISSING_PARAMETER", 400),
        ("CONTENT_MODERATION_FAILED", 400),
        ("TASK_CANCEL_NOT_ALLOWED", 400),
        ("INSUFFICIENT_CREDIT", 402),
        ("TASK_NOT_FOUND", 404),
        ("RATE_LIMIT_EXCEEDED", 429),
        ("CONCURRENCY_LIMIT_REACHED", 429),
        ("INTERNAL_ERROR", 500),
        ("TASK_SUBMIT_FAILED", 500),
        ("SERVICE_BUSY", 503),
        # Not in the document's table: "most responses use HTTP 200".
        ("COPYRIGHT_VIOLATION", 200),
        ("PRIVACY_VIOLATION", 200),
        ("CREDIT_DEDUCT_FAILED", 200),
        ("FILE_UPLOAD_FAILED", 200),
        ("VIDEO_DOWNLOAD_FAILED", 200),
    ],
)
def test_http_statuses_follow_the_documents_table(code, status):
    assert http_status(code) == status
    assert code in DESCRIPTIONS


def test_there_is_no_code_that_the_document_lacks():
    assert len(DESCRIPTIONS) == 17


def submit(**changes):
    body = {"content": [PROMPT], **changes}
    return submission(body, {"a.png": "image/png", "b.mp4": "video/mp4"}.get)


def test_defaults_are_the_documents():
    work = submit()
    assert (work.model, work.resolution, work.ratio, work.duration) == (
        "seedance-2.0",
        "720p",
        "16:9",
        5,
    )
    assert (work.generate_audio, work.seed, work.watermark) == (False, None, False)
    assert (work.callback_url, work.return_last_frame) == (None, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"duration": 4},
        {"duration": 15},
        {"seed": -1},
        {"seed": 0},
        {"seed": None},
        {"ratio": "21:9"},
        {"ratio": "adaptive"},
        {"callback_url": "https://example.com/" + "x" * 492},
        {"content": [{"type": "image_url", "image_url": "a.png"}]},
        {"content": [{"type": "video_url", "video_url": "b.mp4"}]},
        {"content": [{"type": "audio_url", "audio_url": "https://example.com/a.mp3"}]},
        {"content": [{"type": "sample_id", "sample_id": "s-1"}]},
        {"some_future_field": 1},
    ],
)
def test_what_the_document_allows_passes(changes):
    submit(**changes)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"duration": 3}, "INVALID_PARAMETER", "Invalid parameter: duration must be 4-15"),
        ({"duration": 16}, "INVALID_PARAMETER", "duration must be 4-15"),
        ({"duration": 8.0}, "INVALID_PARAMETER", "duration must be 4-15"),
        ({"duration": True}, "INVALID_PARAMETER", "duration must be 4-15"),
        ({"duration": "8"}, "INVALID_PARAMETER", "duration must be 4-15"),
        ({"seed": -2}, "INVALID_PARAMETER", "seed must be -1 or above"),
        ({"seed": True}, "INVALID_PARAMETER", "seed"),
        ({"model": "seedance-3"}, "INVALID_PARAMETER", "model must be one of"),
        ({"model": None}, "INVALID_PARAMETER", "model"),
        ({"resolution": "4k"}, "INVALID_PARAMETER", "resolution must be one of"),
        ({"ratio": "wide"}, "INVALID_PARAMETER", "ratio"),
        ({"generate_audio": "yes"}, "INVALID_PARAMETER", "generate_audio must be a boolean"),
        ({"watermark": 1}, "INVALID_PARAMETER", "watermark must be a boolean"),
        ({"callback_url": "ftp://x"}, "INVALID_PARAMETER", "callback_url"),
        ({"callback_url": "http://x/" + "x" * 504}, "INVALID_PARAMETER", "at most 512"),
        ({"content": None}, "MISSING_PARAMETER", "Missing parameter: content"),
        ({"content": []}, "INVALID_PARAMETER", "at least 1 item"),
        ({"content": "x"}, "INVALID_PARAMETER", "array"),
        ({"content": ["x"]}, "INVALID_PARAMETER", "content[0] must be an object"),
        ({"content": [PROMPT, {"text": "x"}]}, "MISSING_PARAMETER", "content[1].type"),
        ({"content": [{"type": "poem"}]}, "INVALID_PARAMETER", "content[0].type"),
        ({"content": [{"type": "text"}]}, "MISSING_PARAMETER", "content[0].text"),
        ({"content": [{"type": "text", "text": " "}]}, "INVALID_PARAMETER", "non-empty"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "INVALID_PARAMETER", ""),
        ({"content": [{"type": "image_url", "image_url": "no.png"}]}, "INVALID_PARAMETER", "file"),
        ({"content": [{"type": "image_url", "image_url": "b.mp4"}]}, "INVALID_PARAMETER", "image"),
        ({"content": [{**PROMPT, "path": "x"}]}, "INVALID_PARAMETER", "must not have path"),
    ],
)
def test_what_breaks_a_bound_is_refused_in_the_documents_words(changes, code, words):
    with pytest.raises(ApiError) as caught:
        submit(**changes)
    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(ApiError, match="JSON object"):
        submission(body, lambda _: None)


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("a.png", "image/png"),
        ("A.JPG", "image/jpeg"),
        ("a.jpeg", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("a.mp4", "video/mp4"),
        ("a.mov", "video/quicktime"),
        ("a.webm", "video/webm"),
        ("x" * 124 + ".png", "image/png"),
    ],
)
def test_presign_takes_the_documents_types(filename, content_type):
    assert presign({"filename": filename, "content_type": content_type})[0] == filename


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"content_type": "image/png"}, "MISSING_PARAMETER"),
        ({"filename": "a.png"}, "MISSING_PARAMETER"),
        ({"filename": "a.gif", "content_type": "image/gif"}, "INVALID_PARAMETER"),
        ({"filename": "a.mp3", "content_type": "audio/mpeg"}, "INVALID_PARAMETER"),
        ({"filename": "a.jpg", "content_type": "image/png"}, "INVALID_PARAMETER"),
        ({"filename": "x" * 125 + ".png", "content_type": "image/png"}, "INVALID_PARAMETER"),
    ],
)
def test_presign_refuses_the_rest(query, code):
    with pytest.raises(ApiError) as caught:
        presign(query)
    assert caught.value.code == code


def test_list_query_has_the_documents_bounds():
    assert list_query({}) == (1, 20, None)
    assert list_query({"page": "3", "page_size": "100", "status": "failed"}) == (3, 100, "failed")
    for query in (
        {"page": "0"},
        {"page": "-1"},
        {"page": "x"},
        {"page_size": "0"},
        {"page_size": "101"},
        {"status": "done"},
    ):
        with pytest.raises(ApiError):
            list_query(query)


def test_directives_are_read_from_any_prompt():
    wishes = parse(["A cat [sim: seconds=3, fail=PRIVACY_VIOLATION]", "x [sim: submit=lost*2]"])
    assert wishes.numbers == {"seconds": 3.0}
    assert wishes.word("fail") == "PRIVACY_VIOLATION"
    assert wishes.word("submit") == "lost*2"


@pytest.mark.parametrize(
    "text", ["[sim: sconds=3]", "[sim: seconds=soon]", "[sim: end=well]", "[sim: nonsense]"]
)
def test_a_misspelt_directive_is_refused(text):
    with pytest.raises(ApiError, match=r"sim:"):
        parse([text])


def test_the_clock_runs_jumps_and_remembers():
    real = [1000.0]
    clock = Clock(10, monotonic=lambda: real[0], wall=lambda: real[0])
    real[0] += 2
    assert clock.now() == 20
    clock.set_speed(1)
    real[0] += 5
    assert clock.now() == 25
    clock.advance(100)
    assert clock.now() == 125
    assert [clock.wall_of(sim) for sim in (0, 10, 20, 25, 60, 125, 126)] == [
        1000,
        1001,
        1002,
        1007,
        1007,
        1007,
        1008,
    ]
    assert clock.validity_now() == clock.wall() + 100


def test_a_stopped_clock_stands_still():
    real = [0.0]
    clock = Clock(0, monotonic=lambda: real[0], wall=lambda: real[0])
    real[0] += 60
    assert clock.now() == 0
    assert clock.wall_of(5) == 0


def test_ratios_can_come_back_normalised():
    assert ratio("16:9", "720p", "given") == "16:9"
    assert ratio("16:9", "720p", "pixels") == "1280x720"
    assert ratio("16:9", "720p", "decimal") == "1.78:1"
    assert ratio("adaptive", "720p", "pixels") == "adaptive"
