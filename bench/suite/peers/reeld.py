"""reeld itself: a daemon of its own for each measuring process, so that its cost is in the account."""

from __future__ import annotations

import importlib
import inspect
import os
import time
from typing import Any

from own_daemon import OwnDaemon

from suite.clips import clip, recipes
from suite.peers.base import CannotError, Peer, Setting, Video
from suite.peers.torchcodec import TorchCodecVideo, torchvision_resize

# Only a failure waits that long.
_GIVE_UP_SECONDS = 60
_LOOK_SECONDS = 0.002


class Reeld(Peer):
    """Settings: `threads` (a hint), `seek`, `cache`, `cache_mib`, `index_folder`, `resize`.

    With `cache` "off" engines keep no picture. Warm sessions cannot be turned off: measurements that shall
    not profit from them use files that the daemon has not seen.
    """

    name = "reeld"
    module = "reeld"

    def __init__(self) -> None:
        """Imports the decoders, too."""
        super().__init__()
        self._decoders: Any = importlib.import_module("reeld.decoders")
        self._daemon: OwnDaemon | None = None
        parameters = inspect.signature(self._decoders.VideoDecoder).parameters
        self.resizes = "transforms" in parameters

    def begin(self, setting: Setting) -> None:
        """Starts the daemon."""
        options = ["--log", "warn"]
        if setting.get("cache", "on") == "off":
            options += ["--engine-cache-mib", "0"]
        elif "cache_mib" in setting:
            # The engine's own limit leaves room for what it needs besides.
            options += ["--engine-cache-mib", str(setting["cache_mib"])]
        if "index_folder" in setting:
            options += ["--cache-dir", setting["index_folder"]]
        self._daemon = OwnDaemon(*options)
        self.library.connect()
        self._warm_up()

    def _warm_up(self) -> None:
        """Has all engines started, as they are in a daemon that has lived for a while."""
        decoder = self.decoder(str(clip(recipes(quick=True)["small"]).path), {})
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        count = len(os.sched_getaffinity(0))
        while len(self.library.status()["engines"]) < count and time.monotonic() < deadline:
            # One GOP each, so that there is work for all of them at the same time.
            starts = range(0, len(decoder), 30)
            pending = [self.library.submit([self.library.Clip(decoder, indices=[start])]) for start in starts]
            for each in pending:
                each.result()
        self.settle()

    def decoder(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Any:  # noqa: ANN401
        """A decoder of reeld's; resized in the daemon if the setting says so."""
        options: dict[str, Any] = {
            "num_ffmpeg_threads": setting.get("threads", 0),
            "seek_mode": setting.get("seek", "exact"),
        }
        if size is not None and setting.get("resize") == "decoder":
            if not self.resizes:
                raise CannotError("this version of reeld takes no transforms")
            options["transforms"] = [importlib.import_module("reeld.transforms").Resize(size)]
        return self._decoders.VideoDecoder(path, **options)

    def open(self, path: str, setting: Setting, size: tuple[int, int] | None = None) -> Video:
        """Opens a decoder."""
        afterwards = size is not None and setting.get("resize") != "decoder"
        resize = torchvision_resize(size) if afterwards and size is not None else None
        return TorchCodecVideo(self.decoder(path, setting, size), resize)

    def settle(self) -> None:
        """Waits until no engine works."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def _is_busy(self) -> bool:
        status = self.library.status()
        # One's own question is the request that is always under way.
        return status["queued_run_count"] > 0 or any(engine["is_busy"] for engine in status["engines"])

    def totals(self) -> dict[str, int]:
        """The daemon's counters."""
        return self.library.status()["totals"]

    def picture_count(self) -> int | None:
        """As the daemon counts."""
        return self.totals()["pictures_decoded"]

    def counters(self) -> dict[str, float]:
        """What the engines have spent besides decoding."""
        totals = self.totals()
        return {
            "conversion_seconds": totals["conversion_micros"] / 1e6,
            "page_faults": totals["page_faults"],
        }

    def end(self) -> None:
        """Ends the daemon."""
        if self._daemon is not None:
            self._daemon.__exit__()
            self._daemon = None
