"""The door: what a producer may give, and that nothing is silently corrected."""

import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_client import GenerationRequest, InvalidRequest
from worker.requests import (
    MAX_METADATA_BYTES,
    MAX_REQUEST_BYTES,
    _checked,
    check_request,
    is_source,
    new_generation,
)

TEXT = {"type": "text", "text": "a cat"}


def request(*more, **fields):
    return {"content": [TEXT, *more], **fields}


def image(value: str) -> dict[str, str]:
    return {"type": "image_url", "image_url": value}


def refused(field: str, *args, **options) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        new_generation(*args, **options)
    assert field in caught.value.field
    assert caught.value.allowed
    assert caught.value.allowed in str(caught.value)
    return caught.value


def test_every_default_is_filled_in_so_that_equal_requests_are_equal():
    checked = check_request(request())
    assert checked.body == {
        "model": "seedance-2.0",
        "content": [TEXT],
        "resolution": "720p",
        "ratio": "16:9",
        "duration": 5,
        "generate_audio": checked.body["generate_audio"],
        "seed": None,
        "watermark": checked.body["watermark"],
        "return_last_frame": checked.body["return_last_frame"],
        "callback_url": None,
    }
    assert checked.estimated_cost == Decimal(9)
    assert not checked.has_sources
    assert check_request(GenerationRequest.model_validate(request())) == checked
    assert check_request(checked.body) == checked, "checking again changes nothing"


_ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 5, 5.0, "5", 4, 16, 2**31, 2**63, "", "x", "16:9", "adaptive",
     "1080p", "480p", "seedance-2.0-fast", "text", "image_url", "path:a.png", "\x00", "\ud800",
     "한국", [], {}, b"x"]
)  # fmt: skip
_FIELDS = st.sampled_from([*GenerationRequest.model_fields, "unknown"])
_ITEM = st.one_of(
    st.just(TEXT),
    st.dictionaries(st.sampled_from(["type", "text", "image_url"]), _ODD, max_size=3),
    _ODD,
)


def told(check) -> object:
    try:
        return check()
    except InvalidRequest as error:
        return str(error)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(_FIELDS, _ODD, max_size=3), st.lists(_ITEM, max_size=3))
def test_what_was_found_good_before_is_checked_as_what_was_not(options, content):
    """The short way through says what the whole check says, of the good and of the bad."""
    asked = {"content": content, **options}
    for _ in range(2):
        assert told(lambda: check_request(asked)) == told(
            lambda: _checked(GenerationRequest.model_validate(asked))
        )


def test_options_are_not_known_by_values_that_only_compare_equal():
    assert check_request(request(duration=5, watermark=True)).body["watermark"] is True
    refused("duration", request(duration=5.0, watermark=True))
    refused("watermark", request(duration=5, watermark=1))


def test_what_is_known_is_not_changed_by_who_asked():
    check_request(request(duration=7)).body["duration"] = 15
    check_request(request(duration=7)).body["content"].append({"type": "text", "text": "more"})
    assert check_request(request(duration=7)).body["duration"] == 7
    assert check_request(request(duration=7)).body["content"] == [TEXT]


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("duration", {"duration": 3}),
        ("duration", {"duration": 16}),
        ("duration", {"duration": "5"}),
        ("duration", {"duration": True}),
        ("duration", {"duration": 5.5}),
        ("resolution", {"resolution": "4k"}),
        ("model", {"model": "sora"}),
        ("ratio", {"ratio": "wide"}),
        ("seed", {"seed": -2}),
        ("seed", {"seed": 2**63}),
        ("seed", {"seed": "1"}),
        ("generate_audio", {"generate_audio": "yes"}),
        ("content", {"content": []}),
        ("content", {"content": "a cat"}),
        ("content", {"content": [{"type": "text"}]}),
        ("content", {"content": [{"type": "smell", "smell": "x"}]}),
    ],
)
def test_a_documented_bound_is_kept(field, fields):
    refused(field, request(**fields))


@pytest.mark.parametrize("what", [None, 5, "a cat", [TEXT], b"{}"])
def test_what_is_no_object_is_no_request(what):
    refused("request", what)


def test_an_unknown_field_is_refused_rather_than_dropped():
    refused("durration", request(durration=5))


def test_notices_are_refused_while_none_are_sent():
    for notify in ("https://example.com/hook", {}, False, 0, ""):
        refused("notify", request(), notify=notify)


# --- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "source"),
    [
        ("image_url", "path:a.png", True),
        ("image_url", "PATH:a.png", True),
        ("video_url", "https://example.com/a.mp4", True),
        ("video_url", "http://10.0.0.1/a.mp4", True),
        ("image_url", "s3://bucket/a.png", True),
        ("image_url", "uploads/a.png", False),
        ("audio_url", "https://example.com/a.mp3", False),
        ("text", "path:a.png", False),
        ("image_url", "file:///etc/passwd", False),
    ],
)
def test_what_must_be_uploaded_first(kind, value, source):
    assert is_source(kind, value) is source


def test_a_request_with_a_source_says_so():
    assert check_request(request(image("path:a.png"))).has_sources
    assert not check_request(request(image("uploads/a.png"))).has_sources


@pytest.mark.parametrize(
    "value",
    [
        "path:",
        "path:/",
        "path:  ",
        "https://",
        "s3:///",
        "path:../etc/passwd",
        "path:a/../../b.png",
        "path:/media/..",
        "s3://bucket/../other",
        "path:a\x00.png",
        "https://[bad/a.png",
    ],
)
def test_a_source_is_a_plain_path(value):
    with pytest.raises(InvalidRequest):
        check_request(request(image(value)))


# --- what else a producer may give -------------------------------------------------------------


@pytest.mark.parametrize("priority", [True, 1.0, "1", 32_768, -32_768, None])
def test_a_priority_is_a_small_whole_number(priority):
    refused("priority", request(), priority=priority)


@pytest.mark.parametrize("priority", [-32_767, 0, 32_767])
def test_priorities_fit_their_column(priority):
    assert new_generation(request(), priority=priority).priority == priority


@pytest.mark.parametrize("field", ["tenant", "idempotency_key"])
@pytest.mark.parametrize("value", ["", "x" * 201, "a\x00", "a\nb", 5, b"a", "\ud800"])
def test_names_are_printable_and_short(field, value):
    refused(field, request(), **{field: value})


def test_names_may_be_in_any_script():
    new = new_generation(request(), tenant="магазин", idempotency_key="注文-1 " + "x" * 190)
    assert (new.tenant, new.idempotency_key) == ("магазин", "注文-1 " + "x" * 190)
    assert new_generation(request()).tenant == "default"


@pytest.mark.parametrize(
    "value",
    [
        {"a": "\x00"},
        {"\x00": "a"},
        {"a": "\ud800"},
        {"\udfff": "a"},
        {"a": {"b": ["c", {"d": "\x00"}]}},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": {5: "b"}},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": Decimal(1)},
        {"a": datetime(2026, 1, 1, tzinfo=UTC)},
        {"a": uuid.UUID(int=1)},
        {"a": MappingProxyType({"b": 1})},
        {"a": bytearray(b"bytes")},
        {"a": range(3)},
    ],
    ids=repr,
)
def test_metadata_is_what_jsonb_can_keep(value):
    refused("metadata", request(), metadata=value)


@pytest.mark.parametrize("value", ["text", ["a"], 5, True])
def test_metadata_is_an_object(value):
    refused("metadata", request(), metadata=value)


def test_metadata_is_kept_as_it_is():
    value = {"order": 7, "note": "ünï 🎬", "deep": [{"a": None, "b": [1.5, True]}], "": ""}
    new = new_generation(request(), metadata=value)
    assert new.metadata == value
    assert new_generation(request(), metadata={}).metadata == {}
    assert new_generation(request()).metadata is None


def test_metadata_has_a_size():
    room = MAX_METADATA_BYTES - len('{"a": ""}')
    assert new_generation(request(), metadata={"a": "x" * room}).metadata
    error = refused("metadata", request(), metadata={"a": "x" * (room + 1)})
    assert str(MAX_METADATA_BYTES) in str(error)
    refused("metadata", request(), metadata={"a": "🎬" * (room // 4)})


def test_metadata_may_not_be_endlessly_deep():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    refused("metadata", request(), metadata={"a": deep})


@pytest.mark.parametrize("text", ["\x00", "a\ud800b"])
def test_a_prompt_is_text(text):
    with pytest.raises(InvalidRequest):
        check_request(request({"type": "text", "text": text}))


def test_a_request_has_a_size():
    said = r"^request is '\d+ bytes of JSON'; allowed: at most 262144 bytes$"
    with pytest.raises(InvalidRequest, match=said):
        check_request(request(image("uploads/" + "x" * MAX_REQUEST_BYTES)))


def test_a_deadline_has_its_zone():
    refused("deadline", request(), deadline=datetime(2026, 1, 1))  # noqa: DTZ001
    deadline = datetime(2026, 1, 1, tzinfo=UTC)
    assert new_generation(request(), deadline=deadline).deadline == deadline


def test_ids_are_given_or_drawn():
    generation_id = uuid.uuid4()
    assert new_generation(request(), generation_id=generation_id).id == generation_id
    assert new_generation(request()).id != new_generation(request()).id


@pytest.mark.parametrize(
    "deadline", ["2026-01-01T00:00:00Z", 1e9, date(2026, 1, 1), timedelta(hours=1)], ids=repr
)
def test_a_deadline_of_another_type_is_named(deadline):
    refused("deadline", request(), deadline=deadline)


class _Unshowable:
    def __repr__(self) -> str:
        raise ValueError("not today")


@pytest.mark.parametrize("value", [10**5_000, _Unshowable()], ids=["digits", "repr"])
def test_a_value_that_cannot_be_shown_is_refused_all_the_same(value):
    """Python itself refuses to write a number of more than 4,300 digits."""
    refused("duration", request(duration=value))
    refused("seed", request(seed=value))
    refused("idempotency_key", request(), idempotency_key=value)
    refused("priority", request(), priority=value)
    refused("metadata", request(), metadata={"order": [value]})


def test_a_place_in_a_list_is_named():
    many = [image(f"path:{number}.png") for number in range(9)]
    assert refused("", request(*many, "a dog")).field == "content.10"
    assert refused("", request(*many, image("path:../x"))).field == "content.10.image_url"
    assert refused("", request(*many, image("a\0"))).field == "request.content.10.image_url"
    assert refused("", request(), metadata={"a": [1, {"b": {2}}]}).field == "metadata.a.1.b"


def test_half_a_character_is_no_matter_of_length():
    error = refused("content.0.text", {"content": [{"type": "text", "text": "a\ud800"}]})
    assert "Unicode" in error.allowed
