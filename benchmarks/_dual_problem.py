"""Problem (1) of the dual-method paper on finite CMDPs without the closed form: weak duality, SLSQP, Clarabel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from safemeta.algorithms.dual_tabular import ExactAdaptation, Penalties
from safemeta.tasks.tabular import TabularCMDP


def problem_of(cmdp: TabularCMDP, log_prob: Any, discount: float) -> tuple[np.ndarray, ...]:
    """Performance, advantages, state weights and the policy itself, by NumPy."""
    policy, transition = np.exp(log_prob), np.asarray(cmdp.transition)
    signals = np.concatenate([np.asarray(cmdp.reward)[..., None], np.asarray(cmdp.costs)], -1)
    leave = np.eye(len(policy)) - discount * np.einsum("sa,sat->st", policy, transition)
    value = np.linalg.solve(leave, np.einsum("sa,sax->sx", policy, signals))
    weight = (1 - discount) * np.linalg.solve(leave.T, np.asarray(cmdp.initial))
    advantage = signals + discount * transition @ value - value[:, None]
    return np.asarray(cmdp.initial) @ value, advantage, weight, policy


def duality(
    cmdp: TabularCMDP, limits: Any, penalties: Penalties, found: ExactAdaptation, discount: float
) -> tuple[float, float]:
    """Of the first adaptation: dual bound less value, and the least room in a constraint (over 1 - discount apart).

    For any u >= 0, `sum_s nu(s) eta ln sum_a pi exp((A - u A_c) / eta) + u d'` bounds problem (1) from above (Gibbs'
    variational principle). A policy that keeps the constraints and reaches the bound is optimal, however it was found.
    """
    performance, advantage, weight, old = problem_of(cmdp, found.log_prob[0], discount)
    objective, charged = float(penalties.objective), np.asarray(penalties.costs)
    new, multipliers = np.exp(np.asarray(found.log_prob[1])), np.asarray(found.steps.multipliers[0])
    kl = weight @ (new * np.log(new / old)).sum(1)
    used = np.einsum("s,sa,sai->i", weight, new, advantage[..., 1:]) / (1 - discount) + charged * kl
    gain = weight @ (new * advantage[..., 0]).sum(1) - objective * kl
    eta = objective + (1 - discount) * multipliers @ charged
    tilt = (advantage[..., 0] - advantage[..., 1:] @ multipliers) / eta
    room = np.asarray(limits) - performance[1:]
    bound = eta * weight @ np.log((old * np.exp(tilt)).sum(1)) + (1 - discount) * multipliers @ room
    return float(bound - gain), float((room - used).min())


Solve = Callable[["Problem"], tuple[float, NDArray]]


@dataclass(frozen=True)
class Problem:
    """Max gain . p - objective kl(p) such that used p + charged kl(p) <= room; kl(p) weighs states, from `old`."""

    weight: NDArray  # [states]
    old: NDArray  # [states, actions], like p
    gain: NDArray  # [states, actions]
    used: NDArray  # [costs, states, actions]
    room: NDArray  # [costs]
    objective: float
    charged: NDArray  # [costs]


def beside(
    solve: Solve,
    cmdps: TabularCMDP,
    limits: Any,
    penalties: Penalties,
    found: ExactAdaptation,
    discount: float,
    count: int,
) -> tuple[list[float], list[float]]:
    """The first adaptation of the first so many CMDPs given to a solver: differences of value and of probabilities."""
    values, policies = [], []
    for index in range(count):
        cmdp, limit, charge, ours = jax.tree.map(lambda leaf, i=index: leaf[i], (cmdps, limits, penalties, found))
        performance, advantage, weight, old = problem_of(cmdp, ours.log_prob[0], discount)
        slope = np.moveaxis(weight[:, None, None] * advantage, -1, 0)
        room, charged = np.asarray(limit) - performance[1:], np.asarray(charge.costs)
        value, new = solve(
            Problem(weight, old, slope[0], slope[1:] / (1 - discount), room, float(charge.objective), charged)
        )
        values.append(abs(value - float(ours.steps.gain[0])))
        policies.append(float(np.abs(new - np.exp(np.asarray(ours.log_prob[1]))).max()))
    return values, policies


def by_clarabel(problem: Problem) -> tuple[float, NDArray]:
    """As a cone program: value and policy."""
    import cvxpy as cp

    policy = cp.Variable(problem.old.shape, nonneg=True)
    kl = cp.sum(cp.multiply(problem.weight[:, None], cp.rel_entr(policy, problem.old)))
    within: list[Any] = [cp.sum(policy, axis=1) == 1]
    for used, charged, room in zip(problem.used, problem.charged, problem.room, strict=True):
        within.append(cp.sum(cp.multiply(used, policy)) + charged * kl <= room)
    program = cp.Problem(cp.Maximize(cp.sum(cp.multiply(problem.gain, policy)) - problem.objective * kl), within)
    program.solve(solver=cp.CLARABEL)
    return float(np.asarray(program.value)), np.asarray(policy.value)


def by_slsqp(problem: Problem) -> tuple[float, NDArray]:
    """By sequential quadratic programs in `d = (p - old) / step`: value and policy.

    With a step of the solution's size all terms are of order 1, although divergences are as small as 1e-8.
    """
    weight, old, objective, charged = problem.weight, problem.old, problem.objective, problem.charged
    gain, used = problem.gain.ravel(), problem.used.reshape(len(charged), -1)
    step = min(1.0, float(np.abs(gain).max() / weight.max()) / objective)
    sums = np.kron(np.eye(old.shape[0]), np.ones(old.shape[1]))

    def relative(d: NDArray) -> NDArray:
        return step * d.reshape(old.shape) / old

    def kl(d: NDArray) -> float:  # of old + step d, over step
        x = relative(d)
        return weight @ (old * ((1 + x) * np.log1p(x) - x)).sum(1) / step

    def kl_slope(d: NDArray) -> NDArray:
        return (weight[:, None] * np.log1p(relative(d))).ravel()

    solved = minimize(
        lambda d: objective * kl(d) - gain @ d,
        np.zeros(old.size),
        jac=lambda d: objective * kl_slope(d) - gain,
        bounds=[(-(1 - 1e-12) * each / step, None) for each in old.ravel()],
        constraints=[
            {"type": "eq", "fun": lambda d: sums @ d, "jac": lambda d: sums},
            {
                "type": "ineq",
                "fun": lambda d: problem.room / step - used @ d - charged * kl(d),
                "jac": lambda d: -used - np.outer(charged, kl_slope(d)),
            },
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 2000},
    )
    return -step * float(solved.fun), old + step * solved.x.reshape(old.shape)
