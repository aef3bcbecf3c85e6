"""Tables, charts and pages from synthetic records: right numbers, and nothing breaks them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
from helpers import Run
from reported import METHODS, TRANSFERS, change, change_plan, collected, set_split, small
from scipy import stats

from trm_bench import report
from trm_bench.errors import UserError
from trm_bench.report import curves, evidence, forests, tables, transferability
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = "<script>document.title='run'</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one protocol, reported once; tests must not change it."""
    output = tmp_path_factory.mktemp("results")
    small(output / "shown")
    report.write_pages(output)
    return output / "shown"


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.scripts = self.handlers = 0
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(given)
        self.scripts += tag == "script"
        self.handlers += sum(name.startswith("on") for name in given)
        self.links += [v for k, v in attrs if k in ("src", "href") and v]


class TestTable:
    def test_numbers_are_those_of_pandas(self, written: Path) -> None:
        long = pd.read_csv(written / "metrics.csv").query("metric == 'dice'")
        table = pd.read_csv(written / "table.csv", index_col="method")
        per_seed = long.groupby(["method", "transfer", "seed"]).value.mean()
        for method in METHODS:
            for transfer in TRANSFERS:
                assert table.loc[method, transfer] == pytest.approx(
                    per_seed[method, transfer].mean()
                )
                assert table.loc[method, f"{transfer} sd"] == pytest.approx(
                    per_seed[method, transfer].std()
                )
            over = per_seed[method].groupby("seed").mean()
            assert table.loc[method, "mean"] == pytest.approx(over.mean())
            assert table.loc[method, "mean sd"] == pytest.approx(over.std())
            if method != "finetune":
                gain = over.mean() - per_seed["finetune"].mean()
                assert table.loc[method, "gain [points]"] == pytest.approx(gain)
                assert (
                    table.loc[method, "gain [points] low"]
                    < gain
                    < table.loc[method, "gain [points] high"]
                )
                assert table.loc[method, "gain [% rel.]"] == pytest.approx(
                    100 * gain / per_seed["finetune"].mean()
                )

    def test_scores_of_files_are_the_records_in_per_cent(self, written: Path) -> None:
        long = (
            pd.read_csv(written / "metrics.csv")
            .set_index(["transfer", "method", "seed", "subject", "class", "metric"])["value"]
            .sort_index()
        )
        cells = json.loads((written / "plan.json").read_text())["cells"]
        for cell in cells[:: len(cells) // 5]:
            record = json.loads((written / "records" / f"{cell['run']}.json").read_text())
            for subject, regions in record["metrics"].items():
                for region, scores in regions.items():
                    own = long[cell["transfer"], cell["method"], cell["seed"], subject, region]
                    assert own["dice"] == pytest.approx(100 * scores["dice"])
                    assert own["hd95"] == pytest.approx(scores["hd95"])

    def test_an_interval_is_the_generalised_one(self, written: Path) -> None:
        """From a two-way analysis of variance of the mean over transfers, by simulation."""
        long = pd.read_csv(written / "metrics.csv").query("metric == 'dice'")
        table = pd.read_csv(written / "table.csv", index_col="method")
        cells = long.groupby(["method", "subject", "seed"]).value.mean()
        gain = (cells["trm"] - cells["finetune"]).unstack()
        n, m = gain.shape
        rows, columns = gain.mean(axis=1), gain.mean()
        residual = gain.sub(rows, axis=0).sub(columns, axis=1) + gain.to_numpy().mean()
        a, b = rows.var() / n, columns.var() / m
        e = (residual**2).to_numpy().sum() / ((n - 1) * (m - 1)) / (n * m)
        draws = np.random.default_rng(0)
        of_a, of_b = ((f - 1) / draws.chisquare(f - 1, 400_000) for f in (n, m))
        deviation = np.sqrt(a * of_a + np.maximum(b * of_b - e, 0))
        low, high = (table.loc["trm", f"gain [points] {end}"] for end in ("low", "high"))
        outside = 2 * stats.norm.sf((high - low) / 2 / deviation).mean()
        assert outside == pytest.approx(0.05, abs=0.001)
        assert (low + high) / 2 == pytest.approx(gain.to_numpy().mean())

    def test_passes_are_told_as_times_those_of_finetune(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "p", subjects=4)
        for cell in range(len(METHODS) * len(TRANSFERS) * 3):
            change(folder, cell, lambda r: r.update(passes=300))
        trm = 3 * METHODS.index("trm")
        assert change(folder, trm, lambda r: r.update(passes=1200))["method"] == "trm"
        report.write(ProtocolFolder(folder))
        told = pd.read_csv(folder / "table.csv", index_col="method")["passes / finetune"]
        expected = dict.fromkeys(METHODS, 1.0) | {"trm": (5 * 300 + 1200) / 6 / 300}
        assert told.to_dict() == pytest.approx(expected)

    def test_trained_parameters_are_told(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "p", subjects=4)
        trm = 3 * METHODS.index("trm")
        assert change(folder, trm, lambda r: r.update(trained=1_234_567))["method"] == "trm"
        report.write(ProtocolFolder(folder))
        told = pd.read_csv(folder / "table.csv", index_col="method")["trained parameters"]
        assert told.dropna().to_dict() == {"trm": 1_234_567}
        assert "| 1234567 |" in (folder / "table.md").read_text()
        report.write_pages(folder)
        assert "1,234,567" in (folder / "report.html").read_text()

    def test_best_and_second_of_each_column(self, written: Path) -> None:
        for metric, lower in (("dice", False), ("hd95", True)):
            table = tables.build(collected(written), metric)
            for i in range(len(TRANSFERS) + 1):
                column = [cells[i] for _, cells in table.rows]
                order = sorted(
                    (c for c in column if c.value is not None),
                    key=lambda c: c.value,
                    reverse=not lower,
                )
                assert [c.rank for c in order[:3]] == [1, 2, 0]

    def test_the_caption_says_it_all(self, written: Path) -> None:
        caption = (written / "table.md").read_text()
        for said in (
            *("16 test subjects", "2 classes", "3 seeds", "Bold", "Split by patient", "last step"),
            *("± is the standard deviation over the seeds", "95 % interval", "Empty masks"),
            *("over subjects and seeds (initial weights and patches", "exploratory, without marks"),
            *("The largest of 5 gains", "Generalised p-value", "Holm-corrected for a family of 4"),
            *("no marks with 3 seeds, they need 5", "Design: fixed", "effects as symmetric"),
        ):
            assert said in caption, said

    @pytest.mark.parametrize(
        ("design", "says"),
        [
            ("fixed", "one split (seed 7): the result holds for this training set"),
            ("disjoint", "a training set of its own for every seed (split seed 7)"),
            ("resampled", "drawn again for each seed (split seed 7)"),
        ],
    )
    def test_the_caption_names_the_design_of_the_split(
        self, design: str, says: str, tmp_path: Path
    ) -> None:
        folder = small(tmp_path / "shown", subjects=6)
        set_split(folder, design=design, seed=7)
        found = collected(folder)
        notes = tables.caption(found, found.scores["dice"])
        assert len([note for note in notes if says in note]) == 1

    @pytest.mark.parametrize("design", ["fixed", "disjoint", "resampled"])
    def test_only_a_split_for_each_seed_may_differ_in_test_subjects(
        self, design: str, tmp_path: Path
    ) -> None:
        pair = ["finetune", "trm"]
        folder = small(tmp_path / "shown", methods=pair, metrics=("dice",), subjects=6)
        set_split(folder, design=design)
        assert not collected(folder).problems
        results = read_results(ProtocolFolder(folder))
        for cell, record in results.finished():
            if cell.seed == 1:
                fewer = dict(sorted(record.metrics.items())[1:])
                results.records[record.id] = record.model_copy(update={"metrics": fewer})
        assert bool(evidence.collect(results).problems) == (design != "resampled")

    def test_what_could_be_found_is_told_where_no_subject_is_under_all_seeds(
        self, tmp_path: Path
    ) -> None:
        given = {"methods": ["finetune", "trm"], "metrics": ("dice",), "subjects": 9}
        folder = small(tmp_path / "shown", **given)
        set_split(folder, design="resampled")
        results = read_results(ProtocolFolder(folder))
        for cell, record in results.finished():
            kept = [s for i, s in enumerate(sorted(record.metrics)) if i % 3 != cell.seed]
            fewer = {subject: record.metrics[subject] for subject in kept}
            results.records[record.id] = record.model_copy(update={"metrics": fewer})
        found = evidence.collect(results).sensitivity.set_index(["method", "transfer"])
        for transfer in ("t1->t2", "mean"):
            row = found.loc["trm", transfer]
            assert (row.n_seeds, row.n_subjects) == (3, 9) and row.smallest_gain > 0

    def test_all_formats_say_the_same(self, written: Path) -> None:
        table = tables.build(collected(written))
        numbers = [[c.number for c in cells] for _, cells in table.rows]
        markdown = [line for line in table.markdown().splitlines() if line.startswith("| ")][1:]
        latex = [line for line in table.latex().splitlines() if line.endswith(r"\\")][1:]
        assert len(markdown) == len(latex) == len(numbers)
        for row, in_markdown, in_latex in zip(numbers, markdown, latex, strict=True):
            assert in_markdown.count("|") == in_latex.count("&") + 2 == len(row) + 2
            assert all(n in in_markdown and n in in_latex for n in row if n)

    def test_latex_is_well_formed(self, written: Path, tmp_path: Path) -> None:
        text = (written / "table.tex").read_text()
        assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
        opened = re.findall(r"\\begin{(.*?)}", text)
        assert sorted(opened) == sorted(re.findall(r"\\end{(.*?)}", text))
        needs = [line for line in text.splitlines() if line.startswith("% needs")]
        assert len(needs) == len(opened) / 2 == 2, "two tables, each of them in a float"
        body = re.sub(r"\$[^$]*\$|^% needs.*|(?<={)%$", "", text, flags=re.M)
        assert not re.search(r"(?<!\\)[_%#^]", body) and body.isascii()
        if not shutil.which("pdflatex"):
            pytest.skip(
                "pdflatex is not installed: the structure was checked, the compilation was not"
            )
        packages = r"\usepackage{booktabs,graphicx}"
        (tmp_path / "t.tex").write_text(
            rf"\documentclass{{article}}{packages}\begin{{document}}{text}\end{{document}}"
        )
        subprocess.run(
            ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True
        )


class TestFaults:
    @pytest.mark.parametrize(
        ("edit", "problem", "cell_says"),
        [
            (lambda r: r.update(state="failed", reason="out of luck"), "seed 0", "2 of 3 seeds"),
            (
                lambda r: r["metrics"].popitem(),
                "seed 0",
                "2 of 3 seeds",
            ),  # a record of another split
            (
                lambda r: r["metrics"]["FeTS21_Training_001"]["core"].update(dice=float("nan")),
                "seed 0",  # no record has one
                "2 of 3 seeds",
            ),
            (
                lambda r: r["metrics"]["FeTS21_Training_001"].pop("core"),
                "FeTS21_Training_001, core",
                "47 of 48 scans",
            ),
        ],
    )
    def test_a_fault_is_shown_and_its_number_takes_no_part(
        self, tmp_path: Path, edit: Callable[[dict[str, Any]], object], problem: str, cell_says: str
    ) -> None:
        folder = small(tmp_path / "faulty", metrics=("dice",))
        at = 3 * METHODS.index("trm")  # the best method, first transfer, seed 0
        assert change(folder, at, edit)["method"] == "trm"
        report.write(ProtocolFolder(folder))
        cells = dict(tables.build(collected(folder)).rows)["trm"]
        assert cell_says in cells[0].rest and cells[0].rank == 0
        assert cells[2].value is None, "no mean over transfers"
        summary = json.loads((folder / "summary.json").read_text())
        assert any(problem in text for text in summary["problems"])
        assert summary["metrics"]["dice"]["trm"]["mean"] is None

    def test_a_cell_given_twice_stops_the_numbers(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "twice")
        change_plan(folder, lambda plan: plan["cells"].append(plan["cells"][0]))
        report.write_pages(folder)
        assert "given more than once" in (folder / "table.md").read_text()
        assert "given more than once" in (folder / "report.html").read_text()
        assert all(
            c.value is None for _, cells in tables.build(collected(folder)).rows for c in cells
        )

    def test_nothing_in_a_record_acts(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "nasty", transfers=["t1->t2"], seeds=(0,))

        def rename(record: dict[str, Any]) -> None:
            record["metrics"][NASTY] = record["metrics"].pop("FeTS21_Training_001")
            record["environment"]["platform"] = NASTY

        change(folder, 0, rename)
        change(
            folder,
            1,
            lambda r: r.update(state="failed", reason=f"{NASTY}<img src=x onerror=alert(1)>|*_$\\"),
        )
        left_out = {"subject": NASTY, "file": "javascript:alert(1)", "reason": "\" onclick='x'"}
        change_plan(folder, lambda plan: plan.update(left_out=[left_out]))
        change_plan(folder, lambda p: p["protocol"].update(description=f"</pre>{NASTY}"))
        report.write_pages(folder)
        page = Page(folder / "report.html")
        assert (page.scripts, page.handlers) == (1, 0)
        assert NASTY not in page.text and "&lt;script&gt;" in page.text
        assert not [link for link in page.links if "javascript" in link]
        assert "<script" not in (folder / "table.md").read_text()

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("no_claim", {"claim": None}),
            ("no_trm", {"methods": ["scratch", "finetune", "focal"]}),
            ("no_finetune", {"methods": ["scratch", "trm"]}),
            ("one_method", {"methods": ["trm"], "transfers": ["t1->t2"]}),
            ("one_seed", {"seeds": (3,)}),
            ("one_subject", {"subjects": 1}),
            ("one_transfer", {"transfers": ["t1->t2"], "data": "phantom"}),
        ],
    )
    def test_poor_folders_give_a_report(
        self, tmp_path: Path, name: str, changes: dict[str, Any]
    ) -> None:
        folder = small(tmp_path / name, **changes)
        report.write_pages(tmp_path)
        page = Page(folder / "report.html")
        assert page.headings[0] == 1 and (tmp_path / "index.html").is_file()
        assert "What came out" in page.text and "Verdict on the claim" not in page.text

    def test_failures_alone_give_a_report(self, tmp_path: Path) -> None:
        folder = small(
            tmp_path / "failed", methods=["finetune", "trm"], transfers=["t1->t2"], seeds=(0,)
        )
        change(
            folder, 0, lambda r: (r.update(state="failed", reason="disk full"), r.pop("metrics"))
        )
        change(
            folder,
            1,
            lambda r: (r.update(state="diverged", reason="loss is nan"), r.pop("metrics")),
        )
        report.write_pages(folder)
        text = Page(folder / "report.html").text
        assert "disk full" in text and "loss is nan" in text and "no run has finished" in text
        shutil.rmtree(folder / "records")
        report.write_pages(folder)
        assert "not run" in (folder / "report.html").read_text()


class TestCharts:
    def test_those_that_apply(self, written: Path) -> None:
        names = {p.name for p in (written / "figures").iterdir()}
        for name in ("gains", "subjects", "training_loss", "transferability"):
            assert {f"{name}.png", f"{name}.svg"} <= names
        assert not any(
            n.startswith(("shots", "gain_by_shots", "transfer_matrix", "training_val", "ranks"))
            for n in names
        )
        text = (written / "report.html").read_text()
        for said in (
            "ranks: Friedman&#39;s test needs 3 methods and 5 transfers, has 7 and 2",
            "shots: no transfer",
            "gain by shots: no transfer",
            "transfer matrix: needs 3 domains",
            "training validation: the records",
            "balance of the loss: the records",
        ):
            assert said in text

    def test_few_shot_and_matrix(self, tmp_path: Path) -> None:
        few = small(
            tmp_path / "few",
            transfers=["t1->t2@1", "t1->t2@4"],
            methods=["finetune", "trm"],
            seeds=(0,),
        )
        three = [
            f"{a}->{b}" for a in ("t1", "t2", "flair") for b in ("t1", "t2", "flair") if a != b
        ]
        matrix = small(
            tmp_path / "matrix", transfers=three, methods=["scratch", "finetune", "trm"], seeds=(0,)
        )
        report.write_pages(tmp_path)
        assert (few / "figures" / "shots.svg").is_file()
        assert (few / "figures" / "gain_by_shots.svg").is_file()
        assert "needs 3 transfers or seeds with scratch" in (few / "report.html").read_text()
        assert (matrix / "figures" / "transfer_matrix.svg").is_file()

    def test_gains_by_shots_are_those_of_the_tables(self, tmp_path: Path) -> None:
        shots = (1, 2, 16)
        names = [f"{pair}@{n}" for pair in TRANSFERS for n in reversed(shots)]
        shown = collected(
            small(tmp_path / "p", transfers=[*names, "t1->flair@4"], metrics=("dice",))
        )
        rows = shown.main.comparisons
        absent = rows.transfer.eq("t1->t2@2") & rows.method.eq("scratch")
        rows.loc[absent, ["low", "high"]] = np.nan
        axes = curves.gain_by_shots(shown).figure.axes
        assert [ax.get_title() for ax in axes] == ["t1 → t2", "t2 → t1", "t1 → flair"]
        for ax, pair in zip(axes[:2], TRANSFERS, strict=True):
            drawn = dict(zip(ax.get_legend_handles_labels()[1], ax.lines[1:], strict=True))
            assert list(drawn) == [m for m in METHODS if m != "finetune"]
            bars = dict(zip(drawn, ax.collections, strict=True))
            for method, line in drawn.items():
                rows = [shown.main.gain(method, f"{pair}@{n}") for n in shots]
                assert list(line.get_ydata()) == [row["gain"] for row in rows]
                segments = [s for s in bars[method].get_segments() if len(s)]
                ends = [segment[:, 1].tolist() for segment in segments]
                known = [[r["low"], r["high"]] for r in rows if np.isfinite(r["low"])]
                assert ends == known
            places = np.array([line.get_xdata() for line in drawn.values()])
            assert (np.diff(places, axis=0) > 0).all(), "side by side"
            assert (places[:, :-1].max(axis=0) < places[:, 1:].min(axis=0)).all()

    @pytest.mark.parametrize("shots", [(1, 2), (19, 20, 21), (5,)])
    def test_marks_of_one_number_of_shots_stay_together(self, shots: tuple[int, ...]) -> None:
        places = np.outer(curves._offsets(4, shots), shots)
        assert (np.diff(places, axis=0) > 0).all()
        assert (places[:, :-1].max(axis=0) < places[:, 1:].min(axis=0)).all()

    def test_few_shot_curves_have_no_bands(self, tmp_path: Path) -> None:
        places = ["t1->t2@1", "t1->t2@4"]
        shown = collected(small(tmp_path / "p", transfers=places, seeds=(0,)))
        (ax,) = curves.shots(shown).figure.axes
        assert not ax.collections and len(ax.lines) == len(METHODS)
        (trm,) = (line for line in ax.lines if line.get_label() == "trm")
        means = [np.mean(list(shown.main.by_subject(t, "trm").values())) for t in places]
        assert list(trm.get_xdata()) == [1, 4] and list(trm.get_ydata()) == means

    def test_marks_of_transferability_are_the_cells(self, written: Path) -> None:
        shown = collected(written)
        figure = transferability.chart(shown).figure
        cells = pd.read_csv(written / "transferability.csv")
        for ax, measure in zip(figure.axes, ("leep", "risk_mean"), strict=True):
            for marks, transfer in zip(ax.collections, TRANSFERS, strict=True):
                expected = cells[cells.transfer == transfer][[measure, "gain"]]
                assert marks.get_offsets().data == pytest.approx(expected.to_numpy())
            row = shown.predicts.set_index("measure").loc[measure]
            assert ax.get_title().endswith(f"tau {row['tau']:+.2f}"), "no interval of 2 transfers"

    def test_ranks_are_those_of_the_means(self, tmp_path: Path) -> None:
        places = [f"t1->t2@{n}" for n in range(1, 6)]
        given = {"methods": ["scratch", "finetune", "trm"], "seeds": (0,), "subjects": 4}
        folder = small(tmp_path / "p", transfers=places, metrics=("dice",), **given)
        drawing = forests.ranks(collected(folder))
        report.write(ProtocolFolder(folder))
        means = pd.read_csv(folder / "metrics.csv").groupby(["transfer", "method"]).value.mean()
        ranks = means.unstack().rank(axis=1, ascending=False).mean()
        assert all(f"{method} {rank:.2f}" in drawing.alt for method, rank in ranks.items())

    def test_many_transfers_share_a_colour(self, tmp_path: Path) -> None:
        many = [f"t1->t2@{n}" for n in range(1, 17)]
        family = ["scratch", "finetune", "trm"]
        given = {"transfers": many, "methods": family, "seeds": (0,), "subjects": 4}
        figure = transferability.chart(collected(small(tmp_path / "p", **given))).figure
        (entry,) = figure.legends[0].get_texts()
        assert entry.get_text() == "16 transfers"
        assert all("[" in ax.get_title() for ax in figure.axes)

    def test_phantom_is_marked_in_each(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "stand_in", data="phantom", methods=["finetune", "trm", "focal"])
        report.write_pages(folder)
        drawn = list((folder / "figures").glob("*.svg"))
        assert len(drawn) == 2 * 4 and all("phantom" in c.read_text() for c in drawn)
        text = (folder / "report.html").read_text()
        assert (
            text.count("STAND-IN DATA") == 1
            and "Best method" in text
            and "Verdict on the claim" not in text
            and "stand-in data (the phantom), which say nothing about the paper" in text
        )


class TestPage:
    def test_self_contained_and_accessible(self, written: Path) -> None:
        for path in (written / "report.html", written.parent / "index.html"):
            page = Page(path)
            assert page.headings[0] == 1 and page.headings.count(1) == 1
            assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
            assert all(
                (image["alt"] or "").strip() and image["src"].startswith("data:")
                for image in page.images
            )
            links = [link for link in page.links if not link.startswith(("data:", "#"))]
            assert links == (["shown/report.html"] if path.name == "index.html" else [])
            assert not re.search(
                r"url\((?!#)|@import|https?://(?!www\.w3\.org)",
                re.sub(r'"data:[^"]*"', "", page.text),
            )
            assert " style=" not in page.text, "which the page's policy refuses"
        page = Page(written / "report.html")
        drawn = len(list((written / "figures").glob("*.svg")))
        assert page.text.count("<svg ") == page.text.count('role="img"') == drawn > 8
        ids = re.findall(r'\sid="([^"]*)"', page.text)
        assert len(ids) == len(set(ids))
        assert page.text.count("What you see:") == page.text.count("How to read it:") > 6

    def test_text_stands_out_from_its_ground(self) -> None:
        """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3) on every ground, light and dark."""
        style = (Path(report.__file__).parent / "templates" / "style.css").read_text()
        themes = [
            dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part))
            for part in style.split("@media")[:2]
        ]

        def luminance(colour: str) -> float:
            channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
            linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
            return float(np.dot((0.2126, 0.7152, 0.0722), list(linear)))

        for theme in themes:
            for ground in ("back", "card", "stripe", "warn-back"):
                for text in ("text", "soft", "link", "good", "bad", "open"):
                    light, dark = sorted(
                        (luminance(theme[text]), luminance(theme[ground])), reverse=True
                    )
                    assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)

    @pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium: the page was parsed, but not opened in a browser"
    )
    def test_in_a_browser(self, written: Path, tmp_path: Path) -> None:
        probe = """<script>addEventListener("load", () => {
            const find = (selector) => Array.from(document.querySelectorAll(selector));
            const table = find("#results ~ div table")[1];
            const button = (i) => table.tHead.rows[0].cells[i], rows = table.tBodies[0].rows;
            const column = (i) => Array.from(rows, (r) => r.cells[i].dataset.value).join(" ");
            const broken = Array.from(document.images).filter((i) => !i.naturalWidth).length;
            const seen = {broken};
            button(1).firstChild.click(); seen.down = column(1); seen.first = button(1).ariaSort;
            button(1).firstChild.click(); seen.up = column(1); seen.second = button(1).ariaSort;
            button(4).firstChild.click(); seen.gain = column(4); seen.left = button(1).ariaSort;
            const there = (e) => getComputedStyle(e).display !== "none";
            const shown = () => Array.from(rows).filter(there).map((r) => r.dataset.method);
            const marks = () => find(".frame svg [data-method=trm]").filter(there).length;
            const trm = find("#choice input").find((box) => box.value === "trm");
            seen.marks = marks(); trm.click();
            seen.without = shown(); seen.unmarked = marks(); trm.click();
            seen.again = shown();
            const [transfer, method, against] = find("#compared select");
            method.value = "focal"; against.value = "scratch";
            method.dispatchEvent(new Event("change", {bubbles: true}));
            const lines = () => find("#compared tbody tr");
            seen.said = document.querySelector("#compared output").textContent;
            seen.subjects = lines().map((r) => Array.from(r.cells, (c) => c.textContent));
            const chart = find(".frame svg")[0];
            chart.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
            seen.tip = document.getElementById("tip").textContent;
            seen.titles = find(".frame svg title").length;
            const search = find("#compared input")[0];
            search.value = "_01"; search.dispatchEvent(new Event("input"));
            seen.matched = lines().filter(there).length;
            dispatchEvent(new Event("beforeprint"));
            seen.closed = find("details:not([open])").length;
            dispatchEvent(new Event("afterprint"));
            seen.open = find("details[open]").length;
            document.body.dataset.seen = JSON.stringify(seen);
        })</script></body>"""
        text = (written / "report.html").read_text(encoding="utf-8")
        unguarded = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace(
            "</body>", probe
        )
        (tmp_path / "probed.html").write_text(unguarded, encoding="utf-8")

        def browse(path: Path) -> tuple[str, str]:
            flags = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ]
            flags += [
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ]
            flags += [
                "--virtual-time-budget=5000",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom",
            ]
            command = [CHROMIUM, *flags, "--enable-logging=stderr", path.resolve().as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            return done.stdout, done.stderr

        # with its policy: nothing it needs is refused
        assert "CONSOLE" not in browse(written / "report.html")[1]
        dom, log = browse(tmp_path / "probed.html")
        assert "CONSOLE" not in log
        match = re.search(r'data-seen="(.*?)"', dom)
        assert match
        seen = json.loads(match[1].replace("&quot;", '"'))
        down, up = ([float(x) for x in seen[k].split()] for k in ("down", "up"))
        assert seen["broken"] == 0
        assert down == sorted(down, reverse=True) and up == sorted(up) and len(up) == len(METHODS)
        assert (seen["first"], seen["second"], seen["left"]) == ("descending", "ascending", None)
        assert seen["gain"].endswith(" "), "the reference has no gain and comes last"
        assert sorted(seen["again"]) == sorted(METHODS) and seen["marks"] > 0
        assert sorted({*METHODS} - {*seen["without"]}) == ["trm"] and seen["unmarked"] == 0
        assert (seen["closed"], seen["open"]) == (0, 0), "all is printed, and closed again"
        assert seen["tip"] and seen["titles"] == 0, "a value is said once"
        long = pd.read_csv(written / "metrics.csv").query("metric == 'dice'")
        means = long[long.transfer == TRANSFERS[0]].groupby(["method", "subject"]).value.mean()
        gains = means["focal"] - means["scratch"]
        for subject, *values in seen["subjects"]:
            own = means["scratch"][subject], means["focal"][subject], gains[subject]
            assert [float(value) for value in values] == pytest.approx(own, abs=0.011)
        order = [float(row[3]) for row in seen["subjects"]]
        assert len(order) == 16 and order == sorted(order)
        assert (
            f"better in {(gains > 0).sum()} and worse in {(gains < 0).sum()} of 16" in seen["said"]
        )
        assert seen["matched"] == 7, "010 to 016"


class TestVerdict:
    @pytest.mark.parametrize(
        ("word", "gain", "subjects", "noise", "code"),
        [
            ("reproduced", 4.37, 20, 3.0, 0),
            ("smaller than claimed", 3.2, 60, 3.0, 0),
            ("smaller than claimed", 1.5, 60, 3.0, 1),
            ("inconclusive", 2.2, 4, 24.0, 1),
            ("not reproduced", 0.0, 20, 3.0, 1),
            ("contradicted", -3.0, 20, 3.0, 1),
        ],
    )
    def test_five_words(
        self,
        trm_bench: Run,
        tmp_path: Path,
        word: str,
        gain: float,
        subjects: int,
        noise: float,
        code: int,
    ) -> None:
        gains = {"scratch": -3.0, "finetune": 0.0, "trm": gain, "trm_prior": 0.0, "trm_shuffled": 0}
        given = {
            "methods": [*gains],
            "subjects": subjects,
            "gains": gains,
            "noise": noise,
            "seeds": range(5),
        }
        small(tmp_path / "p", **given)
        exit_code, text = trm_bench("verdict", tmp_path)
        assert (exit_code, text.splitlines()[0]) == (code, f"p: {word}")
        for said in ("the interval", "the claim", "trm_prior", "negative transfer"):
            assert said in text.lower()
        assert ("At least half of the claim is shown" in text) == (code == 0)

    @pytest.mark.parametrize("control", ["trm_prior", "trm_shuffled"])
    def test_a_control_with_the_same_gain_takes_the_claim_down(
        self, trm_bench: Run, tmp_path: Path, control: str
    ) -> None:
        gains = dict.fromkeys(METHODS, 0.0) | {"trm": 4.37, control: 4.37}
        small(tmp_path / "p", gains=gains, noise=3.0, seeds=range(5))
        code, text = trm_bench("verdict", tmp_path)
        assert code == 1 and text.startswith("p: reproduced")
        assert f"not upheld: it is not shown to gain over {control}." in text

    def test_no_verdict(self, trm_bench: Run, tmp_path: Path) -> None:
        small(tmp_path / "a", data="phantom", methods=["finetune", "trm"], seeds=(0,))
        code, text = trm_bench("verdict", tmp_path)
        assert code == 1 and "a: no verdict" in text and "stand-in data" in text
        assert trm_bench("verdict", tmp_path / "nowhere")[0] == 2

    def test_compare(self, trm_bench: Run, tmp_path: Path) -> None:
        for name, data in (("one/p", "real"), ("two/p", "real"), ("three/p", "phantom")):
            given = {"methods": ["finetune", "trm"], "metrics": ("dice",), "subjects": 4}
            small(tmp_path / name, data=data, **given)
        code, _ = trm_bench(
            "compare", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both"
        )
        assert code == 0
        table = pd.read_csv(tmp_path / "both" / "compare.csv", index_col="method")
        assert {"one/p: mean", "two/p: mean", "one/p: gain over finetune low"} <= set(table.columns)
        assert Page(tmp_path / "both" / "compare.html").headings[0] == 1
        code, text = trm_bench(
            "compare", tmp_path / "one", tmp_path / "three", "--out", tmp_path / "mixed"
        )
        assert (
            code == 2 and "never stand in one table" in text and not (tmp_path / "mixed").exists()
        )
        with pytest.raises(UserError, match="only one"):
            report.compare([tmp_path / "one"], tmp_path)
        without_scratch = (tmp_path / "both" / "transferability.csv").read_text()
        assert without_scratch == "results,protocol,transfer,seed,leep,risk_mean,gain\n"
        assert (
            "Does transferability predict?" not in (tmp_path / "both" / "compare.html").read_text()
        )

    def test_compare_pools_transferability(self, tmp_path: Path) -> None:
        for seed, name in enumerate(("a/one", "a/two", "b/two")):
            small(tmp_path / name, methods=["scratch", "finetune", "trm"], seed=seed)
        report.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
        pooled = pd.read_csv(tmp_path / "all" / "transferability.csv")
        assert pooled.groupby(["results", "protocol"]).size().to_dict() == {
            ("one", "one"): 6,
            ("a/two", "two"): 6,
            ("b/two", "two"): 6,
        }
        text = (tmp_path / "all" / "compare.html").read_text()
        section = text[text.index("Does transferability predict?") :]
        cells = re.findall(r"<td[^>]*>(.*?)</td>", section)
        # 18 cells of 4 transfers: both results of `two` have the same ones
        assert "18" in cells and "4" in cells and "no interval: 4 transfers" in section


@pytest.mark.slow
def test_a_full_benchmark_in_memory(tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "full")
    code = (
        "import resource; from trm_bench import cli\n"
        "try: cli.main()\n"
        "finally:\n"
        " memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        " print('used', memory)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code, "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    kib = int(done.stdout.split()[-1])
    assert kib < 2 * 2**20, done.stdout[-200:]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"]["words"] == ["smaller than claimed"] and summary["problems"] == []
    inside = []
    for method, known in synthetic.known_gains().items():
        if method != "finetune":
            low, high = summary["metrics"]["dice"][method]["gain_interval"]
            inside.append(low <= known <= high)
    assert np.mean(inside) >= 0.85, "19 intervals of 95 %"
