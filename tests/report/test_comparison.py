"""Results side by side: from records or from a report's files, and whether they agree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from helpers import Run
from reported import change_plan, collected, set_units, small

from trm_bench import report
from trm_bench.analysis.generalised import half_width
from trm_bench.analysis.intervals import LEVEL, Design, gains, mean_squares, trimmed
from trm_bench.analysis.table import OVERALL, grid
from trm_bench.errors import UserError
from trm_bench.report import compared, comparison, pages
from trm_bench.report.comparison import AGREE, DIFFER, OPEN, Beside, Estimate, difference
from trm_bench.report.tables import MISSING
from trm_bench.runs.folders import ProtocolFolder

COMMITTED = Path(__file__).resolve().parents[2] / "results" / "reference"
NAMES = ["hippocampus_cross_task", "lgg_cross_modality"]
GIVEN: dict[str, Any] = {
    "methods": ["scratch", "finetune", "trm"],
    "metrics": ("dice", "hd95"),
    "transfers": ["t1->t2"],
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small(tmp_path_factory.mktemp("one") / "p", **GIVEN)
    report.write(ProtocolFolder(folder))
    return folder


def beside(first: Path, second: Path) -> Beside:
    labelled = comparison.read_all([first, second])
    (pair,) = comparison.pairs(labelled)
    return pair


def words(pair: Beside, metric: str = "dice") -> dict[str, str]:
    return {row.method: row.word for row in pair.rows[metric]}


def shifted(folder: Path, to: Path, by: float) -> Path:
    """The files of a report alone, in which trm gains more and fine-tuning has a lower mean."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("plan.json", "records", "voxels"))
    content = json.loads((to / "summary.json").read_text())
    for name, key, sign in (("trm", "gain", 1), ("finetune", "mean", -1)):
        numbers = content["metrics"]["dice"][name]
        numbers[key] += sign * by
        numbers[f"{key}_interval"] = [end + sign * by for end in numbers[f"{key}_interval"]]
    (to / "summary.json").write_text(json.dumps(content))
    return to


class TestDifference:
    def test_of_symmetric_intervals_half_widths_add_as_squares_do(self) -> None:
        found = difference(Estimate(1.0, -2.0, 4.0), Estimate(3.0, -1.0, 7.0))
        assert found == pytest.approx((2.0, -3.0, 7.0))

    def test_each_end_takes_the_sides_that_face_it(self) -> None:
        found = difference(Estimate(0.0, -1.0, 3.0), Estimate(5.0, 1.0, 5.5))
        assert found == pytest.approx((5.0, 5 - np.hypot(4, 3), 5 + np.hypot(0.5, 1)))

    def test_it_covers_what_it_should(self) -> None:
        """Of two normal estimates with known errors, whose intervals are 1.96 of them wide."""
        draws = np.random.default_rng(0)
        a, b = draws.normal(0, 1, 4000), draws.normal(0, 2, 4000)
        held = 0
        for x, y in zip(a, b, strict=True):
            ends = Estimate(x, x - 1.96, x + 1.96), Estimate(y, y - 3.92, y + 3.92)
            _, low, high = difference(*ends)
            assert low is not None and high is not None
            held += low <= 0 <= high
        assert held / 4000 == pytest.approx(0.95, abs=0.01)

    def test_without_an_interval_it_has_none(self) -> None:
        assert difference(Estimate(1.0, None, None), Estimate(3.0, 2.0, 4.0)) == (2.0, None, None)
        assert difference(Estimate(None, None, None), Estimate(3.0, 2.0, 4.0)).value is None


class TestAgreement:
    def test_a_result_agrees_with_itself_from_its_files(self, one: Path, tmp_path: Path) -> None:
        pair = beside(one, shifted(one, tmp_path / "p", 0))
        assert pair.second.evidence is None and pair.first.evidence is not None
        assert [*words(pair)] == ["finetune", "scratch", "trm"]
        assert {row.word for rows in pair.rows.values() for row in rows} == {AGREE}
        assert all(row.difference.value == pytest.approx(0) for row in pair.everything)
        assert pair.settings == [] and "6 of 6 numbers" in pair.sentence

    def test_a_shifted_copy_differs_where_it_was_shifted(self, one: Path, tmp_path: Path) -> None:
        pair = beside(one, shifted(one, tmp_path / "p", 30))
        assert words(pair) == {"scratch": AGREE, "finetune": DIFFER, "trm": DIFFER}
        assert set(words(pair, "hd95").values()) == {AGREE} and "2 differ" in pair.sentence

    def test_other_seeds_of_one_truth_agree_and_another_truth_does_not(
        self, one: Path, tmp_path: Path
    ) -> None:
        again = small(tmp_path / "again" / "p", seed=5, **GIVEN)
        assert words(beside(one, again))["trm"] == AGREE
        truth = synthetic.known_gains(GIVEN["methods"]) | {"trm": 20.0}
        other = small(tmp_path / "other" / "p", seed=5, gains=truth, **GIVEN)
        assert words(beside(one, other))["trm"] == DIFFER

    def test_other_transfers_units_or_references_are_not_judged(
        self, one: Path, tmp_path: Path
    ) -> None:
        other = small(tmp_path / "a" / "p", **GIVEN | {"transfers": ["t1->flair"]})
        assert set(words(beside(one, other)).values()) == {OPEN}
        voxels = small(tmp_path / "b" / "p", **GIVEN)
        set_units(voxels, {"t1->t2": "voxels"})
        pair = beside(one, voxels)
        assert set(words(pair, "hd95").values()) == {OPEN}
        assert set(words(pair).values()) == {AGREE}
        claim = synthetic.CLAIM | {"versus": "scratch"}
        over_scratch = small(tmp_path / "c" / "p", claim=claim, **GIVEN)
        assert words(beside(one, over_scratch)) == {"finetune": AGREE, "trm": OPEN}

    def test_few_seeds_leave_it_open(self, one: Path, tmp_path: Path) -> None:
        few = small(tmp_path / "p", seeds=(0, 1), **GIVEN)
        pair = beside(one, few)
        assert set(words(pair).values()) == {OPEN} and "cannot be told" in pair.sentence
        assert ("seeds", "[0, 1, 2]", "[0, 1]") in pair.settings

    def test_settings_that_differ_are_told(self, one: Path, tmp_path: Path) -> None:
        other = small(tmp_path / "p", **GIVEN)

        def edit(plan: dict[str, Any]) -> None:
            plan["protocol"]["training"]["target"]["steps"] = 600
            plan["protocol"]["transfers"]["same_task"] = True
            plan["protocol"]["description"] = "another"

        change_plan(other, edit)
        pair = beside(one, other)
        assert ("training.target.steps", "300", "600") in pair.settings
        assert (comparison.ALONE, MISSING, "transfers.same_task") in pair.settings
        assert len(pair.settings) == 2 and "1 setting differs" in pair.sentence


class TestCommitted:
    @pytest.mark.parametrize("name", NAMES)
    def test_summaries_are_what_their_metrics_give(self, name: str) -> None:
        result = compared.of_files(COMMITTED / name)
        design = Design(**json.loads((COMMITTED / name / "summary.json").read_text())["design"])
        long = pd.read_csv(COMMITTED / name / "metrics.csv.gz")
        for metric, methods in result.summary.metrics.items():
            values = grid(long, metric)
            pairs = [(m, "finetune") for m in methods if m != "finetune"]
            made = gains(values, pairs=pairs, design=design, relative=False)
            overall = made[made["transfer"] == OVERALL].set_index("method")
            for method, numbers in methods.items():
                squares = mean_squares(trimmed(values.of(method)), design)
                assert numbers.mean is not None and squares is not None
                low, high = numbers.mean_interval
                half = float(half_width(squares, LEVEL))
                assert (low, high) == pytest.approx((numbers.mean - half, numbers.mean + half))
                if method != "finetune":
                    row = overall.loc[method]
                    assert numbers.gain == pytest.approx(row["gain"])
                    assert numbers.gain_interval == pytest.approx((row["low"], row["high"]))

    def test_the_package_has_them(self) -> None:
        """After a change: `compared.packed(compared.of_files(FOLDER))` is what belongs there."""
        assert sorted(path.stem for path in compared.REFERENCE.iterdir()) == NAMES
        for name in NAMES:
            packed = compared.packed(compared.of_files(COMMITTED / name))
            assert (compared.REFERENCE / f"{name}.json").read_text() == packed
            assert compared.reference_of(name) is not None
        assert compared.reference_of("toy") is None and compared.reference_of("../x") is None

    def test_the_command(self, trm_bench: Run, tmp_path: Path) -> None:
        mine = shifted(COMMITTED / NAMES[0], tmp_path / "mine" / NAMES[0], 5)
        out = tmp_path / "out"
        code, said = trm_bench("compare", COMMITTED / NAMES[0], mine.parent, "--out", out)
        plain = " ".join(said.split())
        assert code == 0 and "differ, " not in plain and "2 differ" in plain
        table = pd.read_csv(out / "agreement.csv")
        judged = table[(table["metric"] == "dice") & (table["what"] == "gain")]
        assert judged.set_index("method")["agreement"].to_dict()["trm"] == DIFFER
        assert (judged["agreement"] == DIFFER).sum() == 1 and len(judged) == 5
        text = (out / "compare.html").read_text()
        assert "Do they agree?" in text and "no verdict" in text
        code, said = trm_bench("compare", COMMITTED, "--out", out)  # of two protocols
        assert code == 0 and "agree with" not in said
        assert len(pd.read_csv(out / "agreement.csv")) == 0


class TestReport:
    @pytest.fixture
    def known(self, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reference results of the protocol p, in which fine-tuning and trm do otherwise."""
        monkeypatch.setattr(compared, "REFERENCE", tmp_path)
        packed = compared.packed(compared.of_files(shifted(one, tmp_path / "p", 30)))
        (tmp_path / "p.json").write_text(packed)

    def test_a_report_shows_the_reference_beside_its_own(self, one: Path, known: None) -> None:
        found = comparison.beside_reference(collected(one))
        assert found is not None and words(found)["trm"] == DIFFER
        text = pages.report(collected(one), [], [])
        section = text[text.index("Beside the reference results") : text.index('id="figures"')]
        assert "agree with the reference, 2 differ" in section and "difference" in section

    def test_without_a_reference_there_is_no_such_section(self, one: Path) -> None:
        assert "Beside the reference results" not in pages.report(collected(one), [], [])

    def test_the_stand_in_is_beside_no_real_data(self, known: None, tmp_path: Path) -> None:
        phantom = small(tmp_path / "phantom" / "p", data="phantom", **GIVEN)
        assert comparison.beside_reference(collected(phantom)) is None


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "no metrics": without("metrics"),
    "empty metrics": lambda c: c.update(metrics={}),
    "no units": lambda c: c.update(units={}),
    "another metric": lambda c: c["metrics"].update(beauty=c["metrics"]["dice"]),
    "text for a number": lambda c: c["metrics"]["dice"]["trm"].update(gain="much"),
    "NaN": lambda c: c["metrics"]["dice"]["trm"].update(mean=float("nan")),
    "other data": lambda c: c.update(data="made up"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_summary_that_no_report_writes_is_told(
    name: str, one: Path, tmp_path: Path, trm_bench: Run
) -> None:
    folder = shifted(one, tmp_path / "p", 0)
    content = json.loads((folder / "summary.json").read_text())
    BAD[name](content)
    (folder / "summary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no summary of a report"):
        compared.of_files(folder)


@pytest.mark.parametrize("text", ["", "[]", "{" * 9999, "\x00"])
def test_files_that_are_no_json_are_told(text: str, one: Path, tmp_path: Path) -> None:
    for file in ("summary.json", "provenance.json"):
        folder = shifted(one, tmp_path / file, 0)
        (folder / file).write_text(text)
        with pytest.raises(UserError) as caught:
            compared.of_files(folder)
        assert caught.value.where == str(folder / file)
