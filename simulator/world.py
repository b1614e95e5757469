"""Everything one simulated provider knows, and the few acts that change it."""

import random
import uuid
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from simulator.accounts import Account, draw_seed
from simulator.clock import Clock
from simulator.config import Config
from simulator.directives import NONE, Directives
from simulator.errors import describe
from simulator.faults import FaultBook
from simulator.pricing import cost
from simulator.records import Records
from simulator.storage import Signer, UploadStore
from simulator.store import TaskStore
from simulator.tasks import Outcome, Phases, Task, draw_phases
from simulator.validation import Submission

if TYPE_CHECKING:
    from collections.abc import Callable


class World:
    """The provider's state. Only the server's own thread may touch it."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.ended_hooks: list[Callable[[Task], None]] = []
        self.reset(config, clock)

    def reset(self, config: Config, clock: Clock | None = None) -> None:
        """Start over: no task, no upload, no fault, every account as the settings say."""
        self.config = config
        self.clock = clock or Clock(config.speed)
        self.rng = random.Random(config.random_seed)  # noqa: S311 replayable, not secret
        self.signer = Signer()
        self.uploads = UploadStore(self.signer)
        self.faults = FaultBook(self.rng)
        self.records = Records()
        self.accounts: dict[str, Account] = {}
        self._opened_by: dict[str, Account] = {}
        self.tasks = TaskStore(self.clock)
        self.tasks.limit_of = self._limit_of
        self.tasks.on_end = self._on_end
        self._numbers = 0
        self._open_accounts()

    def configure(self, changes: dict[str, Any]) -> Config:
        """Change settings while running. Raises ValueError and changes nothing if one is wrong."""
        self.config = Config.model_validate({**self.config.model_dump(), **changes})
        self.tasks.advance()
        self.clock.set_speed(self.config.speed)
        if "random_seed" in changes:
            self.rng.seed(self.config.random_seed)
        if "credits" in changes:
            for account in self.accounts.values():
                account.total = self.config.credits
        if "api_keys" in changes:
            self._open_accounts()
        return self.config

    def change_account(self, account: Account, changes: dict[str, Any]) -> None:
        """Change one account's credits, slots, or which keys open it. Raises ValueError."""
        if changes.get("keys") is not None:
            self._set_keys(account, changes["keys"])
        if changes.get("credits") is not None:
            account.total = Decimal(str(changes["credits"]))
        if changes.get("used") is not None:
            account.used = Decimal(str(changes["used"]))
        if changes.get("enabled") is not None:
            account.enabled = changes["enabled"]
        if "max_concurrent" in changes:
            account.max_concurrent = changes["max_concurrent"]
        self.tasks.advance()

    def create(
        self,
        account: Account,
        work: Submission,
        body: dict[str, Any],
        *,
        directives: Directives = NONE,
        headers: dict[str, str] | None = None,
        take_slot: bool = True,
    ) -> Task:
        """Create a task as a submit does."""
        task = self.prepare(
            account, work, body, directives=directives, headers=headers, take_slot=take_slot
        )
        self.tasks.add(account, task)
        return task

    def prepare(
        self,
        account: Account,
        work: Submission,
        body: dict[str, Any],
        *,
        directives: Directives = NONE,
        headers: dict[str, str] | None = None,
        take_slot: bool = True,
    ) -> Task:
        """A task with everything drawn, not yet known to anybody."""
        now, wall = self.clock.now(), self.clock.wall()
        given = work.seed is not None and work.seed >= 0
        self._numbers += 1
        return Task(
            task_id=uuid.uuid4().hex,
            api_key=account.api_key,
            number=self._numbers,
            work=work,
            body=body,
            seed_used=work.seed if given and work.seed is not None else draw_seed(self.rng),
            cost=cost(work.model, work.resolution, work.duration),
            phases=draw_phases(work, directives, self.rng),
            outcome=self._draw_outcome(directives),
            created_sim=now,
            created_wall=wall,
            slot_sim=now if take_slot else None,
            directives=directives,
            headers=headers or {},
            added_wall=wall,
        )

    def cancel(self, task: Task) -> str:
        """Try to cancel; the status that the answer shows. The task must not have ended."""
        now = self.clock.now()
        status = task.status_at(now)
        task.cancel_asked_sim = now
        mode = task.directives.word("cancel") or self.config.cancel_mode
        if status == "pending" or task.slot_sim is None or mode == "works":
            self.tasks.end(task, Outcome("cancelled"), now)
            return "cancelled"
        if mode == "completes":
            return "cancelled"
        stop = now + self.config.cancel_delay
        if stop < task.due_sim:
            rest = task.phases.processing - (task.due_sim - stop)
            task.phases = replace(task.phases, processing=rest)
            task.outcome = Outcome("cancelled")
            self.tasks.reschedule(task)
        return status

    def drift(self, account: Account) -> None:
        """Let the list change between two pages, as a busy account's list does."""
        config, rng = self.config, self.rng
        if config.drift_insert and rng.random() < config.drift_insert:
            self.phantom(account)
        if config.drift_delete and rng.random() < config.drift_delete and account.phantoms:
            gone = account.phantoms.pop(rng.randrange(len(account.phantoms)))
            if self.tasks.find(gone.task_id) is gone:
                self.tasks.remove(gone)
        if config.drift_update and rng.random() < config.drift_update and len(self.tasks):
            rng.choice(self.tasks.all()).touched_wall = self.clock.wall()

    def phantom(self, account: Account) -> Task:
        """A task that nobody submitted here: some other program with the same key."""
        work = Submission(
            model="seedance-2.0-fast",
            content=({"type": "text", "text": "phantom"},),
            resolution="480p",
            ratio="1:1",
            duration=4,
            generate_audio=False,
            seed=None,
            watermark=False,
            callback_url=None,
            return_last_frame=False,
        )
        task = self.create(account, work, {"content": list(work.content)})
        task.origin, task.phases = "phantom", Phases(0, 0, 0)
        # It costs nothing, so that balances can still be compared to the cent.
        account.pending_cost -= task.cost
        task.cost -= task.cost
        self.tasks.end(task, Outcome("completed"), self.clock.now())
        account.phantoms.append(task)
        return task

    def may_see(self, task: Task, lag: str) -> bool:
        """Whether a fresh task shows yet, in the list (list_lag) or by its id (get_lag)."""
        seconds = task.directives.numbers.get(lag, getattr(self.config, lag))
        return not seconds or self.clock.wall() - task.added_wall >= seconds

    def updated_wall(self, task: Task) -> float:
        """When the task last changed, in real time."""
        if task.updated_wall is not None:
            return task.updated_wall
        changed = self.clock.wall_of(task.updated_sim(self.clock.now()))
        return max(task.created_wall, changed, task.touched_wall)

    def _draw_outcome(self, directives: Directives) -> Outcome:
        end, code = directives.word("end"), directives.word("fail")
        if end is None and code is None:
            share = self.config.fail_probability
            if not share or self.rng.random() >= share:
                return Outcome()
            code = self.config.fail_code
        if end not in (None, "failed"):
            return Outcome(end or "")
        code = code or self.config.fail_code
        return Outcome("failed", code, describe(code))

    def _limit_of(self, account: Account) -> int | None:
        own = account.max_concurrent
        return self.config.max_concurrent if own is None else own

    def _on_end(self, task: Task) -> None:
        for hook in self.ended_hooks:
            hook(task)

    def account_of(self, key: str | None) -> Account | None:
        """The account that a key opens now; None if it opens none."""
        account = self._opened_by.get(key or "")
        return account if account is not None and account.enabled else None

    def named_account(self, key: str | None) -> Account:
        """The account of this name, or that a key opens; the first for None. Raises ValueError."""
        named = key or self.config.api_keys[0]
        found = self.accounts.get(named) or self._opened_by.get(named)
        if found is None:
            raise ValueError(f"no account {named!r}; there are {', '.join(self.accounts)}")
        return found

    def _set_keys(self, account: Account, keys: list[str]) -> None:
        taken = [key for key in keys if self._opened_by.get(key, account) is not account]
        if taken:
            raise ValueError(f"keys {taken} open another account")
        others = {key: of for key, of in self._opened_by.items() if of is not account}
        self._opened_by = {**others, **dict.fromkeys(keys, account)}

    def _open_accounts(self) -> None:
        for key in self.config.api_keys:
            if key not in self.accounts:
                number = len(self.accounts) + 1
                self.accounts[key] = Account(key, number, self.config.credits)
                self._opened_by[key] = self.accounts[key]
        for key, account in self.accounts.items():
            account.enabled = key in self.config.api_keys
