"""TorchCodec's tutorial on parallel decoding: one frame every two seconds of a long video.

Its four ways, each with its best seek mode: one after the other, codec threads, joblib's processes, joblib's
threads; and reeld by one call. Every way gives the same tensors.
"""

from __future__ import annotations

import importlib
import itertools
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from suite.clips import fresh_copies
from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.peers.base import Frames, Setting
from suite.scenarios.library import Library
from suite.scenarios.single import reeld_contestants

_EVERY_SECONDS = 2


def _decoded(path: str, seek: str, indices: list[int]) -> tuple[Any, list[float]]:
    """One decoder's share, in whichever process or thread it runs."""
    decoders = importlib.import_module("torchcodec.decoders")
    batch = decoders.VideoDecoder(path, seek_mode=seek).get_frames_at(indices)
    return batch.data, batch.pts_seconds.tolist()


class ParallelJob(Job):
    """TorchCodec in processes or threads. Arguments: `path`, `indices`; settings: `backend`, `seek`."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Starts nothing: joblib's processes come with the first run, and stay."""
        super().__init__(*arguments)
        self._joblib = importlib.import_module("joblib")
        self._torch = importlib.import_module("torch")
        self._stack = ExitStack()
        self._path = self.arguments["path"]

    def before(self) -> None:
        """As for the others."""
        self._stack.close()
        self._path = str(self._stack.enter_context(fresh_copies([Path(self.arguments["path"])]))[0])

    def run(self) -> Frames:
        """As many shares as there are cores."""
        count = len(os.sched_getaffinity(0))
        indices = self.arguments["indices"]
        bounds = [len(indices) * number // count for number in range(count + 1)]
        shares = [indices[begin:end] for begin, end in itertools.pairwise(bounds)]
        parallel = self._joblib.Parallel(n_jobs=count, backend=self.setting["backend"])
        one = self._joblib.delayed(_decoded)
        parts = parallel(one(self._path, self.setting["seek"], share) for share in shares if share)
        times = [time for _, part in parts for time in part]
        return Frames(self._torch.cat([pixels for pixels, _ in parts]), times)

    def after(self, result: Frames) -> Delivered:
        """Counts."""
        return Delivered(len(result))

    def outputs(self) -> Frames:
        """Those of a run."""
        return self.run()

    def end(self) -> None:
        """Deletes the copy."""
        self._stack.close()


def cells(library: Library) -> list[Cell]:
    """One cell."""
    clip = library.clip("long")
    step = round(clip.fps * _EVERY_SECONDS)
    arguments = {"path": str(clip.path), "indices": list(range(0, clip.frame_count, step))}
    simple, parallel = "single:FramesJob", "tutorial:ParallelJob"
    ways: list[tuple[str, str, list[Setting]]] = [
        ("sequential", simple, [{"threads": 1, "seek": "approximate"}]),
        ("codec threads", simple, [{"threads": 0, "seek": "approximate"}]),
        ("joblib processes", parallel, [{"backend": "loky", "seek": "approximate"}]),
        ("joblib threads", parallel, [{"backend": "threading", "seek": "approximate"}]),
    ]
    contestants = [
        Contestant(
            f"TorchCodec, {way}",
            "TorchCodec",
            settings,
            job,
            arguments,
            must_equal=True,
            # They take half as long again as the others.
            rounds_max=1 if job == simple else None,
        )
        for way, job, settings in ways
    ]
    contestants += reeld_contestants(simple, arguments, with_cache=False)
    reference = JobOrder(simple, "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
    return [Cell("tutorial", "a frame every 2 s", clip.name, contestants, {"plain": reference})]
