import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from safemeta.core import CMDP
from safemeta.tasks import FAMILIES, make, names


def test_names_are_listed_without_importing_jax():
    code = "import sys, safemeta.tasks as t; print(*t.names()); assert 'jax' not in sys.modules, 'jax was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["point-circle", "point-circle-meta-cpo", "point-circle-1"]
    assert tuple(done.stdout.split()) == names()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.dm_control] if FAMILIES[name].needs else []) for name in names()]
)
def test_every_family_makes_a_world_that_is_what_it_says(name):
    world = make(name)
    assert (name, FAMILIES[name].limit_on) == (FAMILIES[name].name, world.cmdp.limit_on)
    assert hash(world) == hash(make(name))
    assert world == make(name)
    tasks = world.sample(jax.random.key(0), 2)
    assert tasks.limits.shape == (2, len(world.cmdp.cost_names))
    np.testing.assert_allclose(tasks.limits[0], world.cmdp.limits, rtol=1e-6)


def test_defaults_are_those_of_the_papers():
    costs = ("out_of_bounds",)
    assert make("point-circle").cmdp == CMDP(28, 2, 500, costs, (10.0,), 0.99, "discounted")
    assert make("point-circle-meta-cpo").cmdp == CMDP(28, 2, 500, costs, (10.0,), 0.99, "discounted")
    assert make("point-circle-1").cmdp == CMDP(28, 2, 500, costs, (25.0,), 0.99, "undiscounted")
    navigation = CMDP(4, 2, 100, ("outside", "obstacle"), (1.0, 2.0), 0.99, "discounted")
    assert make("point-mass").cmdp == navigation
    seen = (("clearance", (1, 2)),)
    assert make("collision-avoidance").cmdp == CMDP(5, 2, 120, ("collision",), (0.0,), 0.99, "undiscounted", seen, 0.5)
    assert make("realworld-cartpole").cmdp == CMDP(5, 1, 1000, ("slider_pos",), (0.115,), 0.99, "per_step")


def test_limit_unit_and_horizon_can_be_replaced():
    world = make("point-circle-meta-cpo", limit=0.1, limit_on="per_step", horizon=50)
    assert (world.cmdp.limits, world.cmdp.limit_on, world.cmdp.horizon) == ((0.1,), "per_step", 50)
    for split in ("train", "test"):
        assert world.sample(jax.random.key(0), 1, split).limits.tolist() == [[pytest.approx(0.1)]]
    assert make("point-circle", limit=0).cmdp.limits == (0,)
    assert make("point-circle", limit=math.inf).cmdp.limits == (math.inf,)
    assert make("point-circle", limit_on="discounted") == make("point-circle")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "point-cirlce"}, r"^unknown task 'point-cirlce'; did you mean 'point-circle'\?$"),
        ({"name": "PointCircle1"}, r"did you mean 'point-circle-1'\?$"),
        (
            {"name": "xyz"},
            r"^unknown task 'xyz'; choose one of point-circle, point-circle-meta-cpo, point-circle-1, .*$",
        ),
        ({"limit": -1.0}, r"^limit must be a number that is zero or more, not -1\.0$"),
        ({"limit": math.nan}, r"^limit must be a number that is zero or more, not nan$"),
        ({"limit": -math.inf}, r"^limit must be"),
        ({"limit": 3.0, "limit_on": "episode"}, r"^limit_on must be one of discounted, undiscounted, per_step, not"),
        ({"limit_on": "per_step"}, r"^point-circle states its limit as discounted; give a limit together with"),
        ({"horizon": 0}, r"^horizon must be at least 1 control step, not 0$"),
        ({"horizon": -5}, r"^horizon must be"),
    ],
)
def test_bad_input_gets_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**({"name": "point-circle"} | arguments))
    assert "\n" not in str(caught.value)
    assert type(caught.value) is ValueError
