"""Names of TorchCodec that it does not document, and that programs and its own tests use all the same.

With them a program that reaches into TorchCodec can be moved over step by step. New programs need none of
this: what they should use instead stands beside each name. What TorchCodec has and reeld has not, such as
audio and encoders, is not here.

Decoders themselves have ``_num_frames``, in place of which is ``len(decoder)``; ``_get_key_frame_indices()``,
in place of which is ``decoder.key_frame_indices``; and ``metadata`` can be set. TorchCodec's ``_frame.Frame`` is
``reeld.Frame``, its ``_core._metadata.StreamMetadata`` is ``reeld.metadata.StreamMetadata``.

Example:
    >>> from reeld.compat import _POLICY_FUNCTIONS
    >>> _POLICY_FUNCTIONS["wrap"]([1, 2, 3], desired_len=5)
    [1, 2, 3, 1, 2]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from reeld._arrays import array_tensor
from reeld.decoders import VideoDecoder
from reeld.decoders._mappings import SupportsRead, read_mappings
from reeld.samplers._by_index import clip_indices
from reeld.samplers._by_time import clip_times
from reeld.samplers._clips import POLICIES

if TYPE_CHECKING:
    import torch

SimpleVideoDecoder = VideoDecoder
"""`torchcodec.decoders.SimpleVideoDecoder`, the class's former name."""

_POLICY_FUNCTIONS = POLICIES
"""`torchcodec.samplers._common._POLICY_FUNCTIONS`: called with the places of a clip and `desired_len`.

In place of it: the argument `policy` of `reeld.samplers`.
"""


def _read_custom_frame_mappings(
    custom_frame_mappings: str | bytes | SupportsRead,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`torchcodec.decoders._video_decoder._read_custom_frame_mappings`: what such a mapping says, in columns.

    In place of it: the argument `custom_frame_mappings` of `VideoDecoder`.

    Returns:
        Pts (int64), which frames are keyframes (bool), and durations (int64), one value for each frame; times
        in ticks of the stream's time base.
    """
    pts, durations, are_keys = read_mappings(custom_frame_mappings).columns()
    return array_tensor(pts), array_tensor(are_keys.astype(np.bool_)), array_tensor(durations)


def _build_all_clips_indices(
    *,
    clip_start_indices: Iterable[Any],
    num_frames_per_clip: int,
    num_indices_between_frames: int,
    num_frames_in_video: int,
    policy_fun: Callable[..., list],
) -> list[int]:
    """`torchcodec.samplers._index_based._build_all_clips_indices`: the frames of all clips.

    In place of it: `reeld.samplers.clips_at_random_indices` and `clips_at_regular_indices`.
    """
    starts = [int(start) for start in clip_start_indices]
    return clip_indices(
        starts, num_frames_in_video, num_frames_per_clip, num_indices_between_frames, policy_fun
    )


def _build_all_clips_timestamps(
    *,
    clip_start_seconds: Iterable[Any],
    num_frames_per_clip: int,
    seconds_between_frames: float,
    end_stream_seconds: float,
    policy_fun: Callable[..., list],
) -> list[float]:
    """`torchcodec.samplers._time_based._build_all_clips_timestamps`: the times of all clips.

    In place of it: `reeld.samplers.clips_at_random_timestamps` and `clips_at_regular_timestamps`.
    """
    starts = [float(start) for start in clip_start_seconds]
    return clip_times(starts, end_stream_seconds, num_frames_per_clip, seconds_between_frames, policy_fun)
