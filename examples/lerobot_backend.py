"""How a framework adopts reeld: LeRobot's `decode_video_frames`, with reeld as the decoder.

To train with it, put it in the place of LeRobot's own before the dataset is made:

    import lerobot.datasets.dataset_reader
    from lerobot_backend import decode_video_frames

    lerobot.datasets.dataset_reader.decode_video_frames = decode_video_frames

Nothing else changes: frames, dtypes and errors are those of LeRobot's backend "torchcodec". Workers of a
DataLoader then decode nothing and keep no decoders that fill their memory: the daemon does that once for all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from reeld.decoders import VideoDecoder

# Open videos of a process: a descriptor each.
DECODERS_MAX = 100
# LeRobot's names of decoders of the same frames, and None for its default.
BACKENDS = (None, "reeld", "torchcodec")


class FrameTimestampError(ValueError):
    """The video has no frame that is close enough to a time that was asked for."""


@functools.lru_cache(maxsize=DECODERS_MAX)
def open_video(path: str) -> VideoDecoder:
    """The decoder of a video. By LeRobot's own rate, frames need not be searched for in an index."""
    return VideoDecoder(path, seek_mode="approximate")


def decode_video_frames(
    video_path: Path | str,
    timestamps: Sequence[float] | torch.Tensor,
    tolerance_s: float,
    backend: str | None = None,
    return_uint8: bool = False,
    is_depth: bool = False,
) -> torch.Tensor:
    """The frames of a video that are closest to some times.

    Args:
        video_path: The video.
        timestamps: Seconds, in a list, an array or a tensor.
        tolerance_s: How far from its time a frame may be, in seconds.
        backend: ``"torchcodec"``, whose frames these are, ``"reeld"``, or None.
        return_uint8: Whether to give the values as they are decoded, from 0 to 255.
        is_depth: Must be False: depth maps are LeRobot's own matter.

    Returns:
        (N, C, H, W): float32 in [0, 1], or uint8. N may be 0.

    Raises:
        FrameTimestampError: The closest frame to a time is further away than the tolerance.
        IndexError: A time lies behind the last frame.
        ValueError: The backend is another one, or depth maps are asked for.
    """
    if is_depth:
        raise ValueError(
            "Depth maps have 12 bits and one channel: decode them with LeRobot's backend 'pyav'."
        )
    if backend not in BACKENDS:
        raise ValueError(f"Unsupported video backend: {backend}")
    decoder = open_video(str(video_path))
    fps = decoder.metadata.average_fps
    # A decoder that knows no rate could not have been opened so.
    assert fps is not None
    times = [float(seconds) for seconds in timestamps]
    if not times:
        return _as_asked(decoder.get_frames_in_range(0, 0).data, return_uint8)
    batch = decoder.get_frames_at([round(seconds * fps) for seconds in times])
    # In single precision, because LeRobot compares so: the very edge of the tolerance shall be the same.
    wanted = torch.tensor(times, dtype=torch.float32)
    found = batch.pts_seconds.to(torch.float32)
    distances, closest = (wanted[:, None] - found[None, :]).abs().min(dim=1)
    # So that a tolerance of nan lets nothing through.
    is_too_far = ~(distances <= tolerance_s)
    if is_too_far.any():
        missed = [seconds for seconds, is_missed in zip(times, is_too_far, strict=True) if is_missed]
        raise FrameTimestampError(
            f"{video_path} has no frames within {tolerance_s} s of {missed} s: the closest are "
            f"{distances[is_too_far].tolist()} s away. Were they recorded together?"
        )
    is_in_order = torch.equal(closest, torch.arange(len(closest)))
    return _as_asked(batch.data if is_in_order else batch.data[closest], return_uint8)


def _as_asked(frames: torch.Tensor, return_uint8: bool) -> torch.Tensor:
    return frames if return_uint8 else frames.to(torch.float32) / 255
