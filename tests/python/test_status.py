"""The daemon's report: the same in Python as on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import MEDIA, SUBJECT, Daemon

pytestmark = pytest.mark.skipif(SUBJECT == "torchcodec", reason="torchcodec has no daemon")


def keys(report: Any) -> Any:
    """The names of all fields, at any depth."""
    if isinstance(report, dict):
        return {name: keys(value) for name, value in report.items()}
    if isinstance(report, list):
        return [keys(value) for value in report[:1]]
    return None


def test_report_has_the_fields_of_reelctl(daemon: Daemon, tmp_path: Path) -> None:
    import reeld
    from reeld.decoders import VideoDecoder

    decoder = VideoDecoder(MEDIA / "h264_bframes.mp4")
    assert len(decoder) == 50
    no_media = tmp_path / "text"
    no_media.write_text("no media")
    with pytest.raises(RuntimeError):
        VideoDecoder(no_media)
    report = reeld.status()
    assert keys(report) == keys(daemon.status())
    assert report["errors"]["media"] >= 1
    assert report["is_draining"] is False
    own = [client for client in report["clients"] if client["name"].startswith("python")]
    assert own[0]["requests_total"] >= 3
