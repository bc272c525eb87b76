"""Ctrl-C that is remembered: C code that is imported may swallow the KeyboardInterrupt that it raised.

The memory is the signal's own handler, so that nothing else has to be handed on.
"""

from __future__ import annotations

import signal
from types import FrameType


class Interruption:
    """A handler of SIGINT that raises KeyboardInterrupt, and knows afterwards that it did."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal came."""
        self.came = True
        raise KeyboardInterrupt


def check_interrupted() -> None:
    """KeyboardInterrupt where one came and was swallowed; to be called after imports of much C code."""
    installed = signal.getsignal(signal.SIGINT)
    if isinstance(installed, Interruption) and installed.came:
        raise KeyboardInterrupt
