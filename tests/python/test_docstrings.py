"""The docstrings of the package: each public object has one that says what it must, and its examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import reeld

MODULES = [
    "reeld",
    *(name for _, name, _ in pkgutil.walk_packages(reeld.__path__, "reeld.") if "_native" not in name),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, media: Path) -> None:
    # The examples call the video that they open `video_path`.
    result = doctest.testmod(
        importlib.import_module(name),
        extraglobs={"video_path": str(media / "h264_bframes.mp4")},
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


# -------------------------------------------------------------------------------------- completeness


def public_objects() -> dict[str, Any]:
    """What `__all__` of the public modules names, and the public methods of its classes, by their paths."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        if any(part.startswith("_") for part in name.split(".")) or not hasattr(module, "__all__"):
            continue
        for member_name in module.__all__:
            member = getattr(module, member_name)
            if isinstance(member, str | ModuleType) or id(member) in seen:
                continue
            seen.add(id(member))
            found[f"{name}.{member_name}"] = member
            if inspect.isclass(member) and not issubclass(member, Exception):
                found |= {f"{name}.{member_name}.{key}": method for key, method in public_methods(member)}
    return found


def public_methods(kind: type) -> list[tuple[str, Any]]:
    """The methods that a class of ours defines for its callers: names without an underscore, and `[]`."""
    return [
        (name, value)
        for base in kind.__mro__
        if base.__module__.startswith("reeld")
        for name, value in vars(base).items()
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__getitem__")
    ]


SOURCES = {str(file) for folder in reeld.__path__ for file in Path(folder).rglob("*.py")} | {__file__}


def raises_itself(subject: Any) -> bool:
    """Whether the body of a function, or that of a class's construction, has a `raise` of its own."""
    functions = [subject]
    if inspect.isclass(subject):
        functions = [vars(subject).get(name) for name in ("__init__", "__post_init__", "__new__")]
    return any(
        isinstance(node, ast.Raise)
        for function in functions
        # Dataclasses and protocols have some that are not of this package.
        if inspect.isfunction(function) and function.__code__.co_filename in SOURCES
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    )


def shortcomings(subject: Any) -> list[str]:
    """What the docstring of a public object lacks."""
    text = inspect.getdoc(subject) or ""
    # Of a class that says nothing, `getdoc` gives what the class above it says.
    if not text or (inspect.isclass(subject) and not vars(subject).get("__doc__")):
        return ["a docstring"]
    if inspect.isclass(subject) and issubclass(subject, Exception):
        return []
    lacks = []
    if "Example:" not in text or ">>>" not in text:
        lacks.append("an example")
    if raises_itself(subject) and "Raises:" not in text:
        lacks.append("the errors that it raises")
    parameters = takes_arguments(subject)
    if parameters and "Args:" not in text and not inspect.isclass(subject):
        lacks.append(f"its arguments: {', '.join(parameters)}")
    return lacks


def takes_arguments(subject: Any) -> list[str]:
    """The names of a function's parameters."""
    if not inspect.isfunction(subject):
        return []
    return [name for name in inspect.signature(subject).parameters if name != "self"]


PUBLIC = public_objects()


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_object_is_documented(path: str) -> None:
    assert shortcomings(PUBLIC[path]) == []


def test_the_public_objects_are_found() -> None:
    decoder = reeld.decoders.VideoDecoder
    for expected in (reeld.submit, reeld.Frame, reeld.FrameBatch.__getitem__, decoder, decoder.get_frames_at):
        assert expected in PUBLIC.values()


def test_a_lack_is_found() -> None:
    def undocumented(argument: int) -> None:
        """Raises, and does not say so."""
        raise ValueError(argument)

    assert shortcomings(undocumented) == [
        "an example",
        "the errors that it raises",
        "its arguments: argument",
    ]
