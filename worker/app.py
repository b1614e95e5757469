"""The Celery app: `celery -A worker.app worker` and `worker.app:app`."""

from celery import Celery

from worker import signals
from worker.bootstep import DispatcherStep

app = Celery(
    "seedance",
    include=["worker.tasks"],
    task_cls="worker.task_request:Task",
    events="worker.event_sender:Events",
)
app.config_from_object("worker.celeryconfig")
app.steps["worker"].add(DispatcherStep)
signals.connect()
