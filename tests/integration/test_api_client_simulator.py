"""The client against the stand-in for the provider: whole workflows, and its faults."""

import hashlib
import io
import logging
from collections.abc import Iterator
from decimal import Decimal

import pytest

import simulator
from api_client import (
    ApiError,
    CancelNotAllowed,
    ClientConfig,
    ConcurrencyLimit,
    ContentItem,
    ContentRefused,
    Disposition,
    GenerationRequest,
    InsufficientCredit,
    InvalidApiKey,
    Presigned,
    SeedanceClient,
    StorageRefused,
    TaskNotFound,
    estimate_cost,
)

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def server() -> Iterator[simulator.Simulator]:
    with simulator.serve() as running:
        yield running


@pytest.fixture
def sim(server) -> simulator.Simulator:
    server.reset(speed=1000)
    return server


def connect(sim, **fields) -> SeedanceClient:
    config = ClientConfig(**{"api_key": sim.api_key, "base_url": sim.url, **fields})
    return SeedanceClient(config, sleep=lambda seconds: None, uniform=lambda low, high: low)


@pytest.fixture
def client(sim) -> Iterator[SeedanceClient]:
    with connect(sim) as one:
        yield one


def request(text: str = "A cat under cherry blossoms", **fields) -> GenerationRequest:
    return GenerationRequest(content=[ContentItem(type="text", text=text)], **fields)


def posted(sim) -> int:
    return len(sim.submits())


def test_from_text_to_video(sim, client):
    asked = request(duration=8, seed=7, ratio="21:9", return_last_frame=True)
    submitted = client.submit(asked)
    assert submitted.status == "pending"
    assert submitted.credit_cost == estimate_cost(asked) == Decimal("14.4")
    task = client.wait(submitted.task_id)
    assert task.status == "completed"
    assert (task.seed, task.ratio, task.duration) == (7, "21:9", 8)
    assert task.video_url
    assert task.last_frame_url
    assert task.credit_cost == Decimal("14.4")
    assert task.created_at <= task.updated_at
    assert task.unread_fields == {}
    balance = client.balance()
    assert balance.total_credits - balance.used_credits == balance.remain_credits
    assert balance.used_credits == Decimal("14.4")


def test_from_image_to_video(sim, client, tmp_path):
    file = tmp_path / "scene.png"
    file.write_bytes(PNG)
    uploaded = client.upload(file)
    assert uploaded.sha256 == hashlib.sha256(PNG).hexdigest()
    (stored,) = sim.uploads()
    assert (stored["size"], stored["sha256"]) == (len(PNG), uploaded.sha256)
    image = ContentItem(type="image_url", image_url=uploaded.file_path)
    task = client.wait(client.submit(GenerationRequest(content=[image])).task_id)
    assert task.status == "completed"


def test_an_expired_url_is_renewed(sim, client):
    sim.configure(presign_seconds=0)
    with pytest.raises(StorageRefused):
        client.upload(io.BytesIO(PNG), filename="a.png")
    assert len(sim.uploads()) == 2


def test_storage_refuses_another_type_and_logs_no_signature(sim, client, caplog):
    caplog.set_level(logging.DEBUG)
    presigned = client.presign("a.png", "image/png")
    with pytest.raises(StorageRefused) as caught:
        client.put(presigned, io.BytesIO(PNG), size=len(PNG), content_type="image/webp")
    assert caught.value.http_status == 403
    query = presigned.presigned_url.partition("?")[2]
    assert query
    logged = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith("urllib3")
    )
    assert logged
    assert query not in logged + str(caught.value) + repr(presigned)


@pytest.mark.parametrize("items", ["object", "string", "mixed"])
@pytest.mark.parametrize(
    "order", ["created_desc", "created_asc", "updated_desc", "updated_asc", "random"]
)
def test_the_list_in_every_form_and_order(sim, client, items, order):
    sim.configure(speed=0, list_items=items, list_order=order)
    ids = {client.submit(request(seed=n)).task_id for n in range(7)}
    found = [task.task_id for task in client.iter_tasks(page_size=3)]
    assert len(found) == len(set(found))
    assert set(found) <= ids
    if order != "random":
        assert set(found) == ids
    page = client.list_tasks(2, 3)
    assert (page.total, page.page, page.page_size, len(page.data)) == (7, 2, 3, 3)
    assert page.unreadable == ()


def test_the_list_by_status(sim, client):
    sim.configure(speed=0)
    waiting = client.submit(request()).task_id
    ended = client.submit(request()).task_id
    sim.change(ended, status="failed", error_code="VIDEO_DOWNLOAD_FAILED")
    assert [task.task_id for task in client.iter_tasks("failed")] == [ended]
    assert [task.task_id for task in client.iter_tasks("pending")] == [waiting]


def test_a_drifting_list_shows_every_task_once(sim, client):
    sim.configure(speed=0)
    ids = {client.submit(request(seed=n)).task_id for n in range(20)}
    sim.configure(random_seed=1, drift_insert=0.5, drift_delete=0.2)
    found = [task.task_id for task in client.iter_tasks(page_size=4)]
    assert len(found) == len(set(found))
    assert ids <= set(found)


def test_cancel(sim, client):
    sim.configure(speed=0)
    task_id = client.submit(request()).task_id
    assert client.cancel(task_id).status == "cancelled"
    assert client.get(task_id).status == "cancelled"
    with pytest.raises(CancelNotAllowed):
        client.cancel(task_id)


@pytest.mark.parametrize("style", ["mapped", "ok200"])
def test_refusals_mean_the_same_whatever_the_http_status(sim, client, style):
    sim.configure(error_style=style, credits=1)
    with pytest.raises(InsufficientCredit) as caught:
        client.submit(request(duration=15))
    assert caught.value.disposition is Disposition.HOLD
    with pytest.raises(TaskNotFound):
        client.get("no-such-task")
    with connect(sim, api_key="another") as stranger, pytest.raises(InvalidApiKey) as caught:
        stranger.balance()
    assert caught.value.disposition is Disposition.HOLD
    before = posted(sim)
    with pytest.raises(ContentRefused) as caught:
        client.submit(request("[sim: refuse=COPYRIGHT_VIOLATION]"))
    assert caught.value.disposition is Disposition.PERMANENT
    assert posted(sim) == before + 1


@pytest.mark.parametrize("code", ["CONTENT_MODERATION_FAILED", "VIDEO_DOWNLOAD_FAILED"])
def test_a_task_that_failed_is_an_answer(client, code):
    task = client.wait(client.submit(request(f"[sim: fail={code}]")).task_id)
    assert (task.status, task.error_code) == ("failed", code)


def test_the_concurrency_limit(sim, client):
    sim.configure(speed=0, max_concurrent=0)
    queued = client.submit(request())
    assert client.get(queued.task_id).task_id == queued.task_id
    sim.configure(concurrency_mode="created")
    with pytest.raises(ConcurrencyLimit) as caught:
        client.submit(request())
    assert caught.value.disposition is Disposition.AMBIGUOUS
    assert caught.value.task_id is None
    assert posted(sim) == 2
    assert client.list_tasks().total == 2


@pytest.mark.parametrize(
    "kind",
    [
        "drop_before",
        "drop_after",
        "error",
        "error_after",
        "bare",
        "bare_after",
        "null_result",
        "no_task_id",
        "cut_json",
        "garbage",
    ],
)
def test_a_submit_in_doubt_is_never_repeated(sim, client, kind):
    sim.fault("submit", kind)
    with pytest.raises(ApiError) as caught:
        client.submit(request())
    assert caught.value.disposition is Disposition.AMBIGUOUS
    assert sim.received("submit") == 1


def test_a_submit_that_takes_too_long_is_in_doubt_and_its_task_exists(sim):
    sim.fault("submit", "delay_after", seconds=2)
    with connect(sim, read_timeout=0.2) as client:
        with pytest.raises(ApiError) as caught:
            client.submit(request())
        assert caught.value.disposition is Disposition.AMBIGUOUS
        assert client.list_tasks().total == 1


@pytest.mark.parametrize("kind", ["rate_limited", "service_busy"])
def test_a_submit_that_was_refused_is_repeated(sim, client, kind):
    sim.fault("submit", kind, times=2)
    assert client.submit(request()).task_id
    assert sim.received("submit") == 3
    assert client.list_tasks().total == 1


def test_a_redirect_is_not_followed(sim, client):
    sim.fault("submit", "redirect")
    with pytest.raises(ApiError) as caught:
        client.submit(request())
    assert caught.value.disposition is Disposition.AMBIGUOUS
    assert sim.received("submit") == 1


@pytest.mark.parametrize(
    "kind", ["drop_before", "drop_after", "error", "bare", "null_result", "cut_json", "garbage"]
)
@pytest.mark.parametrize("endpoint", ["get", "list", "cancel", "presign", "balance"])
def test_everything_else_is_repeated(sim, client, endpoint, kind):
    sim.configure(speed=0)
    task_id = client.submit(request()).task_id
    sim.fault(endpoint, kind, times=1)
    call = {
        "get": lambda: client.get(task_id),
        "list": client.list_tasks,
        "cancel": lambda: client.cancel(task_id),
        "presign": lambda: client.presign("a.png", "image/png"),
        "balance": client.balance,
    }[endpoint]
    if (endpoint, kind) == ("cancel", "drop_after"):
        # The lost one worked, so the second says that there is nothing to cancel: `get` tells.
        with pytest.raises(CancelNotAllowed) as caught:
            call()
        assert caught.value.disposition is Disposition.AMBIGUOUS
        assert client.get(task_id).status == "cancelled"
    elif endpoint == "cancel" and kind in ("null_result", "cut_json", "garbage"):
        with pytest.raises(CancelNotAllowed):
            call()
    else:
        call()
    assert sim.received(endpoint) >= 2


@pytest.mark.parametrize("kind", ["int_code", "unknown_fields"])
def test_a_success_may_look_a_little_different(sim, client, kind):
    sim.fault("*", kind)
    task_id = client.submit(request()).task_id
    assert client.get(task_id).task_id == task_id
    assert client.list_tasks().data[0].task_id == task_id


def test_an_unknown_status_is_not_terminal(sim, client):
    task_id = client.submit(request()).task_id
    sim.fault("get", "unknown_status", times=1)
    assert client.get(task_id).status == "post_processing"
    assert client.wait(task_id).status == "completed"


@pytest.mark.parametrize("echo", ["used", "given", "null", "minus_one", "string"])
def test_seeds_come_back_in_any_form(sim, client, echo):
    sim.configure(seed_echo=echo)
    task = client.get(client.submit(request(seed=123)).task_id)
    assert task.seed == {"null": None, "minus_one": -1}.get(echo, 123)


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "bare", "error"])
def test_an_upload_is_repeated(sim, client, kind):
    sim.fault("put", kind, times=1)
    uploaded = client.upload(io.BytesIO(PNG), filename="a.png")
    assert [one["sha256"] for one in sim.uploads()] == [uploaded.sha256]


def test_a_presigned_url_of_another_file_is_not_mixed_up(sim, client):
    first, second = (client.presign(name, "image/png") for name in ("a.png", "b.png"))
    assert isinstance(first, Presigned)
    assert first.file_path != second.file_path


@pytest.mark.parametrize("skew", [-90, 0, 90])
def test_the_date_header_tells_the_skew(sim, client, skew):
    sim.configure(date_skew=skew)
    first, second = client.balance().exchange, client.balance().exchange
    assert first.sent < first.received < second.sent < second.received
    assert -1 <= (second.date - first.date).total_seconds() <= 2
