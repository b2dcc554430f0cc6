"""The numbers that place clips: torch's where it is installed, so that they are TorchCodec's, else numpy's.

What they mean does not live here.
"""

from __future__ import annotations

import numpy as np

from reeld import _arrays


def random_integers(low: int, high: int, count: int) -> list[int]:
    """`count` integers in [low, high), drawn from the global generator."""
    torch = _arrays._torch_module()
    if torch is None:
        return np.random.randint(low, high, size=count).tolist()
    return torch.randint(low, high, (count,), device="cpu").tolist()


def random_fractions(count: int) -> list[float]:
    """`count` floats in [0, 1), drawn from the global generator."""
    torch = _arrays._torch_module()
    if torch is None:
        return np.random.random_sample(count).tolist()
    return torch.rand(count, dtype=torch.float64, device="cpu").tolist()


def spread_integers(first: int, last: int, count: int) -> list[int]:
    """`count` integers from `first` to `last`, both included, at distances as equal as may be."""
    torch = _arrays._torch_module()
    if torch is not None:
        return torch.linspace(first, last, count, dtype=torch.int, device="cpu").tolist()
    # As torch has them: the second half is counted back from the end, so that it reaches the end exactly.
    if count == 1:
        return [first]
    step = (last - first) / (count - 1)
    positions = np.arange(count)
    values = np.where(positions < count // 2, first + step * positions, last - step * (count - 1 - positions))
    return values.astype(np.int64).tolist()


def spaced_floats(begin: float, end: float, step: float) -> list[float]:
    """`begin`, `begin + step`, … below `end`."""
    torch = _arrays._torch_module()
    if torch is None:
        values = np.arange(begin, end, step, dtype=np.float64).tolist()
    else:
        values = torch.arange(begin, end, step, dtype=torch.float64, device="cpu").tolist()
    # Both may reach the end by a rounding error. An end in a tensor would be compared in single precision.
    last = float(end)
    return [value for value in values if value < last]
