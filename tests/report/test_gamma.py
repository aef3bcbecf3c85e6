"""The curve of gains against gamma: who stands on it, and that it shows the gains of the tables."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reported import TRANSFERS, collected, small

from trm_bench import report
from trm_bench.analysis import gamma
from trm_bench.analysis.gamma import Place
from trm_bench.report import charts, emphasis
from trm_bench.report.drawing import DoesNotApply
from trm_bench.report.evidence import Evidence
from trm_bench.report.layout import arrange
from trm_bench.report.style import NARROW, WIDE
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results

OTHERS = ["scratch", "finetune", "trm_prior"]


def arms(kind: str, evidence: str, *gammas: float, **others: Any) -> dict[str, dict[str, Any]]:
    """Label to method, as a protocol names them."""
    more = "".join(f"-{value}" for value in others.values())
    return {
        f"{evidence}{more}{g:+g}": {"name": kind, "gamma": g, "evidence": evidence, **others}
        for g in gammas
    }


FULL = {
    **arms("trm_decomposed", "classes", 1, -1, 0),
    **arms("trm_decomposed", "probe", -1, 1),
    "oracle": {"name": "trm_oracle", "gamma": 0.5},
}


def written(folder: Path, configs: dict[str, dict[str, Any]] = FULL, **changes: Any) -> Path:
    gains = dict.fromkeys(["finetune", "trm_prior", *configs], 1.0) | {"scratch": -2.0}
    given: dict[str, Any] = {"claim": None, "metrics": ("dice",), "subjects": 6, "gains": gains}
    return small(folder, methods=[*OTHERS, *configs], configs=configs, **(given | changes))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return collected(written(tmp_path_factory.mktemp("gamma") / "p"))


class TestPlaces:
    def of(self, tmp_path: Path, configs: dict[str, dict[str, Any]]) -> dict[str, Place]:
        folder = written(tmp_path / "p", configs, transfers=["t1->t2"], seeds=(0,), subjects=2)
        return gamma.places(read_results(ProtocolFolder(folder)))

    def test_a_curve_is_of_one_evidence(self, shown: Evidence) -> None:
        assert gamma.places(shown.results) == {
            "classes+1": Place("classes", 1),
            "classes-1": Place("classes", -1),
            "classes+0": Place("classes", 0),
            "probe-1": Place("probe", -1),
            "probe+1": Place("probe", 1),
            "oracle": Place("oracle", 0.5),
            "trm_prior": Place("prior", 0),
        }

    def test_other_parameters_make_another_curve(self, tmp_path: Path) -> None:
        configs = {
            **arms("trm_decomposed", "classes", 0, 1, balance="prior"),
            **arms("trm_decomposed", "classes", 1, balance="none"),
        }
        found = self.of(tmp_path, configs)
        assert found["classes-prior+0"].curve == found["classes-prior+1"].curve
        assert found["classes-prior+0"].curve == "classes: classes-prior+0"
        assert found["classes-none+1"] == Place("classes: classes-none+1", 1)

    @pytest.mark.parametrize(
        "configs",
        [
            arms("trm_decomposed", "classes", 1),
            {
                **arms("trm_decomposed", "classes", 0, balance="prior"),
                **arms("trm_decomposed", "classes", 1, balance="none"),
            },
            arms("disagreement", "classes", 0, 1),
        ],
        ids=["one gamma", "differ in more", "gamma of another kind"],
    )
    def test_without_two_that_differ_in_gamma_alone_there_is_none(
        self, configs: dict[str, dict[str, Any]], tmp_path: Path
    ) -> None:
        assert self.of(tmp_path, configs) == {}

    def test_a_gamma_that_is_no_number_has_no_place(self, tmp_path: Path) -> None:
        bad = {"name": "trm_decomposed", "gamma": "much", "evidence": "classes"}
        found = self.of(tmp_path, arms("trm_decomposed", "classes", 0, 1) | {"bad": bad})
        assert found.keys() == {"classes+0", "classes+1", "trm_prior"}

    def test_one_that_differs_between_transfers_has_no_place(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "p", seeds=(0,), subjects=2)
        results = read_results(ProtocolFolder(folder))
        cell, record = next(x for x in results.finished() if x[0].method == "classes+1")
        record.config.training.__dict__["steps"] += 1
        assert gamma.places(results).keys() == {*FULL, "trm_prior"} - {cell.method}


class TestChart:
    def test_it_shows_the_gains_of_the_tables(self, shown: Evidence) -> None:
        axes = emphasis.chart(shown).figure.axes
        assert [ax.get_title() for ax in axes] == ["t1 → t2", "t2 → t1", "mean over transfers"]
        for ax, place in zip(axes, [*TRANSFERS, "mean"], strict=True):
            lines = {line.get_label(): line for line in ax.lines[1:]}
            assert list(lines) == ["classes", "oracle", "probe", "trm_prior: class term alone"]
            labels = ["classes-1", "classes+0", "classes+1"]
            gains = [shown.main.gain(label, place) for label in labels]
            assert list(lines["classes"].get_xdata()) == [-1, 0, 1]
            assert list(lines["classes"].get_ydata()) == [g["gain"] for g in gains if g]
            (prior,) = {*lines["trm_prior: class term alone"].get_ydata()}
            assert (shown.main.gain("trm_prior", place) or {})["gain"] == prior
            band, bar, _ = ax.collections
            corners = band.get_paths()[0].vertices.tolist()
            for x, g in zip((-1, 0, 1), gains, strict=True):
                assert g and [x, g["low"]] in corners and [x, g["high"]] in corners
            (ends,) = bar.get_segments()
            alone = shown.main.gain("oracle", place)
            assert alone and ends[:, 1].tolist() == [alone["low"], alone["high"]]

    def test_one_transfer_has_no_mean(self, tmp_path: Path) -> None:
        found = collected(written(tmp_path / "p", transfers=["t1->t2"]))
        drawing = emphasis.chart(found)
        assert [ax.get_title() for ax in drawing.figure.axes] == ["t1 → t2"]
        gain = found.main.gain("oracle", "t1->t2")
        assert gain and f"oracle {gain['gain']:+.2f} at 0.5" in drawing.alt
        assert "upper bound" in drawing.caption

    def test_without_seeds_enough_there_are_points_without_bands(self, tmp_path: Path) -> None:
        found = collected(written(tmp_path / "p", seeds=(0,)))
        ax = emphasis.chart(found).figure.axes[0]
        assert np.isfinite(ax.lines[1].get_ydata()).all()
        assert not [path for band in ax.collections for path in band.get_paths()]

    @pytest.mark.parametrize("width", [WIDE, NARROW])
    def test_nothing_covers_another(self, width: float, shown: Evidence) -> None:
        figure = emphasis.chart(shown, width).figure
        arrange(figure)
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        boxes += [x.get_window_extent() for x in (*figure.legends, *figure.texts)]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        for ax in figure.axes:
            texts = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
            assert not any(a.overlaps(b) for a, b in combinations(texts, 2))

    def test_files_of_a_report(self, tmp_path: Path) -> None:
        folder = written(tmp_path / "p")
        report.write_pages(folder)
        assert {p.name for p in (folder / "figures").glob("gamma.*")} == {
            "gamma.png",
            "gamma.svg",
            "gamma.narrow.svg",
        }
        assert "Gain against gamma" in (folder / "report.html").read_text()
        table, all_ = (pd.read_csv(folder / f"{n}.csv") for n in ("gamma", "comparisons"))
        all_ = all_[(all_["versus"] == "finetune") & all_["method"].isin([*FULL, "trm_prior"])]
        assert len(table) == len(all_) == 3 * 7
        both = table.merge(all_, on=["transfer", "method"], suffixes=("", "_there"))
        for name in ("gain", "low", "high"):
            assert np.allclose(both[name], both[f"{name}_there"])

    def test_without_a_curve_it_says_why(self, tmp_path: Path) -> None:
        found = collected(written(tmp_path / "p", {}))
        with pytest.raises(DoesNotApply, match="no two methods of trm_decomposed"):
            charts.CHARTS["gamma"](found, WIDE)
