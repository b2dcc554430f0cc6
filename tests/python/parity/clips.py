"""The files that programs are about, how often each is chosen, and what a generator must know of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import EXTRA_MEDIA, MEDIA, extra_files, outcome, recipes
from torchcodec.decoders import Demuxer, VideoDecoder

# Clips of which a single frame costs up to a second, or of which there are twenty alike. All others weigh 1.
WEIGHTS = {
    "slow.mp4": 0.02,
    "large_result.mp4": 0.05,
    "ten_quotas.mp4": 0.2,
    **{f"twenty_{number:02}.mp4": 0.1 for number in range(recipes.TWENTY)},
}
# Clips of which TorchCodec's frames depend on the calls before; test_timeless.py is about them.
TIMELESS = [clip.name for clip in recipes.timeless()]
# Files that no decoder can be made from: one answer each, which needs no hundred programs.
UNREADABLE_WEIGHT = 0.2


@dataclass(frozen=True)
class Facts:
    """What there is to be asked for in one stream of one file."""

    begin_seconds: float
    end_seconds: float
    pts_seconds: tuple[float, ...]
    duration_seconds: tuple[float, ...]
    key_frames: tuple[int, ...]
    height: int
    width: int

    @property
    def frame_count(self) -> int:
        """How many frames there are."""
        return len(self.pts_seconds)


# What is assumed of files that cannot be opened: their programs ask as if they could.
UNKNOWN = Facts(0.0, 2.0, tuple(i / 25 for i in range(50)), (1 / 25,) * 50, (0, 25), 180, 320)


def all_clips() -> list[str]:
    """The names of all files, generated and extra, in an order that lasts."""
    generated = [clip.name for clip in recipes.all_clips() if clip.name not in TIMELESS]
    return [*generated, *(file.name for file in extra_files() if file.name not in generated)]


def path(clip: str) -> Path:
    """Where a file lies."""
    generated = MEDIA / clip
    if not generated.exists() and EXTRA_MEDIA is not None:
        return Path(EXTRA_MEDIA) / clip
    return generated


def weight(clip: str) -> float:
    """How often a file is chosen beside others."""
    return WEIGHTS.get(clip, UNREADABLE_WEIGHT if facts(clip, None) is UNKNOWN else 1.0)


@functools.cache
def best_stream(clip: str) -> int:
    """The video stream that FFmpeg prefers; 0 where there is none."""
    opened = outcome(lambda: VideoDecoder(str(path(clip))))
    return 0 if opened.error is not None else opened.value.stream_index


@functools.cache
def facts(clip: str, stream_index: int | None) -> Facts:
    """What TorchCodec's scan says of a stream; UNKNOWN where it cannot be opened."""
    file = str(path(clip))
    opened = outcome(lambda: VideoDecoder(file, stream_index=stream_index))
    if opened.error is not None:
        return UNKNOWN
    metadata = opened.value.metadata
    streams: Any = Demuxer(file, streams=metadata.stream_index).streams
    index = streams[0].scan()
    if not metadata.num_frames or len(index.pts_seconds) != metadata.num_frames:
        return UNKNOWN
    return Facts(
        begin_seconds=float(metadata.begin_stream_seconds),
        end_seconds=float(metadata.end_stream_seconds),
        pts_seconds=tuple(index.pts_seconds.tolist()),
        duration_seconds=tuple(index.duration_seconds.tolist()),
        key_frames=tuple(index.is_key_frame.nonzero().flatten().tolist()),
        height=metadata.height,
        width=metadata.width,
    )
