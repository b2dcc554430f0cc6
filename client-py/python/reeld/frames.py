"""Frames as callers get them, with their times.

How the pixels got here does not live in this file: the classes hold any tensor or array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import types
    from typing import Self

    import torch

    from reeld._native import Memory


class _Frames:
    """Shows the shape of ``data`` instead of its values, one field a line, and is copied field by field."""

    # Where the pixels lie if they are a view of the daemon's memory, so that they can be handed to another
    # process without a copy. Not a field, and not more than a hint: `data` may have been replaced.
    _memory: Memory | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Whoever copies or pickles frames gets pixels of their own.
        return {name: value for name, value in self.__dict__.items() if name != "_memory"}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}:"]
        for field in fields(self):  # pyright: ignore[reportArgumentType] # its subclasses are dataclasses
            value = getattr(self, field.name)
            if field.name == "data":
                lines.append(f"  data (shape): {value.shape}")
            else:
                lines.append(f"  {field.name}: {value}")
        return "\n".join(lines) + "\n"


class _Movable:
    """What trainers do with whatever a loader gives them: torch's loader pins it, Lightning moves it."""

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """The same with ``data`` on this device; where it is there already, this object. Times stay.

        Args:
            device: As for ``torch.Tensor.to``.
            non_blocking: Whether not to wait for the copy, if ``data`` is pinned.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> frame = VideoDecoder(video_path).get_frame_at(0)
            >>> frame.to("meta").data.device, frame.to("cpu") is frame
            (device(type='meta'), True)
        """
        data = cast("Any", self).data
        moved = data.to(device, non_blocking=non_blocking)
        return self if moved is data else replace(cast("Any", self), data=moved)

    def pin_memory(self) -> Self:
        """The same with ``data`` in page-locked memory, which is a copy. Times stay where they are.

        ``DataLoader(pin_memory=True)`` calls it; torch refuses where there is no device to pin memory for.

        Example:
            >>> import torch
            >>> from reeld.decoders import VideoDecoder
            >>> frame = VideoDecoder(video_path).get_frame_at(0)
            >>> not torch.cuda.is_available() or frame.pin_memory().data.is_pinned()
            True
        """
        whole = cast("Any", self)
        return replace(whole, data=whole.data.pin_memory())


@dataclass(repr=False)
class Frame(_Movable, _Frames):
    """One frame and when it is shown.

    Iterating gives the three fields, so ``data, pts_seconds, duration_seconds = frame`` works.

    Raises:
        ValueError: ``data`` does not have 3 dimensions.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> data, pts_seconds, duration_seconds = VideoDecoder(video_path).get_frame_at(0)
        >>> data.ndim, isinstance(pts_seconds, float)
        (3, True)
    """

    data: torch.Tensor
    """The pixels, (C, H, W) or (H, W, C): a tensor, or a numpy array where torch is not installed."""
    pts_seconds: float
    """When the frame begins to be shown, in seconds."""
    duration_seconds: float
    """For how long it is shown, in seconds."""

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ValueError(f"A frame's data must be 3-dimensional; its shape is {tuple(self.data.shape)}.")
        self.pts_seconds = float(self.pts_seconds)
        self.duration_seconds = float(self.duration_seconds)

    def __iter__(self) -> Iterator[torch.Tensor | float]:
        return iter((self.data, self.pts_seconds, self.duration_seconds))


@dataclass(repr=False)
class FrameBatch(_Movable, _Frames):
    """Several frames in one tensor, and when each is shown.

    Indexing and slicing apply to all three fields and give another ``FrameBatch``; iterating gives one
    ``FrameBatch`` without the leading dimension per frame.

    Raises:
        ValueError: ``data`` has fewer than 3 dimensions, or its leading dimensions, all but the last three,
            are not the shape of ``pts_seconds`` and ``duration_seconds``.

    Example:
        >>> from reeld.decoders import VideoDecoder
        >>> batch = VideoDecoder(video_path).get_frames_at([0, 2, 4])
        >>> len(batch), batch[1:].data.shape[0], batch[0].data.ndim
        (3, 2, 3)
    """

    data: torch.Tensor
    """The pixels, (…, C, H, W) or (…, H, W, C): a tensor, or a numpy array where torch is not installed."""
    pts_seconds: torch.Tensor
    """When each frame begins to be shown, in seconds: float64, in the CPU's memory."""
    duration_seconds: torch.Tensor
    """For how long each is shown, in seconds: float64, in the CPU's memory."""

    def __post_init__(self) -> None:
        if self.data.ndim < 3:
            raise ValueError(
                f"A batch's data must be at least 3-dimensional; its shape is {tuple(self.data.shape)}."
            )
        leading, pts, durations = self.data.shape[:-3], self.pts_seconds.shape, self.duration_seconds.shape
        if not leading == pts == durations:
            raise ValueError(
                f"The leading dimensions of the inputs do not match: data has {tuple(leading)} before its "
                f"last three, pts_seconds has {tuple(pts)}, duration_seconds has {tuple(durations)}."
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | slice | list[int] | torch.Tensor | types.EllipsisType) -> FrameBatch:
        """Some of the frames, with their times.

        Args:
            key: Anything that indexes the leading dimensions of ``data``.

        Returns:
            A batch without the leading dimension for an integer, else one of so many frames. Its fields are
            views, or copies where torch's or numpy's indexing copies.

        Raises:
            IndexError: There is no such frame.

        Example:
            >>> from reeld.decoders import VideoDecoder
            >>> batch = VideoDecoder(video_path).get_frames_at([0, 2, 4])
            >>> batch[-1].pts_seconds == batch.pts_seconds[2], len(batch[:2])
            (tensor(True), 2)
        """
        part = FrameBatch(self.data[key], self.pts_seconds[key], self.duration_seconds[key])
        part._memory = self._memory
        return part

    def __iter__(self) -> Iterator[FrameBatch]:
        return (self[position] for position in range(len(self)))
