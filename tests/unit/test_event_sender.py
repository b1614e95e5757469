"""The sender of events: nothing that other threads put into its buffer meanwhile is lost."""

from typing import Any

from celery import Celery

from worker.event_sender import Dispatcher


class Interrupted(Dispatcher):
    """Another thread has an event just when a batch is on its way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sent: list[list[str]] = []
        super().__init__(*args, **kwargs)

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        super()._publish(event, producer, routing_key, **options)
        if isinstance(event, list):
            self.sent.append([one["uuid"] for one in event])
            if len(self.sent) == 1:
                self.send("task-succeeded", uuid="meanwhile")


def test_what_comes_while_a_batch_is_sent_goes_with_the_next():
    with Celery(broker="memory://") as app, app.connection_for_write() as connection:
        sender = Interrupted(connection, hostname="w", app=app, buffer_group={"task"})
        sender.send("task-received", uuid="first")
        sender.send("task-started", uuid="first")
        assert sender.sent == [], "gathered, not sent one by one"
        for _ in range(3):
            sender.flush()
    assert sender.sent == [["first", "first"], ["meanwhile"]]
