"""The samplers give TorchCodec's clips, with the same seeds, and its exceptions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import reeld.samplers
import torch
import torchcodec.samplers
from reeld.samplers import _numbers
from reeld.samplers._by_time import clip_times
from reeld.samplers._clips import POLICIES as FILLING
from support import Reference, VideoDecoder, assert_same_outcome

INDEX_SAMPLERS = ["clips_at_random_indices", "clips_at_regular_indices"]
POLICIES = ["repeat_last", "wrap", "error"]

# Arguments of the index samplers, for a clip of 60 frames.
INDEX_ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"num_clips": 5, "num_frames_per_clip": 3},
    {"num_clips": 3, "num_frames_per_clip": 4, "num_indices_between_frames": 7},
    {"num_clips": 4, "num_frames_per_clip": 5, "sampling_range_start": -6, "sampling_range_end": 1000},
    {"num_clips": 3, "num_frames_per_clip": 9, "num_indices_between_frames": 20, "sampling_range_end": -1},
    {"num_clips": 12, "sampling_range_start": 10, "sampling_range_end": 15},
    {"num_frames_per_clip": 100},
    {"num_clips": 2, "sampling_range_start": 2**40},
    {"sampling_range_start": -1000},
    {"sampling_range_start": 5, "sampling_range_end": 5},
    {"sampling_range_start": 59, "num_frames_per_clip": 2},
    {"num_clips": 0},
    {"num_clips": -1},
    {"num_frames_per_clip": 0},
    {"num_indices_between_frames": 0},
    {"policy": "bad"},
    {"num_clips": None},
    {"num_clips": "2"},
]

# Arguments of the time samplers, for a clip of two seconds.
TIME_ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"num_frames_per_clip": 3},
    {"num_frames_per_clip": 4, "seconds_between_frames": 0.31},
    {"num_frames_per_clip": 5, "sampling_range_start": 1.7, "sampling_range_end": 1000},
    {"num_frames_per_clip": 4, "seconds_between_frames": 0.9, "sampling_range_end": 1.9},
    {"sampling_range_start": 0.25, "sampling_range_end": 0.26},
    {"num_frames_per_clip": 1000},
    {"sampling_range_start": -1},
    {"sampling_range_start": 1000},
    {"sampling_range_end": -1},
    {"sampling_range_start": 1, "sampling_range_end": 1},
    {"seconds_between_frames": 0},
    {"num_frames_per_clip": 0},
    {"policy": "bad"},
]
PLACEMENTS: list[tuple[str, dict[str, Any]]] = [
    ("clips_at_random_timestamps", {}),
    ("clips_at_random_timestamps", {"num_clips": 7}),
    ("clips_at_random_timestamps", {"num_clips": 0}),
    ("clips_at_regular_timestamps", {"seconds_between_clip_starts": 0.3}),
    ("clips_at_regular_timestamps", {"seconds_between_clip_starts": 1 / 3 - 1e-9}),
    ("clips_at_regular_timestamps", {"seconds_between_clip_starts": 0}),
]


def seeded(samplers: Any, decoder: Any, name: str, arguments: dict[str, Any]) -> Callable[[], Any]:
    def sample() -> Any:
        torch.manual_seed(1234)
        clips = getattr(samplers, name)(decoder, **arguments)
        # The generator has gone on as far, too.
        return clips, torch.rand(1).item()

    return sample


def assert_same_clips(file: Path, name: str, arguments: dict[str, Any], **options: Any) -> None:
    ours = seeded(reeld.samplers, VideoDecoder(file, **options), name, arguments)
    theirs = seeded(torchcodec.samplers, Reference(file, **options), name, arguments)
    assert_same_outcome(lambda: ours()[0], lambda: theirs()[0])
    assert_same_outcome(lambda: ours()[1], lambda: theirs()[1])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", INDEX_SAMPLERS)
def test_index_samplers(media: Path, name: str, policy: str) -> None:
    for arguments in INDEX_ARGUMENTS:
        assert_same_clips(media / "h264_bframes.mp4", name, {"policy": policy, **arguments})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "placement"), PLACEMENTS)
def test_time_samplers(media: Path, name: str, placement: dict[str, Any], policy: str) -> None:
    for arguments in TIME_ARGUMENTS:
        assert_same_clips(media / "h264_bframes.mp4", name, {"policy": policy, **placement, **arguments})


@pytest.mark.parametrize(
    "number", [np.float32(0.31), np.float64(0.31), torch.tensor(1), torch.tensor(0.31)], ids=repr
)
@pytest.mark.parametrize(("name", "placement"), PLACEMENTS)
def test_numbers_of_other_types_are_rounded_as_torchcodec_rounds(
    media: Path, name: str, placement: dict[str, Any], number: Any
) -> None:
    arguments = {**placement, "num_frames_per_clip": 5, "policy": "wrap"}
    assert_same_clips(media / "h264_bframes.mp4", name, {**arguments, "seconds_between_frames": number})
    assert_same_clips(media / "h264_bframes.mp4", name, {**arguments, "sampling_range_end": number})


def test_sums_of_times_are_in_double_precision(media: Path) -> None:
    spacing = np.float32(0.02)
    decoder = VideoDecoder(media / "h264_bframes.mp4")
    times = clip_times(
        [0.68], decoder.metadata.end_stream_seconds or 0, 2, cast("float", spacing), FILLING["error"]
    )
    assert times == [0.68, 0.68 + float(spacing)]


def test_stream_that_begins_late(media: Path) -> None:
    for name, placement in PLACEMENTS:
        assert_same_clips(media / "start_time.mkv", name, {"num_frames_per_clip": 3, **placement})
        assert_same_clips(media / "start_time.mkv", name, placement, dimension_order="NHWC")


def test_metadata_that_do_not_suffice_are_a_value_error(media: Path) -> None:
    decoder = VideoDecoder(media / "h264_bframes.mp4")
    decoder.metadata.average_fps = None
    with pytest.raises(ValueError, match="average fps"):
        reeld.samplers.clips_at_random_timestamps(decoder)


def test_all_clips_are_one_request(media: Path) -> None:
    decoder = VideoDecoder(media / "h264_bframes.mp4")
    clips = reeld.samplers.clips_at_random_indices(decoder, num_clips=8, num_frames_per_clip=4)
    # One slot, and so one stretch of memory, frame by frame.
    assert clips.data.permute(0, 1, 3, 4, 2).is_contiguous()


def test_numbers_without_torch_are_spread_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [
        (first, last, count)
        for first in (0, 3)
        for last in (3, 10, 389, 2**31 - 2)
        for count in (1, 2, 7, 50)
    ]
    with_torch = [_numbers.spread_integers(*arguments) for arguments in grid]
    monkeypatch.setattr("reeld._arrays._torch_module", lambda: None)
    assert [_numbers.spread_integers(*arguments) for arguments in grid] == with_torch
    assert _numbers.spaced_floats(0.0, 1.0, 0.25) == [0.0, 0.25, 0.5, 0.75]


def test_without_torch_numpys_seed_makes_clips_repeatable(media: Path) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from reeld.decoders import VideoDecoder
from reeld.samplers import clips_at_random_indices, clips_at_random_timestamps
decoder = VideoDecoder({str(media / "h264_bframes.mp4")!r})
for sampler in (clips_at_random_indices, clips_at_random_timestamps):
    draws = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        draws.append(sampler(decoder, num_clips=6, num_frames_per_clip=2))
    assert type(draws[0].data) is np.ndarray and draws[0].data.shape[:2] == (6, 2)
    assert (draws[0].pts_seconds == draws[1].pts_seconds).all()
    assert (draws[0].pts_seconds != draws[2].pts_seconds).any()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
