"""The LeRobot backend of examples/ gives what LeRobot gives with TorchCodec, frames and errors."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support import REPOSITORY, Outcome, Reference, assert_error_fits, outcome

# Made with the defaults of LeRobot's recorder: AV1, a keyframe every other frame, 30 frames per second.
CLIP = "lerobot_av1.mp4"
FPS = 30
FRAME_COUNT = 60


def example() -> ModuleType:
    """examples/lerobot_backend.py as a module."""
    path = REPOSITORY / "examples" / "lerobot_backend.py"
    spec = importlib.util.spec_from_file_location("lerobot_backend", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lerobot_backend"] = module
    spec.loader.exec_module(module)
    return module


backend = example()


class TimestampError(ValueError):
    """What LeRobot raises where no frame is close enough."""


def as_lerobot(path: str, timestamps: list[float], tolerance_s: float, return_uint8: bool) -> torch.Tensor:
    """LeRobot's steps, with TorchCodec: by index at the header's rate, then the closest of what came."""
    decoder = Reference(path, seek_mode="approximate")
    rate = decoder.metadata.average_fps
    batch = decoder.get_frames_at(indices=[round(time * rate) for time in timestamps])
    asked, came = torch.tensor(timestamps), torch.tensor(batch.pts_seconds.tolist())
    distance, place = torch.cdist(asked[:, None], came[:, None], p=1).min(1)
    if not (distance <= tolerance_s).all():
        raise TimestampError("too far")
    frames = torch.stack([batch.data[number] for number in place])
    return frames if return_uint8 else (frames / 255.0).type(torch.float32)


def assert_alike(path: str, timestamps: list[float], tolerance_s: float, return_uint8: bool) -> Outcome:
    """The same frames, or an error of the same kind."""
    expected = outcome(lambda: as_lerobot(path, timestamps, tolerance_s, return_uint8))
    ours = outcome(
        lambda: backend.decode_video_frames(path, timestamps, tolerance_s, return_uint8=return_uint8)
    )
    if expected.error is None:
        assert ours.error is None, ours.error
        assert (ours.value.dtype, ours.value.shape) == (expected.value.dtype, expected.value.shape)
        assert torch.equal(ours.value, expected.value)
    else:
        kind: Any = type(expected.error)
        assert ours.error is not None
        assert_error_fits(ours.error, backend.FrameTimestampError if kind is TimestampError else kind)
    return ours


@pytest.mark.parametrize("return_uint8", [False, True])
@pytest.mark.parametrize("clip", [CLIP, "h264_bframes.mp4"])
def test_frames_of_a_recorders_times(media: Path, clip: str, return_uint8: bool) -> None:
    rate = FPS if clip == CLIP else 25
    times = [number / rate for number in (0, 1, 7, 8, 9, 30, 49)]
    frames = assert_alike(str(media / clip), times, 1e-4, return_uint8).value
    assert frames.dtype == (torch.uint8 if return_uint8 else torch.float32)
    assert frames.shape[:2] == (7, 3)
    assert frames.max() == (255 if return_uint8 else 1)


def test_random_times_and_tolerances_come_out_alike(media: Path) -> None:
    choice = random.Random(2024)
    errors = set()
    for _ in range(80):
        count = choice.randint(1, 5)
        times = [choice.uniform(-0.1, FRAME_COUNT / FPS + 0.05) for _ in range(count)]
        times = [round(time * FPS) / FPS if choice.random() < 0.7 else time for time in times]
        tolerance_s = choice.choice([1e-4, 0.5 / FPS, 0.02, 1.0])
        errors.add(type(assert_alike(str(media / CLIP), times, tolerance_s, choice.random() < 0.5).error))
    errors.add(type(assert_alike(str(media / CLIP), [0.1], float("nan"), return_uint8=False).error))
    # All that can happen did happen.
    assert {type(None), backend.FrameTimestampError} < errors
    assert any(issubclass(error, IndexError) for error in errors)


def test_times_out_of_order_and_repeated(media: Path) -> None:
    assert_alike(str(media / CLIP), [1.0, 0.5, 0.5, 1.5, 0.0], 1e-4, True)


@pytest.mark.parametrize("return_uint8", [False, True])
def test_times_in_any_sequence_and_none_at_all(media: Path, return_uint8: bool) -> None:
    expected = backend.decode_video_frames(media / CLIP, [0.5, 1.0], 1e-4, return_uint8=return_uint8)
    for times in (
        torch.tensor([0.5, 1.0]),
        torch.tensor([0.5, 1.0]).double(),
        np.array([0.5, 1.0]),
        (0.5, 1.0),
    ):
        found = backend.decode_video_frames(media / CLIP, times, 1e-4, return_uint8=return_uint8)
        assert torch.equal(found, expected)
    for times in ([], torch.tensor([])):
        found = backend.decode_video_frames(media / CLIP, times, 1e-4, return_uint8=return_uint8)
        assert (found.shape, found.dtype) == ((0, *expected.shape[1:]), expected.dtype)


def test_a_time_between_frames_is_an_error_that_names_it(media: Path) -> None:
    with pytest.raises(backend.FrameTimestampError, match=r"0\.51"):
        backend.decode_video_frames(media / CLIP, [0.5, 0.51], 1e-4)
    assert issubclass(backend.FrameTimestampError, ValueError)


def test_backends_and_depth_maps_that_there_are_not(media: Path) -> None:
    for name in (None, "torchcodec", "reeld"):
        assert backend.decode_video_frames(media / CLIP, [0.0], 1e-4, name).shape[0] == 1
    with pytest.raises(ValueError, match="pyav"):
        backend.decode_video_frames(media / CLIP, [0.0], 1e-4, "pyav")
    with pytest.raises(ValueError, match="12 bits"):
        backend.decode_video_frames(media / CLIP, [0.0], 1e-4, is_depth=True)


def test_decoders_are_kept_but_not_too_many(media: Path) -> None:
    backend.open_video.cache_clear()
    for _ in range(3):
        backend.decode_video_frames(media / CLIP, [0.0], 1e-4)
    assert backend.open_video.cache_info()[:2] == (2, 1)
    assert backend.open_video.cache_info().maxsize == backend.DECODERS_MAX
