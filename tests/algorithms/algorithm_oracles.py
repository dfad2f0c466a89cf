"""Independent answers: densities in plain numpy, dense Fisher matrices, policy gradients sample by sample."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from safemeta.algorithms.estimation import Advantages
from safemeta.algorithms.surrogate import Samples, make_samples
from safemeta.core import CMDP, Trajectory
from safemeta.nets import GaussianPolicy, parameters, with_parameters

OBSERVATION, ACTION = 3, 2


def make_cmdp(horizon=6, costs=2, limit_on="discounted", discount=0.9, limit=1.0) -> CMDP:
    names = tuple(f"cost {i}" for i in range(costs))
    return CMDP(OBSERVATION, ACTION, horizon, names, (limit,) * costs, discount, limit_on)


def make_policy(rng, deviation="free", hidden=(4,), scale=0.3) -> GaussianPolicy:
    """A policy whose every parameter is random, with a normaliser that has seen data."""
    policy = GaussianPolicy.create(OBSERVATION, ACTION, jax.random.key(0), hidden=hidden, deviation=deviation)
    moved = jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), policy.network)
    seen = jnp.asarray(rng.normal(loc=0.5, scale=2.0, size=(50, OBSERVATION)))
    return GaussianPolicy(policy.normalizer.merge(seen), moved, deviation)


def weights_of(cmdp: CMDP) -> np.ndarray:
    """What each step's cost counts for, by the definition of each unit."""
    steps = np.arange(cmdp.horizon)
    return {
        "discounted": cmdp.discount**steps,
        "undiscounted": np.ones(cmdp.horizon),
        "per_step": np.full(cmdp.horizon, 1 / cmdp.horizon),
    }[cmdp.limit_on]


def make_trajectory(rng, policy, cmdp, batch=(4,), ends=0.0) -> Trajectory:
    """Episodes in which actions are the policy's, and reward and costs depend on them; some end early."""
    shape = (*batch, cmdp.horizon)
    observation = rng.normal(loc=0.5, scale=2.0, size=(*shape, OBSERVATION))
    mean, log_std = moments(policy, observation)
    action = mean + np.exp(log_std) * rng.normal(size=mean.shape)
    log_prob = stats.norm(mean, np.exp(log_std)).logpdf(action).sum(-1)
    costs = np.stack([(action[..., i % ACTION] + 1 - i) ** 2 for i in range(len(cmdp.cost_names))], -1)
    ending = rng.random(shape) < ends
    valid = np.cumsum(ending, axis=-1) - ending == 0
    terminated = ending & valid
    truncated = np.zeros_like(valid)
    truncated[..., -1] = valid[..., -1] & ~terminated[..., -1]
    reward = np.where(valid, action[..., 0] - 0.3 * action[..., 1] ** 2 + 0.2 * observation[..., 0], 0)
    return Trajectory(
        observation=jnp.asarray(observation),
        action=jnp.asarray(action),
        log_prob=jnp.asarray(log_prob),
        reward=jnp.asarray(reward),
        costs=jnp.asarray(np.where(valid[..., None], costs, 0)),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        valid=jnp.asarray(valid),
        last_observation=jnp.asarray(rng.normal(size=(*batch, OBSERVATION))),
    )


class Case(NamedTuple):
    """One task's data with arbitrary advantages."""

    policy: GaussianPolicy
    cmdp: CMDP
    trajectory: Trajectory
    advantages: Advantages
    samples: Samples


def make_case(rng, deviation="free", episodes=4, ends=0.2, **cmdp_settings) -> Case:
    cmdp, policy = make_cmdp(**cmdp_settings), make_policy(rng, deviation)
    rows = make_trajectory(rng, policy, cmdp, (episodes,), ends)
    shape = rows.reward.shape
    found = Advantages(
        jnp.asarray(rng.normal(loc=0.4, size=shape)),
        jnp.asarray(rng.normal(loc=-0.3, size=(*shape, len(cmdp.cost_names)))),
        jnp.zeros((*shape, 1 + len(cmdp.cost_names))),
    )
    return Case(policy, cmdp, rows, found, make_samples(rows, found, cmdp))


def moments(policy: GaussianPolicy, observation) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log standard deviation of the action, in plain numpy."""
    seen = policy.normalizer
    spread = np.sqrt(np.asarray(seen.sum_squares) / (float(seen.count) - 1) + 1e-8) if seen.count > 1 else 1.0
    x = np.clip((np.asarray(observation) - np.asarray(seen.mean)) / spread, -seen.clip, seen.clip)
    *hidden, last = policy.network.mlp.layers
    for layer in hidden:
        x = np.tanh(x @ np.asarray(layer.weight) + np.asarray(layer.bias))
    output = x @ np.asarray(last.weight) + np.asarray(last.bias)
    log_std = np.asarray(policy.network.log_std)
    if policy.deviation == "free":
        return output, np.broadcast_to(log_std, output.shape)
    mean, offset = np.split(output, 2, axis=-1)
    return mean, np.clip(log_std + offset, -5, 2)


def log_density(policy: GaussianPolicy, observation, action) -> np.ndarray:
    mean, log_std = moments(policy, observation)
    return stats.norm(mean, np.exp(log_std)).logpdf(np.asarray(action)).sum(-1)


def kl(new: GaussianPolicy, old: GaussianPolicy, observation) -> np.ndarray:
    """`KL(new || old)` in each state."""
    (m, s), (m0, s0) = moments(new, observation), moments(old, observation)
    return np.sum(s0 - s + (np.exp(2 * s) + (m - m0) ** 2) / (2 * np.exp(2 * s0)) - 0.5, axis=-1)


def scores(policy: GaussianPolicy, observation, action, part="all") -> np.ndarray:
    """`grad log pi(a | s)` of each sample, `[..., parameters]`: one `jax.grad` per sample."""
    flat = [jnp.asarray(x).reshape(-1, x.shape[-1]) for x in (observation, action)]
    return np.asarray(_scores(policy, *flat, part)).reshape(*observation.shape[:-1], -1)


@partial(jax.jit, static_argnames="part")
def _scores(policy, observation, action, part):
    def log_prob(vector, state, act):
        return with_parameters(policy, vector, part)(state).log_prob(act)

    return jax.vmap(jax.grad(log_prob), in_axes=(None, 0, 0))(parameters(policy, part), observation, action)


def dense_fisher(policy: GaussianPolicy, states, weight, part="all") -> np.ndarray:
    """`E_s E_a[score score']`, the integral over actions by Gauss-Hermite quadrature, which is exact here."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(4)
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, ACTION)
    mass = np.outer(mass, mass).ravel() / mass.sum() ** 2
    states, weight = np.asarray(states).reshape(-1, OBSERVATION), np.asarray(weight).reshape(-1)
    mean, log_std = moments(policy, states)
    action = mean + np.exp(log_std) * noise[:, None]
    rows = scores(policy, np.broadcast_to(states, (len(noise), *states.shape)), action, part)
    return np.einsum("q,s,qsi,qsj->ij", mass, weight, rows, rows)


def signal_gradients(case: Case, part="all") -> np.ndarray:
    """Policy gradients of the reward and of each cost, in the units of the problem, by a loop over samples.

    Reward: mean over valid steps of `score (A - mean A)`. Costs: mean over episodes of `sum_t w_t score (A_c - mean)`,
    the mean weighted by w.
    """
    rows, found = scores(case.policy, case.trajectory.observation, case.trajectory.action, part), case.advantages
    valid, weights = np.asarray(case.trajectory.valid), weights_of(case.cmdp)
    episodes, horizon = valid.shape
    costs = len(case.cmdp.cost_names)
    steps = [(e, t) for e in range(episodes) for t in range(horizon) if valid[e, t]]
    gradients = np.zeros((1 + costs, rows.shape[-1]))
    mean = np.mean([found.reward[s] for s in steps])
    mass = sum(weights[t] for _, t in steps)
    for e, t in steps:
        gradients[0] += rows[e, t] * (float(found.reward[e, t]) - mean) / len(steps)
        for i in range(costs):
            centre = sum(weights[k] * float(found.costs[d, k, i]) for d, k in steps) / mass
            gradients[1 + i] += weights[t] * rows[e, t] * (float(found.costs[e, t, i]) - centre) / episodes
    return gradients


def differences(function, point: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of `function` (a vector) at `point`, `[outputs, inputs]`."""
    columns = []
    for i in range(len(point)):
        move = np.zeros_like(point)
        move[i] = step
        columns.append((np.asarray(function(point + move)) - np.asarray(function(point - move))) / (2 * step))
    return np.stack(columns, -1)


def episodes_of(case: Case, index) -> Case:
    """The case with some of its episodes only. Advantages stay centred as they were on all of them."""

    def pick(leaf):
        return leaf[index]

    return case._replace(
        trajectory=jax.tree.map(pick, case.trajectory),
        advantages=jax.tree.map(pick, case.advantages),
        samples=jax.tree.map(pick, case.samples),
    )


def perturbed(policy: GaussianPolicy, rng, scale=0.05) -> GaussianPolicy:
    vector = parameters(policy)
    return with_parameters(policy, vector + scale * jnp.asarray(rng.normal(size=vector.shape)))


def with_normalizer_of(policy: GaussianPolicy, other: GaussianPolicy) -> GaussianPolicy:
    return eqx.tree_at(lambda p: p.normalizer, policy, other.normalizer)
