"""Writing files so that a crash leaves either the old file or the new one, never half of one."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from safemeta.experiment.errors import writing_failed


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: temporary file, fsync, rename, fsync of the folder.

    The temporary file lies in the same folder, since a rename is atomic only within one file system; it is removed
    again if anything fails.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_product(path: Path, data: bytes) -> Path:
    """Write what a user has asked for, wherever that may be, atomically; `UserError` where it cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as problem:
        raise writing_failed(problem, path) from problem
    return path


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON (never NaN or infinity, which are no JSON), atomically."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system can (Windows cannot open folders)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems do not sync folders
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left behind."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
