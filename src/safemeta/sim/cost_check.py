"""What may be wrong with the costs of a user's environment."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safemeta.sim.cost_reader import CostError, CostFunction, CostReader, default_names, named_costs, unpack


@dataclass(frozen=True)
class CostReport:
    """What random actions cost: of use when choosing limits. Tuples are in the order of `names`."""

    names: tuple[str, ...]
    steps: int
    episodes: int  # those that ended within the steps
    share: tuple[float, ...]  # of steps with a cost above zero
    mean: tuple[float, ...]  # per step
    largest: tuple[float, ...]
    per_episode: tuple[float, ...] | None  # mean sum over an episode; None if none ended


def check_costs(
    env: Any,
    *,
    cost: CostFunction | None = None,
    cost_names: Sequence[str] | None = None,
    steps: int = 1000,
    seed: int = 0,
) -> CostReport:
    """Step a Gymnasium environment at random and say what is wrong with its costs.

    `cost` and `cost_names` as for `gymnasium_world`. Raises `ValueError`, in one sentence that names the step, where a
    cost is missing, not a number, NaN or infinite, or where the number or the names of the costs change. Warns
    (`UserWarning`) where a cost is negative, comes only with the last step of an episode, or is never above zero.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    reader: CostReader | None = None if cost_names is None else CostReader(tuple(cost_names), cost)
    env.action_space.seed(seed)
    before, _ = env.reset(seed=seed)
    found, ends = [], []
    for step in range(1, steps + 1):
        action = env.action_space.sample()
        try:
            outcome = unpack(env.step(action))
            costs = named_costs(cost, before, action, outcome)
            names = default_names(costs)
            if reader is None:
                reader = CostReader(names, cost)
            elif cost_names is None and set(names) != set(reader.names):
                raise CostError(f"the costs were {', '.join(reader.names)} before and are now {', '.join(names)}")
            found.append(reader.read(before, action, outcome))
        except CostError as problem:
            raise ValueError(f"step {step}: {problem}") from problem
        before = outcome.observation
        ends.append(outcome.terminated or outcome.truncated)
        if ends[-1]:
            before, _ = env.reset()
    assert reader is not None
    report = _report(reader.names, np.array(found), np.array(ends))
    for sentence in _doubts(report, np.array(found), np.array(ends)):
        warnings.warn(sentence, UserWarning, stacklevel=2)
    return report


def _report(names: tuple[str, ...], costs: np.ndarray, ends: np.ndarray) -> CostReport:
    episodes = int(ends.sum())
    whole = costs[: np.flatnonzero(ends)[-1] + 1].sum(0) / episodes if episodes else None
    return CostReport(
        names=names,
        steps=len(costs),
        episodes=episodes,
        share=tuple((costs > 0).mean(0).tolist()),
        mean=tuple(costs.mean(0).tolist()),
        largest=tuple(costs.max(0).tolist()),
        per_episode=None if whole is None else tuple(whole.tolist()),
    )


def _doubts(report: CostReport, costs: np.ndarray, ends: np.ndarray) -> list[str]:
    """What is allowed and yet likely to be a mistake."""
    found = []
    for index, name in enumerate(report.names):
        values = costs[:, index]
        negative = np.flatnonzero(values < 0)
        if negative.size:
            found.append(
                f"the cost {name!r} is negative ({values[negative[0]]:g} at step {negative[0] + 1}): a policy could pay"
                " for one violation with safety at another time; a cost should be zero where all is well"
            )
        elif not (values > 0).any():
            found.append(
                f"the cost {name!r} was zero in all of {len(values)} random steps: is it reported, and is it reached?"
            )
        elif ends.sum() > 1 and not (values[~ends] > 0).any():
            found.append(
                f"the cost {name!r} comes only with the last step of an episode: report what each step costs, or the"
                " step that was unsafe cannot be told from the others"
            )
    return found
