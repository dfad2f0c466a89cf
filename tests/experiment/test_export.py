"""Exported policies act as the originals do, in NumPy and in ONNX Runtime; damaged files are refused."""

import json
import subprocess
import sys
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import safemeta
from safemeta.cli import main
from safemeta.deployed import load_policy
from safemeta.experiment import export as exporting
from safemeta.experiment.errors import UserError
from safemeta.experiment.export import ActingPolicy, deployed, export
from safemeta.nets import GaussianPolicy
from safemeta.nets.layer_norm_mlp import DeterministicPolicy
from safemeta.nets.squashed_policy import ModePolicy, SquashedPolicy

OBSERVATIONS = 2 * np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)


def made(kind):
    """A policy whose parameters are all random, normaliser included, and whose actions also reach beyond 1."""
    key, noise = jax.random.key(0), np.random.default_rng(1)
    policy = {
        "free": lambda: GaussianPolicy.create(5, 2, key, hidden=(8, 7)),
        "state": lambda: GaussianPolicy.create(5, 2, key, hidden=(8,), deviation="state"),
        "squashed": lambda: ModePolicy(SquashedPolicy.create(5, 2, key, hidden=(8, 8), scale=1.2)),
        "deterministic": lambda: DeterministicPolicy.create(5, 2, key, hidden=(8, 6, 7)),
    }[kind]()
    arrays, static = eqx.partition(policy, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * noise.normal(size=leaf.shape), leaf.dtype), arrays)
    policy = eqx.combine(arrays, static)
    if isinstance(policy, GaussianPolicy):
        seen = policy.normalizer.create(5).merge(jnp.asarray(3 + 2 * noise.normal(size=(20, 5))))
        policy = eqx.tree_at(lambda p: p.normalizer, policy, seen)
    return policy


@pytest.mark.parametrize("kind", ["free", "state", "squashed", "deterministic"])
def test_numpy_and_onnx_act_as_the_original(kind, tmp_path):
    from onnxruntime import InferenceSession

    policy = made(kind)
    acting = ActingPolicy(policy)
    wanted = np.asarray(acting(OBSERVATIONS))
    assert wanted.shape == (50, 2)
    assert np.mean(np.abs(wanted) < 0.999) > 0.3  # not all of them are clipped

    plain = load_policy(export(acting, tmp_path / "policy.npz"))
    np.testing.assert_allclose(plain(OBSERVATIONS), wanted, atol=1e-5)
    np.testing.assert_allclose(plain(OBSERVATIONS[3]), wanted[3], atol=1e-5)
    np.testing.assert_allclose(plain(OBSERVATIONS.reshape(5, 10, 5)), wanted.reshape(5, 10, 2), atol=1e-5)

    session = InferenceSession(export(acting, tmp_path / "policy.onnx"))
    (found,) = session.run(["action"], {"observation": OBSERVATIONS})
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    (one,) = session.run(None, {"observation": OBSERVATIONS[:1]})
    np.testing.assert_allclose(one, wanted[:1], atol=1e-5)


def test_actions_are_clipped_only_where_they_come_from_a_box():
    policy = made("free")
    mean = policy(jnp.asarray(OBSERVATIONS)).mean
    assert np.abs(mean).max() > 1
    np.testing.assert_array_equal(ActingPolicy(policy)(OBSERVATIONS), np.clip(mean, -1, 1))
    np.testing.assert_array_equal(ActingPolicy(policy, bounded=False)(OBSERVATIONS), mean)
    np.testing.assert_allclose(deployed(ActingPolicy(policy, bounded=False))(OBSERVATIONS), mean, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has just begun."""
    folder = tmp_path_factory.mktemp("run") / "trpo"
    return safemeta.train(
        "trpo", "point-circle", iterations=1, out=folder, tasks=1, episodes=2, hidden=(4,), horizon=20
    )


def test_three_lines(run):
    policy = safemeta.load(run.folder).policy
    observation = np.zeros(run.world.cmdp.observation_size)
    action = policy(observation)
    assert action.shape == (run.world.cmdp.action_size,)
    np.testing.assert_array_equal(
        action, policy.act(jnp.asarray(observation, float), jax.random.key(0))[0] * 0 + action
    )
    np.testing.assert_allclose(action, np.clip(run.algorithm.policy(run.state)(jnp.asarray(observation)).mean, -1, 1))


def test_the_command(run, capsys):
    assert main(["export", str(run.folder)]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(run.folder / "policy.npz")
    found = load_policy(path)
    assert found.description == "trpo on point-circle, seed 0, iteration 1"
    observation = np.ones(found.observation_size)
    np.testing.assert_allclose(found(observation), run.policy(observation), atol=1e-5)
    assert main(["export", str(run.folder), "--out", "policy.pt"]) == 2
    assert main(["export", "nowhere"]) == 2
    assert main(["export"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_no_jax_is_needed_to_act(run, tmp_path):
    path = export(run, tmp_path / "policy.npz")
    code = (
        "import sys, safemeta; policy = safemeta.load_policy(sys.argv[1]); policy([0.0] * policy.observation_size);"
        "print('jax' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_without_onnx_one_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"safemeta\[onnx\]"):
        export(made("free"), tmp_path / "policy.onnx")


def test_other_policies_are_refused(tmp_path):
    class Own(eqx.Module):
        weight: jax.Array

    with pytest.raises(UserError, match="Own"):
        export(Own(jnp.zeros(1)), tmp_path / "policy.npz")
    with pytest.raises(UserError, match="no action without noise"):
        ActingPolicy(Own(jnp.zeros(1)))(OBSERVATIONS)
    with pytest.raises(UserError, match="Name a file"):
        export(made("free"))
    odd = exporting.MLP.create(5, 2, (3,), jax.random.key(0), activation=jnp.sin)
    odd = eqx.tree_at(lambda p: p.network.mlp, made("free"), odd)
    with pytest.raises(UserError, match="activation"):
        export(odd, tmp_path / "policy.npz")


def rewritten(path, change):
    """The file with its arrays changed."""
    with np.load(path) as content:
        arrays = dict(content)
    described = json.loads(bytes(arrays["policy"]))
    change(described, arrays)
    arrays["policy"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no archive"),
        lambda path: zipfile.ZipFile(path, "w").close(),
        lambda path: np.savez(path, policy=np.array([{"a": 1}], object)),
        lambda path: rewritten(path, lambda described, arrays: described.update(format=2)),
        lambda path: rewritten(path, lambda described, arrays: described.update(layers=["exec"])),
        lambda path: rewritten(path, lambda described, arrays: described.update(observation_size=7)),
        lambda path: rewritten(path, lambda described, arrays: described.update(action_size=3)),
        lambda path: rewritten(path, lambda described, arrays: described.pop("layers")),
        lambda path: rewritten(path, lambda described, arrays: arrays.pop("2.weight")),
        lambda path: rewritten(path, lambda described, arrays: arrays.update(more=np.zeros(1))),
        lambda path: rewritten(path, lambda described, arrays: arrays.update({"2.bias": np.full(8, np.nan)})),
    ],
)
def test_damaged_files_are_refused(damage, tmp_path):
    path = export(made("free"), tmp_path / "policy.npz")
    damage(path)
    with pytest.raises(ValueError, match=r"policy\.npz' is no policy, or it is damaged"):
        load_policy(path)


def test_observations_of_another_size_are_refused():
    policy = deployed(made("free"))
    for observation in (np.zeros(4), 1.0, np.zeros((5, 6))):
        with pytest.raises(ValueError, match="5 numbers"):
            policy(observation)
