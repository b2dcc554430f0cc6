"""The libraries that are measured, one file each: reeld and its peers.

A new one is a class of `base.Peer` and a line in the table below.
"""

from __future__ import annotations

import importlib

from suite.peers.base import Peer

# By class, so that a process imports no library but the one that it measures.
_CLASSES = {
    "reeld": ("suite.peers.reeld", "Reeld"),
    "TorchCodec": ("suite.peers.torchcodec", "TorchCodec"),
    "SPDL": ("suite.peers.spdl", "Spdl"),
    "PyAV": ("suite.peers.pyav", "PyAv"),
    "decord": ("suite.peers.decord", "Decord"),
    "OpenCV": ("suite.peers.opencv", "OpenCv"),
    "torchvision": ("suite.peers.torchvision", "TorchVision"),
}
NAMES = list(_CLASSES)


def load(name: str) -> Peer:
    """The peer of this name, its library imported.

    Raises:
        CannotError: The library is not there, or does not decode.
    """
    module, peer = _CLASSES[name]
    return getattr(importlib.import_module(module), peer)()
