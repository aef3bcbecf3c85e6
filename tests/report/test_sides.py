"""Reports of transfers between institutions, data sets and networks from elsewhere."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from helpers import Run
from reported import change, change_plan, collected, set_units, small

from trm_bench import networks, pipeline, report
from trm_bench.protocol import parse
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.report import (
    charts,
    figures,
    forests,
    logged,
    particulars,
    sides,
    tables,
    transferability,
)
from trm_bench.report.drawing import heading, shortened, signed
from trm_bench.report.layout import arrange
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.store import read_results
from trm_bench.seals import digest_of_file

NETWORK = {"name": "UNet", "channels": [4, 8], "strides": [2]}
CLUSTERS = {"name": "trm", "evidence": "clusters"}


def run(raw: dict[str, Any], out: Path) -> Path:
    """The folder of a protocol, all of whose runs must finish."""
    outcome = pipeline.run(parse(raw, "t"), out, jobs=1, pages=False)
    assert set(outcome.states) == {"finished"}
    return outcome.folder.path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two data sets and a network's file."""
    root = tmp_path_factory.mktemp("made")
    toy.write_dataset(root / "toys")
    toy.write_sites(root / "sites", {"Delft": 5, "Utrecht": 4}, channels=2)
    state = networks.build(NetworkConfig.model_validate(NETWORK), 1, 7, 3, seed=5).state_dict()
    torch.save(state, root / "net.pt")
    return root


@pytest.fixture(scope="module")
def across(made: Path) -> Path:
    """A report of four domains, one a network without a head, and a chain; two units."""
    sites = {"dataset": "nnunet", "root": str(made / "sites")}
    domains = {
        "toys": {"dataset": "decathlon", "root": str(made / "toys"), "labels": "whole"},
        "one": {**sites, "images": ["mr0"], "distance_unit": "voxels"},
        "two": {**sites, "images": ["mr0", "mr1"], "labels": {"ball": [1, 2]}},
        "delft": {**sites, "images": ["mr0"], "institutions": ["Delft"], "labels": "lower"},
        "brains": {"checkpoint": str(made / "net.pt"), "network": NETWORK, "channels": ["T1"]},
    }
    pairs = [["toys", "one"], ["one", "toys"], ["brains", "toys", "two"], ["brains", "delft"]]
    raw = toy.protocol(
        Path(),
        data={"labels": "all", "volume": {"crop": "none", "intensity": "zscore"}},
        domains=domains,
        transfers={"kind": "cross_dataset", "pairs": pairs},
        methods=["scratch", "finetune", CLUSTERS],
    )
    folder = run(raw, made / "across")
    report.write_pages(folder)
    return folder


@pytest.fixture(scope="module")
def between(made: Path) -> Path:
    """A report of two institutions."""
    raw = toy.protocol(
        Path(),
        data={
            "dataset": "nnunet",
            "root": str(made / "sites"),
            "labels": "all",
            "volume": {"crop": "none", "intensity": "zscore"},
        },
        transfers={"kind": "cross_institution", "pairs": "leave_one_out"},
        methods=["scratch", "finetune"],
    )
    folder = run(raw, made / "between")
    report.write_pages(folder)
    return folder


def caption(folder: Path) -> str:
    return (folder / "table.md").read_text().replace("&lt;", "<").replace(r"\*", "*")


class TestCaption:
    def test_data_sets_are_told_by_name_and_folder(self, across: Path) -> None:
        said = caption(across)
        for domain in (
            "toys is decathlon (toys), channel mri, labels whole (whole)",
            "one is nnunet (sites), channel mr0, labels all (lower, upper)",
            "two is nnunet (sites), channels mr0, mr1, labels ball (ball)",
            "delft is nnunet (sites), of Delft, channel mr0, labels lower (lower)",
        ):
            assert domain in said, domain

    def test_a_network_from_elsewhere_is_told_by_its_hash_and_tensors(
        self, across: Path, made: Path
    ) -> None:
        sha256 = digest_of_file(made / "net.pt")
        account = "6 tensors of its file loaded, 2 left out (the head of other classes: 2), 2 of"
        said = caption(across)
        assert (
            f"brains is a network from elsewhere, sha256 {sha256[:12]}…, channel T1, no head; "
            f"{account}" in said
        )
        page = (across / "report.html").read_text()
        assert sha256 in page and account in page

    def test_a_chain_is_spelled_out(self, across: Path) -> None:
        assert (
            "brains->toys->two is a chain: the network of brains, then trained on toys, then "
            "fine-tuned on two." in caption(across)
        )

    def test_what_was_loaded_is_the_records(self, across: Path) -> None:
        (note,) = (line for line in caption(across).splitlines() if line.startswith("Tensors that"))
        adapted = "6 loaded, 1 of them adapted from 1 to 2 channels by 'repeat' (model.0"
        assert re.search(rf"{re.escape(adapted)}[^;]*\(brains->toys->two\)", note)
        for cell, record in read_results(ProtocolFolder(across)).finished():
            if record.loading is not None:
                chain = cell.transfer == "brains->toys->two"
                assert (record.loading.loaded, len(record.loading.adapted)) == (6, int(chain))

    def test_which_sources_have_subjects_of_their_own(self, across: Path, between: Path) -> None:
        said = caption(across)
        assert "Sources with subjects of their own: toys, one (3 train and 1 validate)." in said
        assert "one split of each target" in said
        said = caption(between)
        assert "Between institutions of nnunet (sites), channels mr0, mr1, labels all" in said
        assert "'others' are all institutions but the target's." in said
        assert "Sources with subjects of their own: others (3 train and 1 validate)." in said

    def test_classes_are_counted_by_transfer(self, across: Path) -> None:
        assert "test subjects and 1-2 classes" in caption(across)

    def test_one_data_set_has_none_of_it(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "p", subjects=4, seeds=(0,))
        assert not sides.notes(read_results(ProtocolFolder(folder)))
        found = collected(folder)
        notes = " ".join(tables.caption(found, found.main))
        assert "one split (seed 0)" in notes and "of their own" not in notes

    def test_a_network_that_is_gone_is_no_fault(self, across: Path) -> None:
        results = read_results(ProtocolFolder(across))
        (config,) = sides.imported(results).values()
        file = results.folder.results.source(config.id)
        file.rename(file.with_suffix(".away"))
        try:
            assert "its file in sources/ is gone" in sides.account(results, config)
        finally:
            file.with_suffix(".away").rename(file)

    def test_why_there_is_no_interval(self, tmp_path: Path) -> None:
        said = "With one test subject (t1->t2; t2->t1) nothing is said over subjects"
        for subjects in (1, 2):
            found = collected(small(tmp_path / f"p{subjects}", subjects=subjects))
            notes = " ".join(tables.caption(found, found.main))
            assert (said in notes) == (subjects == 1)


class TestUnits:
    def test_a_target_has_the_unit_of_its_data_set(self, across: Path) -> None:
        cells = json.loads((across / "plan.json").read_text())["cells"]
        assert {c["transfer"] for c in cells if c["distance_unit"] == "voxels"} == {"toys->one"}

    def test_two_units_have_no_mean(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "p", subjects=6)
        set_units(folder, {"t1->t2": "mm", "t2->t1": "voxels"})
        report.write_pages(folder)
        found = collected(folder)
        table = tables.build(found, "hd95")
        assert table.title.endswith("HD95 [mm or voxels], lower is better")
        assert table.columns[:3] == ["t1->t2 [mm]", "t2->t1 [voxels]", "mean"]
        assert any("in mm in some transfers and in voxels in others" in n for n in table.notes)
        for _, cells in table.rows:
            assert all(cell.value is not None for cell in cells[:2])
            assert all(cell.value is None for cell in cells[2:5])
        for name, over in (("comparisons", "finetune"), ("negative_transfer", "")):
            rows = pd.read_csv(folder / f"{name}.csv")
            rows = rows[rows["versus"] == over] if over else rows
            places = rows.groupby("metric")["transfer"].agg(set)
            assert places["hd95"] == {"t1->t2", "t2->t1"}
            assert places["dice"] == {"t1->t2", "t2->t1", "mean"}
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["metrics"]["hd95"]["trm"]["mean"] is None
        assert summary["metrics"]["hd95"]["trm"]["gain"] is None
        assert summary["metrics"]["dice"]["trm"]["gain"] is not None

    def test_two_units_in_the_first_metric(self, tmp_path: Path, trm_bench: Run) -> None:
        folder = small(tmp_path / "p", subjects=6, metrics=("hd95",), claim=None)
        set_units(folder, {"t1->t2": "mm", "t2->t1": "voxels"})
        code, said = trm_bench("report", folder)
        assert code == 0, said
        drawing = forests.gains(collected(folder))
        titles = [ax.get_title(loc="left") for ax in drawing.figure.axes]
        assert len(titles) == 2 and "Mean over transfers" not in drawing.alt
        assert collected(folder).transferability.empty
        assert trm_bench("power", folder)[0] == 2, "there is nothing over all transfers"

    def test_two_commands_make_one_table_of_two_units(self, made: Path, tmp_path: Path) -> None:
        raw = json.loads((made / "across" / "toy" / "plan.json").read_text())["protocol"]
        for chosen in (["toys->one"], ["one->toys"]):
            pipeline.run(
                parse({**raw, "methods": ["scratch"]}, "t"),
                tmp_path,
                transfers=chosen,
                jobs=1,
                pages=False,
            )
        assert collected(tmp_path / "toy").unit("hd95") == "mm or voxels"


class TestMatrix:
    @pytest.mark.parametrize("kind", ["cross_institution", "cross_dataset"])
    def test_of_institutions_and_data_sets(self, kind: str, tmp_path: Path) -> None:
        names = ["Universitair_Medisch_Centrum_Utrecht", "Leuven", "b" * 30]
        pairs = [f"{a}->{b}" for a in names for b in names[1:] if a != b]
        given: dict[str, Any] = {"methods": ["scratch", "finetune", "trm"], "seeds": (0,)}
        folder = small(tmp_path / "p", transfers=pairs, subjects=4, **given)
        change_plan(folder, lambda plan: plan["protocol"]["transfers"].update(kind=kind))
        domain = {"dataset": "fets2021", "root": "nowhere"}
        described = {name: domain for name in names} if kind == "cross_dataset" else {}
        change_plan(folder, lambda plan: plan["protocol"].update(domains=described))
        found = collected(folder)
        figure = charts.matrix(found).figure
        arrange(figure)
        left = figure.axes[0]
        shape = len(left.get_yticks()), len(left.get_xticks())
        assert shape == (3, 2), "who is never a target has no column"
        gain = found.main.gain("scratch", f"{names[0]}->Leuven")
        (text,) = (t.get_text() for t in left.texts if t.get_position() == (0, 0))
        assert gain is not None and text.startswith(signed(-gain["gain"]))
        # of slanted names, the lines must be further apart than letters are high
        boxes = [label.get_window_extent() for label in left.get_yticklabels()]
        assert all(a.y0 > b.y1 for a, b in pairwise(boxes))
        step = np.diff(left.transData.transform([(0, 0), (1, 0)])[:, 0])[0]
        rotation = np.radians(left.get_xticklabels()[0].get_rotation())
        assert step * np.sin(rotation) > 10 * figure.dpi / 72
        assert min(box.x0 for box in boxes) >= 0

    def test_not_of_chains_and_left_out_sites(self, across: Path, between: Path) -> None:
        for folder in (across, between):
            assert "transfer matrix: only for pairs of" in (folder / "report.html").read_text()


class TestNames:
    def test_a_heading_keeps_to_its_width(self) -> None:
        assert heading("t1->t2", 2.2) == "t1 → t2"
        wide = heading("brain_extraction_net->hippocampus->anterior_and_posterior_part@5", 2.2)
        assert wide.splitlines()[0] == "brain_extraction_net" and wide.count("→") == 2
        assert max(map(len, wide.splitlines())) <= int(2.2 / 0.085)
        assert shortened("a" * 40 + "z", 11) == "aaaaa…aaaaz"

    def test_a_legend_of_long_names_stays_inside(self, tmp_path: Path) -> None:
        places = [f"brain_extraction_network->some_hospital_in_{c}" for c in "abcde"]
        given: dict[str, Any] = {"methods": ["scratch", "finetune", "trm"], "seeds": (0,)}
        found = collected(small(tmp_path / "p", transfers=places, subjects=4, **given))
        figure = transferability.chart(found).figure
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


class TestTransferability:
    def test_a_source_without_a_head_has_clusters(self, across: Path) -> None:
        page = (across / "report.html").read_text()
        assert "LEEP and risks are of clusters of the source&#39;s features" in page
        assert "P(target class | cluster), brains-&gt;delft, trm" in page
        assert "a map of clusters cannot be made again from the records" in page
        results = read_results(ProtocolFolder(across))
        assert figures.shown_of_source(results, "brains->delft", "trm") == "likeliest cluster"
        assert len(pd.read_csv(across / "transferability.csv")) == 4

    def test_other_variables_and_sources_without_a_map_are_left_out(
        self, across: Path, tmp_path: Path
    ) -> None:
        results = read_results(ProtocolFolder(across))
        for cell, record in results.finished():
            if cell.method == "trm" and cell.transfer != "one->toys":
                about = {} if cell.transfer == "brains->delft" else {"kind": "probe"}
                told = {**record.diagnostics, "evidence": about} if about else {}
                results.records[record.id] = record.model_copy(update={"diagnostics": told})
        found = report.collect(results)
        assert set(found.transferability["transfer"]) == {"toys->one", "brains->toys->two"}
        notes = " ".join(transferability.what_counts(found))
        assert "of a probe of the source's features" in notes
        assert "does not compare: one->toys (clusters of the source's features)" in notes
        assert "the source has no head and no method made a map without one: brains->delft" in notes
        with pytest.raises(charts.DoesNotApply, match=r"has 2.*no head and no method made a map"):
            transferability.chart(found)

    def test_a_class_without_a_voxel_in_the_sum_has_no_risk(self, tmp_path: Path) -> None:
        folder = small(tmp_path / "p", seeds=(0,), subjects=4, transfers=("t1->t2",), claim=None)
        methods = [cell.method for cell in read_results(ProtocolFolder(folder)).cells]
        absent = {"risk_per_class": [None, 0.75]}
        change(folder, methods.index("trm"), lambda r: r["diagnostics"].update(absent))
        rows = {row[1]: row[5] for row in particulars.of(collected(folder))["diagnostics"]}
        assert rows["trm"] == f"{tables.MISSING}, 0.75" and rows["trm_prior"] == "0.01, 0.98"

    def test_a_map_of_the_prior_foresees_nothing(self, tmp_path: Path) -> None:
        family = ["scratch", "finetune", "trm_prior"]
        folder = small(tmp_path / "p", methods=family, seeds=(0,), subjects=4, claim=None)
        assert len(collected(folder).transferability) == 2
        for cell in (2, 5):
            one = {"conditional": [[0.98], [0.02]]}
            change(folder, cell, lambda r, one=one: r["diagnostics"].update(one))
        assert collected(folder).transferability.empty


class TestProvenance:
    def test_licences_of_all_data_sets(self, across: Path) -> None:
        found = json.loads((across / "provenance.json").read_text())
        licences = {about["name"]: about["licence"] for about in found["data_sets"]}
        assert licences == {
            "decathlon (toys)": "CC-BY-SA 4.0",
            "nnunet (sites)": "That of the data",
        }
        page = (across / "report.html").read_text()
        for about in found["data_sets"]:
            assert about["citation"] and about["citation"].split(",")[0] in page

    def test_no_place_is_told(self, across: Path, made: Path) -> None:
        text = (across / "provenance.json").read_text()
        assert str(made) not in text
        (network,) = json.loads(text)["networks"].values()
        assert network["sha256"] == digest_of_file(made / "net.pt")

    def test_each_transfer_has_its_own_split(self, across: Path) -> None:
        split = json.loads((across / "provenance.json").read_text())["split"]
        assert set(split["brains->delft | seed 0"]) == {"train", "val", "test"}
        assert {i[:3] for i in split["toys->one | seed 0"]["source"]} == {"toy"}
        assert {i[:3] for i in split["one->toys | seed 0"]["source"]} <= {"Del", "Utr"}

    def test_subjects_of_one_name_in_two_data_sets(self, across: Path) -> None:
        results = read_results(ProtocolFolder(across))
        (cell, record) = next((c, r) for c, r in results.finished() if "source" in r.manifest)
        target, source = record.manifest["train"], record.manifest["source"]
        (name, files), (_, others) = next(iter(target.items())), next(iter(source.items()))
        manifest = {**record.manifest, "source": {**source, name: others}}
        results.records[record.id] = record.model_copy(update={"manifest": manifest})
        found = report.provenance(results)["files"]
        assert found[name] == files and found[f"{name} | {cell.transfer} | source"] == others

    def test_a_run_says_its_source_in_mlflow(self, across: Path) -> None:
        results = read_results(ProtocolFolder(across))
        by_cell = {(c.transfer, c.method): r for c, r in results.finished()}
        told = logged.parameters(by_cell["brains->delft", "finetune"].config)
        assert told["source.classes"] == 0 and len(told["source.sha256"]) == 64
        told = logged.parameters(by_cell["one->toys", "finetune"].config)
        assert (told["source.dataset"], told["source.labels"]) == ("nnunet", "all")
        assert "source.id" not in logged.parameters(by_cell["one->toys", "scratch"].config)


def test_commands_read_all_of_it(
    across: Path, between: Path, trm_bench: Run, tmp_path: Path
) -> None:
    for command in (
        ("report", across),
        ("verify", across.parent),
        ("compare", across, between, "--out", tmp_path),
    ):
        code, said = trm_bench(*command)
        assert code == 0, said
    assert trm_bench("verdict", across)[0] == 1, "no claim"
    code, said = trm_bench("power", across)
    assert code == 2 and "no results with 3 seeds" in said
