"""A training program that test_dataloader.py starts: one DataLoader, and one way for its epochs to end.

Its argument is a plan in JSON; it writes what it sees, a line of JSON at a time. Nothing is judged here.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import reeld
import torch
from reeld.torch import PendingSamples, VideoClips, collate
from torch.utils.data import DataLoader

BATCH_SIZE = 2
# What makes the dataset raise.
POISON = 13
# How long what ends in its own time may take. Only a failure waits that long.
SOON_SECONDS = 30
# Where CPython may take a lock and then raise KeyboardInterrupt before it notes that it has to give it back.
# A DataLoader that is interrupted there waits for ever when it is shut down: for the lock of its index queue.
LOSES_LOCKS = {
    multiprocessing.queues.Queue.put.__code__,
    threading.Condition.__enter__.__code__,
    threading.Condition.__exit__.__code__,
}
# From there Ctrl-C is put off by so much at a time.
RETRY_SECONDS = 0.001


class Clips(VideoClips):
    """Clips with the numbers of their videos; asked for a poisoned one it raises."""

    is_poisoned = False

    def submit(self, indices: Any) -> PendingSamples:
        """As its base, unless poisoned."""
        if self.is_poisoned and POISON in indices:
            raise LookupError(f"there is poison in {indices}")
        return super().submit(indices)


def say(**words: Any) -> None:
    """One line for the test. `print` writes its end by itself, so that Ctrl-C may come between the two."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def digest(frame: torch.Tensor) -> str:
    """As `support.digest`, which this program does without: it would import TorchCodec."""
    return hashlib.sha1(frame.contiguous().numpy().tobytes()).hexdigest()[:16]


def tell_batch(epoch: int, clips: reeld.FrameBatch, numbers: torch.Tensor) -> None:
    """Which frames came: the number of the video, the time and the content of each."""
    frames = [
        [number, pts_seconds, digest(frame)]
        for number, times, clip in zip(numbers.tolist(), clips.pts_seconds.tolist(), clips.data, strict=True)
        for pts_seconds, frame in zip(times, clip, strict=True)
    ]
    say(event="batch", epoch=epoch, frames=frames)


def worker_pids() -> list[int]:
    """The processes that the loader has started."""
    return [pid for process in multiprocessing.active_children() if (pid := process.pid) is not None]


def eventually_gone(pids: list[int]) -> list[int]:
    """Those of these processes that are there after some time; a zombie is there."""
    deadline = time.monotonic() + SOON_SECONDS
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


def open_files() -> list[str]:
    """What this process has open of videos and of memory that torch shares."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return [name for name in found if name.endswith((".mp4", ".webm")) or "torch_" in name]


class Training:
    """One loader and what is done with it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.worker_count: int = plan["workers"]
        self.dataset = Clips(
            plan["paths"],
            frames_per_clip=2,
            step=3,
            sampling="random",
            seed=plan["seed"],
            targets=range(len(plan["paths"])),
        )
        self.seen_pids: list[int] = []

    def loader(self, **options: Any) -> DataLoader[Any]:
        """As the plan wants it."""
        if self.worker_count:
            options["multiprocessing_context"] = self.plan["method"]
            options["persistent_workers"] = self.plan["is_persistent"]
        return DataLoader(
            self.dataset, batch_size=BATCH_SIZE, num_workers=self.worker_count, collate_fn=collate, **options
        )

    def epoch(self, loader: DataLoader[Any], epoch: int) -> Iterator[Any]:
        """The batches of an epoch, each told of."""
        self.dataset.set_epoch(epoch)
        for batch in loader:
            tell_batch(epoch, *batch)
            self.seen_pids += worker_pids()
            yield batch

    def normal(self) -> None:
        """Two epochs with other clips in each where workers outlive the first one, else one."""
        loader = self.loader()
        for epoch in range(2 if self.plan["is_persistent"] else 1):
            for _batch in self.epoch(loader, epoch):
                pass

    def raising(self) -> None:
        """The dataset raises in the middle of an epoch; the batches behind it come all the same."""
        self.dataset.is_poisoned = True
        batches = iter(self.loader())
        self.seen_pids += worker_pids()
        is_over = False
        while not is_over:
            try:
                tell_batch(0, *next(batches))
            except LookupError as error:
                say(event="raised", kind=type(error).__name__, words=str(error).splitlines()[-1])
            except StopIteration:
                is_over = True

    def _all_workers_at_work(self, batches: Iterator[Any]) -> None:
        # They take turns, so each has given a batch then.
        for _ in range(max(self.worker_count, 1)):
            next(batches)

    def killed(self) -> None:
        """A worker is killed while the epoch, which has no end, goes on."""
        batches = self.epoch(self.loader(sampler=Endless(len(self.dataset))), 0)
        self._all_workers_at_work(batches)
        victim = multiprocessing.active_children()[0]
        assert victim.pid is not None
        try:
            os.kill(victim.pid, signal.SIGKILL)
            # While it is about to die, its batches cannot be fetched, and torch does not know yet why.
            victim.join()
            for _batch in batches:
                pass
        except RuntimeError as error:
            say(event="raised", kind=type(error).__name__, words=str(error))

    def interrupted(self) -> None:
        """The test presses Ctrl-C while the epoch, which has no end, goes on."""
        batches = self.epoch(self.loader(sampler=Endless(len(self.dataset))), 0)
        self._all_workers_at_work(batches)
        try:
            say(event="ready")
            for _batch in batches:
                pass
        except KeyboardInterrupt as error:
            say(event="raised", kind=type(error).__name__, words="")

    def after(self) -> None:
        """A batch without workers: this process is well."""
        self.dataset.is_poisoned = False
        self.dataset.set_epoch(1)
        tell_batch(1, *collate(self.dataset.__getitems__([0, 1])))


class Endless:
    """A sampler without an end."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(self.count)


def interrupt(_signal: int, frame: FrameType | None) -> None:
    """What Ctrl-C does in Python, but not where Python itself loses locks by it."""
    inner = frame
    while inner is not None:
        if inner.f_code in LOSES_LOCKS:
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
            return
        inner = inner.f_back
    raise KeyboardInterrupt


def main() -> None:
    """Does what the plan says, then tells what is left. Asked by SIGUSR1, says on stderr where it is."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    torch.set_num_threads(1)
    # Or each worker would import torch by itself, which takes a second.
    multiprocessing.set_forkserver_preload(["torch"])
    plan = json.loads(sys.argv[1])
    training = Training(plan)
    getattr(training, plan["outcome"])()
    gc.collect()
    training.after()
    seen_pids = sorted(set(training.seen_pids))
    del training
    gc.collect()
    left = eventually_gone(seen_pids)
    statistics = reeld.statistics()
    say(
        event="end",
        worker_count=len(seen_pids),
        left=left,
        open_files=open_files(),
        leases_held=statistics["leases_held"],
        leases_deferred=statistics["leases_deferred"],
    )


if __name__ == "__main__":
    main()
