"""`seedance gateway`: takes in the provider's callbacks."""

import logging

import click

from worker import reports
from worker.cli.context import environment
from worker.cli.errors import BadInput, Failed
from worker.cli.processes import LOG_LEVEL, begin_logging
from worker.settings import load_settings, unknown_variables
from worker.variables import adopt, over

log = logging.getLogger("seedance")

_NO_KEY = "none"


@click.command()
@click.option("--host", help="Address to listen on. (SEEDANCE_GATEWAY_HOST, 127.0.0.1)")
@click.option("--port", type=click.IntRange(0, 65_535), help="(SEEDANCE_GATEWAY_PORT, 8080)")
@LOG_LEVEL
def gateway(host: str | None, port: int | None, log_level: str | None) -> None:
    """Take in the provider's callbacks, until SIGTERM or Ctrl-C.

    A callback makes its generation looked at once. Set SEEDANCE_PUBLIC_URL, for the workers, to
    where the provider reaches this; without it polling does all. Needs no API key. Answers
    /healthz (alive) and /readyz (database, migrations, broker) as well.

    \b
    Example:
      SEEDANCE_PUBLIC_URL=https://video.example.com seedance worker
      seedance gateway --host 0.0.0.0 --port 8080
    """
    try:
        from worker.gateway.serve import serve
    except ImportError as error:
        raise BadInput(
            f"the gateway needs {error.name}: pip install 'seedance-worker[gateway]'"
        ) from None
    # It asks the provider nothing, so it holds no key; and it waits for nothing: /readyz tells.
    environ = over(environment(), {"SEEDANCE_API_KEY": _NO_KEY})
    adopt(environ)
    begin_logging("gateway", log_level)
    reports.start("gateway")
    given = {"gateway_host": host, "gateway_port": port}
    settings = load_settings(environ, **{k: v for k, v in given.items() if v is not None})
    for name in unknown_variables():
        log.warning("%s is no setting of this version: a slip in the name?", name)
    try:
        serve(settings)
    except OSError as error:
        where = f"{settings.gateway_host}, port {settings.gateway_port}"
        raise Failed(f"can't listen on {where}: {error.strerror}") from None
