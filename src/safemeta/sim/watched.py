"""Calls of code that may hang: made in another thread, which is left behind once it is overdue.

A thread cannot be ended from outside; one that hangs is forgotten, and ends with the process. What hangs without
letting go of Python's global lock (a C library that never returns and does not release it) stops this watch as well.
"""

import math
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

PAUSES = 20  # progress is asked for so often within the time that is allowed

Result = TypeVar("Result")


class Overdue(Exception):
    """A call that has not answered in time."""


class _Call:
    """A call, and what became of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: Any = None
        self.problem: BaseException | None = None

    def make(self) -> None:
        try:
            self.result = self.work()
        except BaseException as problem:  # whoever waits raises it
            self.problem = problem
        self.done.set()


class _Worker(threading.Thread):
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        super().__init__(name="safemeta-watched", daemon=True)
        self.calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            self.calls.get().make()


_idle: list[_Worker] = []


def watched(
    work: Callable[[], Result], timeout: float | int | None, progress: Callable[[], Any] = lambda: None
) -> Result:
    """What `work()` returns or raises; `Overdue` once `progress()` has stood still for `timeout` seconds.

    Without a `timeout` the call is made in this thread, and may take for ever. Time is counted in pauses, so that a
    process that is stopped for a while (Ctrl-Z) is not overdue when it goes on.
    """
    if timeout is None:
        return work()
    call = _Call(work)
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    worker.calls.put(call)
    seen, still = progress(), 0
    while not call.done.wait(timeout / PAUSES):
        now = progress()
        seen, still = now, still + 1 if now == seen else 0
        if still >= PAUSES:
            raise Overdue(f"it has not answered for {timeout:g} s")
    _idle.append(worker)
    if call.problem is not None:
        raise call.problem
    return call.result


def check_timeout(timeout: Any) -> None:
    """Raise `ValueError` unless it is a number of seconds above zero, or None."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and 0 < timeout < math.inf):
        raise ValueError(f"timeout must be a number of seconds above 0, or None for no limit, not {timeout!r}")
