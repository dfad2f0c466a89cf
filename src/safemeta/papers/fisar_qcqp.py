"""FISAR on quadratic problems: what is run for its Figure 3, and for how much learning helps.

Everything is judged in double precision, on problems that neither meta-training nor the choice of step sizes has seen.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from safemeta.algorithms.class_k import ClassK
from safemeta.algorithms.fisar import optimizer
from safemeta.algorithms.fisar_meta import MetaConfig
from safemeta.experiment.errors import UserError
from safemeta.nets import LearnedOptimizer
from safemeta.solvers import safe_projection
from safemeta.tasks.qcqp import QCQP, QCQPFamily

Constraints = Callable[[Array], Array]
Rule = Callable[[Constraints, Any], optax.GradientTransformationExtraArgs]  # the second is a step size
TRIALS = 45  # of the steps that keep the true constraints
KEEPING = ClassK(rate=5.0)  # their alpha: with 1, violations decay too slowly for 1e-6 within 100 steps
GAP = 1e-5  # of Clarabel's solutions, relative to the objective
CLOSE, ALLOWED = 0.01, 1e-2  # what "solved" means: objective within 1 % of the optimum, no violation above this
SIZES = np.geomspace(0.003, 1.0, 12)  # step sizes that are tried for every baseline
FREE_STEPS = 100
BASES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
}


class Problems(NamedTuple):
    """A batch of problems with their optima and two starts each; leaves have a leading problem axis."""

    problem: QCQP
    optimum: Float[NDArray, " problems"]
    start: Float[Array, "problems n"]  # as a rule outside
    inside: Float[Array, "problems n"]


class Curves(NamedTuple):
    """Objective and largest constraint value before the first and after every step.

    The leading axis, of step sizes, is absent where one was given.
    """

    objective: Float[NDArray, "*sizes problems steps"]
    violation: Float[NDArray, "*sizes problems steps"]


def draw(family: QCQPFamily, key: PRNGKeyArray, count: int) -> Problems:
    """`count` problems in double precision, solved by Clarabel."""
    keys = jax.random.split(key, count)

    def one(key: PRNGKeyArray) -> tuple[QCQP, Array, Array]:
        sample_key, fraction_key = jax.random.split(key)
        problem, start = family.sample(sample_key)
        return problem, start, family.feasible_start(problem, start, jax.random.uniform(fraction_key))

    problem, start, inside = jax.jit(jax.vmap(one))(keys)
    optimum = [solve(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), problem)) for i in range(count)]
    return Problems(problem, np.asarray(optimum), start, inside)


def solve(problem: QCQP) -> float:
    """The optimal objective of one problem, by Clarabel; `UserError` where that is not installed."""
    if importlib.util.find_spec("clarabel") is None:
        raise UserError("The optima of quadratic problems need Clarabel: pip install clarabel", exit_code=1)
    clarabel, sparse = importlib.import_module("clarabel"), importlib.import_module("scipy.sparse")
    weight, target, centres, shapes, radii = (np.asarray(leaf, float) for leaf in jax.tree.leaves(problem))
    n = target.size
    # |L' (x - c)| <= sqrt(r) with M = L L': one second-order cone for every constraint.
    roots = [np.linalg.cholesky(shape).T for shape in shapes]
    matrix = np.concatenate([np.concatenate([np.zeros((1, n)), -root]) for root in roots])
    offset = np.concatenate([[np.sqrt(r), *(-root @ c)] for root, c, r in zip(roots, centres, radii, strict=True)])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    quadratic, linear = sparse.csc_matrix(np.triu(2 * weight.T @ weight)), -2 * weight.T @ target
    cones = [clarabel.SecondOrderConeT(n + 1)] * len(roots)
    found = clarabel.DefaultSolver(quadratic, linear, sparse.csc_matrix(matrix), offset, cones, settings).solve()
    value = float(np.sum((weight @ np.asarray(found.x) - target) ** 2))
    # Some end as "AlmostSolved": the duality gap says how far from the optimum any of them can be.
    if not abs(found.obj_val - found.obj_val_dual) <= GAP * value:
        raise UserError(f"Clarabel could not solve a quadratic problem: {found.status}.", exit_code=1)
    return value


def follow(family: QCQPFamily, problems: Problems, start: Array, rule: Rule, steps: int, sizes: Any = 0.0) -> Curves:
    """Every problem from its `start`, `steps` updates of the rule, with one step size or with each of several."""

    def one(size: Array, problem: QCQP, x: Array) -> tuple[Array, Array]:
        def constraints(y: Array) -> Array:
            return family.constraints(problem, y)

        transform = rule(constraints, size)

        def values(x: Array) -> tuple[Array, Array]:
            return family.objective(problem, x), constraints(x).max()

        def advance(carry: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
            x, state = carry
            updates, state = transform.update(jax.grad(family.objective, 1)(problem, x), state, x)
            x = x + jnp.asarray(updates)
            return (x, state), values(x)

        _, path = jax.lax.scan(advance, (x, transform.init(x)), length=steps)
        first = values(x)
        return jnp.append(first[0], path[0]), jnp.append(first[1], path[1])

    batch = jax.vmap(one, in_axes=(None, 0, 0))
    sizes = jnp.asarray(sizes)
    if sizes.ndim:
        batch = jax.vmap(batch, in_axes=(0, None, None))
    return Curves(*map(np.asarray, jax.jit(batch)(sizes, problems.problem, start)))


def learned_rule(
    network: LearnedOptimizer, config: MetaConfig, *, class_k: ClassK | None = None, trials: int = 0
) -> Rule:
    """The learned optimizer with the step and projection that it was trained with; alpha may be another."""
    alpha, metric = class_k or config.class_k, config.metric
    return lambda constraints, size: optimizer(
        network, constraints, step=config.step, class_k=alpha, metric=metric, trials=trials
    )


def projected_rule(base: str, config: MetaConfig) -> Rule:
    """A standard optimizer with the same projection, and the same decay of violations per step."""
    rate, metric = config.step * config.class_k.rate, config.metric

    def rule(constraints: Constraints, size: Any) -> optax.GradientTransformationExtraArgs:
        projection = safe_projection(constraints, rate=rate, metric=metric)
        return optax.with_extra_args_support(optax.chain(BASES[base](size), projection))

    return rule


def free_rule(base: str) -> Rule:
    """A standard optimizer without constraints."""
    return lambda constraints, size: optax.with_extra_args_support(BASES[base](size))


def steps_to_solve(curves: Curves, optimum: NDArray) -> NDArray:
    """Per problem, after how many steps it is solved and stays so; infinite if it never is.

    Solved: objective at most 1 % above the optimum, and no constraint above 1e-2.
    """
    solved = (curves.objective <= (1 + CLOSE) * optimum[:, None]) & (curves.violation <= ALLOWED)
    length = solved.shape[1]
    # The last step that is not solved, counted from the end.
    unsolved_at_end = np.argmax(~solved[:, ::-1], axis=1)
    first = np.where(solved.all(1), 0, length - unsolved_at_end)
    return np.where(first == length, np.inf, first)


def mean_steps(needed: NDArray, steps: int) -> Any:
    """Means over the last axis; what is not solved counts as twice the number of steps."""
    return np.where(np.isfinite(needed), needed, 2.0 * steps).mean(-1)


def best_size(curves: Curves, optimum: NDArray) -> int:
    """Which of the step sizes solves the problems in the fewest steps on average.

    Where several solve as many, none of them any among others, the one that ends nearest: the mean over problems of
    the relative gap, either way, plus the violation.
    """
    steps = curves.objective.shape[-1] - 1
    needed = np.stack([steps_to_solve(Curves(*each), optimum) for each in zip(*curves, strict=True)])
    gap, violation = np.abs(curves.objective[..., -1] / optimum - 1), np.maximum(curves.violation[..., -1], 0)
    ends = np.nan_to_num((gap + violation).mean(-1), nan=np.inf)
    return int(np.lexsort((ends, mean_steps(needed, steps)))[0])


def joined(first: Problems, second: Problems) -> Problems:
    """Both batches as one."""
    optimum = np.concatenate([first.optimum, second.optimum])
    trees = (first._replace(optimum=optimum[:0]), second._replace(optimum=optimum[:0]))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *trees)._replace(optimum=optimum)


def both_starts(
    family: QCQPFamily, problems: Problems, rule: Rule, steps: int, sizes: Any = 0.0
) -> tuple[Curves, Curves]:
    """`follow` from outside and from inside, by one program."""
    count = len(problems.optimum)
    starts = jnp.concatenate([problems.start, problems.inside])
    curves = follow(family, joined(problems, problems), starts, rule, steps, sizes)
    outside, inside = (Curves(*(part[..., at, :] for part in curves)) for at in (slice(count), slice(count, None)))
    return outside, inside


def tuned(
    family: QCQPFamily, tuning: Problems, test: Problems, rule: Rule, steps: int
) -> tuple[float, float, tuple[Curves, Curves]]:
    """The step sizes of `SIZES` that solve the `tuning` problems best (`best_size`), from outside and from inside.

    And with those the curves on the `test` problems.
    """
    count, chosen, curves = len(tuning.optimum), [], []
    for found in both_starts(family, joined(tuning, test), rule, steps, SIZES):
        best = best_size(Curves(*(part[:, :count] for part in found)), tuning.optimum)
        chosen.append(float(SIZES[best]))
        curves.append(Curves(*(part[best, count:] for part in found)))
    return chosen[0], chosen[1], (curves[0], curves[1])


def tuned_free(family: QCQPFamily, tuning: Problems, test: Problems, base: str, steps: int) -> tuple[float, Curves]:
    """The same for an unconstrained optimizer: the step size that gets lowest within `FREE_STEPS` steps on average."""
    count, both = len(tuning.optimum), joined(tuning, test)
    found = follow(family, both, both.start, free_rule(base), steps, SIZES)
    ends = np.nan_to_num(found.objective[:, :count, min(FREE_STEPS, steps)], nan=np.inf).mean(-1)
    best = int(np.argmin(ends))
    return float(SIZES[best]), Curves(*(part[best, count:] for part in found))


def in_double(network: LearnedOptimizer) -> LearnedOptimizer:
    """The network with weights in double precision (call it where that is enabled)."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) if eqx.is_array(leaf) else leaf, network)
