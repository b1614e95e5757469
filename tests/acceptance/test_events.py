"""What workers tell of their tasks: every beginning and every end."""

import threading
import uuid
from collections import Counter

from tests.acceptance.conftest import Service, wait_for

TASKS = 400
KINDS = ("task-received", "task-started", "task-succeeded")


def test_no_event_is_lost_between_the_threads_of_a_worker(service: Service):
    worker = service.ready(service.worker("-c", "16"))
    seen: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wanted = {str(uuid.uuid4()): None for _ in range(TASKS)}
    listening = threading.Event()
    with service.bare_celery() as app, app.connection() as connection:
        handlers = {
            kind: lambda event, kind=kind: seen[kind].update([event["uuid"]]) for kind in KINDS
        }
        handlers["worker-heartbeat"] = lambda event: listening.set()
        receiver = app.events.Receiver(connection, handlers=handlers)
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        try:
            assert listening.wait(60)
            for task_id in wanted:
                # Of no generation: its lease holds for nothing, and it does nothing.
                app.send_task(
                    "seedance.poll",
                    args=[str(uuid.uuid4()), 1],
                    task_id=task_id,
                    queue="seedance.stages",
                )
            for kind in KINDS:
                wait_for(lambda kind=kind: wanted.keys() <= seen[kind].keys(), f"all {kind}")
            # What is gathered when a worker stops is told as well.
            last = str(uuid.uuid4())
            app.send_task(
                "seedance.poll",
                args=[str(uuid.uuid4()), 1],
                task_id=last,
                queue="seedance.stages",
            )
            wait_for(lambda: last in seen["task-received"], "the last one is received")
            assert worker.terminate(60) == 0
            wait_for(lambda: last in seen["task-succeeded"], "its end is told")
        finally:
            receiver.should_stop = True
            thread.join()
