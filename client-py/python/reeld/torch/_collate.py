"""`collate`: samples with frames in them become a batch, where possible without a copy of the pixels.

Which frames lie side by side in memory is not decided here: all clips of one `reeld.submit` do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import collate as collate_by_type
from torch.utils.data._utils.collate import default_collate_fn_map

from reeld import client
from reeld.errors import InvalidRequestError
from reeld.frames import Frame, FrameBatch

# Anything, alone or with more of its kind.
Sample = Any
# What frames can consist of, as numpy's array interface calls it.
_TYPE_STRINGS = {torch.uint8: "|u1", torch.uint16: "<u2", torch.float32: "<f4"}


def collate(samples: Sequence[Sample]) -> Sample:
    """Makes a batch of samples: torch's ``default_collate``, which also knows ``Frame`` and ``FrameBatch``.

    Importing this package teaches ``default_collate`` the same, so that a ``DataLoader`` without a
    ``collate_fn`` makes the same batches.

    Frames may be the samples themselves or lie in them, in tuples, named tuples, lists and dicts. Everything
    else becomes what ``default_collate`` makes of it.

    Clips that were asked for by one :func:`reeld.submit`, as ``VideoClips`` does it, lie side by side in
    memory already: a batch of them, in this order, is one view of that memory. Other frames are copied once.

    Args:
        samples: The samples of one batch, alike in structure.

    Returns:
        The same structure over batches. B clips of N frames become one ``FrameBatch`` with ``data`` of
        (B, N, C, H, W), or with C last, and times of (B, N); B frames one with (B, C, H, W) and (B,). The
        times are float64 seconds. Pixels stay laid out as they are, pixel by pixel.

    Raises:
        InvalidRequestError: Clips differ in their numbers or sizes of frames, or in their dtypes.
        TypeError: There is something in a sample that ``default_collate`` does not take.

    Example:
        >>> import reeld
        >>> from reeld.torch import collate
        >>> wanted = [reeld.Clip(video_path, indices=[number, 9]) for number in range(4)]
        >>> clips = reeld.submit(wanted).result()
        >>> batch, labels = collate([(clip, 7) for clip in clips])
        >>> batch.data.shape[:2], labels
        (torch.Size([4, 2]), tensor([7, 7, 7, 7]))
        >>> batch.data.data_ptr() == clips[0].data.data_ptr()
        True
    """
    return collate_by_type(samples, collate_fn_map=default_collate_fn_map)


def _frames(frames: Sequence[Frame], *, collate_fn_map: object = None) -> FrameBatch:
    pts_seconds = torch.tensor([frame.pts_seconds for frame in frames], dtype=torch.float64, device="cpu")
    durations = torch.tensor([frame.duration_seconds for frame in frames], dtype=torch.float64, device="cpu")
    return _batch(frames, pts_seconds, durations)


def _batches(batches: Sequence[FrameBatch], *, collate_fn_map: object = None) -> FrameBatch:
    pts_seconds = torch.stack([batch.pts_seconds for batch in batches])
    return _batch(batches, pts_seconds, torch.stack([batch.duration_seconds for batch in batches]))


def _batch(
    parts: Sequence[Frame] | Sequence[FrameBatch], pts_seconds: torch.Tensor, durations: torch.Tensor
) -> FrameBatch:
    tensors = [part.data for part in parts]
    kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{shape} of {dtype}" for shape, dtype in kinds))
        raise InvalidRequestError(
            f"Frames of different kinds cannot become one batch: {found}. Ask for as many frames of every "
            "video, and give its decoder transforms that make all of one size."
        )
    view = _one_view(tensors)
    if view is None:
        return FrameBatch(_copy(tensors), pts_seconds, durations)
    batch = FrameBatch(view, pts_seconds, durations)
    # So that it can be handed to another process without a copy, if all of it lies there.
    batch._memory = parts[0]._memory
    return batch


def _one_view(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """All tensors as one, where they lie one behind the other in memory without a gap; else None."""
    first = tensors[0]
    if len(tensors) == 1:
        return first.unsqueeze(0)
    is_plain = first.device.type == "cpu" and first.dtype in _TYPE_STRINGS and first.numel() > 0
    if not is_plain or any(tensor.stride() != first.stride() or tensor.requires_grad for tensor in tensors):
        return None
    value_bytes = first.element_size()
    strides = [stride * value_bytes for stride in first.stride()]
    spans = ((size - 1) * stride for size, stride in zip(first.shape, strides, strict=True))
    extent_bytes = sum(spans) + value_bytes
    addresses = [tensor.data_ptr() for tensor in tensors]
    if any(after - before != extent_bytes for before, after in itertools.pairwise(addresses)):
        return None
    return torch.from_numpy(np.asarray(_Joint(tensors, (extent_bytes, *strides))))


class _Joint:
    """Tensors that lie one behind the other, as numpy's array interface shows them. It keeps all alive."""

    def __init__(self, tensors: list[torch.Tensor], strides: tuple[int, ...]) -> None:
        self._tensors = tensors
        is_read_only = False
        self.__array_interface__ = {
            "version": 3,
            "typestr": _TYPE_STRINGS[tensors[0].dtype],
            "data": (tensors[0].data_ptr(), is_read_only),
            "shape": (len(tensors), *tensors[0].shape),
            "strides": strides,
        }


def _copy(tensors: list[torch.Tensor]) -> torch.Tensor:
    """All tensors stacked; in a worker process into shared memory, as ``default_collate`` does it."""
    client._count_copy(sum(tensor.nbytes for tensor in tensors))
    if tensors[0].stride(-3) != 1 or tensors[0].shape[-3] == 1:
        return default_collate(tensors)
    # Channels are the innermost in memory though not in the shape: so it shall be in the batch.
    return default_collate([tensor.movedim(-3, -1) for tensor in tensors]).movedim(-1, -3)


# As torch's documentation has it for types of one's own.
default_collate_fn_map.update({Frame: _frames, FrameBatch: _batches})
