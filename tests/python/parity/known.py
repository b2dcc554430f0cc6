"""The differences that docs/differences.md names: when each applies, and what is checked instead.

A rule never accepts just anything: our answer must then be the error that is promised, or equal that of
another TorchCodec decoder or of `oracle.py`. Whatever no rule accepts is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support import Outcome, outcome

from parity import clips, runner
from parity.oracle import InOrder
from parity.programs import Program, value
from parity.runner import Finding, Library

Call = tuple[Any, ...]


def rule_for_opening(program: Program, ours: Outcome, reference: Outcome) -> str | None:
    """The rule by which opening a file may end differently."""
    # TorchCodec opens it, and may find an argument wrong only then.
    if program.clip.endswith(".txt") and isinstance(ours.error, RuntimeError):
        return "formats by name"
    if ours.error is None and isinstance(reference.error, ValueError | RuntimeError):
        if program.option("output_dtype") in ("uint8", "float32"):
            return "dtypes by name"
        if program.option("device") == "cpu:0" and program.option("transforms"):
            return "transforms on cpu:0"
    if reference.error is None and isinstance(ours.error, ValueError):
        return "stream -1" if program.option("stream_index") == -1 else None
    return None


def finding(
    program: Program, position: int, ours: tuple[Library, Any], reference: tuple[Library, Any]
) -> Finding:
    """How the answers to one call compare."""
    call = program.calls[position]
    our_answer = runner.answer(*ours, program, position)
    if _reads_out_of_bounds(call):
        is_right = isinstance(our_answer.error, ValueError)
        return Finding(position, "dimensions" if is_right else runner.DIFFERENT, repr(our_answer))
    words = runner.difference(our_answer, runner.answer(*reference, program, position))
    if words is None:
        return Finding(position, runner.SAME)
    for rule in RULES:
        if rule.applies(program, position):
            objection = rule.objection(program, position, reference[0], our_answer)
            if objection is None:
                return Finding(position, rule.name, words)
            words += f" / {rule.name}: {objection}"
    return Finding(position, runner.DIFFERENT, words)


@dataclass(frozen=True)
class Rule:
    """One known difference between answers to calls."""

    name: str
    applies: Callable[[Program, int], bool]
    objection: Callable[[Program, int, Library, Outcome], str | None]
    """What is wrong with our answer all the same."""


# ------------------------------------------------------------------------------------------- when


def _reads_out_of_bounds(call: Call) -> bool:
    """Whether TorchCodec would read, for this call, memory that is none of its own."""
    name, *arguments = call
    if name not in ("get_frames_at", "submit", "get_frames_played_at"):
        return False
    numbers = value(arguments[0])
    if isinstance(numbers, list):
        return any(isinstance(item, list) for item in numbers)
    return getattr(numbers, "ndim", 1) > 1


def _is_damaged(program: Program, position: int) -> bool:
    del position
    return program.clip.startswith("broken_")


def _changes_size(program: Program, position: int) -> bool:
    del position
    return program.clip == "size_change.ts"


def _seeks_badly(program: Program, position: int) -> bool:
    """Where FFmpeg's seeking finds other places than TorchCodec needs.

    Transport streams have no index; approximate mode has none either; and a time just before a keyframe is
    that keyframe's, once it is rounded to the container's ticks.
    """
    is_approximate = program.option("seek_mode") == "approximate"
    is_time = program.calls[position][0] == "get_frame_played_at"
    return program.clip.endswith(".ts") or is_approximate or is_time


def _was_moved_by_a_time(program: Program, position: int) -> bool:
    """Where TorchCodec no longer knows where it is.

    It does not take note of the frame that `get_frame_played_at` leads to. So the frame behind the last one
    that was asked for otherwise is taken for the next one to come, and is the one behind that instead.
    """
    return any(name == "get_frame_played_at" for name, *_ in program.calls[:position])


def _joins_streams(program: Program, position: int) -> bool:
    """Where two streams were joined so that some of their frames have the same pts."""
    return program.clip == "size_change.ts" and program.calls[position][0] == "key frames"


# ------------------------------------------------------------------------------------ checked by


def _differs_from_fresh(program: Program, position: int, reference: Library, ours: Outcome) -> str | None:
    """Compares with a TorchCodec decoder that was asked for nothing else before."""
    fresh = runner.opened(reference, program)
    return runner.difference(
        ours, fresh if fresh.error else runner.answer(reference, fresh.value, program, position)
    )


def _differs_in_order(program: Program, position: int, reference: Library, ours: Outcome) -> str | None:
    """Compares with the frames as they come without seeking."""
    oracle = outcome(lambda: InOrder(program))
    return runner.difference(
        ours, oracle if oracle.error else runner.answer(reference, oracle.value, program, position)
    )


def _is_no_result(program: Program, position: int, reference: Library, ours: Outcome) -> str | None:
    """An error that says that the frames cannot be had, or frames of the right size."""
    del position, reference
    if ours.error is not None:
        return None if isinstance(ours.error, RuntimeError | IndexError) else runner.short(ours.error)
    stream_index = program.option("stream_index")
    facts = clips.facts(program.clip, stream_index if isinstance(stream_index, int) else None)
    pixels = getattr(ours.value, "data", ours.value)
    frame_shape = sorted(pixels.shape[-3:])
    if frame_shape != sorted((3, facts.height, facts.width)):
        return f"frames of the shape {frame_shape}"
    return None


def _moves_key_frames(program: Program, position: int, reference: Library, ours: Outcome) -> str | None:
    """As many keyframes as TorchCodec's, each at its place or at that of a neighbour with the same pts."""
    theirs = runner.answer(reference, runner.opened(reference, program).value, program, position)
    if len(ours.value) != len(theirs.value) or (ours.value - theirs.value).abs().max() > 1:
        return f"{ours.value.tolist()} instead of {theirs.value.tolist()}"
    return None


RULES = [
    Rule("same pts", _joins_streams, _moves_key_frames),
    Rule(
        "history",
        lambda program, position: (
            _seeks_badly(program, position)
            or _was_moved_by_a_time(program, position)
            or _is_damaged(program, position)
        ),
        _differs_from_fresh,
    ),
    Rule("seek", _seeks_badly, _differs_in_order),
    Rule(
        "damage",
        lambda program, position: _is_damaged(program, position) or _changes_size(program, position),
        _is_no_result,
    ),
]
