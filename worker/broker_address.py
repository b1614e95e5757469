"""The broker's address, in the one form that all who read it understand alike.

Three libraries read it: kombu, redis-py (`seedance doctor`) and limits (the shared request rate).
For `rediss://` kombu knows `CERT_REQUIRED` and redis-py only `required`; without either kombu
checks no certificate at all, and the others do. What one of them misreads would be noticed late.
"""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SCHEMES = re.compile(r"(rediss?|rediss?\+socket|sentinel|amqps?|socket)://")
_REQS = "ssl_cert_reqs"
_CHECKS = ("required", "optional", "none")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHECK_HOST = "ssl_check_hostname"


def normalise(url: str) -> str:
    """The address with its TLS options written out; certificates are checked unless it says `none`.

    Raises ValueError, without the address, which may hold a password.
    """
    if not _SCHEMES.match(url):
        scheme = url.partition("://")[0][:20]
        raise ValueError(f"has the scheme {scheme!r}; use redis:// or rediss://")
    if re.search(r"\s", url):
        raise ValueError("has white space in it")
    if not url.startswith("rediss://"):
        if "ssl_" in urlsplit(url).query:
            raise ValueError("has ssl_ options, which only rediss:// takes")
        return url
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = {name: options[name] for name in options if name.startswith("ssl_")}
    for name in tls:
        if name not in (_REQS, _CHECK_HOST, *_FILES):
            known = ", ".join((_REQS, *_FILES, _CHECK_HOST))
            raise ValueError(f"has the option {name[:40]!r}; those for TLS are {known}")
    options[_REQS] = _checks(tls.get(_REQS, "required"))
    if _CHECK_HOST in tls:
        options[_CHECK_HOST] = _yes_or_no(tls[_CHECK_HOST])
    for name in _FILES:
        if name in tls and not Path(tls[name]).is_file():
            raise ValueError(f"has {name}={tls[name][:200]!r}, which is no file here")
    return urlunsplit(parts._replace(query=urlencode(options, safe="/:")))


def _checks(given: str) -> str:
    wanted = given.lower().removeprefix("cert_")
    if wanted not in _CHECKS:
        raise ValueError(f"has {_REQS}={given[:40]!r}; use {', '.join(_CHECKS)}")
    return wanted


def _yes_or_no(given: str) -> str:
    if given.lower() not in ("true", "false"):
        raise ValueError(f"has {_CHECK_HOST}={given[:40]!r}; use true or false")
    return given.lower()
