"""Policies that act without JAX: NumPy alone, for the robot or the service that a policy was trained for.

policy = safemeta.load_policy("policy.npz")
action = policy(observation)
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
# What each kind of layer holds. The last axis is the features; any axes before it are a batch.
KINDS: dict[str, tuple[str, ...]] = {
    "standardise": ("mean", "deviation"),  # (x - mean) / deviation
    "clip": ("low", "high"),
    "linear": ("weight", "bias"),  # x W + b, W being [inputs, outputs]
    "layer_norm": ("scale", "offset", "epsilon"),  # scale (x - E x) / sqrt(Var x + epsilon) + offset, over the features
    "multiply": ("factor",),
    "tanh": (),
    "elu": (),  # x where x > 0, else exp(x) - 1
}


@dataclass(frozen=True)
class Layer:
    """One step from observation to action."""

    kind: str
    arrays: dict[str, NDArray]


@dataclass(frozen=True)
class DeployedPolicy:
    """The action without noise of a trained policy, its normaliser inside. Callable on one observation or a batch."""

    layers: tuple[Layer, ...]
    observation_size: int
    action_size: int
    description: str = ""

    def __call__(self, observation: Any) -> NDArray:
        """`[..., observation]` to `[..., action]`, in single precision. Raises `ValueError` on another size."""
        x = np.asarray(observation, np.float32)
        if x.ndim == 0 or x.shape[-1] != self.observation_size:
            raise ValueError(f"an observation has {self.observation_size} numbers, not shape {x.shape}")
        for layer in self.layers:
            x = _applied(layer, x)
        return x

    def to_bytes(self) -> bytes:
        """The content of an `.npz` that holds arrays only, never code."""
        described = {
            "format": FORMAT,
            "layers": [layer.kind for layer in self.layers],
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "description": self.description,
        }
        arrays = {f"{i}.{name}": array for i, layer in enumerate(self.layers) for name, array in layer.arrays.items()}
        arrays["policy"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def load_policy(path: Path | str) -> DeployedPolicy:
    """The policy in a file that `safemeta export` wrote. Raises `ValueError` on a file that is damaged or no policy."""
    damage = (KeyError, ValueError, TypeError, AttributeError, BadZipFile, EOFError)  # a broken file is closed too
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        described = json.loads(bytes(arrays.pop("policy")))
        if described["format"] != FORMAT:
            raise ValueError(f"its format is {described['format']}; this version reads {FORMAT}")
        layers = tuple(
            Layer(kind, {name: arrays.pop(f"{i}.{name}") for name in KINDS[kind]})
            for i, kind in enumerate(described["layers"])
        )
        policy = DeployedPolicy(
            layers, int(described["observation_size"]), int(described["action_size"]), str(described["description"])
        )
        if arrays or not all(np.isfinite(array).all() for layer in layers for array in layer.arrays.values()):
            raise ValueError("it has arrays that are not finite, or that belong to no layer")
        if policy(np.zeros(policy.observation_size)).shape != (policy.action_size,):
            raise ValueError("it has another number of actions than it says")
    except damage as problem:
        raise ValueError(f"'{path}' is no policy, or it is damaged: {problem}") from problem
    return policy


def _applied(layer: Layer, x: NDArray) -> NDArray:
    held = layer.arrays
    if layer.kind == "standardise":
        return (x - held["mean"]) / held["deviation"]
    if layer.kind == "clip":
        return np.clip(x, held["low"], held["high"])
    if layer.kind == "linear":
        return x @ held["weight"] + held["bias"]
    if layer.kind == "layer_norm":
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(np.mean(centred**2, -1, keepdims=True) + held["epsilon"])
        return held["scale"] * centred / deviation + held["offset"]
    if layer.kind == "multiply":
        return x * held["factor"]
    if layer.kind == "tanh":
        return np.tanh(x)
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def single(**arrays: Any) -> dict[str, NDArray]:
    """Arrays `[...]` of any shape in single precision."""
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def linear(weights: Iterable[tuple[Any, Any]], activation: str) -> Iterator[Layer]:
    """Linear layers with an activation after each."""
    for weight, bias in weights:
        yield Layer("linear", single(weight=weight, bias=bias))
        yield Layer(activation, {})
