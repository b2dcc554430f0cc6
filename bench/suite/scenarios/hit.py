"""The round trip of a frame that is in reeld's picture cache: the whole call, up to the tensor.

At 224x224 frames are kept as they were delivered, so that a hit is a copy; large frames are kept as they were
decoded, so that a hit is a conversion. What that conversion costs alone is not known from outside the daemon;
PyAV's of the same picture, with the FFmpeg that its wheel brings, is shown for comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.measuring import percentile
from suite.peers.base import Frames
from suite.peers.torchcodec import TorchCodecVideo
from suite.scenarios.library import Library


class HitJob(Job):
    """Many single frames. Arguments: `path`, `frame_count` that are asked for in turn, `call_count`."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Has all frames in the cache: a picture is kept for good after its first hit."""
        super().__init__(*arguments)
        self._video = self.peer.open(self.arguments["path"], self.setting)
        for _ in range(3):
            for index in range(self.arguments["frame_count"]):
                self._video.frames_at([index])

    def run(self) -> list[float]:
        """Each call timed."""
        count = self.arguments["frame_count"]
        assert isinstance(self._video, TorchCodecVideo)
        decoder = self._video.decoder
        held: list[Any] = [None]

        def call(number: int) -> None:
            # The frame before is given back within the call.
            held[0] = decoder.get_frame_at(number % count).data

        return _timed(call, self.arguments["call_count"])

    def after(self, result: list[float]) -> Delivered:
        """The distribution."""
        return Delivered(len(result), values=_distribution(result))

    def outputs(self) -> Frames:
        """All frames."""
        return self._video.frames_at(list(range(self.arguments["frame_count"])))


class ConvertJob(Job):
    """PyAV's conversion of a decoded picture to RGB. Arguments: as for HitJob."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Decodes a picture."""
        super().__init__(*arguments)
        with self.peer.library.open(self.arguments["path"]) as container:
            self._picture = next(container.decode(video=0))
        self._reformatter = self.peer.library.video.reformatter.VideoReformatter()

    def run(self) -> list[float]:
        """Each conversion timed."""
        return _timed(
            lambda _: self._reformatter.reformat(self._picture, format="rgb24", threads=1),
            self.arguments["call_count"],
        )

    def after(self, result: list[float]) -> Delivered:
        """The distribution."""
        return Delivered(len(result), values=_distribution(result))

    def outputs(self) -> Frames:
        """The picture."""
        return Frames([self._picture.to_ndarray(format="rgb24")], [0.0])


def _timed(call: Callable[[int], object], count: int) -> list[float]:
    times = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - start)
    return times


def _distribution(seconds: list[float]) -> dict[str, float]:
    return {f"p{round(100 * share)}_seconds": percentile(seconds, share) for share in (0.5, 0.9, 0.99)}


def cells(library: Library) -> list[Cell]:
    """A small clip and a large one."""
    found = []
    for key, workload in (("small", "224x224, kept converted"), ("gop250", "large, kept as decoded")):
        clip = library.clip(key)
        arguments = {
            "path": str(clip.path),
            "frame_count": 30 if key == "small" else 10,
            "call_count": 500 if library.is_quick else (20_000 if key == "small" else 2_000),
        }
        contestants = [
            Contestant("reeld", "reeld", [{"threads": 0}], "hit:HitJob", arguments, must_equal=True),
            Contestant(
                "conversion alone (PyAV)", "PyAV", [{}], "hit:ConvertJob", arguments, reference=lambda _: ""
            ),
        ]
        reference = JobOrder("hit:HitJob", "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
        found.append(Cell("hit", workload, clip.name, contestants, {"plain": reference}))
    return found
