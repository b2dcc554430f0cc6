"""From memory that the native module holds to what callers get: torch tensors, or numpy arrays without torch.

Nothing is copied here. Who keeps the memory alive, and gives it back, is the native module's matter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
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


def times_tensor(times: bytearray | Sequence[float]) -> torch.Tensor:
    """Float64 values, as the native module packs them or as numbers."""
    torch = _torch_module()
    if torch is None:
        array = np.frombuffer(times) if isinstance(times, bytearray) else np.array(times, dtype=np.float64)
        return cast("torch.Tensor", array)
    if isinstance(times, bytearray) and times:
        return torch.frombuffer(times, dtype=torch.float64)
    return torch.tensor(list(times), dtype=torch.float64)


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
    frames = torch.empty((0, height, width, 3), dtype=getattr(torch, dtype))
    return frames.permute(0, 3, 1, 2) if channels_first else frames
