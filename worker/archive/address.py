"""Where the archive is, as an address: `file:///srv/videos`, `s3://bucket/folder`."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from api_client import redact

_NEEDS = {
    "file": None,
    "s3": ("s3fs", "pip install 'seedance-worker[s3]'"),
    "gs": ("gcsfs", "pip install gcsfs"),
    "az": ("adlfs", "pip install adlfs"),
}
"""The protocols, and what has to be installed for each: object stores in which a file is there when
it is whole, and local folders, where we see to that ourselves."""

ALLOWED = "write file:///folder, s3://bucket/folder, gs://bucket/folder or az://container/folder"


@dataclass(frozen=True)
class Address:
    """A checked address."""

    protocol: str
    path: str
    """The folder of `file`, else bucket and folder, without a slash at the end."""

    def __str__(self) -> str:
        path = quote(self.path) if self.protocol == "file" else self.path
        return f"{self.protocol}://{path}"


def parse(url: str) -> Address:
    """Take an address apart. Raises ValueError, which says what is wrong and what is allowed.

    Credentials don't belong here: they come from the environment, as each library reads it.
    """
    shown = repr(redact(url)[:80])
    protocol, separator, rest = url.partition("://")
    if not separator or protocol not in _NEEDS:
        raise ValueError(f"is {shown}; {ALLOWED}")
    if re.search(r"[\s\x00-\x1f?#]", rest):
        raise ValueError(f"is {shown}: without spaces, query or fragment; {ALLOWED}")
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            f"is {shown}: without user or key, which the environment gives"
            f" (AWS_ACCESS_KEY_ID and the like); {ALLOWED}"
        )
    path = rest.rstrip("/")
    if ".." in PurePosixPath(path).parts:
        raise ValueError(f"is {shown}: without `..`; {ALLOWED}")
    if protocol == "file":
        path = unquote(urlsplit(url).path).rstrip("/")
        if urlsplit(url).netloc not in ("", "localhost") or not path.startswith("/"):
            raise ValueError(f"is {shown}: an absolute folder after file://; {ALLOWED}")
    elif not path.partition("/")[0]:
        raise ValueError(f"is {shown}: it names no bucket; {ALLOWED}")
    needs = _NEEDS[protocol]
    if needs is not None and importlib.util.find_spec(needs[0]) is None:
        raise ValueError(f"is {shown}, which needs {needs[0]}: {needs[1]}")
    return Address(protocol, path)
