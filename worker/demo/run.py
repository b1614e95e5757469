"""Runs the demo: servers, processes, jobs, verdict."""

import contextlib
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import Engine, func, select

from models import reads
from models.database import make_engine
from models.tables import Generation
from simulator import Admin
from worker import broker_client, embedded, migrate, stack, stack_file
from worker.cli.errors import BadInput, Failed
from worker.cli.output import credits_text
from worker.demo import stored, verdict
from worker.demo.jobs import Job, jobs, media, send, total
from worker.demo.listener import Listener
from worker.demo.screen import Line, Screen, summary
from worker.embedded import EmbeddedPostgres, Servers
from worker.notify import ALLOW_PRIVATE
from worker.supervisor import Supervisor
from worker.variables import adopt, is_given, secret
from worker.webhook_secrets import new_webhook_secret

DATABASE = "SEEDANCE_DATABASE_URL"
BROKER = "SEEDANCE_BROKER_URL"
KEY = "sim-key"

_DATABASE_NAME = "demo"
_SPEED = "25"
_PATIENCE = 120.0
_WEBHOOK_PATIENCE = 20.0
_LOOK_EVERY = 0.2
_TAIL = 40

_SETTINGS = {
    # A lost answer is settled after B + K + L and a margin: seconds here, over a minute in earnest.
    "SEEDANCE_SEND_BUDGET": "2",
    "SEEDANCE_LATE_CREATION": "1",
    "SEEDANCE_LIST_LAG": "0.5",
    "SEEDANCE_SETTLE_MARGIN": "0.5",
    "SEEDANCE_LEASE": "15",
    "SEEDANCE_HTTP_TIMEOUT": "8",
    "SEEDANCE_HTTP_CONNECT_TIMEOUT": "3",
    "SEEDANCE_POLL_MIN": "0.5",
    "SEEDANCE_POLL_MAX": "1.5",
    "SEEDANCE_TICK": "0.5",
    "SEEDANCE_RATE_LIMIT": "100/second",
    "SEEDANCE_BALANCE_EVERY": "5",
    "SEEDANCE_LOG_FORMAT": "console",
}


@dataclass(frozen=True)
class _Where:
    """The servers of this run."""

    database_url: str
    broker_url: str
    api_url: str
    gateway_url: str
    folder: Path
    webhook_secret: str


def run(folder: Path, *, plain: bool, workers: int) -> int:
    """Run the demo and return its exit code."""
    # What the environment says of pace, keys and providers must not reach the demo.
    stack.forget_settings(DATABASE, BROKER)
    screen = Screen(plain=plain)
    outside = {name for name in (DATABASE, BROKER) if is_given(name)}
    with contextlib.ExitStack() as defer:
        servers = defer.enter_context(
            embedded.servers(folder, postgres=DATABASE not in outside, broker=BROKER not in outside)
        )
        database_url = _fresh_database(servers) or secret(DATABASE) or ""
        broker_url = _empty_broker(servers) or secret(BROKER) or ""
        engine = make_engine(database_url)
        defer.callback(engine.dispose)
        migrate.upgrade(engine)
        _refuse_others_work(engine)
        if BROKER in outside:
            _refuse_others_workers(broker_url)
        screen.step(_servers_text(outside))
        port, gateway_port = stack.free_port(), stack.free_port()
        where = _Where(
            database_url,
            broker_url,
            stack.local_url(port),
            stack.local_url(gateway_port),
            servers.data_dir,
            new_webhook_secret(),
        )
        listener = defer.enter_context(Listener(where.webhook_secret))
        log = servers.data_dir / "processes.log"
        output = defer.enter_context(log.open("w", encoding="utf-8"))
        (servers.data_dir / "videos").mkdir(exist_ok=True)
        env = _environment(where)
        # For `enqueue`, as in any producer.
        adopt({DATABASE: database_url, ALLOW_PRIVATE: env[ALLOW_PRIVATE]})
        defer.enter_context(stack_file.published(servers.data_dir, env))
        specs = [
            stack.simulator(port, "--speed", _SPEED),
            stack.gateway(gateway_port, env),
            *(stack.worker(n, env, servers.data_dir) for n in range(1, workers + 1)),
            stack.beat(env),
        ]
        supervisor = defer.enter_context(Supervisor(specs, output=output))
        found = ["the service did not come up"]
        try:
            _wait_ready(supervisor)
            screen.step(f"simulator, {workers} workers, beat, gateway run (log: {_shown(log)})")
            found = _work(screen, where, engine, listener)
        except KeyboardInterrupt:
            found = []  # whoever stops it needs no log
            raise
        finally:
            if found:
                _show_log(screen, log)
        screen.step("stopping")
    return _conclude(screen, found)


def _servers_text(outside: set[str]) -> str:
    names = (("PostgreSQL", DATABASE), ("Valkey", BROKER))
    own = [name for name, variable in names if variable not in outside]
    given = [variable for _, variable in names if variable in outside]
    parts = ([f"{' and '.join(own)} started"] if own else []) + [f"{v} used" for v in given]
    return "; ".join(parts)


def _fresh_database(servers: Servers) -> str | None:
    """A new database for each run: the simulator forgets its tasks, so the rows must go too."""
    for server in servers.running:
        if isinstance(server, EmbeddedPostgres):
            server.drop_database(_DATABASE_NAME)
            return server.create_database(_DATABASE_NAME)
    return None


def _empty_broker(servers: Servers) -> str | None:
    if not servers.broker_url:
        return None
    with contextlib.closing(redis.Redis.from_url(servers.broker_url)) as broker:
        broker.flushdb()
    return servers.broker_url


def _refuse_others_work(engine: Engine) -> None:
    """Workers of the demo carry out whatever is due: with a database of others that is theirs."""
    with engine.connect() as conn:
        unended = conn.execute(
            select(func.count()).select_from(Generation).where(Generation.finished_at.is_(None))
        ).scalar_one()
    if unended:
        raise BadInput(
            f"{DATABASE} names a database with {unended} generations that have not ended: the"
            " demo would carry them out with its simulator. Name an empty one, or none"
        )


def _refuse_others_workers(broker_url: str) -> None:
    """A worker of somebody else would take the demo's messages, and the demo's workers its."""
    with broker_client.client(broker_url) as client:
        present = client.control.ping(timeout=1.0)
    if present:
        names = ", ".join(name for answer in present for name in answer)
        raise BadInput(f"{BROKER} names a broker that has workers ({names}): name another, or none")


def _environment(where: _Where) -> dict[str, str]:
    return {
        **_SETTINGS,
        DATABASE: where.database_url,
        BROKER: where.broker_url,
        "SEEDANCE_API_KEY": KEY,
        "SEEDANCE_API_BASE_URL": where.api_url,
        "SEEDANCE_PUBLIC_URL": where.gateway_url,
        "SEEDANCE_MEDIA_ROOTS": str(media()[0]),
        "SEEDANCE_WEBHOOK_SECRETS": where.webhook_secret,
        ALLOW_PRIVATE: "true",  # the listener is next door
        "SEEDANCE_ARCHIVE_URL": (where.folder / "videos").resolve().as_uri(),
    }


def _wait_ready(supervisor: Supervisor) -> None:
    try:
        supervisor.wait_ready(_PATIENCE)
    except (RuntimeError, TimeoutError) as error:
        raise Failed(f"the service did not come up: {error}") from None


def _work(screen: Screen, where: _Where, engine: Engine, listener: Listener) -> list[str]:
    """Send the jobs, watch them, and say what is not as it should be."""
    with engine.connect() as conn:
        began = conn.execute(select(func.now())).scalar_one()
    sent = [(job, send(job, where.broker_url, listener.url)) for job in jobs()]
    screen.step(f"{len(sent)} generations enqueued")
    lines = _follow(screen, engine, sent)
    with engine.connect() as conn:
        histories = {line.id: reads.events(conn, line.id) for line in lines}
        kept = verdict.account(conn, began)
    summary(screen, lines, histories)
    admin = Admin(where.api_url)
    account = admin.accounts()[0]
    used = Decimal(str(account["used"]))
    tasks = admin.tasks()
    found = verdict.problems(lines, histories, tasks, used, kept)
    estimated = total([line.view.estimated_cost for line in lines if line.view])
    screen.console.print()
    screen.step(
        f"credits: {credits_text(estimated)} estimated, {credits_text(kept.charged)} charged in the"
        f" ledger, {credits_text(used)} off the simulator's account"
    )
    taken = sum("200" in task["callbacks"] for task in tasks)
    screen.step(f"callbacks: {taken} of {len(tasks)} taken in by the gateway so far")
    found += _hear(screen, lines, listener)
    return found + _check_videos(screen, engine, lines, tasks)


def _hear(screen: Screen, lines: Sequence[Line], listener: Listener) -> list[str]:
    """Wait a little for the last webhooks, and say what came."""
    deadline = time.monotonic() + _WEBHOOK_PATIENCE
    while (found := verdict.notice_problems(lines, listener.heard)) and (
        time.monotonic() < deadline
    ):
        time.sleep(_LOOK_EVERY)
    verified = len(listener.heard.statuses)
    screen.step(f"webhooks: {verified} of {len(lines)} came to a listener, signatures verified")
    return found


def _check_videos(
    screen: Screen, engine: Engine, lines: Sequence[Line], tasks: Sequence[Mapping[str, Any]]
) -> list[str]:
    views = stored.wait(engine, lines)
    found = list(stored.problems(views, tasks))
    if not views:
        return ["there is no video"]
    if not found:
        files = {stored.path_of(view.video_uri) for view in views.values() if view.video_uri}
        one = max(files)
        screen.step(
            f"videos: {len(files)} stored in {_shown(one.parent.parent)}, each with the provider's"
            f" SHA-256; play one: {_shown(one)}"
        )
    return found


def _follow(screen: Screen, engine: Engine, sent: Sequence[tuple[Job, uuid.UUID]]) -> list[Line]:
    """Show the jobs until all have ended, or patience has."""
    deadline = time.monotonic() + _PATIENCE
    with screen:
        while True:
            with engine.connect() as conn:
                views = reads.get_many(conn, [generation_id for _, generation_id in sent])
            lines = [Line(job, one, views.get(one)) for job, one in sent]
            screen.update(lines)
            ended = all(line.view is not None and line.view.ended for line in lines)
            if ended or time.monotonic() > deadline:
                return lines
            time.sleep(_LOOK_EVERY)


def _show_log(screen: Screen, log: Path) -> None:
    with contextlib.suppress(OSError):
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        screen.console.print(f"\nthe end of {_shown(log)}:", *tail, sep="\n", markup=False)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _conclude(screen: Screen, found: Sequence[str]) -> int:
    for problem in found:
        screen.step(f"NOT as it should be: {problem}")
    if not found:
        screen.step(f"all {len(jobs())} generations ended as they should")
    return 1 if found else 0
