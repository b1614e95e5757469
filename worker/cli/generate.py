"""`seedance generate`: enqueue one generation from the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Connection

from models import intake, reads
from worker.cli import output
from worker.cli.context import database, environment
from worker.cli.errors import BadInput
from worker.cli.outlook import tell_outlook
from worker.cli.progress import follow
from worker.notify import private_allowed
from worker.requests import SOURCES, new_generation

_FIELDS = ("model", "resolution", "ratio", "duration", "seed", "generate_audio")
_MOST_INPUT = 1_000_000


@click.command()
@click.option("-t", "--text", help="What the video shows.")
@click.option("-i", "--image", "images", multiple=True, metavar="FILE|URL", help="Reference image.")
@click.option("-v", "--video", "videos", multiple=True, metavar="FILE|URL", help="Reference video.")
@click.option("--model", help="seedance-2.0 or seedance-2.0-fast.")
@click.option("--resolution", help="480p, 720p or 1080p.")
@click.option("--ratio", help="Such as 16:9, 9:16, 1:1, adaptive.")
@click.option("--duration", type=int, help="Seconds, from 4 to 15.")
@click.option("--seed", type=int, help="Fixes the seed; best left out (see the README).")
@click.option("--audio/--no-audio", "generate_audio", default=None, help="Generate sound as well.")
@click.option("--request", "raw", metavar="FILE|-", help="The request as JSON, instead of these.")
@click.option("--tenant", help="For whom: slots are shared fairly between tenants.")
@click.option("--priority", type=int, default=0, help="Higher goes first.")
@click.option("--idempotency-key", metavar="KEY", help="A second call with it makes nothing new.")
@click.option("--metadata", metavar="JSON", help="An object that is kept and given back.")
@click.option("--notify-webhook", metavar="URL", help="Tell this https:// address how it ended.")
@click.option("--notify-task", metavar="NAME", help="Tell this Celery task; with --notify-queue.")
@click.option("--notify-queue", metavar="NAME", help="The queue that --notify-task listens on.")
@click.option("--notify-on", metavar="end|change", help="When to tell.  [default: end]")
@click.option("--wait", is_flag=True, help="Follow it to its end; exit 1 unless it completed.")
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="For --wait, in s.")
@click.option("--dry-run", is_flag=True, help="Tell what it would cost; store nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the generation as JSON.")
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    *,
    text: str | None,
    images: tuple[str, ...],
    videos: tuple[str, ...],
    raw: str | None,
    tenant: str | None,
    priority: int,
    idempotency_key: str | None,
    metadata: str | None,
    notify_webhook: str | None,
    notify_task: str | None,
    notify_queue: str | None,
    notify_on: str | None,
    wait: bool,
    timeout: float,
    dry_run: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Enqueue a generation; prints its id.

    References are uploaded by a worker: local files, which must lie under its
    SEEDANCE_MEDIA_ROOTS, https:// or s3:// addresses.

    \b
    Examples:
      seedance generate --text "A cat under cherry blossoms" --duration 8 --wait
      seedance generate --text "A long cat" --duration 15 --dry-run
      seedance generate --text "It starts to snow" --image lake.jpg --ratio adaptive
      seedance generate --text "A cat" --notify-webhook https://shop.example/hooks/video
      echo '{"content": [{"type": "text", "text": "A cat"}]}' | seedance generate --request -
    """
    given = {name: fields[name] for name in _FIELDS if fields[name] is not None}
    if raw is not None:
        if given or text is not None or images or videos:
            raise BadInput("--request holds the whole request: give no --text, --image, … with it")
        request = _json_object("--request", _read(raw))
    else:
        request = {**given, "content": _content(text, images, videos)}
    extra = None if metadata is None else _json_object("--metadata", metadata)
    # before anything is asked of a database
    new = new_generation(
        request,
        idempotency_key=idempotency_key,
        priority=priority,
        tenant=tenant,
        metadata=extra,
        notify=_notify(webhook=notify_webhook, task=notify_task, queue=notify_queue, on=notify_on),
        private_webhooks=private_allowed(environment()),
    )
    if dry_run:
        ctx.exit(tell_outlook(new, as_json=as_json))

    def store(conn: Connection) -> reads.GenerationView:
        view = reads.get(conn, intake.accept(conn, new).id)
        assert view is not None, "just stored"
        return view

    with database() as engine:
        with engine.begin() as conn:
            view = store(conn)
        if wait:
            if output.on_terminal() or as_json:
                click.echo(f"generation {view.id}", err=True)
            else:
                click.echo(str(view.id))
            view = follow(engine, view.id, timeout=timeout)
    if as_json:
        output.print_json(output.generation_json(view))
    elif wait:
        click.echo(output.ending(view))
    else:
        click.echo(str(view.id))
        if output.on_terminal():
            click.echo(f"follow it with: seedance show {view.id}", err=True)
    ctx.exit(1 if wait and view.status != "completed" else 0)


def _notify(**given: str | None) -> dict[str, str] | None:
    return {key: value for key, value in given.items() if value is not None} or None


def _content(
    text: str | None, images: tuple[str, ...], videos: tuple[str, ...]
) -> list[dict[str, str]]:
    items = [] if text is None else [{"type": "text", "text": text}]
    for kind, values in (("image_url", images), ("video_url", videos)):
        items += [{"type": kind, kind: _source(kind, value)} for value in values]
    if not items:
        raise BadInput("nothing to generate from: give --text, --image or --video (or --request)")
    return items


def _source(kind: str, value: str) -> str:
    """An address as it is; a local file under its absolute path."""
    if value.lower().startswith(SOURCES):
        return value
    option = "--" + kind.removesuffix("_url")
    path = Path(value).expanduser()
    if not path.is_file():
        raise BadInput(f"{option} is {value!r}; allowed: a file, or an https:// or s3:// address")
    path = path.resolve()
    roots = [
        Path(part) for part in environment().get("SEEDANCE_MEDIA_ROOTS", "").split(":") if part
    ]
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        where = ":".join(map(str, roots)) or "not set here"
        click.echo(
            f"note: {path} has to lie under the workers' SEEDANCE_MEDIA_ROOTS ({where}),"
            " or they will refuse it",
            err=True,
        )
    return f"path:{path}"


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.read(_MOST_INPUT)
    try:
        with Path(name).open(encoding="utf-8") as file:
            return file.read(_MOST_INPUT)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--request {name!r} can't be read: {error}") from None


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{option} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{option} is {type(value).__name__} in JSON; allowed: an object")
    return value
