"""`seedance notices`, and what other commands say of notices."""

import json
import logging
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from models.notices import State, reading
from tests.integration.test_deliver_stage import Desk
from tests.receiver import Receiver, receiving
from worker.cli import run


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
def desk(make_runtime, receiver, environment, monkeypatch, tmp_path) -> Desk:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Desk(make_runtime, receiver)


class Cli:
    def __init__(self, capsys) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str, code: int = 0) -> str:
        self._capsys.readouterr()
        returned = run(list(argv))
        shown = self._capsys.readouterr()
        assert returned == code, shown
        assert "s3cret" not in shown.out + shown.err, "what stands in an address' query"
        return shown.out + shown.err

    def json(self, *argv: str):
        return json.loads(self(*argv, "--json"))


@pytest.fixture
def cli(capsys) -> Cli:
    return Cli(capsys)


def dead(desk: Desk, receiver: Receiver) -> uuid.UUID:
    receiver.status = 410
    generation_id = desk.put_out(
        {"on": "end", "webhook": receiver.url("/hook?key=s3cret")}, tenant="acme"
    )
    desk.work()
    receiver.status = 200
    return generation_id


def test_list_has_filters_and_every_form(cli, desk, receiver):
    assert cli.json("notices", "list") == []
    gone = dead(desk, receiver)
    waiting = desk.put_out({"on": "end", "task": "shop.done", "queue": "shop"})
    assert [one["generation_id"] for one in cli.json("notices", "list")] == [
        str(waiting),
        str(gone),
    ]
    for argv, found in (
        (("--status", "dead"), gone),
        (("--status", "pending"), waiting),
        (("--generation", str(gone)), gone),
        (("--generation", str(waiting)[:12]), waiting),
        (("--receiver", "queue:shop"), waiting),
        (("--receiver", receiver.url("")), gone),
        (("--tenant", "acme"), gone),
        (("--limit", "1"), waiting),
    ):
        [one] = cli.json("notices", "list", *argv)
        assert one["generation_id"] == str(found), argv
    [heading, *lines] = cli("notices", "list").splitlines()
    assert heading.split("\t")[:3] == ["id", "status", "type"]
    assert heading.split("\t")[-1] == "receiver", "what --receiver takes"
    assert lines[1].split("\t")[-1] == receiver.url("")
    assert len(lines) == 2


def test_show_tells_all_but_the_query(cli, desk, receiver):
    generation_id = dead(desk, receiver)
    view = desk.view(generation_id)
    shown = cli.json("notices", "show", str(view.id))
    assert (shown["status"], shown["tenant"], shown["tries"]) == ("dead", "acme", 1)
    assert shown["to"] == receiver.url("/hook?…")
    assert "410" in cli("notices", "show", str(view.id))
    assert "there is no notice" in cli("notices", "show", str(uuid.uuid4()), code=1)
    assert "ID is 'x'" in cli("notices", "show", "x", code=2)


def test_resend_by_name_and_all_that_are_dead(cli, desk, receiver):
    first, second = dead(desk, receiver), dead(desk, receiver)
    assert "1 notices" in cli("notices", "resend", str(desk.view(first).id))
    assert desk.view(first).status is State.PENDING
    assert desk.view(second).status is State.DEAD
    for wrong in ("queue:x", receiver.url("/hook")):
        said = cli("notices", "resend", "--dead", "--receiver", wrong, code=2)
        assert f"allowed: one with dead notices: {receiver.url('')}" in said, "whom it can name"
    assert "1 notices" in cli("notices", "resend", "--dead", "--receiver", receiver.url(""))
    desk.work()
    assert {str(first), str(second)} == {one.data["id"] for one in receiver.taken()}
    shown = cli.json("show", str(first))
    resent = [one for one in shown["events"] if one["event"] == "notice_resent"]
    assert resent[0]["detail"]["by"].startswith("operator")
    assert shown["notices"][0]["status"] == "delivered"
    assert shown["notify"]["webhook"].endswith("?…")
    assert "generation.cancelled  delivered" in cli("show", str(first))


def test_doctor_tells_of_dead_notices_failing_receivers_and_missing_secrets(cli, desk, receiver):
    dead(desk, receiver)
    receiver.stop()
    desk.put_out()
    for _ in range(3):
        desk.work()
        desk.sql("UPDATE notices SET due_at = now() WHERE status = 'pending'")
    said = cli("doctor")
    assert "1 were not taken and are set aside" in said
    assert f"{receiver.url('')} fails" in said


def test_doctor_is_silent_of_a_receiver_for_which_nothing_waits(cli, desk, receiver):
    receiver.stop()
    desk.put_out()
    for _ in range(3):
        desk.work()
        desk.sql("UPDATE notices SET due_at = now() WHERE status = 'pending'")
    assert " fails (" in cli("doctor")
    desk.sql("UPDATE notices SET status = 'dead', due_at = NULL, settled_at = now()")
    said = cli("doctor")
    assert "1 were not taken and are set aside" in said
    assert " fails (" not in said


def test_doctor_tells_of_missing_secrets_where_workers_lack_them(cli, desk, make_runtime, receiver):
    """An operator's own shell has no secret, and need not."""
    desk.put_out()
    assert "SECRETS" not in cli("doctor")
    Desk(make_runtime, receiver, webhook_secrets="").work()
    assert "1 webhooks wait: workers have no SEEDANCE_WEBHOOK_SECRETS" in cli("doctor")


def test_generate_takes_whom_to_tell(cli, desk, receiver, monkeypatch):
    refused = cli("generate", "--text", "a cat", "--notify-webhook", receiver.url(), code=2)
    assert "notify.webhook" in refused
    monkeypatch.setenv("SEEDANCE_ALLOW_PRIVATE_WEBHOOKS", "true")
    options = ("--notify-webhook", receiver.url(), "--notify-task", "shop.done")
    options += ("--notify-queue", "shop", "--notify-on", "change")
    made = cli.json("generate", "--text", "a cat", *options)
    assert made["notify"] == {
        "webhook": receiver.url(),
        "task": "shop.done",
        "queue": "shop",
        "on": "change",
    }


def test_retention_removes_what_is_settled_and_nothing_that_waits(desk, receiver):
    from worker.upkeep import prune

    old, young, waiting = dead(desk, receiver), dead(desk, receiver), desk.put_out()
    desk.sql(
        "UPDATE notices SET settled_at = now() - interval '31 days' WHERE generation_id = :id",
        id=old,
    )
    desk.sql(
        "UPDATE generations SET created_at = now() - interval '300 days',"
        " finished_at = now() - interval '299 days' WHERE id IN (:a, :b)",
        a=young,
        b=waiting,
    )
    desk.sql(
        "INSERT INTO notice_receivers (receiver, failures, retry_at) VALUES"
        " ('queue:idle', 3, now() - interval '2 days'), ('queue:late', 3, now())"
    )
    prune.run(desk.rt)
    with desk.rt.engine.connect() as conn:
        left = {view.generation_id for view in reading.listing(conn)}
        kept = set(conn.execute(text("SELECT id FROM generations")).scalars())
        assert [one.receiver for one in reading.receivers(conn)] == ["queue:late"]
    assert left == {waiting}, "a generation takes its notices with it, but not those that wait"
    assert kept == {old, waiting}
