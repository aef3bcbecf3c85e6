"""The five words, their boundaries, when a claim stands, and how often the rule is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.analysis import generalised
from trm_bench.analysis.generalised import MeanSquares
from trm_bench.analysis.power import Spread
from trm_bench.analysis.verdict import RULES, confusion, judge, verdict, words
from trm_bench.errors import UserError
from trm_bench.protocol.schema import Claim

CLAIM = Claim(source="arXiv", gain=4.0, unit="points")


def claim(**changes: object) -> Claim:
    """The claim with changes that are not checked: a distance is one that no protocol makes yet."""
    return CLAIM.model_copy(update=changes)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.0, 5.0, "reproduced"),
        (4.0, 9.0, "reproduced"),  # an interval holds its ends
        (0.1, 4.0, "reproduced"),
        (1.0, 3.9, "smaller than claimed"),
        (5.0, 9.0, "reproduced"),  # more than claimed
        (-1.0, 5.0, "inconclusive"),
        (0.0, 4.0, "inconclusive"),  # touching 0 is holding 0
        (-1.0, 3.9, "not reproduced"),
        (-2.0, 0.0, "not reproduced"),
        (0.0, 0.0, "not reproduced"),
        (-2.0, -0.1, "contradicted"),
    ],
)
def test_the_five_words_and_their_boundaries(low: float, high: float, word: str) -> None:
    assert verdict(low, high, 4.0) == (word, RULES[word])


@given(st.floats(-9, 9), st.floats(0, 9), st.floats(0.01, 9))
def test_each_interval_has_the_one_word_whose_rule_it_meets(
    low: float, width: float, claimed: float
) -> None:
    high = low + width
    zero, holds = low <= 0 <= high, low <= claimed <= high
    meets = {
        "reproduced": low > 0 and high >= claimed,
        "smaller than claimed": low > 0 and high < claimed,
        "inconclusive": zero and holds,
        "not reproduced": zero and not holds,
        "contradicted": high < 0,
    }
    assert [word for word, met in meets.items() if met] == [verdict(low, high, claimed).word]


@pytest.mark.parametrize(
    ("low", "high", "claimed"), [(1, 0, 4), (np.nan, 1, 4), (0, np.inf, 4), (0, 1, 0), (0, 1, -2)]
)
def test_what_cannot_be_judged(low: float, high: float, claimed: float) -> None:
    with pytest.raises(UserError):
        verdict(low, high, claimed)


def records(
    gains: dict[str, float], noise: float = 1.0, data: str | None = "real", seeds: int = 5
) -> pd.DataFrame:
    """Two transfers, 20 subjects; gains over finetune, in points; its mean Dice is 50 %."""
    rng = np.random.default_rng(0)
    shape = (2, 20, seeds)
    base = 50 + 5 * rng.normal(size=(1, 20, 1))
    base -= base.mean() - 50
    names = ["transfer", "subject", "seed"]
    labels = [["a", "b"], [f"s{i}" for i in range(20)], range(seeds)]
    frames = []
    for method, gain in {"finetune": 0.0, **gains}.items():
        error = noise * rng.normal(size=shape) * (method != "finetune")
        values = base + gain + error - error.mean()
        index = pd.MultiIndex.from_product(labels, names=names)
        frames.append(
            pd.DataFrame({"value": values.ravel()}, index).reset_index().assign(method=method)
        )
    table = pd.concat(frames).assign(protocol="p", metric="dice", **{"class": "tumour"})
    return table if data is None else table.assign(data=data)


@pytest.mark.parametrize(
    ("gain", "noise", "word"),
    [
        (4.0, 1.0, "reproduced"),
        (2.0, 1.0, "smaller than claimed"),
        (2.0, 20.0, "inconclusive"),
        (0.0, 1.0, "not reproduced"),
        (-4.0, 1.0, "contradicted"),
    ],
)
def test_a_known_gain_gets_its_word(gain: float, noise: float, word: str) -> None:
    judgement = judge(records({"trm": gain}, noise), CLAIM)
    row = judgement.gains.loc["points"]
    assert (row["word"], row["rule"], row["claimed"]) == (
        word,
        RULES[word],
        4.0,
    ) and judgement.no_verdict == ""
    assert row["gain"] == pytest.approx(gain) and row["low"] <= gain <= row["high"]
    assert judgement.gains.loc["relative", "word"] == "" and np.isnan(
        judgement.gains.loc["relative", "claimed"]
    )


def test_an_open_unit_is_judged_both_ways() -> None:
    judgement = judge(records({"trm": 4.0}), claim(unit="points-or-relative"))
    assert judgement.gains["gain"].to_dict() == pytest.approx({"points": 4.0, "relative": 8.0})
    assert judgement.gains["word"].to_dict() == {
        "points": "reproduced",
        "relative": "reproduced",  # more than claimed
    }
    assert judgement.gains["claimed"].eq(4.0).all()


def test_a_distance_is_judged_in_its_own_unit() -> None:
    table = records({"trm": 0.04}, noise=0.01).assign(metric="hd95")
    judgement = judge(table, claim(metric="hd95", gain=0.04))
    assert judgement.gains.loc["points", "gain"] == pytest.approx(-0.04)
    assert judgement.gains.loc["points", "word"] == "contradicted"


@pytest.mark.parametrize(
    ("data", "said"),
    [("phantom", "stand-in data"), ("synthetic", "synthetic"), (None, "not stated")],
)
def test_data_that_are_not_real_give_no_verdict(data: str | None, said: str) -> None:
    judgement = judge(records({"trm": 4.0, "scratch": 0.0}, data=data), CLAIM)
    assert said in judgement.no_verdict and judgement.no_verdict.startswith("no verdict")
    assert (judgement.gains[["word", "rule"]] == "").all(axis=None) and not judgement.holds
    # the measurement is shown all the same
    assert judgement.gains.loc["points", "gain"] == pytest.approx(4)
    mixed = pd.concat(
        [records({"trm": 4.0}), records({"trm": 4.0}, data=data).assign(subject="x")]
    ).reset_index(drop=True)
    with pytest.raises(UserError):
        judge(mixed, CLAIM)


@pytest.mark.parametrize(("seeds", "none"), [(1, True), (4, True), (5, False)])
def test_below_five_seeds_there_is_no_verdict(seeds: int, none: bool) -> None:
    judgement = judge(records({"trm": 4.0}, seeds=seeds), CLAIM)
    assert bool(judgement.no_verdict) == none
    assert ("of the 5 seeds" in judgement.no_verdict) == none
    assert (judgement.gains.loc["points", "word"] == "") == none


def test_a_large_family_takes_eight_seeds() -> None:
    gains = {m: 4.0 for m in ("trm", "focal", "topk", "bss", "delta")}
    every = claim(family="all")
    assert "5 of the 8 seeds" in judge(records(gains), every).no_verdict
    assert not judge(records(gains, seeds=8), every).no_verdict


def test_controls_tell_the_map_from_the_weighting() -> None:
    judgement = judge(records({"trm": 4.0, "trm_prior": 4.0, "trm_shuffled": 1.0}), CLAIM)
    controls = judgement.controls.set_index("control")
    assert controls["survives"].to_dict() == {"trm_prior": False, "trm_shuffled": True}
    assert controls.loc["trm_shuffled", "gain"] == pytest.approx(3)
    text = "; ".join(judgement.notes)
    assert "controls not in the table or the family: trm_uniform" in text
    assert "no method 'scratch' in the table: negative transfer cannot be told" in text


@pytest.mark.parametrize(
    ("gains", "unit", "fails"),
    [
        ({"trm": 4.0, "trm_prior": 1.0, "trm_shuffled": 1.0}, "points", ""),
        ({"trm": 3.0, "trm_prior": 0.0, "trm_shuffled": 0.0}, "points", ""),
        ({"trm": 1.5, "trm_prior": 0.0, "trm_shuffled": 0.0}, "points", "[points] is not shown"),
        ({"trm": 4.0, "trm_prior": 4.0, "trm_shuffled": 1.0}, "points", "gain over trm_prior"),
        ({"trm": 4.0, "trm_prior": 1.0, "trm_shuffled": 4.0}, "points", "gain over trm_shuffled"),
        ({"trm": 4.0, "trm_shuffled": 1.0}, "points", "trm_prior is not in the table"),
        # 3 points are 6 % of 50, and 1.5 of them half of 4 % but not half of 4 points
        ({"trm": 1.5, "trm_prior": 0, "trm_shuffled": 0}, "relative", ""),
        (
            {"trm": 1.5, "trm_prior": 0, "trm_shuffled": 0},
            "points-or-relative",
            "[points] is not shown",
        ),
    ],
)
def test_when_a_claim_stands(gains: dict[str, float], unit: str, fails: str) -> None:
    judgement = judge(records(gains, noise=0.5), claim(unit=unit))
    assert not judgement.no_verdict
    assert judgement.holds == (fails == "")
    assert fails in judgement.fails if fails else judgement.fails == ""


@pytest.mark.parametrize(
    ("scratch", "trm", "gone"),
    [(3.0, 4.0, True), (3.0, 3.0, True), (3.0, 1.0, False), (0.0, 4.0, None), (-3.0, 4.0, None)],
)
def test_negative_transfer_and_whether_it_is_gone(
    scratch: float, trm: float, gone: bool | None
) -> None:
    judgement = judge(records({"scratch": scratch, "trm": trm}), CLAIM)
    rows = judgement.negative_transfer.set_index(["method", "transfer"])
    assert judgement.gone is gone and len(rows) == 6
    assert rows.loc[("finetune", "mean"), "gap"] == pytest.approx(scratch)
    assert rows.loc[("finetune", "mean"), "present"] == (gone is not None)
    assert rows.loc[("trm", "mean"), "gap"] == pytest.approx(scratch - trm)


def test_with_two_seeds_negative_transfer_is_open() -> None:
    judgement = judge(records({"scratch": 9.0, "trm": 4.0}, seeds=2), CLAIM)
    assert judgement.negative_transfer["present"].isna().all() and judgement.gone is None


def test_what_a_reader_must_know_is_noted() -> None:
    table = records({"trm": 4.0})
    table = table[~((table["method"] == "trm") & (table["transfer"] == "b"))]
    table = table[~((table["method"] == "trm") & (table["subject"] == "s3"))]
    text = "; ".join(judge(table, CLAIM).notes)
    assert "105 (subject, seed) cells" in text and "1 of 2 transfers" in text


def test_one_subject_is_no_verdict() -> None:
    table = records({"trm": 4.0})
    judgement = judge(table[table["subject"] == "s1"], CLAIM)
    assert "no interval" in judgement.no_verdict and (judgement.gains["word"] == "").all()
    assert judgement.confusion.empty


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "trn"}, "did you mean 'trm'"),
        ({"versus": "finetuned"}, "did you mean 'finetune'"),
        ({"gain": -1.0}, "above 0"),
    ],
)
def test_faulty_claims(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        judge(records({"trm": 4.0}), claim(**change))


# --------------------------------------------------------------------------------- wrong verdicts


@pytest.mark.parametrize("unit", ["points", "points-or-relative"])
def test_the_confusion_table_is_that_of_simulated_means(unit: str) -> None:
    spread, k = Spread(1.5, 0.8, 1.7, 40), 4
    table = confusion(spread, claim(unit=unit), k, mean_of_versus=80.0)
    assert set(table["seeds"]) == {5, 8, 10} and set(table["noise"]) == {0.5, 1, 2}
    rng, n, m = np.random.default_rng(0), 40, 5
    expected = spread.expected(m)
    draws = 4000
    a, b = (x * rng.chisquare(f, draws) / f for x, f in ((expected.a, n - 1), (expected.b, m - 1)))
    e = np.full(draws, expected.e)
    half = generalised.half_width(MeanSquares(a, b, e, n - 1, m - 1), 1 - 0.05 / k)
    error = rng.normal(0, np.sqrt(float(expected.variance)), draws)
    at = table[(table["noise"] == 1) & (table["seeds"] == m)].set_index("given")
    for given_, gain in (("no gain", 0), ("a tenth", 0.4), ("half", 2), ("as claimed", 4)):
        row = at.loc[given_]
        low, high = gain + error - half, gain + error + half
        said = words(low, high, 4.0)
        for word in RULES:
            assert row[word] == pytest.approx((said == word).mean(), abs=0.03)
        # in the relative reading the claim is 3.2 points, so that points ask for more
        assert row["holds"] == pytest.approx((low >= 2.0).mean(), abs=0.03)
        assert row[list(RULES)].sum() == pytest.approx(1) and row["gain"] == gain


def test_the_rule_is_seldom_wrong_whatever_the_noise() -> None:
    for sds in ((0.5, 0.0, 0.5), (2.0, 4.0, 2.0), (1.0, 0.5, 8.0)):
        table = confusion(Spread(*sds, 20), CLAIM, 4, 80.0).set_index("given")
        assert (table.loc["no gain", "reproduced"] <= 0.025).all()
        assert (table.loc["a tenth", "holds"] <= 0.05).all()
