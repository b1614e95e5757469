"""Addresses of an archive: what is understood, and what a refusal says."""

import importlib.util
import re

import pytest

from worker.archive.address import ALLOWED, parse


@pytest.mark.parametrize(
    ("url", "protocol", "path", "again"),
    [
        ("file:///srv/videos", "file", "/srv/videos", "file:///srv/videos"),
        ("file:///srv/videos/", "file", "/srv/videos", "file:///srv/videos"),
        ("file://localhost/srv", "file", "/srv", "file:///srv"),
        ("file:///my%20videos", "file", "/my videos", "file:///my%20videos"),
        ("s3://bucket", "s3", "bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3", "bucket/a/b", "s3://bucket/a/b"),
    ],
)
def test_an_address_is_taken_apart_and_put_together(url, protocol, path, again):
    found = parse(url)
    assert (found.protocol, found.path, str(found)) == (protocol, path, again)
    assert parse(again) == found


@pytest.mark.parametrize(
    "url", ["/srv/videos", "ftp://h/x", "https://h/x", "memory://x", "S3://b", "s3:b", "://"]
)
def test_other_protocols_are_refused_with_what_is_allowed(url):
    with pytest.raises(ValueError, match=re.escape(f"is {url!r}; {ALLOWED}")):
        parse(url)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://secret@bucket"])
def test_credentials_are_refused_and_not_shown(url):
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as caught:
        parse(url)
    assert "secret" not in str(caught.value)
    assert "bucket" in str(caught.value)


def test_a_query_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="without") as caught:
        parse("s3://bucket/x?token=hidden")
    assert "hidden" not in str(caught.value)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs s3fs: pip install 'seedance-worker\[s3\]'"):
        parse("s3://bucket")
