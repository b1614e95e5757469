"""Delivering: real requests to a real receiver, and what becomes of a notice after each answer."""

import base64
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine
from celery import Celery
from sqlalchemy import text
from standardwebhooks import Webhook

from models import transitions
from models.artifacts import storing
from models.lifecycle import Event, Status
from models.notices import State, delivery, reading
from models.notices.reading import NoticeView
from models.operating.actions import By
from models.transitions.core import g, move
from tests.integration import rows
from tests.receiver import SECRET, Receiver, closed_port, receiving
from tests.waiting import wait_for
from worker.side_work import SideClaim
from worker.stages import deliver
from worker.webhooks import Refused, Taken, judge

OTHER = f"whsec_{base64.b64encode(bytes(range(50, 90))).decode()}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


class Desk:
    """Puts notices out and delivers what is due, as dispatcher and Celery do."""

    def __init__(self, make_runtime, receiver: Receiver, **settings) -> None:
        given = {
            "webhook_secrets": SECRET,
            "allow_private_webhooks": True,
            "notice_retry": 30,
            **settings,
        }
        self.rt = make_runtime(**given)
        self.receiver = receiver
        self.sent: list[tuple] = []
        self.broker_is_away = False

    def put_out(self, notify: dict | None = None, **values) -> uuid.UUID:
        given = {"on": "end", "webhook": self.receiver.url()} if notify is None else notify
        with self.rt.engine.begin() as conn:
            generation_id = rows.make(conn, Status.ACCEPTED, notify=given, **values)
            transitions.cancel(conn, generation_id)
        return generation_id

    def send_task(self, *told) -> None:
        if self.broker_is_away:
            raise ConnectionError("broker")
        self.sent.append(told)

    def work(self) -> int:
        """Deliver what is due now; how many claims that were."""
        with self.rt.engine.begin() as conn:
            claims = delivery.claim_due(conn, 8, self.rt.settings.lease)
        for claim in claims:
            deliver.run(self.rt, SideClaim(str(claim.id), claim.lease), self.send_task)
        return len(claims)

    def view(self, generation_id: uuid.UUID) -> NoticeView:
        with self.rt.engine.connect() as conn:
            [view] = reading.listing(conn, generation_id=generation_id)
        return view

    def failing(self):
        with self.rt.engine.connect() as conn:
            return reading.receivers(conn)

    def sql(self, statement: str, **values) -> None:
        with self.rt.engine.begin() as conn:
            conn.execute(text(statement), values)

    def dues(self) -> list[uuid.UUID]:
        """The notices that every claim looks over."""
        with self.rt.engine.connect() as conn:
            return list(
                conn.execute(text("SELECT id FROM notices WHERE due_at <= now()")).scalars()
            )

    def pause(self, generation_id: uuid.UUID) -> float:
        """Seconds until its notice is due."""
        due = self.view(generation_id).due_at
        assert due is not None
        return (due - datetime.now(UTC)).total_seconds()


@pytest.fixture
def desk(make_runtime, receiver) -> Desk:
    return Desk(make_runtime, receiver)


# --- what is sent -------------------------------------------------------------------------------


def test_a_webhook_says_what_became_of_it_and_is_signed(desk, receiver):
    with desk.rt.engine.begin() as conn:
        generation_id = rows.make(
            conn,
            Status.RUNNING,
            notify={"on": "end", "webhook": receiver.url("/hook?key=s3cret")},
            metadata={"order": 7, "täg": "ünïcode"},
            tenant="acme",
            idempotency_key="order-7",
        )
        seen = rows.seen(
            f"task-{generation_id.hex}",
            "completed",
            credit_cost=Decimal("1234567890.1250"),
            video_url="https://cdn.example/v.mp4?token=secret",
        )
        transitions.apply_observation(conn, seen)
    assert desk.work() == 1
    [heard] = receiver.heard
    assert heard.verified
    assert heard.path == "/hook?key=s3cret"
    view = desk.view(generation_id)
    assert (view.status, view.tries, heard.id) == (State.DELIVERED, 1, str(view.id))
    when = heard.payload.pop("timestamp")
    assert abs(datetime.fromisoformat(when) - datetime.now(UTC)) < timedelta(minutes=2)
    assert heard.payload == {
        "type": "generation.completed",
        "data": {
            "id": str(generation_id),
            "sequence": 1,
            "status": "completed",
            "tenant": "acme",
            "idempotency_key": "order-7",
            "retry_of": None,
            "metadata": {"order": 7, "täg": "ünïcode"},
            "credit_cost": "1234567890.125",
            "error_code": None,
            "error_message": None,
            "has_video": True,
            "artifacts": [],
        },
    }
    assert "cdn.example" not in json.dumps(heard.payload)


def test_a_completed_one_waits_for_the_archive_and_tells_what_it_stored(desk, receiver):
    with desk.rt.engine.begin() as conn:
        generation_id = rows.make(
            conn, Status.RUNNING, notify={"on": "end", "webhook": receiver.url()}
        )
        transitions.apply_observation(conn, rows.seen(f"task-{generation_id.hex}", "completed"))
        made = (
            "INSERT INTO artifacts (generation_id, kind, due_at, available_until)"
            " VALUES (:id, :kind, now(), now() + interval '7 days')"
        )
        for kind in ("video", "last_frame"):
            conn.execute(text(made), {"id": generation_id, "kind": kind})
    desk.work()
    view = desk.view(generation_id)
    assert (receiver.heard, view.tries, view.error) == ([], 0, "waits for the archive")

    desk.sql(
        "UPDATE artifacts SET due_at = NULL, stored_at = now(), uri = 'file:///videos/a.mp4',"
        " bytes = 7, sha256 = repeat('a', 64), content_type = 'video/mp4' WHERE kind = 'video'"
    )
    desk.sql("UPDATE notices SET due_at = now(), since = now() - interval '16 min'")
    desk.work()
    [heard] = receiver.heard
    assert heard.data["artifacts"] == [
        {
            "kind": "video",
            "uri": "file:///videos/a.mp4",
            "bytes": 7,
            "sha256": "a" * 64,
            "content_type": "video/mp4",
        }
    ], "the last frame takes too long: it isn't waited for for ever"


def waiting_for_its_video(desk, receiver) -> uuid.UUID:
    """A completed generation whose notice was looked at before its video was stored."""
    with desk.rt.engine.begin() as conn:
        generation_id = rows.make(
            conn, Status.RUNNING, notify={"on": "end", "webhook": receiver.url()}
        )
        transitions.apply_observation(conn, rows.seen(f"task-{generation_id.hex}", "completed"))
        conn.execute(
            text(
                "INSERT INTO artifacts (generation_id, kind, due_at, available_until)"
                " VALUES (:id, 'video', now(), now() + interval '7 days')"
            ),
            {"id": generation_id},
        )
    return generation_id


FILE = storing.Stored("file:///videos/a.mp4", 7, "a" * 64, "video/mp4")


@pytest.mark.parametrize("lost", [False, True])
def test_it_goes_as_soon_as_the_video_is_stored_or_lost(desk, receiver, lost):
    generation_id = waiting_for_its_video(desk, receiver)
    assert desk.work() == 1
    assert desk.pause(generation_id) > 30, "it isn't looked at again and again"
    with desk.rt.engine.begin() as conn:
        [(key, lease)] = storing.claim(conn, 1, 60)
        if lost:
            conn.execute(text("UPDATE artifacts SET available_until = now()"))
            storing.failed(conn, key, lease, "gone", seconds=5)
        else:
            storing.stored(conn, key, lease, FILE)
    assert desk.work() == 1
    [heard] = receiver.heard
    assert [one["uri"] for one in heard.data["artifacts"]] == ([] if lost else [FILE.uri])


def test_one_that_was_refused_keeps_its_pause_when_its_video_is_stored(desk, receiver):
    generation_id = waiting_for_its_video(desk, receiver)
    receiver.status = 404
    desk.sql("UPDATE notices SET since = now() - interval '16 min'")
    desk.work()
    with desk.rt.engine.begin() as conn:
        [(key, lease)] = storing.claim(conn, 1, 60)
        storing.stored(conn, key, lease, FILE)
    assert desk.pause(generation_id) > 1


def test_one_that_is_looked_at_while_its_video_is_stored_is_not_forgotten(desk, receiver):
    waiting_for_its_video(desk, receiver)
    with desk.rt.engine.begin() as conn:
        [(key, lease)] = storing.claim(conn, 1, 60)
    with desk.rt.engine.connect() as archive, ThreadPoolExecutor(1) as pool:
        storing.stored(archive, key, lease, FILE)
        looking = pool.submit(desk.work)
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with desk.rt.engine.connect() as conn:
            auto = conn.execution_options(isolation_level="AUTOCOMMIT")
            wait_for(lambda: looking.done() or auto.execute(text(blocked)).scalar_one())
        archive.commit()
        looking.result(60)
    [heard] = receiver.heard
    assert heard.data["artifacts"][0]["uri"] == FILE.uri


def test_a_retry_names_the_generation_that_its_producer_knows(desk, receiver):
    with desk.rt.engine.begin() as conn:
        first = rows.make(conn, Status.FAILED)
    desk.put_out(retry_of=first)
    desk.work()
    assert receiver.heard[0].data["retry_of"] == str(first)


def test_all_secrets_sign_while_they_are_changed(make_runtime, receiver):
    desk = Desk(make_runtime, receiver, webhook_secrets=f"{OTHER} {SECRET}")
    desk.put_out()
    desk.work()
    [heard] = receiver.heard
    assert heard.verified, "a receiver that has the old one"
    assert len(heard.headers["webhook-signature"].split()) == 2
    stamp = datetime.fromtimestamp(int(heard.headers["webhook-timestamp"]), UTC)
    body = json.dumps(heard.payload, ensure_ascii=False, separators=(",", ":"))
    assert Webhook(OTHER).sign(heard.id, stamp, body) in heard.headers["webhook-signature"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_worker_whose_clock_is_off_stamps_by_the_databases(desk, receiver, hours):
    desk.put_out()
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=hours)):
        desk.work()
    [heard] = receiver.heard
    assert abs(int(heard.headers["webhook-timestamp"]) - time.time()) < 120


def test_nothing_is_sent_unsigned(make_runtime, receiver):
    desk = Desk(make_runtime, receiver, webhook_secrets="")
    generation_id = desk.put_out()
    desk.work()
    view = desk.view(generation_id)
    assert receiver.heard == []
    assert (view.status, view.tries) == (State.PENDING, 0)
    assert view.error == "SEEDANCE_WEBHOOK_SECRETS is not set"


def test_a_celery_task_gets_the_notice_under_its_id(desk):
    generation_id = desk.put_out({"on": "end", "task": "shop.video_done", "queue": "shop"})
    desk.work()
    [(name, queue, task_id, kwargs)] = desk.sent
    assert (name, queue) == ("shop.video_done", "shop")
    assert task_id == str(desk.view(generation_id).id)
    assert kwargs["notice"]["data"]["id"] == str(generation_id)


def test_a_celery_task_waits_for_the_broker(desk):
    generation_id = desk.put_out({"on": "end", "task": "shop.video_done", "queue": "shop"})
    desk.broker_is_away = True
    desk.work()
    view = desk.view(generation_id)
    assert (view.status, view.tries) == (State.PENDING, 1)
    assert view.error == "the broker did not take it: ConnectionError"
    desk.broker_is_away = False
    desk.sql("UPDATE notices SET due_at = now()")
    desk.work()
    assert desk.view(generation_id).status is State.DELIVERED


def test_a_worker_sends_a_task_that_a_foreign_celery_app_takes(rt, broker_url, monkeypatch):
    from worker import tasks

    got = []
    with Celery("shop", broker=broker_url, set_as_current=False) as shop:
        monkeypatch.setattr(tasks, "app", shop)
        tasks._send_task("shop.video_done", "shop", "id-1", {"notice": {"type": "x"}})
        with shop.connection() as connection, connection.SimpleQueue("shop") as queue:
            message = queue.get(timeout=10)
            got.append((message.headers["task"], message.headers["id"], message.payload[1]))
            message.ack()
    assert got == [("shop.video_done", "id-1", {"notice": {"type": "x"}})]


def test_one_message_goes_on_while_its_receiver_takes_what_there_is(desk, receiver):
    ids = [desk.put_out() for _ in range(12)]
    assert desk.work() == 4, "one claim for each that may be on its way at once"
    assert {one.data["id"] for one in receiver.heard} == {str(one) for one in ids}


def test_changes_come_in_their_order(desk, receiver):
    notify = {"on": "change", "webhook": receiver.url()}
    with desk.rt.engine.begin() as conn:
        generation_id = rows.make(conn, Status.ACCEPTED, notify=notify)
        move(conn, Event.ADMIT, g.id == generation_id, values={})
    receiver.status = 500
    desk.work()
    with desk.rt.engine.begin() as conn:
        move(conn, Event.PUT_BACK, g.id == generation_id, values={})
        transitions.cancel(conn, generation_id)
    receiver.status = 200
    assert desk.work() == 0, "the first is not due yet, so the others wait"
    desk.sql("UPDATE notices SET due_at = now() WHERE sequence = 1")
    desk.work()
    assert [one.data["status"] for one in receiver.taken()] == [
        "uploading",
        "accepted",
        "cancelled",
    ]
    assert [one.data["sequence"] for one in receiver.taken()] == [1, 2, 3]


def test_what_follows_a_refused_one_is_due_with_it_and_not_looked_over_till_then(desk, receiver):
    notify = {"on": "change", "webhook": receiver.url()}
    with desk.rt.engine.begin() as conn:
        generation_id = rows.make(conn, Status.ACCEPTED, notify=notify)
        move(conn, Event.ADMIT, g.id == generation_id, values={})
        move(conn, Event.PUT_BACK, g.id == generation_id, values={})
        transitions.cancel(conn, generation_id)
    receiver.status = 401
    assert desk.work() == 1
    with desk.rt.engine.connect() as conn:
        views = reading.listing(conn, generation_id=generation_id)
    assert len({view.due_at for view in views}) == 1
    assert desk.dues() == []

    receiver.status = 200
    with desk.rt.engine.begin() as conn:
        reading.resend(conn, [views[-1].id], by=By("jo"))
    desk.work()
    assert [one.data["sequence"] for one in receiver.taken()] == [1, 2, 3]


# --- what becomes of it -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_2xx_is_a_yes(status):
    assert judge(status, None) == Taken()


@pytest.mark.parametrize(
    ("status", "alive"),
    [
        *[(status, True) for status in (301, 304, 400, 401, 404)],
        *[(status, False) for status in (408, 429, 500, 502, 503)],
    ],
)
def test_anything_else_is_tried_again(status, alive):
    answer = judge(status, "7")
    assert isinstance(answer, Refused)
    assert (answer.alive, answer.for_good) == (alive, False)
    assert answer.retry_after == (None if alive else 7.0)


def test_gone_is_dead_at_once(desk, receiver):
    receiver.status = 410
    generation_id = desk.put_out()
    desk.work()
    view = desk.view(generation_id)
    assert (view.status, view.tries) == (State.DEAD, 1)
    assert "410" in view.error
    desk.sql("UPDATE notices SET due_at = due_at")
    assert desk.work() == 0


def test_a_failure_is_tried_again_at_growing_pauses(desk, receiver):
    receiver.status = 404
    generation_id = desk.put_out()
    bounds = []
    for _ in range(4):
        desk.work()
        bounds.append(desk.pause(generation_id))
        desk.sql("UPDATE notices SET due_at = now()")
    for tries, pause in enumerate(bounds):
        assert 30 * 2**tries / 2 - 5 < pause <= 30 * 2**tries, bounds
    view = desk.view(generation_id)
    assert (view.tries, view.error) == (4, "HTTP 404")
    assert len({one.id for one in receiver.heard}) == 1, "the same id in each try"
    assert desk.failing() == [], "it answers: only this notice is unwelcome"


def test_its_own_patience_ends_with_a_last_try_then_it_is_set_aside(desk, receiver):
    receiver.status = 500
    generation_id = desk.put_out()
    almost = desk.rt.settings.notice_patience - 10
    desk.sql("UPDATE notices SET since = now() - make_interval(secs => :s), tries = 12", s=almost)
    desk.work()
    assert 0 < desk.pause(generation_id) <= 10, "one last time when it is up"
    desk.sql("UPDATE notices SET due_at = now(), since = since - interval '20 s'")
    desk.work()
    view = desk.view(generation_id)
    assert (view.status, view.error) == (State.DEAD, "HTTP 500")


def test_retry_after_is_honoured_for_all_that_is_for_it_within_bounds(desk, receiver):
    receiver.status, receiver.headers = 429, {"Retry-After": "120"}
    first = desk.put_out()
    desk.work()
    assert 100 < desk.pause(first) <= 120
    second = desk.put_out()
    assert desk.work() == 0, "it asked to be left alone"
    desk.sql("UPDATE notice_receivers SET retry_at = now()")
    receiver.headers = {"Retry-After": "9999999"}
    desk.work()
    assert desk.pause(second) <= 3_600


def test_a_receiver_that_is_down_is_left_alone_after_three(desk, receiver):
    receiver.stop()
    ids = [desk.put_out() for _ in range(6)]
    assert desk.work() == 4
    [told] = desk.failing()
    assert (told.failures, told.waiting) == (4, 6)
    assert "refused" in told.error.lower()
    assert desk.work() == 0
    desk.sql("UPDATE notice_receivers SET retry_at = now()")
    receiver.start()
    assert desk.work() == 1, "one is tried"
    assert desk.failing() == []
    desk.sql("UPDATE notices SET due_at = now() WHERE status = 'pending'")
    wait_for(lambda: desk.work() == 0)
    assert {desk.view(one).status for one in ids} == {State.DELIVERED}


def test_what_waited_in_vain_for_a_receiver_is_buried_with_it(desk, receiver):
    receiver.stop()
    ids = [desk.put_out() for _ in range(3)]
    desk.sql(
        "INSERT INTO notice_receivers (receiver, failures, failing_since, retry_at)"
        " SELECT receiver, 50, now() - interval '4 days', now() FROM notices LIMIT 1"
    )
    desk.sql("UPDATE notices SET since = now() - interval '4 days'")
    assert desk.work() == 1
    assert {desk.view(one).status for one in ids} == {State.DEAD}


def test_a_claim_that_was_lost_sends_nothing(desk, receiver):
    desk.put_out()
    with desk.rt.engine.begin() as conn:
        [claim] = delivery.claim_due(conn, 1, 60.0)
    deliver.run(desk.rt, SideClaim(str(claim.id), claim.lease - 1), desk.send_task)
    assert receiver.heard == []


# --- what a receiver may do to us ----------------------------------------------------------------


def test_no_redirect_is_followed(desk, receiver):
    receiver.status, receiver.headers = 302, {"Location": receiver.url("/elsewhere")}
    generation_id = desk.put_out()
    desk.work()
    assert [one.path for one in receiver.heard] == ["/hook"]
    assert desk.view(generation_id).error == "HTTP 302"


@contextmanager
def raw_server(answer) -> Iterator[int]:
    """Answers each connection with what `answer(socket)` writes; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.settimeout(20)
                    try:
                        peer.recv(65_536)
                        answer(peer)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(20)


def test_one_that_trickles_has_a_bound(make_runtime, receiver):
    desk = Desk(make_runtime, receiver, lease=6)
    stop = threading.Event()

    def trickle(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(200):
            if stop.wait(0.1):
                return
            peer.sendall(b"x")

    with raw_server(trickle) as port:
        generation_id = desk.put_out({"on": "end", "webhook": f"http://127.0.0.1:{port}/"})
        began = datetime.now(UTC)
        desk.work()
        took = (datetime.now(UTC) - began).total_seconds()
        stop.set()
    assert took < 6, "within the lease of 6 s"
    assert "timed out" in desk.view(generation_id).error


def test_a_body_without_end_is_not_read(desk):
    def flood(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            peer.sendall(b"x" * 65_536)

    with raw_server(flood) as port:
        generation_id = desk.put_out({"on": "end", "webhook": f"http://127.0.0.1:{port}/"})
        desk.work()
    assert desk.view(generation_id).status is State.DELIVERED


def test_garbage_is_no_yes(desk):
    with raw_server(lambda peer: peer.sendall(b"\x00\x01garbage\r\n\r\n")) as port:
        generation_id = desk.put_out({"on": "end", "webhook": f"http://127.0.0.1:{port}/"})
        desk.work()
    assert desk.view(generation_id).status is State.PENDING


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "localhost", "10.0.0.1", "169.254.169.254"),
        *("0.0.0.0", "224.0.0.1", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]"),
    ],
)
def test_private_addresses_are_refused_once_looked_up(make_runtime, receiver, host):
    """Whatever was stored: the setting may have changed, and a name may lead anywhere."""
    desk = Desk(make_runtime, receiver, allow_private_webhooks=False)
    generation_id = desk.put_out({"on": "end", "webhook": f"https://{host}:{receiver.port}/"})
    desk.work()
    view = desk.view(generation_id)
    assert "SEEDANCE_ALLOW_PRIVATE_WEBHOOKS" in view.error
    assert (view.status, receiver.heard) == (State.PENDING, [])


def test_a_name_that_leads_to_a_private_address_is_refused(make_runtime, receiver, monkeypatch):
    """Asked once: the address that was checked is the one that is connected to."""
    asked = []
    real = socket.getaddrinfo

    def lookup(host, port, *args, **kwargs):
        asked.append(host)
        return real("127.0.0.1" if host == "hooks.example.com" else host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    desk = Desk(make_runtime, receiver, allow_private_webhooks=False)
    url = f"https://hooks.example.com:{receiver.port}/"
    generation_id = desk.put_out({"on": "end", "webhook": url})
    desk.work()
    assert asked.count("hooks.example.com") == 1
    assert "private" in desk.view(generation_id).error
    assert receiver.heard == []


@pytest.mark.parametrize("private", [True, False])
def test_a_name_that_nobody_answers_for_holds_up_nobody(
    make_runtime, receiver, monkeypatch, private
):
    """The system's own lookup may take half a minute, and knows no timeout."""
    answered = threading.Event()
    real = socket.getaddrinfo

    def lookup(host, port, *args, **kwargs):
        if host == "lost.example.com":
            answered.wait(60)
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    desk = Desk(make_runtime, receiver, allow_private_webhooks=private)
    generation_id = desk.put_out({"on": "end", "webhook": "https://lost.example.com/"})
    began = time.monotonic()
    desk.work()
    assert time.monotonic() - began < 30
    assert "ConnectTimeout" in desk.view(generation_id).error
    answered.set()


def test_plain_http_is_refused_where_private_addresses_are(make_runtime, receiver):
    desk = Desk(make_runtime, receiver, allow_private_webhooks=False)
    generation_id = desk.put_out()
    desk.work()
    assert "plain http" in desk.view(generation_id).error
    assert receiver.heard == []


def test_no_secret_of_an_address_gets_into_a_log_or_the_table(desk, caplog):
    url = f"http://127.0.0.1:{closed_port()}/hook?key=s3cret"
    generation_id = desk.put_out({"on": "end", "webhook": url})
    with caplog.at_level("DEBUG"):
        desk.work()
    assert desk.view(generation_id).error
    assert "s3cret" not in desk.view(generation_id).error
    assert "was not taken by http://127.0.0.1" in caplog.text
    assert "s3cret" not in caplog.text
    assert SECRET not in caplog.text
