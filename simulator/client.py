"""Steers a simulator from outside, over its admin API. Needs nothing but the standard library."""

import json
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

# Never through a proxy: the simulator is next door.
_opener = build_opener(ProxyHandler({}))


class AdminError(Exception):
    """The admin API refused; the text says why."""


class Admin:
    """One method for each call of the admin API; `url` is the simulator's base URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float = 60, **query: Any
    ) -> Any:
        """Call `/admin/<path>` and return its JSON."""
        given = {name: value for name, value in query.items() if value is not None}
        url = f"{self.url}/admin/{path}" + (f"?{urlencode(given)}" if given else "")
        data = None if body is None else json.dumps(body, default=str).encode()
        request = Request(  # noqa: S310 the URL is the simulator's own
            url, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with _opener.open(request, timeout=timeout) as response:
                return json.load(response)
        except HTTPError as error:
            with error:
                raise AdminError(error.read().decode(errors="replace")) from None

    def config(self) -> dict[str, Any]:
        """The settings."""
        return dict(self.request("GET", "config"))

    def configure(self, **changes: Any) -> dict[str, Any]:
        """Change settings; see `simulator.config.Config`."""
        return dict(self.request("PATCH", "config", changes))

    def fault(self, endpoint: str, kind: str, **order: Any) -> int:
        """Order a fault; fields of `FaultOrder`, and parameters of the kind. Returns its id."""
        return int(
            self.request("POST", "faults", {"endpoint": endpoint, "kind": kind, **order})["id"]
        )

    def faults(self) -> list[dict[str, Any]]:
        """The ordered faults with their counts."""
        return list(self.request("GET", "faults"))

    def clear_faults(self, fault_id: int | None = None) -> None:
        """Drop one fault, or all."""
        self.request("DELETE", "faults" if fault_id is None else f"faults/{fault_id}")

    def tasks(self, **filters: Any) -> list[dict[str, Any]]:
        """Tasks as the provider's operators see them; filters: api_key, status, origin, text."""
        return list(self.request("GET", "tasks", **filters))

    def task(self, task_id: str) -> dict[str, Any]:
        """One task."""
        return dict(self.request("GET", f"tasks/{task_id}"))

    def inject(self, **fields: Any) -> list[str]:
        """Create tasks that nobody submitted; fields of `Injection`. Returns their ids."""
        return list(self.request("POST", "tasks", fields)["task_ids"])

    def change(self, task_id: str, **fields: Any) -> dict[str, Any]:
        """End a task now (status, error_code) or change what it shows (seed, created_at …)."""
        return dict(self.request("PATCH", f"tasks/{task_id}", fields))

    def forget(self, task_id: str) -> None:
        """Remove a task, as if the provider had pruned it."""
        self.request("DELETE", f"tasks/{task_id}")

    def submits(self) -> list[dict[str, Any]]:
        """Every submit that came in: time, headers, body, fault, outcome, task_id."""
        return list(self.request("GET", "submits"))

    def requests(self, log: int = 0) -> dict[str, Any]:
        """Counters by endpoint and outcome; with `log`, the latest requests as well."""
        return dict(self.request("GET", "requests", log=log or None))

    def received(self, endpoint: str) -> int:
        """How many requests an endpoint has got."""
        return int(self.requests()["endpoints"].get(endpoint, {}).get("received", 0))

    def uploads(self) -> list[dict[str, Any]]:
        """Presigned files: size, sha256, type, PUT count, refusals."""
        return list(self.request("GET", "uploads"))

    def accounts(self) -> list[dict[str, Any]]:
        """Accounts with their credits, also as exact decimal text."""
        return list(self.request("GET", "accounts"))

    def change_account(self, api_key: str, **fields: Any) -> dict[str, Any]:
        """Change credits, enabled, keys or max_concurrent of the account that began with a key."""
        return dict(self.request("PATCH", "accounts", fields, api_key=api_key))

    def advance(self, seconds: float) -> None:
        """Jump ahead in simulated time; signed URLs age as well."""
        self.request("POST", "clock", {"advance": seconds})

    def wait(self, *, timeout: float = 30, **conditions: Any) -> None:
        """Wait until e.g. endpoint='submit', received=3, or tasks=5, or ended=5."""
        self.request("POST", "wait", {"timeout": timeout, **conditions}, timeout=timeout + 30)

    def reset(self, **config: Any) -> None:
        """Forget everything; with settings, start over from the defaults and these."""
        self.request("POST", "reset", config)
