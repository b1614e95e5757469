"""The commands against a real service: a worker, a database, a broker, a provider."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from models import transitions
from models.flow_control import breakers
from models.flow_control.breakers import BreakerName
from tests.waiting import wait_for
from worker.cli import run

BIN = Path(sys.executable).parent
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


class Cli:
    """Runs commands in this process, with the settings of the test's service."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *argv: str, code: int = 0) -> str:
        self._capsys.readouterr()
        returned = run(list(argv))
        shown = self._capsys.readouterr()
        self.err = shown.err
        assert returned == code, f"{argv}: {returned}\n{shown.out}\n{shown.err}"
        assert "Traceback" not in shown.err
        return shown.out

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self(*argv, "--json", code=code))


@pytest.fixture
def cli(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Cli:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Cli(capsys)


def test_from_enqueued_to_paid(cli: Cli, service: Any, sim: Any) -> None:
    service.ready(service.worker())
    done = cli.json(
        "generate", "--text", "a cat", "--metadata", '{"order": 7}', "--wait", "--timeout", "50"
    )
    assert (done["status"], done["metadata"], done["credit_cost"]) == (
        "completed",
        {"order": 7},
        done["estimated_cost"],
    )
    assert "running" in cli.err, "progress is told while it works"

    refused = cli("generate", "--text", "x [sim: refuse=COPYRIGHT_VIOLATION]", "--wait", code=1)
    assert "COPYRIGHT_VIOLATION" in refused

    shown = cli.json("show", done["id"])
    assert shown == cli.json("show", done["remote_task_id"])
    assert "video_url" not in shown
    assert [event["event"] for event in shown["events"]][:2] == ["accept", "admit"]
    assert shown["attempts"][0]["outcome"] == "submitted"
    assert cli.json("show", done["id"][:8], "--url")["video_url"].startswith("http")
    refused_id = cli.json("list", "--status", "failed")[0]["id"]
    assert "[sim: refuse" in cli("show", refused_id), "brackets are no markup"

    lines = [line.split("\t") for line in cli("list").splitlines()]
    assert [line[0] for line in lines] == ["id", refused_id, done["id"]]
    assert [view["id"] for view in cli.json("list", "--status", "completed")] == [done["id"]]
    assert cli.json("list", "--tenant", "nobody") == []

    now = cli.json("watch")
    assert now["flow"]["counts"]["submitted"] == 1
    assert now["flow"]["last_minute"].keys() == now["flow"]["per_minute"].keys()
    assert now["errors"] == {"COPYRIGHT_VIOLATION": 1}
    assert now["waiting"]["by_reason"]["concurrency"] == 0
    assert now["credits"]["charged_today"] == done["credit_cost"]
    assert [view["id"] for view in now["newest"]] == [refused_id, done["id"]]
    assert (now["by_status"]["completed"], now["in_flight"], now["breakers"]) == (1, 0, {})
    assert cli("watch", "--for", "0").count("\n") == 1

    [cost] = cli.json("cost", "--by", "tenant", "--by", "model", "--since", "1h")
    assert (cost["generations"], cost["completed"], cost["charged"]) == (2, 1, done["credit_cost"])
    assert cli.json("balance")["used_credits"] == done["credit_cost"]

    already = cli("cancel", done["id"], code=1)
    assert "completed already" in already
    cli("show", str(uuid.uuid4()), code=1)
    assert cli.json("doctor")[0]["level"] == "ok"


def test_idempotency_and_cancel_before_any_worker(cli: Cli) -> None:
    once = cli.json("generate", "--text", "a cat", "--idempotency-key", "k", "--priority", "3")
    again = cli("generate", "--text", "a cat", "--idempotency-key", "k", "--priority", "3").strip()
    assert again == once["id"]
    cli("generate", "--text", "a dog", "--idempotency-key", "k", code=2)
    assert "was used before" in cli.err
    assert cli.json("cancel", once["id"])[0]["status"] == "cancelled"


def test_a_name_that_may_mean_several_cancels_none(cli: Cli, service: Any) -> None:
    one = cli.json("generate", "--text", "a cat")["id"]
    alike = [uuid.UUID(int=(0xABCDEF01 << 96) + number) for number in range(2)]
    for generation_id in alike:
        service.enqueue(generation_id=generation_id)
    cli("cancel", one, "abcdef01", code=2)
    assert "more than one generation begins with abcdef01" in cli.err
    assert cli.json("show", one)["status"] == "accepted"
    assert [view["status"] for view in cli.json("cancel", one, str(alike[0]))] == ["cancelled"] * 2


def test_budgets_and_a_dry_run_before_any_worker(cli: Cli, sim: Any) -> None:
    sim.change_account(sim.api_key, credits="20")
    ask = ("generate", "--text", "a cat", "--tenant", "acme")
    before = cli.json(*ask, "--dry-run")
    assert (before["estimated_cost"], before["balance"]["covers"], before["budgets"]) == (
        "9",
        None,
        [],
    )
    assert cli.json("balance")["free"] == "20"
    assert "10 are left" in cli("budget", "set", "acme", "day", "10")
    assert "9 credits, estimated; nothing was stored" in cli(*ask, "--dry-run")
    assert cli.json("list") == []

    cli(*ask)
    assert "budget (day) of acme: exceeded, so it is refused; 1 left of 10" in cli(
        *ask, "--dry-run", code=1
    )
    cli(*ask, code=1)
    assert "over budget: 9 needed" in cli.err
    assert "balance: does not cover it now" in cli(
        "generate", "--text", "x", "--duration", "15", "--dry-run"
    )
    assert len(cli.json("list")) == 1
    [kept] = cli.json("budget", "list", "--tenant", "acme")
    assert (kept["amount"], kept["under_way"], kept["left"], kept["policy"]) == (
        "10",
        "9",
        "1",
        "refuse",
    )
    cli("budget", "list", "--tenant", "acmee", code=2)
    assert "--tenant is 'acmee'; allowed: one with a budget: acme" in cli.err
    cli("budget", "remove", "acme", "month", code=2)
    assert "allowed: one that is set: acme day" in cli.err
    cli("budget", "remove", "acme", "day")
    assert cli.json("budget", "list") == []

    lines = cli("cost", "--by", "tenant", "--by", "resolution", "--csv").splitlines()
    assert lines == [
        "tenant,resolution,generations,completed,estimated,charged,second,pending",
        "acme,720p,1,0,9,0,0,9",
    ]
    assert cli.json("cost", "--until", "2020-01-01") == []


def test_a_pause_holds_in_a_running_worker_and_is_told_everywhere(
    cli: Cli, service: Any, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEDANCE_OPERATOR", "ana")
    service.ready(service.worker())
    assert "0 wait" in cli("pause", "--tenant", "acme", "--reason", "runaway script")
    held = cli("generate", "--text", "a cat", "--tenant", "acme").strip()
    # Enqueued later, and done: whoever admits has passed over the other.
    cli("generate", "--text", "a dog", "--wait", "--timeout", "50")
    pause = "pause of tenant 'acme': runaway script (ana)"
    why = f"the end of the {pause}"
    assert cli.json("show", held)["waits_for"] == why
    [listed] = cli.json("list", "--tenant", "acme")
    assert (listed["waits_for"], listed["wait_reason"]) == (why, "pause")
    assert listed["wait_detail"] == {"tenant": "acme", "why": "runaway script", "by": "ana"}
    assert [pause["reason"] for pause in cli.json("watch")["pauses"]] == ["runaway script"]
    assert f"a {pause}" in cli("watch", "--for", "0")
    [warned] = [check for check in cli.json("doctor") if check["name"] == "pauses"]
    assert f"a {pause}" in warned["found"]
    assert warned["mend"] == "seedance resume --tenant acme"

    cli("resume", code=1)
    assert f"submission of all tenants is not paused; paused: a {pause}" in cli.err
    cli("resume", "--tenant", "acme", "--by", "bo", "--reason", "mended")
    service.ended(held)
    told = [(a["action"], a["actor"], a["reason"], a["tenant"]) for a in cli.json("history")]
    assert told == [
        ("resume", "bo", "mended", "acme"),
        ("pause", "ana", "runaway script", "acme"),
    ]
    assert len(cli("history", "--action", "pause").splitlines()) == 2
    assert cli.json("history", "--since", "1h", "--by", "carl") == []
    assert cli.json("history", str(uuid.uuid4())) == []


def ended_badly(rt: Any, cli: Cli, code: str = "INTERNAL_ERROR", **options: str) -> str:
    """A generation that failed with this code, as `show` names it."""
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    name: str = cli.json("generate", "--text", "a cat", *flags)["id"]
    with rt.engine.begin() as conn:
        transitions.admit(conn, [uuid.UUID(name)], lease_seconds=60)
        lease = conn.execute(text("SELECT lease FROM generations WHERE id = :n"), {"n": name})
        transitions.reject(conn, uuid.UUID(name), lease.scalar_one(), code=code, message="no")
    return name


def test_retry_one(cli: Cli, rt: Any) -> None:
    first = ended_badly(rt, cli, tenant="acme")
    who = ("--by", "ana", "--reason", "the provider's outage")
    assert "1 would be retried; nothing was done" in cli("retry", first[:8], "--dry-run")
    assert cli.json("show", first)["retried_as"] is None
    [made] = cli.json("retry", first, *who)["retried"]
    second = made["retried_as"]
    before, after = cli.json("show", first), cli.json("show", second)
    assert (before["retried_as"], after["retry_of"]) == (second, first)
    assert (after["status"], after["tenant"]) == ("accepted", "acme")
    [kept] = before["actions"]
    assert (kept["action"], kept["actor"], kept["reason"]) == ("retry", *who[1::2])
    shown = cli("show", first)
    assert ["retried", "as", second] in [line.split() for line in shown.splitlines()]
    assert "retry by ana: the provider's outage" in shown
    assert [entry["kind"] for entry in after["ledger"]] == ["estimated"]

    cli("retry", first, code=1)
    assert "it was retried already; --again retries the last of its retries" in cli.err
    assert "0 would be retried; nothing was done" in cli("retry", first, "--dry-run", code=1)
    cli("retry", second, code=1)
    assert "it has not ended: it is accepted" in cli.err
    final = ended_badly(rt, cli, "CONTENT_MODERATION_FAILED")
    cli("retry", final, "--again", code=1)
    assert "refused its content, which is final (CONTENT_MODERATION_FAILED)" in cli.err
    cli("retry", "nosuchid", code=1)
    assert "there is no generation nosuchid" in cli.err


def test_many_are_retried_or_cancelled_only_if_as_many_as_were_meant(cli: Cli, rt: Any) -> None:
    lost = {ended_badly(rt, cli, tenant="acme") for _ in range(3)}
    ended_badly(rt, cli, "COPYRIGHT_VIOLATION", tenant="acme")
    ended_badly(rt, cli, tenant="other")
    meant = ("retry", "--tenant", "acme", "--status", "failed", "--since", "1h")
    told = cli(*meant, "--dry-run")
    assert told == "3 would be retried; nothing was done\n"
    assert "not retried: the provider refused its content, which is final" in cli.err
    cli(*meant, code=2)
    assert "3 would be retried: say --expect 3 if that is meant" in cli.err
    cli(*meant, "--expect", "4", code=1)
    assert "3 would be retried, not 4: nothing was done" in cli.err
    assert cli.json("list", "--status", "accepted") == []
    report = cli.json(*meant, "--expect", "3", "--reason", "outage")
    assert {pair["id"] for pair in report["retried"]} == lost
    assert report["refused"] == {"the provider refused its content, which is final": 1}
    cli(*meant, "--expect", "3", code=1)
    assert "0 would be retried, not 3" in cli.err

    # Each is judged as it stands: the budget of another tenant covers one of two.
    for _ in range(2):
        ended_badly(rt, cli, tenant="small")
    cli("budget", "set", "small", "day", "10")
    report = cli.json("retry", "--tenant", "small", "--expect", "2", code=1)
    assert len(report["retried"]) == 1
    assert report["refused"] == {"tenant 'small' has no budget left for it": 1}

    meant = ("cancel", "--tenant", "acme", "--waits-for", "concurrency")
    assert cli(*meant, "--dry-run") == "3 would be cancelled; nothing was done\n"
    cli(*meant, "--expect", "2", code=1)
    assert "3 are cancelled; 0 will be" in cli(*meant, "--expect", "3", "--by", "bo")
    assert len(cli.json("list", "--status", "cancelled", "--tenant", "acme")) == 3
    assert cli(*meant, "--dry-run") == "0 would be cancelled; nothing was done\n"
    told_by = [(a["action"], a["actor"]) for a in cli.json("history", "--action", "cancel")]
    assert told_by == [("cancel", "bo")] * 3


def test_what_is_chosen_is_never_everything_by_mistake(cli: Cli) -> None:
    cli("cancel", "--dry-run", code=2)
    assert "say which: ID…, or filters" in cli.err
    cli("retry", "0b0e7f1a", "--tenant", "acme", code=2)
    assert "named and chosen by filters: do one of both" in cli.err


def test_budgets_are_changed_by_somebody(cli: Cli) -> None:
    cli("budget", "set", "acme", "day", "10", "--by", "ana", "--reason", "trial")
    cli("budget", "set", "acme", "day", "20", "--by", "bo")
    cli("budget", "remove", "acme", "day", "--by", "carl")
    removed, raised, new = cli.json("history")
    assert (new["actor"], new["reason"], new["detail"]["before"]) == ("ana", "trial", None)
    assert raised["detail"]["amount"] == "20"
    assert raised["detail"]["before"] == {"amount": "10", "policy": "refuse"}
    assert (removed["action"], removed["actor"]) == ("budget_remove", "carl")


def test_reconcile_tells_what_is_not_ours(cli: Cli, sim: Any) -> None:
    [foreign] = sim.inject(seed=5)
    report = cli.json("reconcile")
    assert (report["complete"], report["foreign"], report["adopted"]) == (True, [foreign], [])


def test_migrate_checks_first(cli: Cli, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"empty_{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", url := postgres.create_database(name))
    monkeypatch.delenv("SEEDANCE_API_KEY")
    cli("list", code=1)
    assert "seedance migrate" in cli.err
    assert cli.json("migrate", "--check", code=1)["up_to_date"] is False
    assert cli.json("migrate")["up_to_date"] is True
    cli("migrate", "--check")
    with psycopg.connect(url.replace("+psycopg", "")) as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    for words in (["migrate"], ["migrate", "--check"]):
        assert "at 9999, newer than this version: left as it is" in cli(*words)
    assert cli.json("migrate")["newer"] is True
    postgres.drop_database(name)


def test_results_are_shown_by_their_stable_addresses(
    cli: Cli, service: Any, sim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    monkeypatch.setenv("SEEDANCE_ARCHIVE_URL", folder.as_uri())
    sim.fault("cdn", "bare")
    service.worker(SEEDANCE_ARCHIVE_URL=folder.as_uri())
    done = cli.json("generate", "--text", "a cat", "--wait", "--timeout", "50")

    def failed() -> Any:
        [video] = cli.json("show", done["id"])["artifacts"]
        return video["error"]

    wait_for(failed, "the first try has failed")
    told = cli("show", done["id"])
    assert re.search(r"video: not stored after \d+ tries, again in", told)
    assert "HTTP 502" in told
    assert "results could not be stored yet" in cli("doctor")
    sim.clear_faults()
    with service.rt.engine.begin() as conn:
        conn.execute(text("UPDATE artifacts SET due_at = now()"))
    wait_for(lambda: cli.json("show", done["id"])["video_uri"], "the video is stored")

    shown = cli.json("show", done["id"])
    [video] = shown["artifacts"]
    assert video["uri"] == shown["video_uri"]
    assert Path(video["uri"].removeprefix("file://")).stat().st_size == video["bytes"]
    assert video["sha256"] == sim.task(done["remote_task_id"])["video_sha256"]
    assert f"video: {video['uri']}" in cli("show", done["id"])
    checks = {check["name"]: check for check in cli.json("doctor")}
    assert checks["archive"]["found"] == f"{folder.as_uri()} can be written"


def test_a_worker_does_not_start_with_an_archive_that_can_not_be_written(service: Any) -> None:
    worker = service.worker(SEEDANCE_ARCHIVE_URL="file:///no/such/folder")
    assert worker.wait() == 2
    [said] = [line for line in worker.text().splitlines() if "SEEDANCE_ARCHIVE_URL" in line]
    assert "is 'file:///no/such/folder', which can't be written: FileNotFoundError" in said


BROKEN = {
    "archive": ("SEEDANCE_ARCHIVE_URL", "file:///no/such/folder", "can't be written"),
    "database": ("SEEDANCE_DATABASE_URL", f"postgresql://u:geheim@{NOWHERE}/x", "PostgreSQL"),
    "broker": ("SEEDANCE_BROKER_URL", f"redis://:geheim@{NOWHERE}/0", "Valkey or Redis"),
    "api key": ("SEEDANCE_API_KEY", "geheim-but-wrong", "INVALID_API_KEY"),
    "provider": ("SEEDANCE_API_BASE_URL", f"http://{NOWHERE}", "can't be reached"),
    "settings": ("SEEDANCE_LEASE", "soon", "SEEDANCE_LEASE"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_doctor_names_the_cause(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, value, says = BROKEN[name]
    monkeypatch.setenv(variable, value)
    began = time.monotonic()
    checks = cli.json("doctor", code=1)
    assert time.monotonic() - began < 20
    [wrong] = [check for check in checks if check["level"] == "wrong"]
    assert wrong["name"] == name
    assert says in wrong["found"]
    assert wrong["mend"]
    assert "geheim" not in str(checks)
    assert any(check["level"] == "ok" for check in checks)


def test_doctor_warns(cli: Cli, rt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDANCE_LESE", "60")
    with rt.engine.begin() as conn:
        breakers.trip(conn, BreakerName.CREDIT, "INSUFFICIENT_CREDIT: none left", probe_in=60)
    checks = {check["name"]: check for check in cli.json("doctor")}
    assert checks["settings"]["level"] == "ok"
    assert "none left" in checks["breakers"]["found"]
    assert checks["breakers"]["level"] == "warn"
    assert checks["workers"]["level"] == "warn"
    assert "SEEDANCE_LESE" in cli("doctor")


def test_an_unreachable_database_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDANCE_DATABASE_URL", f"postgresql://u:geheim@{NOWHERE}/x")
    cli("list", code=1)
    assert cli.err.startswith("the database can't be reached: ")
    assert cli.err.count("\n") == 1
    assert "geheim" not in cli.err


def test_ctrl_c_is_130_and_a_worker_waits_for_its_tables(
    environment: dict[str, str], postgres: Any, tmp_path: Path
) -> None:
    name = f"empty_{uuid.uuid4().hex[:8]}"
    env = {**environment, "SEEDANCE_DATABASE_URL": postgres.create_database(name)}
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [BIN / "seedance", "worker"], env=env, cwd=tmp_path, stdout=out, stderr=out
        )
        watch = subprocess.Popen(
            [BIN / "seedance", "watch"],
            env={**env, "SEEDANCE_DATABASE_URL": environment["SEEDANCE_DATABASE_URL"]},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
    try:
        assert watch.stdout is not None
        assert "no generations" in watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 130
        wait_for(lambda: "run `seedance migrate`" in log.read_text(), log.read_text())
        migrated = subprocess.run([BIN / "seedance", "migrate"], env=env, cwd=tmp_path, timeout=50)
        assert migrated.returncode == 0
        wait_for(lambda: " ready." in log.read_text(), log.read_text())
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        for process in (watch, worker):
            process.kill()
            process.wait()
        if watch.stdout is not None:
            watch.stdout.close()
        postgres.drop_database(name)
