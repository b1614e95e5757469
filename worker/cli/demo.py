"""`seedance demo`: the service at work, once."""

import importlib.util
from pathlib import Path

import click

from worker import stack
from worker.cli.context import data_dir
from worker.cli.errors import Failed


@click.command()
@click.option("--data-dir", "folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("-w", "--workers", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option("--plain", is_flag=True, help="Lines instead of a live table.")
@click.pass_context
def demo(ctx: click.Context, /, *, folder: Path | None, workers: int, plain: bool) -> None:
    """Make six videos with real processes and a simulated provider, and check all of it.

    Text to video, image to video, a video reference, a refused prompt, one from any Celery
    client, one whose answer is lost and that is found again. Exits 0 only if each ended as it
    should and the credits agree with the provider's account to the last one.

    Needs no key and no server. SEEDANCE_DATABASE_URL and SEEDANCE_BROKER_URL, where set, are
    used; all other settings are the demo's own. Data and logs: seedance-data/demo.

    \b
    Examples:
      seedance demo
      seedance demo --plain | tee demo.log
    """
    for package, extra in (("aiohttp", "simulator"), ("celery", "embedded")):
        if importlib.util.find_spec(package) is None:
            raise Failed(f"the demo needs {package}: pip install 'seedance-worker[{extra}]'")
    from worker.demo.run import run

    with stack.signals_unwind():
        ctx.exit(run(folder or data_dir() / "demo", plain=plain, workers=workers))
