"""`seedance flower`: the operators' window on workers and tasks."""

import importlib.util
import os
from pathlib import Path

import click

from worker import broker_address
from worker import flower as window
from worker.cli.context import data_dir, environment
from worker.cli.errors import BadInput
from worker.settings import Settings
from worker.variables import secret

_BROKER = "SEEDANCE_BROKER_URL"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=5555, show_default=True)
@click.option(
    "--data-dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where it keeps what it saw, and its login. (seedance-data/flower)",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def flower(host: str, port: int, folder: Path | None, options: tuple[str, ...]) -> None:
    """Run Flower until SIGTERM or Ctrl-C: tasks and workers, in a browser.

    Needs the broker alone. Behind a password: that of FLOWER_BASIC_AUTH (user:password), or one
    that is made and told at the first start. Flower's own FLOWER_… variables and options hold.

    \b
    Example:
      FLOWER_BASIC_AUTH=ana:… seedance flower --port 5555 --url-prefix=/flower
    """
    if importlib.util.find_spec("flower") is None:
        raise BadInput("Flower is not installed: pip install 'seedance-worker[monitoring]'")
    environ = environment()
    folder = (folder or data_dir() / "flower").resolve()
    given = secret(_BROKER, environ) or str(Settings.model_fields["broker_url"].default)
    try:
        broker_url = broker_address.normalise(given)
    except ValueError as error:
        raise BadInput(f"{_BROKER} {error}") from None
    try:
        known = window.login(folder, environ)
        made = window.environment(folder, broker_url, known, environ)
    except window.LoginError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"--data-dir is {str(folder)!r}: {error.strerror}") from None
    if known.fresh:
        user, _, password = known.credentials.partition(":")
        click.echo(f"Flower's login, told this once: {user} / {password}", err=True)
    if known.kept_in is not None:
        click.echo(f"Flower's login is kept in {known.kept_in}; set {window.LOGIN}", err=True)
    argv = window.command(host, port, *options)
    # In the place of this process, whose imports it needs none of.
    os.execve(argv[0], argv, {**environ, **made})  # noqa: S606
