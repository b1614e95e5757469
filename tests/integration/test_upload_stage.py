"""Upload: each reference once by content, under a lease that is kept, and then straight on."""

import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest

from models import transitions
from models.lifecycle import Status
from tests.integration.invariants import in_background, laboratory
from worker.stages import upload

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG + b"a" * 64)
    (folder / "same.png").write_bytes(PNG + b"a" * 64)
    (folder / "b.png").write_bytes(PNG + b"b" * 64)
    (folder / "lake.jpg").write_bytes((ROOT / "examples/media/lake.jpg").read_bytes())
    (tmp_path / "secret.png").write_bytes(PNG + b"secret")
    return folder


@pytest.fixture
def lab(make_runtime, sim, caplog, media):
    with laboratory(make_runtime, sim, caplog, media_roots=str(media)) as lab:
        yield lab


def request(*sources, kind="image_url", **fields):
    items = [{"type": kind, kind: source} for source in sources]
    return {"content": [{"type": "text", "text": "a cat"}, *items], **fields}


def run(lab, *sources, **fields):
    claim = lab.start(request(*sources, **fields))
    upload.run(lab.rt, claim.id, claim.lease)
    return claim.id


def again(lab, generation_id):
    lab.run(lab.readmit(generation_id))
    return lab.get(generation_id)


def puts(lab):
    return lab.sim.received("put")


def test_a_picture_is_uploaded_and_submitted_by_its_path(lab, media):
    generation_id = run(lab, "path:lake.jpg")

    [file] = lab.sim.uploads()
    assert file["sha256"] == hashlib.sha256((media / "lake.jpg").read_bytes()).hexdigest()
    [task] = lab.sim.tasks()
    assert task["body"]["content"][1] == {"type": "image_url", "image_url": file["file_path"]}
    assert lab.history(generation_id)[:5] == ["accept", "admit", "uploaded", "intend", "submit"]
    lab.complete(generation_id)
    # What the producer gave is kept as it was given.
    assert lab.get(generation_id).request["content"][1]["image_url"] == "path:lake.jpg"


def test_bytes_are_not_sent_again_when_their_record_fails_at_its_commit(lab):
    lab.sql("CREATE SEQUENCE failures")
    lab.sql(
        """
        CREATE FUNCTION fail_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.file_path IS NOT NULL AND nextval('failures') <= 2 THEN
                RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    lab.sql(
        "CREATE CONSTRAINT TRIGGER fails AFTER UPDATE ON uploads DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail_at_commit()"
    )

    generation_id = run(lab, "path:a.png")

    assert lab.value("SELECT last_value FROM failures") == 3
    assert lab.get(generation_id).status is Status.RUNNING
    assert lab.history(generation_id).count("uploaded") == 1
    assert puts(lab) == 1


def test_equal_bytes_are_uploaded_once(lab):
    first = run(lab, "path:a.png", "path:same.png")
    second = run(lab, "path:a.png", "path:b.png")
    assert puts(lab) == 2
    assert lab.get(first).status is lab.get(second).status is Status.RUNNING
    lab.end_tasks()


def test_an_upload_is_not_used_beyond_its_validity(lab):
    run(lab, "path:a.png")
    lab.sql("UPDATE uploads SET valid_until = now() - interval '1 second'")
    run(lab, "path:a.png")
    assert puts(lab) == 2
    lab.end_tasks()


def test_a_path_of_the_provider_goes_through_untouched(lab):
    run(lab, "path:a.png")
    [file] = lab.sim.uploads()
    generation_id = lab.send()
    claim = lab.start(request(file["file_path"]))
    lab.run(claim)
    assert lab.get(generation_id).status is lab.get(claim.id).status is Status.RUNNING
    assert puts(lab) == 1
    lab.end_tasks()


def test_two_with_the_same_bytes_at_once_upload_once(lab):
    lab.sim.fault("put", "delay_before", seconds=0.4, times=1)
    first = lab.start(request("path:a.png"))
    second = lab.start(request("path:same.png"))
    with in_background(lambda: upload.run(lab.rt, first.id, first.lease)):
        lab.sim.wait(endpoint="put", received=1)
        upload.run(lab.rt, second.id, second.lease)
        assert lab.get(second.id).status is Status.UPLOADING
    lab.run(lab.claim(second.id))
    assert puts(lab) == 1
    assert lab.get(second.id).status is Status.RUNNING
    lab.end_tasks()


def test_a_claim_of_a_dead_uploader_ends(lab):
    run(lab, "path:b.png")
    lab.sql(
        "UPDATE uploads SET file_path = NULL, valid_until = NULL,"
        " claimed_until = now() - interval '1 second'"
    )
    generation_id = run(lab, "path:b.png")
    assert lab.get(generation_id).status is Status.RUNNING
    lab.end_tasks()


def test_the_same_message_twice(lab):
    claim = lab.start(request("path:a.png"))
    upload.run(lab.rt, claim.id, claim.lease)
    upload.run(lab.rt, claim.id, claim.lease)
    assert (puts(lab), lab.posts) == (1, 1)
    lab.end_tasks()


def test_the_same_message_to_two_workers_at_once_is_one_post(lab):
    claim = lab.start(request("path:lake.jpg"))
    start = threading.Barrier(2)

    def work():
        start.wait(10)
        upload.run(lab.rt, claim.id, claim.lease)

    with in_background(work):
        work()
    assert lab.posts == 1
    lab.complete(claim.id)


def test_a_lease_lost_while_uploading_goes_no_further(lab):
    lab.sim.fault("put", "delay_before", seconds=0.5, times=1)
    claim = lab.start(request("path:a.png"))
    with in_background(lambda: upload.run(lab.rt, claim.id, claim.lease)):
        lab.sim.wait(endpoint="put", received=1)
        newer = lab.claim(claim.id)
    assert lab.posts == 0
    assert lab.get(claim.id).status is Status.UPLOADING
    lab.run(newer)
    assert (puts(lab), lab.posts) == (1, 1), "what was uploaded is used"
    lab.complete(claim.id)


def test_a_lease_is_renewed_for_each_file(lab):
    lab.rt = lab.make_runtime(
        lease=0.9,
        http_timeout=0.5,
        http_connect_timeout=0.3,
        media_roots=str(lab.rt.settings.media_roots[0]),
    )
    lab.sim.fault("put", "delay_before", seconds=0.4)
    claim = lab.start(request("path:a.png", "path:b.png", "path:lake.jpg"))
    with in_background(lambda: upload.run(lab.rt, claim.id, claim.lease)):
        for n in range(1, 4):
            lab.sim.wait(endpoint="put", received=n)
            assert lab.due() == []
    assert lab.get(claim.id).status is Status.RUNNING
    assert puts(lab) == 3
    lab.complete(claim.id)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("path:missing.png", "image_url"),
        ("path:../secret.png", "image_url"),
        ("path:link.png", "image_url"),
        ("path:folder/secret.png", "image_url"),
        ("path:pipe.png", "image_url"),
        ("path:empty.png", "image_url"),
        ("path:text.png", "image_url"),
        ("path:a.png", "video_url"),
        ("path:.", "image_url"),
        ("http://127.0.0.1:9/a.png", "image_url"),
        ("https://127.0.0.1:9/a.png", "image_url"),
        ("https://[::1]:9/a.png", "image_url"),
        ("https://169.254.169.254/latest/meta-data", "image_url"),
    ],
)
def test_what_can_never_be_read_is_refused(lab, media, source, kind):
    (media / "link.png").symlink_to(media.parent / "secret.png")
    (media / "folder").symlink_to(media.parent)
    (media / "empty.png").write_bytes(b"")
    (media / "text.png").write_text("no picture")
    os.mkfifo(media / "pipe.png")
    if ".." in source:
        source = f"path:{media.parent}/secret.png"

    generation_id = run(lab, source, kind=kind)

    view = lab.get(generation_id)
    assert (view.status, view.error_code) == (Status.FAILED, "INVALID_REFERENCE")
    assert view.error_message
    assert "secret\n" not in view.error_message
    assert (puts(lab), lab.posts) == (0, 0)


def test_too_large_a_file_is_refused(lab):
    folder = lab.rt.settings.media_roots[0]
    lab.rt = lab.make_runtime(media_roots=str(folder), upload_max_bytes=50)
    view = lab.get(run(lab, "path:a.png"))
    assert (view.status, view.error_code) == (Status.FAILED, "INVALID_REFERENCE")


@pytest.mark.parametrize(
    ("endpoint", "kind", "params"),
    [
        ("presign", "service_busy", {"retry_after": 0}),
        ("presign", "error", {"code": "FILE_UPLOAD_FAILED"}),
        ("presign", "error", {"code": "INTERNAL_ERROR"}),
        ("presign", "null_result", {}),
        ("presign", "lost", {}),
        ("put", "error", {"code": "SlowDown", "status": 503}),
        ("put", "drop_before", {}),
        ("put", "lost", {}),
        ("put", "error", {"code": "AccessDenied", "status": 403}),
    ],
)
def test_a_fault_on_the_way_costs_nothing(lab, endpoint, kind, params):
    lab.sim.fault(endpoint, kind, times=1, **params)
    generation_id = run(lab, "path:a.png")
    if lab.get(generation_id).status is Status.ACCEPTED:
        again(lab, generation_id)
    assert lab.get(generation_id).status is Status.RUNNING
    assert lab.posts == 1
    lab.complete(generation_id)


def test_a_refused_key_holds_it(lab):
    lab.sim.change_account(lab.sim.api_key, enabled=False)
    generation_id = run(lab, "path:a.png")
    view = lab.get(generation_id)
    assert (view.status, view.waits_for) == (Status.ACCEPTED, "circuit breaker api_key")
    lab.sim.change_account(lab.sim.api_key, enabled=True)
    lab.calm()
    assert again(lab, generation_id).status is Status.RUNNING
    lab.end_tasks()


def test_a_cancel_while_uploading_stops_it(lab):

    lab.sim.fault("put", "delay_before", seconds=0.4, times=1)
    claim = lab.start(request("path:a.png"))
    with in_background(lambda: upload.run(lab.rt, claim.id, claim.lease)):
        lab.sim.wait(endpoint="put", received=1)
        with lab.rt.engine.begin() as conn:
            transitions.cancel(conn, claim.id)
    assert lab.get(claim.id).status is Status.CANCELLED
    assert lab.posts == 0


def test_content_survives_being_sent_again(lab):
    lab.sim.fault("submit", "drop_before", times=1)
    generation_id = run(lab, "path:a.png")
    lab.resolve(generation_id)
    assert lab.send_again(generation_id).status is Status.RUNNING
    assert puts(lab) == 1
    lab.complete(generation_id)


class _Source(http.server.BaseHTTPRequestHandler):
    address: str
    answers: list[int]

    def do_GET(self):
        status = self.answers.pop(0) if self.answers else 200
        body = PNG + b"over http"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def source():
    """A server of references; `answers` are the statuses of its next answers."""

    class Handler(_Source):
        answers: list[int] = []  # noqa: RUF012  (of this test alone)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        Handler.address = f"http://127.0.0.1:{server.server_port}/x.png?token=secret"
        yield Handler
        server.shutdown()
        thread.join()


def test_a_source_over_http(lab, source):
    lab.rt = lab.make_runtime(allow_private_sources=True)
    generation_id = run(lab, source.address)
    assert lab.get(generation_id).status is Status.RUNNING
    [file] = lab.sim.uploads()
    assert file["sha256"] == hashlib.sha256(PNG + b"over http").hexdigest()
    lab.complete(generation_id)


def test_a_source_that_is_unwell_is_tried_again(lab, source):
    lab.rt = lab.make_runtime(allow_private_sources=True)
    source.answers += [503]
    generation_id = run(lab, source.address)
    view = lab.get(generation_id)
    assert (view.status, view.wait_reason) == (Status.ACCEPTED, "reference")
    assert "503" in view.wait_detail["error"]
    assert "secret" not in view.wait_detail["error"]
    assert again(lab, generation_id).status is Status.RUNNING
    lab.end_tasks()


def test_a_source_that_stays_unwell_ends_it(lab, source):
    lab.rt = lab.make_runtime(allow_private_sources=True)
    source.answers += [500] * upload.MAX_FAILURES
    generation_id = run(lab, source.address)
    while not lab.get(generation_id).ended:
        again(lab, generation_id)
    view = lab.get(generation_id)
    assert (view.status, view.error_code) == (Status.FAILED, "REFERENCE_UNAVAILABLE")
    assert "secret" not in (view.error_message or "")
    assert source.answers == []


def test_a_source_that_is_gone_is_refused(lab, source):
    lab.rt = lab.make_runtime(allow_private_sources=True)
    source.answers += [404]
    view = lab.get(run(lab, source.address))
    assert (view.status, view.error_code) == (Status.FAILED, "INVALID_REFERENCE")
