"""A program: how a decoder is opened, and the calls that are made on it, as plain data.

What is random about programs does not live here but in `generator.py`.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Program:
    """Everything that two libraries must be told to do the same.

    Arguments are JSON's own values where those will do; what JSON has no word for is an object with one key,
    see `value`.
    """

    clip: str
    """The file's name in the folder of generated clips, or in that of REELD_EXTRA_MEDIA."""
    source: str = "str"
    """In which form the file is given: a key of `sources.SOURCES`."""
    options: tuple[tuple[str, Any], ...] = ()
    """The decoder's other arguments."""
    calls: tuple[tuple[Any, ...], ...] = ()
    """Each the name of what is done, a key of `runner.ACTIONS`, and its arguments."""
    torch_seed: int = 0
    """The seed of torch's random numbers, set before each decoder is made and before each call."""

    def without_call(self, position: int) -> Program:
        """The same program with one call fewer."""
        return replace(self, calls=self.calls[:position] + self.calls[position + 1 :])

    def without_option(self, position: int) -> Program:
        """The same program with one option fewer."""
        return replace(self, options=self.options[:position] + self.options[position + 1 :])

    def option(self, name: str, default: Any = None) -> Any:
        """The option of this name, as JSON has it."""
        return dict(self.options).get(name, default)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "clip": self.clip,
                "source": self.source,
                "torch_seed": self.torch_seed,
                "options": dict(self.options),
                "calls": self.calls,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Program:
        """What `to_json` wrote, also by hand: only the clip must be named."""
        fields = json.loads(text)
        return cls(
            clip=fields["clip"],
            source=fields.get("source", "str"),
            torch_seed=fields.get("torch_seed", 0),
            options=tuple(fields.get("options", {}).items()),
            calls=tuple(tuple(call) for call in fields.get("calls", [])),
        )


def value(data: Any, transforms: str = "torchcodec.transforms") -> Any:
    """What an argument in a program stands for; a new object each time.

    Objects stand for what JSON has no word for: {"slice": […]}, {"range": […]}, {"tuple": […]},
    {"float": "nan"}, {"array": […], "dtype": …} and {"scalar": …, "dtype": …} for numpy's,
    {"tensor": …, "dtype": …}, {"dtype": …} and {"device": …} for torch's, {"transform": "Resize",
    "arguments": [[90, 160]], "of": "torchvision.transforms.v2"}, and {"named": {…}} for named arguments.
    Where a transform names no module, it is of `transforms`, which is each library's own.
    """
    if isinstance(data, list | tuple):
        return [value(item, transforms) for item in data]
    if not isinstance(data, dict):
        return data
    match data:
        case {"slice": parts}:
            return slice(*map(value, parts))
        case {"range": parts}:
            return range(*parts)
        case {"tuple": items}:
            return tuple(value(items, transforms))
        case {"float": word}:
            return float(word)
        case {"array": items, "dtype": dtype}:
            return np.array(items, dtype=dtype)
        case {"scalar": item, "dtype": dtype}:
            return np.dtype(dtype).type(item)
        case {"tensor": items, "dtype": dtype}:
            return torch.tensor(items, dtype=getattr(torch, dtype))
        case {"dtype": name}:
            return getattr(torch, name)
        case {"device": name}:
            return torch.device(name)
        case {"named": arguments}:
            return {name: value(item, transforms) for name, item in arguments.items()}
        case {"transform": name, "arguments": arguments}:
            module = importlib.import_module(data.get("of", transforms))
            return getattr(module, name)(*map(value, arguments))
    raise ValueError(f"a program says {data!r}, which stands for nothing")
