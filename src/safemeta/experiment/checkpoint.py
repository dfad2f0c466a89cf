"""Checkpoints: data, never code; atomic, checksummed, and checked against the state they are restored into.

A checkpoint is one safetensors file. Its metadata holds a JSON header (format, version, iteration, names, shapes and
types of all leaves) and the SHA-256 of that header and of every array's bytes, so that any changed bit is noticed.
Nothing in it can be executed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from safemeta.experiment.errors import UserError
from safemeta.experiment.files import remove_leftovers, write_atomically

FORMAT = "safemeta checkpoint"
VERSION = 1
KEPT = 2
_KEY = "safemeta"  # the metadata entry that holds the header
_NAME = re.compile(r"iteration-(\d{8})\.safetensors")


class Damaged(UserError):
    """A checkpoint that cannot be read: truncated, changed, of another version, or not one at all."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"The checkpoint '{path}' {reason}.", exit_code=1)


def save(path: Path, state: Any, **header: Any) -> None:
    """Write the arrays of the pytree `state` and the JSON-able `header` to `path`, atomically."""
    arrays, leaves = {}, []
    for name, leaf in _array_leaves(state):
        arrays[name], description = _encode(leaf)
        leaves.append({"name": name, **description})
    content = {"format": FORMAT, "version": VERSION, **header, "leaves": leaves}
    content["sha256"] = _checksum(content, arrays)
    write_atomically(path, safetensors.save(arrays, {_KEY: json.dumps(content, allow_nan=False)}))


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays `[...]` in `path`, verified by checksum; `UserError` with exit code 1 otherwise."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as problem:
        raise UserError(f"There is no checkpoint '{path}'.", exit_code=1) from problem
    except OSError as problem:
        raise Damaged(path, f"cannot be read ({(problem.strerror or 'input error').lower()})") from problem
    header = _read_header(path, data)
    try:
        arrays = safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as problem:
        raise Damaged(path, f"is damaged (truncated or changed; it has {len(data)} bytes)") from problem
    checksum = header.pop("sha256", None)
    if checksum != _checksum(header, arrays):
        raise Damaged(path, "is damaged (its checksum does not match its content)")
    return header, arrays


def restore(path: Path, template: Any) -> tuple[Any, dict[str, Any]]:
    """`template` with its arrays replaced by those in `path`, and the header.

    Every name, shape and type must agree. Leaves of `template` that are no arrays (activation functions, names)
    come from the code, not from the file.
    """
    header, arrays = load(path)
    described = {leaf["name"]: leaf for leaf in header["leaves"]}
    expected = dict(_array_leaves(template))
    for name in [*(expected.keys() - described.keys()), *(described.keys() - expected.keys())]:
        where = "the file lacks" if name in expected else "only the file has"
        raise UserError(
            f"The checkpoint '{path}' does not fit the algorithm and its options: {where} '{name}'.", exit_code=1
        )

    def replace(key_path: Any, leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        name = jax.tree_util.keystr(key_path)
        return _decode(path, leaf, arrays[name], described[name])

    return jax.tree_util.tree_map_with_path(replace, template), header


class Checkpoints:
    """The `checkpoints/` folder of a run: the last two iterations, and the best one if the algorithm names one."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def best(self) -> Path:
        """The file of the state with the best score."""
        return self.folder / "best.safetensors"

    def path(self, iteration: int) -> Path:
        """The file of an iteration."""
        return self.folder / f"iteration-{iteration:08d}.safetensors"

    def iterations(self) -> list[int]:
        """The iterations that are there, newest first."""
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("iteration-*.safetensors"))
        return sorted((int(match.group(1)) for match in found if match), reverse=True)

    def save(self, state: Any, iteration: int, **header: Any) -> Path:
        """Write a checkpoint, then remove those that are no longer needed."""
        path = self.path(iteration)
        save(path, state, iteration=iteration, **header)
        for old in self.iterations()[KEPT:]:
            self.path(old).unlink(missing_ok=True)
        return path

    def restore_newest(self, template: Any) -> tuple[Any, dict[str, Any] | None, list[str]]:
        """The newest readable state, its header, and sentences about damaged files that were passed over.

        Where there is no checkpoint at all, these are `template`, None and nothing.
        """
        remove_leftovers(self.folder)
        damaged: list[Damaged] = []
        for iteration in self.iterations():
            try:
                state, header = restore(self.path(iteration), template)
            except Damaged as problem:
                damaged.append(problem)
                continue
            return state, header, [f"{problem} Falling back on iteration {iteration}." for problem in damaged]
        if damaged:
            raise UserError(f"{damaged[0]} No other checkpoint of this run can be read.", exit_code=1)
        return template, None, []


def _read_header(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON header in the bytes of a safetensors file."""
    if not data:
        raise Damaged(path, "is empty")
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not data[8:9] == b"{":
        raise Damaged(path, "is not a safemeta checkpoint, or its beginning is damaged")
    if size > len(data) - 8:
        raise Damaged(path, f"is damaged (truncated; it has {len(data)} bytes)")
    try:
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        header = json.loads(metadata[_KEY]) if _KEY in metadata else None
    except (ValueError, AttributeError, TypeError, RecursionError) as problem:
        raise Damaged(path, "is damaged (its header cannot be read)") from problem
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise Damaged(path, "is not a safemeta checkpoint")
    if header.get("version") != VERSION:
        raise Damaged(path, f"has version {header.get('version')!r}; this safemeta reads version {VERSION}")
    return header


def _checksum(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, allow_nan=False).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float))


def _array_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if _is_array(leaf)]


def _encode(leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """A leaf as a NumPy array that safetensors knows, and its description."""
    if _is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return data, {"kind": "key", "implementation": str(jax.random.key_impl(leaf)), "shape": list(leaf.shape)}
    array = np.asarray(leaf)
    description = {"kind": _kind(leaf), "dtype": array.dtype.name, "shape": list(array.shape)}
    if array.dtype.kind == "V" or array.dtype.name in ("bfloat16",):
        array = array.view(f"uint{8 * array.dtype.itemsize}")  # types that NumPy lacks travel as their bits
    return np.array(array, order="C"), description


def _decode(path: Path, template: Any, array: np.ndarray, description: Mapping[str, Any]) -> Any:
    """The leaf that `template` stands for, after checking that the stored one is of the same make."""
    _, expected = _encode(template)
    # A plain Python number at the start may have become an array since, and the other way round.
    compared = (
        ("shape",)
        if "scalar" in (expected["kind"], description["kind"])
        else ("kind", "dtype", "implementation", "shape")
    )
    for part in compared:
        if description.get(part) != expected.get(part):
            raise UserError(
                f"The checkpoint '{path}' does not fit the algorithm and its options: the {part} of"
                f" '{description['name']}' is {description.get(part)}, not {expected.get(part)}.",
                exit_code=1,
            )
    if description["kind"] == "key":
        return jax.random.wrap_key_data(jnp.asarray(array), impl=description["implementation"])
    if description["kind"] == "scalar":
        return array.item()
    array = array.view(jnp.dtype(description["dtype"]))
    return jnp.array(array) if description["kind"] == "jax" else array.copy()


def _kind(leaf: Any) -> str:
    if isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic):
        return "scalar"
    return "jax" if isinstance(leaf, jax.Array) else "numpy"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
