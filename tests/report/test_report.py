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

from trm_bench import report
from trm_bench.analysis.tests import compare
from trm_bench.errors import UserError
from trm_bench.report import evidence, tables
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
METHODS = [*synthetic.FAMILY, "focal"]
TRANSFERS = ["t1->t2", "t2->t1"]
NASTY = "<script>document.title='run'</script>"


def small(folder: Path, **changes: Any) -> Path:
    given = {
        "methods": METHODS,
        "transfers": TRANSFERS,
        "seeds": (0, 1, 2),
        "subjects": 16,
        "files": 1,
    }
    return synthetic.write(folder, **(given | changes))


def collected(folder: Path) -> evidence.Evidence:
    return evidence.collect(read_results(ProtocolFolder(folder)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one protocol, reported once; tests must not change it."""
    output = tmp_path_factory.mktemp("results")
    small(output / "shown")
    report.write_pages(output)
    return output / "shown"


def change(folder: Path, cell: int, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edits the record of a cell; returns the cell."""
    chosen = json.loads((folder / "plan.json").read_text())["cells"][cell]
    path = folder / "records" / f"{chosen['run']}.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return chosen


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
        per_seed = 100 * long.groupby(["method", "transfer", "seed"]).value.mean()
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

    def test_marks_are_those_of_the_corrected_tests(self, written: Path) -> None:
        shown = collected(written)
        tests = compare(shown.long, "dice").set_index(["transfer", "method", "versus"])
        for method, cells in tables.build(shown).rows:
            for transfer, cell in zip(TRANSFERS, cells, strict=False):
                if method == "finetune":
                    assert cell.mark == ""
                    continue
                row = tests.loc[(transfer, method, "finetune")]
                expected = "" if row.p_holm >= 0.05 else "*" if row.mean_gain > 0 else "†"
                assert (cell.p, cell.mark) == (pytest.approx(row.p_holm), expected)
        listed = pd.read_csv(written / "comparisons.csv")
        assert set(listed.metric) == {"dice", "hd95"} and len(listed) == 2 * len(tests)

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
            *("± is the standard deviation over the seeds", "bootstrap interval", "Empty masks"),
            *("Wilcoxon signed-rank", "Holm", "p &lt; 0.05"),
        ):
            assert said in caption, said

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
        body = re.sub(r"\$[^$]*\$", "", text.split("\n", 1)[1])
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
            (lambda r: r["metrics"].popitem(), "subject FeTS21_Training_016", "47 of 48 scans"),
            (
                lambda r: r["metrics"]["FeTS21_Training_001"]["core"].update(dice=float("nan")),
                "not finite",
                "47 of 48",
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
        folder = small(tmp_path / "faulty")
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
        plan = json.loads((folder / "plan.json").read_text())
        plan["cells"].append(plan["cells"][0])
        (folder / "plan.json").write_text(json.dumps(plan))
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
        plan = json.loads((folder / "plan.json").read_text())
        plan["protocol"]["description"] = f"</pre>{NASTY}"
        plan["left_out"] = [
            {"subject": NASTY, "file": "javascript:alert(1)", "reason": "\" onclick='x'"}
        ]
        (folder / "plan.json").write_text(json.dumps(plan))
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
        word = "No verdict" if name not in ("one_seed",) else "eproduced"
        assert word in page.text

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
        for name in ("gains", "subjects", "ranks", "training_loss"):
            assert {f"{name}.png", f"{name}.svg"} <= names
        assert not any(
            n.startswith(("shots", "transfer_matrix", "training_validation")) for n in names
        )
        text = (written / "report.html").read_text()
        for said in (
            "shots: no transfer",
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
        assert (matrix / "figures" / "transfer_matrix.svg").is_file()

    def test_phantom_is_marked_in_each(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "stand_in", data="phantom", methods=["finetune", "trm", "focal"])
        report.write_pages(folder)
        charts = list((folder / "figures").glob("*.svg"))
        assert len(charts) == 4 and all("phantom" in c.read_text() for c in charts)
        text = (folder / "report.html").read_text()
        assert (
            "STAND-IN DATA" in text
            and "No verdict" in text
            and "say nothing about the paper" in text
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
                r"url\(|@import|https?://(?!www\.w3\.org)", re.sub(r'"data:[^"]*"', "", page.text)
            )
        assert len(Page(written / "report.html").images) == 5

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
            const table = document.querySelector("#results ~ div table");
            const button = (i) => table.tHead.rows[0].cells[i], rows = table.tBodies[0].rows;
            const column = (i) => Array.from(rows, (r) => r.cells[i].dataset.value).join(" ");
            const broken = Array.from(document.images).filter((i) => !i.naturalWidth).length;
            const seen = {broken};
            button(1).firstChild.click(); seen.down = column(1); seen.first = button(1).ariaSort;
            button(1).firstChild.click(); seen.up = column(1); seen.second = button(1).ariaSort;
            button(4).firstChild.click(); seen.gain = column(4); seen.left = button(1).ariaSort;
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


class TestVerdict:
    @pytest.mark.parametrize(
        ("word", "gain", "subjects", "noise", "code"),
        [
            ("reproduced", 4.37, 20, 3.0, 0),
            ("direction reproduced", 1.5, 60, 3.0, 0),
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
        family = ["scratch", "finetune", "trm", "trm_prior"]
        gains = {"scratch": -3.0, "finetune": 0.0, "trm": gain, "trm_prior": 0.0}
        given = {
            "methods": family,
            "subjects": subjects,
            "gains": gains,
            "noise": noise,
            "seeds": range(5),
        }
        small(tmp_path / "p", **given)
        exit_code, text = trm_bench("verdict", tmp_path)
        assert (exit_code, text.splitlines()[0]) == (code, f"p: {word}")
        assert (
            "the interval" in text.lower() and "trm_prior" in text and "negative transfer" in text
        )

    def test_no_verdict(self, trm_bench: Run, tmp_path: Path) -> None:
        small(tmp_path / "a", data="phantom", methods=["finetune", "trm"], seeds=(0,))
        code, text = trm_bench("verdict", tmp_path)
        assert code == 1 and "a: no verdict" in text and "stand-in data" in text
        assert trm_bench("verdict", tmp_path / "nowhere")[0] == 2

    def test_compare(self, trm_bench: Run, tmp_path: Path) -> None:
        for name, data in (("one/p", "real"), ("two/p", "real"), ("three/p", "phantom")):
            small(tmp_path / name, data=data, methods=["finetune", "trm"], seeds=(0,))
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
    assert summary["verdict"]["words"] == ["direction reproduced"] and summary["problems"] == []
    inside = []
    for method, known in synthetic.known_gains().items():
        if method != "finetune":
            low, high = summary["metrics"]["dice"][method]["gain_interval"]
            inside.append(low <= known <= high)
    assert np.mean(inside) >= 0.85, "19 intervals of 95 %"
