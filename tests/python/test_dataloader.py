"""A real torch DataLoader with workers gets right frames, whether its workers are forked or spawned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import TWENTY, Daemon, VideoDecoder, digest, eventually, reference_digests
from torch.utils.data import DataLoader, Dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # Three workers on two cores, and it says so.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

FRAMES_PER_FILE = 12


class Frames(Dataset[tuple[int, int, torch.Tensor]]):
    """Frames of several files: (number of the file, index of the frame, pixels)."""

    def __init__(self, files: list[str], *, is_opened_early: bool) -> None:
        self.files = files
        self.decoders = {file: VideoDecoder(file) for file in files} if is_opened_early else {}

    def __len__(self) -> int:
        """As many frames of every file."""
        return len(self.files) * FRAMES_PER_FILE

    def __getitem__(self, item: int) -> tuple[int, int, torch.Tensor]:
        """Opens the file at its first use in this process, unless it came along opened."""
        number, index = divmod(item, FRAMES_PER_FILE)
        decoder = self.decoders.setdefault(self.files[number], VideoDecoder(self.files[number]))
        return number, index, decoder[index]


def wrong_frames(loader: DataLoader[tuple[int, int, torch.Tensor]], expected: list[list[str]]) -> list[str]:
    """Goes through two epochs; what came wrong or did not come."""
    wrong, seen = [], set()
    for _epoch in range(2):
        for numbers, indices, frames in loader:
            for number, index, frame in zip(numbers.tolist(), indices.tolist(), frames, strict=True):
                seen.add((number, index))
                if digest(frame) != expected[number][index]:
                    wrong.append(f"file {number} frame {index}")
    everything = {(number, index) for number in range(len(expected)) for index in range(FRAMES_PER_FILE)}
    return wrong + [f"{missing} did not come" for missing in sorted(everything - seen)]


@pytest.mark.parametrize("is_opened_early", [True, False])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(media: Path, daemon: Daemon, method: str, is_opened_early: bool) -> None:
    files = [str(media / name) for name in TWENTY[:6]]
    expected = [reference_digests(Path(file)) for file in files]
    dataset = Frames(files, is_opened_early=is_opened_early)
    if is_opened_early:
        # The parent has used its connection before the workers inherit it.
        assert digest(dataset[0][2]) == expected[0][0]
    loader = DataLoader(
        dataset,
        batch_size=4,
        shuffle=True,
        num_workers=3,
        multiprocessing_context=method,
        persistent_workers=True,
    )
    assert wrong_frames(loader, expected) == []
    del loader, dataset
    eventually(lambda: daemon.lease_count() == 0, "no lease is left after the workers have ended")


def test_without_workers(media: Path) -> None:
    files = [str(media / name) for name in TWENTY[:2]]
    loader = DataLoader(Frames(files, is_opened_early=True), batch_size=6)
    expected = [name for file in files for name in reference_digests(Path(file))[:FRAMES_PER_FILE]]
    assert [digest(frame) for _, _, frames in loader for frame in frames] == expected
