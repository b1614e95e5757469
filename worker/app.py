"""The Celery app: `celery -A worker.app worker` and `worker.app:app`."""

from celery import Celery
from celery.signals import setup_logging

from worker.bootstep import DispatcherStep
from worker.logs import configure_celery

app = Celery("seedance", include=["worker.tasks"])
app.config_from_object("worker.celeryconfig")
app.steps["worker"].add(DispatcherStep)
setup_logging.connect(configure_celery)
