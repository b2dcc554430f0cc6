"""One program on TorchCodec and on this package, side by side: call by call the same answer, or a finding.

What may differ, and how that is checked all the same, does not live here but in `known.py`.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from support import SUBJECT, Outcome, Reference, VideoDecoder, assert_error_fits, assert_same, outcome

from parity import clips, sources
from parity.programs import Program, value

OPENING = -1
SAME = "same"
DIFFERENT = "different"


@dataclass(frozen=True)
class Library:
    """One of the two that are compared."""

    decoder: Any
    # The modules of its own transforms and samplers.
    transforms: str
    samplers: str
    # Whether it can do what only this package can, such as pickling a decoder.
    is_ours: bool


OURS = Library(VideoDecoder, f"{SUBJECT}.transforms", f"{SUBJECT}.samplers", is_ours=True)
REFERENCE = Library(Reference, "torchcodec.transforms", "torchcodec.samplers", is_ours=False)


@dataclass(frozen=True)
class Finding:
    """How the answers to one call compare."""

    position: int
    """The call's place in the program; `OPENING` for making the decoder."""
    verdict: str
    """`SAME`, `DIFFERENT`, or the name of the known difference that it is."""
    words: str = ""
    """What differs."""


def opened(library: Library, program: Program) -> Outcome:
    """The program's decoder, or the exception that opening it ends with."""
    file = clips.path(program.clip)

    def build() -> Any:
        torch.manual_seed(program.torch_seed)
        options = options_of(program, library.transforms)
        return library.decoder(sources.source(program.source, file), **options)

    return outcome(build)


def options_of(program: Program, transforms: str) -> dict[str, Any]:
    """What the program's decoder is made with; new objects each time. Transforms are those of a module."""
    return {name: _option(program, data, transforms) for name, data in program.options}


def _option(program: Program, data: Any, transforms: str) -> Any:
    if isinstance(data, dict) and "mappings" in data:
        stream_index = program.option("stream_index")
        if type(stream_index) is not int:
            stream_index = clips.best_stream(program.clip)
        return sources.mappings(clips.path(program.clip), stream_index, **data["mappings"])
    return value(data, transforms)


def answer(library: Library, decoder: Any, program: Program, position: int) -> Outcome:
    """What one call of the program comes to."""
    name, *arguments = program.calls[position]

    def call() -> Any:
        torch.manual_seed(program.torch_seed)
        return ACTIONS[name](library, decoder, *map(value, arguments))

    return outcome(call)


def difference(ours: Outcome, reference: Outcome) -> str | None:
    """In what the answers differ: None where they do not, or both are errors and ours fits."""
    try:
        if reference.error is not None:
            assert ours.error is not None, (
                f"TorchCodec raised {short(reference.error)}, we returned {ours.value!r}"
            )
            assert_error_fits(ours.error, type(reference.error))
        else:
            assert ours.error is None, (
                f"TorchCodec returned {reference.value!r}, we raised {short(ours.error)}"
            )
            _assert_same_answer(ours.value, reference.value)
    except AssertionError as error:
        cause = f" ({short(error.__cause__)})" if error.__cause__ is not None else ""
        words = str(error).partition("Exception raised from")[0] or "the answers differ"
        return " ".join(words.split()) + cause
    return None


def run(program: Program, ours: Library = OURS, reference: Library = REFERENCE) -> list[Finding]:
    """A finding for the opening, and one for each call if that succeeded."""
    from parity import known

    our_decoder, their_decoder = opened(ours, program), opened(reference, program)
    words = difference(_Kind.of(our_decoder), _Kind.of(their_decoder))
    if words is not None:
        rule = known.rule_for_opening(program, our_decoder, their_decoder)
        return [Finding(OPENING, rule or DIFFERENT, words)]
    findings = [Finding(OPENING, SAME)]
    if our_decoder.error is not None:
        return findings
    decoder = our_decoder.value
    for position, (name, *_) in enumerate(program.calls):
        if name in COPIES:
            copied = outcome(lambda name=name, decoder=decoder: COPIES[name](decoder))
            if copied.error is not None:
                findings.append(Finding(position, DIFFERENT, f"the copy failed: {short(copied.error)}"))
                continue
            decoder = copied.value
            findings.append(Finding(position, SAME))
            continue
        findings.append(known.finding(program, position, (ours, decoder), (reference, their_decoder.value)))
    return findings


def short(error: BaseException) -> str:
    """The class and the first line: TorchCodec's messages have a stack behind them."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


@dataclass(frozen=True)
class _Kind:
    """Stands for a decoder where only being one counts."""

    @staticmethod
    def of(opened: Outcome) -> Outcome:
        return opened if opened.error is not None else Outcome(value=_Kind())


@dataclass(frozen=True)
class _Metadata:
    fields: dict[str, Any]
    words: str


def _assert_same_answer(ours: Any, reference: Any) -> None:
    if isinstance(reference, list):
        assert len(ours) == len(reference), f"{len(ours)} items instead of {len(reference)}"
        for one, other in zip(ours, reference, strict=True):
            assert_same(one, other)
    else:
        assert_same(ours, reference)


def _submitted(library: Library, decoder: Any, indices: Any) -> Any:
    # A clip may be of no frames, which `get_frames_at` refuses.
    if not library.is_ours or indices is None or outcome(lambda: len(indices)).value == 0:
        return decoder.get_frames_at(indices)
    import reeld

    return reeld.submit([reeld.Clip(decoder, indices=indices)]).result()[0]


def _sampled(library: Library, decoder: Any, sampler: str, named: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(library.samplers), sampler)(decoder, **named)


def _scribbled(_: Library, decoder: Any, index: int) -> Any:
    """Whoever writes into a frame that was returned writes into no other."""
    decoder.get_frame_at(index).data.fill_(1)
    return decoder.get_frame_at(index)


def _method(name: str) -> Callable[..., Any]:
    return lambda _, decoder, *arguments: getattr(decoder, name)(*arguments)


# Everything that a program can do with a decoder, by name; COPIES besides.
ACTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _method(name)
        for name in (
            *("get_frame_at", "get_frames_at", "get_frames_in_range", "get_frame_played_at"),
            *("get_frames_played_at", "get_frames_played_in_range", "get_all_frames"),
        )
    },
    "[]": lambda _, decoder, key: decoder[key],
    "len": lambda _, decoder: len(decoder),
    "iterate": lambda _, decoder, count: list(itertools.islice(decoder, count)),
    "metadata": lambda _, decoder: _Metadata(asdict(decoder.metadata), repr(decoder.metadata)),
    "stream_index": lambda _, decoder: decoder.stream_index,
    "key frames": lambda _, decoder: decoder._get_key_frame_indices(),
    "sample": _sampled,
    "submit": _submitted,
    "scribble": _scribbled,
}
# What only this package's decoders survive. TorchCodec's goes on as it is.
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda decoder: pickle.loads(pickle.dumps(decoder)),
    "deepcopy": copy.deepcopy,
}
