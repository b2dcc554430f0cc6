"""A training job: random clips of eight frames at 224x224 from many short videos, for three epochs.

Each library is used as its users do: a DataLoader whose workers keep decoders open or not, SPDL's pipeline in
a subprocess, reeld's dataset in a DataLoader, and reeld's `ClipLoader` without workers. There are two plans:
`new clips`, two epochs of which each begins each clip somewhere else (one with other than eight workers), and
`same clips`, three of which only the order changes, so that a cache can hold the set.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import time
from pathlib import Path
from typing import Any

from suite.clips import Clip
from suite.contest import Cell, Contestant
from suite.job import Delivered, Job, JobOrder
from suite.peers.base import CannotError, Frames, Setting
from suite.scenarios.datasets import Epochs, Sample, as_tensor, dataset_for
from suite.scenarios.library import Library

_SEED = 0
_SIZE = (224, 224)
_FRAMES = 8
_BATCH = 8
_EPOCHS = 3
# Of those that were slower than TorchCodec whenever this was tried. They go through one epoch only.
_FEW_ROUNDS = 1
# Holds all clips of the set at 224x224, and as decoded.
_CACHE_MIB = 3072
# Samples whose frames are compared.
_COMPARED = 8


def plan(videos: list[Clip], epochs: int, *, same: bool) -> list[Sample]:
    """A clip of each video in each epoch, in an order that is always the same."""
    choice = random.Random(_SEED)
    starts = {video.name: choice.randrange(video.frame_count - _FRAMES + 1) for video in videos}
    samples: list[Sample] = []
    for _ in range(epochs):
        order = list(videos)
        choice.shuffle(order)
        for video in order:
            start = starts[video.name] if same else choice.randrange(video.frame_count - _FRAMES + 1)
            samples.append((str(video.path), list(range(start, start + _FRAMES))))
    return samples


class EpochsJob(Job):
    """Goes through the epochs. Arguments: `plan`, `epoch_count`, `batch_size`, `worker_count`, `size`."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 # as for Job
        """Imports what a training process has imported before it makes a loader."""
        super().__init__(*arguments)
        for module in ("torch.utils.data", "torchvision.transforms.v2.functional"):
            importlib.import_module(module)
        if self.setting.get("way") == "cliploader" and importlib.util.find_spec("reeld.torch") is None:
            raise CannotError("this version of reeld has no ClipLoader")

    def _dataset(self) -> Any:  # noqa: ANN401 # one of two kinds
        size = self.arguments["size"]
        samples = [(path, indices) for path, indices in self.arguments["plan"]]
        return dataset_for(self.peer, self.setting, samples, tuple(size) if size else None)

    def before(self) -> None:
        """Has the files in the page cache."""
        for path in {path for path, _ in self.arguments["plan"]}:
            Path(path).read_bytes()

    def run(self) -> dict[str, float]:
        """From making the loader to the last batch; workers are started on the way."""
        begin = time.perf_counter()
        count = self.arguments["epoch_count"]
        length = len(self.arguments["plan"]) // count
        way = self.setting.get("way", "dataloader")
        epochs = Epochs(
            self._dataset(), way, length, self.arguments["batch_size"], self.arguments["worker_count"]
        )
        seconds: dict[str, float] = {}
        frames = 0
        for number in range(count):
            epoch_begin = time.perf_counter() if number else begin
            for samples in epochs.epoch(number):
                # Of a tensor itself, of a FrameBatch its pixels.
                batch = samples.data
                if not seconds:
                    seconds["first_batch_seconds"] = time.perf_counter() - begin
                frames += batch.shape[0] * batch.shape[1]
                # As a training step would, it looks at the pixels.
                batch[..., ::32, ::32].sum().item()
            seconds[f"epoch_{number + 1}_seconds"] = time.perf_counter() - epoch_begin
        seconds["frame_count"] = frames
        return seconds

    def after(self, result: dict[str, float]) -> Delivered:
        """Counts; too few frames are no result."""
        frames = int(result.pop("frame_count"))
        wanted = sum(len(indices) for _, indices in self.arguments["plan"])
        if frames != wanted:
            raise RuntimeError(f"{frames} frames instead of {wanted}")
        return Delivered(frames, values=result)

    def outputs(self) -> Frames:
        """Of the first samples, by the dataset alone."""
        dataset = self._dataset()
        samples = [dataset[number].data for number in range(min(_COMPARED, len(dataset)))]
        return Frames([picture for sample in samples for picture in sample.permute(0, 2, 3, 1).numpy()], None)


class ReferenceJob(Job):
    """TorchCodec's frames of the first samples. Arguments: as for EpochsJob."""

    def run(self) -> None:
        """Is not measured."""
        raise NotImplementedError

    def after(self, result: Any) -> Delivered:  # noqa: ANN401 # as for Job
        """Is not measured."""
        raise NotImplementedError

    def outputs(self) -> Frames:
        """Sample by sample, with a decoder each."""
        size = self.arguments["size"]
        pictures: list[Any] = []
        for path, indices in self.arguments["plan"][:_COMPARED]:
            video = self.peer.open(path, self.setting, tuple(size) if size else None)
            pictures += list(as_tensor(video.frames_at(indices)).permute(0, 2, 3, 1).numpy())
        return Frames(pictures, [0.0] * len(pictures))


def _where(setting: Setting) -> str:
    return setting.get("resize", "decoder")


def resizes() -> list[Setting]:
    """Who resizes: the decoder, or torchvision in the worker."""
    return [{"resize": "decoder"}, {"resize": "torchvision"}]


def references(arguments: dict[str, Any]) -> dict[str, JobOrder]:
    """TorchCodec's frames, resized in either place."""
    return {
        where: JobOrder(
            "loader:ReferenceJob", "TorchCodec", {"threads": 1, "seek": "exact", "resize": where}, arguments
        )
        for where in ("decoder", "torchvision")
    }


def contestants(
    arguments: dict[str, Any], peers: list[str], *, trial: dict[str, Any], is_main: bool
) -> list[Contestant]:
    """Both ways of reeld, and these peers; only the main cell has settings to choose from."""
    job = "loader:EpochsJob"
    cache: Setting = {"cache": "on", "cache_mib": _CACHE_MIB, "threads": 0}

    def one(tool: str, peer: str, settings: list[Setting]) -> Contestant:
        must_equal = peer in ("reeld", "TorchCodec")
        is_brief = peer in ("PyAV", "decord", "OpenCV")
        return Contestant(
            tool,
            peer,
            settings if is_main else settings[:1],
            job,
            trial if is_brief else arguments,
            reference=_where,
            must_equal=must_equal,
            trial_arguments=trial,
            rounds_max=_FEW_ROUNDS if is_brief else None,
        )

    found = [
        one("reeld, ClipLoader", "reeld", [{**cache, "way": "cliploader", **resizes()[0]}]),
        one("reeld, dataset", "reeld", [{**cache, "way": "dataloader", **resizes()[0]}]),
    ]
    settings: dict[str, list[Setting]] = {
        "TorchCodec": [
            {"threads": 1, "seek": "approximate", "keep": keep, **where}
            for keep, where in [(1000, resizes()[0]), (1000, resizes()[1]), (0, resizes()[0])]
        ],
        "SPDL": [{"threads": 1, "way": "pipeline"}],
        "PyAV": [{"threads": 1, "keep": 1000}],
        "decord": [{"threads": 1, "keep": 1000}],
        "OpenCV": [{"threads": 1, "seek": "index", "keep": 1000}],
    }
    return found + [one(peer, peer, settings[peer]) for peer in peers]


def cells(library: Library) -> list[Cell]:
    """All peers with eight workers; the best of them with others; and the plan whose clips stay the same."""
    videos = library.short_h264(12 if library.is_quick else 200)
    label = f"{len(videos)} videos of 360p"
    all_peers = ["TorchCodec"] if library.is_quick else ["TorchCodec", "SPDL", "PyAV", "decord", "OpenCV"]
    found = []
    for same, worker_count in [(False, 8), (True, 8), (False, 1), (False, 4), (False, 16)]:
        if library.is_quick and (same or worker_count != 8):
            continue
        is_main = worker_count == 8
        # Each epoch of new clips is like the one before.
        count = _EPOCHS if same else 2 if is_main else 1
        arguments = {
            "plan": plan(videos, count, same=same),
            "epoch_count": count,
            "batch_size": _BATCH,
            "worker_count": 2 if library.is_quick else worker_count,
            "size": list(_SIZE),
        }
        trial = {**arguments, "plan": plan(videos, 1, same=same), "epoch_count": 1}
        peers = all_peers if is_main and not same else ["TorchCodec"]
        rounds = (2 if same else 3) if is_main else 1
        workload = f"{'same' if same else 'new'} clips, {arguments['worker_count']} workers"
        found.append(
            Cell(
                "loader",
                workload,
                label,
                contestants(arguments, peers, trial=trial, is_main=is_main and not same),
                references(arguments),
                is_fresh=True,
                has_warm_up=False,
                rounds_min=rounds,
                rounds_max=rounds,
                common_outputs=f"loader, {'same' if same else 'new'} clips",
            )
        )
    return found
