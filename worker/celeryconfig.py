"""Celery's settings, each with its reason. Read when the app is first used, not at import of it.

Leases and fencing make a lost, late or repeated message harmless; these settings keep the
broker from doing worse than that.
"""

import os

from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from worker import broker_address
from worker.settings import Settings
from worker.upkeep import intervals
from worker.variables import SettingsError, secret

STAGE_QUEUE = "seedance.stages"
INTAKE_QUEUE = "celery"
UPKEEP_QUEUE = "seedance.upkeep"
SIDE_QUEUE = "seedance.side"


def _setting(name: str) -> float:
    """One number, without asking for all the settings: beat needs no API key."""
    variable = f"SEEDANCE_{name.upper()}"
    given = os.environ.get(variable)
    try:
        return float(given) if given else float(Settings.model_fields[name].default)
    except ValueError:
        raise SettingsError(f"{variable} is {given!r}; write a number") from None


def _broker() -> str:
    """The broker's address, from the environment or a file, as the settings have it."""
    given = secret("SEEDANCE_BROKER_URL") or str(Settings.model_fields["broker_url"].default)
    try:
        return broker_address.normalise(given)
    except ValueError as error:
        raise SettingsError(f"SEEDANCE_BROKER_URL {error}") from None


_address = broker_address.read(_broker())
_amqp = _address.kind == "amqp"
broker_url = _address.url
if _address.ssl is not None:
    broker_use_ssl = _address.ssl

if broker_url.startswith(("redis://", "rediss://")):
    # An entry that is no message must not end the worker.
    broker_transport = "worker.transport:Transport"
elif _address.kind == "sentinel":
    # By the scheme, since kombu goes by it where it turns to the next sentinel.
    TRANSPORT_ALIASES["sentinel"] = "worker.transport:SentinelTransport"

# --- messages ---------------------------------------------------------------------------------
# JSON only: a pickle is a program, and the broker may be written to by others.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
# The row is the result; a result backend would be one more thing to lose.
task_ignore_result = True
result_backend = None
# A bare client's send_task lands in Celery's own default queue. Stages have theirs, so that a
# flood of new requests can't hold up what is under way.
task_default_queue = INTAKE_QUEUE
# In RabbitMQ they are quorum queues: replicated, and on disk before they are acknowledged.
_kind = {"x-queue-type": "quorum"} if _amqp else None
task_queues = [
    # Each by a routing key of its own: what a client sends to the exchange reaches one of them.
    Queue(name, routing_key=name, queue_arguments=_kind)
    for name in (STAGE_QUEUE, INTAKE_QUEUE, UPKEEP_QUEUE, SIDE_QUEUE)
]
if _amqp:
    task_default_queue_type = "quorum"
    # Queues of producers' own tasks (`notify`) are theirs: declared as they say, not as we do.
task_routes = {
    "seedance.generate": {"queue": INTAKE_QUEUE},
    # One message at a time follows all that runs: not behind each submission that waits.
    "seedance.observe": {"queue": UPKEEP_QUEUE},
    "seedance.reconcile": {"queue": UPKEEP_QUEUE},
    "seedance.balance": {"queue": UPKEEP_QUEUE},
    "seedance.prune": {"queue": UPKEEP_QUEUE},
    "seedance.catch_up": {"queue": UPKEEP_QUEUE},
    "seedance.archive": {"queue": SIDE_QUEUE},
    "seedance.deliver": {"queue": SIDE_QUEUE},
    "seedance.*": {"queue": STAGE_QUEUE},
}
# A stage message is worth nothing once its lease has ended: taken off at once, so that a worker
# holds few unacknowledged messages. `seedance.generate` alone is acknowledged late.
task_acks_late = False
worker_prefetch_multiplier = 1

# --- the pool ---------------------------------------------------------------------------------
# Stages wait on the network. Threads give back the messages of a dead worker (gevent did not)
# and cost little; every call has its own timeout, since threads can't be interrupted.
worker_pool = "threads"
worker_concurrency = int(_setting("concurrency"))
# Sets unreadable messages aside before they can kill the consumer.
worker_consumer = "worker.consumer:Consumer"

# --- the broker -------------------------------------------------------------------------------
broker_connection_retry_on_startup = True
# Never give up: a broker may be away for long.
broker_connection_max_retries = None
broker_connection_timeout = 3
# At most this long for a connection from the pool, or publishing would wait for ever.
broker_pool_limit = 10
# A connection that is lost while `generate` messages are held hands them to another worker.
worker_cancel_long_running_tasks_on_connection_loss = False
_valkey_options = {
    # With a frozen broker publishing blocked for over 40 s by default.
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "retry_on_timeout": False,
    # How soon messages of a dead worker come back, as for rows; redelivery is harmless here.
    "visibility_timeout": _setting("lease"),
    # A killed worker may hold the lock of the sweep for as long as this.
    "unacked_mutex_expire": 10,
    "unacked_restore_limit": 1000,
    "max_retries": 3,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 1,
}
_amqp_options = {
    # A notice counts as taken once it is published: it has to be there by then.
    "confirm_publish": True,
    # With a frozen broker nothing waits for longer.
    "read_timeout": 5,
    "write_timeout": 5,
    "max_retries": 3,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 1,
}
broker_transport_options = {
    **(_amqp_options if _amqp else _valkey_options),
    **_address.transport_options,
}
# A consumer sees by it that RabbitMQ is gone without a word.
broker_heartbeat = 30
task_publish_retry = True
task_publish_retry_policy = {
    "max_retries": 2,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.5,
}

# --- stopping ---------------------------------------------------------------------------------
# SIGTERM: take nothing new, finish what runs within this bound, hand back the rest.
worker_soft_shutdown_timeout = 40.0
worker_enable_soft_shutdown_on_idle = True
# Prefetching less after a lost connection would starve the worker until it restarts.
worker_enable_prefetch_count_reduction = False

# --- what operators see -----------------------------------------------------------------------
worker_send_task_events = True
task_send_sent_event = False
# Remote control stays on, for Flower and `celery inspect`.
worker_hijack_root_logger = False
worker_redirect_stdouts = False
timezone = "UTC"
enable_utc = True

# --- beat: upkeep only ------------------------------------------------------------------------
# At least as often it comes round, and says so by its heartbeat.
beat_max_loop_interval = 15
beat_scheduler = "worker.beat_schedule:BeatingScheduler"
# `expires`: a beat that runs while no worker does must not pile work up.
beat_schedule = {
    "reconcile": {
        "task": "seedance.reconcile",
        "schedule": _setting("reconcile_every"),
        "options": {"expires": _setting("reconcile_every")},
    },
    "balance": {
        "task": "seedance.balance",
        "schedule": _setting("balance_every"),
        "options": {"expires": _setting("balance_every")},
    },
    "catch_up": {
        "task": "seedance.catch_up",
        "schedule": intervals.CATCH_UP,
        "options": {"expires": intervals.CATCH_UP},
    },
    "prune": {
        "task": "seedance.prune",
        "schedule": intervals.PRUNE,
        "options": {"expires": intervals.PRUNE},
    },
}
