"""docker-compose.yml, Dockerfile and .env.example, held against the schema and each other.

The commands are lists, so `yaml.safe_load(…)["services"][name]["command"]` is what runs.
"""

import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.config import DEFAULT_API_KEY
from worker.settings import OUTSIDE, Settings, load_settings, unknown_variables
from worker.variables import PREFIX

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
FOREIGN = {"SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT"}
"""What the SDKs of Sentry and OpenTelemetry read themselves."""

SUBCOMMANDS = {
    *("demo", "up", "migrate", "worker", "beat", "generate", "show", "list", "watch", "cancel"),
    *("balance", "cost", "reconcile", "resolve", "doctor", "simulator", "gateway", "metrics"),
    "flower",
}
VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<rest>(?:[^{}]|\$\{\w+\})*))?\})"
)


@cache
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def services() -> dict[str, Any]:
    return compose()["services"]


def example(*, commented: bool) -> dict[str, str]:
    """The variables of .env.example: those that are set, or those that show their default."""
    start = "# " if commented else ""
    pairs = re.findall(
        rf"^{start}([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE
    )
    return dict(pairs)


def interpolate(text: str, given: dict[str, str]) -> str:
    """What docker compose makes of a value."""

    def value(match: re.Match[str]) -> str:
        name, how, rest = match["name"], match["how"], match["rest"]
        if match["dollar"]:
            return "$"
        if given.get(name):
            return given[name]
        assert how != ":?", f"{name} is needed: {rest}"
        return interpolate(rest or "", given)

    return VARIABLE.sub(value, text)


def environment(service: str, given: dict[str, str]) -> dict[str, str]:
    """What a service's process finds in its environment."""
    declared = services()[service].get("environment", {})
    filled = {key: interpolate(value, given) for key, value in declared.items() if value}
    passed = {key: given[key] for key, value in declared.items() if value is None and key in given}
    return filled | passed


def ours() -> list[str]:
    return [name for name, service in services().items() if "build" in service]


@pytest.mark.parametrize(
    "file", [COMPOSE, COMPOSE.with_suffix(".secrets.yml")], ids=lambda f: f.name
)
def test_the_file_fits_the_official_schema(file):
    pytest.importorskip("check_jsonschema", reason="brings the compose specification's schema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_each_variable_is_in_the_example_and_each_of_the_example_is_used():
    text = re.sub(r"(?m)(^|\s)#.*$", "", COMPOSE.read_text())
    named = {match["name"] for match in VARIABLE.finditer(text) if match["name"]}
    named |= set(re.findall(r"\$\{(\w+)", text))
    passed = {
        key
        for service in services().values()
        for key, value in service.get("environment", {}).items()
        if value is None
    }
    known = example(commented=False) | example(commented=True)
    assert named | passed | {"COMPOSE_PROFILES"} == set(known)


def test_each_setting_reaches_the_worker_and_no_unknown_one_does():
    names = {PREFIX + field.upper() for field in Settings.model_fields}
    for service in ("worker", "beat"):
        declared = set(services()[service]["environment"])
        # What s3fs reads by itself; nobody else has to do with storage.
        others = {name for name in declared if name.startswith("AWS_")}
        assert names <= declared - others <= names | OUTSIDE | FOREIGN
        assert bool(others) is (service == "worker")
    for service in services():
        assert unknown_variables(environment(service, example(commented=False))) == []


@pytest.mark.parametrize("service", ["gateway", "metrics"])
def test_who_serves_the_figures_knows_when_upkeep_is_missed(service):
    given = {"SEEDANCE_RECONCILE_EVERY": "7200", "SEEDANCE_BALANCE_EVERY": "3600"}
    served = load_settings(environment(service, given), api_key="none")
    assert (served.reconcile_every, served.balance_every) == (7200, 3600)


@pytest.mark.parametrize("service", ["worker", "beat", "gateway"])
def test_who_can_report_errors_is_told_where(service):
    assert "SENTRY_DSN" in services()[service]["environment"]


def test_the_example_shows_the_real_defaults():
    needed = {"SEEDANCE_API_KEY": "k", "SEEDANCE_DATABASE_URL": "postgresql://h/d"}
    elsewhere = {"SEEDANCE_DATABASE_URL", "SEEDANCE_BROKER_URL"}  # in compose they differ
    shown = {
        name: value
        for name, value in example(commented=True).items()
        if name.startswith(PREFIX) and name not in elsewhere
    }
    assert load_settings(needed | shown) == load_settings(needed)
    for name in elsewhere:
        value = environment("worker", example(commented=False))[name]
        assert example(commented=True)[name] == value


def test_the_example_as_it_stands_makes_valid_settings_and_holds_no_secret(tmp_path):
    given = example(commented=False)
    assert given["SEEDANCE_API_KEY"] == DEFAULT_API_KEY
    found = environment("worker", given) | {"SEEDANCE_MEDIA_ROOTS": str(tmp_path)}
    settings = load_settings(found)
    assert settings.api_base_url == "http://simulator:8787"
    assert settings.database_url == "postgresql+psycopg://seedance:change-me@postgres:5432/seedance"
    assert settings.broker_url == "redis://valkey:6379/0"


def test_every_variable_of_the_example_is_explained():
    lines = (ROOT / ".env.example").read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"^(# )?[A-Z][A-Z0-9_]+=", line):
            assert before.startswith("#") or "=" in before, f"no comment above {line}"


@pytest.mark.parametrize("service", ours())
def test_commands_are_lists_that_start_a_real_program(service):
    command = services()[service]["command"]
    assert all(isinstance(word, str) for word in command)
    assert command[0] == "seedance"
    assert command[1] in SUBCOMMANDS


@pytest.mark.parametrize("service", ours())
def test_our_services_have_init_and_no_privileges(service):
    spec = services()[service]
    assert spec["init"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["restart"] == ("no" if service == "migrate" else "unless-stopped")


def test_services_start_by_the_health_of_what_they_need():
    for name, spec in services().items():
        for other, how in spec.get("depends_on", {}).items():
            condition = how["condition"]
            needed = "healthcheck" if condition == "service_healthy" else "command"
            assert needed in services()[other], f"{name} waits for {other}"
            assert "profiles" not in services()[other] or how["required"] is False
    assert set(services()["migrate"]["depends_on"]) == {"postgres"}
    assert services()["worker"]["depends_on"]["migrate"] == {
        "condition": "service_completed_successfully"
    }


def test_the_servers_keep_their_data_and_their_messages():
    mounts = [volume for spec in services().values() for volume in spec.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounts if mount[0].isalpha()} == {
        *compose()["volumes"]
    }
    settings = " ".join(services()["valkey"]["command"])
    assert "--appendonly yes" in settings
    assert "--maxmemory-policy noeviction" in settings


def test_a_worker_gets_more_time_to_stop_than_it_takes_and_can_be_scaled():
    worker = services()["worker"]
    assert worker["stop_grace_period"] == "1m"  # it takes up to 45 s
    assert not {"container_name", "ports", "hostname"} & set(worker)


def test_nothing_is_reachable_from_other_machines():
    for spec in services().values():
        assert all(port.startswith("127.0.0.1:") for port in spec.get("ports", []))


def test_every_service_that_stays_says_whether_it_is_well():
    silent = {name for name, spec in services().items() if "healthcheck" not in spec}
    assert silent == {"migrate", "prometheus", "grafana"}, "one that ends, two that are not ours"


@pytest.mark.parametrize("service", ["worker", "beat"])
@pytest.mark.parametrize(("age", "healthy"), [(0, True), (50, True), (70, False), (None, False)])
def test_health_is_the_age_of_the_heartbeat(tmp_path, service, age, healthy):
    assert services()[service]["environment"]["SEEDANCE_HEARTBEAT_FILE"].startswith("/tmp/")
    kind, line = services()[service]["healthcheck"]["test"]
    file = tmp_path / "heart beat"
    if age is not None:
        file.touch()
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    result = subprocess.run(
        ["sh", "-c", interpolate(line, {})],
        env={"SEEDANCE_HEARTBEAT_FILE": str(file), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert kind == "CMD-SHELL"
    assert (result.returncode == 0) is healthy


def test_python_in_health_checks_compiles():
    tests = [spec["healthcheck"]["test"] for spec in services().values() if "healthcheck" in spec]
    lines = [test[3] for test in tests if test[1] == "python"]
    assert len(lines) == 4
    for line in lines:
        compile(line, "healthcheck", "exec")


def dockerfile() -> list[str]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def copied() -> list[str]:
    words = [line.split()[1:-1] for line in dockerfile() if re.match(r"COPY (?!--from)", line)]
    return [name for line in words for name in line]


def test_the_dockerfile_copies_what_exists_and_is_not_ignored():
    allowed = [
        line.removeprefix("!").rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for name in copied():
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name.split("/")[0], pattern) for pattern in allowed), name
    assert ".env" not in allowed


def test_the_image_has_every_package_that_the_wheel_needs():
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^packages = \[(.*)\]$", project, re.MULTILINE)
    assert packages is not None
    assert set(re.findall(r'"(\w+)"', packages[1])) | {"alembic"} <= set(copied())


def test_the_image_runs_without_root_and_keeps_no_secret():
    lines = dockerfile()
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert [line for line in last_stage if line.startswith("USER")] == ["USER 10001:10001"]
    assert "STOPSIGNAL SIGTERM" in last_stage
    assert not [line for line in lines if re.search(r"KEY|PASSWORD|SECRET|TOKEN|\.env", line)]
    assert not [line for line in lines if line.startswith("ARG")]
    installs = [part for line in lines for part in line.split("&&") if "pip install" in part]
    assert all("--require-hashes" in part or "--no-index" in part for part in installs)


def test_the_image_is_built_from_the_versions_that_are_tested():
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text()
        return set(re.findall(r"^[\w.-]+(?:\[.*\])?==[^\s;]+", text, re.MULTILINE))

    assert pins("build.txt")
    assert pins("build.txt") | pins("prod.txt") <= pins("dev.txt")


SECRETS = yaml.safe_load((ROOT / "docker-compose.secrets.yml").read_text())


@pytest.mark.parametrize("service", SECRETS["services"])
def test_with_secrets_from_files_none_is_in_an_environment(service):
    over = SECRETS["services"][service]
    asked = {"SEEDANCE_WEBHOOK_SECRETS": "w", "SEEDANCE_METRICS_TOKEN": "t"}
    found = environment(service, example(commented=False) | asked) | over["environment"]
    assert unknown_variables(found) == []
    secret = re.compile(r"(KEY|TOKEN|SECRETS?|PASSWORD|AUTH|DATABASE_URL)$")
    assert not [name for name, value in found.items() if value and secret.search(name)]
    named = {value for value in found.values() if value.startswith("/run/secrets/")}
    assert named == {f"/run/secrets/{name}" for name in over["secrets"]}
    assert set(over["secrets"]) <= set(SECRETS["secrets"])


def test_with_secrets_from_files_the_settings_are_whole(tmp_path):
    values = {
        "api_key": "k",
        "database_url": "postgresql://u:p@postgres/seedance",
        "webhook_secrets": "",
        "metrics_token": "",
    }
    found = environment("worker", example(commented=False))
    found |= SECRETS["services"]["worker"]["environment"]
    found |= {"SEEDANCE_MEDIA_ROOTS": str(tmp_path), "SEEDANCE_WEBHOOK_SECRETS_FILE": ""}
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
    found = {n: v.replace("/run/secrets", str(tmp_path)) for n, v in found.items()}
    assert load_settings(found).api_key.get_secret_value() == "k"
