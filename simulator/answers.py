"""What goes back over the wire: an envelope, until a fault turns it into something worse."""

import json
from dataclasses import dataclass, field
from typing import Any

from simulator.errors import ApiError, http_status

JSON = "application/json"


@dataclass(slots=True)
class Answer:
    """An HTTP answer in the making. `envelope` is written as JSON unless `raw` is set."""

    status: int = 200
    envelope: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON
    raw: bytes | None = None
    # Send only this share of the body, then close the connection.
    cut_connection: float | None = None

    def body(self) -> bytes:
        """The bytes of the body."""
        if self.raw is not None:
            return self.raw
        return json.dumps(self.envelope, ensure_ascii=False, separators=(",", ":")).encode()

    @property
    def outcome(self) -> str:
        """One word for the counters: the envelope's code, or the bare HTTP status."""
        return str(self.envelope["code"]) if self.envelope else f"bare {self.status}"


def success(result: Any) -> Answer:
    """The document's success envelope."""
    return Answer(envelope={"code": "200", "message": "Success", "result": result})


def failure(error: ApiError, style: str = "mapped") -> Answer:
    """The document's error envelope, under its HTTP status or under 200."""
    envelope: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.result is not None:
        envelope["result"] = error.result
    status = 200 if style == "ok200" else http_status(error.code)
    headers = {} if error.retry_after is None else {"Retry-After": error.retry_after}
    return Answer(status, envelope, headers)


def bare(status: int, text: str | None = None) -> Answer:
    """The words of something between caller and provider, which knows no envelope."""
    title = text or {502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Time-out"}.get(
        status, "Error"
    )
    page = f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n"
    page += f"<center><h1>{status} {title}</h1></center>\r\n<hr><center>nginx</center>\r\n"
    page += "</body>\r\n</html>\r\n"
    return Answer(status, raw=page.encode(), content_type="text/html")
