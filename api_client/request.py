"""The submit body, checked before anything is sent (section "Submit Video Generation Task")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from api_client.errors import InvalidRequest, Missing
from api_client.redaction import redact_all

ModelName = Literal["seedance-2.0", "seedance-2.0-fast"]
Resolution = Literal["480p", "720p", "1080p"]
ContentType = Literal["text", "image_url", "video_url", "audio_url", "sample_id"]

MAX_SEED: Final = 2**63 - 1
"""The document names no upper bound; this is the largest that databases and JSON readers keep."""

_RATIO = re.compile(r"[1-9][0-9]*:[1-9][0-9]*|adaptive")

_ALLOWED: Final[dict[str, str]] = {
    "model": f"one of {', '.join(get_args(ModelName))}",
    "resolution": f"one of {', '.join(get_args(Resolution))}",
    "ratio": "W:H in whole numbers, such as 16:9, or adaptive",
    "duration": "a whole number of seconds from 4 to 15",
    "generate_audio": "true or false",
    "seed": f"a whole number from -1 (random) to {MAX_SEED}",
    "watermark": "true or false",
    "callback_url": "text of 1 to 512 characters",
    "return_last_frame": "true or false",
    "content": "a list of at least 1 item",
    "type": f"one of {', '.join(get_args(ContentType))}",
}
_ITEM: Final = 'an object, such as {"type": "text", "text": "…"}'
_ITEM_VALUE: Final = "a text of at least 1 character, under the name that `type` gives"


def _ratio(value: str) -> str:
    # Form only: the document's list of ratios is blank.
    if not _RATIO.fullmatch(value):
        raise ValueError("not a ratio")
    return value


def _items(value: Any) -> Any:
    """Items one by one, so that a refusal says which of them it means."""
    if not isinstance(value, list | tuple):
        raise ValueError("not a list")  # noqa: TRY004 - pydantic wants a ValueError
    items = []
    for number, item in enumerate(value):
        if not isinstance(item, ContentItem | Mapping):
            raise InvalidRequest(f"content.{number}", item, _ITEM)
        try:
            items.append(ContentItem.model_validate(item))
        except InvalidRequest as error:
            place = f"content.{number}."
            raise InvalidRequest(
                place + error.field,
                error.value,
                error.allowed,
                more=tuple(place + problem for problem in error.problems[1:]),
            ) from None
    return items if isinstance(value, list) else tuple(items)


class _Input(BaseModel):
    """Frozen, strict, without unknown fields; raises `InvalidRequest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            checked = handler(data)
        except ValidationError as error:
            problems = [_explain(cls, dict(item)) for item in error.errors(include_url=False)]
        else:
            checked.check()
            return checked
        # Outside the except block: pydantic's own message would quote values in full.
        first, *rest = (InvalidRequest(*problem) for problem in problems)
        raise InvalidRequest(
            first.field, first.value, first.allowed, more=tuple(str(other) for other in rest)
        )

    def check(self) -> None:
        """What concerns more than one field. Raises `InvalidRequest`."""

    def __repr_args__(self) -> Any:
        return [(name, redact_all(value)) for name, value in super().__repr_args__()]


def _explain(model: type[BaseModel], error: dict[str, Any]) -> tuple[str, Any, str]:
    """Field, value and bound of one of pydantic's errors."""
    location = [str(part) for part in error["loc"]]
    field = ".".join(location) or model.__name__
    name = location[0] if location else ""
    if error["type"] == "extra_forbidden":
        return field, error["input"], f"only the fields {', '.join(model.model_fields)}"
    if error["type"] == "string_unicode":
        return field, error["input"], "Unicode text, without half a character"
    value = Missing() if error["type"] == "missing" else error["input"]
    return field, value, _ALLOWED.get(name, _ITEM_VALUE if name else "an object")


class ContentItem(_Input):
    """One reference or prompt: `{"type": T, T: value}`, the value a flat text.

    For `image_url` and `video_url` the value is the `file_path` of an upload, or a URL; audio
    can't be uploaded, so `audio_url` is a URL or a path that the provider can read already.

        >>> ContentItem(type="text", text="A cat under cherry blossoms").value
        'A cat under cherry blossoms'
    """

    type: ContentType
    text: Annotated[StrictStr, Field(min_length=1)] | None = None
    image_url: Annotated[StrictStr, Field(min_length=1)] | None = None
    video_url: Annotated[StrictStr, Field(min_length=1)] | None = None
    audio_url: Annotated[StrictStr, Field(min_length=1)] | None = None
    sample_id: Annotated[StrictStr, Field(min_length=1)] | None = None

    def check(self) -> None:
        given = [name for name in get_args(ContentType) if getattr(self, name) is not None]
        if given != [self.type]:
            values = {name: getattr(self, name) for name in given}
            raise InvalidRequest(
                self.type,
                values.get(self.type, Missing()) if len(given) < 2 else values,
                f"a text under `{self.type}`, as `type` says, and nothing besides",
            )

    @classmethod
    def of(cls, type: ContentType, value: str) -> Self:  # noqa: A002 - the provider's own word
        """An item from its type and value."""
        return cls.model_validate({"type": type, type: value})

    @property
    def value(self) -> str:
        return cast("str", getattr(self, self.type))

    def body(self) -> dict[str, str]:
        """The item as it is sent."""
        return {"type": self.type, self.type: self.value}


class GenerationRequest(_Input):
    """The body of a submit. Building one checks every bound in the document.

    Nothing is converted: `"5"` or `True` is no duration. Raises `InvalidRequest`, which names
    field, value and what is allowed.
    """

    model: ModelName = "seedance-2.0"
    content: Annotated[tuple[ContentItem, ...], Field(min_length=1), BeforeValidator(_items)]
    resolution: Resolution = "720p"
    ratio: Annotated[StrictStr, AfterValidator(_ratio)] = "16:9"
    duration: Annotated[StrictInt, Field(ge=4, le=15)] = 5
    """Seconds."""
    generate_audio: StrictBool = False
    seed: Annotated[StrictInt, Field(ge=-1, le=MAX_SEED)] | None = None
    """-1 means random, 0 is an ordinary seed, None leaves it out."""
    watermark: StrictBool = False
    callback_url: Annotated[StrictStr, Field(min_length=1, max_length=512)] | None = None
    return_last_frame: StrictBool = False

    def body(self) -> dict[str, Any]:
        """The JSON body of the POST.

        Everything that is known is sent, defaults too, since providers' defaults differ; only a
        seed and a callback that are None are left out.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "content": [item.body() for item in self.content],
            "resolution": self.resolution,
            "ratio": self.ratio,
            "duration": self.duration,
            "generate_audio": self.generate_audio,
            "seed": self.seed,
            "watermark": self.watermark,
            "callback_url": self.callback_url,
            "return_last_frame": self.return_last_frame,
        }
        return {name: value for name, value in body.items() if value is not None}
