"""One caller, one video: TorchCodec's own four workloads.

Ten frames at even distances, ten random ones, the first hundred; and ten threads that each go through videos
of a set, taking ten frames of each at 256x256. Every run opens the file anew, and it is a copy that no
process has seen, so that neither pictures nor sessions of an earlier run are of use.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from suite.clips import Clip, fresh_copies
from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.peers import NAMES
from suite.peers.base import Frames, Setting
from suite.scenarios.library import Library

_SEED = 0
_THREAD_COUNT = 10
_SIZE = (256, 256)


def uniform(count: int, frame_count: int) -> list[int]:
    """At even distances from the first frame on, as TorchCodec's benchmark takes them."""
    return [number * frame_count // count for number in range(count)]


def scattered(count: int, frame_count: int) -> list[int]:
    """Random ones, always the same."""
    choice = random.Random(_SEED)
    return [choice.randrange(frame_count) for _ in range(count)]


class FramesJob(Job):
    """Opens a video and takes frames. Arguments: `path`, `indices` or `first`, and `warm` for a second visit.

    With `index: "warm"` in the setting the file was opened before, but no frame of it was read.
    With `cache: "on"` it is the same file each time, and the same frames of it.
    """

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Nothing is open yet."""
        super().__init__(*arguments)
        self._stack = ExitStack()
        self._path = self.arguments["path"]

    def before(self) -> None:
        """Takes a copy that nobody knows, unless what is known is the point."""
        if self.setting.get("cache") != "on":
            self._stack.close()
            self._path = str(self._stack.enter_context(fresh_copies([Path(self.arguments["path"])]))[0])
        if self.setting.get("index") == "warm":
            self.peer.open(self._path, self.setting).close()
        self.peer.settle()

    def run(self) -> Frames:
        """All in one call."""
        video = self.peer.open(self._path, self.setting)
        if "first" in self.arguments:
            frames = video.first(self.arguments["first"])
        else:
            frames = video.frames_at(self.arguments["indices"])
        video.close()
        return frames

    def after(self, result: Frames) -> Delivered:
        """Counts."""
        return Delivered(len(result), result.picture_count)

    def outputs(self) -> Frames:
        """Those of a run."""
        return self.run()

    def end(self) -> None:
        """Deletes the copy."""
        self._stack.close()


class ManyVideosJob(Job):
    """Ten threads go through videos, ten frames of each, resized. Arguments: `paths`, `frame_count`."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Nothing is open yet."""
        super().__init__(*arguments)
        self._stack = ExitStack()
        self._paths: list[str] = []

    def before(self) -> None:
        """Takes copies that nobody knows."""
        self._stack.close()
        originals = [Path(path) for path in self.arguments["paths"]]
        self._paths = [str(path) for path in self._stack.enter_context(fresh_copies(originals))]
        if self.setting.get("index") == "warm":
            for path in self._paths:
                self.peer.open(path, self.setting).close()
        self.peer.settle()

    def _one(self, path: str) -> Frames:
        video = self.peer.open(path, self.setting, _SIZE)
        frames = video.frames_at(uniform(10, self.arguments["frame_count"]))
        video.close()
        return frames

    def run(self) -> list[Frames]:
        """A video at a time for each thread."""
        with ThreadPoolExecutor(_THREAD_COUNT) as threads:
            return list(threads.map(self._one, self._paths))

    def after(self, result: list[Frames]) -> Delivered:
        """Counts."""
        pictures = [frames.picture_count for frames in result]
        counted = [count for count in pictures if count is not None]
        return Delivered(sum(map(len, result)), sum(counted) if len(counted) == len(pictures) else None)

    def outputs(self) -> Frames:
        """Of the first two videos."""
        parts = [self._one(path) for path in self._paths[:2]]
        pixels = [picture for part in parts for picture in part.as_array()]
        times = [time for part in parts if part.pts_seconds is not None for time in part.pts_seconds]
        return Frames(pixels, times if len(times) == len(pixels) else None)

    def end(self) -> None:
        """Deletes the copies."""
        self._stack.close()


def candidates(peer: str, *, few: bool = False) -> list[Setting]:
    """Settings that may be the best one for a lone caller; a `few` of them for clips that no goal is about.

    Not tried any more is SPDL's codec with one thread, which took half as long again.
    """
    match peer:
        case "TorchCodec":
            # Exact ones took as long or longer, but approximate ones bring other frames of some clips.
            seeks = ("approximate", "exact")
            if few:
                return [{"threads": 0, "seek": seek} for seek in seeks]
            found: list[Setting] = [{"threads": count, "seek": seek} for seek in seeks for count in (0, 1)]
        case "SPDL":
            found = [{"threads": 0, "method": method} for method in ("select", "sample")]
        case "OpenCV":
            found = [{"threads": 0, "seek": seek} for seek in ("none", "index")]
        case _:
            found = [{"threads": count} for count in (0, 1)]
    return found[:1] if few else found


def reeld_contestants(job: str, arguments: dict[str, Any], *, with_cache: bool) -> list[Contestant]:
    """Reeld with its index cold and warm, without its picture cache; and with all its caches, called so."""
    rows: list[tuple[str, Setting]] = [
        ("reeld, index cold", {"cache": "off", "index": "cold"}),
        ("reeld, index warm", {"cache": "off", "index": "warm"}),
    ]
    if with_cache:
        rows.append(("reeld, all caches warm", {"cache": "on"}))
    return [
        Contestant(tool, "reeld", [{"threads": 0, **setting}], job, arguments, must_equal=True)
        for tool, setting in rows
    ]


def _frames_cell(workload: str, label: str, arguments: dict[str, Any], *, is_goal: bool) -> Cell:
    job = "single:FramesJob"
    contestants = reeld_contestants(job, arguments, with_cache=True)
    for peer in NAMES:
        if peer != "reeld":
            must_equal = peer == "TorchCodec"
            contestants.append(
                Contestant(
                    peer,
                    peer,
                    candidates(peer, few=not is_goal or peer in ("decord", "OpenCV")),
                    job,
                    arguments,
                    must_equal=must_equal,
                )
            )
    reference = JobOrder(job, "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
    return Cell(
        "single",
        workload,
        label,
        contestants,
        {"plain": reference},
        rounds_max=None if is_goal else 3,
    )


def _loader_like_cell(videos: list[Clip]) -> Cell:
    job = "single:ManyVideosJob"
    arguments = {
        "paths": [str(video.path) for video in videos],
        "frame_count": min(video.frame_count for video in videos),
    }
    contestants = []
    for each in reeld_contestants(job, arguments, with_cache=False):
        settings = [
            {**each.candidates[0], "threads": 1, "resize": where} for where in ("decoder", "torchvision")
        ]
        contestants.append(_resized(each, settings))
    for peer in NAMES:
        if peer in ("reeld", "torchvision"):
            continue
        settings: list[Setting] = [{"threads": 1}]
        if peer == "TorchCodec":
            settings = [
                {"threads": 1, "seek": "approximate", "resize": where} for where in ("decoder", "torchvision")
            ]
        elif peer == "OpenCV":
            settings = [{"threads": 1, "seek": "none"}]
        # The others were slower than SPDL and TorchCodec whenever this was tried.
        rounds = None if peer in ("SPDL", "TorchCodec") else 1
        contestant = Contestant(
            peer, peer, settings, job, arguments, must_equal=peer == "TorchCodec", rounds_max=rounds
        )
        contestants.append(_resized(contestant, settings))
    references = {
        where: JobOrder(job, "TorchCodec", {"threads": 1, "seek": "exact", "resize": where}, arguments)
        for where in ("decoder", "torchvision")
    }
    label = f"{len(videos)} videos of 360p"
    return Cell("single", "loader-like", label, contestants, references)


def _resized(contestant: Contestant, settings: list[Setting]) -> Contestant:
    """With these settings, compared with what TorchCodec gives when it resizes in the same place."""
    return Contestant(
        contestant.tool,
        contestant.peer,
        settings,
        contestant.job,
        contestant.arguments,
        reference=lambda setting: setting.get("resize", "decoder"),
        must_equal=contestant.must_equal,
        rounds_max=contestant.rounds_max,
    )


def cells(library: Library) -> list[Cell]:
    """Three workloads on each clip, and the set."""
    found = []
    keys = ("gop250", "av1") if library.is_quick else ("gop250", "testsrc2", "hevc", "av1")
    for key in (*keys, *library.own):
        clip = library.clip(key)
        path = str(clip.path)
        count = min(100, clip.frame_count)
        workloads: dict[str, dict[str, Any]] = {
            "10 uniform": {"indices": uniform(10, clip.frame_count)},
            "10 random": {"indices": scattered(10, clip.frame_count)},
            f"first {count}": {"first": count},
        }
        for workload, arguments in workloads.items():
            # One workload shows how clips differ.
            is_goal = key == "gop250"
            is_left_out = workload != "10 random"
            if is_goal or key in library.own or not is_left_out:
                found.append(_frames_cell(workload, clip.name, {"path": path, **arguments}, is_goal=is_goal))
    found.append(_loader_like_cell(library.short_h264(50)))
    return found
