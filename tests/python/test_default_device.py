"""Torch's default device is for what a program makes, and not for what a decoder on the CPU returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reeld.samplers
import torch
from reeld.torch import VideoClips, collate
from reeld.transforms import RandomCrop
from support import Reference, VideoDecoder, assert_same

CLIP = "h264_bframes.mp4"

# Those that TorchCodec can make on such a device, too.
SHARED: dict[str, Callable[[Any], Any]] = {
    "a frame": lambda decoder: decoder.get_frame_at(3),
    "a range": lambda decoder: decoder.get_frames_in_range(3, 5),
    "no frames": lambda decoder: decoder.get_frames_played_in_range(1, 1),
    "a rate": lambda decoder: decoder.get_frames_played_in_range(0, 1, 10),
    "no frames at a rate": lambda decoder: decoder.get_frames_played_in_range(1, 1, 10),
}
OWN: dict[str, Callable[[Any], Any]] = {
    "frames": lambda decoder: decoder.get_frames_at([-1, 3]),
    "times": lambda decoder: decoder.get_frames_played_at([0.5, 1]),
    "frames made a batch": lambda decoder: collate([decoder.get_frame_at(1), decoder.get_frame_at(2)]),
    "batches made one": lambda decoder: collate([decoder.get_frames_at([1]), decoder.get_frames_at([1])]),
    "random indices": lambda decoder: reeld.samplers.clips_at_random_indices(decoder),
    "regular indices": lambda decoder: reeld.samplers.clips_at_regular_indices(decoder, num_clips=2),
    "random times": lambda decoder: reeld.samplers.clips_at_random_timestamps(decoder),
    "regular times": lambda decoder: reeld.samplers.clips_at_regular_timestamps(
        decoder, seconds_between_clip_starts=0.5
    ),
}


@pytest.mark.parametrize("name", [*SHARED, *OWN])
def test_results_are_in_the_memory_of_the_cpu(media: Path, name: str) -> None:
    decoder = VideoDecoder(media / CLIP, device="cpu")
    call = {**SHARED, **OWN}[name]
    torch.manual_seed(5)
    expected = call(decoder)
    torch.manual_seed(5)
    with torch.device("meta"):
        found = call(decoder)
    assert found.data.device.type == "cpu"
    assert_same(found, expected)
    if name in SHARED:
        with torch.device("meta"):
            assert_same(found, call(Reference(media / CLIP, device="cpu")))


def test_a_dataset_and_its_crops_are_in_the_memory_of_the_cpu(media: Path) -> None:
    with torch.device("meta"):
        dataset = VideoClips(
            [media / CLIP],
            frames_per_clip=2,
            sampling="random",
            device="cpu",
            transforms=[RandomCrop((9, 9))],
        )
        dataset.set_epoch(3)
        clip = dataset[0]
    assert (clip.data.device.type, clip.pts_seconds.device.type) == ("cpu", "cpu")
    assert clip.data.shape == (2, 3, 9, 9)
