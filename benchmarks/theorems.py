"""The dual-method paper's theorems on random finite CMDPs, everything exact: `python benchmarks/theorems.py [--json]`.

No policy is sampled: values, visitation and extremes over all policies come from linear solves, in float64.

- Proposition 4, Corollary 1: with the theorem's penalties and delta = 0, 20 adaptations from a safe start break no
  limit and never lower the return. The constants A_max and eta are the exact extremes over all policies, S^v is all
  states (alpha = 1): the least penalties that the theorem allows. Also with a share of them: the check can fail.
- Propositions 1, 2: the closed form solves problem (1). Evidence for every first adaptation: it keeps the constraints,
  and its value equals that of the dual function (written down anew here), an upper bound by weak duality. Some
  hundreds of problems are also given to SLSQP and to Clarabel.
- Theorem 1, eq. 7 and 8, on families of tasks (`_near_optimality.py`).
- What these checks found: cases in which the printed statements are false.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _dual_problem import beside, by_clarabel, by_slsqp, duality
from _near_optimality import bandit_families, rare_task, tabular_families
from _table import Row, print_json
from jaxtyping import Array, Float

from safemeta.algorithms.dual_tabular import (
    ExactAdaptation,
    Penalties,
    adapt_exactly,
    adapt_repeatedly,
    theorem_penalties,
)
from safemeta.solvers import Outcome
from safemeta.tasks.tabular import TabularCMDP
from safemeta.tasks.tabular_exact import evaluate, extremes
from safemeta.tasks.tabular_families import random_cmdp

SIZES = ((2, 2, 1), (3, 2, 1), (3, 2, 2), (3, 3, 2), (4, 3, 2), (5, 2, 3))  # states, actions, costs
DISCOUNTS = (0.3, 0.6, 0.9)
SOLVERS = {"SLSQP": by_slsqp, "Clarabel": by_clarabel}
STEPS = 20
# Quantities are of the order of 1 / (1 - discount) <= 10; the dual is solved to 7e-11 of its terms.
TOLERANCE = 1e-9
ROUNDING = 1e-10  # penalties of up to 1e5 multiply a divergence that is known to 1e-16


@partial(jax.jit, static_argnums=(1, 2, 3))
def repeated(
    key: Array, size: tuple[int, int, int], count: int, steps: int, discount: Array, share: Array
) -> tuple[TabularCMDP, Float[Array, "cmdps costs"], Penalties, ExactAdaptation]:
    """`count` random CMDPs, start policies and limits, and `steps` adaptations with `share` of the theorem's penalties.

    Half of the starts are exactly at all their limits, the others have slack. Start policies are softmax with normal
    logits of deviation 2, half of the initial distributions are uniform, the others uniform on the simplex.
    """
    states, actions, costs = size

    def one(key: Array, tight: Array) -> tuple[TabularCMDP, Array, Penalties, ExactAdaptation]:
        model_key, policy_key, slack_key, first_key = jax.random.split(key, 4)
        cmdp = random_cmdp(model_key, states, actions, min(2, states), costs)
        drawn = jax.random.dirichlet(first_key, jnp.ones(states))
        cmdp = TabularCMDP(cmdp.transition, cmdp.reward, cmdp.costs, jnp.where(tight % 4 < 2, cmdp.initial, drawn))
        start = jax.nn.log_softmax(2 * jax.random.normal(policy_key, (states, actions)), axis=1)
        bounds = extremes(cmdp, discount)
        penalties = theorem_penalties(bounds.advantage, bounds.least_visitation.min(), discount)
        penalties = jax.tree.map(lambda weight: weight * share, penalties)
        slack = jnp.where(tight % 2 == 0, 0.0, 0.1) * jax.random.uniform(slack_key, (costs,)) / (1 - discount)
        limits = evaluate(cmdp, jnp.exp(start), discount).performance[1:] + slack
        found = adapt_repeatedly(lambda p: evaluate(cmdp, p, discount), start, limits, penalties, discount, steps)
        return cmdp, limits, penalties, found

    return jax.vmap(one)(jax.random.split(key, count), jnp.arange(count))


@dataclass
class Promise:
    """Corollary 1 over many CMDPs."""

    cmdps: int = 0
    policies: int = 0
    broken: int = 0  # CMDPs with a policy above a limit by more than the tolerance
    lowered: int = 0  # CMDPs in which a step lowered the return by more than the tolerance
    excess: float = -np.inf  # largest J_c - d of an adapted policy
    drop: float = -np.inf  # largest fall of the return in one step
    # The proof's own inequalities, free of how exactly the dual was solved: no cost above the left side of its
    # constraint, no return below what the objective promises. Rounding alone can make these positive.
    beyond: float = -np.inf
    missing: float = -np.inf
    gain: float = 0.0  # mean gain in return over all steps, as a share of the range 1 / (1 - discount)
    unsolved: int = 0  # adaptations without multipliers, in which the old policy was kept

    def add(self, limits: Any, found: ExactAdaptation, discount: float) -> None:
        performance = np.asarray(found.performance)
        excess = (performance[:, 1:, 1:] - np.asarray(limits)[:, None]).max((1, 2))
        drop = -np.diff(performance[:, :, 0], axis=1).min(1)
        gained = (performance[:, -1, 0] - performance[:, 0, 0]) * (1 - discount)
        used = np.asarray(limits)[:, None] - np.asarray(found.steps.room)
        promised = performance[:, :-1, 0] + np.asarray(found.steps.gain) / (1 - discount)
        self.beyond = max(self.beyond, float((performance[:, 1:, 1:] - used).max()))
        self.missing = max(self.missing, float((promised - performance[:, 1:, 0]).max()))
        self.gain = (self.gain * self.cmdps + gained.sum()) / (self.cmdps + len(gained))
        self.cmdps += len(gained)
        self.policies += performance.shape[0] * (performance.shape[1] - 1)
        self.broken += int((excess > TOLERANCE).sum())
        self.lowered += int((drop > TOLERANCE).sum())
        self.excess, self.drop = max(self.excess, float(excess.max())), max(self.drop, float(drop.max()))
        self.unsolved += int((np.asarray(found.steps.outcome) != Outcome.SOLVED).sum())


@dataclass
class Optimality:
    """Proposition 1 over many problems: what is left of the constraints, and the distance from the dual's bound."""

    problems: int = 0
    failed: int = 0
    overdrawn: float = 0.0  # largest excess over a constraint of problem (1)
    gap: float = 0.0  # largest duality gap

    def add(self, problems: tuple[Any, ...], discount: float) -> None:
        for index in range(len(problems[1])):
            cmdp, limits, penalties, found = jax.tree.map(lambda leaf, i=index: leaf[i], problems)
            gap, room = duality(cmdp, limits, penalties, found, discount)
            self.problems += 1
            self.overdrawn, self.gap = max(self.overdrawn, -room), max(self.gap, abs(gap))
            self.failed += abs(gap) > TOLERANCE or room < -TOLERANCE


def unseen_state() -> dict[str, float]:
    """Proposition 4 where S^v is not all states: two states, two actions, and a limit that one adaptation breaks.

    From state 0 action 1 leads to state 1, from which everything leads back; only action 1 in state 1 costs. S^v = {0}
    is visited with at least 1 / (1 + discount) by every policy. The adapted policy both goes to state 1 more often and
    costs more there: a product that the bound charges with the *square* of the first and with the second as it was.
    """
    discount = 0.005
    transition = jnp.zeros((2, 2, 2)).at[0, 0, 0].set(1).at[0, 1, 1].set(1).at[1, :, 0].set(1)
    reward = jnp.array([[0.0, 0.0138], [0.0, 0.42]])
    cmdp = TabularCMDP(transition, reward, jnp.zeros((2, 2, 1)).at[1, 1, 0].set(1), jnp.array([1.0, 0.0]))
    policy = jnp.array([[0.9, 0.1], [0.5, 0.5]])
    measure, adapt = jax.jit(evaluate), jax.jit(adapt_exactly)
    bounds, found = jax.jit(extremes)(cmdp, discount), measure(cmdp, policy, discount)
    share = float(bounds.least_visitation[0])
    least = theorem_penalties(bounds.advantage, share, discount, share=share)
    penalties = Penalties(jnp.maximum(least.objective, 1.0), least.costs)
    free = adapt(jnp.log(policy), found, jnp.array([1e3]), penalties, discount)
    limit = jnp.asarray([1e3]) - free.room  # at which the unconstrained solution uses all of the constraint
    step = adapt(jnp.log(policy), found, limit, penalties, discount)
    after = measure(cmdp, jnp.exp(step.log_prob), discount)
    return {
        "least objective penalty": float(least.objective),
        "cost before": float(found.performance[1]),
        "limit": float(limit[0]),
        "cost after": float(after.performance[1]),
        "room": float(step.room[0]),
        "excess": float(after.performance[1] - limit[0]),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=800, help="CMDPs to each of 18 sizes and discounts")
    parser.add_argument("--solver", type=int, default=20, help="of these, problems that SLSQP and Clarabel solve, too")
    parser.add_argument("--families", type=int, default=1000, help="families of tasks of one state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if min(options.count, options.families) < 1 or not 0 <= options.solver <= options.count:
        parser.error("--count and --families must be at least 1, --solver between 0 and --count")
    jax.config.update("jax_enable_x64", True)
    table = list(checks(options.count, options.solver, options.families, options.seed))
    if options.json:
        print_json("theorems", table)
        return 0
    for row in table:
        beside = f"   ({row.peer}: {row.peer_value:,.6g})" if row.peer_value is not None else ""
        print(f"{row.case:<74} {row.value:>12.6g} {row.unit}{beside}")
    return 0


def checks(count: int, solver: int, families: int, seed: int) -> list[Row]:
    """All rows."""
    start = time.perf_counter()
    promise, optimality, weaker = Promise(), Optimality(), {0.1: Promise(), 0.01: Promise(), 0.001: Promise()}
    compared: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in SOLVERS}
    for number, size in enumerate(SIZES):
        for place, discount in enumerate(DISCOUNTS):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), place)
            drawn = repeated(key, size, count, STEPS, jnp.asarray(discount), jnp.asarray(1.0))
            cmdps, limits, penalties, found = jax.tree.map(np.asarray, drawn)
            promise.add(limits, found, discount)
            optimality.add((cmdps, limits, penalties, found), discount)
            for name, solve in SOLVERS.items() if solver else ():
                differences = beside(solve, cmdps, limits, penalties, found, discount, solver)
                for total, more in zip(compared[name], differences, strict=True):
                    total += more
            for share, total in weaker.items():
                few = min(count, 200)
                _, limits, _, moved = repeated(key, size, few, STEPS, jnp.asarray(discount), jnp.asarray(share))
                total.add(limits, moved, discount)
    tabular = time.perf_counter() - start
    table = [
        Row("Prop. 4, Cor. 1: CMDPs, 20 adaptations each", promise.cmdps, "CMDPs"),
        Row("Prop. 4, Cor. 1: limits broken", promise.broken, "CMDPs", "of", promise.cmdps),
        Row("Prop. 4, Cor. 1: returns lowered", promise.lowered, "CMDPs", "of", promise.cmdps),
        Row("Prop. 4, Cor. 1: largest J_c - d", promise.excess, "cost", "tolerance", TOLERANCE),
        Row("Prop. 4, Cor. 1: largest fall of J in a step", promise.drop, "return", "tolerance", TOLERANCE),
        Row("Prop. 4, Cor. 1: largest cost beyond its bound", promise.beyond, "cost", "rounding", ROUNDING),
        Row("Prop. 4, Cor. 1: largest return missing to its bound", promise.missing, "return", "rounding", ROUNDING),
        Row("Prop. 4, Cor. 1: mean gain of J in 20 steps", promise.gain, "of its range"),
        Row("Prop. 4, Cor. 1: adaptations without multipliers", promise.unsolved, "steps", "of", promise.policies),
        Row("Prop. 1, 2: problems", optimality.problems, "problems"),
        Row("Prop. 1, 2: not optimal", optimality.failed, "problems", "of", optimality.problems),
        Row("Prop. 1, 2: largest duality gap", optimality.gap, "return", "tolerance", TOLERANCE),
        Row("Prop. 1, 2: largest excess over a constraint", optimality.overdrawn, "cost", "tolerance", TOLERANCE),
    ]
    for name, (values, policies) in compared.items() if solver else ():
        peer = (f"{name}, problems", len(values))
        table.append(Row(f"Prop. 1: largest difference of value from {name}'s", max(values), "return", *peer))
        table.append(Row(f"Prop. 1: ... of a probability from {name}'s", max(policies), "probability", *peer))
    table.append(Row("Prop. 1, 2, 4, Cor. 1: time, compilation included", tabular, "s"))
    for share, total in weaker.items():
        what = f"penalties {share:g} of the theorem's"
        table.append(Row(f"{what}: limits broken", total.broken, "CMDPs", "of", total.cmdps))
        table.append(Row(f"{what}: returns lowered", total.lowered, "CMDPs", "of", total.cmdps))

    for name, found in (
        ("one state, exact", bandit_families(families, seed)),
        ("three states, certificates", tabular_families(max(1, families // 5), seed)),
    ):
        case = f"Thm. 1, {name}"
        table += [
            Row(f"{case}: families", found.families, "families"),
            Row(f"{case}: nearest policy admissible", found.admissible, "families", "of", found.families),
            Row(f"{case}: eq. 7 broken there", found.below, "families", "of", found.admissible),
            Row(f"{case}: eq. 7 broken elsewhere", found.below_otherwise, "families", "of", found.elsewhere),
            Row(f"{case}: undecided", found.undecided, "families", "of", found.families),
            Row(f"{case}: eq. 8 broken", found.above, "families", "of", found.families - found.undecided),
            Row(f"{case}: largest J_c - d - delta", found.excess, "cost", "tolerance", TOLERANCE),
        ]
    state, task = unseen_state(), rare_task()
    false = "counterexample to"
    table += [
        Row(f"{false} Prop. 4, S^v not all states: J_c - d", state["excess"], "cost", "limit", state["limit"]),
        Row(
            "counterexample to eq. 7: return of the best meta-policy", task["return"], "return", "eq. 7", task["bound"]
        ),
        Row("time, compilation included", time.perf_counter() - start, "s"),
    ]
    return table


if __name__ == "__main__":
    sys.exit(main())
