"""`seedance metrics`: figures for Prometheus, where no gateway runs."""

import logging

import click

from worker.cli.context import environment
from worker.cli.errors import Failed
from worker.cli.processes import LOG_LEVEL, begin_logging
from worker.metrics.serve import serve
from worker.settings import load_settings, unknown_variables
from worker.variables import adopt, over

log = logging.getLogger("seedance")

_NO_KEY = "none"


@click.command()
@click.option("--host", help="Address to listen on. (SEEDANCE_METRICS_HOST, 127.0.0.1)")
@click.option("--port", type=click.IntRange(0, 65_535), help="(SEEDANCE_METRICS_PORT, 9464)")
@LOG_LEVEL
def metrics(host: str | None, port: int | None, log_level: str | None) -> None:
    """Serve figures for Prometheus at /metrics, until SIGTERM or Ctrl-C.

    `seedance gateway` serves the same; one of the two is enough, several do no harm. They are
    read from the database, so they are those of the whole service. Needs no API key. Where
    others reach the port set SEEDANCE_METRICS_TOKEN.

    \b
    Example:
      seedance metrics --port 9464 &
      curl http://127.0.0.1:9464/metrics
    """
    environ = over(environment(), {"SEEDANCE_API_KEY": _NO_KEY})
    adopt(environ)
    begin_logging("metrics", log_level)
    given = {"metrics_host": host, "metrics_port": port}
    settings = load_settings(environ, **{k: v for k, v in given.items() if v is not None})
    for name in unknown_variables():
        log.warning("%s is no setting of this version: a slip in the name?", name)
    try:
        serve(settings)
    except OSError as error:
        where = f"{settings.metrics_host}, port {settings.metrics_port}"
        raise Failed(f"can't listen on {where}: {error.strerror}") from None
