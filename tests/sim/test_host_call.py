"""Functions on the host, called from compiled code, in both ways of reaching them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.sim import host_call
from safemeta.sim.host_call import HostFunction


@pytest.fixture(params=["foreign function interface", "io_callback"])
def way(request, monkeypatch):
    assert host_call.interface_serves()  # the version of jaxlib that the tests run with must be known
    if request.param == "io_callback":
        monkeypatch.setattr(host_call, "interface_serves", lambda: False)


def number():
    return jax.ShapeDtypeStruct((), jnp.int32)


@pytest.mark.usefixtures("way")
def test_a_function_keeps_its_state_from_call_to_call_within_a_loop():
    seen, memory = [], np.zeros((2, 3), np.float32)

    def add(count, given):
        assert given["nothing"] is None
        seen.append(int(count))
        memory[:] += given["values"]  # the same memory at each call: results must have been copied
        return count + 1, memory

    function = HostFunction("add", add)
    shapes = (number(), jax.ShapeDtypeStruct((2, 3), jnp.float32))

    @jax.jit
    def run(values):
        def body(carry, _):
            count, _ = carry

            def call(count):
                return tuple(function(shapes, count, {"values": values, "nothing": None}))

            carry = jax.lax.cond(count < 4, call, lambda count: (count, jnp.full((2, 3), -1.0, jnp.float32)), count)
            return carry, carry[1]

        return jax.lax.scan(body, (jnp.int32(0), jnp.zeros((2, 3), jnp.float32)), None, length=5)

    values = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    (count, _), kept = run(values)
    assert seen == [0, 1, 2, 3]
    assert int(count) == 4
    expected = [np.asarray(values) * (step + 1) for step in range(4)] + [np.full((2, 3), -1.0)]
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.usefixtures("way")
def test_every_type_and_empty_arrays_pass_both_ways_and_wider_floats_are_narrowed():
    arrays = [
        jnp.array([True, False]), jnp.array([1, -2], jnp.int8), jnp.array(3, jnp.uint32),
        jnp.zeros((0, 4), jnp.float32), jnp.array([[1.5]], jnp.float32),
    ]  # fmt: skip
    function = HostFunction("identity", lambda *leaves: leaves)
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays]
    found = jax.jit(lambda given: function(shapes, *given))(arrays)
    for one, other in zip(found, arrays, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)

    third = HostFunction("third", lambda: (np.float64(1) / 3).reshape(()))
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    assert jax.jit(lambda: third(shape))() == np.float32(1 / 3)


@pytest.mark.usefixtures("way")
def test_a_function_without_results_is_called_and_once_for_each_of_many():
    seen = []
    function = HostFunction("tell", lambda x: seen.append(float(x)))

    @jax.jit
    def run(xs):
        jax.vmap(lambda x: function((), x))(xs)
        return xs

    jax.block_until_ready(run(jnp.arange(3.0)))
    jax.effects_barrier()
    assert sorted(seen) == [0.0, 1.0, 2.0]


@pytest.mark.usefixtures("way")
def test_an_exception_ends_the_computation_with_its_words():
    def fail(_):
        raise ValueError("the spring is broken")

    function = HostFunction("fail", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: the spring is broken"):
        jax.block_until_ready(jax.jit(lambda x: function(number(), x))(1.0))


@pytest.mark.parametrize(
    ("returned", "words"), [(np.zeros(1, np.int32), r"shape \(1,\) instead of \(3,\)"), ((), "0 arrays instead of 1")]
)
def test_other_results_than_announced_are_an_error(returned, words):
    function = HostFunction("short", lambda: returned)
    with pytest.raises(jax.errors.JaxRuntimeError, match=words):
        jax.block_until_ready(jax.jit(lambda: function(jax.ShapeDtypeStruct((3,), jnp.int32)))())


def test_two_functions_of_one_name_are_told_apart():
    first, second = HostFunction("twin", lambda x: x + 1), HostFunction("twin", lambda x: x + 2)

    def both(x):
        return first(number(), x), second(number(), x)

    assert tuple(map(int, jax.jit(both)(jnp.int32(1)))) == (2, 3)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from safemeta.sim.host_call import HostFunction
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
more = int(sys.argv[2])
function = HostFunction("more", lambda x: x + more)
found = jax.jit(lambda x: 2 * function(jax.ShapeDtypeStruct((), jnp.int32), x))(jnp.int32(1))
print(int(found), sum(hits))
"""


def test_a_program_from_the_cache_calls_the_function_of_the_process_that_it_runs_in(tmp_path):
    def run(more):
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(more)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert run(10) == ["22", "0"]
    value, hits = run(100)
    assert value == "202"
    assert int(hits) >= 1
