"""`seedance up`: the whole service on this machine, until Ctrl-C."""

import contextlib
import importlib.util
import logging
import os
import shlex
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import click

from models.database import make_engine
from worker import broker_client, embedded, logs, migrate, stack, stack_file
from worker import flower as window
from worker.cli.context import DATABASE, data_dir
from worker.cli.errors import BadInput, Failed
from worker.settings import load_settings
from worker.supervisor import ProcessSpec, Supervisor
from worker.variables import is_given, over

log = logging.getLogger("seedance")

_BROKER = "SEEDANCE_BROKER_URL"
_KEY = "SEEDANCE_API_KEY"
_BASE_URL = "SEEDANCE_API_BASE_URL"
_PUBLIC_URL = "SEEDANCE_PUBLIC_URL"
_GATEWAY_PORT = "SEEDANCE_GATEWAY_PORT"
_SIMULATOR_KEY = "sim-key"
_PROVIDER_FILE = "provider"
# The simulator's tasks take seconds: worth looking more often.
_SIMULATED_PACE = {"SEEDANCE_POLL_MIN": "1", "SEEDANCE_POLL_MAX": "5"}


@dataclass(frozen=True)
class _Plan:
    """What to run, as the options say."""

    folder: Path
    workers: int
    worker_options: tuple[str, ...]
    simulated: bool
    speed: float
    simulator_port: int
    gateway_port: int
    flower_port: int | None
    media_roots: str


@click.command()
@click.option(
    "--data-dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where servers and Flower keep what they know. (SEEDANCE_DATA_DIR, seedance-data)",
)
@click.option("-w", "--workers", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("-c", "--concurrency", type=click.IntRange(1, 1000), help="Threads of each (16).")
@click.option("--simulator", "simulated", is_flag=True, help="Even if SEEDANCE_API_KEY is set.")
@click.option("--simulator-port", type=click.IntRange(0, 65_535), default=0, help="(any free one)")
@click.option(
    "--speed",
    type=click.FloatRange(0.1, 10_000),
    default=10.0,
    show_default=True,
    help="Simulated seconds per second.",
)
@click.option(
    "--gateway-port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="For callbacks. (any free one)",
)
@click.option("--flower-port", type=click.IntRange(0, 65_535), default=0, help="(any free one)")
@click.option("--no-flower", is_flag=True, help="Without the operators' window.")
@click.option(
    "--media-root",
    "media_roots",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that local references may lie in; may be repeated. (this folder)",
)
@click.pass_context
def up(
    ctx: click.Context,
    /,
    *,
    folder: Path | None,
    workers: int,
    concurrency: int | None,
    simulated: bool,
    simulator_port: int,
    speed: float,
    gateway_port: int,
    flower_port: int,
    no_flower: bool,
    media_roots: tuple[Path, ...],
) -> None:
    """Run everything until Ctrl-C: PostgreSQL, Valkey, workers, beat, gateway, Flower.

    PostgreSQL and Valkey come from wheels and keep their data in seedance-data/, unless
    SEEDANCE_DATABASE_URL or SEEDANCE_BROKER_URL name servers of yours. Without SEEDANCE_API_KEY
    a simulator stands in for the provider. The gateway takes its callbacks; those of a real
    provider need SEEDANCE_PUBLIC_URL, and what leads from there to --gateway-port. What dies is
    started again. In another terminal, in this folder, the other commands find it; with
    --data-dir they do where SEEDANCE_DATA_DIR names the same folder.

    \b
    Examples:
      seedance up
      SEEDANCE_API_KEY=… seedance up --workers 4 --flower-port 5555
    """
    given = [str(root.resolve()) for root in media_roots]
    plan = _Plan(
        data_dir(folder),
        workers,
        () if concurrency is None else ("--concurrency", str(concurrency)),
        simulated or not is_given(_KEY),
        speed,
        simulator_port,
        gateway_port,
        None if no_flower else flower_port,
        ":".join(given) or os.environ.get("SEEDANCE_MEDIA_ROOTS") or str(Path.cwd()),
    )
    if plan.simulated and not simulated and is_given(DATABASE):
        raise BadInput(
            f"{DATABASE} is set and {_KEY} is not: the simulator would get that database's"
            f" generations. Set {_KEY}, or say --simulator if that is meant"
        )
    with stack.signals_unwind():
        ctx.exit(_run(plan))


def _run(plan: _Plan) -> int:
    _choose_logs()
    made = _settings_of(plan)
    # Wrong settings are told before anything is started.
    load_settings(over(over({DATABASE: "postgresql://-/-"}, os.environ), made))
    _check_flower_login(plan)
    outside = {name for name in (DATABASE, _BROKER) if is_given(name)}
    with contextlib.ExitStack() as defer:
        _say("starting " + (" and ".join(_embedded_names(outside)) or "with servers of yours"))
        servers = defer.enter_context(
            embedded.servers(
                plan.folder, postgres=DATABASE not in outside, broker=_BROKER not in outside
            )
        )
        if servers.database_url:
            made[DATABASE] = servers.database_url
            _check_provider(servers.data_dir, made.get(_BASE_URL))
        if servers.broker_url:
            made[_BROKER] = servers.broker_url
        settings = load_settings(over(os.environ, made))
        _migrate(settings.database_url)
        run_dir = Path(defer.enter_context(tempfile.TemporaryDirectory(prefix="seedance-up-")))
        specs, flower = _processes(plan, made, settings.broker_url, run_dir)
        defer.enter_context(stack_file.published(plan.folder, made))
        defer.enter_context(stack.kept_running(servers, _say))
        supervisor = Supervisor(specs, output=sys.stdout)
        threading.Thread(
            target=_tell_when_ready,
            args=(supervisor, plan, made, flower, settings.broker_url),
            daemon=True,
        ).start()
        code = supervisor.run()
    _say("everything is stopped")
    return code


def _check_flower_login(plan: _Plan) -> None:
    try:
        if plan.flower_port is not None:
            window.check(os.environ)
    except window.LoginError as error:
        raise BadInput(str(error)) from None


def _settings_of(plan: _Plan) -> dict[str, str]:
    """What `up` decides itself; the rest comes from the environment."""
    try:
        port = stack.free_port(plan.gateway_port)
    except OSError as error:
        raise Failed(f"--gateway-port {plan.gateway_port}: {error.strerror}") from None
    made = {"SEEDANCE_MEDIA_ROOTS": plan.media_roots, _GATEWAY_PORT: str(port)}
    if plan.simulated:
        try:
            port = stack.free_port(plan.simulator_port)
        except OSError as error:
            raise Failed(f"--simulator-port {plan.simulator_port}: {error.strerror}") from None
        made |= {_KEY: _SIMULATOR_KEY, _BASE_URL: stack.local_url(port)}
        made[_PUBLIC_URL] = stack.local_url(int(made[_GATEWAY_PORT]))
        made |= {name: value for name, value in _SIMULATED_PACE.items() if not os.environ.get(name)}
    return made


def _embedded_names(outside: set[str]) -> list[str]:
    names = ((DATABASE, "PostgreSQL"), (_BROKER, "Valkey"))
    return [name for variable, name in names if variable not in outside]


def _check_provider(folder: Path, simulator_url: str | None) -> None:
    """Generations made with the simulator must never reach the real provider, nor the reverse."""
    now = "the simulator" if simulator_url else os.environ.get(_BASE_URL) or "the provider"
    file = folder / _PROVIDER_FILE
    before = file.read_text(encoding="utf-8").strip() if file.exists() else now
    if before != now:
        raise BadInput(
            f"the generations in {folder} were made with {before}, this would go on with {now}:"
            " choose another --data-dir, or remove that folder"
        )
    file.write_text(now + "\n", encoding="utf-8")


def _migrate(url: str) -> None:
    engine = make_engine(url)
    try:
        migrate.upgrade(engine)
    finally:
        engine.dispose()


def _processes(
    plan: _Plan, made: dict[str, str], broker_url: str, run_dir: Path
) -> tuple[list[ProcessSpec], dict[str, str]]:
    specs = []
    if plan.simulated:
        port = int(made[_BASE_URL].rpartition(":")[2])
        specs.append(stack.simulator(port, "--speed", str(plan.speed)))
    if importlib.util.find_spec("uvicorn") is None:
        _say("without the gateway: pip install 'seedance-worker[gateway]'")
    else:
        specs.append(stack.gateway(int(made[_GATEWAY_PORT]), made))
    specs += [
        stack.worker(number, made, run_dir, *plan.worker_options)
        for number in range(1, plan.workers + 1)
    ]
    specs.append(stack.beat(made))
    if plan.flower_port is None:
        return specs, {}
    if importlib.util.find_spec("flower") is None:
        _say("without Flower: pip install 'seedance-worker[monitoring]'")
        return specs, {}
    try:
        port = stack.free_port(plan.flower_port)
    except OSError as error:
        raise Failed(f"--flower-port {plan.flower_port}: {error.strerror}") from None
    folder = plan.folder.resolve() / "flower"
    known = window.login(folder, os.environ)
    specs.append(stack.flower(port, window.environment(folder, broker_url, known, os.environ)))
    made_here = known.kept_in is not None
    login = known.credentials.replace(":", " / ") if made_here else f"as {window.LOGIN} says"
    return specs, {"url": stack.local_url(port), "login": login}


def _tell_when_ready(
    supervisor: Supervisor,
    plan: _Plan,
    made: dict[str, str],
    flower: dict[str, str],
    broker_url: str,
) -> None:
    try:
        supervisor.wait_ready(120)
        with broker_client.client(broker_url) as client:
            # Beat would do it in some minutes; like this a wrong key shows at once.
            client.send_task("seedance.balance")
    except (RuntimeError, TimeoutError, OSError) as error:
        _say(f"not everything came up: {error}")
        return
    lines = [f"ready; data and logs of the servers are in {plan.folder}"]
    if plan.simulated:
        lines.append(f"the simulator stands in for the provider: {made[_BASE_URL]}/admin/")
    gateway_url = stack.local_url(int(made[_GATEWAY_PORT]))
    lines.append(f"the gateway's health: {gateway_url}/readyz")
    lines.append(f"figures for Prometheus: {gateway_url}/metrics")
    if flower:
        lines.append(f"Flower: {flower['url']}  login: {flower['login']}")
    where = _found_by(plan.folder)
    lines.append(f'in another terminal{where}seedance generate --text "A cat" --wait')
    lines.append("elsewhere first:")
    lines += [f"  export {name}='{value}'" for name, value in made.items()]
    lines.append("Ctrl-C stops everything")
    _say("\n".join(lines))


def _found_by(folder: Path) -> str:
    """How commands elsewhere find what runs on this folder."""
    if folder == embedded.DEFAULT_DATA_DIR:
        return " in this folder: "
    return f": SEEDANCE_DATA_DIR={shlex.quote(str(folder.resolve()))} "


def _choose_logs() -> None:
    """People look at this: readable lines, of all its processes, unless JSON is asked for."""
    if logs.given_format() == "json":
        logs.name_process("up")
        logs.configure(stream=sys.stdout)
    else:
        os.environ[logs.FORMAT] = "console"


def _say(text: str) -> None:
    if logs.given_format() == "json":
        log.info(text)
        return
    for line in text.splitlines():
        click.echo(f"seedance up: {line}")
    sys.stdout.flush()
