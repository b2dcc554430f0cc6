"""`script/install` into a folder: what it puts where, for whom, and what it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from container import REPOSITORY

INSTALL = REPOSITORY / "script" / "install"


def install(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script and gives back what it said."""
    command = [str(INSTALL), *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def installed(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file below a root."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.stat().st_mode & 0o777, path.read_bytes()) for path in files}


def test_second_run_changes_nothing(tmp_path: Path) -> None:
    said = install(str(tmp_path))
    assert said.returncode == 0, said.stderr
    first = installed(tmp_path)
    assert install(str(tmp_path)).returncode == 0
    assert installed(tmp_path) == first
    # Each file is named, and nothing else is done.
    assert sorted(said.stdout.split()) == sorted(str(tmp_path / name) for name in first)
    modes = {name: mode for name, (mode, _) in first.items()}
    assert modes["usr/bin/reeld"] == modes["usr/bin/reelctl"] == 0o755
    for name in ("systemd/system/reeld.service", "systemd/system/reeld.socket", "sysusers.d/reeld.conf"):
        assert modes[f"usr/lib/{name}"] == 0o644
    assert modes["usr/lib/tmpfiles.d/reeld.conf"] == 0o644


def test_other_prefix_reaches_the_units(tmp_path: Path) -> None:
    assert install(str(tmp_path), PREFIX="/usr/local").returncode == 0
    service = (tmp_path / "usr/local/lib/systemd/system/reeld.service").read_text()
    assert "\nExecStart=/usr/local/bin/reeld serve\n" in service
    assert not (tmp_path / "usr/bin").exists()


@pytest.mark.parametrize(
    ("arguments", "prefix", "reason"),
    [
        ([], "/usr", "usage:"),
        (["/a", "/b"], "/usr", "usage:"),
        (["--help"], "/usr", "absolute path"),
        (["relative"], "/usr", "absolute path"),
        (["/no/such/folder"], "/usr", "there is no folder"),
        (["/tmp"], "/opt/reeld", "PREFIX must be"),
    ],
)
def test_nonsense_is_refused_by_a_sentence(arguments: list[str], prefix: str, reason: str) -> None:
    said = install(*arguments, PREFIX=prefix)
    assert said.returncode == 1
    assert reason in said.stderr
    assert said.stdout == ""
