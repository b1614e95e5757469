"""Starts a simulator from the command line."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from simulator.config import DEFAULT_API_KEY, Config
from simulator.server import Running, Where, serve_until_signalled


def run(
    host: str = "127.0.0.1",
    port: int = 8787,
    config: Config | None = None,
    *,
    storage_port: int = 0,
    storage_url: str | None = None,
    on_ready: Callable[[Running], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; says where on stdout unless `on_ready` is given."""
    where = Where(host, port, storage_port, storage_url)
    asyncio.run(serve_until_signalled(config or Config(), where, on_ready or _announce))


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Parse the options and serve. Returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        config = Config.model_validate(
            {
                "api_keys": options.api_key or [DEFAULT_API_KEY],
                "speed": options.speed,
                "credits": options.credits,
                "max_concurrent": options.max_concurrent,
                "random_seed": options.seed,
                **dict(pair.split("=", 1) for pair in options.set),
            }
        )
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}\n")
        return 2
    try:
        run(
            options.host,
            options.port,
            config,
            storage_port=options.storage_port,
            storage_url=options.storage_url,
        )
    except OSError as error:
        sys.stderr.write(f"cannot listen: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simulator",
        description="A stand-in for the Seedance API. Prints its URL when it is ready; "
        "<URL>/admin/ shows tasks and uploads.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8787, help="port, 0 for any free one (%(default)s)")
    add("--storage-port", type=int, default=0, help="port of storage and CDN (any free one)")
    add("--storage-url", help="what storage's URLs begin with (the called host and its port)")
    add("--api-key", action="append", help=f"accepted key, may be repeated ({DEFAULT_API_KEY})")
    add("--speed", default="1", help="simulated seconds per real second (%(default)s)")
    add("--credits", default="10000", help="credits of each account (%(default)s)")
    add("--max-concurrent", type=int, help="tasks at work per account (no limit)")
    add("--seed", type=int, help="seed of everything drawn, to replay a run (any)")
    add(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="any other setting of simulator.Config, may be repeated",
    )
    return parser


def _setting(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError("NAME=VALUE is expected")
    return text


def _announce(server: Running) -> None:
    sys.stdout.write(f"simulator ready: {server.url}\n")
    sys.stdout.flush()
