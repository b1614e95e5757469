"""Following one generation while somebody watches."""

import sys
import time
import uuid
from datetime import UTC, datetime

import click
from rich.live import Live
from rich.spinner import Spinner
from sqlalchemy import Engine

from models import reads, waiting
from models.reads import GenerationView
from worker.cli import output
from worker.cli.errors import Failed

_EVERY = 0.5


def follow(engine: Engine, generation_id: uuid.UUID, *, timeout: float) -> GenerationView:
    """Look until it has ended. Progress goes to stderr: a live line on a terminal, else a line
    for each change. Raises Failed when time is up.
    """
    deadline = time.monotonic() + timeout
    shown = ""
    spinner = Spinner("dots", "")
    live = Live(spinner, console=output.console(stderr=True), transient=True)
    on_terminal = sys.stderr.isatty()
    if on_terminal:
        live.start()
    try:
        while True:
            with engine.connect() as conn:
                view = reads.get(conn, generation_id)
                if view is not None and not view.ended:
                    view = waiting.current(conn, view)
            if view is None:
                raise Failed(f"generation {generation_id} is gone")
            state = describe(view)
            if on_terminal:
                spinner.update(text=f"{state}  {output.age(view.created_at, _until(view))}")
            elif state != shown:
                click.echo(state, err=True)
            shown = state
            if view.ended:
                return view
            if time.monotonic() > deadline:
                raise Failed(f"generation {generation_id} is still {state} after {timeout:g} s")
            time.sleep(_EVERY)
    finally:
        if on_terminal:
            live.stop()


def describe(view: GenerationView) -> str:
    """Where it stands, and what it waits for."""
    state = str(view.status)
    if view.remote_status and not view.ended:
        state += f" ({view.remote_status})"
    if view.attention:
        return f"{state}, needs attention: {view.attention}"
    if view.waits_for and not view.ended:
        state += f", waits for {view.waits_for}"
    return state


def _until(view: GenerationView) -> datetime:
    return view.finished_at or datetime.now(UTC)
