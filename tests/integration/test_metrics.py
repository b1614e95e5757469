"""`/metrics`: what a scrape gets, from many processes, with and without a database."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

import simulator
from api_client import RequestSeen
from api_client.observing import Outcome
from models.database import make_engine
from models.metrics import definitions as d
from tests.conftest import MakeRuntime
from tests.integration.conftest import Steps
from tests.waiting import wait_for
from worker.gateway.app import create_app
from worker.metrics import scrape, serve
from worker.metrics.reporter import Reporter
from worker.metrics.scrape import Answer, Scrapes, bears
from worker.metrics.tally import Tally
from worker.runtime import Runtime
from worker.upkeep import balance, prune, reconcile

TOKEN = "a-token-for-scrapers"
DEAD = "postgresql://u:pass-word@127.0.0.1:1/db"


def figures(body: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each series and its value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def read(rt: Runtime, name: str, **labels: str) -> float | None:
    body = scrape.collect(rt.engine, rt.settings)
    return figures(body).get((name, frozenset(labels.items())))


def test_what_a_generation_leaves_behind(
    make_runtime: MakeRuntime, sim: simulator.Simulator
) -> None:
    rt = make_runtime(metrics_tenants="acme=gold")
    steps = Steps(rt)
    steps.until_ended(steps.enqueue(tenant="acme"))
    sim.fault("get", "not_found", times=1)
    steps.until_ended(steps.enqueue(tenant="somebody"))
    balance.run(rt)
    reconcile.run(rt)
    prune.run(rt)
    assert Reporter(rt.engine, rt.tally, every=60).write()
    body = scrape.collect(rt.engine, rt.settings)
    found = figures(body)

    def one(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    gold = {"model": "seedance-2.0", "tenant": "gold"}
    done = {"outcome": "completed", "error": "none"}
    assert one("seedance_generations_accepted_total", **gold) == 1
    assert one("seedance_generations_submitted_total", how="answered", **gold) == 1
    assert one("seedance_generations_finished_total", **done, **gold) == 1
    assert one("seedance_generations_finished_total", **done, **gold | {"tenant": "other"}) == 1
    assert one("seedance_credits_charged_total", **gold) == 9
    assert one("seedance_generation_waiting_seconds_count", tenant="gold") == 1
    assert one("seedance_generation_waiting_seconds_bucket", tenant="gold", le="+Inf") == 1
    assert one("seedance_provider_requests_total", endpoint="submit", outcome="ok") == 2
    assert one("seedance_provider_requests_total", endpoint="get", outcome="not_found") == 1
    assert one("seedance_provider_request_seconds_count", endpoint="submit") == 2
    assert one("seedance_credits_remaining") > 0
    for what in ("balance", "reconcile", "prune"):
        at = one("seedance_last_success_timestamp_seconds", what=what)
        assert abs(at - time.time()) < 60
    assert one("seedance_breaker_open", breaker="api_key") == 0
    assert any(name == "seedance_build_info" for name, _ in found)
    for secret in (sim.api_key, "acme", "somebody", "a cat"):
        assert secret not in body.decode()


def test_the_whole_text_keeps_prometheus_practice(rt: Runtime, steps: Steps) -> None:
    steps.until_ended(steps.enqueue())
    body = scrape.collect(rt.engine, rt.settings).decode()
    for family in text_string_to_metric_families(body):
        assert family.name.startswith("seedance_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        else:
            assert not family.name.endswith(("_sum", "_count", "_bucket")), "of histograms alone"
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert set(sample.labels) <= {
                *("status", "tenant", "model", "outcome", "error", "how", "event", "endpoint"),
                *("breaker", "of", "kind", "what", "target", "state", "le", "version", "python"),
            }
    named = {total.name for total in d.TOTALS.values()}
    assert all(f"# HELP {name}" in body for name in named)
    if promtool := shutil.which("promtool"):
        check = [promtool, "check", "metrics"]
        said = subprocess.run(check, input=body, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr


def test_counts_of_processes_add_up_and_survive_them(rt: Runtime) -> None:
    seen = RequestSeen("get", Outcome.OK, 0.3)
    for _ in range(2):
        process = Tally()
        reporter = Reporter(rt.engine, process, every=600)
        reporter.start()
        for _ in range(5):
            process.request(seen)
        reporter.stop()  # writes the last of it
    get = {"endpoint": "get"}
    assert read(rt, "seedance_provider_requests_total", **get, outcome="ok") == 10
    assert read(rt, "seedance_provider_request_seconds_sum", **get) == pytest.approx(3)
    assert read(rt, "seedance_provider_request_seconds_bucket", **get, le="0.25") == 0
    assert read(rt, "seedance_provider_request_seconds_bucket", **get, le="0.5") == 10


def test_a_reporter_writes_by_itself_and_keeps_what_it_cannot_write(rt: Runtime) -> None:
    tally = Tally()
    tally.count(d.REQUESTS, "get", "ok")
    dead = make_engine(DEAD)
    assert Reporter(dead, tally, every=60).write() is False
    dead.dispose()
    reporter = Reporter(rt.engine, tally, every=0.05)
    reporter.start()
    try:
        wait_for(
            lambda: read(rt, "seedance_provider_requests_total", endpoint="get", outcome="ok") == 1
        )
    finally:
        reporter.stop()


def test_threads_lose_no_count() -> None:
    tally = Tally()
    threads = [
        threading.Thread(target=lambda: [tally.count(d.REQUESTS, "get", "ok") for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    taken = Decimal(0)
    while any(thread.is_alive() for thread in threads):
        taken += sum(sample.value for sample in tally.take())
    assert taken + sum(sample.value for sample in tally.take()) == 8000


def test_an_observer_that_fails_loses_no_answer(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Tally, _request: RequestSeen) -> None:
        raise RuntimeError("no room to count")

    monkeypatch.setattr(Tally, "request", fail)
    steps = Steps(make_runtime())
    assert steps.until_ended(steps.enqueue()).status == "completed"


def test_a_database_that_is_away_is_told_at_once(make_runtime: MakeRuntime) -> None:
    settings = make_runtime().settings
    engine = make_engine(DEAD)
    answer = scrape.scrapes(settings, engine).answer()
    engine.dispose()
    assert answer.status == 503
    assert b"OperationalError" in answer.body
    assert b"pass-word" not in answer.body


def test_history_that_nobody_counted_is_not_told_in_part(rt: Runtime, steps: Steps) -> None:
    for _ in range(5):
        steps.enqueue()
    which = scrape.classes(rt.settings)
    with pytest.raises(scrape.BehindError):
        scrape.catch_up(rt.engine, which, within=-1, most=1)
    scrape.catch_up(rt.engine, which, within=60, most=1)

    def behind() -> bytes:
        raise scrape.BehindError

    assert Scrapes(behind).answer().status == 503


def test_a_reading_that_hangs_holds_up_nobody_for_long() -> None:
    release, begun = threading.Event(), []

    def hangs() -> bytes:
        begun.append(1)
        release.wait(60)
        return b"late"

    taken = Scrapes(hangs, patience=0.2, remember=60)
    try:
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.append(taken.answer())) for _ in range(5)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - started < 15
        assert [answer.status for answer in answers] == [503] * 5
        assert len(begun) == 1, "one reading at a time, however many ask"
    finally:
        release.set()
    wait_for(lambda: taken.answer() == Answer(200, b"late"), "it recovers")


def test_one_reading_serves_those_who_ask_together_and_is_not_kept() -> None:
    count = iter(range(100))
    taken = Scrapes(lambda: str(next(count)).encode(), remember=60)
    assert {taken.answer().body for _ in range(5)} == {b"0"}
    fresh = Scrapes(lambda: str(next(count)).encode(), remember=0)
    assert fresh.answer().body != fresh.answer().body


def test_an_error_is_not_remembered_for_long() -> None:
    failures = iter([OperationalError("s", {}, Exception())])

    def read_() -> bytes:
        for error in failures:
            raise error
        return b"well"

    taken = Scrapes(read_, remember=0)
    assert taken.answer().status == 503
    assert taken.answer() == Answer(200, b"well")


@pytest.mark.parametrize(
    ("header", "lets_in"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Bearer {TOKEN}x", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer é", False),
        (None, False),
    ],
)
def test_a_token_is_needed_where_one_is_set(header: str | None, lets_in: bool) -> None:
    assert bears(header, TOKEN) is lets_in


def through_gateway(rt: Runtime, client: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """What the gateway answers to a client at this address."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "query_string": b"",
        "client": (client, 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(create_app(rt.settings, rt.engine)(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body.decode()


def test_strangers_see_nothing_at_the_gateway(make_runtime: MakeRuntime) -> None:
    rt = make_runtime()
    assert through_gateway(rt)[0] == 200
    assert through_gateway(rt, "::1")[0] == 200
    assert through_gateway(rt, "10.0.0.7")[0] == 403
    for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        assert through_gateway(rt, **{name: "127.0.0.1"})[0] == 403, "by way of a proxy"
    rt = make_runtime(metrics_token=TOKEN)
    assert through_gateway(rt)[0] == 401
    status, text = through_gateway(rt, "10.0.0.7", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    assert "seedance_build_info" in text


def test_the_small_server_serves_the_same(make_runtime: MakeRuntime) -> None:
    rt = make_runtime()
    app = serve.application(scrape.scrapes(rt.settings, rt.engine), TOKEN)

    def get(path: str, authorization: str | None = None) -> tuple[str, bytes]:
        told: list[Any] = []
        environ = {"PATH_INFO": path}
        if authorization:
            environ["HTTP_AUTHORIZATION"] = authorization
        body = b"".join(app(environ, lambda status, headers: told.append(status)))
        return told[0], body

    assert get("/metrics")[0] == "401 Unauthorized"
    status, body = get("/metrics", f"Bearer {TOKEN}")
    assert status == "200 OK"
    assert b"seedance_build_info" in body
    assert get("/healthz")[0] == "200 OK"
    assert get("/")[0] == "404 Not Found"


def alive(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    start("200 OK", [("Content-Length", "5")])
    return [b"alive"]


@contextlib.contextmanager
def small_server(host: str = "127.0.0.1", **options: Any) -> Iterator[tuple[str, int]]:
    server = serve.Server(host, 0, alive, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield host, server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def got(where: tuple[str, int]) -> bytes:
    with socket.create_connection(where, timeout=30) as asking:
        asking.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        return asking.makefile("rb").read()


def test_the_small_server_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one is set that does not answer, starting would take half a minute."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("a name is looked up"))
    with small_server() as where:
        assert got(where).endswith(b"alive")


def test_the_small_server_listens_by_ipv6_as_well() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with small_server("::1") as where:
        assert got(where).endswith(b"alive")


def test_those_who_ask_slowly_hold_no_more_than_their_share_and_not_for_ever() -> None:
    with small_server(longest=1.5) as where, contextlib.ExitStack() as defer:
        slow = [
            defer.enter_context(socket.create_connection(where, timeout=30))
            for _ in range(serve.MOST)
        ]
        for one in slow:
            one.sendall(b"GET /healthz HTTP/1.0\r\n")
        wait_for(lambda: b"503" in got(where), "no thread is free")
        assert threading.active_count() < serve.MOST + 20
        wait_for(lambda: got(where).endswith(b"alive"), "their threads are free again")
