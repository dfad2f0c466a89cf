"""Python functions that compiled code calls while it runs: how simulators on the host are reached.

On processors a function is a target of XLA's foreign function interface, by a name (the structures below are those of
`xla/ffi/api/c_api.h`, which jaxlib ships). Compared with `jax.experimental.io_callback`, which serves wherever else JAX
computes, a call takes 17 us instead of 72 (100 rows, one processor), and the program can be kept in JAX's compilation
cache: what it holds is the name, not the address of a Python object.
"""

import ctypes
import itertools
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback
from jaxtyping import PyTree

PREFIX = "safemeta."
DTYPES = {
    1: np.bool_, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64,
    6: np.uint8, 7: np.uint16, 8: np.uint32, 9: np.uint64, 11: np.float32, 12: np.float64,
}  # fmt: skip
INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

_numbers: dict[str, "itertools.count[int]"] = {}  # how many functions there have been of each name
_handlers: list[Any] = []  # XLA keeps their addresses for the life of the process
_lock = threading.Lock()


class HostFunction:
    """A function of arrays, called from compiled code on the host, as often and in the order that its data demand.

    It is given NumPy arrays that are valid during the call only, and returns arrays, or a tuple of them, which are
    copied before it is called again. Whoever wants an order makes each call depend on what the last one returned.

    `name` is what compiled programs are cached under. Two functions of one name are told apart by their order in the
    process: a cached program calls whatever has its function's name and number now, which is what was traced for it.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self._targets: dict[Any, str] = {}

    def __call__(self, shapes: PyTree[jax.ShapeDtypeStruct], *arguments: PyTree) -> Any:
        """Its results, which are of the given shapes (`()`: it has none), as arrays."""
        if not interface_serves():
            return io_callback(self._copied, shapes, *arguments)
        leaves, structure = jax.tree.flatten(arguments)
        results, of_results = jax.tree.flatten(shapes)
        with _lock:
            target = self._targets.get(structure)
            if target is None:
                target = self._targets[structure] = _register(self.name, self._on_leaves(structure))
        shaped = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in results]
        found = jax.ffi.ffi_call(target, shaped, has_side_effect=True, vmap_method="sequential")(*leaves)
        return jax.tree.unflatten(of_results, found)

    def _copied(self, *arguments: Any) -> Any:
        """The results as arrays that nobody else writes into."""
        found = self.function(*jax.tree.map(np.asarray, arguments))
        return jax.tree.map(np.array, () if found is None else found)

    def _on_leaves(self, structure: Any) -> Callable[..., Any]:
        def call(*leaves: np.ndarray) -> Any:
            found = self.function(*jax.tree.unflatten(structure, leaves))
            return jax.tree.leaves(() if found is None else found)

        return call


@lru_cache(maxsize=1)
def interface_serves() -> bool:
    """Whether JAX computes on processors, with an interface of the version that is written down here.

    XLA asks a handler for the version that it was made for, and tells its own, when it is registered.
    """
    if jax.default_backend() != "cpu":  # also starts the backend, without which registering waits
        return False
    versions: set[int] = set()
    _register("probe", lambda: (), versions)
    return versions == {0}


def _register(name: str, function: Callable[..., Any], versions: set[int] | None = None) -> str:
    """Make a function known to XLA; the name of the target. It maps arrays to a sequence of arrays."""
    target = f"{PREFIX}{name}.{next(_numbers.setdefault(name, itertools.count()))}"

    @_HANDLER
    def handle(frame: Any) -> int | None:
        call = frame.contents
        if call.extension:  # a question about the handler, not a call
            version = call.api.contents.version
            if versions is not None:
                versions.add(version.major)
            answer = call.extension.contents.metadata.contents
            answer.version.major, answer.version.minor, answer.traits = version.major, version.minor, 0
            return None
        try:
            arguments, results = call.arguments, call.results
            found = function(*[_view(arguments.items[index]) for index in range(arguments.size)])
            if len(found) != results.size:
                raise ValueError(f"{name} returned {len(found)} arrays instead of {results.size}")
            for index, values in enumerate(found):
                room = _view(results.items[index])
                if np.shape(values) != room.shape:
                    raise ValueError(f"{name} returned shape {np.shape(values)} instead of {room.shape}")
                np.copyto(room, values, casting="same_kind")
        except BaseException as problem:
            return _error(call, f"{type(problem).__name__}: {problem}")
        return None

    _handlers.append(handle)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handle), platform="cpu")
    return target


def _view(buffer: Any) -> np.ndarray:
    """A buffer of XLA's as an array, without a copy."""
    described = buffer.contents
    shape = described.dims[: described.rank]
    dtype = np.dtype(DTYPES[described.dtype])
    count = 1
    for length in shape:
        count *= length
    if not count:
        return np.empty(shape, dtype)
    memory: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(described.data)
    return np.frombuffer(memory, dtype).reshape(shape)


def _error(call: Any, message: str) -> int:
    """An error of XLA's, which ends the computation and raises `jax.errors.JaxRuntimeError` with this message."""
    arguments = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message.encode(errors="replace"), INTERNAL)
    return call.api.contents.create_error(ctypes.byref(arguments))


class _ErrorCreate(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p), ("code", ctypes.c_int),
    )  # fmt: skip


class _Version(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("major", ctypes.c_int), ("minor", ctypes.c_int),
    )  # fmt: skip


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("version", _Version), ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorCreate))),
    )  # fmt: skip


class _Metadata(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32), ("state", ctypes.c_int64),
    )  # fmt: skip


class _MetadataExtension(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    )  # fmt: skip


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p), ("rank", ctypes.c_int64), ("dims", ctypes.POINTER(ctypes.c_int64)),
    )  # fmt: skip


class _Buffers(ctypes.Structure):
    """XLA_FFI_Args and XLA_FFI_Rets, which are alike; all of safemeta's arguments are buffers."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p), ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p), ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )  # fmt: skip


class _CallFrame(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("extension", ctypes.POINTER(_MetadataExtension)), ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p), ("stage", ctypes.c_int), ("arguments", _Buffers), ("results", _Buffers),
    )  # fmt: skip


_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
