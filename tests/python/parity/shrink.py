"""The shortest program that still shows a difference, found by leaving things out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from parity.programs import Program


def shrunk(program: Program, still_differs: Callable[[Program], bool]) -> Program:
    """A program of which nothing can be left out any more without the difference going away."""
    while True:
        for shorter in _shorter(program):
            if still_differs(shorter):
                program = shorter
                break
        else:
            return program


def _shorter(program: Program) -> Iterator[Program]:
    """Programs with one thing less, those with the most less first."""
    for position in reversed(range(len(program.calls))):
        yield program.without_call(position)
    for position in range(len(program.options)):
        yield program.without_option(position)
    if program.source != "str":
        yield replace(program, source="str")
    for position, call in enumerate(program.calls):
        for place, argument in enumerate(call):
            for shorter in _shorter_lists(argument):
                changed = (*call[:place], shorter, *call[place + 1 :])
                yield replace(
                    program, calls=(*program.calls[:position], changed, *program.calls[position + 1 :])
                )


def _shorter_lists(argument: Any) -> Iterator[Any]:
    """A list in halves, then without each of its items; inside of an object, too."""
    if isinstance(argument, list) and len(argument) > 1:
        middle = len(argument) // 2
        yield argument[:middle]
        yield argument[middle:]
        if len(argument) > 2:
            yield from (argument[:place] + argument[place + 1 :] for place in range(len(argument)))
    elif isinstance(argument, dict) and ("array" in argument or "tensor" in argument):
        name = "array" if "array" in argument else "tensor"
        yield from ({**argument, name: items} for items in _shorter_lists(argument[name]))
