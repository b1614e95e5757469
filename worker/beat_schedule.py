"""Beat's clock, which says that it gets on: also while it waits for the broker."""

from typing import Any

from celery.beat import Scheduler, SchedulingError

from worker import heartbeat


class BeatingScheduler(Scheduler):
    """Celery's scheduler in memory, with a heartbeat file."""

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """One look at what is due."""
        heartbeat.touch(heartbeat.given_file())
        return super().tick(*args, **kwargs)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send what is due. What can't be sent is due again at its next time: Celery calls that an
        error, with all of its stack.
        """
        self.logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            self.logger.warning("the broker is away: %s", error)

    def _ensure_connected(self) -> Any:
        def waiting(error: Exception, interval: float) -> None:
            heartbeat.touch(heartbeat.given_file())
            self.logger.warning("the broker is away (%s): again in %s s", error, interval)

        return self.connection.ensure_connection(
            waiting, self.app.conf.broker_connection_max_retries
        )
