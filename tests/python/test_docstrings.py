"""The examples in the docstrings of the package run as they are written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

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


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert any(finder.find(importlib.import_module(name)) for name in MODULES)
