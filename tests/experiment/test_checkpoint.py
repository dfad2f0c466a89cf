"""Checkpoints: what is saved comes back, and nothing else ever does."""

import errno
import json
import os
import pickle
import random

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from safemeta.experiment import checkpoint
from safemeta.experiment.errors import UserError


def state():
    return {
        "weight": jnp.arange(6.0).reshape(2, 3) / 7,
        "half": jnp.array([1.5, -2.25], jnp.bfloat16),
        "count": jnp.array(41),
        "flags": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "numpy": np.array([1.0, 2.0]),
        "number": 3,
        "highest": -jnp.inf,
        "keys": jax.random.split(jax.random.key(5), 3),
        "function": jnp.tanh,
        "module": eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)),
    }


def equal(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if callable(a):
            assert a is b, path
        else:
            assert type(a) is type(b), path
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            assert np.asarray(a).dtype == np.asarray(b).dtype, path


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": jnp.arange(4.0), "key": jax.random.key(0)}, iteration=3)
    return path


def template():
    return {"a": jnp.zeros(4), "key": jax.random.key(9)}


def assert_refused(path, *words):
    with pytest.raises(UserError) as caught:
        checkpoint.restore(path, template())
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_everything_comes_back(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, state(), iteration=12, best_score=None)
    blank = jax.tree.map(lambda leaf: leaf * 0 if eqx.is_inexact_array(leaf) else leaf, state())
    restored, header = checkpoint.restore(path, blank)
    equal(restored, state())
    assert header["iteration"] == 12


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in "ab":
        checkpoint.save(tmp_path / name, state(), iteration=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_number_that_has_become_an_array_comes_back_as_an_array(tmp_path):
    checkpoint.save(tmp_path / "c", {"highest": jnp.float32(2.5)})
    restored, _ = checkpoint.restore(tmp_path / "c", {"highest": -jnp.inf})
    assert isinstance(restored["highest"], jax.Array)
    assert restored["highest"] == 2.5


def test_every_flipped_bit_is_noticed(saved):
    original = saved.read_bytes()
    for position in range(len(original)):
        changed = bytearray(original)
        changed[position] ^= 1 << (position % 8)
        saved.write_bytes(changed)
        assert_refused(saved)


def test_every_truncation_is_noticed(saved):
    original = saved.read_bytes()
    for length in range(len(original)):
        saved.write_bytes(original[:length])
        assert_refused(saved)
    saved.write_bytes(original + b"x")
    assert_refused(saved)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"hello, world",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        bytes(1000),
        b"\xff" * 64,
        (8).to_bytes(8, "little") + b"{" * 8,
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        pickle.dumps(Harmful()),
        safetensors.save({"a": np.zeros(4, np.float32)}),
        safetensors.save({"a": np.zeros(4, np.float32)}, {"safemeta": "[]"}),
        safetensors.save({"a": np.zeros(4, np.float32)}, {"safemeta": "{"}),
        safetensors.save({"a": np.zeros(4, np.float32)}, {"format": "pt"}),
        random.Random(0).randbytes(5000),
    ],
)
def test_foreign_files_are_refused_and_nothing_is_executed(saved, content, tmp_path):
    saved.write_bytes(content)
    assert_refused(saved)
    assert not (tmp_path / "executed").exists()


def test_another_version_is_named(saved):
    header = {"format": checkpoint.FORMAT, "version": 99, "leaves": []}
    saved.write_bytes(safetensors.save({}, {"safemeta": json.dumps(header)}))
    assert_refused(saved, "version 99", "reads version 1")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": jnp.zeros(5), "key": jax.random.key(0)}, ("shape", "['a']", "[4]", "[5]")),
        ({"a": jnp.zeros(4, jnp.int32), "key": jax.random.key(0)}, ("dtype", "float32", "int32")),
        ({"a": jnp.zeros(4), "b": jnp.zeros(1), "key": jax.random.key(0)}, ("lacks", "['b']")),
        ({"a": jnp.zeros(4)}, ("only the file has", "['key']")),
        ({"a": jnp.zeros(4), "key": jnp.zeros(2, jnp.uint32)}, ("kind", "['key']")),
        ({"a": jnp.zeros(4), "key": jax.random.key(0, impl="rbg")}, ("implementation", "rbg")),
    ],
)
def test_a_state_of_another_make_is_refused(saved, other, words):
    with pytest.raises(UserError, match="does not fit") as caught:
        checkpoint.restore(saved, other)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(saved, monkeypatch, failing):
    before = saved.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, template(), iteration=4)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_the_last_two_are_kept_and_the_damaged_one_passed_over(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for iteration in (2, 4, 6):
        checkpoints.save({"a": jnp.full(3, float(iteration))}, iteration)
    assert checkpoints.iterations() == [6, 4]
    (tmp_path / ".half.tmp").write_bytes(b"left by a killed process")
    blank = {"a": jnp.zeros(3)}
    restored, header, notes = checkpoints.restore_newest(blank)
    assert (float(restored["a"][0]), header["iteration"], notes) == (6.0, 6, [])
    assert not (tmp_path / ".half.tmp").exists()
    checkpoints.path(6).write_bytes(checkpoints.path(6).read_bytes()[:-3])
    restored, header, notes = checkpoints.restore_newest(blank)
    assert (float(restored["a"][0]), header["iteration"]) == (4.0, 4)
    assert len(notes) == 1
    assert "damaged" in notes[0]
    assert "iteration 4" in notes[0]
    checkpoints.path(4).write_bytes(b"")
    with pytest.raises(UserError, match="No other checkpoint"):
        checkpoints.restore_newest(blank)


def test_without_any_checkpoint_the_template_is_the_state(tmp_path):
    restored, header, notes = checkpoint.Checkpoints(tmp_path).restore_newest({"a": jnp.ones(2)})
    assert header is None
    assert notes == []
    assert float(restored["a"].sum()) == 2.0
