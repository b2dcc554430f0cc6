"""`FrameMappings`: the frames of a stream as a caller lists them, in the JSON that ffprobe writes.

Whether a list is right is not known here, nor by the daemon: it is believed for this decoder alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

import numpy as np

from reeld._native import FrameMapping
from reeld.errors import ArgumentTypeError, InvalidRequestError, LimitReachedError, RangeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As in the protocol, which counts again.
_FRAMES_MAX = 1 << 22
# ffprobe writes less than 250 characters for each frame.
_JSON_LENGTH_MAX = _FRAMES_MAX * 256
_INT64 = range(-(2**63), 2**63)


class SupportsRead(Protocol):
    """What JSON can be read from."""

    def read(self) -> object:
        """All of it, as str or bytes."""
        ...


class FrameMappings:
    """Pts and duration in ticks of the stream's time base, and which frames are keyframes: a column each.

    Args:
        pts: int64.
        durations: int64.
        are_keys: uint8, 1 for keyframes.
    """

    def __init__(
        self, pts: NDArray[np.int64], durations: NDArray[np.int64], are_keys: NDArray[np.uint8]
    ) -> None:
        self._columns = (pts, durations, are_keys)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __reduce__(self) -> tuple[object, ...]:
        return FrameMappings, self._columns

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Pts, durations and which frames are keyframes."""
        return self._columns

    def native(self) -> FrameMapping:
        """Memory that the daemon reads."""
        return FrameMapping(*self._columns)


def read_mappings(mappings: str | bytes | bytearray | SupportsRead) -> FrameMappings:
    """Reads and checks ``{"frames": [{"pts": …, "duration": …, "key_frame": …}, …]}``.

    Raises:
        InvalidRequestError: It is no such JSON.
        RangeError: There are no frames.
        ArgumentTypeError: Something in it has another type.
        LimitReachedError: There are more than 4,194,304 frames.
        Exception: It is a file-like object and raised this.
    """
    frames = _frames(_parsed(_text(mappings)))
    if len(frames) > _FRAMES_MAX:
        raise LimitReachedError(
            f"Custom frame mappings of {len(frames)} frames: {_FRAMES_MAX} are the limit."
        )
    first = frames[0]
    if not isinstance(first, dict):
        raise _wrong_type(f"frame 0 is of type {type(first).__name__}, not an object")
    pts = next((key for key in ("pts", "pkt_pts") if key in first), None)
    duration = next((key for key in ("duration", "pkt_duration") if key in first), None)
    if pts is None or duration is None or "key_frame" not in first:
        raise _invalid(
            "the 'pts'/'pkt_pts', 'duration'/'pkt_duration', and 'key_frame' keys are required in the frame "
            "metadata"
        )
    return FrameMappings(
        np.fromiter((_ticks(frames, number, pts) for number in range(len(frames))), np.int64, len(frames)),
        np.fromiter(
            (_ticks(frames, number, duration) for number in range(len(frames))), np.int64, len(frames)
        ),
        np.fromiter((_is_key(frames, number) for number in range(len(frames))), np.uint8, len(frames)),
    )


def _text(mappings: str | bytes | bytearray | SupportsRead) -> str | bytes | bytearray:
    read = getattr(mappings, "read", None)
    # Without a size, as json.load asks: that is all that such an object needs to understand.
    text = mappings if read is None else read()
    if not isinstance(text, str | bytes | bytearray):
        what = "custom_frame_mappings" if read is None else "what custom_frame_mappings.read() returned"
        raise ArgumentTypeError(
            f"The type of {what} is {type(text).__name__}: JSON is needed, as str or bytes or in a file-like "
            "object."
        )
    if len(text) > _JSON_LENGTH_MAX:
        raise LimitReachedError(
            f"Custom frame mappings of {len(text)} characters: {_JSON_LENGTH_MAX} are the limit."
        )
    return text


def _parsed(text: str | bytes | bytearray) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"{error}. It should be a valid JSON string or a file-like object") from error
    except RecursionError:
        raise _wrong_type("the JSON is nested too deeply") from None
    # Bytes that are no text, and integers with more digits than Python converts.
    except ValueError as error:
        raise _invalid(str(error)) from error


def _frames(parsed: object) -> list[object]:
    if not parsed or (isinstance(parsed, dict) and "frames" not in parsed):
        raise _invalid("The input is empty or missing the required 'frames' key")
    if not isinstance(parsed, dict):
        raise _wrong_type(f"the JSON holds {type(parsed).__name__}, not an object with 'frames'")
    frames = parsed["frames"]
    if not isinstance(frames, list):
        raise _wrong_type(f"'frames' is of type {type(frames).__name__}, not a list")
    if not frames:
        raise RangeError("Invalid custom frame mappings. There are no frames in the list.")
    return frames


def _value(frames: list[object], number: int, key: str) -> object:
    frame = frames[number]
    if not isinstance(frame, dict):
        raise _wrong_type(f"frame {number} is of type {type(frame).__name__}, not an object")
    if key not in frame:
        raise _invalid(f"frame {number} has no {key!r}, which the first one has")
    return frame[key]


def _ticks(frames: list[object], number: int, key: str) -> int:
    value = _value(frames, number, key)
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise _invalid(f"{key!r} of frame {number} is {value!r}, not a whole number of ticks") from None
    elif isinstance(value, float):
        # Also not for NaN and infinity. Fractions are likely seconds where ticks are meant.
        if not value.is_integer():
            raise _invalid(f"{key!r} of frame {number} is {value}, not a whole number of ticks")
        value = int(value)
    if not isinstance(value, int):
        raise _wrong_type(f"{key!r} of frame {number} is of type {type(value).__name__}, not a number")
    if value not in _INT64:
        raise _invalid(f"{key!r} of frame {number} is {value}, which is beyond 64 bits")
    return value


def _is_key(frames: list[object], number: int) -> int:
    value = _value(frames, number, "key_frame")
    if value in (0, 1, "0", "1"):
        return int(value)
    if isinstance(value, int | float | str):
        raise _invalid(f"'key_frame' of frame {number} is {value!r}, neither 0 nor 1")
    raise _wrong_type(f"'key_frame' of frame {number} is of type {type(value).__name__}, neither 0 nor 1")


def _invalid(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid custom frame mappings: {what}.")


def _wrong_type(what: str) -> ArgumentTypeError:
    return ArgumentTypeError(f"Invalid custom frame mappings: {what}.")
