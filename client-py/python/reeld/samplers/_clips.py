"""What all samplers have in common: filling up a clip that reaches past the end, and the batch of all clips.

Where clips begin does not live here but in `_by_index.py` and `_by_time.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from reeld.errors import ArgumentTypeError, InvalidRequestError
from reeld.frames import FrameBatch

if TYPE_CHECKING:
    from reeld.decoders import VideoDecoder

    Policy = Literal["repeat_last", "wrap", "error"]

Place = TypeVar("Place", int, float)
"""Where a frame is: its index, or a time in seconds."""


def repeat_last(places: list[Place], desired_len: int) -> list[Place]:
    """The last place once more, as often as any are missing: 1 2 3 3 3."""
    return places + [places[-1]] * (desired_len - len(places))


def wrap(places: list[Place], desired_len: int) -> list[Place]:
    """From the clip's beginning again, as often as it takes: 1 2 3 1 2."""
    return [places[position % len(places)] for position in range(desired_len)]


def refuse(places: list[Place], desired_len: int) -> list[Place]:
    """No clip at all.

    Raises:
        InvalidRequestError: Always.
    """
    raise InvalidRequestError(
        f"A clip of {desired_len} frames has only {len(places)} before the end; the others lie beyond the "
        "number of frames in the video, and policy='error' does not let them be replaced. Leave "
        "sampling_range_end out, or choose another policy."
    )


POLICIES: dict[str, Callable[..., list]] = {
    "repeat_last": repeat_last,
    "wrap": wrap,
    "error": refuse,
}


def check_common(decoder: VideoDecoder, num_frames_per_clip: int, policy: str) -> None:
    """What holds for every sampler.

    Raises:
        InvalidRequestError: The video has no frames, or one of the arguments is not allowed.
    """
    if len(decoder) < 1:
        raise InvalidRequestError("There is no clip to sample: the video has no frames.")
    check_positive("num_frames_per_clip", num_frames_per_clip, "strictly positive")
    if policy not in POLICIES:
        raise InvalidRequestError(f"Invalid policy {policy!r}: use one of {', '.join(map(repr, POLICIES))}.")


def check_positive(name: str, value: float, words: str) -> None:
    """Raises an InvalidRequestError, which says `words`, unless the value is a number above 0."""
    try:
        is_positive = value > 0
    except TypeError:
        raise ArgumentTypeError(f"{name} must be a number, not {type(value).__name__}.") from None
    if not is_positive:
        raise InvalidRequestError(f"{name} ({value}) must be {words}.")


def filled(places: list[Place], count: int, policy: Callable[..., list]) -> list[Place]:
    """One clip of `count` places, the missing ones as the policy has it."""
    return places if len(places) == count else policy(places, count)


def as_clips(frames: FrameBatch, num_clips: int, num_frames_per_clip: int) -> FrameBatch:
    """One row per clip. The pixels stay where they are."""
    shape = (num_clips, num_frames_per_clip)
    clips = FrameBatch(
        frames.data.reshape(*shape, *frames.data.shape[1:]),
        frames.pts_seconds.reshape(shape),
        frames.duration_seconds.reshape(shape),
    )
    # So that they can be handed to another process without a copy.
    clips._memory = frames._memory
    return clips
