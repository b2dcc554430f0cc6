"""A file that changes while it is open is an error; one that only gets another name, mode or place is not."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import reeld
from support import VideoDecoder, digest, reference_digests

CLIP = "h264_bframes.mp4"


@pytest.fixture
def file(media: Path, tmp_path: Path) -> Path:
    """A copy that a test may do anything to."""
    return Path(shutil.copy(media / CLIP, tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(os.unlink, id="unlink"),
        pytest.param(lambda file: os.chmod(file, 0o600), id="chmod"),
        pytest.param(lambda file: os.rename(file, f"{file}.moved"), id="rename"),
        pytest.param(lambda file: os.link(file, f"{file}.link"), id="link"),
    ],
)
def test_a_file_whose_inode_alone_changes_stays_readable(
    media: Path, file: Path, change: Callable[[Path], None]
) -> None:
    expected = reference_digests(media / CLIP)
    decoder = VideoDecoder(file)
    assert digest(decoder[0]) == expected[0]
    change(file)
    assert [digest(decoder[index]) for index in (0, 1, 30)] == [expected[index] for index in (0, 1, 30)]


@pytest.mark.parametrize("length", [1000, 0])
def test_a_file_that_is_cut_is_a_changed_source_for_cached_and_other_frames(file: Path, length: int) -> None:
    decoder = VideoDecoder(file)
    decoder[0]
    os.truncate(file, length)
    for index in (0, 30):
        with pytest.raises(reeld.SourceChangedError, match="changed"):
            decoder[index]


def test_a_file_that_is_overwritten_is_a_changed_source(file: Path) -> None:
    decoder = VideoDecoder(file)
    decoder[0]
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size // 2))
    for index in (0, 30):
        with pytest.raises(reeld.SourceChangedError, match="changed"):
            decoder[index]


def test_a_file_that_took_the_name_of_another_is_a_source_of_its_own(media: Path, file: Path) -> None:
    before = VideoDecoder(file)
    before[0]
    shutil.copy(media / "twenty_01.mp4", f"{file}.new")
    os.replace(f"{file}.new", file)
    assert digest(before[5]) == reference_digests(media / CLIP)[5]
    assert digest(VideoDecoder(file)[5]) == reference_digests(media / "twenty_01.mp4")[5]


def test_a_copy_of_a_decoder_opens_a_relative_path_in_any_folder(
    media: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    decoder = VideoDecoder(file.name)
    monkeypatch.chdir("/")
    expected = reference_digests(media / CLIP)[3]
    assert digest(copy.deepcopy(decoder)[3]) == expected
    assert digest(pickle.loads(pickle.dumps(decoder))[3]) == expected
