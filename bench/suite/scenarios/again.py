"""The same frames again: one frame many times, one frame back after the other, a window that slides.

The decoder stays open, and all of reeld's caches are on: they are what is measured here.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from suite.clips import Clip, fresh_copies
from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.peers import NAMES
from suite.peers.base import Frames, Video
from suite.scenarios.library import Library
from suite.scenarios.single import candidates

_WINDOW = 8


class VisitsJob(Job):
    """Calls one after the other on one decoder.

    Arguments: `path`; `calls`, a list of lists of indices; `step`, by which all indices move from run to run,
    so that no run asks for the frames of another one. Where that would leave the GOP, a copy of the file is
    begun anew.
    """

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Opens the video."""
        super().__init__(*arguments)
        self._stack = ExitStack()
        self._calls: list[list[int]] = self.arguments["calls"]
        self._shift = 0
        self._video: Video = self.peer.open(self.arguments["path"], self.setting)

    def before(self) -> None:
        """Moves on."""
        step, highest = self.arguments["step"], self.arguments["last"]
        calls = [[index + self._shift for index in call] for call in self.arguments["calls"]]
        if min(map(min, calls)) < 0 or max(map(max, calls)) > highest:
            self._stack.close()
            copies = self._stack.enter_context(fresh_copies([Path(self.arguments["path"])]))
            self._video.close()
            self._video = self.peer.open(str(copies[0]), self.setting)
            self._shift, calls = 0, self.arguments["calls"]
            self._video.frames_at(calls[0])
        self._calls = calls
        self._shift += step

    def run(self) -> int:
        """The frames of a call are gone before the next, as in a loop."""
        return sum(len(self._video.frames_at(indices)) for indices in self._calls)

    def after(self, result: int) -> Delivered:
        """Counts."""
        return Delivered(result)

    def outputs(self) -> Frames:
        """Of the first calls."""
        parts = [self._video.frames_at(indices) for indices in self.arguments["calls"][:3]]
        pixels = [picture for part in parts for picture in part.as_array()]
        times = [time for part in parts if part.pts_seconds is not None for time in part.pts_seconds]
        return Frames(pixels, times if len(times) == len(pixels) else None)

    def end(self) -> None:
        """Closes it."""
        self._video.close()
        self._stack.close()


def cells(library: Library) -> list[Cell]:
    """Three kinds of visits to long GOPs, where a seek costs much."""
    longest, long = library.clip("gop600"), library.clip("gop250")
    end, last = longest.frame_count - 1, min(240, long.frame_count) - 1
    repeats = 2
    middle = last // 2
    one_back = [[last - number] for number in range(repeats)]
    window = [list(range(middle + number, middle + number + _WINDOW)) for number in range(repeats)]
    visits: list[tuple[str, Clip, list[list[int]], int, int]] = [
        (f"frame {end}, {repeats} times", longest, [[end]] * repeats, 0, end),
        (f"{repeats} frames, each one back", long, one_back, -repeats, last),
        (f"window of {_WINDOW} slides by 1", long, window, repeats, last),
    ]
    found = []
    for workload, clip, calls, step, highest in visits:
        arguments = {"path": str(clip.path), "calls": calls, "step": step, "last": highest}
        job = "again:VisitsJob"
        contestants = [
            Contestant("reeld, all caches warm", "reeld", [{"threads": 0}], job, arguments, must_equal=True)
        ]
        contestants += [
            Contestant(
                peer, peer, candidates(peer, few=True), job, arguments, must_equal=peer == "TorchCodec"
            )
            for peer in NAMES
            if peer != "reeld"
        ]
        reference = JobOrder(job, "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
        found.append(Cell("again", workload, clip.name, contestants, {"plain": reference}, rounds_max=3))
    return found
