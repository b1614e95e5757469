"""Uploaded files and signed URLs: what a presign promises, and what a PUT is held against."""

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

BUCKET = "seedance-media"
_DATE = "%Y%m%dT%H%M%SZ"


class StorageError(Exception):
    """A refusal in the storage's own words: S3-like XML, no envelope."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(f"{code}: {message}")

    def xml(self) -> bytes:
        """The body of the refusal."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>"
        ).encode()


class Signer:
    """Signs URLs with a secret of this process."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def sign(self, *parts: object) -> str:
        """A signature over some words."""
        text = "\n".join(map(str, parts)).encode()
        return hmac.digest(self._secret, text, "sha256").hex()

    def matches(self, signature: str, *parts: object) -> bool:
        """Whether a signature is ours."""
        return hmac.compare_digest(signature.encode(), self.sign(*parts).encode())

    def media_url(self, origin: str, name: str, expires: int) -> str:
        """A signed URL of a video or a last frame."""
        token = self.sign("media", name, expires)[:40]
        return f"{origin}/cdn/{name}?token={token}&expires={expires}"

    def check_media(self, name: str, query: Mapping[str, str], now: float) -> None:
        """Raise StorageError unless the URL is ours and still valid."""
        token, expires = query.get("token", ""), query.get("expires", "")
        if not hmac.compare_digest(token.encode(), self.sign("media", name, expires)[:40].encode()):
            raise StorageError(403, "AccessDenied", "The token does not match")
        if now >= int(expires):
            raise StorageError(403, "AccessDenied", "Request has expired")


@dataclass(slots=True)
class Upload:
    """A presigned file, with its bytes once they were put."""

    file_path: str
    api_key: str
    content_type: str
    data: bytes | None = None
    puts: int = 0
    refusals: list[str] = field(default_factory=list)

    def view(self) -> dict[str, Any]:
        """As the admin API shows it."""
        stored = self.data
        return {
            "file_path": self.file_path,
            "api_key": self.api_key,
            "content_type": self.content_type,
            "size": None if stored is None else len(stored),
            "sha256": None if stored is None else hashlib.sha256(stored).hexdigest(),
            "puts": self.puts,
            "refusals": list(self.refusals),
        }


class UploadStore:
    """All uploads, by file_path."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._uploads: dict[str, Upload] = {}

    def presign(
        self,
        *,
        api_key: str,
        account: int,
        filename: str,
        content_type: str,
        origin: str,
        now: float,
        valid: int,
    ) -> tuple[str, str]:
        """A file_path of its own, and the URL to put its bytes to."""
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
        path = f"api/uploads/{account}/{uuid.uuid4().hex}_{safe}"
        self._uploads[path] = Upload(path, api_key, content_type)
        date = datetime.fromtimestamp(int(now), UTC).strftime(_DATE)
        signature = self._signer.sign("PUT", path, content_type, date, valid)
        query = (
            f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={valid}"
            f"&X-Amz-SignedHeaders=content-type%3Bhost&X-Amz-Signature={signature}"
        )
        return f"{origin}/{BUCKET}/{quote(path)}?{query}", path

    def check_put(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str], now: float
    ) -> Upload:
        """The upload that a PUT is for; raises StorageError as an S3 would refuse it."""
        upload = self._uploads.get(path)
        date, valid = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        if upload is None or not self._signer.matches(
            query.get("X-Amz-Signature", ""), "PUT", path, upload.content_type, date, valid
        ):
            raise StorageError(403, "SignatureDoesNotMatch", "The signature does not match")
        try:
            self._check_signed(upload, date, int(valid), headers, now)
        except StorageError as error:
            upload.refusals.append(error.code)
            raise
        return upload

    def find(self, path: str) -> Upload | None:
        """The upload of that path."""
        return self._uploads.get(path)

    def stored_type(self, api_key: str, path: str) -> str | None:
        """The content type of a file that this key has uploaded, None if it hasn't."""
        upload = self._uploads.get(path)
        if upload is None or upload.data is None or upload.api_key != api_key:
            return None
        return upload.content_type

    def all(self) -> list[Upload]:
        """Every presigned file, oldest first."""
        return list(self._uploads.values())

    @staticmethod
    def _check_signed(
        upload: Upload, date: str, valid: int, headers: Mapping[str, str], now: float
    ) -> None:
        signed = datetime.strptime(date, _DATE).replace(tzinfo=UTC).timestamp()
        if now >= signed + valid:
            raise StorageError(403, "AccessDenied", "Request has expired")
        if "X-API-Key" in headers:
            raise StorageError(400, "InvalidRequest", "The API key must not be sent to storage")
        if headers.get("Content-Type") != upload.content_type:
            raise StorageError(
                403, "SignatureDoesNotMatch", f"Content-Type must be {upload.content_type}"
            )
        if "Content-Length" not in headers:
            raise StorageError(411, "MissingContentLength", "Content-Length is required")
