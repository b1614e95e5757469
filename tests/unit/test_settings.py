"""Settings: every variable is read, every wrong one is named, no secret is shown."""

import base64
import re
from pathlib import Path

import pytest

from models.database import normalise_url
from models.submission import Timing
from worker.settings import (
    OUTSIDE,
    Settings,
    SettingsError,
    load_settings,
    unknown_variables,
)

SECRET = "sk-very-secret"
NEEDED = {
    "SEEDANCE_API_KEY": SECRET,
    "SEEDANCE_DATABASE_URL": "postgresql://user:pass-word@db/seedance",
}
ROOT = str(Path(__file__).parent)
WHSEC = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"

GOOD = {
    "api_key": ("other-key", None),
    "api_base_url": ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
    "database_url": ("postgres://h/db", "postgresql+psycopg://h/db"),
    "broker_url": ("rediss://broker:6380/3", "rediss://broker:6380/3?ssl_cert_reqs=required"),
    "send_budget": ("2.5", 2.5),
    "late_creation": ("30", 30.0),
    "list_lag": ("0", 0.0),
    "settle_margin": ("0", 0.0),
    "key_exclusive": ("true", True),
    "lease": ("90", 90.0),
    "http_timeout": ("12", 12.0),
    "http_connect_timeout": ("2", 2.0),
    "poll_min": ("6", 6.0),
    "poll_max": ("60", 60.0),
    "observe_from": ("100", 100),
    "stalled_after": ("600", 600.0),
    "reconcile_every": ("60", 60.0),
    "balance_every": ("60", 60.0),
    "check_balance": ("false", False),
    "max_in_flight": ("1", 1),
    "rate_limit": ("600/minute", "600/minute"),
    "rate_limit_url": ("redis://:p@h:6379/1", "redis://:p@h:6379/1"),
    "max_attempts": ("1", 1),
    "retry_for": ("3600", 3600.0),
    "max_tries": ("2", 2),
    "concurrency": ("32", 32),
    "tick": ("0.1", 0.1),
    "probe_every": ("7", 7.0),
    "upload_valid": ("60", 60.0),
    "upload_max_bytes": ("1", 1),
    "media_roots": (f"{ROOT}:/", (Path(ROOT), Path("/"))),
    "allow_private_sources": ("1", True),
    "webhook_secrets": (WHSEC, None),
    "allow_private_webhooks": ("true", True),
    "notice_retry": ("0.5", 0.5),
    "notice_patience": ("3600", 3_600.0),
    "retain_notices": ("60", 60.0),
    "retain_rejected": ("60", 60.0),
    "retain_generations": ("86400", 86_400.0),
    "retain_events": ("0", 0.0),
    "retain_balances": ("60", 60.0),
    "archive_url": ("s3://videos/made/", "s3://videos/made"),
    "archive_max_bytes": ("1", 1),
    "public_url": ("https://video.example.com/hooks/", "https://video.example.com/hooks"),
    "metrics_every": ("0", 0.0),
    "metrics_tenants": ("acme, beta=trial", (("acme", "acme"), ("beta", "trial"))),
    "metrics_token": ("0123456789abcdef", None),
    "metrics_host": ("::1", "::1"),
    "metrics_port": ("0", 0),
    "tracing": ("true", True),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
    "gateway_host": ("::1", "::1"),
    "gateway_port": ("0", 0),
    "gateway_rate": ("60/minute", "60/minute"),
}
BAD = {
    "api_key": ["with space", "new\nline", "ключ"],
    "api_base_url": ["ftp://x", "https://user@host", "https://h?x=1", "https://", "host"],
    "database_url": [
        *("mysql://h/db", "postgresql://h", "h/db", "sqlite:///x"),
        *("postgresql://h/db?pooler=transaction", "postgresql://h/db?direct=h:5432"),
        *(
            "postgresql://h/db?pooler=session&direct=h",
            "postgresql://h/db?pooler=transaction&direct=",
        ),
    ],
    "broker_url": [
        *("http://h", "127.0.0.1:6379", "redis://a;redis://b", "redis://h x"),
        *("sentinel://h", "sentinel://h/0?master_name=", "sentinel://h/x?master_name=m"),
        *("sentinel://a:1/0?master_name=m;redis://b", "sentinel://h?master_name=m&db=1"),
        *("sentinel://u@a/0?master_name=m;sentinel://v@b", "amqp://h/v?ssl_ca_certs=/x"),
    ],
    "rate_limit_url": ["amqp://h", "h:6379", "redis://h x", "sentinel://h:1"],
    "rate_limit": ["20", "0/second", "20/fortnight", "-1/second", "20/second; 3/hour"],
    "media_roots": ["relative", "/no/such/folder", f"{ROOT}:nowhere"],
    "key_exclusive": ["perhaps"],
    "allow_private_sources": ["2"],
    "allow_private_webhooks": ["2"],
    "webhook_secrets": [
        "no-prefix",
        WHSEC.removeprefix("whsec_"),
        "whsec_c2hvcnQ=",
        f"whsec_{base64.b64encode(bytes(65)).decode()}",
        f"{WHSEC} whsec_",
        f"{WHSEC}!",
    ],
    "check_balance": ["perhaps"],
    "max_in_flight": ["0", "-1", "1.5", "many"],
    "max_attempts": ["0", "x"],
    "max_tries": ["1", "x"],
    "observe_from": ["-1", "1.5", "many"],
    "concurrency": ["0", "x", "1001"],
    "upload_max_bytes": ["0", "x"],
    "archive_max_bytes": ["0", "x"],
    "archive_url": [
        *("/folder", "ftp://h/x", "memory://x", "file://relative", "file://host/x", "file:///"),
        *("s3://", "s3:///x", "s3://b/../c", "s3://b/a b", "s3:videos"),
    ],
    "public_url": ["ftp://h", "host", "https://u@h", "https://h?x=1", "https://"],
    "retain_generations": ["-1", "60", "86399", "soon", "nan", "inf"],
    "retain_events": ["-1", "soon", "nan", "inf"],
    "metrics_every": ["-1", "soon", "nan", "inf"],
    "metrics_tenants": ["a b", "=trial", "acme=" + "x" * 65],
    "metrics_token": ["short", "with a blank in it"],
    "metrics_host": ["a b", "http://h"],
    "metrics_port": ["-1", "65536", "x"],
    "tracing": ["perhaps"],
    "log_format": ["xml", "JSON"],
    "log_level": ["all", "20"],
    "gateway_host": ["a b", "http://h"],
    "gateway_port": ["-1", "65536", "x"],
    "gateway_rate": ["20", "0/second", "20/fortnight"],
    "list_lag": ["-0.1", "x", "nan", "inf"],
    "settle_margin": ["-1", "nan", "inf"],
} | {
    name: ["0", "-1", "soon", "nan", "inf"]
    for name, (value, _) in GOOD.items()
    if name not in ("list_lag", "settle_margin") and re.fullmatch(r"[\d.]+", value)
    if name not in ("max_in_flight", "max_attempts", "max_tries", "concurrency", "upload_max_bytes")
    if name not in ("archive_max_bytes", "observe_from")
    if name not in ("allow_private_sources", "gateway_port", "retain_generations", "retain_events")
    if name not in ("metrics_every", "metrics_port")
}


def variable(name: str) -> str:
    return f"SEEDANCE_{name.upper()}"


def test_both_tables_of_this_test_are_complete():
    assert set(GOOD) == set(Settings.model_fields)
    assert set(BAD) == set(Settings.model_fields)


@pytest.mark.parametrize("name", GOOD)
def test_every_variable_is_read(name):
    value, meant = GOOD[name]
    settings = load_settings({**NEEDED, variable(name): value})
    if name in ("api_key", "webhook_secrets", "metrics_token"):
        assert getattr(settings, name).get_secret_value() == value
    else:
        assert getattr(settings, name) == meant
        assert load_settings(NEEDED).model_dump()[name] != meant or name == "list_lag"


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_wrong_value_names_its_variable(name, value):
    with pytest.raises(SettingsError, match=rf"^{variable(name)}\b") as caught:
        load_settings({**NEEDED, variable(name): value})
    assert SECRET not in str(caught.value)
    if name in ("webhook_secrets", "metrics_token"):
        assert value not in str(caught.value)
    elif name not in ("api_key", "database_url", "broker_url", "api_base_url", "rate_limit_url"):
        shown = value.rpartition(":")[2] if name == "media_roots" else value
        assert shown in str(caught.value), "the value is shown"


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("poll_min", "-1", "greater than 0"),
        ("max_in_flight", "0", "greater than or equal to 1"),
        ("rate_limit", "20/fortnight", "20/second"),
        ("broker_url", "http://h", "redis://"),
        ("database_url", "mysql://h/db", "postgresql+psycopg://"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(name, value, bound):
    with pytest.raises(SettingsError, match=re.escape(bound)):
        load_settings({**NEEDED, variable(name): value})


def test_every_wrong_variable_is_named_at_once():
    with pytest.raises(SettingsError) as caught:
        load_settings({**NEEDED, "SEEDANCE_TICK": "x", "SEEDANCE_MAX_TRIES": "0"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("missing", NEEDED)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_what_is_needed_is_asked_for(missing, how):
    given = {**NEEDED, missing: ""}
    if how == "absent":
        del given[missing]
    with pytest.raises(SettingsError, match=f"{missing} is not set"):
        load_settings(given)


def test_an_empty_variable_counts_as_not_given():
    assert load_settings({**NEEDED, "SEEDANCE_TICK": ""}).tick == 1.0


def test_a_lease_must_outlive_the_longest_request():
    given = {**NEEDED, "SEEDANCE_HTTP_TIMEOUT": "20", "SEEDANCE_HTTP_CONNECT_TIMEOUT": "5"}
    with pytest.raises(SettingsError, match="SEEDANCE_LEASE is 25 s"):
        load_settings({**given, "SEEDANCE_LEASE": "25"})
    assert load_settings({**given, "SEEDANCE_LEASE": "25.1"}).lease == 25.1


def test_refused_generations_are_retried_at_least_until_an_outcome_settles():
    """The message has both values: the setting, and the sum that it contradicts."""
    given = {**NEEDED, "SEEDANCE_LATE_CREATION": "200"}
    with pytest.raises(SettingsError) as caught:
        load_settings({**given, "SEEDANCE_RETRY_FOR": "229.9"})
    assert "SEEDANCE_RETRY_FOR is 229.9 s" in str(caught.value)
    assert "SEEDANCE_LATE_CREATION" in str(caught.value)
    assert "= 230 s" in str(caught.value)
    assert load_settings({**given, "SEEDANCE_RETRY_FOR": "230"}).retry_for == 230


def test_contradictory_poll_times_are_both_named():
    with pytest.raises(SettingsError, match=r"POLL_MAX is 4 s, under SEEDANCE_POLL_MIN, 9 s"):
        load_settings({**NEEDED, "SEEDANCE_POLL_MIN": "9", "SEEDANCE_POLL_MAX": "4"})


def test_attempts_are_kept_longer_than_a_late_task_can_appear():
    given = {**NEEDED, "SEEDANCE_LATE_CREATION": "20000"}
    with pytest.raises(SettingsError, match=r"must be 0 \(for ever\) or at least 200300 s"):
        load_settings({**given, "SEEDANCE_RETAIN_GENERATIONS": "100000"})
    assert load_settings({**given, "SEEDANCE_RETAIN_GENERATIONS": "0"}).retain_generations == 0


def test_callbacks_go_over_tls_unless_the_provider_itself_does_not():
    plain = {**NEEDED, "SEEDANCE_PUBLIC_URL": "http://gateway:8080"}
    with pytest.raises(SettingsError, match=r"SEEDANCE_PUBLIC_URL is .* use https://"):
        load_settings(plain)
    simulated = {**plain, "SEEDANCE_API_BASE_URL": "http://simulator:8787"}
    assert load_settings(simulated).public_url == "http://gateway:8080"


def test_a_callbacks_address_fits_what_the_provider_takes():
    longest = "https://h/" + "p" * 390
    assert len(load_settings({**NEEDED, "SEEDANCE_PUBLIC_URL": longest}).public_url) == 400
    with pytest.raises(SettingsError, match="has 401 characters; 400 are allowed"):
        load_settings({**NEEDED, "SEEDANCE_PUBLIC_URL": longest + "p"})


def test_polls_cannot_be_further_apart_at_least_than_at_most():
    with pytest.raises(SettingsError, match="SEEDANCE_POLL_MAX is 5 s, under SEEDANCE_POLL_MIN"):
        load_settings({**NEEDED, "SEEDANCE_POLL_MIN": "6", "SEEDANCE_POLL_MAX": "5"})


def test_the_machines_environment_is_not_looked_at_when_another_is_given(monkeypatch):
    monkeypatch.setenv("SEEDANCE_TICK", "77")
    monkeypatch.setenv("TICK", "78")
    assert load_settings(NEEDED).tick == 1.0
    monkeypatch.setenv("SEEDANCE_API_KEY", "k")
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", "postgres://h/db")
    assert load_settings().tick == 77


def test_settings_do_not_change():
    settings = load_settings(NEEDED)
    with pytest.raises(ValueError, match="frozen"):
        settings.tick = 5


def test_no_secret_is_shown():
    settings = load_settings({**NEEDED, "SEEDANCE_BROKER_URL": "redis://:broker-pass@h/0"})
    for shown in (repr(settings), str(settings), f"{settings.api_key}"):
        assert SECRET not in shown
        assert "pass-word" not in shown
        assert "broker-pass" not in shown


@pytest.mark.parametrize("url", ["mysql://u:pass-word@h/db", "postgresql://u:pass-word@h"])
def test_a_wrong_address_is_refused_without_its_password(url):
    with pytest.raises(SettingsError) as caught:
        load_settings({**NEEDED, "SEEDANCE_DATABASE_URL": url})
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_form_of_the_database_address_means_psycopg(scheme):
    rest = "u:p%40ss@h:5433/db?sslmode=require"
    assert normalise_url(f"{scheme}://{rest}") == f"postgresql+psycopg://{rest}"


def test_the_database_may_be_behind_a_socket():
    assert "host=%2Frun%2Fpg" in normalise_url("postgresql://u@/db?host=/run/pg")


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg2", "mysql", ""])
def test_other_databases_and_drivers_are_refused(scheme):
    with pytest.raises(ValueError, match="not a PostgreSQL address"):
        normalise_url(f"{scheme}://h/db")


def test_a_slip_in_a_name_is_reported():
    given = {**NEEDED, "SEEDANCE_POLL_MINIMUM": "5", "SEEDANCE_MAX_INFLIGHT": "5", "PATH": "/"}
    given |= dict.fromkeys(OUTSIDE, "x")
    assert unknown_variables(given) == ["SEEDANCE_MAX_INFLIGHT", "SEEDANCE_POLL_MINIMUM"]


def test_the_protocols_times_are_the_documented_ones():
    assert load_settings(NEEDED).timing == Timing(10, 60, 15, 5)


def test_every_setting_is_described():
    assert all(len(field.description or "") > 20 for field in Settings.model_fields.values())
