"""The five words, their boundaries, and what stands beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.analysis.verdict import RULES, judge, verdict
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
        (1.0, 3.9, "direction reproduced"),
        (5.0, 9.0, "direction reproduced"),
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
        "reproduced": low > 0 and holds,
        "direction reproduced": low > 0 and not holds,
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
    gains: dict[str, float], noise: float = 0.01, data: str | None = "real", seeds: int = 3
) -> pd.DataFrame:
    """Two transfers, 20 subjects; gains over finetune, whose mean Dice is 0.5."""
    rng = np.random.default_rng(0)
    shape = (2, 20, seeds)
    base = 0.5 + 0.05 * rng.normal(size=(1, 20, 1))
    base -= base.mean() - 0.5
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
        (0.04, 0.01, "reproduced"),
        (0.02, 0.01, "direction reproduced"),
        (0.02, 0.2, "inconclusive"),
        (0.0, 0.01, "not reproduced"),
        (-0.04, 0.01, "contradicted"),
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
    assert row["gain"] == pytest.approx(100 * gain) and row["low"] <= 100 * gain <= row["high"]
    assert judgement.gains.loc["relative", "word"] == "" and np.isnan(
        judgement.gains.loc["relative", "claimed"]
    )


def test_an_open_unit_is_judged_both_ways() -> None:
    judgement = judge(records({"trm": 0.04}), claim(unit="points-or-relative"))
    assert judgement.gains["gain"].to_dict() == pytest.approx({"points": 4.0, "relative": 8.0})
    assert judgement.gains["word"].to_dict() == {
        "points": "reproduced",
        "relative": "direction reproduced",
    }
    assert judgement.gains["claimed"].eq(4.0).all()


def test_a_distance_is_judged_in_its_own_unit() -> None:
    table = records({"trm": 0.04}).assign(metric="hd95")
    judgement = judge(table, claim(metric="hd95", gain=0.04))
    assert judgement.gains.loc["points", "gain"] == pytest.approx(-0.04)
    assert judgement.gains.loc["points", "word"] == "contradicted"


@pytest.mark.parametrize(
    ("data", "words"),
    [("phantom", "stand-in data"), ("synthetic", "synthetic"), (None, "not stated")],
)
def test_data_that_are_not_real_give_no_verdict(data: str | None, words: str) -> None:
    judgement = judge(records({"trm": 0.04, "scratch": 0.0}, data=data), CLAIM)
    assert words in judgement.no_verdict and judgement.no_verdict.startswith("no verdict")
    assert (judgement.gains[["word", "rule"]] == "").all(axis=None)
    # the measurement is shown all the same
    assert judgement.gains.loc["points", "gain"] == pytest.approx(4)
    mixed = pd.concat(
        [records({"trm": 0.04}), records({"trm": 0.04}, data=data).assign(subject="x")]
    ).reset_index(drop=True)
    with pytest.raises(UserError):
        judge(mixed, CLAIM)


def test_controls_tell_the_map_from_the_weighting() -> None:
    judgement = judge(records({"trm": 0.04, "trm_prior": 0.04, "trm_shuffled": 0.01}), CLAIM)
    controls = judgement.controls.set_index("control")
    assert controls["survives"].to_dict() == {"trm_prior": False, "trm_shuffled": True}
    assert controls.loc["trm_shuffled", "gain"] == pytest.approx(3)
    assert "controls not in the table: trm_uniform" in judgement.notes
    assert "no method 'scratch' in the table: negative transfer cannot be told" in judgement.notes


@pytest.mark.parametrize(
    ("scratch", "trm", "gone"),
    [
        (0.03, 0.04, True),
        (0.03, 0.03, True),
        (0.03, 0.01, False),
        (0.0, 0.04, None),
        (-0.03, 0.04, None),
    ],
)
def test_negative_transfer_and_whether_it_is_gone(
    scratch: float, trm: float, gone: bool | None
) -> None:
    judgement = judge(records({"scratch": scratch, "trm": trm}), CLAIM)
    rows = judgement.negative_transfer.set_index(["method", "transfer"])
    assert judgement.gone is gone and len(rows) == 6
    assert rows.loc[("finetune", "mean"), "gap"] == pytest.approx(100 * scratch)
    assert rows.loc[("finetune", "mean"), "present"] == (gone is not None)
    assert rows.loc[("trm", "mean"), "gap"] == pytest.approx(100 * (scratch - trm))


def test_what_a_reader_must_know_is_noted() -> None:
    table = records({"trm": 0.04}, seeds=1)
    table = table[~((table["method"] == "trm") & (table["transfer"] == "b"))]
    table = table[~((table["method"] == "trm") & (table["subject"] == "s3"))]
    judgement = judge(table, CLAIM)
    text = "; ".join(judgement.notes)
    assert "21 (subject, seed) cells" in text and "1 of 2 transfers" in text and "one seed" in text


def test_one_subject_is_no_verdict() -> None:
    table = records({"trm": 0.04})
    judgement = judge(table[table["subject"] == "s1"], CLAIM)
    assert "no interval" in judgement.no_verdict and (judgement.gains["word"] == "").all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "trn"}, "did you mean 'trm'"),
        ({"versus": "finetuned"}, "did you mean 'finetune'"),
        ({"gain": -1.0}, "above 0"),
    ],
)
def test_faulty_claims(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        judge(records({"trm": 0.04}), claim(**change))
