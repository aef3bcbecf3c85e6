"""The declared comparisons: marks where the files say so, one value wherever it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import Run
from reported import METHODS, TRANSFERS, collected, set_units, small

from trm_bench import report
from trm_bench.analysis import intervals
from trm_bench.report import charts, logged, tables
from trm_bench.report.captions import BETTER, WORSE
from trm_bench.report.evidence import Evidence
from trm_bench.runs.folders import ProtocolFolder

# trm is marked over two of its family, beaten by one and not told from one
GAINS = {
    "scratch": -3.0,
    "finetune": 0.0,
    "trm": 4.0,
    "trm_prior": 3.95,
    "trm_uniform": 1.0,
    "trm_shuffled": 6.0,
    "focal": 5.0,
}
EXPECTED = {
    "finetune": BETTER,
    "trm_prior": "",
    "trm_uniform": BETTER,
    "trm_shuffled": WORSE,
}
INTERVAL = r"\[[+-]\d+\.\d+, [+-]\d+\.\d+\]"


@pytest.fixture(scope="module")
def found(marked: Path) -> Evidence:
    """What they say."""
    return collected(marked)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with five seeds, reported once; tests must not change them."""
    folder = small(tmp_path_factory.mktemp("marked") / "p", gains=GAINS, seeds=range(5))
    report.write(ProtocolFolder(folder))
    return folder


def rows_of(markdown: str, part: int) -> dict[str, list[str]]:
    """First cell to the other cells, of the first or second table of table.md."""
    table = markdown.split("\n### ")[part]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [[c.strip() for c in line.strip("|").replace(r"\|", "").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def number(cell: str) -> float:
    """The value of a Markdown cell, without emphasis, mark, interval and spread."""
    found = re.search(r"[+-]?\d+\.\d+", cell)
    assert found, cell
    return float(found[0])


def holm(p: pd.Series) -> pd.Series:
    """Holm's corrected p-values, step by step."""
    order = p.sort_values()
    steps = [min(value * (len(p) - i), 1.0) for i, value in enumerate(order)]
    return pd.Series(np.maximum.accumulate(steps), order.index)[p.index]


def files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each text that a person reads, without pictures."""
    for path in (*folder.glob("table.*"), folder / "report.html"):
        yield path, re.sub(r'"data:[^"]*"', "", path.read_text())


class TestMarks:
    def test_they_are_those_of_the_file_and_agree_with_the_interval(self, marked: Path) -> None:
        listed = pd.read_csv(marked / "comparisons.csv").query("metric == 'dice'")
        family = listed.query("role == 'family'").set_index("versus")
        assert set(family.transfer) == {"mean"} and set(family.method) == {"trm"}
        assert set(family.index) == set(EXPECTED)
        shown = rows_of((marked / "table.md").read_text(), 1)
        assert list(shown) == [f"trm over {versus}" for versus in EXPECTED]
        for versus, mark in EXPECTED.items():
            row, cells = family.loc[versus], shown[f"trm over {versus}"]
            word = "" if pd.isna(row["mark"]) else row["mark"]
            assert word == {BETTER: "better", WORSE: "worse", "": ""}[mark]
            assert cells[0].replace("\\", "").split(" ")[0] == f"{row['gain']:+.2f}{mark}"
            assert f"[{row['family_low']:+.2f}, {row['family_high']:+.2f}]" in cells[0]
            assert cells[1:] == [f"{row['p_holm']:.4f}", "5"]
            holds_zero = row["family_low"] <= 0 <= row["family_high"]
            assert holds_zero == (mark == "") == (row["p_holm"] > 0.05)
        assert not listed.query("role == 'exploratory'")["mark"].notna().any()

    def test_p_values_are_corrected_within_the_family_alone(self, marked: Path) -> None:
        listed = pd.read_csv(marked / "comparisons.csv")
        for _, rows in listed.query("role == 'family'").groupby("metric"):
            assert rows["p_holm"].to_numpy() == pytest.approx(holm(rows["p"]).to_numpy())
            assert set(rows["k"]) == {4}
        others = listed.query("role == 'exploratory'")
        assert others[["p_holm", "family_low", "k"]].isna().all(axis=None)

    def test_the_table_of_methods_has_none(self, marked: Path, found: Evidence) -> None:
        for name, cells in rows_of((marked / "table.md").read_text(), 0).items():
            plain = [cell.replace("**", "") for cell in cells]
            assert not any(BETTER in cell or WORSE in cell for cell in plain), name
        assert not any(c.mark for _, cells in tables.build(found).rows for c in cells)

    @pytest.mark.parametrize(("seeds", "marks"), [(4, False), (5, True)])
    def test_a_family_of_four_needs_five_seeds(
        self, seeds: int, marks: bool, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"transfers": TRANSFERS[:1], "metrics": ("dice",)}
        table = tables.family_table(collected(small(tmp_path / "p", seeds=range(seeds), **given)))
        assert table is not None and len(table.rows) == 4
        assert any(cells[0].mark for _, cells in table.rows) == marks
        assert all(cells[0].low is not None for _, cells in table.rows)
        assert any("they need 5" in note for note in table.notes) != marks

    @pytest.mark.parametrize(("seeds", "marks"), [(7, False), (8, True)])
    def test_a_family_of_all_methods_needs_eight(
        self, seeds: int, marks: bool, tmp_path: Path, trm_bench: Run
    ) -> None:
        given: dict[str, Any] = {"transfers": TRANSFERS[:1], "metrics": ("dice",), "gains": GAINS}
        claim = {"family": "all"}
        folder = small(tmp_path / "p", claim=claim, seeds=range(seeds), **given)
        report.write(ProtocolFolder(folder))
        shown = rows_of((folder / "table.md").read_text(), 1)
        assert list(shown) == [f"{m} over finetune" for m in METHODS if m != "finetune"]
        assert (r"\*" in shown["focal over finetune"][0]) == marks
        assert (WORSE in shown["scratch over finetune"][0]) == marks
        code, text = trm_bench("verdict", folder)
        assert code == 1 and "holds no claim to judge" in text
        assert f"Measured: trm gains {number(shown['trm over finetune'][0]):+.2f} points" in text


class TestOneValue:
    def test_every_file_has_the_same_gain_of_a_method(self, marked: Path) -> None:
        listed = pd.read_csv(marked / "comparisons.csv").query("transfer == 'mean'")
        over = listed[listed.versus == "finetune"].set_index(["metric", "method"])
        table = pd.read_csv(marked / "table.csv", index_col="method")
        shown = rows_of((marked / "table.md").read_text(), 0)
        summary = json.loads((marked / "summary.json").read_text())
        tracked = dict(logged.summarised(summary))
        for (metric, method), row in over.iterrows():
            own = summary["metrics"][metric][method]
            assert own["gain"] == pytest.approx(row["gain"])
            assert own["gain_interval"] == pytest.approx([row["low"], row["high"]])
            assert own["gain_relative_percent"] == pytest.approx(row["relative"])
            if metric == "dice":
                for end, value in (("", "gain"), ("_low", "low"), ("_high", "high")):
                    assert tracked[f"gain_points{end}/{method}"] == pytest.approx(row[value])
                assert table.loc[method, "gain [points]"] == pytest.approx(row["gain"])
                assert table.loc[method, "gain [points] low"] == pytest.approx(row["low"])
                cell = shown[method][len(TRANSFERS) + 1]
                assert cell == f"{row['gain']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        assert {m for _, m in over.index} == set(METHODS) - {"finetune"}

    def test_every_file_has_the_same_mean(self, marked: Path) -> None:
        metrics = pd.read_csv(marked / "metrics.csv")
        table = pd.read_csv(marked / "table.csv", index_col="method")
        summary = json.loads((marked / "summary.json").read_text())
        means = metrics.groupby(["metric", "method"]).value.mean()
        for (metric, method), mean in means.items():
            own = summary["metrics"][metric][method]
            assert own["mean"] == pytest.approx(mean)
            if metric == "dice":
                assert table.loc[method, "mean"] == pytest.approx(mean)
                assert own["sd_over_seeds"] == pytest.approx(table.loc[method, "mean sd"])
                assert 40 < mean < 100, "per cent"
        assert summary["units"] == {"dice": "%", "hd95": "mm"}

    def test_gaps_and_rates_are_in_points(self, marked: Path) -> None:
        metrics = pd.read_csv(marked / "metrics.csv").query("metric == 'dice'")
        means = metrics.groupby("method").value.mean()
        gaps = pd.read_csv(marked / "negative_transfer.csv")
        rows = gaps.query("metric == 'dice' and transfer == 'mean' and `class` == 'mean'")
        for row in rows.to_dict("records"):
            assert row["gap"] == pytest.approx(means["scratch"] - means[row["method"]])
        rates = pd.read_csv(marked / "voxel_rates.csv").query("transfer == 'mean'")
        tumour = rates[rates["class"] == "tumour"]
        assert tumour["positive_rate"].to_numpy() == pytest.approx(3.0, abs=0.1), "per cent"

    @pytest.mark.parametrize("unit", ["mm", "voxels"])
    def test_distances_are_in_the_unit_of_the_data(self, unit: str, tmp_path: Path) -> None:
        methods = ["scratch", "finetune", "trm"]
        given: dict[str, Any] = {"methods": methods, "claim": None, "subjects": 4, "seeds": (0, 1)}
        folder = small(tmp_path / "p", metrics=("hd95",), **given)
        set_units(folder, dict.fromkeys(TRANSFERS, unit))
        report.write_pages(folder)
        (other,) = {"mm", "voxels"} - {unit}
        # voxels are also what an audit counts
        absent = r"\bmm\b" if other == "mm" else r"\[voxels\]|gains? \S+ voxels"
        for path, text in files(folder):
            assert not re.search(absent, text), path
        for name in ("table.md", "report.html", "table.tex"):
            assert f"HD95 [{unit}]" in (folder / name).read_text()
            assert f"gain [{unit}]" in (folder / name).read_text()
        found = collected(folder)
        for name in ("gains", "subjects", "transferability"):
            drawing = charts.CHARTS[name](found)
            texts = [t.get_text() for t in drawing.figure.findobj(lambda a: hasattr(a, "get_text"))]
            said = " ".join([*texts, drawing.alt, drawing.caption])
            assert f"[{unit}]" in said and not re.search(absent, said), name
        assert json.loads((folder / "summary.json").read_text())["units"]["hd95"] == unit
        report.compare(
            [folder, small(tmp_path / "q", metrics=("dice",), **given)], tmp_path / "both"
        )
        assert f"HD95 [{unit}]" in (tmp_path / "both" / "compare.md").read_text()


class TestFewSeeds:
    def test_two_seeds_have_no_interval_anywhere(self, tmp_path: Path, trm_bench: Run) -> None:
        folder = small(tmp_path / "p", seeds=(0, 1), subjects=6)
        report.write_pages(folder)
        comparisons = pd.read_csv(folder / "comparisons.csv")
        ends = ["low", "high", "p", "p_holm", "family_low", "family_high", "mark", "relative_low"]
        assert comparisons[ends].isna().all(axis=None)
        assert comparisons[["gain", "relative", "networks_p"]].notna().any().all()
        for name in ("negative_transfer", "voxel_rates", "voxel_auroc"):
            table = pd.read_csv(folder / f"{name}.csv")
            assert len(table) and table[["low", "high"]].isna().all(axis=None), name
        assert pd.read_csv(folder / "negative_transfer.csv")["negative_transfer"].isna().all()
        assert pd.read_csv(folder / "sensitivity.csv")["smallest_gain"].isna().all()
        summary = json.loads((folder / "summary.json").read_text())
        for metric in summary["metrics"].values():
            assert all(own["gain_interval"] == [None, None] for own in metric.values())
        for path, text in files(folder):
            assert not re.search(INTERVAL, text), path
            assert "Below 3 seeds nothing is said over seeds" in text or path.suffix == ".csv"
        code, text = trm_bench("verdict", folder)
        assert code == 1 and not re.search(INTERVAL, text)
        assert "2 of the 5 seeds that a family of 4 comparisons needs" in text


class TestBest:
    def note(self, found: Evidence) -> str:
        (note,) = [n for n in tables.build(found).notes if "The largest of" in n]
        return note

    def test_it_is_corrected_for_all_that_were_looked_at(
        self, marked: Path, found: Evidence
    ) -> None:
        note = self.note(found)
        listed = pd.read_csv(marked / "comparisons.csv")
        over = listed.query("metric == 'dice' and transfer == 'mean' and versus == 'finetune'")
        top = over.sort_values("gain").iloc[-1]
        assert top["method"] == "trm_shuffled"
        pairs = [("trm_shuffled", "finetune")]
        wider = intervals.gains(found.long, pairs=pairs, level=1 - 0.05 / 5).iloc[-1]
        assert wider["low"] < top["low"] and wider["high"] > top["high"]
        assert note.startswith(f"The largest of 5 gains is trm_shuffled's, {top['gain']:+.2f};")
        assert f"[{wider['low']:+.2f}, {wider['high']:+.2f}]" in note
        transferred = over[over["method"] != "scratch"]
        clear = int((transferred["p"] <= 0.05 / 5).sum())
        assert 1 < clear < 6 and f"{clear} of the 5 intervals exclude 0" in note

    def test_none_is_clear_where_nothing_gains(self, tmp_path: Path) -> None:
        changes: dict[str, Any] = {"gains": dict.fromkeys(METHODS, 0.0), "noise": 12.0}
        folder = small(tmp_path / "p", metrics=("dice",), **changes)
        assert "none of the 5 intervals exclude" in self.note(collected(folder))
