"""Several processes at one video: eight that read random frames, and four identical jobs at once.

A process is a job of requests, eight frames each, one after the other. All wait at a barrier until all have
opened the video; the time is from there to the last one's end. reeld runs without its picture cache, and with
all its caches in a row of its own; each run reads a copy of the file that no process has seen.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from contextlib import ExitStack
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from suite.clips import fresh_copies
from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.peers.base import Frames, Peer, Setting
from suite.scenarios.library import Library

_SEED = 0
_FRAMES = 8
# Only a failure waits that long.
_GIVE_UP_SECONDS = 600

# When it began and ended, its frames, and its pictures.
Times = tuple[float, float, int, int]


def requests(seed: int, count: int, frame_count: int) -> list[list[int]]:
    """One job's requests."""
    choice = random.Random(seed)
    return [[choice.randrange(frame_count) for _ in range(_FRAMES)] for _ in range(count)]


def _work(
    peer: Peer,
    setting: Setting,
    path: str,
    wanted: list[list[int]],
    barrier: Barrier,
    results: SimpleQueue[Times],
) -> None:
    """What one process does."""
    video = peer.open(path, setting)
    barrier.wait(_GIVE_UP_SECONDS)
    begin = time.monotonic()
    frames = pictures = 0
    for indices in wanted:
        batch = video.frames_at(indices)
        frames += len(batch)
        pictures += batch.picture_count or 0
    results.put((begin, time.monotonic(), frames, pictures))


class CrowdJob(Job):
    """Some processes at once. Arguments: `path`, `jobs`: for each process the requests it makes."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Starts nothing."""
        super().__init__(*arguments)
        self._stack = ExitStack()
        self._path = self.arguments["path"]

    def before(self) -> None:
        """A copy that nobody knows."""
        self._stack.close()
        self._path = str(self._stack.enter_context(fresh_copies([Path(self.arguments["path"])]))[0])

    def run(self) -> list[Times]:
        """Forks the processes, as a DataLoader does, and waits for what they say."""
        context = multiprocessing.get_context("fork")
        jobs = self.arguments["jobs"]
        barrier, results = context.Barrier(len(jobs)), context.SimpleQueue()
        shared = (self.peer, self.setting, self._path)
        processes = [
            context.Process(target=_work, args=(*shared, wanted, barrier, results)) for wanted in jobs
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(f"a process ended with {process.exitcode}")
        return [results.get() for _ in processes]

    def after(self, result: list[Times]) -> Delivered:
        """`work_seconds` is from the barrier to the last one's end; opening is in the wall time alone."""
        work = max(end for _, end, _, _ in result) - min(begin for begin, _, _, _ in result)
        pictures = sum(count for _, _, _, count in result)
        return Delivered(sum(count for _, _, count, _ in result), pictures or None, {"work_seconds": work})

    def outputs(self) -> Frames:
        """Of the first requests of the first job."""
        video = self.peer.open(self._path, self.setting)
        parts = [video.frames_at(indices) for indices in self.arguments["jobs"][0][:2]]
        pixels = [picture for part in parts for picture in part.as_array()]
        times = [time for part in parts if part.pts_seconds is not None for time in part.pts_seconds]
        return Frames(pixels, times if len(times) == len(pixels) else None)

    def end(self) -> None:
        """Deletes the copy."""
        self._stack.close()


def cells(library: Library) -> list[Cell]:
    """One job alone, four identical ones, eight different ones."""
    clip = library.clip("gop250")
    count = 2
    one = requests(_SEED, count, clip.frame_count)
    crowds = {
        "one job": [one],
        "four identical jobs": [one] * 4,
        "8 processes, random frames": [
            requests(_SEED + 1 + number, 1, clip.frame_count) for number in range(8)
        ],
    }
    tools: list[tuple[str, str, Setting]] = [
        ("reeld, picture cache off", "reeld", {"threads": 0, "cache": "off"}),
        ("reeld, all caches on", "reeld", {"threads": 0, "cache": "on"}),
        ("TorchCodec", "TorchCodec", {"threads": 1, "seek": "approximate"}),
    ]
    found = []
    for workload, jobs in crowds.items():
        if library.is_quick and workload.startswith("8"):
            continue
        arguments = {"path": str(clip.path), "jobs": jobs}
        contestants = [
            # No goal is about TorchCodec here, and it takes the longest.
            Contestant(
                tool,
                peer,
                [setting],
                "shared:CrowdJob",
                arguments,
                must_equal=True,
                rounds_max=1 if peer == "TorchCodec" else None,
            )
            for tool, peer, setting in tools
        ]
        reference = JobOrder("shared:CrowdJob", "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
        found.append(Cell("shared", workload, clip.name, contestants, {"plain": reference}))
    return found
