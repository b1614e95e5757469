"""The alert rules and the dashboard, held against the figures that are really served.

Each rule's condition is made true in a database, and what `/metrics` then serves is recorded: the
rule must be silent before and fire after. promtool, where it is installed, has the last word.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Connection, Engine, insert, text

from api_client import RequestSeen
from api_client.observing import Outcome
from api_client.verdicts import Endpoint
from models import intake
from models.flow_control import breakers, evidence
from models.flow_control.breakers import BreakerName
from models.lifecycle import Status
from models.metrics import definitions as d
from models.metrics import pulses, totals
from models.metrics.definitions import SUM
from models.metrics.totals import Sample
from models.operating.tables import Pause
from models.tables import BalanceSnapshot, RejectedMessage, StrayTask
from tests import promql
from tests.conftest import MakeRuntime
from tests.integration import rows
from tests.integration.conftest import text_request
from tests.promql import Recording
from worker.cli import COMMANDS
from worker.metrics import scrape
from worker.metrics.tally import Tally
from worker.requests import new_generation
from worker.runtime import Runtime

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "ops" / "alerts.yml").read_text())["groups"][0]["rules"]
ALERTS = {rule["alert"]: rule for rule in RULES}
DASHBOARD = json.loads((ROOT / "ops" / "grafana" / "dashboard.json").read_text())
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

MINUTE = 60.0
UNITS = {"m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float:
    return float(duration[:-1]) * UNITS[duration[-1]]


# --- making conditions true --------------------------------------------------------------------


def sql(statement: str, **parameters: Any) -> Callable[[Connection], None]:
    def make(conn: Connection) -> None:
        conn.execute(text(statement), parameters)

    return make


def make(status: Status, n: int = 1, **values: Any) -> Callable[[Connection], None]:
    def made(conn: Connection) -> None:
        for _ in range(n):
            rows.make(conn, status, **values)

    return made


def accepted_long_ago(conn: Connection) -> None:
    intake.accept(conn, new_generation(text_request()))
    conn.execute(text("UPDATE generations SET created_at = now() - interval '3 hours'"))


def attention(conn: Connection) -> None:
    rows.make(conn, Status.RUNNING)
    conn.execute(text("UPDATE generations SET attention = '?', attention_at = now()"))


def trip(name: BreakerName) -> Callable[[Connection], None]:
    return lambda conn: breakers.trip(conn, name, "for a test", probe_in=30) and None


outage = sql(
    "INSERT INTO flow_control (account, failed_at, outage_since, probe_at, reason)"
    " VALUES ('default', now(), now(), now(), 'SERVICE_BUSY') ON CONFLICT (account)"
    " DO UPDATE SET failed_at = now(), outage_since = now(), probe_at = now()"
)


def throttle(conn: Connection) -> None:
    evidence.throttled(conn, measured=10.0, retry_after=300.0, reason="RATE_LIMIT_EXCEEDED")


def slowed(conn: Connection) -> None:
    """Throttled a while ago: no pause any more, and a rate that recovers."""
    throttle(conn)
    conn.execute(
        text("UPDATE flow_control SET resume_at = now() - interval '5 s', rate_changed_at = now()")
    )


too_many = sql(
    "INSERT INTO flow_control (account, concurrency, concurrency_refused, concurrency_changed_at)"
    " VALUES ('default', 3, 4, now()) ON CONFLICT (account) DO UPDATE"
    " SET concurrency = 3, concurrency_refused = 4, concurrency_changed_at = now()"
)
at_work = sql("INSERT INTO workers (name, locked) VALUES ('w1', false)")


def paused(conn: Connection) -> None:
    conn.execute(insert(Pause).values(tenant="", reason="r", paused_by="me"))


def spent(conn: Connection) -> None:
    """In a day more than what is left of it."""
    _add(conn, (d.CHARGED.name, ("seedance-2.0", "other"), SUM, 90))
    balance(conn, remain=50)


def failures(conn: Connection) -> None:
    label = ("seedance-2.0", "other")
    _add(
        conn,
        (d.FINISHED.name, ("failed", "provider", *label), SUM, 30),
        (d.FINISHED.name, ("completed", "none", *label), SUM, 50),
    )


def requests_fail(conn: Connection) -> None:
    _request(conn, Outcome.SERVER_ERROR, 0.2, 40)
    _request(conn, Outcome.OK, 0.2, 60)


def requests_slow(conn: Connection) -> None:
    _request(conn, Outcome.OK, 20.0, 40)


def second_task(conn: Connection) -> None:
    generation_id = rows.make(conn, Status.RUNNING)
    conn.execute(
        insert(StrayTask).values(
            task_id="s", kind="second", generation_id=generation_id, status="processing"
        )
    )


def rejected(conn: Connection) -> None:
    conn.execute(insert(RejectedMessage).values(reason="?", body=b"?"))


def notice(status: str) -> Callable[[Connection], None]:
    def made(conn: Connection) -> None:
        generation_id = rows.make(conn, Status.COMPLETED)
        conn.execute(
            text(
                "INSERT INTO notices (generation_id, target, sequence, type, receiver, data,"
                " created_at, status, due_at, settled_at)"
                " VALUES (:id, 'webhook', 1, 'generation.completed', 'h', '{}',"
                " now() - interval '2 hours', CAST(:status AS text),"
                " CASE WHEN :status = 'pending' THEN now() END,"
                " CASE WHEN :status <> 'pending' THEN now() END)"
            ),
            {"id": generation_id, "status": status},
        )

    return made


def artifact(lost: bool) -> Callable[[Connection], None]:
    return sql(
        "INSERT INTO artifacts (generation_id, kind, made_at, available_until, due_at, lost_at,"
        " error) VALUES (gen_random_uuid(), 'video', now() - interval '2 hours', now(),"
        " CASE WHEN :lost THEN NULL ELSE now() END, CASE WHEN :lost THEN now() END, 'gone')",
        lost=lost,
    )


def balance(conn: Connection, remain: int) -> None:
    conn.execute(
        insert(BalanceSnapshot).values(
            total_credits=1000, used_credits=1000 - remain, remain_credits=remain
        )
    )


def _add(conn: Connection, *values: tuple[str, tuple[str, ...], int, int]) -> None:
    totals.add(conn, [Sample(n, labels, b, Decimal(v)) for n, labels, b, v in values])


def _request(
    conn: Connection, outcome: Outcome, took: float, times: int, endpoint: Endpoint = "get"
) -> None:
    tally = Tally()
    for _ in range(times):
        tally.request(RequestSeen(endpoint, outcome, took))
    totals.add(conn, tally.take())


@dataclass(frozen=True)
class Case:
    """How a rule's condition is made true."""

    make: Callable[[Connection], None]
    again: bool = False
    """It has to go on: made once more with each minute, as a rate is of what happens now."""


CASES = {
    "SeedanceNoDispatcher": Case(sql("DELETE FROM workers")),
    "SeedanceUpkeepStopped": Case(sql("UPDATE pulses SET at = at - interval '4 hours'")),
    "SeedanceStepsLate": Case(
        make(Status.RUNNING, due_at=text("now() - interval '10 min'"))  # type: ignore[arg-type]
    ),
    "SeedanceWaitingLong": Case(accepted_long_ago),
    "SeedanceUncertainMany": Case(make(Status.UNCERTAIN, 6)),
    "SeedanceAttention": Case(attention),
    "SeedanceBreakerOpen": Case(trip(BreakerName.API_KEY)),
    "SeedanceProviderOutage": Case(outage),
    "SeedanceThrottledLong": Case(slowed, again=True),
    "SeedancePausedLong": Case(paused),
    "SeedanceCreditsLow": Case(spent),
    "SeedanceFailures": Case(failures, again=True),
    "SeedanceProviderErrors": Case(requests_fail, again=True),
    "SeedanceProviderSlow": Case(requests_slow, again=True),
    "SeedanceSecondTask": Case(second_task),
    "SeedanceMessagesRejected": Case(rejected),
    "SeedanceTasksUnseen": Case(
        make(Status.RUNNING, observed_at=text("now() - interval '1 hour'"))
    ),
    "SeedanceNoticesLate": Case(notice("pending")),
    "SeedanceNoticesDead": Case(notice("dead")),
    "SeedanceArchiveLate": Case(artifact(lost=False)),
    "SeedanceArtifactsLost": Case(artifact(lost=True)),
}


def healthy(conn: Connection) -> None:
    """A service that has done this and that, and is well."""
    for what in ("reconcile", "balance", "prune"):
        pulses.tell(conn, what)
    at_work(conn)
    balance(conn, remain=900)
    intake.accept(conn, new_generation(text_request()))
    rows.make(conn, Status.RUNNING, observed_at=text("now()"))
    _request(conn, Outcome.OK, 0.2, 20)


def read(engine: Engine, rt: Runtime) -> bytes:
    return scrape.collect(engine, rt.settings)


def recorded(rt: Runtime, case: Case | None, after: float) -> tuple[Recording, float]:
    """A healthy half-hour and, from then on, the condition; and when it began.

    The condition's figures stand as they were served, minute by minute.
    """
    with rt.engine.begin() as conn:
        healthy(conn)
    well = read(rt.engine, rt)
    began = time.time()
    recording = Recording()
    for minute in range(-30, 1):
        recording.scrape(began + minute * MINUTE, well)
    body = well
    step = MINUTE if after < 3600 else 5 * MINUTE
    at = began
    while (at := at + step) <= began + after:
        if case is not None and (case.again or body is well):
            with rt.engine.begin() as conn:
                case.make(conn)
            body = read(rt.engine, rt)
        recording.scrape(at, body)
    return recording, began


def window(rule: dict[str, Any], began: float) -> list[float]:
    """The times at which a rule is evaluated until it fires."""
    for_ = seconds(rule.get("for", "1m"))
    step = MINUTE if for_ < 3600 else 5 * MINUTE
    first = began + step * 2
    return [first + n * step for n in range(int(for_ / step) + 1)]


# --- the tests ---------------------------------------------------------------------------------


def test_every_rule_has_a_case() -> None:
    assert set(CASES) | {"SeedanceMetricsAbsent"} == set(ALERTS)


def test_a_service_that_is_well_alerts_nobody(rt: Runtime) -> None:
    recording, began = recorded(rt, None, after=0)
    for minute in (-20, -10, 0):
        for name, rule in ALERTS.items():
            at = began + minute * MINUTE
            assert not promql.evaluate(rule["expr"], recording, at), name


@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_when_its_condition_is_true_and_not_before(name: str, rt: Runtime) -> None:
    rule = ALERTS[name]
    times = window(rule, began=0)
    recording, began = recorded(rt, CASES[name], after=times[-1])
    assert not promql.evaluate(rule["expr"], recording, began)
    times = window(rule, began)
    values = [promql.evaluate(rule["expr"], recording, at) for at in times]
    assert promql.holds(rule["expr"], recording, times), values
    if shutil.which("promtool"):
        _promtool_agrees(name, recording, began, times[-1])


@pytest.mark.parametrize(
    ("what", "setting", "every", "silent", "fires"),
    [
        ("reconcile", "reconcile_every", 300, 1700, 1900),
        ("reconcile", "reconcile_every", 7200, 20_000, 23_000),
        ("balance", "balance_every", 1200, 4000, 4600),
    ],
)
def test_upkeep_is_missed_by_what_the_settings_say(
    what: str, setting: str, every: int, silent: int, fires: int, make_runtime: MakeRuntime
) -> None:
    rt = make_runtime(**{setting: every})
    with rt.engine.begin() as conn:
        healthy(conn)
    expression = ALERTS["SeedanceUpkeepStopped"]["expr"]
    for age, expected in ((silent, []), (fires, [what])):
        with rt.engine.begin() as conn:
            moved = "UPDATE pulses SET at = now() - make_interval(secs => :age) WHERE name = :what"
            conn.execute(text(moved), {"age": age, "what": what})
        recording = Recording()
        recording.scrape(now := time.time(), read(rt.engine, rt))
        missed = promql.evaluate(expression, recording, now)
        assert isinstance(missed, dict)
        assert [dict(labels)["what"] for labels in missed] == expected


def test_the_first_requests_to_an_endpoint_are_slow_ones(rt: Runtime) -> None:
    """A rate sees nothing of a series that begins with them."""
    with rt.engine.begin() as conn:
        healthy(conn)
    recording = Recording()
    recording.scrape(0, read(rt.engine, rt))
    with rt.engine.begin() as conn:
        _request(conn, Outcome.OK, 20.0, 3, "cancel")
    recording.scrape(MINUTE, read(rt.engine, rt))
    found = promql.evaluate(ALERTS["SeedanceProviderSlow"]["expr"], recording, MINUTE)
    assert isinstance(found, dict)
    assert [dict(labels)["endpoint"] for labels in found] == ["cancel"]


@pytest.mark.parametrize("name", BreakerName)
def test_each_open_breaker_alerts_under_its_name(name: BreakerName, rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        healthy(conn)
        trip(name)(conn)
    recording = Recording()
    recording.scrape(0, read(rt.engine, rt))
    found = promql.evaluate(ALERTS["SeedanceBreakerOpen"]["expr"], recording, 0)
    assert isinstance(found, dict)
    assert [dict(labels)["breaker"] for labels in found] == [str(name)]


def scrapes(rt: Runtime, condition: Callable[[Connection], None]) -> tuple[bytes, bytes]:
    """What is served of a healthy service, and while a condition is true."""
    with rt.engine.begin() as conn:
        healthy(conn)
    well = read(rt.engine, rt)
    with rt.engine.begin() as conn:
        condition(conn)
    return well, read(rt.engine, rt)


@pytest.mark.parametrize(
    ("name", "condition"),
    [("SeedanceProviderOutage", outage), ("SeedanceThrottledLong", throttle)],
)
def test_trouble_that_is_interrupted_for_moments_is_one_alert(
    name: str, condition: Callable[[Connection], None], rt: Runtime
) -> None:
    """A probe succeeds now and then, or a pause ends: until the next refusal all seems well."""
    expression = ALERTS[name]["expr"]
    well, troubled = scrapes(rt, condition)
    recording = Recording()
    times = [n * MINUTE for n in range(40)]
    for minute, at in enumerate(times):
        in_trouble = minute < 20 and minute % 4
        recording.scrape(at, troubled if in_trouble else well)
    assert promql.holds(expression, recording, times[1:20])
    assert not promql.evaluate(expression, recording, times[26])


def test_flow_control_is_served_as_it_is(rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        healthy(conn)
        outage(conn)
        throttle(conn)
        too_many(conn)
        trip(BreakerName.CREDIT)(conn)
    recording = Recording()
    recording.scrape(0, read(rt.engine, rt))

    def value(expression: str) -> float:
        found = promql.evaluate(expression, recording, 0)
        assert isinstance(found, dict)
        [value] = found.values()
        return value

    assert value("seedance_outage") == 1
    assert value("seedance_throttled_seconds") == pytest.approx(300, abs=10)
    assert value("seedance_request_rate_limit") == pytest.approx(7, abs=1)
    assert value("seedance_concurrency_limit") == 3
    assert value('seedance_breaker_open{breaker="credit"}') == 1
    assert value('seedance_breaker_open{breaker="api_key"}') == 0


def test_without_evidence_no_limit_is_served(rt: Runtime) -> None:
    with rt.engine.begin() as conn:
        healthy(conn)
    recording = Recording()
    recording.scrape(0, read(rt.engine, rt))
    for name in ("seedance_request_rate_limit", "seedance_concurrency_limit"):
        assert not promql.evaluate(name, recording, 0), name
    for name in ("seedance_outage", "seedance_throttled_seconds"):
        assert list(promql.evaluate(name, recording, 0).values()) == [0]  # type: ignore[union-attr]


def test_silence_is_noticed() -> None:
    rule = ALERTS["SeedanceMetricsAbsent"]
    assert promql.holds(rule["expr"], Recording(), [n * MINUTE for n in range(6)])


def _promtool_agrees(name: str, recording: Recording, began: float, end: float) -> None:
    """promtool fires the same rule on the same samples."""
    used = {metric for metric, _ in promql.names(ALERTS[name]["expr"])}
    step = int(min(b - a for a, b in _gaps(recording)))
    start = min(at for samples in recording.series.values() for at, _ in samples)
    input_series = []
    for labels, samples in recording.series.items():
        named = dict(labels)
        if named.pop("__name__") not in used:
            continue
        at_step = {round((at - start) / step): value for at, value in samples}
        values = [repr(at_step[n]) if n in at_step else "_" for n in range(max(at_step) + 1)]
        # promtool's clock begins at 0: times are told in it.
        if "timestamp" in dict(labels)["__name__"]:
            values = [v if v == "_" else repr(float(v) - start) for v in values]
        inner = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(named.items()))
        series = f"{dict(labels)['__name__']}{{{inner}}}"
        input_series.append({"series": series, "values": " ".join(values)})
    unit = {
        "rule_files": [str(ROOT / "ops" / "alerts.yml")],
        "evaluation_interval": f"{step}s",
        "tests": [
            {
                "interval": f"{step}s",
                "input_series": input_series,
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0',
                        "eval_time": f"{int(end - start)}s",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    done = subprocess.run(
        ["promtool", "test", "rules", "/dev/stdin"],
        input=yaml.safe_dump(unit),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _gaps(recording: Recording) -> list[tuple[float, float]]:
    samples = next(iter(recording.series.values()))
    return list(zip([at for at, _ in samples], [at for at, _ in samples[1:]], strict=False))


def served(rt: Runtime) -> dict[str, set[str]]:
    """The names of all that is served of a service that has done everything, with their labels."""
    with rt.engine.begin() as conn:
        healthy(conn)
        for case in CASES.values():
            with conn.begin_nested() as savepoint:
                case.make(conn)
                savepoint.commit()
        _add(
            conn,
            (d.WAITING.name, ("other",), 0, 1),
            (d.RUNNING.name, ("completed", "seedance-2.0"), 0, 1),
        )
        pulses.tell(conn, "prune")
        too_many(conn)
    recording = Recording()
    recording.scrape(0, read(rt.engine, rt))
    found: dict[str, set[str]] = {}
    for labels in recording.series:
        name = dict(labels)["__name__"]
        found.setdefault(name, set()).update(key for key, _ in labels if key != "__name__")
    return found


def queries() -> list[str]:
    panels = [p for panel in DASHBOARD["panels"] for p in [panel, *panel.get("panels", [])]]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_rules_and_dashboard_read_what_is_served(rt: Runtime) -> None:
    there = served(rt)
    expressions = [rule["expr"] for rule in RULES]
    expressions += [query.replace("$__rate_interval", "5m") for query in queries()]
    assert len(expressions) > 40
    for expression in expressions:
        for name, matchers in promql.names(expression):
            assert name in there, f"{name} is not served: {expression}"
            assert {label for label, _ in matchers} <= there[name], expression


def test_the_dashboard_shows_every_metric(rt: Runtime) -> None:
    shown = {
        re.sub(r"_(bucket|count|sum|total|gcount|gsum)$", "", name)
        for query in queries()
        for name, _ in promql.names(query.replace("$__rate_interval", "5m"))
    }
    kept = {re.sub(r"_(bucket|count|sum|total|gcount|gsum)$", "", name) for name in served(rt)}
    assert kept == shown


def test_each_alert_says_what_to_do_where() -> None:
    entries = re.findall(r"^### (\w+)$", RUNBOOK, re.M)
    assert entries == list(ALERTS), "one entry for each alert, in the same order"
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        entry = RUNBOOK.split(f"### {name}\n")[1].split("### ")[0]
        for part in ("**Means**", "**Look**", "**Do**"):
            assert part in entry, f"{name} has no {part}"


def test_the_commands_of_the_runbook_exist() -> None:
    named = set(re.findall(r"`seedance ([a-z]+)", RUNBOOK))
    assert named <= set(COMMANDS)


def test_the_panels_of_the_dashboard_are_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["description"]


def test_the_rules_are_valid_for_prometheus_itself() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; the rules are parsed and evaluated all the same")
    command = ["promtool", "check", "rules", str(ROOT / "ops" / "alerts.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
