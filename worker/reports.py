"""Errors told to Sentry, where `SENTRY_DSN` is set and the package is there.

What a log line may not show a report may not either: it goes through the same redaction, and local
variables, which hold prompts and addresses, are not collected at all.
"""

import logging
import os
from typing import Any

from structlog.contextvars import get_contextvars

from worker import logs, redaction

log = logging.getLogger("seedance")

DSN = "SENTRY_DSN"


def start(process: str) -> bool:
    """Report from here on; False where that is not asked for or can't be."""
    dsn = os.environ.get(DSN)
    if not dsn:
        return False
    try:
        import sentry_sdk
        from sentry_sdk.integrations.atexit import AtexitIntegration
        from sentry_sdk.integrations.dedupe import DedupeIntegration
        from sentry_sdk.integrations.logging import LoggingIntegration
    except ImportError:
        log.warning("%s is set; reports need pip install 'seedance-worker[sentry]'", DSN)
        return False
    redactor = redaction.of_environment()

    def before_send(event: Any, _hint: Any) -> Any:
        told = redactor.value(event)
        bound = {name: str(value) for name, value in get_contextvars().items()}
        tags = {name: redactor.text(bound[name]) for name in logs.NAMED if name in bound}
        told["tags"] = {**(told.get("tags") or {}), **tags, "process": process}
        return told

    def before_breadcrumb(crumb: Any, _hint: Any) -> Any:
        return redactor.value(crumb)

    sentry_sdk.init(
        dsn=dsn,
        # Celery's failures and uncaught exceptions are lines of the log, as everything else is.
        default_integrations=False,
        integrations=[
            LoggingIntegration(level=logging.INFO, event_level=logging.ERROR),
            DedupeIntegration(),
            AtexitIntegration(callback=lambda _pending, _timeout: None),
        ],
        auto_enabling_integrations=False,
        include_local_variables=False,
        max_request_body_size="never",
        before_send=before_send,
        before_breadcrumb=before_breadcrumb,
        server_name=process,
    )
    return True
