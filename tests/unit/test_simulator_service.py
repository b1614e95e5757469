"""The provider's calls without HTTP, on a clock that the test turns."""

import json
from decimal import Decimal

import pytest

from simulator.clock import Clock
from simulator.config import Config
from simulator.effects import build
from simulator.service import Call, Service
from simulator.world import World

KEY = "sim-key"


class Provider:
    """A service on a clock of its own; calls return (HTTP status, envelope)."""

    def __init__(self, **settings):
        self.real = 1_800_000_000.0
        config = Config(random_seed=1, **settings)
        clock = Clock(config.speed, monotonic=lambda: self.real, wall=lambda: self.real)
        self.world = World(config, clock)
        self.service = Service(self.world)

    def __call__(self, endpoint, *, key=KEY, task_id=None, effect=None, body=None, **query):
        call = Call(endpoint, key, "http://storage", task_id=task_id)
        call.query = {name: str(value) for name, value in query.items()}
        call.body = json.dumps(body).encode() if body is not None else b""
        answer = self.service.answer(call, *([effect] if effect else []))
        return answer.status, json.loads(answer.body())

    def submit(self, text="A cat", **fields):
        body = {"content": [{"type": "text", "text": text}], **fields}
        return self("submit", body=body)

    def new(self, text="A cat", **fields):
        return self.submit(text, **fields)[1]["result"]["task_id"]

    def get(self, task_id):
        return self("get", task_id=task_id)[1]["result"]

    def status(self, task_id):
        return self.get(task_id)["status"]

    def balance(self):
        return self("balance")[1]["result"]

    def listed(self, **query):
        return [task["task_id"] for task in self("list", **query)[1]["result"]["data"]]


@pytest.fixture
def provider():
    return Provider()


def test_a_task_passes_through_the_documents_statuses_and_is_charged_at_its_end(provider):
    status, answer = provider.submit(duration=8)
    assert status == 200
    assert answer["code"] == "200"
    assert answer["message"] == "Success"
    assert {**answer["result"], "task_id": ""} == {
        "task_id": "",
        "status": "pending",
        "credit_cost": 14.4,
    }
    task_id, seen = answer["result"]["task_id"], []
    for _ in range(400):
        task = provider.get(task_id)
        if not seen or seen[-1] != task["status"]:
            seen.append(task["status"])
        assert provider.balance()["used_credits"] == (14.4 if seen[-1] == "completed" else 0)
        assert bool(task["video_url"]) == (task["status"] == "completed")
        provider.real += 1
    assert seen == ["pending", "queued", "processing", "completed"]


def test_the_task_object_has_exactly_the_documents_fields(provider):
    task = provider.get(provider.new(seed=7, return_last_frame=True))
    assert list(task) == [
        "task_id",
        "model",
        "status",
        "resolution",
        "ratio",
        "duration",
        "generate_audio",
        "seed",
        "video_url",
        "last_frame_url",
        "error_code",
        "error_message",
        "credit_cost",
        "created_at",
        "updated_at",
    ]
    assert task["seed"] == 7
    assert task["created_at"] == "2027-01-15T08:00:00Z"


@pytest.mark.parametrize("resolution", ["480p", "720p", "1080p"])
@pytest.mark.parametrize("duration", [4, 15])
def test_generation_takes_one_to_five_minutes(provider, resolution, duration):
    task_id = provider.new(resolution=resolution, duration=duration)
    provider.real += 59
    assert provider.status(task_id) == "processing"
    provider.real += 241
    assert provider.status(task_id) == "completed"


def test_stamps_are_those_of_the_moment_however_late_one_looks(provider):
    task_id = provider.new("[sim: pending=10, queued=10, processing=10]")
    provider.real += 1000
    assert provider.get(task_id)["updated_at"] == "2027-01-15T08:00:30Z"


def test_a_failed_task_is_a_successful_get_and_costs_nothing(provider):
    task_id = provider.new("[sim: seconds=1, fail=CONTENT_MODERATION_FAILED]")
    provider.real += 2
    task = provider.get(task_id)
    assert task["status"] == "failed"
    assert task["error_code"] == "CONTENT_MODERATION_FAILED"
    assert task["error_message"].startswith("Content moderation failed")
    assert task["credit_cost"] == 0
    assert provider.balance() == {
        "total_credits": 10000,
        "used_credits": 0,
        "remain_credits": 10000,
    }


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "expired"])
def test_a_prompt_can_ask_for_each_end(provider, end):
    task_id = provider.new(f"[sim: seconds=1, end={end}]")
    provider.real += 2
    assert provider.status(task_id) == end


def test_a_prompt_can_ask_to_be_refused(provider):
    assert provider.submit("[sim: refuse=CONTENT_MODERATION_FAILED]")[0] == 400
    status, answer = provider.submit("[sim: refuse=COPYRIGHT_VIOLATION]")
    assert (status, answer["code"]) == (200, "COPYRIGHT_VIOLATION")
    assert "result" not in answer
    assert len(provider.world.tasks) == 0


def test_every_error_can_come_as_http_200():
    provider = Provider(error_style="ok200")
    assert provider.submit(duration=3) == (
        200,
        {"code": "INVALID_PARAMETER", "message": "Invalid parameter: duration must be 4-15"},
    )


def test_a_key_that_is_unknown_or_disabled_gets_401(provider):
    assert provider("balance", key="nobody")[0] == 401
    assert provider("balance", key=None)[1]["code"] == "INVALID_API_KEY"
    provider.world.configure({"api_keys": ["other"]})
    assert provider("balance")[0] == 401
    assert provider("balance", key="other")[0] == 200


def test_a_task_of_another_key_is_not_found():
    provider = Provider(api_keys=[KEY, "other"])
    task_id = provider.new()
    for endpoint in ("get", "cancel"):
        status, answer = provider(endpoint, key="other", task_id=task_id)
        assert (status, answer["code"]) == (404, "TASK_NOT_FOUND")
    assert provider("list", key="other")[1]["result"]["total"] == 0


def test_402_when_the_balance_is_less_than_this_submit():
    provider = Provider(credits=Decimal("14.40"))
    assert provider.submit(duration=8)[0] == 200
    # Post-pay: nothing has left the account yet.
    task_id = provider.new(duration=8)
    assert provider.submit(duration=9)[0] == 402
    provider.real += 600
    assert provider.status(task_id) == "completed"
    assert provider.balance()["remain_credits"] == -14.4
    assert provider.submit(duration=4)[1]["code"] == "INSUFFICIENT_CREDIT"


def test_402_can_count_what_is_pending():
    provider = Provider(credits=Decimal("14.40"), count_pending=True)
    first = provider.new(duration=8)
    assert provider.submit(duration=8)[0] == 402
    provider("cancel", task_id=first)
    assert provider.submit(duration=8)[0] == 200


@pytest.mark.parametrize(
    ("mode", "made", "told"),
    [("created_with_id", 2, True), ("created", 2, False), ("refused", 1, False)],
)
def test_the_concurrency_limit(mode, made, told):
    provider = Provider(max_concurrent=1, concurrency_mode=mode)
    first = provider.new("[sim: seconds=10]")
    status, answer = provider.submit("[sim: seconds=10]")
    assert (status, answer["code"]) == (429, "CONCURRENCY_LIMIT_REACHED")
    assert ("result" in answer) is told
    assert provider("list")[1]["result"]["total"] == made
    if made == 2:
        waiting = provider.listed()[0]
        provider.real += 9
        assert provider.status(waiting) == "queued"
        provider.real += 2
        assert provider.status(first) == "completed"
        assert provider.status(waiting) == "processing"
        provider.real += 10
        assert provider.status(waiting) == "completed"


def test_a_raised_limit_frees_those_that_wait():
    provider = Provider(max_concurrent=0)
    task_id = provider.submit("[sim: seconds=5]")[1]["result"]["task_id"]
    provider.real += 100
    assert provider.status(task_id) == "queued"
    provider.world.configure({"max_concurrent": 1})
    provider.status(task_id)
    provider.real += 6
    assert provider.status(task_id) == "completed"


def test_the_rate_limit_speaks_of_retry_after():
    provider = Provider(rate_limit=1, rate_burst=2)
    assert [provider("balance")[0] for _ in range(3)] == [200, 200, 429]
    answer = provider.service.answer(Call("balance", KEY, ""))
    assert answer.headers == {"Retry-After": "1"}
    provider.real += 1
    assert provider("balance")[0] == 200


def test_a_pending_task_is_cancelled_at_once(provider):
    task_id = provider.new("[sim: pending=5, cancel=completes]")
    assert provider("cancel", task_id=task_id)[1]["result"] == {
        "task_id": task_id,
        "status": "cancelled",
    }
    assert provider.status(task_id) == "cancelled"
    status, answer = provider("cancel", task_id=task_id)
    assert (status, answer["code"]) == (400, "TASK_CANCEL_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("mode", "answered", "then", "charged"),
    [
        ("works", "cancelled", "cancelled", 0),
        ("late", "processing", "cancelled", 0),
        ("completes", "cancelled", "completed", 9),
    ],
)
def test_cancelling_a_task_at_work_is_an_attempt(mode, answered, then, charged):
    provider = Provider(cancel_mode=mode)
    task_id = provider.new("[sim: pending=0, queued=0, processing=60]")
    provider.real += 10
    assert provider("cancel", task_id=task_id)[1]["result"]["status"] == answered
    provider.real += 60
    assert provider.status(task_id) == then
    assert provider.balance()["used_credits"] == charged


def test_a_late_cancel_loses_against_an_end_that_is_near():
    provider = Provider(cancel_mode="late", cancel_delay=5)
    task_id = provider.new("[sim: pending=0, queued=0, processing=10]")
    provider.real += 7
    provider("cancel", task_id=task_id)
    provider.real += 4
    assert provider.status(task_id) == "completed"


def test_the_list_is_newest_first_and_paged(provider):
    made = []
    for _ in range(25):
        made.append(provider.new())
        provider.real += 1
    assert provider.listed() == made[:4:-1]
    assert provider.listed(page=2) == made[4::-1]
    assert provider.listed(page=3) == []
    assert provider.listed(page=2, page_size=10) == made[14:4:-1]
    result = provider("list", page=2, page_size=10)[1]["result"]
    assert (result["total"], result["page"], result["page_size"]) == (25, 2, 10)


def test_the_list_filters_by_status(provider):
    quick = [provider.new("[sim: seconds=1]") for _ in range(3)]
    slow = [provider.new("[sim: pending=100]") for _ in range(3)]
    provider.real += 5
    assert provider.listed(status="completed") == quick[::-1]
    assert provider.listed(status="pending") == slow[::-1]
    assert provider.listed(status="failed") == []


@pytest.mark.parametrize("order", ["created_asc", "updated_desc", "updated_asc", "random"])
def test_the_list_has_other_orders(order):
    provider = Provider(list_order=order)
    first = provider.new("[sim: seconds=30]")
    second = provider.new("[sim: seconds=10]")
    third = provider.new("[sim: seconds=20]")
    provider.real += 60
    expected = {
        "created_asc": [first, second, third],
        "updated_desc": [first, third, second],
        "updated_asc": [second, third, first],
    }
    if order == "random":
        seen = {tuple(provider.listed()) for _ in range(30)}
        assert len(seen) > 1
        assert all(set(ids) == {first, second, third} for ids in seen)
    else:
        assert provider.listed() == expected[order]


def test_a_fresh_task_can_lag_in_the_list_and_by_its_id():
    provider = Provider(list_lag=15, get_lag=3)
    task_id = provider.new()
    assert provider.listed() == []
    assert provider("get", task_id=task_id)[0] == 404
    provider.real += 3
    assert provider("get", task_id=task_id)[0] == 200
    provider.real += 11.9
    assert provider("list", status="processing")[1]["result"]["total"] == 0
    provider.real += 0.1
    assert provider.listed() == [task_id]


def test_items_can_be_strings_or_both():
    provider = Provider(list_items="mixed")
    for _ in range(20):
        provider.new()
    kinds = {type(item) for item in provider("list")[1]["result"]["data"]}
    assert kinds == {str, dict}
    provider.world.configure({"list_items": "string"})
    item = provider("list")[1]["result"]["data"][0]
    assert json.loads(item)["status"] == "pending"


def test_pages_can_drift():
    provider = Provider(drift_insert=1.0)
    task_id = provider.new()
    assert provider.listed()[1:] == [task_id]
    assert provider("list")[1]["result"]["total"] == 3
    provider.world.configure({"drift_insert": 0, "drift_delete": 1.0})
    assert [provider("list")[1]["result"]["total"] for _ in range(3)] == [2, 1, 1]
    assert provider.listed() == [task_id]
    assert provider.balance()["used_credits"] == 0


@pytest.mark.parametrize(
    ("echo", "given", "shown"),
    [
        ("used", 7, 7),
        ("given", 7, 7),
        ("given", None, None),
        ("null", 7, None),
        ("minus_one", 7, -1),
        ("string", 7, "7"),
    ],
)
def test_seeds_come_back_in_many_ways(echo, given, shown):
    provider = Provider(seed_echo=echo)
    assert provider.get(provider.new(seed=given))["seed"] == shown


@pytest.mark.parametrize("given", [-1, None])
def test_a_seed_is_drawn_where_none_was_given(provider, given):
    one, two = (provider.get(provider.new(seed=given))["seed"] for _ in range(2))
    assert one != two
    assert min(one, two) >= 0


def test_stamps_can_be_skewed_and_finer():
    provider = Provider(stamp_skew=-90, truncate_stamps=False)
    assert provider.get(provider.new())["created_at"] == "2027-01-15T07:58:30.000000Z"


def test_speed_can_change_under_way(provider):
    task_id = provider.new("[sim: pending=0, queued=0, processing=100]")
    provider.real += 10
    provider.world.configure({"speed": 10})
    provider.real += 8
    assert provider.status(task_id) == "processing"
    provider.real += 2
    assert provider.status(task_id) == "completed"
    assert provider.get(task_id)["updated_at"] == "2027-01-15T08:00:19Z"


def test_a_wrong_setting_changes_nothing(provider):
    with pytest.raises(ValueError, match="list_order"):
        provider.world.configure({"speed": 5, "list_order": "sideways"})
    assert provider.world.config.speed == 1
    assert provider.world.clock.speed == 1


def test_a_seed_makes_runs_equal():
    def run():
        provider = Provider(fail_probability=0.5)
        ids = [provider.new() for _ in range(30)]
        provider.real += 1000
        return [(provider.get(i)["status"], provider.get(i)["seed"]) for i in ids]

    first = run()
    assert first == run()
    assert {status for status, _ in first} == {"completed", "failed"}


def test_a_fault_may_force_the_concurrency_answer(provider):
    body = {"content": [{"type": "text", "text": "x"}]}
    status, answer = provider("submit", body=body, effect=build("concurrency", {"mode": "created"}))
    assert (status, answer["code"]) == (429, "CONCURRENCY_LIMIT_REACHED")
    assert provider("list")[1]["result"]["total"] == 1


def test_a_submit_must_be_json(provider):
    call = Call("submit", KEY, "", body=b"{", content_type="application/json")
    assert provider.service.answer(call).envelope["code"] == "INVALID_PARAMETER"
    call = Call("submit", KEY, "", body=b"{}", content_type="text/plain")
    assert "Content-Type" in provider.service.answer(call).envelope["message"]
