"""How frames go from process to process: as tickets through torch's queues, by value otherwise.

What a ticket is worth, and for how long, does not live here but in the daemon.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from reeld import _arrays, _native, client
from reeld._lost import LostFrame, LostFrameBatch
from reeld.errors import ReeldError
from reeld.frames import Frame, FrameBatch

if TYPE_CHECKING:
    import torch

# The first that can name a class's constructor, which is enough here.
_PROTOCOL = 2

# The process for which the session was named: a forked child names its own.
_session_named_in: int | None = None


# What tickets carry beside the pixels. `_memory` is no more than a hint.
_CARRIED = frozenset(("data", "pts_seconds", "duration_seconds", "_memory"))


def _reduce_batch(batch: FrameBatch) -> tuple[Any, ...]:
    times = (batch.pts_seconds, batch.duration_seconds)
    are_times_as_made = all(
        _arrays.is_plain_float64(each) and each.shape == batch.data.shape[:-3] for each in times
    )
    sent = _ticket_for(batch, batch._memory, is_as_made=are_times_as_made)
    if sent is None:
        return _by_value(batch)
    return _redeemed_batch, (*sent, *map(_arrays.times_bytes, times), tuple(batch.pts_seconds.shape))


def _reduce_frame(frame: Frame) -> tuple[Any, ...]:
    are_times_as_made = type(frame.pts_seconds) is float and type(frame.duration_seconds) is float
    sent = _ticket_for(frame, frame._memory, is_as_made=are_times_as_made and frame.data.ndim == 3)
    if sent is None:
        return _by_value(frame)
    return _redeemed_frame, (*sent, frame.pts_seconds, frame.duration_seconds)


def _by_value(frames: Frame | FrameBatch) -> tuple[Any, ...]:
    """As any other object of its class: what its tensors do is torch's or numpy's matter."""
    reduced = frames.__reduce_ex__(_PROTOCOL)
    assert isinstance(reduced, tuple)
    return reduced


def _ticket_for(
    frames: Frame | FrameBatch, memory: _native.Memory | None, *, is_as_made: bool
) -> tuple[Any, ...] | None:
    """A ticket for the slot, and where in it the pixels lie; None where they have to go by value."""
    if memory is None:
        return None
    data: torch.Tensor = frames.data
    block = _arrays.block_of(data)
    addresses = memory.addresses()
    if block is None or addresses is None:
        return None
    start, stop = addresses
    # Somebody may have put other pixels in the place of ours.
    if not start <= block.start <= block.stop <= stop:
        return None
    if not is_as_made or not _CARRIED.issuperset(frames.__dict__):
        # Something was put on them, or in the place of their times, that no ticket would carry.
        client._count_copy(data.nbytes)
        return None
    _name_session()
    try:
        ticket = memory.ticket()
    except ReeldError:
        # The daemon is gone, or so much was handed on that it allows no more: the frames are still here.
        client._count_copy(data.nbytes)
        return None
    return ticket, client.explicit_socket(), block.dtype, block.start - start, block.shape, block.strides


def _name_session() -> None:
    """Tickets shall outlive a worker as long as its parent lives."""
    global _session_named_in
    if _session_named_in == os.getpid():
        return
    _session_named_in = os.getpid()
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        # Nobody is known who would redeem them after the end of this process.
        return
    try:
        _native.name_session(parent.pid)
    except OSError:
        # It is gone, or the kernel knows no pidfds: tickets hold as long as this process.
        return


def _redeemed_batch(
    ticket: bytes,
    socket: str | None,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    pts_seconds: bytes,
    duration_seconds: bytes,
    times_shape: tuple[int, ...],
) -> FrameBatch:
    try:
        pixels = _redeem(ticket, socket, dtype, offset, shape, strides)
    except ReeldError as error:
        return LostFrameBatch(error)
    pts, durations = (
        _arrays.times_tensor(bytearray(times)).reshape(times_shape)
        for times in (pts_seconds, duration_seconds)
    )
    batch = FrameBatch(_arrays.pixels_tensor(pixels), pts, durations)
    batch._memory = pixels.memory()
    return batch


def _redeemed_frame(
    ticket: bytes,
    socket: str | None,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    pts_seconds: float,
    duration_seconds: float,
) -> Frame:
    try:
        pixels = _redeem(ticket, socket, dtype, offset, shape, strides)
    except ReeldError as error:
        return LostFrame(error)
    frame = Frame(_arrays.pixels_tensor(pixels), pts_seconds, duration_seconds)
    frame._memory = pixels.memory()
    return frame


def _redeem(
    ticket: bytes,
    socket: str | None,
    dtype: str,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> _native.Pixels:
    client.use_socket(socket)
    return client.default_client().redeem(ticket, dtype=dtype, offset=offset, shape=shape, strides=strides)


def register() -> None:
    """Makes the queues of multiprocessing and torch send frames as tickets."""
    ForkingPickler.register(Frame, _reduce_frame)
    ForkingPickler.register(FrameBatch, _reduce_batch)
