"""Finite CMDPs with everything exact: values, visitation, and the optimal safe policy by linear programming.

They are for checking theorems and algorithms: whatever is claimed of a policy can be computed here without sampling.
Values and visitation are JAX, and can be differentiated and vmapped; the linear program is SciPy's HiGHS, in float64.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.optimize import linprog

from safemeta.core import solve_without_pivots
from safemeta.sim import Parameters, Step


class TabularCMDP(eqx.Module):
    """`P(s' | s, a)`, reward `r(s, a)` and costs `c_i(s, a)`, and the distribution of the first state."""

    transition: Float[Array, "*batch states actions states"]
    reward: Float[Array, "*batch states actions"]
    costs: Float[Array, "*batch states actions costs"]
    initial: Float[Array, "*batch states"]

    def signals(self) -> Float[Array, "*batch states actions signals"]:
        """The reward, followed by the costs."""
        return jnp.concatenate([self.reward[..., None], self.costs], axis=-1)


def values(
    cmdp: TabularCMDP, policy: Float[Array, "states actions"], discount: float | Array
) -> Float[Array, "states signals"]:
    """`V(s) = E[sum_t discount^t x(s_t, a_t) | s_0 = s]` of reward and costs: `(I - discount P_pi) V = x_pi`."""
    flow = jnp.einsum("sa,sat->st", policy, cmdp.transition)
    gained = jnp.einsum("sa,sax->sx", policy, cmdp.signals())
    return solve_without_pivots(jnp.eye(flow.shape[0], dtype=flow.dtype) - discount * flow, gained)


def action_values(
    cmdp: TabularCMDP, policy: Float[Array, "states actions"], discount: float | Array
) -> Float[Array, "states actions signals"]:
    """`Q(s, a) = x(s, a) + discount sum_s' P(s' | s, a) V(s')` of reward and costs."""
    return cmdp.signals() + discount * jnp.einsum("sat,tx->sax", cmdp.transition, values(cmdp, policy, discount))


def visitation(
    cmdp: TabularCMDP, policy: Float[Array, "states actions"], discount: float | Array
) -> Float[Array, "states actions"]:
    """`d(s, a) = sum_t discount^t P(s_t = s, a_t = a)`, which sums to `1 / (1 - discount)`."""
    flow = jnp.einsum("sa,sat->st", policy, cmdp.transition)
    states = solve_without_pivots(jnp.eye(flow.shape[0], dtype=flow.dtype) - discount * flow.T, cmdp.initial)
    return states[:, None] * policy


def performance(
    cmdp: TabularCMDP, policy: Float[Array, "states actions"], discount: float | Array
) -> Float[Array, " signals"]:
    """`E[sum_t discount^t x(s_t, a_t)]` of reward and costs from the initial distribution."""
    return cmdp.initial @ values(cmdp, policy, discount)


@dataclass(frozen=True)
class SafeOptimum:
    """The solution of the linear program.

    `multipliers` are the derivatives of the best return by each limit, zero or more. If no policy keeps the limits,
    `feasible` is false, the policy is one whose largest excess over a limit is smallest, and multipliers are NaN.
    """

    policy: Float[np.ndarray, "states actions"]
    reward: float
    costs: Float[np.ndarray, " costs"]
    multipliers: Float[np.ndarray, " costs"]
    feasible: bool


def optimal_safe_policy(
    cmdp: TabularCMDP, limits: Float[Array | np.ndarray, " costs"] | tuple[float, ...], discount: float
) -> SafeOptimum:
    """The policy with the greatest discounted return among those whose discounted costs keep their limits.

    Over visitations `d >= 0`: maximise `sum d r` subject to `sum d c_i <= limit_i` and, for every state s',
    `sum_a d(s', a) = initial(s') + discount sum_{s, a} P(s' | s, a) d(s, a)`; then
    `pi(a | s) = d(s, a) / sum_a d(s, a)` (Altman 1999, chapter 3). In states that are never visited the policy is
    uniform. It is stochastic in as many states as limits bind, at most. Raises `ValueError` where the limits do not fit
    the costs, and `RuntimeError` where the solver itself fails.
    """
    transition, reward, costs, initial = (
        np.asarray(leaf, np.float64) for leaf in (cmdp.transition, cmdp.reward, cmdp.costs, cmdp.initial)
    )
    states, actions, count = costs.shape
    flow = np.repeat(np.eye(states), actions, axis=1) - discount * transition.reshape(-1, states).T
    spent = costs.reshape(-1, count).T
    bound = np.asarray(limits, np.float64)
    if bound.shape != (count,):
        raise ValueError(f"there are {count} costs, but the limits have shape {bound.shape}")
    finite = np.where(np.isfinite(bound), bound, 1e30)  # what HiGHS takes for infinite
    found = linprog(-reward.ravel(), spent, finite, flow, initial, bounds=(0, None), method="highs")
    if found.status == 2:  # infeasible: minimise the largest excess, one more variable
        least = linprog(
            np.append(np.zeros(states * actions), 1.0),
            np.column_stack([spent, -np.ones(count)]),
            finite,
            np.column_stack([flow, np.zeros(states)]),
            initial,
            bounds=[(0, None)] * (states * actions) + [(None, None)],
            method="highs",
        )
        feasible, multipliers, solution = False, np.full(count, np.nan), least
    else:
        feasible, solution = True, found
        multipliers = -found.ineqlin.marginals if found.status == 0 else np.full(count, np.nan)
    if solution.status != 0:
        raise RuntimeError(f"the linear program was not solved: {solution.message}")
    visited = np.maximum(solution.x[: states * actions], 0).reshape(states, actions)
    total = visited.sum(1, keepdims=True)
    policy = np.where(total > 1e-12, visited / np.maximum(total, 1e-12), 1 / actions)
    return SafeOptimum(policy, float((visited * reward).sum()), spent @ visited.ravel(), multipliers, feasible)


@dataclass(frozen=True)
class TabularEnvironment:
    """A finite CMDP that is stepped by sampling: parameters are the four leaves of `TabularCMDP`.

    The observation is the state, one-hot. An action is a vector with one score per action, and the action with the
    highest score is taken (the first of equals): one-hot vectors, logits and Gaussian samples all work. Reward and
    costs are the expectations `r(s, a)` and `c(s, a)`. Never terminates. Its own state is `[1 + key]`: the index of the
    state, and the key of what happens next.
    """

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[Array, Float[Array, " observation"]]:
        first, rest = jax.random.split(key)
        state = _drawn(parameters["initial"], first)
        return self._packed(state, rest), self._seen(parameters, state)

    def step(self, parameters: Parameters, state: Array, action: Float[Array, " action"]) -> tuple[Array, Step]:
        here, (key, rest) = state[0], jax.random.split(jax.random.wrap_key_data(state[1:]))
        taken = jnp.argmax(action)
        following = _drawn(parameters["transition"][here, taken], key)
        result = Step(
            self._seen(parameters, following),
            parameters["reward"][here, taken],
            parameters["costs"][here, taken],
            jnp.asarray(False),
        )
        return self._packed(following, rest), result

    def _packed(self, state: Array, key: PRNGKeyArray) -> Array:
        """Index of the state, and the key of what happens next, as one vector of integers."""
        return jnp.concatenate([state.astype(jnp.uint32)[None], jax.random.key_data(key)])

    def _seen(self, parameters: Parameters, state: Array) -> Float[Array, " observation"]:
        return jax.nn.one_hot(state, parameters["initial"].shape[-1], dtype=parameters["initial"].dtype)


def _drawn(probabilities: Float[Array, " states"], key: PRNGKeyArray) -> Array:
    """A sampled index, by inversion."""
    below = jnp.cumsum(probabilities)
    drawn = jax.random.uniform(key, dtype=probabilities.dtype) * below[-1]
    return jnp.sum(below <= drawn).clip(max=probabilities.shape[0] - 1)


class TablePolicy(eqx.Module):
    """A policy given as a table of probabilities; its actions are one-hot scores for `TabularEnvironment`."""

    table: Float[Array, "states actions"]

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        row = observation @ self.table
        taken = _drawn(row, key)
        return jax.nn.one_hot(taken, row.shape[0], dtype=row.dtype), jnp.log(row[taken])
