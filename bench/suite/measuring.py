"""CPU time and memory of a process with all its descendants, and the statistics of repeated runs.

Nothing is run here; see `runner` and `contest`.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

# Linux numbers the CPU clock of a process from its id: see clock_getcpuclockid(3). The clock counts the
# threads that have ended, too, and in nanoseconds, where /proc/PID/stat counts in ticks of 10 ms.
_PROCESS_CLOCK = 2
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
# Enough that the bounds move by less than a percent from one seed to the next.
_RESAMPLE_COUNT = 4_000


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, its threads included; 0 if it has ended."""
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
    except OSError:
        return 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; empty if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The second field is a name in brackets that may hold anything.
    return text[text.rindex(")") + 2 :].split()


def descendants(root: int) -> list[int]:
    """The ids of the processes that `root` has started, and of those that they have."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = _stat(int(name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _ended_children_seconds(pid: int) -> float:
    """CPU time of the children of a process that have ended and were waited for, with theirs."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) * _TICK_SECONDS if fields else 0.0


class CpuMeter:
    """CPU time that this process and all its descendants use, from `start` to `stop`.

    What looking for the descendants costs is not counted: this process's own clock is read before.
    """

    def start(self) -> None:
        """Begins to count."""
        others = self._others()
        self._begin = others + time.process_time()

    def stop(self, own_seconds: float) -> float:
        """The seconds since `start`; `own_seconds` is `time.process_time()` when the work was over."""
        return max(0.0, self._others() + own_seconds - self._begin)

    @staticmethod
    def _others() -> float:
        pid = os.getpid()
        below = descendants(pid)
        return sum(map(cpu_seconds, below)) + sum(map(_ended_children_seconds, [pid, *below]))


def pss_bytes(pid: int) -> int:
    """Memory of a process; of what n processes share, each has its nth part. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def tree_pss_bytes(root: int) -> int:
    """Memory of a process and all its descendants."""
    return sum(map(pss_bytes, [root, *descendants(root)]))


def open_file_count(root: int) -> int:
    """Open file descriptors of a process and all its descendants."""
    count = 0
    for pid in [root, *descendants(root)]:
        try:
            count += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return count


class MemorySampler:
    """The most memory that a process tree had in the `with` block, as far as looking now and then shows."""

    def __init__(self, root: int, interval_seconds: float) -> None:
        """Looks at `root` and its descendants; each look slows them down for some milliseconds."""
        self.peak_bytes = 0
        self._root = root
        self._interval_seconds = interval_seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler")

    def _run(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(self._root))
            if self._is_over.wait(self._interval_seconds):
                return

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def median(values: Sequence[float]) -> float:
    """The middle one; NaN if there are none."""
    return statistics.median(values) if values else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank); NaN if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else math.nan


def spread(values: Sequence[float]) -> float:
    """Half of the distance between the quartiles, as a share of the median; 0 for fewer than three values."""
    if len(values) < 3 or median(values) == 0:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / median(values)


def pair_ratios(above: Iterable[float], below: Iterable[float]) -> list[float]:
    """The quotients round by round, where both have a round and it took a time that can be measured."""
    return [one / other for one, other in zip(above, below, strict=False) if one > 0 and other > 0]


def bootstrap_bounds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """One-sided bounds of the median: with this confidence it is above the first; and below the second.

    The rounds are drawn again with replacement, always with the same seed.
    """
    if not values:
        return math.nan, math.nan
    choice = random.Random(1)
    medians = sorted(statistics.median(choice.choices(values, k=len(values))) for _ in range(_RESAMPLE_COUNT))
    place = round((1 - confidence) * (_RESAMPLE_COUNT - 1))
    return medians[place], medians[-1 - place]
