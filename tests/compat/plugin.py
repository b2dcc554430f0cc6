"""A pytest plug-in that runs TorchCodec's own tests on reeld: reeld's classes take the place of TorchCodec's.

Loaded with `-p plugin` before any test file is. What reeld does not have, such as audio, encoders and CUDA,
stays TorchCodec's. Names that the tests import and the installed TorchCodec does not have become
placeholders, so that a checkout which is newer or older than the package can be collected.

Which tests run, and with what daemon, does not live here but in `run.py`.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torchcodec

SUBJECTS = ("reeld", "torchcodec")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Says whose classes are tested, and where the results go."""
    group = parser.getgroup("compat")
    group.addoption("--subject", choices=SUBJECTS, default="reeld", help="whose classes are tested")
    group.addoption("--results", metavar="FILE", help="writes the outcome of each item as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Swaps the classes before the conftest.py of the checkout imports them."""
    options = early_config.known_args_namespace
    if options.subject == "reeld":
        put_reeld_in_place()
    placeholders = provide_missing_names(_test_files(options.file_or_dir))
    early_config.pluginmanager.register(Report(options.results, placeholders))


# ---------------------------------------------------------------------------------------- the classes


def put_reeld_in_place() -> None:
    """From here on, whoever imports these names from TorchCodec gets reeld's."""
    for module_name, names in _replacements().items():
        module = importlib.import_module(module_name)
        for name, value in names.items():
            setattr(module, name, value)


def _replacements() -> dict[str, dict[str, Any]]:
    # Imported late: nothing of reeld is to be in a run of TorchCodec itself.
    from reeld import compat, decoders, frames, metadata, samplers, transforms
    from torchcodec import _frame
    from torchcodec._core import _metadata

    decoder_classes = {
        "VideoDecoder": decoders.VideoDecoder,
        "CpuFallbackStatus": decoders.CpuFallbackStatus,
    }
    return {
        "torchcodec": {"Frame": frames.Frame, "FrameBatch": frames.FrameBatch},
        # TorchCodec's own modules, which stay in use for all that reeld does not have, make objects of these.
        "torchcodec._frame": {
            "Frame": either(frames.Frame, _frame.Frame),
            "FrameBatch": either(frames.FrameBatch, _frame.FrameBatch),
        },
        "torchcodec._core._metadata": {
            name: either(getattr(_metadata, name), getattr(metadata, name))
            for name in ("StreamMetadata", "VideoStreamHeaderMetadata", "VideoStreamMetadata")
        },
        "torchcodec.decoders": {
            **decoder_classes,
            "SimpleVideoDecoder": compat.SimpleVideoDecoder,
            "VideoStreamMetadata": metadata.VideoStreamMetadata,
        },
        "torchcodec.decoders._video_decoder": {
            **decoder_classes,
            "_read_custom_frame_mappings": compat._read_custom_frame_mappings,
        },
        "torchcodec.samplers": {name: getattr(samplers, name) for name in samplers.__all__},
        "torchcodec.transforms": {name: getattr(transforms, name) for name in transforms.__all__},
        "torchcodec.samplers._common": {"_POLICY_FUNCTIONS": compat._POLICY_FUNCTIONS},
        "torchcodec.samplers._index_based": {"_build_all_clips_indices": compat._build_all_clips_indices},
        "torchcodec.samplers._time_based": {
            "_build_all_clips_timestamps": compat._build_all_clips_timestamps
        },
    }


def either(made: type, other: type) -> type:
    """A class that makes objects of the first class; objects of both are instances of it."""

    class Either(type):
        def __call__(cls, *arguments: object, **named: object) -> object:
            return made(*arguments, **named)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, made | other)

    return Either(made.__name__, (), {"__doc__": made.__doc__})


# ---------------------------------------------------------------------------------------- placeholders


def provide_missing_names(files: Iterable[Path]) -> list[str]:
    """Makes placeholders of what these files import from TorchCodec and it does not have; their names."""
    missing = []
    for module_name, name in sorted({pair for file in files for pair in _imported_names(file)}):
        module = _module(module_name)
        if module is None:
            module = _add_module(module_name)
            missing.append(module_name)
        if name and not hasattr(module, name) and _module(f"{module_name}.{name}") is None:
            setattr(module, name, placeholder(module_name, name))
            missing.append(f"{module_name}.{name}")
    return missing


def placeholder(module_name: str, name: str) -> type:
    """A class in the place of a name that is not there: it can be imported, and nothing else."""
    sentence = f"{module_name}.{name} is not in the installed TorchCodec, {torchcodec.__version__}."

    class Missing(type):
        def __call__(cls, *_: object, **__: object) -> object:
            raise RuntimeError(sentence)

        def __getattr__(cls, _: str) -> object:
            raise AttributeError(sentence)

    return Missing(name, (), {"__doc__": sentence})


def _test_files(arguments: Iterable[str]) -> Iterator[Path]:
    """The Python files that pytest was given, and what they may import: no tests, but lying beside them."""
    for argument in arguments:
        path = Path(argument.partition("::")[0])
        folder = path if path.is_dir() else path.parent
        yield from folder.glob("*.py") if path.is_dir() else [path]
        yield from (file for file in folder.glob("*.py") if not file.name.startswith("test_"))


def _imported_names(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if _is_theirs(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and _is_theirs(node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names if alias.name != "*")


def _is_theirs(module_name: str) -> bool:
    return module_name.partition(".")[0] == "torchcodec"


def _module(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _add_module(name: str) -> types.ModuleType:
    parent_name, _, own_name = name.rpartition(".")
    parent = _module(parent_name) or _add_module(parent_name)
    module = types.ModuleType(name, "A placeholder for a module that the installed TorchCodec does not have.")
    # So that it may have modules of its own.
    module.__path__ = []
    sys.modules[name] = module
    setattr(parent, own_name, module)
    return module


# ---------------------------------------------------------------------------------------- the results


class Report:
    """Keeps what became of each item, and writes it down in the end."""

    def __init__(self, path: str | None, placeholders: list[str]) -> None:
        """`path` is the file to write, if any."""
        self._path = path
        self._placeholders = placeholders
        self._outcomes: dict[str, str] = {}

    def pytest_report_header(self) -> list[str]:
        """Says what is tested, and what was not there."""
        lines = [f"TorchCodec: {torchcodec.__version__}"]
        if self._placeholders:
            lines.append(
                f"placeholders, for this TorchCodec does not have them: {', '.join(self._placeholders)}"
            )
        return lines

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected has failed."""
        if report.failed:
            self._outcomes[report.nodeid] = "failed"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """An item has passed where its call has, and neither its set-up nor its end has failed."""
        if report.failed:
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped:
            self._outcomes.setdefault(report.nodeid, "skipped")
        elif report.when == "call":
            self._outcomes.setdefault(report.nodeid, "passed")

    def pytest_sessionfinish(self) -> None:
        """Writes the results."""
        if self._path is not None:
            results = {"outcomes": self._outcomes, "placeholders": self._placeholders}
            Path(self._path).write_text(json.dumps(results, indent=1) + "\n")
