"""The package in other environments than the one of the tests: with numpy and no torch, and other Pythons.

The environments hold numpy and nothing else. That of this Python gets it by links to the one that the tests
use; those of other Pythons, which need another build of it, from the package index, once. Tests are skipped
where the Python or the numpy cannot be had.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import REPOSITORY, SUBJECT, Daemon, Reference, digest

pytestmark = pytest.mark.skipif(SUBJECT == "torchcodec", reason="TorchCodec does not import without torch")

CLIP = "h264_bframes.mp4"
OTHER_PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# The wheel is built for the stable interface of this version, and for all later ones.
OLDEST_PYTHON = "3.11"
PROGRAM = Path(__file__).parent / "numpy_program.py"
# Kept between runs: an environment costs a download.
KEPT = REPOSITORY / "target" / "environments"


def version_of(python: str | Path) -> str | None:
    """The version of a Python, such as "3.12"; None where that does not start."""
    command = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def find_python(version: str) -> Path:
    """A Python of this version: on the PATH, or where pyenv and uv keep theirs. Skips where there is none."""
    on_path = shutil.which(f"python{version}")
    candidates = [] if on_path is None else [Path(on_path)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    candidates += sorted(Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python{version}"))
    for candidate in candidates:
        if version_of(candidate) == version:
            return candidate
    pytest.skip(f"this machine has no python{version}, neither on the PATH nor of pyenv's or uv's")


def make_environment(python: Path, folder: Path) -> Path:
    """An environment without any package; the path of its Python."""
    subprocess.run([python, "-m", "venv", "--without-pip", "--clear", folder], check=True)
    return folder / "bin" / "python"


def link_numpy(python: Path) -> None:
    """Gives an environment of this Python the numpy of the one that the tests run in."""
    assert np.__file__ is not None
    source = Path(np.__file__).parent
    (target,) = python.parent.parent.glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs"):
        (target / name).symlink_to(source.parent / name)


def install_numpy(python: Path) -> None:
    """Gives an environment of another Python its own numpy. Skips the test where that cannot be had."""
    (target,) = python.parent.parent.glob("lib/python*/site-packages")
    version = version_of(python)
    # The pip of the tests' environment installs for another Python, too, and so that one needs none.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", str(version), "--target", str(target)]
    result = subprocess.run(
        [*command, f"numpy=={np.__version__}"], capture_output=True, text=True, timeout=300, check=False
    )
    if result.returncode != 0:
        shutil.rmtree(python.parent.parent)
        last_line = (result.stderr.strip() or "no word of pip's").splitlines()[-1]
        pytest.skip(f"numpy {np.__version__} for Python {version} cannot be had: {last_line}")


def run_program(python: Path, *arguments: Path) -> dict[str, Any]:
    """What `numpy_program.py` prints in this environment."""
    package = REPOSITORY / "client-py" / "python"
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONWARNINGS": "error"}
    command = [python, PROGRAM, *arguments]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def described(pixels: Any) -> dict[str, Any]:
    """TorchCodec's pixels as the program describes ours."""
    dtype = str(pixels.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(pixels.shape), "digest": digest(pixels)}


def batch(frames: Any) -> dict[str, Any]:
    """TorchCodec's Frame or FrameBatch as the program describes ours."""
    times = [frames.pts_seconds, frames.duration_seconds]
    return {**described(frames.data), "times": [getattr(t, "tolist", lambda t=t: t)() for t in times]}


def expected_answers(decoder: Any) -> dict[str, Any]:
    """TorchCodec's answers to what the program asks."""
    begin = decoder.metadata.begin_stream_seconds
    return {
        "frame": batch(decoder.get_frame_at(7)),
        "frame by a numpy integer": batch(decoder.get_frame_at(-3)),
        "subscript": described(decoder[-1]),
        "slice": described(decoder[2:30:7]),
        "no frames": described(decoder[3:3]),
        "list": batch(decoder.get_frames_at([9, 0, 9, -1])),
        "array": batch(decoder.get_frames_at([4, 2])),
        "range": batch(decoder.get_frames_in_range(-3, 1000)),
        "played at": batch(decoder.get_frame_played_at(begin + 0.5)),
        "played at each": batch(decoder.get_frames_played_at([begin + 0.1, begin + 0.9])),
        "played in a range": batch(decoder.get_frames_played_in_range(begin + 0.2, begin + 0.5)),
        "another rate": batch(decoder.get_frames_played_in_range(begin, begin + 1, fps=7)),
        "one of a batch": batch(decoder.get_frames_at([2, 3])),
    }


def assert_right(result: dict[str, Any], file: Path) -> None:
    """What the program got is what TorchCodec gives."""
    import torch

    reference = Reference(str(file))
    answers = expected_answers(reference)
    for way in ("answers", "pickle", "fork", "spawn", "bytes"):
        assert result[way] == answers, way
    assert result["nhwc"] == expected_answers(Reference(str(file), dimension_order="NHWC"))
    as_float = described(Reference(str(file), output_dtype=torch.float32)[0:3])
    assert set(map(str, result["float32"].values())) == {str(as_float)}
    assert result["np.uint8"] == described(reference[0:3])
    assert result["submit"] == [
        batch(reference.get_frames_at([5, 1])),
        batch(reference.get_frames_played_at([0.3])),
    ]
    assert result["kept"] == batch(reference.get_frame_at(3))
    assert result["metadata"] == repr(reference.metadata)
    assert result["errors"] == {
        "frame": "FrameIndexError",
        "type": "ArgumentTypeError",
        "dtype": "InvalidRequestError",
        "file": "MediaError",
        "device": "UnsupportedError",
    }


def test_numpy_without_torch(daemon: Daemon, media: Path, tmp_path: Path) -> None:
    python = make_environment(Path(sys.executable), tmp_path / "environment")
    link_numpy(python)
    assert_right(run_program(python, media / CLIP), media / CLIP)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_another_python(daemon: Daemon, media: Path, version: str) -> None:
    if version == version_of(sys.executable):
        pytest.skip(f"Python {version} is the one that all other tests run in")
    found = find_python(version)
    folder = KEPT / f"python{version}-numpy{np.__version__}"
    python = folder / "bin" / "python"
    if version_of(python) != version:
        install_numpy(make_environment(found, folder))
    result = run_program(python, media / CLIP)
    assert result["python"] == [int(part) for part in version.split(".")]
    assert_right(result, media / CLIP)


def test_the_native_module_is_of_the_stable_interface() -> None:
    from reeld import _native

    assert Path(_native.__file__).suffixes == [".abi3", ".so"]
    project = (REPOSITORY / "client-py" / "pyproject.toml").read_text()
    cargo = (REPOSITORY / "client-py" / "Cargo.toml").read_text()
    assert f'requires-python = ">={OLDEST_PYTHON}"' in project
    assert f"abi3-py{OLDEST_PYTHON.replace('.', '')}" in cargo + (REPOSITORY / "Cargo.toml").read_text()
