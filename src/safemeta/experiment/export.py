"""`safemeta export`: a policy for deployment, as plain NumPy or as ONNX, with its normaliser inside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.deployed import DeployedPolicy, Layer, linear, single
from safemeta.experiment.errors import UserError
from safemeta.experiment.files import write_product
from safemeta.nets import GaussianPolicy
from safemeta.nets.layer_norm_mlp import EPSILON, DeterministicPolicy
from safemeta.nets.mlp import MLP
from safemeta.nets.squashed_policy import ModePolicy, SquashedPolicy

FILE = "policy.npz"
FORMATS = ("npz", "onnx")
OPSET = 17  # the first with LayerNormalization
ACTIVATIONS: dict[Callable[..., Any], str] = {jnp.tanh: "tanh", jax.nn.elu: "elu"}


class ActingPolicy(eqx.Module):
    """The policy of a run: `policy(observation)` is its action without noise; `act` samples as in training.

    Actions of tasks that take them from a box are clipped to [-1, 1], as the tasks do.
    """

    policy: Any
    bounded: bool = eqx.field(static=True, default=True)

    def __call__(self, observation: Any) -> Float[Array, "*batch action"]:
        """`[..., observation]` to `[..., action]`; observations as the task gives them, not normalised."""
        return self.mode(jnp.asarray(observation, float))

    def mode(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The action without noise. Raises `UserError` where the policy knows of none."""
        if not hasattr(self.policy, "mode"):
            raise UserError(f"A {type(self.policy).__name__} has no action without noise; sample one with its `act`.")
        action = self.policy.mode(observation)
        return jnp.clip(action, -1, 1) if self.bounded else action

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        """A `safemeta.core.Policy`."""
        return self.policy.act(observation, key)


def export(policy: Any, out: Path | str | None = None, *, checkpoint: str = "auto") -> Path:
    """Write the policy of a run (a `Run` or its folder), or any policy of safemeta, as `.npz` or `.onnx`.

    By default `policy.npz` in the run's folder. ONNX needs the package `onnx`. Raises `UserError`.
    """
    from safemeta.experiment.run import Run, load

    folder, description = None, ""
    if isinstance(policy, str | Path):
        policy = load(policy, checkpoint)
    if isinstance(policy, Run):
        folder, description, policy = policy.folder, f"{policy.name}, iteration {policy.iteration}", policy.policy
    if out is None and folder is None:
        raise UserError("Name a file that ends in .npz or .onnx.")
    path = Path(out) if out is not None else folder / FILE if folder is not None else Path(FILE)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise UserError(f"Policies are exported as {' or '.join(FORMATS)}, so that '{path}' (--out) will not do.")
    plain = deployed(policy, description)
    return write_product(path, onnx_model(plain) if kind == "onnx" else plain.to_bytes())


def deployed(policy: Any, description: str = "") -> DeployedPolicy:
    """The same policy, layer by layer, for NumPy."""
    bounded = True
    if isinstance(policy, ActingPolicy):
        policy, bounded = policy.policy, policy.bounded
    layers = tuple(_layers(policy))
    layers += (Layer("clip", single(low=-1.0, high=1.0)),) if bounded else ()
    weights = [layer.arrays["weight"] for layer in layers if layer.kind == "linear"]
    return DeployedPolicy(layers, weights[0].shape[0], weights[-1].shape[1], description)


def _layers(policy: Any) -> list[Layer]:
    if isinstance(policy, ModePolicy):
        policy = policy.policy
    if isinstance(policy, GaussianPolicy):
        seen = policy.normalizer
        first = [
            Layer("standardise", single(mean=seen.mean, deviation=np.sqrt(np.asarray(seen.variance) + 1e-8))),
            Layer("clip", single(low=-seen.clip, high=seen.clip)),
        ]
        actions = policy.network.log_std.shape[-1]  # the network may give deviations too, after the means
        return first + _perceptron(policy.network.mlp, actions)
    if isinstance(policy, SquashedPolicy):
        actions = policy.mlp.layers[-1].bias.shape[-1] // 2
        squashed = [Layer("tanh", {}), Layer("multiply", single(factor=policy.scale))]
        return _perceptron(policy.mlp, actions) + squashed
    if isinstance(policy, DeterministicPolicy):
        torso, (first, *rest) = policy.torso, policy.torso.layers
        normalised = single(scale=torso.scale, offset=torso.offset, epsilon=EPSILON)
        return [
            Layer("linear", single(weight=first.weight, bias=first.bias)),
            Layer("layer_norm", normalised),
            Layer("tanh", {}),
            *linear(((layer.weight, layer.bias) for layer in rest), "elu"),
            *linear(iter([(policy.head.weight, policy.head.bias)]), "tanh"),
        ]
    raise UserError(f"A policy of the kind {type(policy).__name__} cannot be exported.")


def _perceptron(mlp: MLP, outputs: int) -> list[Layer]:
    """An MLP with the first of its outputs."""
    *hidden, last = mlp.layers
    activation = ACTIVATIONS.get(mlp.activation)
    if activation is None:
        raise UserError(f"A network with the activation {mlp.activation} cannot be exported.")
    head = Layer("linear", single(weight=last.weight[:, :outputs], bias=last.bias[:outputs]))
    return [*linear(((layer.weight, layer.bias) for layer in hidden), activation), head]


def onnx_model(policy: DeployedPolicy) -> bytes:
    """The policy as an ONNX model from `observation` `[batch, n]` to `action` `[batch, m]`."""
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as problem:
        words = "ONNX needs the package onnx: pip install 'safemeta[onnx]'; or name a file that ends in .npz."
        raise UserError(words) from problem
    nodes: list[Any] = []
    constants: list[Any] = []
    shown = "observation"

    def constant(array: Any, name: str) -> str:
        constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    for number, layer in enumerate(policy.layers):
        held = {name: constant(array, f"{name}_{number}") for name, array in layer.arrays.items() if name != "epsilon"}
        if layer.kind == "standardise":
            shown = node("Div", node("Sub", shown, held["mean"]), held["deviation"])
        elif layer.kind == "clip":
            shown = node("Clip", shown, held["low"], held["high"])
        elif layer.kind == "linear":
            shown = node("Gemm", shown, held["weight"], held["bias"])
        elif layer.kind == "layer_norm":
            epsilon = float(layer.arrays["epsilon"])
            shown = node("LayerNormalization", shown, held["scale"], held["offset"], axis=-1, epsilon=epsilon)
        elif layer.kind == "multiply":
            shown = node("Mul", shown, held["factor"])
        else:
            shown = node({"tanh": "Tanh", "elu": "Elu"}[layer.kind], shown)
    nodes.append(helper.make_node("Identity", [shown], ["action"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("observation", policy.observation_size), ("action", policy.action_size))
    ]
    graph = helper.make_graph(nodes, "policy", ends[:1], ends[1:], constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="safemeta"
    )
    model.doc_string = policy.description
    onnx.checker.check_model(model)
    return model.SerializeToString()
