"""The programs in examples/ do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, Daemon, eventually

EXAMPLES = REPOSITORY / "examples"


@pytest.mark.parametrize("worker_count", [0, 2])
def test_the_training_loop_learns(daemon: Daemon, tmp_path: Path, worker_count: int) -> None:
    options = ["--workers", str(worker_count), "--folder", str(tmp_path)]
    command = [sys.executable, str(EXAMPLES / "train.py"), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert (result.returncode, result.stderr) == (0, "")
    epochs = [
        re.fullmatch(r"epoch \d: loss (.*), accuracy (.*)%, (\d+) frames/s", line)
        for line in result.stdout.splitlines()
    ]
    losses = [float(epoch[1]) for epoch in epochs if epoch is not None]
    assert len(losses) == len(epochs) == 10
    assert losses[-1] < losses[0] / 2
    eventually(lambda: daemon.lease_count() == 0, "no lease is left")
