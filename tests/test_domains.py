"""Transfers between sites, data sets and networks from elsewhere, as whole runs on toy data."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import toy
from helpers import Run

from trm_bench import networks, pipeline
from trm_bench.errors import UserError
from trm_bench.protocol import parse
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.runs.arrays import read_checkpoint
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.plan import Plan
from trm_bench.runs.records import Record
from trm_bench.runs.store import read_record, read_results
from trm_bench.seals import digest_of_file

CPU = torch.device("cpu")
SPLIT = {"source": 3, "target": {"train": 2, "val": 1, "test": "rest"}}
NETWORK = {"name": "UNet", "channels": [4, 8], "strides": [2]}
ACROSS = {"kind": "cross_dataset", "pairs": [["here", "there"]]}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine subjects of two sites, with two channels."""
    return toy.write_sites(tmp_path_factory.mktemp("sites"), {"A": 5, "B": 4}, channels=2)


def at_sites(sites: Path, **changes: Any) -> dict[str, Any]:
    """A protocol from one site to another."""
    data = {
        "dataset": "nnunet",
        "root": str(sites),
        "labels": "all",
        "volume": {"crop": "none", "intensity": "zscore"},
    }
    kind = {"kind": "cross_institution", "pairs": [["A", "B"], ["B", "A"]]}
    return toy.protocol(sites, data=data, transfers=kind, split=SPLIT) | changes


def across(here: dict[str, Any], there: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A protocol from one domain to another."""
    data = {"labels": "all", "volume": {"crop": "none", "intensity": "zscore"}}
    both = {"data": data, "domains": {"here": here, "there": there}}
    return toy.protocol(Path(), transfers=ACROSS, split=SPLIT) | both | changes


def decathlon(root: Path, **more: Any) -> dict[str, Any]:
    return {"dataset": "decathlon", "root": str(root), **more}


def nnunet(root: Path, **more: Any) -> dict[str, Any]:
    return {"dataset": "nnunet", "root": str(root), **more}


def plan(raw: dict[str, Any], out: Path) -> Plan:
    return helpers.plan(Path(), out, **raw)


def run(raw: dict[str, Any], out: Path) -> list[Record]:
    """The records of a protocol, all of which must finish."""
    outcome = pipeline.run(parse(raw, "test"), out, jobs=1, pages=False)
    assert set(outcome.states) == {"finished"}
    return [record for _, record in read_results(outcome.folder).finished()]


def of(records: list[Record], method: str) -> Record:
    return next(record for record in records if record.config.method.name == method)


class TestInstitutions:
    def test_each_side_has_its_own_patients(self, sites: Path, tmp_path: Path) -> None:
        made = plan(at_sites(sites), tmp_path)
        assert len(made.sources) == 2 and len(made.runs) == 6
        for job in made.runs:
            subjects = job.config.subjects.parts()
            (own,) = {m.subject[0] for part in subjects.values() for m in part}
            source = job.config.source_training
            if source is not None:
                other = {m.subject[0] for p in source.subjects.parts().values() for m in p}
                assert other == {"A", "B"} - {own}
                assert set(job.source_prepared) == {m.subject for m in source.subjects.train}
                assert job.config.same_task and job.config.channels is None
        names = Counter(job.config.method.name for job in made.runs)
        assert names["scratch"] == 2, "one for each target"

    def test_runs_end_to_end(self, sites: Path, tmp_path: Path) -> None:
        records = run(
            at_sites(sites, methods=["scratch", "finetune", "trm", "forkmerge"]), tmp_path
        )
        assert {r.source.id for r in records if r.source} == {
            path.stem for path in (tmp_path / "sources").glob("*.safetensors")
        }
        manifest = of(records, "finetune").manifest
        assert set(manifest) == {"train", "val", "test", "source"}

    def test_one_site_is_left_out(self, sites: Path, tmp_path: Path) -> None:
        raw = at_sites(sites, transfers={"kind": "cross_institution", "pairs": "leave_one_out"})
        assert {c.transfer for c in plan(raw, tmp_path).cells} == {"others->A", "others->B"}

    def test_too_few_at_a_site(self, sites: Path, tmp_path: Path) -> None:
        raw = at_sites(sites, split={**SPLIT, "source": 4})
        with pytest.raises(UserError, match="4 usable patients of the source"):
            plan(raw, tmp_path)

    def test_a_site_that_is_none(self, sites: Path, trm_bench: Run, tmp_path: Path) -> None:
        raw = at_sites(sites, transfers={"kind": "cross_institution", "pairs": [["A", "C"]]})
        (tmp_path / "p.json").write_text(json.dumps(raw))
        code, said = trm_bench("run", tmp_path / "p.json", "--out", tmp_path / "out")
        assert code == 2 and "has no 'C'" in said and not (tmp_path / "out/prepared").exists()


class TestDatasets:
    def test_subjects_of_two_data_sets(self, toy_data: Path, sites: Path, tmp_path: Path) -> None:
        here, there = decathlon(toy_data, labels="whole"), nnunet(sites, images=["mr0"])
        records = run(across(here, there), tmp_path)
        tuned = of(records, "trm").config
        assert (tuned.dataset, tuned.domain.classes) == (
            "nnunet",
            ("background", "lower", "upper"),
        )
        assert tuned.source_training is not None
        assert tuned.source_training.dataset == "decathlon"
        assert not tuned.same_task
        summary = json.loads((tmp_path / "toy" / "summary.json").read_text())
        assert summary["data"] == "real"

    @pytest.mark.parametrize("way", ["repeat", "mean"])
    def test_another_number_of_channels(
        self, toy_data: Path, sites: Path, tmp_path: Path, way: str
    ) -> None:
        kind = {**ACROSS, "channels": way, "same_task": True}
        raw = across(decathlon(toy_data), nnunet(sites), transfers=kind)
        records = run({**raw, "methods": ["scratch", "finetune", "trm"]}, tmp_path)
        tuned = of(records, "finetune")
        assert tuned.config.channels == way and tuned.config.same_task
        assert tuned.loading is not None and tuned.loading.adapted and not tuned.loading.skipped
        reverse = across(nnunet(sites), decathlon(toy_data), transfers=kind)
        assert plan(reverse, tmp_path).runs[1].config.channels == way
        with pytest.raises(UserError, match="trains on the source's subjects"):
            plan({**raw, "methods": ["forkmerge"]}, tmp_path)

    def test_one_patient_in_two_data_sets(self, toy_data: Path, tmp_path: Path) -> None:
        """Under another name, in another layout, recompressed."""
        there = toy.write_sites(tmp_path / "there", {"A": 5, "B": 4})
        copied = toy_data / "imagesTr/toy_003.nii.gz"
        for file in (there / "imagesTr").glob("*.nii.gz"):  # whoever is on which side
            shutil.copy(copied, file)
        with pytest.raises(UserError, match=r"leak: .* are the same content"):
            plan(across(decathlon(toy_data), nnunet(there)), tmp_path / "out")

    def test_a_copy_of_the_folder_is_the_same_patients(
        self, toy_data: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(toy_data, tmp_path / "copy")
        raw = across(decathlon(toy_data), decathlon(tmp_path / "copy"))
        with pytest.raises(UserError, match=r"leak: .* are the same content"):
            plan(raw, tmp_path / "out")

    def test_label_maps_that_the_protocol_describes(self, toy_data: Path, tmp_path: Path) -> None:
        here = decathlon(toy_data, labels={"low": [1]})
        there = decathlon(toy_data, labels={"low": [1], "high": [2]})
        records = run(across(here, there, methods=["finetune"]), tmp_path)
        config = records[0].config
        assert config.domain.regions == {"low": (1,), "high": (2,)}
        source = config.source_training
        assert source is not None and source.subjects.val == config.subjects.val, "one split"

    def test_a_label_map_of_the_same_name_is_another_task(
        self, toy_data: Path, sites: Path, tmp_path: Path
    ) -> None:
        both = {"labels": "whole"}
        raw = across(decathlon(toy_data, **both), nnunet(sites, images=["mr0"], **both))
        made = plan({**raw, "methods": ["finetune"]}, tmp_path)
        assert [job.config.same_task for job in made.runs] == [False]

    def test_classes_that_do_not_fit(self, toy_data: Path, sites: Path, tmp_path: Path) -> None:
        raw = across(decathlon(toy_data, labels="whole"), nnunet(sites, images=["mr0"]))
        with pytest.raises(UserError, match="the source has 2 classes, the target 3") as caught:
            plan({**raw, "transfers": {**ACROSS, "same_task": True}}, tmp_path)
        assert caught.value.where == "transfers.same_task"


def test_a_chain_of_sources(toy_data: Path, tmp_path: Path) -> None:
    kind = {"kind": "cross_task", "pairs": [["whole", "lower", "lower_upper"]]}
    records = run(toy.protocol(toy_data, transfers=kind), tmp_path)
    tuned = of(records, "finetune").config
    second = tuned.source_training
    assert second is not None and second.method.name == "finetune"
    first = second.source_training
    assert first is not None and (first.domain.labels, second.domain.labels) == ("whole", "lower")
    files = (tmp_path / "sources").glob("*.safetensors")
    assert {read_checkpoint(file)[0].id for file in files} == {first.id, second.id}
    assert helpers.plan(toy_data, tmp_path, transfers=kind).sources[1].source == first.id


class TestCheckpoints:
    def save(self, file: Path, classes: int = 2, network: dict[str, Any] = NETWORK) -> Path:
        config = NetworkConfig.model_validate(network)
        state = networks.build(config, 1, classes, 3, seed=5).state_dict()
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
        return file

    def protocol(self, file: Path, root: Path, **more: Any) -> dict[str, Any]:
        here = {"checkpoint": str(file), "network": NETWORK, **more}
        return across(here, decathlon(root))

    def test_its_weights_are_where_the_target_starts(self, toy_data: Path, tmp_path: Path) -> None:
        file = self.save(tmp_path / "net.pt")
        known = {"sha256": digest_of_file(file), "classes": ["background", "brain"]}
        raw = self.protocol(file, toy_data, **known)
        records = run({**raw, "methods": ["scratch", "finetune", "trm", "trm_prior"]}, tmp_path)
        record = of(records, "finetune")
        assert record.loading is not None and record.loading.loaded > 0
        assert record.source is not None and record.source.validation_dice is None
        about, state = read_checkpoint(tmp_path / "sources" / f"{record.source.id}.safetensors")
        assert set(about.account["loaded"].values()) == set(state)
        torch.testing.assert_close(
            state, {k.removeprefix("module."): v for k, v in torch.load(file)["state_dict"].items()}
        )
        assert of(records, "trm").diagnostics["leep"] < 0
        assert (tmp_path / "toy" / "metrics.csv").exists()

    def test_without_a_head(self, toy_data: Path, tmp_path: Path) -> None:
        raw = self.protocol(self.save(tmp_path / "net.pt", classes=7), toy_data)
        with pytest.raises(UserError, match=r"trm needs the source's class scores") as caught:
            plan({**raw, "methods": ["trm"]}, tmp_path)
        assert "clusters" in str(caught.value.fix)
        methods = ["finetune", {"name": "trm", "evidence": "probe"}]
        records = run({**raw, "methods": methods}, tmp_path)
        assert of(records, "trm").diagnostics["evidence"]
        loading = of(records, "finetune").loading
        assert loading is not None and loading.skipped, "the head keeps its initial values"

    def test_the_classes_of_the_target_keep_the_head(self, toy_data: Path, tmp_path: Path) -> None:
        file = self.save(tmp_path / "net.pt", classes=3)
        classes = ["background", "lower", "upper"]
        made = plan(self.protocol(file, toy_data, classes=classes), tmp_path)
        assert [job.config.same_task for job in made.runs] == [False, True, True]

    def test_part_of_a_network(self, toy_data: Path, tmp_path: Path) -> None:
        file = tmp_path / "part.pt"
        whole = torch.load(self.save(tmp_path / "net.pt"))["state_dict"]
        some = {k: v for k, v in whole.items() if "model.0" in k}
        torch.save(some, file)
        raw = self.protocol(file, toy_data)
        with pytest.raises(UserError, match="checkpoint and network do not fit") as caught:
            plan(raw, tmp_path)
        assert caught.value.where == "domains.here.checkpoint"
        raw["domains"]["here"]["partial"] = True
        (record,) = run({**raw, "methods": ["finetune"]}, tmp_path)
        initial = networks.build(NetworkConfig.model_validate(NETWORK), 1, 3, 3, seed=0)
        assert record.loading is not None and record.loading.loaded == len(some)
        assert record.loading.loaded + len(record.loading.skipped) == len(initial.state_dict())

    def test_its_rules_are_part_of_its_name(self, toy_data: Path, tmp_path: Path) -> None:
        file = self.save(tmp_path / "net.pt")
        rules = ([], [["^model", "net"], ["^net", "model"]])
        names = set()
        for rename in rules:
            raw = self.protocol(file, toy_data, rename=rename)
            names |= {job.source for job in plan({**raw, "methods": ["finetune"]}, tmp_path).runs}
        assert len(names) == 2

    def test_more_channels_than_it_saw(self, sites: Path, tmp_path: Path) -> None:
        file = self.save(tmp_path / "net.pt")
        raw = across({"checkpoint": str(file), "network": NETWORK}, nnunet(sites))
        (record,) = run({**raw, "methods": ["finetune"]}, tmp_path)
        assert record.loading is not None and record.loading.adapted

    def test_what_is_wrong_with_it_is_told_before_anything_trains(
        self, toy_data: Path, tmp_path: Path
    ) -> None:
        good = self.save(tmp_path / "net.pt")
        evil = tmp_path / "evil.pt"
        evil.write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
        other = self.save(tmp_path / "other.pt", network={**NETWORK, "channels": [8, 16]})
        cases: list[tuple[Path, dict[str, Any], str]] = [
            (good, {"sha256": "0" * 64}, "is another file"),
            (other, {}, "checkpoint and network do not fit"),
            (evil, {}, "cannot be used as a checkpoint"),
            (tmp_path / "none.pt", {}, "there is no such file"),
            (good, {"classes": ["background", "a", "b"]}, "of the head is of shape"),
            (good, {"channels": ["a", "b"]}, "checkpoint and network do not fit"),
            (good, {"network": {**NETWORK, "channels": [8, 16]}}, "another network than the"),
            (good, {"rename": [["model", "net"]]}, "checkpoint and network do not fit"),
        ]
        for file, more, message in cases:
            with pytest.raises(UserError, match=message):
                plan(self.protocol(file, toy_data, **more), tmp_path / "out")
        assert not (tmp_path / "executed").exists()

    def test_a_damaged_import_is_made_again(self, toy_data: Path, tmp_path: Path) -> None:
        raw = self.protocol(self.save(tmp_path / "net.pt"), toy_data)
        (job,) = plan({**raw, "methods": ["finetune"]}, tmp_path / "out").runs
        file = job.folder.results.source(job.source)
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        (record,) = run({**raw, "methods": ["finetune"]}, tmp_path / "out")
        assert file.read_bytes() == whole and record.source is not None


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_verify_knows_all_of_it(
    toy_data: Path, sites: Path, tmp_path: Path, trm_bench: Run
) -> None:
    file = TestCheckpoints().save(tmp_path / "net.pt")
    elsewhere = {"checkpoint": str(file), "network": NETWORK}
    raw = across(decathlon(toy_data), nnunet(sites, images=["mr0"]), methods=["finetune"])
    raw["domains"]["elsewhere"] = elsewhere
    raw["transfers"] = {
        "kind": "cross_dataset",
        "pairs": [["here", "there"], ["elsewhere", "there"], ["elsewhere", "here", "there"]],
    }
    records = run(raw, tmp_path / "out")
    assert len(records) == 3
    code, said = trm_bench("verify", tmp_path / "out")
    assert code == 0, said
    folder = ProtocolFolder(tmp_path / "out" / "toy")
    again = run(raw, tmp_path / "out")
    assert [r.started for r in again] == [r.started for r in records], "nothing was done twice"
    assert read_record(folder.record(records[0].id)) == records[0]


def test_a_damaged_import_is_told_by_the_report(
    toy_data: Path, tmp_path: Path, trm_bench: Run
) -> None:
    """Whose table says what became of its tensors."""
    checkpoints = TestCheckpoints()
    raw = checkpoints.protocol(checkpoints.save(tmp_path / "net.pt"), toy_data)
    (record,) = run({**raw, "methods": ["finetune"]}, tmp_path / "out")
    assert record.source is not None
    file = tmp_path / "out/sources" / f"{record.source.id}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, said = trm_bench("report", tmp_path / "out")
    assert code == 0 and "warning" in said and file.name in said
