"""Simulated time: runs `speed` times as fast as real time, and can jump ahead."""

import time
from bisect import bisect_right
from collections.abc import Callable


class Clock:
    """Turns real seconds into simulated ones, and remembers how, so as to turn them back.

    The lifecycle of a task is laid out in simulated seconds, so a change of speed needs no task
    to be touched. Stamps are real: `wall_of` says when a simulated moment came to pass.
    """

    def __init__(
        self,
        speed: float = 1.0,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        # Stretches of constant speed: simulated start, real start, speed.
        self._sims = [0.0]
        self._walls = [self.wall()]
        self._speeds = [speed]
        self._advanced = 0.0

    @property
    def speed(self) -> float:
        """Simulated seconds per real one."""
        return self._speeds[-1]

    def wall(self) -> float:
        """Real time, in seconds since 1970."""
        return self._monotonic() + self._offset

    def now(self) -> float:
        """Simulated seconds since the start."""
        return self._sims[-1] + (self.wall() - self._walls[-1]) * self._speeds[-1]

    def validity_now(self) -> float:
        """The clock that signed URLs expire by: real time, plus every jump ahead."""
        return self.wall() + self._advanced

    def set_speed(self, speed: float) -> None:
        """Run at another speed from now on."""
        if speed != self.speed:
            self._turn(self.now(), speed)

    def advance(self, seconds: float) -> None:
        """Jump ahead: what would have happened meanwhile has happened now."""
        self._turn(self.now() + seconds, self.speed)
        self._advanced += seconds

    def wall_of(self, sim: float) -> float:
        """The real time at which a simulated moment came, or will come."""
        at = max(bisect_right(self._sims, sim) - 1, 0)
        speed = self._speeds[at]
        real = self._walls[at] + ((sim - self._sims[at]) / speed if speed else 0.0)
        # A moment that was jumped over came at the jump.
        return min(real, self._walls[at + 1]) if at + 1 < len(self._walls) else real

    def _turn(self, sim: float, speed: float) -> None:
        self._walls.append(self.wall())
        self._sims.append(sim)
        self._speeds.append(speed)
