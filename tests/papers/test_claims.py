"""Verdicts on both sides of each border, and the shape of claims.json."""

import json

import pytest

from safemeta.experiment.evaluate import Interval
from safemeta.papers import claims, dual_claims, meta_cpo
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED, Claim


@pytest.mark.parametrize(
    ("found", "claimed", "verdict"),
    [
        (Interval(1.0, 0.001, 2.0), 0.0, REPRODUCED),
        (Interval(1.0, 0.0, 2.0), 0.0, NOT_REPRODUCED),  # zero is in the interval
        (Interval(-1.0, -2.0, 0.0), 0.0, NOT_REPRODUCED),
        (Interval(-1.0, -2.0, -0.001), 0.0, CONTRADICTED),
        (Interval(0.4, 0.3, 0.451), 0.5, REPRODUCED),  # positive, and about the claimed gain is possible
        (Interval(0.4, 0.3, 0.449), 0.5, NOT_REPRODUCED),  # better, but by less than claimed
        (Interval(0.4, -0.1, 0.9), 0.5, NOT_REPRODUCED),
        (Interval(0.1, None, None), 0.0, REPRODUCED),
        (Interval(0.46, None, None), 0.5, REPRODUCED),
        (Interval(0.44, None, None), 0.5, NOT_REPRODUCED),
        (Interval(-0.4, None, None), 0.0, NOT_REPRODUCED),  # one seed cannot contradict
    ],
)
def test_at_least(found, claimed, verdict):
    assert claims.at_least(found, claimed) == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Interval(5.0, 4.0, 6.0), REPRODUCED),
        (Interval(5.01, 5.0, 6.0), NOT_REPRODUCED),
        (Interval(6.0, 5.01, 7.0), CONTRADICTED),
        (Interval(6.0, None, None), NOT_REPRODUCED),
    ],
)
def test_within_a_limit_of_five(found, verdict):
    assert claims.within(found, 5.0) == verdict


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((420, 0, 0), REPRODUCED), ((420, 1, 0), NOT_REPRODUCED), ((420, 1, 1), CONTRADICTED)],
)
def test_none_above(counts, verdict):
    assert claims.none_above(*counts) == verdict


def test_none_above_refuses_impossible_counts():
    with pytest.raises(ValueError, match="cannot be above"):
        claims.none_above(3, 4, 0)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ([(5, 1), (2, 2)], REPRODUCED),
        ([(5, 1), (2, 0)], NOT_REPRODUCED),
        ([(5, 1), (0, 0)], CONTRADICTED),
    ],
)
def test_all_baselines_violate(counts, verdict):
    assert dual_claims.all_violate(counts) == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(5.0, REPRODUCED), (4.99, NOT_REPRODUCED), (0.99, CONTRADICTED)])
def test_ten_times_slower(ratio, verdict):
    assert dual_claims.slower(ratio) == verdict


@pytest.mark.parametrize(
    ("cost", "reward", "verdict"),
    [
        (Interval(12.0, 10.1, 14.0), 30.0, REPRODUCED),
        (Interval(12.0, 10.1, 14.0), 29.0, NOT_REPRODUCED),  # another learner's return is higher
        (Interval(12.0, 9.9, 14.0), 30.0, NOT_REPRODUCED),
        (Interval(8.0, 7.0, 9.9), 30.0, CONTRADICTED),
    ],
)
def test_trpo_violates_the_limit_of_ten(cost, reward, verdict):
    assert meta_cpo.violates(cost, 10.0, reward, [30.0]) == verdict


@pytest.mark.parametrize(
    ("counts", "verdict"), [([1, 2, 3], REPRODUCED), ([1, 0, 3], NOT_REPRODUCED), ([0, 0, 0], CONTRADICTED)]
)
def test_all_others_fail(counts, verdict):
    assert meta_cpo.all_fail(counts) == verdict


def made_up(verdict=REPRODUCED, note="A note."):
    return Claim("the sky is blue", verdict, 1.5, "blue", note)


def test_document_has_the_shape_that_tools_rely_on(tmp_path):
    content = claims.document("dual", "laptop", 3, "safemeta reproduce dual", [made_up()])
    written = json.loads(claims.write(tmp_path, content).read_bytes())
    assert list(written) == ["paper", "budget", "seeds", "command", "commit", "claims"]
    assert written["seeds"] == 3
    expected = {"claim": "the sky is blue", "verdict": "reproduced", "ours": 1.5, "paper": "blue", "note": "A note."}
    assert written["claims"] == [expected]
    assert written["commit"]


@pytest.mark.parametrize("verdict", claims.VERDICTS)
def test_smoke_decides_nothing(verdict):
    content = claims.document("dual", "smoke", 1, "safemeta reproduce dual --budget smoke", [made_up(verdict)])
    assert content["claims"][0]["verdict"] == NOT_REPRODUCED
    assert "neither confirm nor refute" in content["claims"][0]["note"]


def test_shown():
    assert claims.shown(Interval(12.346, 11.0, 13.0)) == "12.35 [11, 13]"
    assert claims.shown(Interval(2.0, None, None), "s") == "2 s"
