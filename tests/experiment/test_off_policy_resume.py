"""Off-policy runs go on bit for bit: networks, moments of optimizers, replay with its priorities, counters."""

import pytest

import safemeta

TINY = {
    "tasks": 2, "hidden": (8, 8), "critic_hidden": (8, 8), "batch": 16, "warm_up": 16, "capacity": 60, "n_step": 3,
    "steps_per_update": 2, "horizon": 12, "checkpoint_every": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "replay"), [("metal", "prioritised"), pytest.param("d4pg", "uniform", marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, replay, tmp_path):
    """The replay holds 30 steps of a row: it is full, and written over, before the run is stopped."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = {"task": "realworld-cartpole", "replay": replay, **TINY}
    safemeta.train(name, iterations=4, out=whole, **settings)
    safemeta.train(name, iterations=3, out=broken, **settings)
    run = safemeta.train(resume=broken, iterations=4)
    assert bool(run.state.replay.is_full)
    assert run.state.learner.count == 4 * 12 - 7
    last = "checkpoints/iteration-00000004.safetensors"
    assert (whole / last).read_bytes() == (broken / last).read_bytes()
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
