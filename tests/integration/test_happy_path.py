"""One generation, step by step, without Celery."""

from decimal import Decimal

import simulator
from models.lifecycle import Status


def test_a_text_generation_from_enqueue_to_its_video(steps, sim: simulator.Simulator):
    generation_id = steps.enqueue(metadata={"order": 7})

    view = steps.until_ended(generation_id)

    assert view.status is Status.COMPLETED
    assert view.credit_cost == Decimal(9)
    assert view.metadata == {"order": 7}
    assert view.video_url
    assert steps.history(generation_id)[:4] == ["accept", "admit", "intend", "submit"]
    assert steps.history(generation_id)[-1] == "complete"
    [task] = sim.tasks()
    assert task["task_id"] == view.remote_task_id
