"""Algorithms of a user's own: registered, trained, resumed and loaded by name; what cannot be used is refused."""

from dataclasses import dataclass, field

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import safemeta
from safemeta.algorithms import registry
from safemeta.algorithms.directions import Directions
from safemeta.cli import main
from safemeta.experiment.errors import UserError

TINY = {"tasks": 1, "episodes": 2, "critic_steps": 1, "hidden": (3,), "fisher_states": 10, "horizon": 4}


@pytest.fixture
def example(repository, load_example):
    """`examples/own_algorithm.py` as a module, which registers `pcpo` for the length of a test."""
    assert len((repository / "examples" / "own_algorithm.py").read_text().splitlines()) < 100
    return load_example("own_algorithm")


def test_the_example_trains_resumes_and_is_judged(example, capsys):
    example.main(2, fresh=2, **TINY)
    shown = capsys.readouterr().out
    folder = shown.split("training curves: ")[1].split("/plots")[0]
    assert "obstacle" in shown
    whole = safemeta.train("pcpo", "point-mass", iterations=2, out="whole", **TINY)
    resumed = safemeta.load(folder)
    assert (resumed.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    assert (whole.name, whole.is_meta, resumed.iteration) == ("pcpo on point-mass, seed 0", False, 2)
    with pytest.raises(UserError, match=r"largest_kl must be at least kl_radius, 0\.01, not 0\.001"):
        safemeta.train("pcpo", "point-mass", largest_kl=0.001)

    assert main(["list"]) == 0
    assert "  pcpo  " in capsys.readouterr().out
    assert main(["train", "pcpo", "--help"]) == 0
    assert "--largest-kl FLOAT" in capsys.readouterr().out
    del registry.ALGORITHMS["pcpo"]  # as in another process
    assert main(["evaluate", folder]) == 1
    assert "safemeta.register_algorithm" in capsys.readouterr().err


def test_pcpo_projects_trpos_step(example):
    pcpo, rng = jax.jit(example.pcpo), np.random.default_rng(0)
    for other in (0.5, -0.5, -3.0):
        factor = rng.normal(size=(3, 3))
        gram = (factor @ factor.T + np.eye(3)).astype(np.float32)  # of the reward and two costs, in-sample
        violations = np.array([1.0, other], np.float32)  # the first is above its limit
        found = pcpo(Directions(jnp.eye(3), gram, gram), violations, 0.3)
        trpo = np.array([np.sqrt(0.6 / gram[0, 0]), 0, 0])
        wanted = cp.Variable(3)
        distance = cp.sum_squares(np.linalg.cholesky(gram).T @ (wanted - trpo))
        cp.Problem(cp.Minimize(distance), [violations + gram[1:] @ wanted <= 0]).solve()
        np.testing.assert_allclose(found, wanted.value, atol=2e-3)
    # The paper's closed form, where only the first cost has a gradient.
    gram[2] = gram[:, 2] = 0
    back = max(0.0, (gram[1, 0] * trpo[0] + 1) / gram[1, 1])
    np.testing.assert_allclose(
        pcpo(Directions(jnp.eye(3), gram, gram), violations, 0.3), [trpo[0], -back, 0], rtol=1e-3
    )


@dataclass(frozen=True)
class Settings:
    """Good ones."""

    rate: float = 0.1
    sizes: tuple[int, ...] = (2, 3)


@dataclass
class Thawed:
    rate: float = 0.1


@dataclass(frozen=True)
class WithoutDefault:
    rate: float


@dataclass(frozen=True)
class Clashing:
    seed: int = 0


@dataclass(frozen=True)
class NoJson:
    names: set = field(default_factory=set, hash=False)


@dataclass(frozen=True)
class Mistyped:
    rate: int = "fast"  # type: ignore[assignment]


class Idle:
    """Does nothing. At all."""

    def __init__(self, config):
        self.config = config

    def init(self, key, cmdp):
        return jnp.zeros(1)

    def iterate(self, state, world, key):
        return state, {}

    def policy(self, state):
        return state

    def steps_per_iteration(self, cmdp):
        return 0


class Adapting(Idle):
    def adapt(self, state, world, tasks, key, steps, confidence=None): ...


class Unfinished:
    def __init__(self, config):
        self.config = config

    def init(self, key, cmdp): ...


def test_what_is_known_of_a_registered_algorithm():
    safemeta.register_algorithm("idle", Idle, Settings, presets={"fast": Settings(rate=1.0)}, iterations={"smoke": 1})
    entry, module = registry.get("idle"), registry.load("idle")
    assert (entry.description, entry.meta, module.meta) == ("Does nothing. At all", False, False)
    assert module.presets == {"fast": Settings(rate=1.0)}
    assert module.iterations == {**registry.FALLBACK_ITERATIONS, "smoke": 1}
    safemeta.register_algorithm("idle", Adapting, Settings, description="adapts")  # as in a notebook, run again
    assert (registry.get("idle").description, registry.get("idle").meta) == ("adapts", True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "My Idea"}, "small letters and digits, in words joined by '-', not 'My Idea'"),
        ({"name": "cpo"}, "'cpo' is an algorithm of safemeta"),
        ({"algorithm": Unfinished}, "Unfinished lacks iterate, policy, steps_per_iteration"),
        ({"config": Thawed}, "must be a frozen dataclass, which Thawed is not"),
        ({"config": int}, "must be a frozen dataclass, which int is not"),
        ({"config": WithoutDefault}, "every field of WithoutDefault needs a default"),
        ({"config": Clashing}, "the setting 'seed' has a name that train uses itself"),
        ({"config": NoJson}, "must be what JSON can hold, and hashable, but: "),
        ({"config": Mistyped}, "'rate' must be a whole number, not 'fast'"),
        ({"presets": {"fast": Clashing()}}, "the preset 'fast' must be a Settings, not a Clashing"),
        ({"iterations": {"long": 3}}, "unknown budget 'long'"),
        ({"iterations": {"smoke": 0}}, "must be a whole number of at least 1, not 0"),
    ],
)
def test_what_train_could_not_use_is_refused_in_one_sentence(changes, sentence):
    before = dict(registry.ALGORITHMS)
    with pytest.raises(ValueError, match=sentence) as caught:
        safemeta.register_algorithm(**{"name": "idle", "algorithm": Idle, "config": Settings} | changes)
    assert "\n" not in str(caught.value)
    assert before == registry.ALGORITHMS
