"""`reeld.torch.collate`: what becomes of samples with frames in them, and which pixels are copied for it."""

from __future__ import annotations

import gc
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import reeld
import torch
from reeld.torch import VideoClips, collate
from support import TWENTY, Daemon, Reference, VideoDecoder, digest, eventually, mapping_of
from torch.utils.data import DataLoader, default_collate

ARENA = "memfd:reeld-arena"
INDICES = [7, 0, 29]


@pytest.fixture(autouse=True)
def no_leases_before(daemon: Daemon) -> None:
    """What earlier tests held is dead by now; its leases may still be on their way."""
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the leases of earlier tests are given back")


def clips_of(media: Path, count: int, **options: Any) -> list[reeld.FrameBatch]:
    """Clips of so many videos, by one request."""
    decoders = [VideoDecoder(str(media / name), **options) for name in TWENTY[:count]]
    return reeld.submit([reeld.Clip(decoder, indices=INDICES) for decoder in decoders]).result()


def reference_of(media: Path, count: int, **options: Any) -> torch.Tensor:
    """The same clips as TorchCodec decodes them."""
    decoders = [Reference(str(media / name), **options) for name in TWENTY[:count]]
    return torch.stack([decoder.get_frames_at(INDICES).data for decoder in decoders])


# ----------------------------------------------------------------------------------------- no copy


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_clips_of_one_reply_are_one_view(media: Path, count: int, order: str, dtype: torch.dtype) -> None:
    copied_before = reeld.statistics()["bytes_copied_out"]
    clips = clips_of(media, count, dimension_order=order, output_dtype=dtype)
    batch = collate(clips)
    assert reeld.statistics()["bytes_copied_out"] == copied_before
    assert batch.data.data_ptr() == clips[0].data.data_ptr()
    assert [part.data_ptr() for part in batch.data] == [clip.data.data_ptr() for clip in clips]
    assert ARENA in mapping_of(batch.data.data_ptr())
    assert torch.equal(batch.data, reference_of(media, count, dimension_order=order, output_dtype=dtype))


def test_torchs_default_makes_the_same_batches(media: Path) -> None:
    clips = clips_of(media, 3)
    samples = [{"clip": clip, "frame": VideoDecoder(media / TWENTY[0])[0], "label": 3} for clip in clips]
    ours, default = collate(samples), default_collate(samples)
    assert torch.equal(ours["clip"].data, default["clip"].data)
    assert torch.equal(ours["clip"].pts_seconds, default["clip"].pts_seconds)
    assert ours["label"].tolist() == default["label"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("worker_count", [0, 1])
def test_a_data_loader_needs_no_collate_fn(media: Path, worker_count: int) -> None:
    dataset = VideoClips([media / name for name in TWENTY[:4]], frames_per_clip=3, targets=range(4))
    loader = DataLoader(dataset, batch_size=2, num_workers=worker_count, multiprocessing_context=None)
    expected = DataLoader(dataset, batch_size=2, collate_fn=collate)
    for (clips, targets), (clips_expected, targets_expected) in zip(loader, expected, strict=True):
        assert torch.equal(clips.data, clips_expected.data)
        assert torch.equal(clips.pts_seconds, clips_expected.pts_seconds)
        assert targets.tolist() == targets_expected.tolist()


def test_clips_of_an_odd_size_are_one_view(media: Path) -> None:
    # 161 x 120 x 3 bytes are no multiple of a cache line, at which other results begin.
    decoder = VideoDecoder(str(media / "odd_width.webm"))
    clips = reeld.submit([reeld.Clip(decoder, indices=[index]) for index in (4, 9, 2)]).result()
    batch = collate(clips)
    assert batch.data.data_ptr() == clips[0].data.data_ptr()
    expected = Reference(str(media / "odd_width.webm")).get_frames_at([4, 9, 2]).data
    assert torch.equal(batch.data[:, 0], expected)


def test_a_view_of_a_reply_can_be_written_to_and_holds_its_lease(media: Path, daemon: Daemon) -> None:
    clips = clips_of(media, 3)
    names = [digest(clip.data) for clip in clips]
    batch = collate(clips)
    del clips
    gc.collect()
    assert daemon.lease_count() == 1
    assert [digest(clip) for clip in batch.data] == names
    batch.data[1].zero_()
    assert [digest(clip) == name for clip, name in zip(batch.data, names, strict=True)] == [True, False, True]
    last = batch.data[2, -1]
    del batch
    gc.collect()
    assert daemon.lease_count() == 1
    del last
    gc.collect()
    eventually(lambda: daemon.lease_count() == 0, "the lease is given back with the last view")


# -------------------------------------------------------------------------------------------- copy


REASONS = [
    "another order",
    "one left out",
    "the same twice",
    "overlapping",
    "uneven",
    "several replies",
    "laid out differently",
    "somebody's own",
]


def apart(media: Path) -> dict[str, list[torch.Tensor]]:
    """Tensors of which no one view can be made, by the reason."""
    clips = [clip.data for clip in clips_of(media, 4)]
    whole = VideoDecoder(str(media / TWENTY[0])).get_frames_at(range(6)).data
    return {
        "another order": [clips[1], clips[0]],
        "one left out": [clips[0], clips[2]],
        "the same twice": [clips[0], clips[0]],
        "overlapping": [whole[0:4], whole[1:5]],
        "uneven": [clips[0], clips[1], clips[3]],
        "several replies": [clips_of(media, 1)[0].data for _ in range(3)],
        "laid out differently": [clips[0], clips[1].contiguous()],
        "somebody's own": [clip.to(torch.float64) for clip in clips],
    }


@pytest.mark.parametrize("reason", REASONS)
def test_what_does_not_lie_side_by_side_is_copied(media: Path, reason: str) -> None:
    tensors = apart(media)[reason]
    times = torch.zeros(tensors[0].shape[0], dtype=torch.float64)
    copied_before = reeld.statistics()["bytes_copied_out"]
    batch = collate([reeld.FrameBatch(tensor, times, times) for tensor in tensors])
    assert torch.equal(batch.data, torch.stack(tensors))
    assert "memfd" not in mapping_of(batch.data.data_ptr())
    assert reeld.statistics()["bytes_copied_out"] == copied_before + batch.data.nbytes


def test_a_copy_is_laid_out_as_its_parts_are(media: Path) -> None:
    first, second = clips_of(media, 2)
    batch = collate([second, first])
    assert batch.data.stride()[1:] == first.data.stride()
    assert batch.data.movedim(-3, -1).is_contiguous()


def test_views_in_one_reply_that_are_even_are_one_view_too(media: Path) -> None:
    whole = VideoDecoder(str(media / TWENTY[0])).get_frames_at(range(6))
    batch = collate([whole[0:2], whole[2:4], whole[4:6]])
    assert batch.data.data_ptr() == whole.data.data_ptr()
    assert torch.equal(batch.data.flatten(0, 1), whole.data)


# --------------------------------------------------------------------------------------- structures


class Sample(NamedTuple):
    """A clip and its label."""

    clip: reeld.FrameBatch
    label: int


def test_times_become_float64_of_clips_and_frames(media: Path) -> None:
    clips = clips_of(media, 3)
    batch = collate(clips)
    assert batch.pts_seconds.shape == batch.duration_seconds.shape == (3, 3)
    assert batch.pts_seconds.dtype == batch.duration_seconds.dtype == torch.float64
    assert batch.pts_seconds.tolist() == [clip.pts_seconds.tolist() for clip in clips]


def test_single_frames_become_a_batch(media: Path) -> None:
    decoder, reference = VideoDecoder(str(media / TWENTY[3])), Reference(str(media / TWENTY[3]))
    batch = collate([decoder.get_frame_at(index) for index in INDICES])
    expected = reference.get_frames_at(INDICES)
    assert isinstance(batch, reeld.FrameBatch)
    assert torch.equal(batch.data, expected.data)
    assert batch.pts_seconds.tolist() == expected.pts_seconds.tolist()
    assert batch.duration_seconds.tolist() == expected.duration_seconds.tolist()
    assert batch.data.stride() == expected.data.stride()


def test_frames_lie_in_structures_as_anything_else(media: Path) -> None:
    clips = clips_of(media, 2)
    address = clips[0].data.data_ptr()
    pair = collate([(clips[0], 1.5), (clips[1], 2.5)])
    assert isinstance(pair, list)
    assert (pair[0].data.data_ptr(), pair[1].tolist()) == (address, [1.5, 2.5])
    listed = collate([[clips[0], "a"], [clips[1], "b"]])
    assert (listed[0].data.data_ptr(), tuple(listed[1])) == (address, ("a", "b"))
    keyed = collate([OrderedDict(clip=clip, more={"n": 3}) for clip in clips])
    assert isinstance(keyed, OrderedDict)
    assert (keyed["clip"].data.data_ptr(), keyed["more"]["n"].tolist()) == (address, [3, 3])
    named = collate([Sample(clips[0], 7), Sample(clips[1], 8)])
    assert isinstance(named, Sample)
    assert (named.clip.data.data_ptr(), torch.as_tensor(named.label).tolist()) == (address, [7, 8])


def test_samples_without_frames_become_what_torch_makes_of_them() -> None:
    samples = [({"x": torch.ones(2), "name": "a"}, 1), ({"x": torch.zeros(2), "name": "b"}, 2)]
    ours, theirs = collate(samples), default_collate(samples)
    assert torch.equal(ours[0]["x"], theirs[0]["x"])
    assert (ours[0]["name"], ours[1].tolist()) == (theirs[0]["name"], theirs[1].tolist())


def test_clips_of_different_sizes_are_an_error_that_says_what_to_do(media: Path) -> None:
    paths = [media / TWENTY[0], media / "h264_bframes.mp4"]
    clips = reeld.submit([reeld.Clip(path, indices=[0]) for path in paths]).result()
    with pytest.raises(reeld.InvalidRequestError, match=r"\(1, 3, 180, 320\).*transforms"):
        collate(clips)


def test_what_torch_cannot_put_into_a_batch_is_its_type_error(media: Path) -> None:
    with pytest.raises(TypeError, match="default_collate"):
        collate([(clip, object()) for clip in clips_of(media, 2)])


# ------------------------------------------------------------------------------- what trainers call


def test_a_batch_moves_as_a_whole(media: Path) -> None:
    batch = collate(clips_of(media, 2))
    assert batch.to("cpu") is batch
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert isinstance(moved, reeld.FrameBatch)
    assert (moved.data.device.type, moved.data.shape) == ("meta", batch.data.shape)
    assert moved.pts_seconds is batch.pts_seconds
    frame = VideoDecoder(str(media / TWENTY[0])).get_frame_at(0)
    assert frame.to("meta").data.device.type == "meta"
