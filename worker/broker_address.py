"""The broker's address, in the one form that all who read it understand alike.

Three libraries read it: kombu, redis-py (`seedance doctor`) and limits (the shared request rate).
For `rediss://` kombu knows `CERT_REQUIRED` and redis-py only `required`; without either kombu
checks no certificate at all, and the others do. What one of them misreads would be noticed late.
For `sentinel://` and `amqps://` kombu takes options that no address can say: `read` has them.
"""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

Kind = Literal["redis", "sentinel", "amqp"]

_SCHEMES = re.compile(r"(rediss?|rediss?\+socket|sentinel|amqps?|socket)://")
_STORES = re.compile(r"(rediss?|sentinel)://")
_REQS = "ssl_cert_reqs"
_CHECKS = ("required", "optional", "none")
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHECK_HOST = "ssl_check_hostname"
_MASTER = "master_name"
_SENTINEL_PASSWORD = "sentinel_password"  # noqa: S105  (the name of an option)
_PATIENCE = {"socket_timeout": 5, "socket_connect_timeout": 3}


@dataclass(frozen=True)
class Address:
    """What kombu needs to reach the broker."""

    kind: Kind
    url: str = field(repr=False)
    """Without the options that kombu doesn't take from an address."""
    transport_options: dict[str, Any] = field(default_factory=dict, repr=False)
    ssl: dict[str, Any] | None = None
    """`broker_use_ssl`, where the address alone doesn't say it."""


def normalise(url: str) -> str:
    """The address with its TLS options written out; certificates are checked unless it says `none`.

    Several hosts (sentinels, nodes of a RabbitMQ) are parts separated by `;`, which all get the
    user, database and options of the first that has any. Raises ValueError, without the address,
    which may hold a password.
    """
    if re.search(r"\s", url):
        raise ValueError("has white space in it")
    parts = url.split(";")
    for part in parts:
        if not _SCHEMES.match(part):
            scheme = part.partition("://")[0][:20] if "://" in part else ""
            raise ValueError(
                f"has the scheme {scheme!r}; use redis://, rediss://, sentinel://, amqp:// or amqps://"
            )
    if len(parts) > 1 and not parts[0].startswith(("sentinel://", "amqp://", "amqps://")):
        raise ValueError("has several hosts, which only sentinel:// and amqp:// take")
    if len({urlsplit(part).scheme for part in parts}) > 1:
        raise ValueError("has several hosts with different schemes")
    if url.startswith("sentinel://"):
        return _sentinels(parts)
    if url.startswith(("rediss://", "amqps://")):
        return ";".join(_with_tls(part) for part in parts)
    if any("ssl_" in urlsplit(part).query for part in parts):
        raise ValueError("has ssl_ options, which only rediss:// and amqps:// take")
    return url


def normalise_store(url: str) -> str:
    """The address of a Valkey or Redis, alone or behind sentinels. Raises ValueError."""
    if not _STORES.match(url):
        scheme = url.partition("://")[0][:20]
        raise ValueError(f"has the scheme {scheme!r}; use redis://, rediss:// or sentinel://")
    return normalise(url)


def read(url: str) -> Address:
    """A normalised address, as kombu takes it."""
    if url.startswith("sentinel://"):
        parts = [urlsplit(part) for part in url.split(";")]
        options = dict(parse_qsl(parts[0].query))
        # These stand in for what redis-py would else give them of the master's options.
        to_sentinels: dict[str, Any] = dict(_PATIENCE)
        if _SENTINEL_PASSWORD in options:
            to_sentinels["password"] = options[_SENTINEL_PASSWORD]
        return Address(
            "sentinel",
            ";".join(urlunsplit(part._replace(query="")) for part in parts),
            {_MASTER: options[_MASTER], "sentinel_kwargs": to_sentinels},
        )
    if url.startswith("amqps://"):
        parts = [urlsplit(part) for part in url.split(";")]
        plain = ";".join(urlunsplit(part._replace(query="")) for part in parts)
        return Address("amqp", plain, ssl=_as_amqp(dict(parse_qsl(parts[0].query))))
    return Address("amqp" if url.startswith("amqp://") else "redis", url)


def as_store(url: str) -> tuple[str, dict[str, Any]] | None:
    """A normalised address as limits takes it, with its options; None if it leads to no Valkey."""
    if url.startswith(("redis://", "rediss://")):
        return url, {}
    if not url.startswith("sentinel://"):
        return None
    parts = [urlsplit(part) for part in url.split(";")]
    hosts = ",".join(f"{part.hostname}:{part.port or 26379}" for part in parts)
    known = read(url).transport_options
    login = {"username": parts[0].username, "password": parts[0].password}
    options = {name: unquote(value) for name, value in login.items() if value}
    return f"redis+sentinel://{hosts}/{known[_MASTER]}", {
        **options,
        "db": int(parts[0].path.strip("/")),
        # A replica may lag; and the master's login, which it would take, is not the sentinels'.
        "use_replicas": False,
        "sentinel_kwargs": {"username": None, "password": None, **known["sentinel_kwargs"]},
    }


def _sentinels(parts: list[str]) -> str:
    split = [urlsplit(part) for part in parts]
    options = dict(pair for part in split for pair in parse_qsl(part.query))
    for name in options:
        if name not in (_MASTER, _SENTINEL_PASSWORD):
            raise ValueError(
                f"has the option {name[:40]!r}; sentinel:// takes {_MASTER}, {_SENTINEL_PASSWORD}"
            )
    if not re.fullmatch(r"[\w.-]+", options.get(_MASTER, "")):
        raise ValueError(f"does not name the master: write sentinel://…?{_MASTER}=NAME")
    users = {user for part in split if (user := part.netloc.rpartition("@")[0])}
    paths = {part.path for part in split if part.path.strip("/")}
    if len(users) > 1 or len(paths) > 1:
        raise ValueError("has sentinels with different users or databases")
    if not all(re.fullmatch(r"/\d+", path) for path in paths):
        raise ValueError("names a database that is not a number")
    user = f"{users.pop()}@" if users else ""
    path, query = paths.pop() if paths else "/0", urlencode(options)
    hosts = [part.netloc.rpartition("@")[2] for part in split]
    return ";".join(f"sentinel://{user}{host}{path}?{query}" for host in hosts)


def _with_tls(url: str) -> str:
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


def _as_amqp(options: dict[str, str]) -> dict[str, Any]:
    """TLS as py-amqp takes it. It checks the name where it is told one: None is the host's own."""
    made: dict[str, Any] = {"cert_reqs": ssl.VerifyMode[f"CERT_{options[_REQS].upper()}"]}
    made |= {name[4:]: options[name] for name in _FILES if name in options}
    if made["cert_reqs"] is not ssl.CERT_NONE and options.get(_CHECK_HOST) != "false":
        made["server_hostname"] = None
    return made


__all__ = ["Address", "as_store", "normalise", "normalise_store", "read"]
