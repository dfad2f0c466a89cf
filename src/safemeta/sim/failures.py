"""What goes wrong on the host while compiled code runs: kept until somebody can raise it.

An exception must not cross compiled code (it would come out as a traceback of the compiler's, with the run lost). The
host side reports it here and answers with NaN; whoever started the computation asks for it afterwards.
"""

import threading

_lock = threading.Lock()
_pending: list["SimulationError"] = []


class SimulationError(RuntimeError):
    """A simulation that failed; the message is one sentence that names task, episode and step."""


def report(error: SimulationError) -> None:
    """Keep an error until `raise_pending`."""
    with _lock:
        _pending.append(error)


def pending() -> SimulationError | None:
    """The first error that was reported since the last call, if any; all are forgotten."""
    with _lock:
        found = _pending[0] if _pending else None
        _pending.clear()
    return found


def is_pending() -> bool:
    """Whether an error waits to be raised; it stays."""
    with _lock:
        return bool(_pending)


def raise_pending() -> None:
    """Raise what is `pending`."""
    error = pending()
    if error is not None:
        raise error
