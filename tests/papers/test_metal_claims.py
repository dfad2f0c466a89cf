"""MetaL's reproduction: intervals, the verdicts, figures and tables, of made-up runs."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from safemeta.experiment.evaluate import Interval
from safemeta.papers import metal, metal_claims, metal_plan
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED
from safemeta.papers.metal_plan import CARTPOLE, SOLVABLE, UNSOLVABLE
from safemeta.papers.metal_runs import Final, Reached, RobotGroup

# Numbers


def test_the_difference_has_welchs_interval():
    ours, theirs = np.array([5.0, 7.0, 6.0, 9.0]), np.array([1.0, 1.5, 0.5])
    found = metal_claims.difference(ours, theirs)
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.mean == pytest.approx(5.75)
    variance = ours.var(ddof=1) / 4 + theirs.var(ddof=1) / 3
    half = stats.t.ppf(0.975, int(expected.df)) * np.sqrt(variance)  # degrees of freedom rounded down: a little wider
    assert (found.low, found.high) == pytest.approx((5.75 - half, 5.75 + half))
    exact = expected.confidence_interval(0.95)
    assert found.low < exact.low < exact.high < found.high
    assert metal_claims.difference(ours[:1], theirs) == Interval(5.0 - 1.0, None, None)


def test_penalised_returns_by_hand():
    reached = Reached.of(np.array([900.0, 800.0]), np.array([0.215, 0.1]), 0.115)
    np.testing.assert_allclose(reached.overshoot, [0.1, 0.0])
    np.testing.assert_allclose(reached.penalised, [800.0, 800.0])
    strict = Reached.of(np.array([500.0, 400.0]), np.array([0.315, 0.415]), 0.115)
    mean = metal_claims.averaged({0.05: {"metal": strict}, 0.3: {"metal": reached}}, "metal")
    assert mean is not None
    np.testing.assert_allclose(mean.penalised, [(800 + 300) / 2, (800 + 100) / 2])
    assert metal_claims.averaged({0.05: {}, 0.3: {"metal": reached}}, "metal") is None


def group(returns=(1.0,), iterations=20, **tables):
    """A group with the given columns `[iterations, seeds]`; other metrics are constant."""
    seeds = len(returns)
    filled = {"return": np.tile(returns, (iterations, 1)), "cost": np.full((iterations, seeds), 0.2)}
    filled |= {name: np.asarray(values, float) for name, values in tables.items()}
    metrics = tuple(
        [{"limit": 0.11500000208, "environment_steps": 8000 * (i + 1), **{n: v[i, s] for n, v in filled.items()}}
         for i in range(iterations)]
        for s in range(seeds)
    )  # fmt: skip
    final = tuple(Final(np.array([10.0, 20.0]), np.array([0.0, 0.3])) for _ in range(seeds))
    return RobotGroup("metal", CARTPOLE, tuple(range(seeds)), (), metrics, (), 0.05, final)


def test_the_last_hundred_episodes_count():
    rising = np.arange(20.0)[:, None]
    reached = group(**{"return": rising, "cost": rising / 100}).reached
    assert reached.returns == pytest.approx([np.mean(np.arange(7, 20))])  # 13 iterations of 8 episodes
    assert reached.overshoot == pytest.approx([0.13 - 0.115])  # of the mean, not the mean of overshoots
    assert group().without_noise.penalised == pytest.approx([15.0 - 35.0])


# Verdicts

NOISE = np.array([-2.0, -1.0, 1.0, 2.0])


def reached(value, overshoot=0.0, spread=1.0):
    return Reached(value + spread * NOISE, np.full(4, overshoot + 0.115), np.full(4, overshoot))


def like_the_paper(**changes):
    made = {name: reached(returns, overshoot) for name, (_, returns, overshoot) in metal_claims.TABLE_1.items()}
    return made | changes


def verdict_on(claims, words):
    (found,) = [claim.verdict for claim in claims if words in claim.claim]
    return found


def test_the_papers_table_is_reproduced():
    claims = metal_claims.table_1("x", {0.05: like_the_paper()})
    assert {claim.verdict for claim in claims} == {REPRODUCED}
    assert len(claims) == 6 + 1 + 2 + 2


@pytest.mark.parametrize(
    ("changes", "words", "verdict"),
    [
        ({"rs-0.1": reached(950.0, 0.2)}, "above that of rs-0.1", CONTRADICTED),
        ({"rs-0.1": reached(950.0, 0.2)}, "order of penalised", CONTRADICTED),
        ({"rs-0.1": reached(950.0, 0.27, 100.0)}, "above that of rs-0.1", NOT_REPRODUCED),
        ({"rs-0.1": reached(960.0, 0.27, 100.0)}, "order of penalised", NOT_REPRODUCED),
        ({"metal": reached(800.0)}, "comparable to D4PG's", CONTRADICTED),
        ({"metal": reached(870.0, 0.0, 40.0)}, "comparable to D4PG's", NOT_REPRODUCED),
        ({"metal": reached(900.0, 0.6)}, "D4PG's overshoot", CONTRADICTED),
        ({"rc-d4pg": reached(648.0, 0.3)}, "RC-D4PG overshoots less", CONTRADICTED),
        ({"rc-d4pg": reached(990.0, 0.1)}, "less return", CONTRADICTED),
    ],
)
def test_other_tables_are_not(changes, words, verdict):
    assert verdict_on(metal_claims.table_1("x", {0.05: like_the_paper(**changes)}), words) == verdict


def test_no_claims_without_runs():
    assert metal_claims.table_1("x", {0.05: {"d4pg": reached(1.0)}}) == []
    assert metal_claims.outer_losses("x", {0.05: like_the_paper()}) == []
    assert metal_claims.per_coefficient("x", {0.1: {"d4pg": reached(1.0)}}) == []


def test_verdicts_on_an_unsolvable_task():
    claims = metal_claims.per_coefficient("x", {UNSOLVABLE: like_the_paper()})
    assert verdict_on(claims, "can not be solved") == REPRODUCED
    assert verdict_on(claims, "above that of rc-d4pg") == REPRODUCED
    assert verdict_on(claims, "comparable to that of rs-0.1") == REPRODUCED
    assert verdict_on(claims, "drastic difference") == REPRODUCED
    solved = like_the_paper(**{"rc-d4pg": reached(900.0, 0.005)})
    claims = metal_claims.per_coefficient("x", {UNSOLVABLE: solved})
    assert verdict_on(claims, "can not be solved") == CONTRADICTED
    assert verdict_on(claims, "above that of rc-d4pg") == CONTRADICTED
    half = dataclasses.replace(reached(900.0), overshoot=np.array([0.0, 0.0, 0.0, 0.03]))
    claims = metal_claims.per_coefficient("x", {UNSOLVABLE: like_the_paper(**{"rc-d4pg": half})})
    assert verdict_on(claims, "can not be solved") == NOT_REPRODUCED


def test_verdicts_on_a_solvable_task():
    easy = {name: reached(900.0) for name in metal_claims.TABLE_1} | {"d4pg": reached(920.0, 0.3)}
    claims = metal_claims.per_coefficient("x", {SOLVABLE: easy})
    assert verdict_on(claims, "can be solved") == REPRODUCED
    assert verdict_on(claims, "comparable to that of rc-d4pg") == REPRODUCED
    assert verdict_on(claims, "above that of d4pg") == REPRODUCED
    assert verdict_on(claims, "drastic difference") == NOT_REPRODUCED
    worse = easy | {"metal": reached(500.0, 0.2), "rc-d4pg": reached(870.0)}
    claims = metal_claims.per_coefficient("x", {SOLVABLE: worse})
    assert verdict_on(claims, "comparable to that of rc-d4pg") == CONTRADICTED
    assert verdict_on(claims, "above that of d4pg") == CONTRADICTED
    hard = {name: reached(900.0, 0.3) for name in metal_claims.TABLE_1}
    assert verdict_on(metal_claims.per_coefficient("x", {SOLVABLE: hard}), "can be solved") == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("critic", "both", "actor", "verdicts"),
    [
        (800.0, 790.0, 600.0, [REPRODUCED] * 3),
        (600.0, 790.0, 800.0, [CONTRADICTED, CONTRADICTED, CONTRADICTED]),
        (800.0, 730.0, 600.0, [REPRODUCED, REPRODUCED, CONTRADICTED]),
    ],
)
def test_verdicts_on_outer_losses(critic, both, actor, verdicts):
    found = {"metal": reached(critic), "metal both": reached(both), "metal actor": reached(actor)}
    claims = metal_claims.outer_losses("x", {0.05: found, 0.3: found, 0.1: {"metal": reached(0.0)}})
    assert [claim.verdict for claim in claims] == verdicts
    assert "coefficients 0.05, 0.3" in claims[0].claim


@pytest.mark.parametrize(
    ("value", "spread", "verdict"),
    [(600.0, 1.0, REPRODUCED), (900.0, 1.0, CONTRADICTED), (720.0, 50.0, NOT_REPRODUCED)],
)
def test_verdicts_on_the_stand_in_for_mesh(value, spread, verdict):
    found = {"metal": reached(700.0), "mesh-like": reached(value, spread=spread)}
    (claim,) = metal_claims.stand_in("x", {0.05: found, 0.3: found})
    assert claim.verdict == verdict
    assert metal_claims.stand_in("x", {0.05: found, 0.3: {}}) == []


def ramp(end, seeds=4):
    return np.linspace(0.0, end, 20)[:, None] + 0.01 * NOISE[:seeds] * np.linspace(0, 1, 20)[:, None]


@pytest.mark.parametrize(
    ("end", "verdict"), [(-4.0, REPRODUCED), (-1.0, NOT_REPRODUCED), (1.0, CONTRADICTED), (0.0, NOT_REPRODUCED)]
)
def test_verdicts_on_a_rate_that_vanishes(end, verdict):
    assert metal_claims.vanishing("x", ramp(end)).verdict == verdict


def test_verdicts_on_a_multiplier_that_settles():
    settled = np.minimum(ramp(2.0), 1.0)  # reaches 1 halfway
    assert metal_claims.settling("x", settled).verdict == REPRODUCED
    assert metal_claims.settling("x", ramp(2.0)).verdict == CONTRADICTED
    there_and_back = settled + 0.3 * np.where(np.arange(20) == 17, 1.0, 0.0)[:, None]
    assert metal_claims.settling("x", there_and_back).verdict == CONTRADICTED
    one_seed = metal_claims.settling("x", ramp(2.0)[:, :1])
    assert one_seed.verdict == NOT_REPRODUCED


def test_verdicts_on_a_solvable_tasks_rate():
    up_and_down = np.concatenate([ramp(2.0)[:10], ramp(1.0)[::-1][:10] - 0.2])
    costs = np.where(np.arange(20)[:, None] < 9, 0.5, 0.1) * np.ones(4)
    claims = metal_claims.rise_and_fall("x", up_and_down, costs, 0.115)
    assert [claim.verdict for claim in claims] == [REPRODUCED, REPRODUCED]
    assert "after 10 [10, 10] iterations" in claims[0].ours
    claims = metal_claims.rise_and_fall("x", -ramp(2.0), costs, 0.115)
    assert [claim.verdict for claim in claims] == [CONTRADICTED, REPRODUCED]
    claims = metal_claims.rise_and_fall("x", ramp(2.0), np.full((20, 4), 0.5), 0.115)
    assert [claim.verdict for claim in claims] == [REPRODUCED, NOT_REPRODUCED]
    assert "In 4 of 4 seeds it is never kept" in claims[0].note


def test_figure_4_is_judged_by_coefficient():
    made = group(returns=(1.0, 2.0, 3.0, 4.0), log_rate=ramp(-4.0), multiplier=np.minimum(ramp(2.0), 1.0))
    claims = metal_claims.behaviour("meta-rate 1e-4", {UNSOLVABLE: made})
    assert [claim.verdict for claim in claims] == [REPRODUCED, REPRODUCED]
    assert len(metal_claims.behaviour("meta-rate 1e-4", {UNSOLVABLE: made, SOLVABLE: made})) == 4


# Pictures


def test_pictures_and_tables(tmp_path):
    columns = {"log_rate": ramp(-4.0), "multiplier": ramp(1.0), "effective_rate": np.exp(ramp(-4.0)),
               "meta_gradient": ramp(1e-6), "clipped_mass": ramp(0.0)}  # fmt: skip
    made = group(returns=(1.0, 2.0, 3.0, 4.0), **columns)
    plain = group(returns=(-5.0, 2.0, 3.0, 4.0), multiplier=ramp(1.0), clipped_mass=ramp(0.0))
    found = {(CARTPOLE, k, m): each for k in (0.05, 0.3) for m, each in (("metal", made), ("rc-d4pg", plain))}
    for name, looks in (
        ("4", {"metal": ("metal, meta-rate 0.001", "k"), **metal.RC_LOOKS}),
        ("slow", metal.SLOW_LOOKS),
    ):
        table, picture = metal.behaviour(tmp_path, name, "words", found, looks)
        assert picture.name == f"figure-{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert len(table.rows) == 4
    panels = {("cartpole", "0.05"): like_the_paper(), ("cartpole", "0.3"): like_the_paper(), ("walker", "0.3"): {}}
    del panels["walker", "0.3"]
    drawn = metal.metal_figures.draw_bars(tmp_path / "bars.png", "t", panels, metal.MAIN)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert (
        "| realworld-cartpole | 0.05, 0.3 | metal | 4 |"
        in metal.table_1({CARTPOLE: metal.places_of(found, CARTPOLE)}).markdown()
    )
    assert len(metal.ends(found).rows) == 4


def test_slow_multipliers_are_judged_apart(tmp_path):
    columns = {"log_rate": ramp(-4.0), "multiplier": np.minimum(ramp(2.0), 1.0), "effective_rate": np.exp(ramp(-4.0)),
               "meta_gradient": ramp(1e-6)}  # fmt: skip
    made = group(returns=(700.0, 701.0, 702.0, 703.0), **columns)
    better = group(returns=(800.0, 801.0, 802.0, 803.0), multiplier=ramp(1.0), effective_rate=ramp(0.0))
    found = {
        (CARTPOLE, k, m): each for k in (0.05, 0.3) for m, each in (("metal slow", made), ("rc-d4pg slow", better))
    }
    claims = metal.slow_claims(found)
    assert len(claims) == 8
    assert all("alpha_1 1e-05, meta-rate 0.0001" in claim.claim for claim in claims)
    assert verdict_on(claims, "coefficient 0.05: MetaL's penalised return is above that of rc-d4pg") == CONTRADICTED
    assert (
        verdict_on(claims, "coefficient 0.3: MetaL's penalised return is comparable to that of rc-d4pg") == CONTRADICTED
    )
    assert verdict_on(claims, "lambda settles") == REPRODUCED
    assert metal.slow_claims({}) == []


def test_learning_curves(tmp_path):
    rising = np.linspace([0.0, 700.0], [1000.0, 790.0], 20)  # of two seeds; the second never reaches 800
    made, other = group(returns=(1.0, 2.0), **{"return": rising}), group(returns=(5.0, 6.0))
    found = {(CARTPOLE, 0.3, "d4pg"): made, (CARTPOLE, 0.3, "metal"): other, (metal_plan.WALKER, 0.05, "d4pg"): other}
    found = {
        (task, k, method): dataclasses.replace(each, task=task, coefficient=k, method=method)
        for (task, k, method), each in found.items()
    }
    columns = metal.learning_curves(found)
    assert {name: list(groups) for name, groups in columns.items()} == {
        "cartpole, coefficient 0.3": ["metal", "d4pg"],
        "walker, coefficient 0.05": ["d4pg"],
    }
    picture = metal.metal_figures.draw_learning(tmp_path / "learning-curves.png", columns)
    assert picture.read_bytes().startswith(b"\x89PNG")
    metal.write_curves(tmp_path / "learning-curves.csv", columns)
    lines = (tmp_path / "learning-curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2 * 20
    assert f"{CARTPOLE},0.3,d4pg,0,160000,1000.0,0.2000" in lines
    ((task, seeds, reaching, slowest, *_),) = metal.learning(found).rows
    assert (task, seeds, reaching, slowest) == (CARTPOLE, 2, 1, None)
    both = group(returns=(1.0, 2.0), **{"return": rising + np.array([0.0, 100.0])})
    ((*_, reaching, slowest, best, _, _),) = metal.learning({(CARTPOLE, 0.3, "d4pg"): both}).rows
    assert (reaching, slowest) == (2, 8000.0 * 17)  # 800 after 16 of 19 steps from 0 to 1000
    assert best.mean == pytest.approx((1000 + 890) / 2)
