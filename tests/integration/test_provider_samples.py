"""The document's own samples against the simulator, with base URL and key filled in.

The samples poll every 5 and 8 seconds; they run with `time.sleep` divided by the simulator's speed,
so that they see a task's whole life, with their logic untouched.
"""

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib

import pytest
import requests

import simulator

SPEED = 100

IMAGE_TO_VIDEO = r'''
import requests
import time
API_BASE = "https://api.seedance2.movie"
API_KEY = "<your_api_key>"
HEADERS = {
    "X-API-Key": API_KEY,
    "Content-Type": "application/json",
}
def upload_file(file_path, file_name, content_type):
    """Step 1: Get presigned URL and upload file"""
    resp = requests.post(
        f"{API_BASE}/api/v1/video/upload/presign",
        headers=HEADERS,
        params={"filename": file_name, "content_type": content_type},
    )
    resp.raise_for_status()
    data = resp.json()["result"]
    # Upload file to presigned URL
    with open(file_path, "rb") as f:
        requests.put(
            data["presigned_url"],
            headers={"Content-Type": content_type},
            data=f,
        ).raise_for_status()
    print(f"Uploaded: {data['file_path']}")
    return data["file_path"]
def submit_task(file_path):
    """Step 2: Submit image-to-video task"""
    resp = requests.post(
        f"{API_BASE}/api/v1/video/task",
        headers=HEADERS,
        json={
            "model": "seedance-2.0",
            "content": [
                {"type": "image_url", "image_url": file_path},
                {"type": "text", "text": "The character slowly turns around, wind blowing through hair"},
            ],
            "resolution": "720p",
            "ratio": "16:9",
            "duration": 8,
        },
    )
    resp.raise_for_status()
    result = resp.json()["result"]
    print(f"Task submitted: {result['task_id']}")
    return result["task_id"]
def poll_task(task_id, interval=5, timeout=600):
    """Step 3: Poll task status"""
    elapsed = 0
    while elapsed < timeout:
        resp = requests.get(
            f"{API_BASE}/api/v1/video/task/{task_id}",
            headers=HEADERS,
        )
        task = resp.json()["result"]
        print(f"[{elapsed}s] Status: {task['status']}")
        if task["status"] == "completed":
            print(f"Video URL: {task['video_url']}")
            return task
        if task["status"] in ("failed", "cancelled", "expired"):
            print(f"Failed: {task.get('error_message', 'Unknown error')}")
            return task
        time.sleep(interval)
        elapsed += interval
    print("Polling timeout")
    return None
if __name__ == "__main__":
    path = upload_file("./character.png", "character.png", "image/png")
    task_id = submit_task(path)
    poll_task(task_id)
'''  # noqa: E501 verbatim

TEXT_TO_VIDEO = r"""
import requests
import time
API_BASE = "https://api.seedance2.movie"
HEADERS = {
    "X-API-Key": "<your_api_key>",
    "Content-Type": "application/json",
}
# Submit text-to-video task
resp = requests.post(
    f"{API_BASE}/api/v1/video/task",
    headers=HEADERS,
    json={
        "model": "seedance-2.0",
        "content": [
            {"type": "text", "text": "A spaceship gliding past Saturn's rings, epic cinematic shot"}
        ],
        "resolution": "720p",
        "ratio": "21:9",
        "duration": 10,
        "generate_audio": True,
    },
)
task_id = resp.json()["result"]["task_id"]
print(f"Task submitted: {task_id}")
# Poll until complete
while True:
    resp = requests.get(
        f"{API_BASE}/api/v1/video/task/{task_id}",
        headers=HEADERS,
    )
    task = resp.json()["result"]
    print(f"Status: {task['status']}")
    if task["status"] == "completed":
        print(f"Video URL: {task['video_url']}")
        break
    elif task["status"] in ("failed", "cancelled", "expired"):
        print(f"Error: {task.get('error_message')}")
        break
    time.sleep(8)
"""

CURL = r"""
# Step 1: Get presigned upload URL
curl -X POST "https://api.seedance2.movie/api/v1/video/upload/presign?filename=scene.png&content_type=image/png" \
-H "X-API-Key: <your_api_key>"
# Step 2: Upload file (use presigned_url from step 1)
curl -X PUT "<presigned_url>" \
-H "Content-Type: image/png" \
--data-binary @./scene.png
# Step 3: Submit generation task (use file_path from step 1)
curl -X POST "https://api.seedance2.movie/api/v1/video/task" \
-H "X-API-Key: <your_api_key>" \
-H "Content-Type: application/json" \
-d '{
"content": [
{"type": "image_url", "image_url": "<file_path>"},
{"type": "text", "text": "The scene comes alive, flowers blooming"}
],
"duration": 8,
"ratio": "16:9"
}'
# Step 4: Query task status (use task_id from step 3)
curl "https://api.seedance2.movie/api/v1/video/task/<task_id>" \
-H "X-API-Key: <your_api_key>"
"""  # noqa: E501 verbatim

RUNNER = """
import runpy, sys, time
sleep, speed = time.sleep, float(sys.argv[2])
time.sleep = lambda seconds: sleep(seconds / speed)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def sim():
    with simulator.serve(simulator.Config(speed=SPEED)) as running:
        yield running


def png():
    """A red picture of 8 × 8 points."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = (b"\x00" + b"\xff\x00\x00" * 8) * 8
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pointed_at(sim, sample):
    return sample.replace("https://api.seedance2.movie", sim.url).replace(
        "<your_api_key>", sim.api_key
    )


def run_python(sim, sample, folder):
    (folder / "sample.py").write_text(pointed_at(sim, sample))
    (folder / "run.py").write_text(RUNNER)
    done = subprocess.run(
        [sys.executable, "run.py", "sample.py", str(SPEED)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_image_to_video(sim, tmp_path):
    (tmp_path / "character.png").write_bytes(png())
    printed = run_python(sim, IMAGE_TO_VIDEO, tmp_path)
    assert re.search(r"Uploaded: api/uploads/1/[0-9a-f]+_character\.png", printed)
    assert "[0s] Status: pending" in printed
    assert "Status: processing" in printed
    assert "Status: completed" in printed
    url = re.search(r"Video URL: (\S+)", printed).group(1)
    assert requests.get(url, timeout=10).content[4:8] == b"ftyp"
    (task,) = sim.tasks()
    assert (task["status"], task["charged"]) == ("completed", "14.40")
    assert sim.requests()["key_leaks"] == 0


def test_text_to_video(sim, tmp_path):
    printed = run_python(sim, TEXT_TO_VIDEO, tmp_path)
    assert "Status: pending" in printed
    assert re.search(r"Video URL: (\S+)", printed)
    (task,) = sim.tasks()
    assert (task["body"]["ratio"], task["charged"]) == ("21:9", "18.00")


def test_text_to_video_that_fails(sim, tmp_path):
    prompt = "A spaceship [sim: fail=CONTENT_MODERATION_FAILED]"
    sample = TEXT_TO_VIDEO.replace("A spaceship", prompt)
    assert sample != TEXT_TO_VIDEO
    assert "Error: Content moderation failed" in run_python(sim, sample, tmp_path)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on the PATH")
def test_complete_flow_with_curl(sim, tmp_path):
    (tmp_path / "scene.png").write_bytes(png())
    presign, put, submit, query = re.split(r"^# Step .*\n", CURL, flags=re.MULTILINE)[1:]
    found = {}

    def curl(step):
        command = pointed_at(sim, step)
        for name, value in found.items():
            command = command.replace(f"<{name}>", str(value))
        assert "<" not in command
        done = subprocess.run(
            [*shlex.split(command.replace("\\\n", " ")), "--silent", "--show-error", "--fail"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found.update(json.loads(curl(presign))["result"].items())
    assert curl(put) == ""
    result = json.loads(curl(submit))["result"]
    assert (result["status"], result["credit_cost"]) == ("pending", 14.4)
    found["task_id"] = result["task_id"]
    sim.wait(task_id=result["task_id"])
    task = json.loads(curl(query))["result"]
    assert task["status"] == "completed"
    assert requests.get(task["video_url"], timeout=10).status_code == 200
