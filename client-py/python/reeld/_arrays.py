"""From memory that the native module holds to what callers get: torch tensors, or numpy arrays without torch.

Nothing is copied here, and nothing made on torch's default device, which may be another than the CPU. Who
keeps the memory alive, and gives it back, is the native module's matter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from reeld._native import Pixels


@functools.cache
def _torch_module() -> ModuleType | None:
    """Torch where it is installed. Asked for late: importing it takes seconds, importing this does not."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def pixels_tensor(pixels: Pixels) -> torch.Tensor:
    """A writable view of frames in the daemon's memory."""
    torch = _torch_module()
    if torch is None:
        return cast("torch.Tensor", np.asarray(pixels))
    # The bare capsule spares the negotiation that `from_dlpack(pixels)` would make for each frame.
    return torch.from_dlpack(pixels.dlpack_capsule())


@dataclass(frozen=True)
class Block:
    """Where the values of a tensor lie: the addresses, the counts and steps (in values) of its dimensions."""

    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# What the native module can show again.
_BLOCK_DIMENSIONS_MAX = 8
_BLOCK_DTYPES = ("uint8", "float32")


def block_of(data: torch.Tensor) -> Block | None:
    """Where a tensor's or an array's values lie; None where they cannot be seen as one block of ours."""
    torch = _torch_module()
    if torch is not None and isinstance(data, torch.Tensor):
        # A subclass, or one with a gradient, a conjugate or negative bit, is more than its values.
        if type(data) is not torch.Tensor or data.requires_grad or data.device.type != "cpu":
            return None
        if data.layout != torch.strided or data.is_conj() or data.is_neg():
            return None
        start, strides = data.data_ptr(), tuple(data.stride())
        dtype = str(data.dtype).removeprefix("torch.")
    elif type(data) is np.ndarray:
        start, dtype = data.ctypes.data, data.dtype.name
        if any(step % data.itemsize for step in data.strides) or not data.dtype.isnative:
            return None
        strides = tuple(step // data.itemsize for step in data.strides)
    else:
        return None
    shape = tuple(data.shape)
    is_showable = dtype in _BLOCK_DTYPES and len(shape) <= _BLOCK_DIMENSIONS_MAX
    if not is_showable or 0 in shape or any(step < 0 for step in strides):
        return None
    last = sum((count - 1) * step for count, step in zip(shape, strides, strict=True))
    return Block(start, start + (last + 1) * data.itemsize, dtype, shape, strides)


def is_plain_float64(values: object) -> bool:
    """Whether float64 values, and nothing else, are all there is to a tensor or an array."""
    torch = _torch_module()
    if torch is not None and type(values) is torch.Tensor:
        tensor = cast("torch.Tensor", values)
        is_strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
        return is_strided and tensor.dtype == torch.float64 and not tensor.requires_grad
    return type(values) is np.ndarray and values.dtype == np.float64 and torch is None


def times_bytes(times: torch.Tensor) -> bytes:
    """Float64 values as `times_tensor` takes them."""
    return np.ascontiguousarray(times, dtype=np.float64).tobytes()


def times_tensor(times: bytearray | Sequence[float]) -> torch.Tensor:
    """Float64 values, as the native module packs them or as numbers."""
    torch = _torch_module()
    if torch is None:
        array = np.frombuffer(times) if isinstance(times, bytearray) else np.array(times, dtype=np.float64)
        return cast("torch.Tensor", array)
    if isinstance(times, bytearray) and times:
        return torch.frombuffer(times, dtype=torch.float64)
    return torch.tensor(list(times), dtype=torch.float64, device="cpu")


def array_tensor(values: NDArray[Any]) -> torch.Tensor:
    """The same memory."""
    torch = _torch_module()
    return cast("torch.Tensor", values) if torch is None else torch.from_numpy(values)


def empty_frames(height: int, width: int, dtype: str, *, channels_first: bool) -> torch.Tensor:
    """Zero frames, laid out as any other number of frames."""
    torch = _torch_module()
    if torch is None:
        frames = np.empty((0, height, width, 3), dtype=dtype)
        return cast("torch.Tensor", frames.transpose(0, 3, 1, 2) if channels_first else frames)
    frames = torch.empty((0, height, width, 3), dtype=getattr(torch, dtype), device="cpu")
    return frames.permute(0, 3, 1, 2) if channels_first else frames
