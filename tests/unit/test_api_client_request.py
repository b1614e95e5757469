"""The submit body: every bound in the provider's document, and what a refusal says."""

import json
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api_client import PRICES, ContentItem, GenerationRequest, InvalidRequest, estimate_cost

TEXT = {"type": "text", "text": "A cat running under cherry blossoms"}


def request(**fields):
    return GenerationRequest(**{"content": [TEXT], **fields})


def refusal(**fields) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    return caught.value


def test_defaults_are_the_documents_and_are_sent_explicitly():
    assert request().body() == {
        "model": "seedance-2.0",
        "content": [TEXT],
        "resolution": "720p",
        "ratio": "16:9",
        "duration": 5,
        "generate_audio": False,
        "watermark": False,
        "return_last_frame": False,
    }


@pytest.mark.parametrize("seed", [-1, 0, 1, 2**31, 2**63 - 1])
def test_seeds_that_are_sent(seed):
    assert request(seed=seed).body()["seed"] == seed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("duration", 3),
        ("duration", 16),
        ("duration", True),
        ("duration", "5"),
        ("duration", 5.0),
        ("duration", None),
        ("seed", -2),
        ("seed", 2**63),
        ("seed", True),
        ("seed", "1"),
        ("seed", 1.0),
        ("model", "seedance-1.0"),
        ("model", ""),
        ("resolution", "4k"),
        ("ratio", "16x9"),
        ("ratio", "16:9\n"),
        ("ratio", "0:9"),
        ("ratio", "１６:9"),
        ("ratio", ""),
        ("ratio", 1.5),
        ("generate_audio", "true"),
        ("generate_audio", 1),
        ("watermark", None),
        ("return_last_frame", 0),
        ("callback_url", "h" * 513),
        ("callback_url", ""),
        ("callback_url", 5),
        ("content", []),
        ("content", ()),
        ("content", None),
        ("content", "text"),
        ("content", {"type": "text", "text": "x"}),
    ],
)
def test_a_broken_bound_names_field_value_and_bound(field, value):
    error = refusal(**{field: value})
    assert error.field == field
    assert str(error).startswith(f"{field} is {value!r}"[:60])
    assert "; allowed: " in str(error)
    assert error.allowed


@pytest.mark.parametrize("duration", range(4, 16))
@pytest.mark.parametrize("ratio", ["16:9", "21:9", "9:16", "1:1", "adaptive"])
def test_inside_the_bounds(duration, ratio):
    body = request(duration=duration, ratio=ratio, callback_url="h" * 512).body()
    assert (body["duration"], body["ratio"], len(body["callback_url"])) == (duration, ratio, 512)


def test_all_that_is_wrong_is_said_at_once():
    error = refusal(duration=99, seed=-5)
    assert [problem.split()[0] for problem in error.problems] == ["duration", "seed"]


def test_unknown_and_missing_fields():
    assert "only the fields" in str(refusal(fps=24))
    with pytest.raises(InvalidRequest, match="content is missing; allowed: a list of at least 1"):
        GenerationRequest()  # type: ignore[call-arg] # that is the point
    with pytest.raises(InvalidRequest, match="an object"):
        GenerationRequest.model_validate("text")


@pytest.mark.parametrize("type_", ["text", "image_url", "video_url", "audio_url", "sample_id"])
def test_content_items(type_):
    item = ContentItem(type=type_, **{type_: "value"})
    assert item.value == "value"
    assert item.body() == {"type": type_, type_: "value"}
    assert ContentItem.of(type_, "value") == item


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"type": "text"}, "text"),
        ({"type": "text", "text": ""}, "text"),
        ({"type": "text", "text": None}, "text"),
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ({"type": "image_url", "text": "x"}, "image_url"),
        ({"type": "text", "text": "x", "image_url": "y"}, "text"),
        ({"type": "voice", "voice": "x"}, "type"),
        ({"text": "x"}, "type"),
        ({"type": "text", "text": "x", "role": "first_frame"}, "role"),
        ({"type": "text", "text": "\ud800"}, "text"),
    ],
)
def test_a_bad_item_is_named_with_its_place(item, field):
    assert refusal(content=[TEXT, item]).field == f"content.1.{field}"
    with pytest.raises(InvalidRequest) as alone:
        ContentItem.model_validate(item)
    assert alone.value.field == field


@pytest.mark.parametrize("item", ["a cat", None, 5, ["text", "a cat"]])
def test_what_is_no_item_is_named_by_its_place(item):
    error = refusal(content=[TEXT, item])
    assert (error.field, error.value) == ("content.1", item)
    assert '{"type": "text"' in error.allowed


def test_a_refusal_keeps_secrets_and_is_short():
    message = str(refusal(callback_url="https://host/hook?token=secret" + "x" * 600))
    assert "secret" not in message
    assert len(str(refusal(ratio="x" * 10_000))) < 300


def test_requests_are_frozen_and_survive_json():
    first = request(seed=0, callback_url="https://host/hook")
    with pytest.raises(ValidationError):
        first.seed = 1
    assert GenerationRequest.model_validate_json(first.model_dump_json()) == first
    assert GenerationRequest.model_validate(json.loads(json.dumps(first.body()))) == first
    assert len({first, first.model_copy()}) == 1


def test_reprs_hide_queries():
    shown = repr(
        request(
            content=[{"type": "image_url", "image_url": "https://h/i.png?token=secret"}],
            callback_url="https://h/hook?token=secret",
        )
    )
    assert "secret" not in shown
    assert "https://h/i.png?…" in shown


@pytest.mark.parametrize(
    ("model", "resolution", "price", "printed"),
    [
        ("seedance-2.0", "1080p", "4.5", "36.0"),
        ("seedance-2.0", "720p", "1.8", "14.4"),
        ("seedance-2.0", "480p", "0.9", "7.2"),
        ("seedance-2.0-fast", "1080p", "3.312", "26.496"),
        ("seedance-2.0-fast", "720p", "1.44", "11.52"),
        ("seedance-2.0-fast", "480p", "0.72", "5.76"),
    ],
)
def test_prices_are_the_documents_and_exact(model, resolution, price, printed):
    assert PRICES[model, resolution] == Decimal(price)
    cost = estimate_cost(request(model=model, resolution=resolution, duration=8))
    assert cost == Decimal(printed)
    assert isinstance(cost, Decimal)
    assert cost == estimate_cost(model=model, resolution=resolution, duration=8)


def test_no_price():
    with pytest.raises(InvalidRequest, match="seedance-3 720p"):
        estimate_cost(model="seedance-3", resolution="720p", duration=5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from([*GenerationRequest.model_fields, "other"])


@given(st.dictionaries(FIELDS, JSON, max_size=4) | JSON)
def test_anything_at_all_is_a_request_or_an_invalid_request(data):
    with suppress(InvalidRequest):
        made = GenerationRequest.model_validate(data)
        assert GenerationRequest.model_validate(made.body()) == made
