"""How many threads a process may use."""

import os

# The variable that XLA reads for its own pool of threads; MuJoCo's follow it here.
THREADS = "NPROC"


def available_cores() -> int:
    """What `NPROC` says, if it is a number above zero; else the cores that this process may run on."""
    named = os.environ.get(THREADS, "")
    if named.isdecimal() and int(named) > 0:
        return int(named)
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
