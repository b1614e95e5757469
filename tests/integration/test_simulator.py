"""The simulator over loopback HTTP: storage, signed URLs, admin API, command line."""

import hashlib
import http.client
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from urllib.parse import urlsplit

import pytest
import requests

import simulator

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "examples" / "media" / "lake.jpg"


@pytest.fixture
def sim():
    with simulator.serve(simulator.Config(random_seed=1)) as running:
        yield running


@pytest.fixture
def api(sim):
    return Api(sim)


class Api:
    """The document's calls, written down once more and plainly."""

    def __init__(self, sim, key=None):
        self.base = f"{sim.url}/api/v1/video"
        self.headers = {"X-API-Key": key or sim.api_key}

    def submit(self, text="A cat", **fields):
        content = fields.pop("content", [{"type": "text", "text": text}])
        return requests.post(
            f"{self.base}/task",
            headers=self.headers,
            json={"content": content, **fields},
            timeout=10,
            allow_redirects=False,
        )

    def new(self, text="A cat", **fields):
        return self.submit(text, **fields).json()["result"]["task_id"]

    def get(self, task_id):
        return requests.get(f"{self.base}/task/{task_id}", headers=self.headers, timeout=10)

    def list(self, **query):
        return requests.get(
            f"{self.base}/tasks", params=query, headers=self.headers, timeout=10
        ).json()["result"]

    def cancel(self, task_id):
        return requests.post(f"{self.base}/task/{task_id}/cancel", headers=self.headers, timeout=10)

    def presign(self, filename="lake.jpg", content_type="image/jpeg"):
        return requests.post(
            f"{self.base}/upload/presign",
            params={"filename": filename, "content_type": content_type},
            headers=self.headers,
            timeout=10,
        ).json()["result"]


def put(signed, data=b"bytes", **headers):
    headers = {"Content-Type": "image/jpeg"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return requests.put(signed["presigned_url"], data=data, headers=headers, timeout=10)


# --- storage ---------------------------------------------------------------------------------


def test_an_uploaded_picture_can_be_referred_to_and_looked_at(sim, api):
    signed = api.presign()
    assert signed["expires_in"] == 3600
    assert re.fullmatch(r"api/uploads/1/[0-9a-f]{32}_lake\.jpg", signed["file_path"])
    assert urlsplit(signed["presigned_url"]).netloc != urlsplit(sim.url).netloc
    content = [{"type": "image_url", "image_url": signed["file_path"]}]
    assert api.submit(content=content).json()["code"] == "INVALID_PARAMETER"  # not put yet
    assert put(signed, PICTURE.read_bytes()).status_code == 200
    assert api.submit(content=content).json()["code"] == "200"
    (upload,) = sim.uploads()
    assert upload["sha256"] == hashlib.sha256(PICTURE.read_bytes()).hexdigest()
    assert upload["puts"] == 1
    seen = requests.get(f"{sim.url}/admin/uploads/{signed['file_path']}", timeout=10)
    assert seen.headers["Content-Type"] == "image/jpeg"
    assert seen.content == PICTURE.read_bytes()


def test_another_key_can_not_use_the_file(sim, api):
    sim.configure(api_keys=[sim.api_key, "other"])
    signed = api.presign()
    put(signed)
    content = [{"type": "image_url", "image_url": signed["file_path"]}]
    assert Api(sim, "other").submit(content=content).json()["code"] == "INVALID_PARAMETER"


def test_storage_refuses_what_an_s3_refuses(sim, api):
    signed = api.presign()
    wrong_type = put(signed, Content_Type="image/png")
    assert (wrong_type.status_code, "SignatureDoesNotMatch" in wrong_type.text) == (403, True)
    forged = dict(signed, presigned_url=signed["presigned_url"][:-1] + "g")
    assert put(forged).status_code == 403
    chunked = put(signed, iter([b"by", b"tes"]))
    assert (chunked.status_code, "MissingContentLength" in chunked.text) == (411, True)
    sim.configure(max_upload_bytes=4)
    assert put(signed).status_code == 400
    sim.configure(max_upload_bytes=5)
    assert put(signed).status_code == 200
    sim.advance(3600)
    expired = put(signed)
    assert (expired.status_code, "expired" in expired.text) == (403, True)
    assert sim.uploads()[0]["puts"] == 1


def test_the_key_must_not_reach_storage(sim, api):
    signed = api.presign()
    assert put(signed, X_API_Key=sim.api_key).status_code == 400
    assert sim.requests()["key_leaks"] == 1
    assert sim.uploads()[0]["size"] is None


def test_storage_can_be_made_to_fail(sim, api):
    signed = api.presign()
    sim.fault("put", "error", code="SlowDown", status=503, times=1)
    sim.fault("put", "drop_after", times=1)
    answer = put(signed)
    assert (answer.status_code, "<Code>SlowDown</Code>" in answer.text) == (503, True)
    with pytest.raises(requests.ConnectionError):
        put(signed)
    assert sim.uploads()[0]["puts"] == 1


# --- videos ----------------------------------------------------------------------------------


def test_the_video_is_served_at_a_signed_url(sim, api):
    task_id = api.new(return_last_frame=True)
    sim.advance(400)
    task = api.get(task_id).json()["result"]
    video = requests.get(task["video_url"], timeout=10)
    assert video.headers["Content-Type"] == "video/mp4"
    assert video.content[4:8] == b"ftyp"
    assert len(video.content) <= 60_000
    part = requests.get(task["video_url"], headers={"Range": "bytes=0-9"}, timeout=10)
    assert (part.status_code, part.content) == (206, video.content[:10])
    frame = requests.get(task["last_frame_url"], timeout=10)
    assert frame.content[:3] == b"\xff\xd8\xff"
    forged = re.sub("token=.", "token=x", task["video_url"])
    assert requests.get(forged, timeout=10).status_code == 403
    assert requests.get(f"{sim.storage_url}/cdn/{task_id}.mp4", timeout=10).status_code == 403
    beyond = requests.get(task["video_url"], headers={"Range": "bytes=900000-"}, timeout=10)
    assert beyond.status_code == 416


def _boxes(data, at=0, end=None):
    """Name → content of the boxes at one level of an MP4 file."""
    found, end = {}, len(data) if end is None else end
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        found[data[at + 4 : at + 8]] = data[at + 8 : at + size]
        at += size
    assert at == end, "boxes fill the file"
    return found


def _numbers(box):
    return [int.from_bytes(box[at : at + 4], "big") for at in range(0, len(box), 4)]


def test_each_video_plays_and_has_bytes_of_its_own(sim, api):
    """As far as structure shows it: every sample that the index names lies in the data."""
    ids = [api.new(return_last_frame=True) for _ in range(2)]
    sim.advance(400)
    tasks = [api.get(task_id).json()["result"] for task_id in ids]
    videos = [requests.get(task["video_url"], timeout=10).content for task in tasks]
    for task_id, video in zip(ids, videos, strict=True):
        file = _boxes(video)
        assert {b"ftyp", b"moov", b"mdat"} <= set(file)
        table = file[b"moov"]
        for name in (b"trak", b"mdia", b"minf", b"stbl"):
            table = _boxes(table)[name]
        stbl = _boxes(table)
        assert b"avc1" in stbl[b"stsd"]
        sizes = _numbers(stbl[b"stsz"])[3:]
        [offset] = _numbers(stbl[b"stco"])[2:]
        data = video.index(b"mdat") + 4
        assert len(sizes) == 36
        assert data <= offset
        assert offset + sum(sizes) <= data + len(file[b"mdat"])
        # Each sample is made of units of H.264, each with its length before it.
        for size in sizes:
            sample, at = video[offset : offset + size], 0
            while at < size:
                at += 4 + int.from_bytes(sample[at : at + 4], "big")
            assert at == size
            offset += size
        assert sim.task(task_id)["video_sha256"] == hashlib.sha256(video).hexdigest()
    assert videos[0] != videos[1]
    frames = [requests.get(task["last_frame_url"], timeout=10).content for task in tasks]
    assert frames[0] != frames[1]
    sim.configure(same_media=True)
    assert len({requests.get(task["video_url"], timeout=10).content for task in tasks}) == 1


def test_a_signed_url_lives_seven_days_and_a_get_returns_a_fresh_one(sim, api):
    task_id = api.new("[sim: seconds=1]")
    sim.advance(2)
    old = api.get(task_id).json()["result"]["video_url"]
    sim.advance(7 * 86_400)
    assert requests.get(old, timeout=10).status_code == 403
    fresh = api.get(task_id).json()["result"]["video_url"]
    assert requests.get(fresh, timeout=10).status_code == 200


# --- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "made"), [("drop_before", 0), ("drop_after", 1), ("lost", 1)])
def test_an_answer_gets_lost(sim, api, kind, made):
    sim.fault("submit", kind, times=1)
    with pytest.raises(requests.ConnectionError):
        api.submit()
    assert len(sim.tasks()) == made
    assert api.submit().json()["code"] == "200"
    assert [bool(s["task_id"]) for s in sim.submits()] == [bool(made), True]


def test_a_prompt_asks_for_its_own_fault_once(sim, api):
    text = "A cat [sim: submit=lost]"
    with pytest.raises(requests.ConnectionError):
        api.submit(text)
    assert api.submit(text).status_code == 200
    assert len(sim.tasks()) == 2
    task_id = api.new("A dog [sim: get=not_found*2]")
    assert [api.get(task_id).status_code for _ in range(3)] == [404, 404, 200]


def test_a_request_is_processed_late_though_its_client_has_gone(sim, api):
    sim.fault("submit", "delay_before", seconds=0.3, times=1)
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{api.base}/task",
            headers=api.headers,
            json={"content": [{"type": "text", "text": "late"}]},
            timeout=0.05,
        )
    assert sim.tasks() == []
    sim.wait(tasks=1)


def test_an_answer_comes_late_but_the_task_is_there_at_once(sim, api):
    sim.fault("submit", "delay_after", seconds=0.5, times=1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.submit)
        sim.wait(tasks=1)
        assert not answer.done()
        assert answer.result().json()["result"]["task_id"] == sim.tasks()[0]["task_id"]


@pytest.mark.parametrize(
    ("kind", "params", "status", "made"),
    [
        ("error_after", {}, 500, 1),
        ("error", {"code": "TASK_SUBMIT_FAILED"}, 500, 0),
        ("error", {"code": "INVALID_API_KEY"}, 401, 0),
        ("error", {"code": "INSUFFICIENT_CREDIT"}, 402, 0),
        ("bare", {}, 502, 0),
        ("bare", {"processed": True}, 502, 1),
        ("bare_after", {}, 503, 1),
        ("rate_limited", {"retry_after": 3}, 429, 0),
        ("service_busy", {}, 503, 0),
        ("concurrency", {"mode": "created_with_id"}, 429, 1),
        ("concurrency", {"mode": "created"}, 429, 1),
        ("concurrency", {"mode": "refused"}, 429, 0),
        ("redirect", {"status": 307}, 307, 0),
        ("null_result", {}, 200, 1),
        ("no_task_id", {}, 200, 1),
        ("cut_json", {}, 200, 1),
    ],
)
def test_a_submit_goes_wrong(sim, api, kind, params, status, made):
    sim.fault("submit", kind, times=1, **params)
    answer = api.submit()
    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == (
        str(params["retry_after"]) if "retry_after" in params else None
    )
    assert len(sim.tasks()) == made


def test_an_answer_breaks_off_before_its_length(sim, api):
    sim.fault("submit", "cut_json", connection=True, times=1)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        api.submit()
    assert len(sim.tasks()) == 1


def test_a_replica_lags_and_a_get_goes_backwards(sim, api):
    task_id = api.new("[sim: seconds=1]")
    sim.advance(2)
    sim.fault("get", "not_found", first=1)
    sim.fault("get", "backwards", times=1)
    assert api.get(task_id).status_code == 404
    assert api.get(task_id).json()["result"]["status"] == "pending"
    assert api.get(task_id).json()["result"]["status"] == "completed"


# --- what the admin API shows and does -------------------------------------------------------


def test_the_admin_api_shows_what_happened(sim, api):
    task_id = api.new("A cat", seed=5, metadata="kept", callback_url=None)
    api.submit(duration=3)
    sim.advance(400)
    (task,) = sim.tasks(api_key=sim.api_key, status="completed", text="cat")
    assert task == sim.task(task_id)
    assert task["body"]["metadata"] == "kept"
    assert (task["seed"], task["cost"], task["charged"]) == (5, "9.00", "9.00")
    assert task["headers"]["Content-Type"] == "application/json"
    assert sim.api_key not in str(sim.submits()[0]["headers"])
    counts = sim.requests(log=1)
    assert counts["endpoints"]["submit"]["outcomes"] == {"200": 1, "INVALID_PARAMETER": 1}
    assert counts["log"][0]["outcome"] == "INVALID_PARAMETER"
    assert sim.accounts()[0]["remaining"] == "9991.00"
    page = requests.get(f"{sim.url}/admin/", timeout=10)
    assert task_id in page.text
    assert sim.received("submit") == 2


def test_the_state_can_be_reached_in_its_own_thread(sim, api):
    task_id = api.new()
    assert sim.call(lambda world: world.tasks.find(task_id).work.duration) == 5
    with pytest.raises(ZeroDivisionError):
        sim.call(lambda world: 1 / 0)


def test_the_overview_escapes_what_it_shows(sim, api):
    api.new("<script>alert(1)</script>")
    assert "<script>" not in requests.get(f"{sim.url}/admin/", timeout=10).text


def test_foreign_tasks_can_be_injected_and_ended(sim, api):
    (old,) = sim.inject(
        seed=9, status="completed", created_at="2025-01-15T10:30:00Z", duration=8, ratio="1:1"
    )
    (failed,) = sim.inject(status="failed", error_code="PRIVACY_VIOLATION", age=60)
    (running,) = sim.inject(status="processing")
    assert [task["task_id"] for task in api.list()["data"]] == [running, failed, old]
    task = api.get(old).json()["result"]
    assert (task["seed"], task["ratio"], task["created_at"]) == (9, "1:1", "2025-01-15T10:30:00Z")
    assert task["updated_at"] == "2025-01-15T10:30:00Z"
    assert api.get(failed).json()["result"]["error_code"] == "PRIVACY_VIOLATION"
    assert sim.accounts()[0]["used"] == "0"
    sim.change(running, status="completed")
    assert api.get(running).json()["result"]["status"] == "completed"
    assert sim.accounts()[0]["used"] == "9.00"
    sim.forget(old)
    assert api.get(old).status_code == 404
    assert api.list()["total"] == 2
    with pytest.raises(simulator.AdminError, match="failed already"):
        sim.change(failed, status="completed")


def test_wrong_orders_are_refused_with_a_reason(sim):
    with pytest.raises(simulator.AdminError, match="speed"):
        sim.configure(speed=-1)
    with pytest.raises(simulator.AdminError, match="sped"):
        sim.configure(sped=1)
    with pytest.raises(simulator.AdminError, match="kind must be one of"):
        sim.fault("get", "meteor")
    with pytest.raises(simulator.AdminError, match="waited in vain"):
        sim.wait(tasks=1, timeout=0)


def test_credits_and_keys_change_at_run_time(sim, api):
    sim.change_account(sim.api_key, credits="5")
    assert api.submit().status_code == 402
    sim.change_account(sim.api_key, credits=100)
    assert api.submit().status_code == 200
    sim.change_account(sim.api_key, enabled=False)
    assert api.submit().status_code == 401
    sim.change_account(sim.api_key, enabled=True, max_concurrent=1)
    assert api.submit().json()["code"] == "CONCURRENCY_LIMIT_REACHED"


def test_an_account_may_have_other_keys_and_lose_its_first(sim, api):
    sim.configure(api_keys=[sim.api_key, "another account's"])
    sim.change_account(sim.api_key, keys=[sim.api_key, "second"])
    made = api.new()
    assert Api(sim, "second").get(made).status_code == 200
    sim.change_account(sim.api_key, keys=["second"])
    assert api.get(made).status_code == 401
    assert Api(sim, "second").get(made).status_code == 200
    assert Api(sim, "another account's").get(made).status_code == 404
    with pytest.raises(simulator.AdminError, match="open another account"):
        sim.change_account(sim.api_key, keys=["another account's"])
    assert sim.change_account("second", credits="7")["total"] == "7", "a key says whose it is"
    with pytest.raises(simulator.AdminError, match="no account 'nobody'; there are "):
        sim.change_account("nobody", credits=7)
    with pytest.raises(simulator.AdminError, match="no account 'nobody'"):
        sim.inject(api_key="nobody")


def test_a_reset_forgets_everything(sim, api):
    api.new()
    sim.fault("get", "drop_before")
    sim.configure(list_order="random")
    sim.reset()
    assert (sim.tasks(), sim.faults(), sim.uploads()) == ([], [], [])
    assert sim.config()["list_order"] == "random"
    sim.reset(speed=5)
    assert (sim.config()["list_order"], sim.config()["speed"]) == ("created_desc", 5)


def test_the_date_header_can_be_skewed(sim, api):
    def date():
        return parsedate_to_datetime(api.get("x").headers["Date"])

    before = date()
    sim.configure(date_skew=3600)
    assert 3590 < (date() - before).total_seconds() < 3660


def test_a_hundred_thousand_tasks_are_paged_in_no_time(sim, api):
    sim.inject(count=100_000, status="completed", age=3600)
    newest = api.new()
    page = api.list(page_size=100)
    assert page["total"] == 100_001
    assert page["data"][0]["task_id"] == newest
    last = api.list(page=1001, page_size=100)
    assert len(last["data"]) == 1
    assert api.list(status="completed", page=1000, page_size=100)["total"] == 100_000


# --- callbacks -------------------------------------------------------------------------------


@pytest.fixture
def listener():
    """A server that keeps what is posted to it."""
    got = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.put((self.path, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def test_a_callback_is_posted_when_a_task_ends_without_anybody_looking(sim, api, listener):
    url, got = listener
    sim.configure(speed=100)
    task_id = api.new("[sim: seconds=5]", callback_url=f"{url}/hook?id=1")
    path, body = got.get(timeout=10)
    assert path == "/hook?id=1"
    assert body == f'{{"task_id": "{task_id}", "status": "completed"}}'.encode()
    sim.wait(endpoint="callback", answered=1)
    assert sim.task(task_id)["callbacks"] == ["204"]


def test_a_callback_may_come_twice_or_not_at_all(sim, api, listener):
    url, got = listener
    sim.fault("callback", "duplicate", times=1)
    sim.fault("callback", "drop_before", times=1)
    for _ in range(2):
        task_id = api.new(callback_url=url)
        sim.change(task_id, status="failed")
        sim.wait(endpoint="callback", answered=1)
    sim.wait(endpoint="callback", answered=2)
    assert got.qsize() == 2


# --- alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_alone_and_stops_cleanly(number):
    command = [sys.executable, "-W", "error", "-m", "simulator", "--port", "0"]
    options = ["--api-key", "k", "--speed", "50", "--credits", "20.5", "--set", "list_order=random"]
    with subprocess.Popen(
        command + options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    ) as process:
        url = re.search(r"http://\S+", process.stdout.readline()).group()
        admin = simulator.Admin(url)
        assert admin.config()["list_order"] == "random"
        answer = requests.get(f"{url}/api/v1/video/balance", headers={"X-API-Key": "k"}, timeout=10)
        assert answer.json()["result"]["total_credits"] == 20.5
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_wrong_options_are_refused(capsys):
    assert simulator.cli_main(["--speed", "-3"]) == 2
    assert "speed" in capsys.readouterr().err


def test_a_taken_port_is_said_plainly(sim, capsys):
    port = urlsplit(sim.url).port
    assert simulator.cli_main(["--port", str(port)]) == 1
    assert "cannot listen" in capsys.readouterr().err


def test_storage_is_named_by_the_host_that_was_called(sim, api):
    where = urlsplit(sim.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.request(
        "POST",
        "/api/v1/video/upload/presign?filename=a.png&content_type=image/png",
        headers={"X-API-Key": sim.api_key, "Host": f"simulator.internal:{where.port}"},
    )
    answer = connection.getresponse().read().decode()
    connection.close()
    port = urlsplit(sim.storage_url).port
    assert f"http://simulator.internal:{port}/" in answer
