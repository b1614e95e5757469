"""The provider: reachable, the key accepted, credits left."""

import time
from datetime import UTC, datetime, timedelta

from api_client import ApiError, ClientConfig, InvalidApiKey, NotSent, SeedanceClient
from worker.checkup.finding import Findings, ok, wrong
from worker.settings import Settings


def provider(settings: Settings) -> Findings:
    """The API key, the balance, and the provider's clock, by one request."""
    where = settings.api_base_url
    config = ClientConfig(
        api_key=settings.api_key.get_secret_value(),
        base_url=where,
        # Shorter than a worker's: somebody waits for the answer.
        connect_timeout=min(settings.http_connect_timeout, 4.0),
        read_timeout=min(settings.http_timeout, 8.0),
        total_timeout=min(settings.http_timeout, 8.0),
    )
    try:
        with SeedanceClient(config) as client:
            balance = client.balance(retry=False)
    except InvalidApiKey as error:
        return Findings(
            (
                wrong(
                    "api key",
                    f"{where} refuses it: {error.code} {error.message}",
                    "correct SEEDANCE_API_KEY, or SEEDANCE_API_BASE_URL if it is another's",
                ),
            )
        )
    except NotSent as error:
        mend = "look at the network, and at SEEDANCE_API_BASE_URL"
        return Findings((wrong("provider", f"{where} can't be reached: {error.message}", mend),))
    except ApiError as error:
        mend = "try again later; if it stays, look at SEEDANCE_API_BASE_URL"
        return Findings((wrong("provider", f"{where} does not answer well: {error}", mend),))
    checks = [ok("api key", f"accepted by {where}")]
    left = balance.remain_credits
    if left <= 0:
        checks.append(wrong("balance", f"{left:f} credits left", "buy credits"))
    else:
        checks.append(ok("balance", f"{left.normalize():f} credits left"))
    ahead = None
    exchange = balance.exchange
    if exchange is not None and exchange.date is not None:
        received = datetime.now(UTC) - timedelta(seconds=time.monotonic() - exchange.received)
        # The header is cut to whole seconds: its middle.
        ahead = (exchange.date + timedelta(seconds=0.5) - received).total_seconds()
    return Findings(tuple(checks), ahead)
