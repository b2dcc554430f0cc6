"""Datasets for a DataLoader, and the ways to go through them: shared by `loader`, `robot` and `worker`.

What is asked for is a plan: a list of (video, frame indices), as many for each epoch.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Generator, Iterator
from typing import Any

from suite.peers.base import Frames, Peer, Setting, Video

# A path and the indices of the frames that are wanted of it.
Sample = tuple[str, list[int]]


def as_tensor(frames: Frames) -> Any:  # noqa: ANN401 # torch is imported late
    """(N, C, H, W), as training wants it."""
    torch = importlib.import_module("torch")
    pixels = frames.pixels
    if isinstance(pixels, torch.Tensor):
        return pixels
    return torch.from_numpy(frames.as_array()).permute(0, 3, 1, 2)


class PeerDataset:
    """A dataset as users of any library write it. Setting `keep`: how many open videos a worker keeps."""

    def __init__(
        self, peer: Peer, setting: Setting, plan: list[Sample], size: tuple[int, int] | None
    ) -> None:
        """Opens nothing: that is done in the workers."""
        self._peer = peer
        self._setting = setting
        self._plan = plan
        self._size = size
        self._videos: dict[str, Video] = {}

    def __len__(self) -> int:
        """Samples of all epochs."""
        return len(self._plan)

    def _video(self, path: str) -> Video:
        video = self._videos.pop(path, None)
        if video is None:
            video = self._peer.open(path, self._setting, self._size)
        # The one that was used last is at the end.
        self._videos[path] = video
        while len(self._videos) > max(1, self._setting.get("keep", 0)):
            self._videos.pop(next(iter(self._videos))).close()
        return video

    def __getitem__(self, number: int) -> Any:  # noqa: ANN401 # a tensor
        """The frames of one sample."""
        path, indices = self._plan[number]
        return as_tensor(self._video(path).frames_at(indices))


class ReeldDataset:
    """reeld's way: a batch is one request, for a DataLoader and for `reeld.torch.ClipLoader`."""

    def __init__(self, peer: Any, setting: Setting, plan: list[Sample], size: tuple[int, int] | None) -> None:  # noqa: ANN401
        """Opens nothing: that is done where the frames are asked for."""
        self._peer = peer
        self._setting = setting
        self._plan = plan
        self._size = size
        self._decoders: dict[str, Any] = {}
        self._resize: Any = None
        if size is not None and setting.get("resize") != "decoder":
            self._resize = importlib.import_module("suite.peers.torchcodec").torchvision_resize(size)

    def __len__(self) -> int:
        """Samples of all epochs."""
        return len(self._plan)

    def _decoder(self, path: str) -> Any:  # noqa: ANN401 # reeld's class
        # All are kept: an open one costs its process a few hundred bytes.
        if path not in self._decoders:
            self._decoders[path] = self._peer.decoder(path, self._setting, self._size)
        return self._decoders[path]

    def _frames(self, numbers: list[int]) -> Any:  # noqa: ANN401 # reeld's PendingFrames
        clip = self._peer.library.Clip
        wanted = (self._plan[number] for number in numbers)
        return self._peer.library.submit(
            [clip(self._decoder(path), indices=indices) for path, indices in wanted]
        )

    def _samples(self, batches: list[Any]) -> list[Any]:
        # As FrameBatch they become a batch, and go from a worker to the trainer, without a copy.
        return batches if self._resize is None else [self._resize(batch.data) for batch in batches]

    def submit(self, numbers: list[int]) -> Any:  # noqa: ANN401 # reeld's PendingSamples
        """For `ClipLoader`."""
        pending = importlib.import_module("reeld.torch").PendingSamples
        return pending(self._frames(numbers), self._samples)

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        """For a DataLoader."""
        return self._samples(self._frames(numbers).result())

    def __getitem__(self, number: int) -> Any:  # noqa: ANN401 # a tensor
        """For the comparison of outputs."""
        return self.__getitems__([number])[0]


class Epochs:
    """Batches of one epoch after the other, by the way that the setting names.

    `way`: "dataloader", "cliploader" (reeld's) or "pipeline" (SPDL's threads in a subprocess). The order of
    the samples is that of the plan.
    """

    def __init__(self, dataset: Any, way: str, epoch_length: int, batch_size: int, worker_count: int) -> None:  # noqa: ANN401
        """Starts nothing but what the library starts by being made."""
        self._dataset = dataset
        self._numbers = range(epoch_length)
        self._batch_size = batch_size
        self._sampler = _EpochSampler(epoch_length, batch_size)
        match way:
            case "cliploader":
                loader = importlib.import_module("reeld.torch").ClipLoader
                # As many requests in flight as workers would prefetch batches.
                self._loader: Any = loader(
                    dataset, batch_sampler=self._sampler, window=max(4, worker_count), collate_fn=_collate()
                )
            case "pipeline":
                self._loader = _spdl_pipeline(dataset, self._sampler, worker_count)
            case "dataloader":
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                self._loader = importlib.import_module("torch.utils.data").DataLoader(
                    dataset,
                    batch_sampler=self._sampler,
                    num_workers=worker_count,
                    persistent_workers=True,
                    collate_fn=_collate() if isinstance(dataset, ReeldDataset) else None,
                )
            case unknown:
                raise ValueError(unknown)

    def epoch(self, number: int) -> Generator[Any, None, None]:
        """The batches of an epoch."""
        self._sampler.epoch = number
        yield from self._loader


class _EpochSampler:
    """Batches of numbers: those of the epoch that is set. Picklable, as all ways need it."""

    def __init__(self, epoch_length: int, batch_size: int) -> None:
        self.epoch = 0
        self._epoch_length = epoch_length
        self._batch_size = batch_size

    def __len__(self) -> int:
        return (self._epoch_length + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        start, end = self.epoch * self._epoch_length, (self.epoch + 1) * self._epoch_length
        for first in range(start, end, self._batch_size):
            yield list(range(first, min(first + self._batch_size, end)))


def _collate() -> Any:  # noqa: ANN401 # a function of reeld's or torch's
    if importlib.util.find_spec("reeld.torch") is not None:
        return importlib.import_module("reeld.torch").collate
    return importlib.import_module("torch.utils.data").default_collate


class _SpdlPipeline:
    """SPDL's pipeline in a subprocess, as its documentation advises: its threads have a GIL of their own."""

    def __init__(self, dataset: PeerDataset, sampler: _EpochSampler, thread_count: int) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._thread_count = thread_count
        self._pipeline = importlib.import_module("spdl.pipeline")

    def __iter__(self) -> Iterator[Any]:
        numbers = [number for batch in self._sampler for number in batch]
        builder = self._pipeline.PipelineBuilder().add_source(numbers)
        builder = builder.pipe(
            self._dataset.__getitem__, concurrency=self._thread_count, output_order="input"
        )
        builder = builder.aggregate(self._sampler._batch_size).pipe(_stacked).add_sink(3)
        yield from self._pipeline.run_pipeline_in_subprocess(
            builder.get_config(), num_threads=self._thread_count + 1, mp_context="fork"
        )


def _stacked(samples: list[Any]) -> Any:  # noqa: ANN401 # a tensor
    return importlib.import_module("torch").stack(samples)


def _spdl_pipeline(dataset: PeerDataset, sampler: _EpochSampler, thread_count: int) -> _SpdlPipeline:
    return _SpdlPipeline(dataset, sampler, thread_count)


def dataset_for(peer: Peer, setting: Setting, plan: list[Sample], size: tuple[int, int] | None) -> Any:  # noqa: ANN401
    """The dataset of a library."""
    kind = ReeldDataset if peer.name == "reeld" else PeerDataset
    return kind(peer, setting, plan, size)
