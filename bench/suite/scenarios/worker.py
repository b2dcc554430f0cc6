"""What it costs to be a worker: memory and open files, the time to the first batch, and opening a file.

Forked workers each open all videos of a set, read a frame of each, and keep the decoders open as the
library's users do: TorchCodec's with LeRobot's cache of 100 decoders, reeld's all. `python alone` are workers
that only exist.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from suite.clips import WORK, fresh_copies
from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.measuring import open_file_count, percentile, tree_pss_bytes
from suite.peers.base import CannotError, Frames, Setting, Video
from suite.scenarios.datasets import Epochs, Sample, as_tensor, dataset_for
from suite.scenarios.library import Library

_LEROBOT_DECODERS = 100
_BATCH = 8
_FRAMES = 8
_GIVE_UP_SECONDS = 800
# A library that would take the last of the machine's memory is stopped before.
_AVAILABLE_BYTES_MIN = 2 * 2**30


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


class CrowdOfWorkersJob(Job):
    """Workers that hold what they opened. Arguments: `paths`, `worker_count`; setting `keep`, `nothing`."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Imports torch, as any training process has."""
        super().__init__(*arguments)
        importlib.import_module("torch")

    def _touch(self, ready: Any, leave: Any) -> None:  # noqa: ANN401 # multiprocessing's
        videos: dict[str, Video] = {}
        for path in [] if self.setting.get("nothing") else self.arguments["paths"]:
            videos[path] = self.peer.open(path, self.setting)
            videos[path].frames_at([0])
            while len(videos) > self.setting.get("keep", 10**9):
                videos.pop(next(iter(videos))).close()
            if _available_bytes() < _AVAILABLE_BYTES_MIN:
                os._exit(3)
        ready.release()
        leave.wait(_GIVE_UP_SECONDS)

    def run(self) -> dict[str, float]:
        """Starts the workers, and looks at them when all have opened all."""
        context = multiprocessing.get_context("fork")
        ready, leave = context.Semaphore(0), context.Event()
        count = self.arguments["worker_count"]
        workers = [context.Process(target=self._touch, args=(ready, leave)) for _ in range(count)]
        for worker in workers:
            worker.start()
        try:
            for _ in workers:
                while not ready.acquire(timeout=1):
                    if any(worker.exitcode is not None for worker in workers):
                        raise CannotError("a worker ended early: out of memory?")
            pid = os.getpid()
            return {
                "memory_bytes": tree_pss_bytes(pid),
                "workers_memory_bytes": sum(map(tree_pss_bytes, [worker.pid or 0 for worker in workers])),
                "open_files": open_file_count(pid),
            }
        finally:
            leave.set()
            for worker in workers:
                worker.join()

    def after(self, result: dict[str, float]) -> Delivered:
        """What was seen."""
        frames = 0 if self.setting.get("nothing") else len(self.arguments["paths"])
        return Delivered(frames * self.arguments["worker_count"], values=result)

    def outputs(self) -> Frames:
        """Of the first videos."""
        parts = [self.peer.open(path, self.setting).frames_at([0]) for path in self.arguments["paths"][:4]]
        return Frames([picture for part in parts for picture in part.as_array()], None)


class FirstBatchJob(Job):
    """The time until a DataLoader's first batch. Arguments: `paths`, `worker_count`, `frame_count`.

    With `index: "warm"` in the setting the daemon has indexed the files before.
    """

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Imports what a training process has imported before it makes a loader."""
        super().__init__(*arguments)
        importlib.import_module("torch.utils.data")
        if self.setting.get("way") == "cliploader" and importlib.util.find_spec("reeld.torch") is None:
            raise CannotError("this version of reeld has no ClipLoader")
        self._stack = ExitStack()
        self._paths: list[str] = []

    def before(self) -> None:
        """Copies that nobody knows; or, for a warm index, the same ones, which are opened once."""
        paths = [Path(path) for path in self.arguments["paths"]]
        if self.setting.get("index") != "warm":
            self._stack.close()
            self._paths = [str(path) for path in self._stack.enter_context(fresh_copies(paths))]
            return
        self._paths = self.arguments["paths"]
        for path in self._paths:
            self.peer.open(path, self.setting).close()
        self.peer.settle()

    def _plan(self) -> list[Sample]:
        start = self.arguments["frame_count"] // 2
        return [(path, list(range(start, start + _FRAMES))) for path in self._paths]

    def run(self) -> Any:  # noqa: ANN401 # a tensor
        """From making the loader; a dataset that opens all its videos first is not needed by anyone here."""
        plan = self._plan()
        dataset = dataset_for(self.peer, self.setting, plan, None)
        way = self.setting.get("way", "dataloader")
        batches = Epochs(dataset, way, len(plan), _BATCH, self.arguments["worker_count"]).epoch(0)
        self._held: Any = batches
        # Of a tensor itself, of a FrameBatch its pixels.
        return next(batches).data

    def after(self, result: Any) -> Delivered:  # noqa: ANN401 # as for Job
        """Lets go of the loader."""
        self._held.close()
        return Delivered(result.shape[0] * result.shape[1])

    def outputs(self) -> Frames:
        """Of the first batch."""
        dataset = dataset_for(self.peer, self.setting, self._plan(), None)
        samples = [dataset[number].data for number in range(_BATCH)]
        return Frames([picture for sample in samples for picture in sample.permute(0, 2, 3, 1).numpy()], None)

    def end(self) -> None:
        """Deletes the copies."""
        self._stack.close()


class FirstBatchReferenceJob(FirstBatchJob):
    """TorchCodec's frames of the first batch."""

    def outputs(self) -> Frames:
        """With a decoder each."""
        pictures: list[Any] = []
        for path, indices in self._plan()[:_BATCH]:
            pictures += list(
                as_tensor(self.peer.open(path, self.setting).frames_at(indices)).permute(0, 2, 3, 1).numpy()
            )
        return Frames(pictures, [0.0] * len(pictures))


class OpenJob(Job):
    """Opens each video once. Arguments: `paths`. reeld has indexed them before."""

    def before(self) -> None:
        """Has the daemon index them."""
        if self.peer.name == "reeld":
            for path in self.arguments["paths"]:
                self.peer.open(path, self.setting).close()
            self.peer.settle()

    def run(self) -> list[float]:
        """Each opening timed; it is closed before the next."""
        seconds = []
        for path in self.arguments["paths"]:
            begin = time.perf_counter()
            video = self.peer.open(path, self.setting)
            seconds.append(time.perf_counter() - begin)
            video.close()
        return seconds

    def after(self, result: list[float]) -> Delivered:
        """The distribution."""
        values = {f"p{round(100 * share)}_seconds": percentile(result, share) for share in (0.5, 0.99)}
        return Delivered(0, values=values)

    def outputs(self) -> Frames:
        """A frame of the first videos."""
        parts = [self.peer.open(path, self.setting).frames_at([0]) for path in self.arguments["paths"][:4]]
        return Frames([picture for part in parts for picture in part.as_array()], None)


def _set(library: Library, count: int) -> list[str]:
    """Many files: copies of the short clips, which are kept from run to run."""
    videos = library.short_h264(min(count, 200))
    folder = WORK / "clips" / f"copies-{videos[0].path.parent.name}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        video = videos[number % len(videos)]
        path = folder / f"{number:04}.mp4"
        if not path.exists():
            path.write_bytes(video.path.read_bytes())
        paths.append(str(path))
    return paths


def _memory_cells(paths: list[str], counts: tuple[int, ...], peers: tuple[str, ...]) -> list[Cell]:
    found = []
    job = "worker:CrowdOfWorkersJob"
    for count in counts:
        arguments = {"paths": paths, "worker_count": count}
        tools: list[tuple[str, str, Setting]] = [
            ("reeld", "reeld", {"threads": 0}),
            ("TorchCodec", "TorchCodec", {"threads": 1, "seek": "approximate", "keep": _LEROBOT_DECODERS}),
            ("python alone", "TorchCodec", {"nothing": True}),
            ("python alone, with a daemon", "reeld", {"nothing": True}),
        ]
        contestants = [
            Contestant(tool, peer, [setting], job, arguments, must_equal=True)
            for tool, peer, setting in tools
            if peer in peers
        ]
        reference = JobOrder(job, "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
        found.append(
            Cell(
                "worker",
                f"{count} workers hold {len(paths)} videos",
                "360p",
                contestants,
                {"plain": reference},
                is_fresh=True,
                has_warm_up=False,
                rounds_min=1,
                rounds_max=1,
                common_outputs="worker, memory",
            )
        )
    return found


def cells(library: Library) -> list[Cell]:
    """Memory by the number of workers and of videos; the first batch; opening."""
    video_count = 24 if library.is_quick else 1000
    paths = _set(library, video_count)
    both = ("reeld", "TorchCodec")
    found = _memory_cells(paths, (2,) if library.is_quick else (16,), both)
    if not library.is_quick:
        found += _memory_cells(paths[:100], (8, 16), both)
        # What a worker adds is wanted of reeld alone; TorchCodec takes the better part of a minute for it.
        found += _memory_cells(paths, (8,), ("reeld",))
    arguments = {"paths": paths, "worker_count": 2 if library.is_quick else 16, "frame_count": 72}
    job = "worker:FirstBatchJob"
    cold: Setting = {"threads": 0, "cache": "off", "index": "cold"}
    tools: list[tuple[str, str, list[Setting]]] = [
        ("reeld, ClipLoader, index cold", "reeld", [{**cold, "way": "cliploader"}]),
        ("reeld, dataset, index cold", "reeld", [cold]),
        ("reeld, dataset, index warm", "reeld", [{**cold, "index": "warm"}]),
        ("TorchCodec", "TorchCodec", [{"threads": 1, "seek": "approximate", "keep": _LEROBOT_DECODERS}]),
    ]
    contestants = [
        Contestant(tool, peer, each, job, arguments, must_equal=True) for tool, peer, each in tools
    ]
    reference = JobOrder(
        "worker:FirstBatchReferenceJob", "TorchCodec", {"threads": 1, "seek": "exact"}, arguments
    )
    label = f"{video_count} videos"
    found.append(
        Cell(
            "worker",
            f"first batch, {arguments['worker_count']} workers",
            label,
            contestants,
            {"plain": reference},
            is_fresh=True,
            has_warm_up=False,
            # No goal is about it, and each run opens or copies all videos before.
            rounds_min=1,
            rounds_max=1,
        )
    )
    opening: list[tuple[str, str, Setting]] = [
        ("reeld, index warm", "reeld", {"threads": 0}),
        ("TorchCodec, exact", "TorchCodec", {"threads": 1, "seek": "exact"}),
        ("TorchCodec, approximate", "TorchCodec", {"threads": 1, "seek": "approximate"}),
    ]
    contestants = [
        # No goal is about TorchCodec here.
        Contestant(
            tool,
            peer,
            [setting],
            "worker:OpenJob",
            {"paths": paths},
            must_equal=True,
            rounds_max=1 if peer == "TorchCodec" else None,
        )
        for tool, peer, setting in opening
    ]
    reference = JobOrder("worker:OpenJob", "TorchCodec", {"threads": 1, "seek": "exact"}, {"paths": paths})
    found.append(
        Cell("worker", "opening a file", label, contestants, {"plain": reference}, rounds_min=3, rounds_max=3)
    )
    return found
