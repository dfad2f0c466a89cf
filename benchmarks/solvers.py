"""Constrained updates against their peers: `python benchmarks/solvers.py [--json] [--quick] [--case NAME ...]`.

- `cpo`: forward and backward of the CPO step (one constraint, both gradients and its value differentiated, Euclidean
  metric as in Meta-CPO) against cvxpylayers, the layer that Meta-CPO uses; then larger n alone.
- `fisher`: the same in a Fisher metric (a Gaussian policy's, damped) against cvxpylayers with that matrix dense.
- `memory`: peak memory of the step and its gradient by n: it must grow as n.
- `tasks`: 32 steps at once (`vmap`). Where n vectors of all tasks outgrow the caches, one after the other is faster.
- `policy`: one CPO step of a Gaussian policy in its Fisher metric on 5,000 observations, and its meta-gradient.
- `projection`: FISAR's projection at n = 100,000, m = 16 against OSQP and Clarabel.

float64 unless a case says float32. Times are the best of several runs; compilation is apart, and has its own rows.
Peers that are not installed leave their columns empty: `pip install cvxpylayers osqp clarabel`.
"""

import argparse
import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _table import Row, print_json

from safemeta.solvers import fisher_vector_product, project_update, trust_region_step

RADIUS = 0.01


def compared(case: str, seconds: float, peer: str, peer_seconds: float | None) -> Row:
    """A row in milliseconds with its peer, if the peer could be run."""
    if peer_seconds is None:
        return Row(case, 1e3 * seconds, "ms", f"{peer}: not available")
    return Row(case, 1e3 * seconds, "ms", peer, 1e3 * peer_seconds, peer_seconds / seconds)


def best(function: Callable[[], Any], budget: float = 3.0, least: int = 5, patience: float = 20.0) -> float:
    """Seconds of the fastest run, of as many as fit into the budget, and of at least `least` while patience lasts."""
    times, start = [], time.perf_counter()
    while not times or time.perf_counter() - start < (patience if len(times) < least else budget):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - begin)
        if len(times) == 200:
            break
    return min(times)


def compiled(function: Callable[..., Any], *inputs: Any) -> tuple[Callable[[], Any], float]:
    """The function on these inputs, ready to run, and the seconds that tracing and compiling took."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*inputs).compile()
    return lambda: program(*inputs), time.perf_counter() - begin


def cpo_inputs(n: int, dtype: Any = np.float64) -> tuple[jax.Array, ...]:
    """Random unit gradients of objective and cost, a violation that makes the constraint bind, and a cotangent."""
    rng = np.random.default_rng(n)
    g, a, cotangent = rng.normal(size=(3, n)) / np.sqrt(n)
    a = a + 0.5 * g
    return tuple(jnp.asarray(part, dtype) for part in (g, a[None], np.array([0.02]), cotangent))


def cpo_step_and_gradient(metric: Any = None, **settings: Any) -> Callable[..., Any]:
    """(g, a, b, cotangent) -> the step, and the cotangent pulled back to g, a and b."""

    def run(g: jax.Array, a: jax.Array, b: jax.Array, cotangent: jax.Array) -> Any:
        def layer(g: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            return trust_region_step(g, a, b, metric, RADIUS, **settings).step

        step, pull = jax.vjp(layer, g, a, b)
        return step, pull(cotangent)

    return run


def cvxpylayers_seconds(inputs: tuple[jax.Array, ...], matrix: np.ndarray | None = None) -> float | None:
    """Forward plus backward of the same layer in cvxpylayers, or None where it is not installed."""
    if importlib.util.find_spec("cvxpylayers") is None:
        return None
    warnings.filterwarnings("ignore")
    cp, layers = importlib.import_module("cvxpy"), importlib.import_module("cvxpylayers.jax")
    n = inputs[0].size
    x, g, a, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((1, n)), cp.Parameter(1)
    root = x if matrix is None else np.linalg.cholesky(matrix).T @ x
    problem = cp.Problem(cp.Minimize(-g @ x), [cp.sum_squares(root) <= 2 * RADIUS, b + a @ x <= 0])
    layer = layers.CvxpyLayer(problem, [g, a, b], [x])

    def run() -> Any:
        (step,), pull = jax.vjp(lambda *p: layer(*p), *inputs[:3])
        return step, pull((inputs[3],))

    run()
    return best(run, budget=2.0)


def cpo_rows(quick: bool) -> Iterator[Row]:
    """The CPO layer of Meta-CPO, by n; beyond 5,000 alone."""
    for n in (500, 1492) if quick else (500, 1492, 5000):
        inputs = cpo_inputs(n)
        run, seconds = compiled(cpo_step_and_gradient(), *inputs)
        yield compared(f"cpo forward+backward, n={n}", best(run), "cvxpylayers", cvxpylayers_seconds(inputs))
        yield Row(f"cpo compile, n={n}", seconds, "s")
    for n in (10_000,) if quick else (10_000, 100_000, 1_000_000):
        run, _ = compiled(cpo_step_and_gradient(), *cpo_inputs(n))
        yield Row(f"cpo forward+backward, n={n}", 1e3 * best(run), "ms")


def gaussian_policy(widths: tuple[int, ...]) -> tuple[int, Callable[[jax.Array, jax.Array], Any]]:
    """The number of parameters of a tanh Gaussian policy with free log standard deviations, and the policy."""
    shapes = list(itertools.pairwise(widths))
    size = sum(a * b + b for a, b in shapes) + widths[-1]

    def policy(flat: jax.Array, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden, offset = observations, 0
        for layer, (a, b) in enumerate(shapes):
            weight = flat[offset : offset + a * b].reshape(a, b)
            bias = flat[offset + a * b : offset + a * b + b]
            hidden, offset = hidden @ weight + bias, offset + a * b + b
            hidden = jnp.tanh(hidden) if layer < len(shapes) - 1 else hidden
        return hidden, flat[offset:]

    return size, policy


def mean_kl(old: Any, new: Any) -> jax.Array:
    """Mean KL divergence of diagonal Gaussians (mean, log_std)."""
    (mean, log_std), (new_mean, new_log_std) = old, new
    ratio, distance = jnp.exp(2 * (log_std - new_log_std)), (mean - new_mean) * jnp.exp(-new_log_std)
    return jnp.mean(jnp.sum(new_log_std - log_std + (ratio + distance**2 - 1) / 2, axis=-1))


def fisher_rows(quick: bool) -> Iterator[Row]:
    """The Fisher metric of a small policy: products only, against a dense matrix in cvxpylayers."""
    for widths in ((8, 16, 2),) if quick else ((8, 16, 2), (12, 24, 4), (16, 32, 16, 4)):
        n, policy = gaussian_policy(widths)
        rng = np.random.default_rng(n)
        parameters, observations = jnp.asarray(0.3 * rng.normal(size=n)), jnp.asarray(rng.normal(size=(500, widths[0])))
        inputs = cpo_inputs(n)

        def run(g: Any, a: Any, b: Any, cotangent: Any, policy=policy, parameters=parameters, obs=observations) -> Any:
            metric = fisher_vector_product(lambda p: policy(p, obs), mean_kl, parameters, 0.1)
            return cpo_step_and_gradient(metric, iterations=200, tolerance=1e-10)(g, a, b, cotangent)

        metric = fisher_vector_product(lambda p, f=policy, o=observations: f(p, o), mean_kl, parameters, 0.1)
        matrix = np.asarray(jax.jit(jax.vmap(metric))(jnp.eye(n)))
        program, _ = compiled(run, *inputs)
        peer = cvxpylayers_seconds(inputs, matrix)
        yield compared(f"fisher cpo forward+backward, n={n}", best(program), "cvxpylayers, dense metric", peer)


def memory_rows(quick: bool) -> Iterator[Row]:
    """Peak memory of step and gradient beyond their inputs, each in a fresh process, against one vector of n."""
    if not os.path.exists(PEAK_RESET):
        return
    for n in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000, 4_000_000):
        extra = float(subprocess.check_output([sys.executable, __file__, "--peak", str(n)]))
        yield Row(f"cpo peak memory beyond inputs, n={n}", extra / 1e6, "MB", "one vector", 8e-6 * n)


PEAK_RESET = "/proc/self/clear_refs"


def resident(field: str) -> int:
    """A field of this process's memory account, in bytes (Linux)."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def print_peak(n: int) -> None:
    """Compile, forget the peak so far, run step and gradient twice, and print by how much memory grew at most."""
    run, _ = compiled(cpo_step_and_gradient(), *cpo_inputs(n))
    with open(PEAK_RESET, "w") as reset:
        reset.write("5")
    before = resident("VmRSS")
    for _ in range(2):
        jax.block_until_ready(run())
    print(resident("VmHWM") - before)


def task_rows(quick: bool) -> Iterator[Row]:
    """32 tasks at once, against 32 calls one after the other."""
    for n in (1492,) if quick else (1492, 10_000, 100_000):
        inputs = [cpo_inputs(n + task) for task in range(32)]
        stacked = [
            jnp.stack([part[index][..., :n] if index != 2 else part[index] for part in inputs]) for index in range(4)
        ]
        one = jax.jit(cpo_step_and_gradient())
        together, _ = compiled(jax.vmap(cpo_step_and_gradient()), *stacked)
        single = [[part[task] for part in stacked] for task in range(32)]
        jax.block_until_ready(one(*single[0]))
        apart = best(lambda one=one, single=single: [one(*inputs) for inputs in single])
        yield compared(f"cpo forward+backward, 32 tasks, n={n}", best(together), "32 separate calls", apart)


def policy_rows(quick: bool) -> Iterator[Row]:
    """A CPO step of a real policy (float32, 10 conjugate-gradient iterations) and its meta-gradient."""
    cases = {"64x64": (28, 64, 64, 2)} if quick else {
        "64x64": (28, 64, 64, 2),
        "256x256": (28, 256, 256, 2),
        "960x960, 1M parameters": (28, 960, 960, 2),
    }  # fmt: skip
    for name, widths in cases.items():
        n, policy = gaussian_policy(widths)
        rng = np.random.default_rng(0)
        observations = jnp.asarray(rng.normal(size=(5000, 28)), jnp.float32)
        signals = jnp.asarray(rng.normal(size=(2, 5000, 2)), jnp.float32)
        flat = jnp.asarray(rng.normal(size=n) / np.sqrt(widths[1]), jnp.float32)

        def step(parameters: Any, policy=policy, observations=observations, signals=signals) -> Any:
            def surrogate(p: Any, signal: Any) -> Any:
                mean, log_std = policy(p, observations)
                return jnp.mean(jnp.sum((mean + jnp.exp(log_std)) * signal, axis=-1))

            g, a = jax.grad(surrogate)(parameters, signals[0]), jax.grad(surrogate)(parameters, signals[1])
            metric = fisher_vector_product(lambda p: policy(p, observations), mean_kl, parameters, 0.1)
            violation = jnp.full(1, 1e-3, jnp.float32)
            found = trust_region_step(g, a[None], violation, metric, RADIUS, iterations=10, tolerance=0.0)
            return parameters + found.step

        def meta(parameters: Any, step=step, policy=policy, observations=observations) -> Any:
            return jax.grad(lambda p: jnp.mean(policy(step(p), observations)[0] ** 2))(parameters)

        for label, function in (("step", step), ("step and meta-gradient", meta)):
            run, seconds = compiled(function, flat)
            yield Row(f"policy {name} (n={n}), {label}", 1e3 * best(run, budget=2.0), "ms")
            yield Row(f"policy {name} (n={n}), {label}, compile", seconds, "s")


def projection_rows(quick: bool) -> Iterator[Row]:
    """FISAR's projection of a long update onto 16 half-spaces."""
    n, m = (10_000 if quick else 100_000), 16
    rng = np.random.default_rng(0)
    raw, rows, bounds = rng.normal(size=n), rng.normal(size=(m, n)), rng.normal(size=m)
    inputs = tuple(map(jnp.asarray, (raw, rows, bounds)))
    peers = {"osqp": osqp_seconds(raw, rows, bounds), "clarabel": clarabel_seconds(raw, rows, bounds)}
    for metric in ("euclidean", "closed_form"):
        run, _ = compiled(lambda *p, metric=metric: project_update(*p, metric=metric), *inputs)
        seconds = best(run)
        for peer, theirs in peers.items():
            yield compared(f"projection {metric}, n={n}, m={m}", seconds, peer, theirs)


def osqp_seconds(raw: np.ndarray, rows: np.ndarray, bounds: np.ndarray) -> float | None:
    """Set-up and solution by OSQP at its default tolerances (1e-3)."""
    if importlib.util.find_spec("osqp") is None:
        return None
    osqp, sparse = importlib.import_module("osqp"), importlib.import_module("scipy.sparse")

    def run() -> Any:
        solver = osqp.OSQP()
        identity, matrix = sparse.identity(raw.size, format="csc"), sparse.csc_matrix(rows)
        solver.setup(identity, -raw, matrix, np.full(bounds.size, -np.inf), bounds, verbose=False)
        return solver.solve().x

    return best(run, budget=0.0, least=2)


def clarabel_seconds(raw: np.ndarray, rows: np.ndarray, bounds: np.ndarray) -> float | None:
    """Set-up and solution by Clarabel at its default tolerances (1e-8)."""
    if importlib.util.find_spec("clarabel") is None:
        return None
    clarabel, sparse = importlib.import_module("clarabel"), importlib.import_module("scipy.sparse")

    def run() -> Any:
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        identity, matrix = sparse.identity(raw.size, format="csc"), sparse.csc_matrix(rows)
        cones = [clarabel.NonnegativeConeT(bounds.size)]
        return np.asarray(clarabel.DefaultSolver(identity, -raw, matrix, bounds, cones, settings).solve().x)

    return best(run, budget=0.0, least=2)


CASES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "cpo": cpo_rows,
    "fisher": fisher_rows,
    "memory": memory_rows,
    "tasks": task_rows,
    "policy": policy_rows,
    "projection": projection_rows,
}


def main() -> None:
    """Run the chosen cases and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.peak is not None:
        print_peak(arguments.peak)
        return
    rows: list[Row] = []
    for case in arguments.case:
        for row in CASES[case](arguments.quick):
            rows.append(row)
            peer = "" if row.peer is None else f"   {row.peer}"
            theirs = "" if row.peer_value is None else f" {row.peer_value:,.3f}"
            ratio = "" if row.ratio is None else f"   {row.ratio:,.1f} times faster"
            print(f"{row.case:60s} {row.value:12,.3f} {row.unit}{peer}{theirs}{ratio}", file=sys.stderr, flush=True)
    if arguments.json:
        print_json("solvers", rows)


if __name__ == "__main__":
    main()
