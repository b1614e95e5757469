"""Archives in a folder and on S3: what is there is whole, and what is wrong has its name.

S3 is a real server's word for it (moto's), over HTTP, reached by the environment as in production.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import ROOT
from tests.integration.test_archive_stage import Archiving
from worker.archive import StorageError, Store, open_store

SMALL = b"a small video" * 1_000
LARGE = os.urandom(1024) * 12 * 1024  # more than one part
OWNER = "3f0c1f52-1c59-4b5e-9c53-3a8f0f1c8b11.video"


def opened(url: str) -> Store:
    store = open_store(url, connect_timeout=2.0, read_timeout=5.0)
    assert store is not None
    return store


def name_of(data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"{digest[:2]}/{digest}.mp4"


def keep(store: Store, data: bytes, *, lease: int = 1) -> str:
    with store.part(OWNER, lease) as part:
        for at in range(0, len(data), 700_000):
            part.write(data[at : at + 700_000])
        return part.keep(name_of(data), size=len(data))


# --- S3 -----------------------------------------------------------------------------------------


class Bucket:
    """A bucket, and what an administrator sees of it."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def objects(self) -> dict[str, bytes]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {one["Key"]: self.read(one["Key"]) for one in found}

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def uploads(self) -> list[Any]:
        return self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A server that speaks S3."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


_names = iter(range(1000))


@pytest.fixture
def bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    boto3, s3fs = pytest.importorskip("boto3"), pytest.importorskip("s3fs")
    host, port = s3.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    name = f"videos-{next(_names)}"
    client.create_bucket(Bucket=name)
    yield Bucket(client, name)
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["one request", "parts"])
@pytest.mark.parametrize("folder", ["", "/made/here"])
def test_a_file_becomes_an_object_with_its_bytes(bucket, data, folder):
    uri = keep(opened(f"s3://{bucket.name}{folder}"), data)
    key = f"{folder}/{name_of(data)}".strip("/")
    assert uri == f"s3://{bucket.name}/{key}"
    assert bucket.objects() == {key: data}
    assert bucket.uploads() == []


def test_the_same_bytes_are_uploaded_once(bucket):
    store = opened(f"s3://{bucket.name}")
    uri = keep(store, SMALL)
    [before] = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    time.sleep(1.1)  # stamps of objects have whole seconds
    assert keep(store, SMALL, lease=2) == uri
    [after] = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    assert before["LastModified"] == after["LastModified"]


def test_an_object_of_another_size_is_replaced(bucket):
    bucket.client.put_object(Bucket=bucket.name, Key=name_of(SMALL), Body=b"half")
    keep(opened(f"s3://{bucket.name}"), SMALL)
    assert bucket.objects() == {name_of(SMALL): SMALL}


def test_what_is_not_kept_is_no_object(bucket):
    store = opened(f"s3://{bucket.name}")
    with store.part(OWNER, 1) as part:
        part.write(SMALL)
    assert bucket.objects() == {}


class Breaking(io.BytesIO):
    """Reading it fails after the first block."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(5, "the disk is gone")
        return super().read(size)


@pytest.mark.parametrize("size", [9_000_000, 100], ids=["in parts", "before the only request"])
def test_an_upload_that_breaks_off_makes_no_object(bucket, size):
    store = opened(f"s3://{bucket.name}")
    with store.part(OWNER, 1) as part:
        part.write(SMALL)
        part.file = Breaking(b"x" * size)
        with pytest.raises(StorageError, match=r"OSError EIO: .*the disk is gone"):
            part.keep(name_of(SMALL), size=len(SMALL))
    del part
    assert bucket.objects() == {}
    assert bucket.uploads() == [], "nor parts that nobody sees and somebody pays for"


class NotOursError(Exception):
    """Somebody else has the lease."""


def test_a_long_upload_shows_that_it_lives_and_ends_with_its_lease(bucket):
    store = opened(f"s3://{bucket.name}")
    calls = []

    def alive():
        calls.append(len(calls))
        if len(calls) == 2:
            raise NotOursError

    with store.part(OWNER, 1) as part:
        part.write(LARGE)
        with pytest.raises(NotOursError):
            part.keep(name_of(LARGE), size=len(LARGE), alive=alive)
    assert calls == [0, 1], "once for each block"
    assert bucket.objects() == {}
    assert bucket.uploads() == []


def test_unfinished_uploads_of_the_dead_are_swept_and_others_left(bucket):
    store = opened(f"s3://{bucket.name}/made")
    for key in ("made/ab/abc.mp4", "elsewhere/x"):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    # The stand-in says of each that it was begun in 2010.
    assert store.sweep(40 * 365 * 86_400) == 0, "it may still be at work"
    assert store.sweep(86_400) == 1
    assert [one["Key"] for one in bucket.uploads()] == ["elsewhere/x"]


def test_a_probe_leaves_nothing(bucket):
    assert opened(f"s3://{bucket.name}/made").probe()
    assert bucket.objects() == {}


def test_a_bucket_that_is_not_there_is_named(bucket):
    store = opened("s3://no-such-bucket-anywhere")
    for ask in (store.probe, lambda: keep(store, SMALL)):
        with pytest.raises(StorageError, match=r"FileNotFoundError: .*bucket") as caught:
            ask()
        assert caught.value.refused


@pytest.fixture
def looker(s3: Any, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a user whose policy forbids writing, and a server that minds policies from now on."""
    boto3 = pytest.importorskip("boto3")
    with_client = boto3.client("iam")
    with_client.create_user(UserName="looker")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"},
        ],
    }
    with_client.put_user_policy(
        UserName="looker", PolicyName="look", PolicyDocument=json.dumps(policy)
    )
    made = with_client.create_access_key(UserName="looker")["AccessKey"]
    with_client.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])


def test_a_refused_write_is_named(bucket, looker):
    import requests

    url = os.environ["AWS_ENDPOINT_URL"]
    requests.post(f"{url}/moto-api/reset-auth", data="0", timeout=5)
    store = opened(f"s3://{bucket.name}")
    try:
        with pytest.raises(StorageError, match="PermissionError") as caught:
            keep(store, SMALL)
        assert caught.value.refused
        with pytest.raises(StorageError, match="PermissionError"):
            store.probe()
    finally:
        requests.post(f"{url}/moto-api/reset-auth", data="inf", timeout=5)
    assert "testing-secret" not in str(caught.value)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_storage_that_does_not_answer_is_named_and_may_come_back(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    store = opened(f"s3://{bucket.name}")
    with pytest.raises(StorageError, match="EndpointConnectionError") as caught:
        keep(store, SMALL)
    assert not caught.value.refused


def test_missing_credentials_are_named(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"NoCredentialsError|PermissionError") as caught:
        keep(opened(f"s3://{bucket.name}"), SMALL)
    assert caught.value.refused


def test_a_generations_video_lands_in_a_bucket(bucket, make_runtime, sim, tmp_path):
    """The whole way, with a bucket that is missing at first."""
    rt = make_runtime(archive_url="s3://not-made-yet/made")
    lab = Archiving(rt, tmp_path, sim)
    generation_id = lab.completed(return_last_frame=True)
    assert lab.store() == 2
    for one in lab.artifacts(generation_id).values():
        assert one.error.startswith("storage: FileNotFoundError")
    fetched = sim.received("cdn")
    lab.due_now()
    lab.store()
    assert sim.received("cdn") == fetched, "nothing is downloaded while the bucket is missing"
    bucket.client.create_bucket(Bucket="not-made-yet")
    lab.due_now()
    lab.store()
    made = Bucket(bucket.client, "not-made-yet").objects()
    view = lab.get(generation_id)
    keys = [uri.removeprefix("s3://not-made-yet/") for uri in (view.video_uri, view.last_frame_uri)]
    assert set(made) == set(keys)
    task = sim.task(view.remote_task_id)
    assert hashlib.sha256(made[keys[0]]).hexdigest() == task["video_sha256"]


# --- a folder -----------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_file_shows_only_when_it_is_whole(tmp_path):
    store = opened(tmp_path.as_uri())
    final = tmp_path / name_of(SMALL)
    with store.part(OWNER, 1) as part:
        part.write(SMALL[:5])
        assert not final.exists()
        part.write(SMALL[5:])
        assert part.keep(name_of(SMALL), size=len(SMALL)) == final.as_uri()
    assert files(tmp_path) == [final]
    assert final.read_bytes() == SMALL


def test_less_than_was_counted_is_not_kept(tmp_path):
    with opened(tmp_path.as_uri()).part(OWNER, 1) as part:
        part.write(b"half")
        with pytest.raises(StorageError, match="not the 8 bytes"):
            part.keep("ab/x.mp4", size=8)
    assert files(tmp_path) == []


def test_a_torn_file_under_a_final_name_is_replaced(tmp_path):
    final = tmp_path / name_of(SMALL)
    final.parent.mkdir()
    final.write_bytes(b"half")
    keep(opened(tmp_path.as_uri()), SMALL)
    assert final.read_bytes() == SMALL


def test_who_has_lost_its_lease_can_not_keep(tmp_path):
    store = opened(tmp_path.as_uri())
    with store.part(OWNER, 1) as late:
        late.write(SMALL)
        keep(store, SMALL, lease=2)
        final = tmp_path / name_of(SMALL)
        made = final.stat().st_ino
        # It finds the same bytes there, or nothing to rename: never a second file.
        late.keep(name_of(SMALL), size=len(SMALL))
        assert final.stat().st_ino == made
        with pytest.raises(StorageError, match="ENOENT"):
            late.keep("ab/other.mp4", size=len(SMALL))
    assert files(tmp_path) == [final]


def test_who_comes_late_takes_nothing_from_whoever_has_the_lease_now(tmp_path):
    store = opened(tmp_path.as_uri())
    with store.part(OWNER, 10) as part:
        part.write(SMALL)
        with store.part(OWNER, 9) as late:
            late.write(SMALL[:3])
        part.keep(name_of(SMALL), size=len(SMALL))
    assert files(tmp_path) == [tmp_path / name_of(SMALL)]


def test_a_new_folder_is_on_the_disk_before_its_file_is_told(tmp_path, monkeypatch):
    """What a power cut would forget: each folder in which a name is new has to be synced."""
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    keep(opened(tmp_path.as_uri()), SMALL)
    folder = (tmp_path / name_of(SMALL)).parent
    assert synced[1:] == [folder, tmp_path]


def test_leavings_are_swept_by_their_age(tmp_path):
    store = opened(tmp_path.as_uri())
    assert store.sweep(0) == 0, "before anything was stored"
    keep(store, SMALL)
    left = tmp_path / ".incoming" / "somebody.video.3.part"
    left.write_bytes(b"half")
    assert store.sweep(3600) == 0
    os.utime(left, (time.time() - 4000,) * 2)
    assert store.sweep(3600) == 1
    assert files(tmp_path) == [tmp_path / name_of(SMALL)]


def test_a_probe_of_a_folder_leaves_nothing(tmp_path):
    assert opened(tmp_path.as_uri()).probe()
    assert files(tmp_path) == []
    with pytest.raises(StorageError, match="FileNotFoundError") as caught:
        opened((tmp_path / "nowhere").as_uri()).probe()
    assert caught.value.refused
    assert not (tmp_path / "nowhere").exists(), "where a disk is not mounted nothing is made"


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from worker.archive import StorageError, open_store
folder = Path(sys.argv[1])
store = open_store(folder.as_uri(), connect_timeout=1, read_timeout=1)
try:
    with store.part("owner.video", 1) as part:
        for _ in range(100):
            part.write(b"x" * 10_000)
except StorageError as error:
    print(error)
print([path.name for path in folder.rglob("*") if path.is_file()], store.probe())
"""


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    """A real one: a file system of 200 kB, in a namespace of its own."""
    mount = 'mount -t tmpfs -o size=200k full "$0" && exec "$@"'
    script = ["unshare", "-Urm", "sh", "-c", mount, str(tmp_path)]
    try:
        may = subprocess.run([*script, "true"], capture_output=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `unshare` here")
    if may.returncode:
        pytest.skip("mounting in a namespace of one's own is not allowed here")
    ran = subprocess.run(
        [*script, sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    said, left = ran.stdout.splitlines()
    assert said.startswith("OSError ENOSPC: [Errno 28] No space left on device")
    assert left == "[] True", "and there is room again"
