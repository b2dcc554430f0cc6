"""As LeRobot trains: windows of frames at random moments of episodes, in AV1 with a GOP of two.

A sample is the frames at fixed distances before its moment (LeRobot's delta timestamps), so neighbouring
samples overlap. TorchCodec and PyAV are used as LeRobot uses them: the one with a cache of 100 open decoders
in each worker and approximate seeks, the other with a container opened for each sample.
"""

from __future__ import annotations

import random
from typing import Any

from suite.clips import Clip
from suite.contest import Cell, Contestant
from suite.job import JobOrder
from suite.peers.base import Setting
from suite.scenarios.datasets import Sample
from suite.scenarios.library import Library

_SEED = 0
_BATCH = 8
# A tenth of a second each, at 30 pictures a second.
_DELTAS = [-15, -12, -9, -6, -3, 0]
_LEROBOT_DECODERS = 100


def plan(videos: list[Clip], count: int) -> list[Sample]:
    """Random moments of random episodes, in an order that is always the same."""
    choice = random.Random(_SEED)
    samples: list[Sample] = []
    for _ in range(count):
        video = choice.choice(videos)
        moment = choice.randrange(-min(_DELTAS), video.frame_count)
        samples.append((str(video.path), [moment + delta for delta in _DELTAS]))
    return samples


def _contestants(arguments: dict[str, Any]) -> list[Contestant]:
    job = "loader:EpochsJob"
    cache: Setting = {"cache": "on", "threads": 0}
    rows: list[tuple[str, str, list[Setting]]] = [
        ("reeld, ClipLoader", "reeld", [{**cache, "way": "cliploader"}]),
        ("reeld, dataset", "reeld", [{**cache, "way": "dataloader"}]),
        ("TorchCodec", "TorchCodec", [{"threads": 1, "seek": "approximate", "keep": _LEROBOT_DECODERS}]),
    ]
    if arguments["worker_count"] > 1:
        # Alone it was slower than TorchCodec whenever it was tried, and takes the longest.
        rows.append(("PyAV", "PyAV", [{"threads": 1, "keep": 0}]))
    return [
        Contestant(
            tool,
            peer,
            settings,
            job,
            arguments,
            must_equal=peer != "PyAV",
            rounds_max=1 if peer == "PyAV" else None,
        )
        for tool, peer, settings in rows
    ]


def cells(library: Library) -> list[Cell]:
    """With eight workers and with one."""
    videos = library.short_av1(4 if library.is_quick else 8)
    found = []
    for worker_count in (2,) if library.is_quick else (8, 1):
        arguments = {
            "plan": plan(videos, 16 if library.is_quick else 256),
            "epoch_count": 1,
            "batch_size": _BATCH,
            "worker_count": worker_count,
            "size": None,
        }
        reference = JobOrder("loader:ReferenceJob", "TorchCodec", {"threads": 1, "seek": "exact"}, arguments)
        found.append(
            Cell(
                "robot",
                f"windows of {len(_DELTAS)}, {worker_count} workers",
                f"{len(videos)} episodes, AV1 480p",
                _contestants(arguments),
                {"plain": reference},
                is_fresh=True,
                has_warm_up=False,
                rounds_max=3,
                common_outputs="robot",
            )
        )
    return found
