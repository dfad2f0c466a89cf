"""Meta-training of FISAR's optimizer on deterministic problems (eq. 7 and 8; Sun, Kim, How).

    theta_{k+1} = theta_k + beta proj(m_phi(grad f(theta_k), h_k)),   L(phi) = sum_k w_k f(theta_k)

with f to be minimised (the paper maximises J = -f). The projection is part of the differentiated graph. A run of
`span` steps is cut into windows of `window` steps: each gives one meta-gradient, and hands parameters and memory on as
constants (truncated backpropagation, as in Andrychowicz et al. 2016).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.class_k import ClassK
from safemeta.algorithms.fisar_optimizer import direction
from safemeta.algorithms.settings import at_least_one, one_of, positive
from safemeta.nets import LearnedOptimizer, Memory
from safemeta.solvers.projection import ProjectionMetric

Vector = Float[Array, " n"]
Weighting = Literal["uniform", "relative"]


class Problems(Protocol):
    """A distribution of problems `min f(x) s.t. C(x) <= 0`; hashable. `problem` is any pytree of arrays."""

    def sample(self, key: PRNGKeyArray) -> tuple[Any, Vector]:
        """A problem and a start."""
        ...

    def objective(self, problem: Any, x: Vector) -> Float[Array, ""]:
        """What is minimised."""
        ...

    def constraints(self, problem: Any, x: Vector) -> Float[Array, " m"]:
        """At most zero where they are kept."""
        ...


@dataclass(frozen=True)
class MetaConfig:
    """Settings of meta-training. The paper gives none; [A] Andrychowicz et al. 2016, the others chosen for safemeta."""

    units: int = 20  # of each LSTM layer [A]
    layers: int = 2  # [A]
    preprocessing: float | None = 10.0  # p [A]
    output_scale: float = 1.0  # of the LSTM's output
    step: float = 0.1  # beta
    class_k: ClassK = field(default_factory=ClassK)  # alpha
    metric: ProjectionMetric = "euclidean"  # "closed_form" is the paper's
    second_derivatives: bool = False  # False: gradients of f and C count as constants [A and FISAR]
    weighting: Weighting = "relative"  # w_k = 1, or 1 / |f| at the start of the window
    batch: int = 64  # problems per meta-iteration
    span: int = 100  # T_phi [A]
    window: int = 20  # [A]
    iterations: int = 300  # each of span / window meta-updates
    learning_rate: float = 3e-3  # of Adam, falling to zero along a cosine
    clip: float = 1.0  # global norm of the meta-gradient

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        at_least_one(self, "units", "layers", "batch", "span", "window", "iterations")
        positive(self, "step", "learning_rate", "clip", "output_scale")
        if self.span % self.window:
            raise ValueError(f"span must be a multiple of window, not {self.span} and {self.window}.")
        one_of(self, "weighting", get_args(Weighting))


class Lane(eqx.Module):
    """Where the optimization of one problem stands."""

    x: Vector
    memory: Memory


class Path(eqx.Module):
    """What was met on the way: `objective[k]` and `constraints[k]` are those after k + 1 steps."""

    objective: Float[Array, "*batch steps"]
    constraints: Float[Array, "*batch steps m"]


def unroll(
    config: MetaConfig, problems: Problems, network: LearnedOptimizer, problem: Any, lane: Lane, steps: int
) -> tuple[Lane, Path]:
    """`steps` steps of eq. 7.

    Without `second_derivatives`, grad f and grad C are constants to the meta-gradient. The values C are not: how the
    bounds answer to a change of theta takes first derivatives only.
    """

    def advance(lane: Lane, _: None) -> tuple[Lane, tuple[Array, Array]]:
        gradient = jax.grad(problems.objective, 1)(problem, lane.x)
        rows = jax.jacrev(problems.constraints, 1)(problem, lane.x)
        if not config.second_derivatives:
            gradient, rows = jax.lax.stop_gradient((gradient, rows))
        values = problems.constraints(problem, lane.x)
        found, memory = direction(network, config.class_k, config.metric, gradient, rows, values, lane.memory)
        x = lane.x + config.step * found.update
        return Lane(x, memory), (problems.objective(problem, x), problems.constraints(problem, x))

    lane, path = jax.lax.scan(advance, lane, length=steps)
    return lane, Path(*path)


def meta_loss(
    config: MetaConfig, problems: Problems, network: LearnedOptimizer, problem: Any, lane: Lane, steps: int
) -> tuple[Float[Array, ""], tuple[Lane, Path]]:
    """Eq. 8 on one window of one problem, divided by its length, and what the window leaves behind."""
    after, path = unroll(config, problems, network, problem, lane, steps)
    if config.weighting == "uniform":
        return jnp.mean(path.objective), (after, path)
    scale = jnp.abs(problems.objective(problem, lane.x))
    floor = jnp.finfo(scale.dtype).eps ** 0.5
    return jnp.mean(path.objective) / jax.lax.stop_gradient(jnp.maximum(scale, floor)), (after, path)


class MetaState(eqx.Module):
    """The network and Adam's moments."""

    network: LearnedOptimizer
    moments: Any


def create(config: MetaConfig, key: PRNGKeyArray) -> MetaState:
    """An untrained network."""
    config.validate()
    network = LearnedOptimizer.create(
        key,
        units=config.units,
        layers=config.layers,
        preprocessing=config.preprocessing,
        output_scale=config.output_scale,
    )
    return MetaState(network, _meta_optimizer(config).init(eqx.filter(network, eqx.is_array)))


@eqx.filter_jit
def meta_iteration(
    config: MetaConfig, problems: Problems, state: MetaState, key: PRNGKeyArray
) -> tuple[MetaState, Float[Array, " windows"]]:
    """Fresh problems, all windows of a run on them, one meta-update after each; the meta-loss of every window."""
    problem, start = jax.vmap(problems.sample)(jax.random.split(key, config.batch))
    lanes = jax.vmap(lambda x: Lane(x, state.network.fresh(x)))(start)

    def batch_loss(network: LearnedOptimizer, lanes: Lane) -> tuple[Array, Lane]:
        losses, (after, _) = jax.vmap(lambda one, lane: meta_loss(config, problems, network, one, lane, config.window))(
            problem, lanes
        )
        return losses.mean(), after

    def window(carry: tuple[MetaState, Lane], _: None) -> tuple[tuple[MetaState, Lane], Array]:
        state, lanes = carry
        (loss, lanes), gradient = eqx.filter_value_and_grad(batch_loss, has_aux=True)(state.network, lanes)
        updates, moments = _meta_optimizer(config).update(gradient, state.moments)
        return (MetaState(eqx.apply_updates(state.network, updates), moments), lanes), loss

    (state, _), losses = jax.lax.scan(window, (state, lanes), length=config.span // config.window)
    return state, losses


def meta_train(
    config: MetaConfig, problems: Problems, key: PRNGKeyArray, report: Any = None
) -> tuple[LearnedOptimizer, Float[Array, "iterations windows"]]:
    """A trained network and its learning curve; `report(iteration, losses)` is called after every iteration."""
    state = create(config, jax.random.fold_in(key, 0))
    history = []
    for iteration in range(1, config.iterations + 1):
        state, losses = meta_iteration(config, problems, state, jax.random.fold_in(key, iteration))
        history.append(losses)
        if report is not None:
            report(iteration, losses)
    return state.network, jnp.stack(history)


def _meta_optimizer(config: MetaConfig) -> optax.GradientTransformation:
    updates = config.iterations * (config.span // config.window)
    schedule = optax.cosine_decay_schedule(config.learning_rate, updates)
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule))
