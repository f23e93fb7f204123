"""Progress of long tasks as lines of a log, with the time left."""

import datetime
import time
from collections.abc import Callable

#: Seconds between two lines, of which the shorter needs a tenth of the task in between.
_SHORT, _LONG = 5.0, 60.0


class Progress:
    """Log how much of a task is done and the time left, if it takes more than a few seconds.

    Lines rather than a bar: they read the same on a terminal, in a file and in a Slurm log.

    Args:
        task (str): The beginning of each line, e.g. 'checking 5,000 images'.
        total (int): Number of steps.
        log (Callable): Called with each line.
    """

    def __init__(self, task: str, total: int, log: Callable[[str], object]) -> None:
        self._task = task
        self._total = max(total, 1)
        self._log = log
        self._done = 0
        self._start = self._last_time = time.monotonic()
        self._last_fraction = 0.0

    def step(self, count: int = 1) -> None:
        """Count steps, and log a line if one is due."""
        self._done += count
        now, fraction = time.monotonic(), self._done / self._total
        waited = now - self._last_time
        is_due = waited >= _LONG or (waited >= _SHORT and fraction - self._last_fraction >= 0.1)
        if fraction >= 1 or not is_due:
            return
        self._last_time, self._last_fraction = now, fraction
        left = round((now - self._start) * (1 / fraction - 1))
        self._log(f'{self._task}: {fraction:.0%}, eta: {datetime.timedelta(seconds=left)}')
