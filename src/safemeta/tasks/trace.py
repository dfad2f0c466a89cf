"""Recorded traces of the original environments, and how far safemeta's physics are from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


class TraceError(ValueError):
    """A trace that cannot be replayed; the message is one sentence for the user."""


@dataclass(frozen=True)
class Trace:
    """A recorded episode: `meta` and the arrays over time."""

    file: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def array(self, name: str, *shape: int) -> np.ndarray:
        """A finite array of the expected shape, `[*shape]`. Raises `TraceError`."""
        if name not in self.arrays:
            raise TraceError(f"{self.file} is not a complete trace: it has no array {name!r}")
        array = self.arrays[name]
        if array.shape != shape:
            raise TraceError(f"{self.file}: {name!r} has shape {array.shape}, not {shape}")
        if not (np.issubdtype(array.dtype, np.number) and np.isfinite(array).all()):
            raise TraceError(f"{self.file}: {name!r} holds something else than finite numbers")
        return array


@dataclass(frozen=True)
class MaxError:
    """Largest absolute differences: m and rad, m/s and rad/s, observation and reward in their own units."""

    qpos: float
    qvel: float
    observation: float
    reward: float


@dataclass(frozen=True)
class Replay:
    """The outcome. `skipped` names what was left out of the comparison, and why."""

    file: str
    steps: int
    skipped: list[str]
    max_error: MaxError
    cost_agreement: float


def load(file: str | Path) -> Trace:
    """A trace from disk. Raises `TraceError` where the file is missing, damaged or no trace."""
    path = Path(file)
    if not path.is_file():
        raise TraceError(f"{path} does not exist or is not a file")
    try:
        # Opened here, since numpy leaves a file that it opened itself open where it turns out to be damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen unrelated types on damaged bytes
        raise TraceError(f"{path} cannot be read as an .npz trace ({type(error).__name__})") from error
    try:
        meta = json.loads(str(arrays.pop("meta")))
    except (KeyError, json.JSONDecodeError) as error:
        raise TraceError(f"{path} is not a trace: it has no readable 'meta'") from error
    if not isinstance(meta, dict):
        raise TraceError(f"{path} is not a trace: its 'meta' is not an object")
    return Trace(str(file), meta, arrays)


def largest(ours: Any, recorded: Any) -> float:
    """The largest absolute difference; zero of nothing."""
    return float(np.abs(np.asarray(ours) - np.asarray(recorded)).max(initial=0.0))
