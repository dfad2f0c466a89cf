"""Recordings of the Real-World RL suite are followed to 1e-9; deviations are noticed; other files are refused."""

import numpy as np
import pytest

from safemeta.tasks.cartpole_replay import replay_cartpole
from safemeta.tasks.replay import Trace, TraceError, load

TRACES = ("rwrl-cartpole-k0.05-s0", "rwrl-cartpole-k0.05-s1", "rwrl-cartpole-k0.3-s1")


@pytest.fixture
def trace(repository):
    return load(repository / "tests" / "data" / f"{TRACES[0]}.npz")


def changed(trace, meta=None, **arrays):
    content = {name: value for name, value in (trace.arrays | arrays).items() if value is not None}
    return Trace(trace.file, trace.meta | (meta or {}), content)


@pytest.mark.parametrize("name", TRACES)
def test_recorded_episodes_are_followed_to_1e_9(repository, name):
    outcome = replay_cartpole(load(repository / "tests" / "data" / f"{name}.npz"))
    assert (outcome.steps, outcome.skipped, outcome.cost_agreement) == (60, [], 1.0)
    assert max(vars(outcome.max_error).values()) < 1e-12


def test_the_traces_test_something(repository):
    satisfied = np.concatenate(
        [load(repository / "tests" / "data" / f"{n}.npz").arrays["obs/constraints"] for n in TRACES]
    )
    assert (satisfied[:, :2].mean(0) > 0).all()
    assert (satisfied[:, :2].mean(0) < 1).all()  # balance_velocity is always satisfied in these


@pytest.mark.parametrize(
    ("entry", "where", "field"),
    [
        ("qpos", (60, 0), "qpos"),
        ("qvel", (60, 1), "qvel"),
        ("obs/position", (60, 2), "observation"),
        ("obs/velocity", (0, 1), "observation"),
        ("reward", 31, "reward"),
    ],
)
def test_a_deviation_in_one_number_is_measured(trace, entry, where, field):
    values = trace.arrays[entry].copy()
    values[where] += 1e-3
    errors = vars(replay_cartpole(changed(trace, **{entry: values})).max_error)
    assert errors.pop(field) == pytest.approx(1e-3, rel=1e-6)
    assert max(errors.values()) < 1e-12


def test_a_wrong_constraint_is_counted(trace):
    satisfied = trace.arrays["obs/constraints"].copy()
    satisfied[[4, 5], 1] = 1 - satisfied[[4, 5], 1]
    assert replay_cartpole(changed(trace, **{"obs/constraints": satisfied})).cost_agreement == pytest.approx(58 / 60)


@pytest.mark.parametrize(
    ("meta", "arrays", "said"),
    [
        ({"domain": "walker"}, {}, "not recorded from cartpole/realworld_swingup"),
        ({"safety_coeff": None}, {}, "does not give a safety_coeff"),
        ({"safety_coeff": 1.5}, {}, "does not give a safety_coeff"),
        ({}, {"action": np.zeros((0, 1))}, "holds no steps"),
        ({}, {"qvel": None}, "no array 'qvel'"),
        ({}, {"reward": np.zeros(59)}, "has shape"),
    ],
)
def test_other_and_incomplete_traces_are_refused(trace, meta, arrays, said):
    with pytest.raises(TraceError, match=said):
        replay_cartpole(changed(trace, meta, **arrays))
