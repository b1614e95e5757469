"""The archive stage on real servers: results stored once and whole, faults named, none lost."""

import hashlib
import itertools
import os
import resource
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

import simulator
from models import choosing, reads
from models.artifacts import Kind, reading, storing
from models.artifacts.reading import ArtifactView
from models.artifacts.storing import CAUGHT_UP, Key
from models.choosing import Choice
from models.lifecycle import Status
from tests.conftest import MakeRuntime
from tests.integration.conftest import Steps, text_request
from tests.waiting import wait_for
from worker.archive import Store
from worker.runtime import Runtime
from worker.side_work import SideClaim
from worker.stages import archive
from worker.upkeep import catch_up

PROBLEM = "ends at once [sim: seconds=1]"


class Archiving(Steps):
    """The service with an archive in a folder, stepped by hand."""

    def __init__(self, rt: Runtime, folder: Path, sim: simulator.Simulator) -> None:
        super().__init__(rt)
        self.folder = folder
        self.sim = sim

    def completed(self, **fields: Any) -> uuid.UUID:
        """A generation that has just completed; nothing of it is stored yet."""
        generation_id = self.enqueue(text_request(PROBLEM, **fields))
        assert self.until_ended(generation_id).status is Status.COMPLETED
        return generation_id

    def claim(self) -> list[tuple[Key, int]]:
        with self.rt.engine.begin() as conn:
            return storing.claim(conn, 100, self.rt.settings.lease)

    def store(self) -> int:
        """Work on everything that is due; returns how much that was."""
        claims = self.claim()
        for key, lease in claims:
            archive.run(self.rt, SideClaim(str(key), lease))
        return len(claims)

    def artifacts(self, generation_id: uuid.UUID) -> dict[Kind, ArtifactView]:
        with self.rt.engine.connect() as conn:
            return {one.kind: one for one in reading.of(conn, generation_id)}

    def video(self, generation_id: uuid.UUID) -> ArtifactView:
        return self.artifacts(generation_id)[Kind.VIDEO]

    def sql(self, statement: str, **values: Any) -> None:
        with self.rt.engine.begin() as conn:
            conn.execute(text(statement), values)

    def due_now(self) -> None:
        self.sql("UPDATE artifacts SET due_at = now() WHERE due_at IS NOT NULL")

    def older(self, **ago: str) -> None:
        """As if so much time had passed for every artifact: `made_at="2 days"`."""
        for column, interval in ago.items():
            self.sql(f"UPDATE artifacts SET {column} = {column} - interval '{interval}'")

    def files(self) -> list[Path]:
        """What lies in the archive, unfinished things included."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def told(self, generation_id: uuid.UUID, event: str) -> list[dict[str, Any]]:
        with self.rt.engine.connect() as conn:
            events = reads.events(conn, generation_id)
        return [one.detail or {} for one in events if one.event == event]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "videos of mine"
    made.mkdir()
    return made


@pytest.fixture
def lab(make_runtime: MakeRuntime, folder: Path, sim: simulator.Simulator) -> Archiving:
    return Archiving(make_runtime(archive_url=folder.as_uri()), folder, sim)


def provided(sim: simulator.Simulator, view: reads.GenerationView) -> str:
    """The hash of a video, as the provider says it."""
    return sim.task(view.remote_task_id)["video_sha256"]


def test_video_and_last_frame_are_stored_as_the_provider_has_them(lab, sim):
    generation_id = lab.completed(return_last_frame=True)
    assert lab.store() == 2

    view, kept = lab.get(generation_id), lab.artifacts(generation_id)
    video, frame = kept[Kind.VIDEO], kept[Kind.LAST_FRAME]
    assert video.sha256 == provided(sim, view)
    assert (video.content_type, frame.content_type) == ("video/mp4", "image/jpeg")
    assert [video.uri, frame.uri] == [view.video_uri, view.last_frame_uri]
    for one, ending in ((video, ".mp4"), (frame, ".jpg")):
        path = lab.folder / one.sha256[:2] / f"{one.sha256}{ending}"
        assert one.uri == path.as_uri()
        assert one.bytes == path.stat().st_size
        assert one.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (one.due_at, one.error, one.lost_at) == (None, None, None)
    assert len(lab.files()) == 2, "nothing unfinished is left"
    archived = lab.told(generation_id, "archived")
    assert {one["kind"]: one["uri"] for one in archived} == {
        "video": video.uri,
        "last_frame": frame.uri,
    }
    assert "token" not in str(archived)
    assert lab.store() == 0
    assert sim.requests()["key_leaks"] == 0


def test_without_a_last_frame_only_the_video_is_wanted(lab):
    assert set(lab.artifacts(lab.completed())) == {Kind.VIDEO}


def test_only_what_completes_leaves_artifacts(lab):
    failed = lab.enqueue(text_request("a cat [sim: seconds=1, fail=VIDEO_DOWNLOAD_FAILED]"))
    assert lab.until_ended(failed).status is Status.FAILED
    assert lab.artifacts(failed) == {}


def test_without_an_archive_nothing_is_written(steps: Steps):
    generation_id = steps.enqueue(text_request(PROBLEM))
    steps.until_ended(generation_id)
    assert catch_up.run(steps.rt) == 0
    with steps.rt.engine.connect() as conn:
        assert reading.of(conn, generation_id) == []
    assert steps.get(generation_id).video_uri is None


def test_what_completed_before_the_archive_was_configured_is_stored_too(steps: Steps, lab):
    generation_id = steps.enqueue(text_request(PROBLEM, return_last_frame=True))
    steps.until_ended(generation_id)
    assert catch_up.run(lab.rt) == 2
    assert catch_up.run(lab.rt) == 0, "once"
    assert lab.store() == 2
    assert lab.get(generation_id).video_uri is not None


def test_what_the_provider_no_longer_has_is_not_asked_for(steps: Steps, lab):
    generation_id = steps.enqueue(text_request(PROBLEM))
    steps.until_ended(generation_id)
    lab.sql("UPDATE generations SET finished_at = now() - interval '169 hours'")
    assert catch_up.run(lab.rt) == 0


def test_a_pass_looks_at_what_completed_since_the_one_before(lab):
    """Not at all of a week, every five minutes."""
    lab.completed()
    lab.sql("DELETE FROM artifacts")
    assert catch_up.run(lab.rt) == 1
    lab.sql("DELETE FROM artifacts")
    lab.sql("UPDATE generations SET finished_at = now() - interval '1 hour'")
    assert catch_up.run(lab.rt) == 0
    lab.sql("UPDATE pulses SET at = now() - interval '50 minutes' WHERE name = :n", n=CAUGHT_UP)
    assert catch_up.run(lab.rt) == 1, "with what a long transaction may have kept back"
    lab.sql("DELETE FROM artifacts")
    lab.sql("DELETE FROM pulses")
    assert catch_up.run(lab.rt) == 1


def test_a_pass_goes_through_all_in_batches(lab, monkeypatch):
    """Also of those that completed in one moment, as the task list's pages have it."""
    monkeypatch.setattr(catch_up, "BATCH", 2)
    for _ in range(5):
        lab.completed(return_last_frame=True)
    lab.sql("DELETE FROM artifacts")
    lab.sql("UPDATE generations SET finished_at = (SELECT max(finished_at) FROM generations)")
    assert catch_up.run(lab.rt) == 10


def test_a_worker_without_an_archive_leaves_it_to_others(steps: Steps, lab):
    generation_id = lab.completed()
    [(key, lease)] = lab.claim()
    archive.run(steps.rt, SideClaim(str(key), lease))
    assert lab.video(generation_id).tries == 0
    lab.due_now()
    assert lab.store() == 1
    assert lab.video(generation_id).uri


def test_equal_bytes_are_stored_once(lab, sim):
    sim.configure(same_media=True)
    first, second = lab.completed(), lab.completed()
    assert lab.store() == 2
    assert lab.video(first).uri == lab.video(second).uri
    [path] = lab.files()
    made = path.stat().st_mtime_ns
    third = lab.completed()
    lab.store()
    assert lab.video(third).uri == path.as_uri()
    assert path.stat().st_mtime_ns == made, "not even written again"


def test_a_stale_or_repeated_message_does_nothing(lab, sim):
    lab.completed()
    [(key, lease)] = lab.claim()
    archive.run(lab.rt, SideClaim(str(key), lease - 1))
    assert sim.received("cdn") == 0
    archive.run(lab.rt, SideClaim(str(key), lease))
    archive.run(lab.rt, SideClaim(str(key), lease))
    assert sim.received("cdn") == 1
    assert len(lab.told(key.generation_id, "archived")) == 1


def test_a_lost_claim_is_claimed_again_and_its_late_holder_changes_nothing(lab):
    generation_id = lab.completed()
    [(key, old)] = lab.claim()
    lab.due_now()
    [(_, new)] = lab.claim()
    assert new == old + 1
    late = storing.Stored("file:///elsewhere", 1, "0" * 64, "video/mp4")
    for stored in (False, True):
        if stored:
            archive.run(lab.rt, SideClaim(str(key), new))
        kept = lab.video(generation_id)
        with lab.rt.engine.begin() as conn:
            assert not storing.put_off(conn, key, old, 60)
            assert storing.failed(conn, key, old, "late", seconds=1) is storing.Failed.STALE
            assert not storing.stored(conn, key, old, late)
        assert lab.video(generation_id) == kept
    assert kept.uri


class Slow:
    """An archive in which keeping a file takes until something has happened."""

    def __init__(self, store: Store, until: Callable[[Callable[[], None]], None]) -> None:
        self.store, self.until = store, until

    @contextmanager
    def part(self, owner: str, lease: int) -> Iterator[Any]:
        with self.store.part(owner, lease) as part:
            keep = part.keep

            def slowly(name: str, *, size: int, alive: Callable[[], None]) -> str:
                self.until(alive)
                return keep(name, size=size, alive=alive)

            part.keep = slowly
            yield part


def slow(make_runtime, folder, sim, until) -> Archiving:
    rt = make_runtime(archive_url=folder.as_uri(), lease=4, http_timeout=2, http_connect_timeout=1)
    return Archiving(replace(rt, archive=Slow(rt.archive, until)), folder, sim)


def test_the_lease_is_renewed_while_a_file_is_kept(make_runtime, folder, sim):
    def renewed(alive) -> None:
        [before] = leases()
        wait_for(lambda: alive() or leases() > [before])

    def leases() -> list[Any]:
        return [one.due_at for one in lab.artifacts(generation_id).values()]

    lab = slow(make_runtime, folder, sim, renewed)
    generation_id = lab.completed()
    lab.store()
    assert lab.video(generation_id).uri


def test_who_lost_its_lease_while_a_file_was_kept_ends_at_once(make_runtime, folder, sim):
    lab: Archiving

    def lose(alive) -> None:
        lab.due_now()
        lab.claim()
        wait_for(alive)  # raises when it asks

    lab = slow(make_runtime, folder, sim, lose)
    generation_id = lab.completed()
    lab.store()
    video = lab.video(generation_id)
    assert (video.uri, video.error) == (None, None)
    assert lab.files() == []


def test_what_a_dead_worker_left_behind_goes_with_the_next_try(lab):
    lab.completed()
    [(key, lease)] = lab.claim()
    left = lab.folder / ".incoming" / f"{key}.{lease}.part"
    left.parent.mkdir()
    left.write_bytes(b"half a video")
    lab.due_now()
    assert lab.store() == 1
    assert len(lab.files()) == 1
    assert not left.exists()


# --- addresses that have expired ----------------------------------------------------------------


def test_an_expired_address_is_renewed_by_a_get_of_the_task(lab, sim):
    generation_id = lab.completed(return_last_frame=True)
    before = lab.get(generation_id)
    submitted, got = len(sim.submits()), sim.received("get")
    sim.advance(8 * 86_400)
    assert lab.store() == 2
    after = lab.get(generation_id)
    assert after.video_uri
    assert after.last_frame_uri
    assert after.video_url != before.video_url, "the fresh address is kept"
    assert after.last_frame_url != before.last_frame_url
    assert 1 <= sim.received("get") - got <= 2
    assert len(sim.submits()) == submitted, "nothing is generated again"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refused_address_is_renewed_at_once(lab, sim, status):
    generation_id = lab.completed()
    got = sim.received("get")
    sim.fault("cdn", "error", code="AccessDenied", status=status, times=1)
    assert lab.store() == 1
    assert lab.video(generation_id).uri
    assert sim.received("get") == got + 1


def test_an_address_that_stays_refused_is_tried_again_later_and_not_in_a_loop(lab, sim):
    generation_id = lab.completed()
    got = sim.received("get")
    sim.fault("cdn", "error", code="AccessDenied", status=403)
    assert lab.store() == 1
    video = lab.video(generation_id)
    assert (video.uri, video.tries) == (None, 1)
    assert "HTTP 403" in video.error
    assert sim.received("get") == got + 1
    assert lab.store() == 0, "not due yet"
    sim.clear_faults()
    lab.due_now()
    lab.store()
    assert lab.video(generation_id).uri


def test_no_address_at_all_is_asked_for(lab, sim):
    generation_id = lab.completed()
    lab.sql("UPDATE generations SET video_url = NULL")
    lab.store()
    assert lab.video(generation_id).uri


def test_a_task_that_the_provider_has_forgotten_is_named(lab, sim):
    generation_id = lab.completed()
    sim.forget(lab.get(generation_id).remote_task_id)
    lab.store()
    assert lab.video(generation_id).error.startswith("provider: get: HTTP 404 TASK_NOT_FOUND")


# --- downloads that fail ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (("drop_before", {}), "RemoteDisconnected"),
        (("drop_after", {}), "RemoteDisconnected"),
        (("cut_json", {}), "IncompleteRead"),
        (("bare", {"status": 502}), "HTTP 502"),
        (("delay_after", {"seconds": 3}), "TimeoutError"),
        (("redirect", {"location": "http://127.0.0.1:9/"}), "NewConnectionError"),
    ],
    ids=["drop_before", "drop_after", "cut", "502", "slow", "redirect"],
)
def test_a_failing_download_is_named_repeated_and_never_generates_again(lab, sim, fault, named):
    generation_id = lab.completed()
    submitted = len(sim.submits())
    sim.fault("cdn", fault[0], times=1, **fault[1])
    lab.store()
    video = lab.video(generation_id)
    assert video.error.startswith("download: 127.0.0.1")
    assert named in video.error
    assert "token" not in video.error
    lab.due_now()
    lab.store()
    assert lab.video(generation_id).sha256 == provided(sim, lab.get(generation_id))
    assert len(sim.submits()) == submitted
    assert len(lab.files()) == 1


def test_more_than_is_allowed_is_not_read(make_runtime, folder, sim):
    lab = Archiving(
        make_runtime(archive_url=folder.as_uri(), archive_max_bytes=10_000), folder, sim
    )
    generation_id = lab.completed()
    lab.store()
    assert "SEEDANCE_ARCHIVE_MAX_BYTES" in lab.video(generation_id).error
    assert lab.files() == []


# --- an archive that fails ----------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows further: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_in_the_middle_leaves_nothing_and_is_named(lab):
    generation_id = lab.completed()
    with files_up_to(9_000):
        lab.store()
    video = lab.video(generation_id)
    assert video.error.startswith("storage: OSError EFBIG")
    assert lab.files() == []
    lab.due_now()
    lab.store()
    assert lab.video(generation_id).uri


def without_a_folder(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    return folder.mkdir


def a_file_instead_of_it(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    folder.touch()

    def mend() -> None:
        folder.unlink()
        folder.mkdir()

    return mend


def read_only(folder: Path) -> Callable[[], None]:
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    return lambda: folder.chmod(0o700)


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (without_a_folder, "FileNotFoundError ENOENT"),
        (a_file_instead_of_it, "NotADirectoryError ENOTDIR"),
        pytest.param(
            read_only,
            "PermissionError EACCES",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
)
def test_an_archive_out_of_order_is_named_and_used_again_when_it_is_mended(
    lab, sim, break_it, named
):
    generation_id = lab.completed()
    mend = break_it(lab.folder)
    lab.store()
    assert lab.video(generation_id).error.startswith(f"storage: {named}")
    fetched = sim.received("cdn")
    lab.due_now()
    lab.store()
    assert sim.received("cdn") == fetched, "it looks at the archive before it downloads again"
    mend()
    lab.due_now()
    lab.store()
    assert lab.video(generation_id).uri


# --- time ---------------------------------------------------------------------------------------


def listed(conn: Connection) -> list[uuid.UUID]:
    """What `seedance list --attention` shows."""
    return [view.id for view in choosing.newest(conn, Choice(attention=True), limit=10)]


def test_what_fails_for_a_day_asks_for_an_operator_once(lab, sim, caplog):
    generation_id = lab.completed()
    sim.fault("cdn", "bare", status=503)
    lab.store()
    assert lab.video(generation_id).attention_at is None
    lab.older(made_at="25 hours")
    for _ in range(2):
        lab.due_now()
        lab.store()
    video = lab.video(generation_id)
    assert video.attention_at is not None
    assert video.due_at is not None, "it is still tried"
    [told] = lab.told(generation_id, "attention")
    assert told["why"].startswith("its video can't be stored: download: ")
    assert [r.levelname for r in caplog.records if "attention" in r.message] == ["ERROR"]
    with lab.rt.engine.connect() as conn:
        assert listed(conn) == [generation_id]
        state = reading.unstored(conn)
    assert (state.failing, state.alarming, state.lost) == (1, 1, 0)
    assert "HTTP 503" in state.error

    sim.clear_faults()
    lab.due_now()
    lab.store()
    assert lab.video(generation_id).attention_at is None
    with lab.rt.engine.connect() as conn:
        assert listed(conn) == []


def test_what_the_provider_has_let_go_of_is_lost_and_says_why(lab, sim):
    generation_id = lab.completed()
    sim.forget(lab.get(generation_id).remote_task_id)
    lab.older(made_at="8 days", available_until="8 days")
    lab.store()
    video = lab.video(generation_id)
    assert video.lost_at is not None
    assert (video.due_at, video.uri, video.attention_at) == (None, None, None)
    assert lab.told(generation_id, "lost") == [{"kind": "video", "why": video.error}]
    assert lab.store() == 0
    assert lab.get(generation_id).status is Status.COMPLETED, "what ended stays ended"


def test_after_seven_days_it_is_tried_once_more_all_the_same(lab, sim):
    generation_id = lab.completed()
    lab.older(made_at="8 days", available_until="8 days")
    lab.store()
    assert lab.video(generation_id).uri


def test_pauses_between_tries_grow(lab, sim):
    generation_id = lab.completed()
    sim.fault("cdn", "bare", status=503)
    waits = []
    for _ in range(5):
        lab.due_now()
        lab.store()
        with lab.rt.engine.connect() as conn:
            waits.append(
                conn.execute(
                    text("SELECT extract(epoch FROM due_at - now()) FROM artifacts")
                ).scalar_one()
            )
    assert lab.video(generation_id).tries == 5
    for tries, wait in enumerate(waits):
        full = archive.BACKOFF_BASE * 2**tries
        assert full / 2 - 1 <= wait <= full
    assert archive.BACKOFF_CAP * 100 < 7 * 86_400


def test_what_workers_die_of_is_claimed_more_and_more_seldom(lab):
    lab.completed()
    lab.sql("UPDATE artifacts SET tries = 30")
    lab.claim()
    with lab.rt.engine.connect() as conn:
        seconds = conn.execute(
            text("SELECT extract(epoch FROM due_at - now()) FROM artifacts")
        ).scalar_one()
    assert 3500 < seconds <= 3600


def test_a_claim_of_many_goes_to_different_workers(lab):
    ids = [lab.completed() for _ in range(3)]
    with lab.rt.engine.begin() as one, lab.rt.engine.begin() as other:
        first = storing.claim(one, 2, 60)
        second = storing.claim(other, 2, 60)
    keys = [key for key, _ in itertools.chain(first, second)]
    assert sorted(str(key.generation_id) for key in keys) == sorted(map(str, ids))


def test_artifacts_outlive_their_generation(lab):
    generation_id = lab.completed()
    lab.sql("DELETE FROM generations")
    lab.store()
    video = lab.video(generation_id)
    assert "no longer kept" in video.error
