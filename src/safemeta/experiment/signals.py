"""Ctrl-C and SIGTERM during training: finish the iteration, save, stop."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first signal only sets `received`; a second one interrupts at once.

    Outside the main thread, where Python cannot catch signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # Not print(): the signal may have come while a print was under way, and those do not nest.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping after this iteration; once more to stop at once.\n")
