"""What a caller may ask of one stream: arguments of any usual type, checked before anything is sent.

What a source may be is not checked here but in `decoders/_sources.py`.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from reeld._native import Wanted
from reeld.errors import (
    ArgumentTypeError,
    FrameIndexError,
    InvalidRequestError,
    NoSlotsError,
    RangeError,
    ReeldError,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Indices = Sequence[int] | NDArray[np.integer] | torch.Tensor
    Times = Sequence[float] | NDArray[np.number] | torch.Tensor

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, kw_only=True)
class MappedBounds:
    """How far a stream reaches by what its caller says."""

    frame_count: int
    begin_seconds: float
    end_seconds: float


@dataclass(frozen=True, kw_only=True)
class StreamBounds:
    """How far a stream and the memory for its frames reach.

    Each method gives the request for some frames, or None where it would be for no frames at all.

    With a mapping, TorchCodec lets the header say how long a decoder is and which times may be asked for, and
    the mapping which frames there are: ``length`` and the times are the header's then.
    """

    length: int
    begin_seconds: float
    end_seconds: float
    frame_bytes: int
    quota_bytes: int
    mapped: MappedBounds | None = None

    @property
    def frame_count(self) -> int:
        """How many frames there are."""
        return self.length if self.mapped is None else self.mapped.frame_count

    def at(self, index: SupportsIndex) -> Wanted:
        """One frame.

        Raises:
            FrameIndexError: There is no such frame.
            ArgumentTypeError: It is not an integer of 64 bits.
        """
        value = index if type(index) is int else _as_index(index)
        if not -self.frame_count <= value < self.frame_count:
            raise self._no_such_frame(value)
        return Wanted.index(value)

    def at_each(self, indices: Indices) -> Wanted | None:
        """Frames in any order, also several times.

        Raises:
            FrameIndexError: One of them is outside the stream.
            ArgumentTypeError: They are not integers of 64 bits.
            InvalidRequestError: They have more than one dimension.
            NoSlotsError: Their frames are larger than the quota.
        """
        if isinstance(indices, range) and indices:
            return self._at_range(indices)
        if type(indices) is list and set(map(type, indices)) == {int}:
            # The usual case, without the way through numpy.
            self.check_fits(len(indices))
            for outermost in (min(indices), max(indices)):
                if not -self.frame_count <= outermost < self.frame_count:
                    raise self._no_such_frame(outermost)
            return Wanted.index_list(indices)
        array = _as_array(indices, "Frame indices", torch_dtype="int64")
        if not isinstance(indices, np.ndarray) and array.dtype.kind in "iu" and array.dtype != np.uint64:
            # Integers in a list have no size of their own, whatever numpy makes of them.
            array = array.astype(np.int64)
        if array.dtype != np.int64:
            # TorchCodec is as strict, also with an empty list, which is taken for one of floats.
            found = "Float" if array.dtype.kind == "f" else array.dtype.name
            raise ArgumentTypeError(
                f"Frame indices must be integers of 64 bits: expected Long but found {found}."
            )
        self.check_fits(array.size)
        is_outside = (array < -self.frame_count) | (array >= self.frame_count)
        if is_outside.any():
            raise self._no_such_frame(int(array[np.argmax(is_outside)]))
        return Wanted.indices(np.ascontiguousarray(array)) if array.size else None

    def in_range(
        self, start: SupportsIndex | None, stop: SupportsIndex | None, step: SupportsIndex | None
    ) -> Wanted | None:
        """The frames of a slice: bounds from the end where negative, cut at the stream's end.

        Raises:
            RangeError: The step is negative or has more than 64 bits, or start lies behind stop by
                a step or more.
            ValueError: The step is 0.
            TypeError: One of them is not an integer.
            NoSlotsError: Their frames are larger than the quota.
        """
        first, end, stride = slice(start, stop, step).indices(self.length)
        if stride < 0:
            raise RangeError(
                f"A negative step ({stride}) is not supported: take the frames forwards and flip the result."
            )
        if stride not in _INT64:
            raise RangeError(f"The step {stride} is not an integer of 64 bits.")
        # TorchCodec counts (stop - start) / step frames, rounded up: none with a long step, else less.
        if first - end >= stride:
            raise RangeError(
                f"The range begins at frame {first}, behind its stop {end}: swap them, or list the indices."
            )
        if end > self.frame_count:
            raise RangeError(
                f"The range ends at frame {end}: the header counts {self.length} frames, but "
                f"custom_frame_mappings has {self.frame_count}."
            )
        return self._at_range(range(first, end, stride)) if first < end else None

    def played_at(self, seconds: float) -> Wanted:
        """The frame on display at a time.

        Raises:
            RangeError: The time is outside the stream, or NaN.
            ArgumentTypeError: It is not a number.
        """
        time = as_seconds(seconds)
        if not self.begin_seconds <= time < self.end_seconds:
            raise RangeError(f"Invalid pts in seconds: {seconds}. {_allowed_times(self)}")
        return Wanted.played_at(time)

    def played_at_each(self, seconds: Times) -> Wanted | None:
        """The frames on display at several times.

        Raises:
            RangeError: One of them is outside the stream, or NaN.
            ArgumentTypeError: They are not numbers.
            InvalidRequestError: They have more than one dimension.
            NoSlotsError: Their frames are larger than the quota.
        """
        array = _as_array(seconds, "Times", torch_dtype="float64")
        if array.size == 0:
            return None
        self.check_fits(array.size)
        if array.dtype.kind not in "iufb":
            raise ArgumentTypeError(
                "Couldn't convert timestamps input to a tensor: times must be numbers of seconds, in a list, "
                "an array or a tensor."
            )
        times = np.ascontiguousarray(array, dtype=np.float64)
        bounds = self if self.mapped is None else self.mapped
        is_inside = (times >= bounds.begin_seconds) & (times < bounds.end_seconds)
        if not is_inside.all():
            raise RangeError(f"Invalid time: {times[np.argmin(is_inside)]}. {_allowed_times(bounds)}")
        return Wanted.played_at_each(times)

    def played_in_range(self, start_seconds: float, stop_seconds: float) -> Wanted | None:
        """All frames on display in [start, stop).

        Raises:
            InvalidRequestError: The start lies behind the stop, or one of them is NaN.
            RangeError: One of them is outside the stream.
            ArgumentTypeError: They are not numbers.
        """
        start, stop = as_seconds(start_seconds), as_seconds(stop_seconds)
        if not start <= stop:
            raise InvalidRequestError(
                f"Invalid start seconds: {start_seconds} is not at or before the stop, {stop_seconds}."
            )
        if not self.begin_seconds <= start < self.end_seconds:
            raise RangeError(f"Invalid start seconds: {start_seconds}. {_allowed_times(self)}")
        if not stop <= self.end_seconds:
            raise RangeError(
                f"Invalid stop seconds: {stop_seconds} is behind the stream's end, {self.end_seconds}."
            )
        if start == stop:
            return None
        mapped = self.mapped
        if mapped is not None and not (
            mapped.begin_seconds <= start < mapped.end_seconds and stop <= mapped.end_seconds
        ):
            raise RangeError(
                f"Invalid range from {start_seconds} to {stop_seconds} seconds: the frames of "
                f"custom_frame_mappings are shown from {mapped.begin_seconds} to {mapped.end_seconds}."
            )
        return Wanted.played_in_range(start, stop)

    def check_fits(self, count: float) -> None:
        """No request is built that could not be answered anyway, such as one of 10^9 indices.

        Raises:
            NoSlotsError: So many frames are larger than the quota.
        """
        if count * self.frame_bytes > self.quota_bytes:
            raise NoSlotsError(
                f"{count} frames of {self.frame_bytes} bytes are more than the {self.quota_bytes} bytes that "
                "the daemon grants this process: ask for fewer at once, or raise the daemon's quota."
            )

    def _at_range(self, indices: range) -> Wanted:
        # Checked before they are counted: a range may be longer than `len` can say, but one of valid indices
        # has at most twice as many as there are frames.
        for index in (indices[0], indices[-1]):
            if not -self.frame_count <= index < self.frame_count:
                raise self._no_such_frame(index)
        self.check_fits(len(indices))
        if indices.step > 0 and indices.start >= 0:
            return Wanted.index_range(indices.start, indices[-1] + 1, indices.step)
        return Wanted.indices(np.arange(indices.start, indices.stop, indices.step, dtype=np.int64))

    def _no_such_frame(self, index: int) -> ReeldError:
        if index not in _INT64:
            return ArgumentTypeError(f"A frame index must be an integer of 64 bits, which {index} is not.")
        if index >= 0:
            allowed = f"it must be less than {self.frame_count}, the number of frames"
        else:
            allowed = (
                "negative indices must have an absolute value less than the number of frames, "
                f"{self.frame_count}, or equal to it"
            )
        return FrameIndexError(f"Invalid frame index={index}: {allowed}.")


def _allowed_times(bounds: StreamBounds | MappedBounds) -> str:
    begin, end = bounds.begin_seconds, bounds.end_seconds
    return f"It must be greater than or equal to {begin} and must be less than {end}."


def _as_index(index: SupportsIndex) -> int:
    try:
        return int(operator.index(index))
    except TypeError:
        value = _item(index)
    # TorchCodec cuts off the fraction that a tensor, an array of one number, a Fraction or a Decimal has, and
    # takes no floats.
    if value is index and not isinstance(value, float) and _is_scalar(value, "__int__"):
        try:
            return int(cast("Any", value))
        except (TypeError, ValueError, OverflowError):
            pass
    if value is index or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArgumentTypeError(f"A frame index must be an integer, not {type(index).__name__}.")
    return int(value)


def as_seconds(seconds: float) -> float:
    """A number of whatever type as seconds; one beyond any float as infinity.

    Raises:
        ArgumentTypeError: It is not a number.
    """
    value = seconds if isinstance(seconds, int | float) else _item(seconds)
    if isinstance(value, np.floating):
        # Of more than 64 bits: the others are, or were made, floats of Python's.
        value = float(value)
    if not isinstance(value, int | float) and not _is_scalar(value, "__float__", "__index__"):
        raise ArgumentTypeError(f"A time must be a number of seconds, not {type(seconds).__name__}.")
    number = cast("float", value)
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _is_scalar(value: object, *methods: str) -> bool:
    """Whether it can be converted by one of these methods, as numbers can, and is no tensor or array."""
    return not hasattr(value, "ndim") and any(hasattr(type(value), method) for method in methods)


def _item(value: object) -> object:
    """What a tensor of one number holds, or an array without dimensions; anything else unchanged."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = cast("torch.Tensor", value)
        return tensor.item() if tensor.numel() == 1 else value
    # A float of numpy's that is one of Python's at the same time counts as the latter.
    if getattr(value, "ndim", None) != 0 or isinstance(value, float):
        return value
    return value.item()  # pyright: ignore[reportAttributeAccessIssue] # what has no dimensions has one item


def _as_array(values: Indices | Times, name: str, *, torch_dtype: str) -> NDArray[Any]:
    """The values in one dimension, with the dtype that they happen to have."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        # As TorchCodec does: a tensor of any dtype is converted, fractions are cut off.
        array = cast("torch.Tensor", values).detach().to("cpu", getattr(torch, torch_dtype)).numpy()
    else:
        try:
            array = np.asarray(values)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentTypeError(f"{name} must be numbers, in a list, an array or a tensor.") from None
    if array.dtype == object and torch_dtype == "float64" and not isinstance(values, np.ndarray):
        # Perhaps of numbers that numpy has no type for, such as Fraction and Decimal.
        with contextlib.suppress(ArgumentTypeError):
            array = np.array([as_seconds(value) for value in array.flat], np.float64).reshape(array.shape)
    if array.ndim > 1:
        raise InvalidRequestError(f"{name} must have one dimension; these have {array.ndim}.")
    return array.reshape(-1)
