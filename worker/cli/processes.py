"""The service's processes: `migrate`, `worker`, `beat`, `simulator`."""

import logging
import os
import sys
import time
import warnings
from typing import Any

import click
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models import grants
from worker import heartbeat, logs, tracing
from worker import migrate as migrations
from worker.archive import StorageError, open_store
from worker.cli import output
from worker.cli.context import database, environment
from worker.cli.errors import BadInput, Failed, database_problem
from worker.settings import Settings, load_settings, unknown_variables
from worker.variables import adopt

log = logging.getLogger("seedance")

LOG_LEVEL = click.option(
    "-l",
    "--log-level",
    type=click.Choice(logs.LEVELS, case_sensitive=False),
    help="(SEEDANCE_LOG_LEVEL, info)",
)
_SAY_AGAIN = 15.0


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if there is something to do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: current, head, up_to_date, …")
@click.option(
    "--grant",
    "roles",
    multiple=True,
    metavar="ROLE[=PURPOSE]",
    help="Then give a role what it needs and no more. (PURPOSE: worker, gateway, producer; worker)",
)
@click.pass_context
def migrate(ctx: click.Context, *, check: bool, as_json: bool, roles: tuple[str, ...]) -> None:
    """Bring the database's tables up to date.

    Needs only SEEDANCE_DATABASE_URL. Safe to run twice at once, and while workers run. With
    --grant name the same roles each time: a migration may bring tables.

    \b
    Examples:
      SEEDANCE_DATABASE_URL=postgresql://me:secret@db/videos seedance migrate
      seedance migrate --grant seedance_worker --grant seedance_gateway=gateway
    """
    wanted = [_role(given) for given in roles]
    if check and wanted:
        raise BadInput("--check changes nothing, and --grant does: name one of them")
    with database() as engine:
        before = migrations.revision(engine)
        after = before if check or before.up_to_date else migrations.upgrade(engine)
        with engine.begin() as conn:
            for role, purpose in wanted:
                try:
                    grants.grant(conn, role, purpose)
                except grants.RoleError as error:
                    raise Failed(f"--grant: {error}") from None
    if as_json:
        output.print_json(
            {
                "current": after.current,
                "head": after.head,
                "up_to_date": after.up_to_date,
                "newer": after.newer,
            }
        )
    elif after.newer:
        click.echo(f"the database is at {after.current}, newer than this version: left as it is")
    elif check:
        state = "up to date" if after.up_to_date else f"to be migrated to {after.head}"
        click.echo(f"the database is at {after.current or 'nothing'}: {state}")
    elif before.up_to_date:
        click.echo(f"the database is at {after.current} already")
    else:
        click.echo(f"migrated from {before.current or 'nothing'} to {after.current}")
    if not as_json:
        for role, purpose in wanted:
            click.echo(f"role {role} has the rights of a {purpose}")
    ctx.exit(0 if after.up_to_date or after.newer else 1)


def _role(given: str) -> tuple[str, grants.Purpose]:
    role, _, purpose = given.partition("=")
    try:
        return role, grants.Purpose(purpose or "worker")
    except ValueError:
        allowed = ", ".join(grants.Purpose)
        raise BadInput(f"--grant {given}: {purpose!r} is no purpose; allowed: {allowed}") from None


@click.command()
@click.option("-c", "--concurrency", type=click.IntRange(1, 1000), help="Threads (16).")
@LOG_LEVEL
@click.option("-n", "--name", help="Name in Flower and `celery inspect` (seedance-PID@HOST).")
@click.option("-Q", "--queues", help="Take only these queues, as in `celery worker -Q`.")
@click.option("--no-events", is_flag=True, help="Tell Flower nothing: where nobody looks at it.")
def worker(
    concurrency: int | None,
    log_level: str | None,
    name: str | None,
    queues: str | None,
    no_events: bool,
) -> None:
    """Run a worker until SIGTERM or Ctrl-C: it dispatches, uploads, submits and follows.

    Start as many as you like, on as many machines. A stopped worker finishes what it has at
    hand; one that is killed loses nothing. `celery -A worker.app worker` does the same.

    \b
    Example:
      seedance worker --concurrency 32 --name video-1@%h
    """
    prepare("worker", log_level)
    _check_archive(load_settings())
    if concurrency is not None:
        # By the environment, since connections are counted by it as well.
        os.environ["SEEDANCE_CONCURRENCY"] = str(concurrency)
    # Celery reads its settings when the app is first used: after the environment is complete.
    from celery.exceptions import SecurityWarning
    from celery.utils.nodenames import host_format

    from worker.app import app

    options: dict[str, Any] = {} if queues is None else {"queues": queues}
    ours = sorted(queue.name for queue in app.conf.task_queues)
    for foreign in sorted(set((queues or "").split(",")) - {"", *ours}):
        log.warning(
            "%s is no queue of this service: a slip in the name? (%s)", foreign, ", ".join(ours)
        )
    if no_events:
        options |= {"task_events": False, "without_heartbeat": True}
    node = host_format(name or f"seedance-{os.getpid()}@%h")
    if "@" not in node:
        node = host_format(f"{node}@%h")
    # Celery warns root of pickled messages; here only JSON is taken.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    running: Any = app.Worker(
        hostname=node,
        loglevel=logs.given_level(),
        quiet=True,
        # Workers need to know nothing of each other: what they share is in the database.
        without_gossip=True,
        without_mingle=True,
        **options,
    )
    log.info("worker %s starts with %s threads", node, running.concurrency)
    running.start()
    log.info("worker %s has stopped", node)
    sys.exit(running.exitcode or 0)


@click.command()
@LOG_LEVEL
def beat(log_level: str | None) -> None:
    """Run the clock of upkeep: reconcile, balance, pruning.

    One is enough, several do no harm, and without any nothing but upkeep stops. It keeps no
    file: each start begins the intervals anew.

    \b
    Example:
      SEEDANCE_RECONCILE_EVERY=600 seedance beat
    """
    prepare("beat", log_level)
    from worker.app import app

    log.info("beat starts")
    level = logs.given_level()
    app.Beat(scheduler="worker.beat_schedule:BeatingScheduler", loglevel=level, quiet=True).run()


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def simulator(ctx: click.Context, options: tuple[str, ...]) -> None:
    """Run a stand-in for the provider: the same API, no key needed, nothing paid.

    \b
    Example:
      seedance simulator --port 8787 --speed 20
      export SEEDANCE_API_BASE_URL=http://127.0.0.1:8787 SEEDANCE_API_KEY=sim-key
    """
    try:
        from simulator import cli_main
    except ImportError as error:
        raise BadInput(
            f"the simulator needs {error.name}: pip install 'seedance-worker[simulator]'"
        ) from None
    try:
        ctx.exit(cli_main(options))
    except SystemExit as ended:  # argparse has said what it had to
        ctx.exit(ended.code if isinstance(ended.code, int) else 2)


def begin_logging(process: str, log_level: str | None) -> None:
    """A service's lines, under its name; by the environment, which knows the secrets to be cut."""
    if log_level is not None:
        os.environ[logs.LEVEL] = log_level.lower()
    logs.name_process(process)
    logs.configure()


def _check_archive(settings: Settings) -> None:
    """Refuse an archive that is set up wrongly. One that doesn't answer now may do so later."""
    store = open_store(
        settings.archive_url,
        connect_timeout=settings.http_connect_timeout,
        read_timeout=settings.http_timeout,
    )
    try:
        if store is not None:
            store.probe()
    except StorageError as error:
        said = f"SEEDANCE_ARCHIVE_URL is {settings.archive_url!r}, which can't be written: {error}"
        if error.refused:
            raise BadInput(
                f"{said}; name a folder or bucket that exists and that this worker may write"
            ) from None
        log.warning("%s; results wait until it can", said)


def prepare(process: str, log_level: str | None) -> None:
    """Complete the environment, refuse wrong settings, wait for the tables."""
    adopt(environment())
    heartbeat.forget(heartbeat.given_file())
    begin_logging(process, log_level)
    if load_settings().tracing and process == "worker":
        try:
            tracing.start(process)
        except tracing.TracingError as error:
            raise BadInput(str(error)) from None
    for name in unknown_variables():
        log.warning("%s is no setting of this version: a slip in the name?", name)
    with database() as engine:
        _wait_for_tables(engine)


def _wait_for_tables(engine: Engine) -> None:
    said = 0.0
    while (obstacle := _obstacle(engine)) is not None:
        if time.monotonic() - said > _SAY_AGAIN or not said:
            said = time.monotonic()
            log.warning("waiting: %s", obstacle)
        time.sleep(1.0)


def _obstacle(engine: Engine) -> str | None:
    try:
        found = migrations.revision(engine)
    except DBAPIError as error:
        return database_problem(error)
    if found.up_to_date:
        return None
    if found.newer:
        # Newer workers are being rolled out; old and new code work side by side.
        log.warning("the database is at %s, newer than this version", found.current)
        return None
    return (
        f"the database is at {found.current or 'nothing'} and has to be at {found.head}:"
        " run `seedance migrate`"
    )
