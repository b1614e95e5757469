"""`/metrics` beside the callbacks: strangers may reach the gateway, but not its figures."""

import ipaddress

from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from worker.metrics.scrape import CONTENT_TYPE, bears, scrapes
from worker.settings import Settings

_FORWARDED = ("x-forwarded-for", "x-real-ip", "forwarded", "via")


class Metrics:
    """Answers scrapes that may see the figures."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._token = settings.metrics_token.get_secret_value()
        self._scrapes = scrapes(settings, engine)

    async def get(self, request: Request) -> Response:
        """The figures: for whoever has the token or, without one, for this machine alone."""
        if self._token:
            if not bears(request.headers.get("authorization"), self._token):
                why = "a bearer token is needed: SEEDANCE_METRICS_TOKEN\n"
                return PlainTextResponse(why, 401, {"WWW-Authenticate": "Bearer"})
        elif not _from_here(request):
            why = "set SEEDANCE_METRICS_TOKEN to read this from elsewhere\n"
            return PlainTextResponse(why, 403)
        answer = await run_in_threadpool(self._scrapes.answer)
        return Response(answer.body, answer.status, {"Content-Type": CONTENT_TYPE})


def _from_here(request: Request) -> bool:
    """Whether it comes from this machine, and not through a proxy on it."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
