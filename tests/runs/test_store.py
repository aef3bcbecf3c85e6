"""The results folder: what is written is read back, damage is a miss, another schema is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from trm_bench.environment import Environment
from trm_bench.errors import Damaged, UserError
from trm_bench.runs import health
from trm_bench.runs.arrays import read_checkpoint, read_source, write_checkpoint
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder, protocol_folders, slug
from trm_bench.runs.plan import Plan
from trm_bench.runs.records import Cell, Checkpoint, LeftOut, Record, StoredPlan, VoxelAudit
from trm_bench.runs.store import (
    open_audit,
    open_record,
    read_audit,
    read_model,
    read_plan,
    read_record,
    read_results,
    write_model,
    write_plan,
)
from trm_bench.seals import BLANK, write_sealed

MACHINE = Environment(
    trm_bench="0", python="3", platform="-", packages={}, device="cpu", device_name="-"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Plan:
    return helpers.plan(toy_data, tmp_path_factory.mktemp("plan"))


@pytest.fixture
def record(made: Plan) -> Record:
    tested = [member.subject for member in made.runs[0].config.subjects.test]
    return Record(
        id=made.runs[0].id,
        state="finished",
        config=made.runs[0].config,
        environment=MACHINE,
        metrics={subject: {"core": {"dice": 0.1 + 0.2}} for subject in tested},
        predictions=dict.fromkeys(tested, "0" * 64),
        manifest={"test": {"a": {"a.nii.gz": (10, "0" * 64)}}},
        curves={"loss": [(10, 1 / 3)]},
    )


@pytest.fixture
def stored(made: Plan) -> StoredPlan:
    import toy

    from trm_bench.protocol import parse

    protocol = parse(toy.protocol(Path("/data")), "test")
    cells = tuple(made.cells)
    return StoredPlan(protocol=protocol, data="real", settings="a", cells=cells)


def written(record: Record, folder: Path) -> Path:
    path = folder / f"{record.id}.json"
    write_model(path, record)
    return path


def test_a_record_is_read_back_to_the_last_bit(record: Record, tmp_path: Path) -> None:
    assert open_record(written(record, tmp_path)) == record
    assert open_record(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t[:100],
        lambda t: "",
        lambda t: "[1]",
        lambda t: "{}",
        lambda t: '{"state": "finished"}',
        lambda t: "[" * 100_000,
        lambda t: t.replace("0.30000000000000004", "0.30000000000000005"),
        lambda t: t.replace(" ", "  ", 1),
        lambda t: t + "\n",
    ],
)
def test_a_damaged_record_is_told_and_never_used(
    record: Record, tmp_path: Path, damage: Any
) -> None:
    path = written(record, tmp_path)
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.raises(Damaged) as told:
        open_record(path)
    assert told.value.where == str(path)
    assert read_record(path) is None


@pytest.mark.parametrize("position", range(0, 4000, 97))
def test_every_byte_of_a_record_counts(record: Record, tmp_path: Path, position: int) -> None:
    path = written(record, tmp_path)
    content = bytearray(path.read_bytes())
    content[-1 - position % len(content)] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged):
        open_record(path)


def test_a_record_is_that_of_its_name_and_of_its_split(record: Record, tmp_path: Path) -> None:
    path = written(record, tmp_path)
    path.rename(tmp_path / "another.json")
    with pytest.raises(Damaged, match="record of another run"):
        open_record(tmp_path / "another.json")
    fewer = dict(list(record.metrics.items())[1:])
    for change in ({"metrics": fewer}, {"predictions": {}}, {"id": "other"}):
        changed = record.model_copy(update=change)
        write_model(path, changed)
        with pytest.raises(Damaged):
            open_record(path)


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_another_schema_version_is_named_and_not_misread(
    record: Record, stored: StoredPlan, tmp_path: Path, version: Any
) -> None:
    folder = ProtocolFolder(tmp_path / "toy")
    for kind, content, path in (
        (Record, record, folder.record(record.id)),
        (StoredPlan, stored, folder.plan),
    ):
        plain = content.model_dump(mode="json") | {"schema_version": version}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain))  # versions 1 and 2 had no seals
        with pytest.raises(UserError, match=f"schema version {version}; .* reads version 4") as e:
            read_model(kind, path)
        assert str(path) in str(e.value) and "--out" in str(e.value)
    with pytest.raises(UserError, match="schema version"):
        write_plan(folder, stored)


def test_a_later_schema_with_a_seal_is_named_too(stored: StoredPlan, tmp_path: Path) -> None:
    plain = stored.model_dump(mode="json") | {"schema_version": 5, "news": 1, "sha256": BLANK}
    write_sealed(tmp_path / "plan.json", json.dumps(plain))
    with pytest.raises(UserError, match="schema version 5"):
        read_plan(ProtocolFolder(tmp_path))


def test_nan_is_refused(record: Record, tmp_path: Path) -> None:
    bad = record.model_copy(update={"validation_dice": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_model(tmp_path / "r.json", bad)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_read_back(made: Plan, tmp_path: Path) -> None:
    config = made.sources[0].config
    about = Checkpoint(id=config.id, config=config, validation_dice=0.5, environment=MACHINE)
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1, 2])}
    write_checkpoint(tmp_path / "c.safetensors", about, {**state, "a again": state["a"]})
    read, tensors = read_checkpoint(tmp_path / "c.safetensors")
    assert read == about and tensors.keys() == {"a", "a again", "b"}
    assert torch.equal(tensors["a"], state["a"]) and torch.equal(tensors["b"], state["b"])


@pytest.mark.parametrize("name", ["gone", "empty", "garbage", "truncated", "plain"])
def test_what_is_no_checkpoint_is_told(made: Plan, tmp_path: Path, name: str) -> None:
    config = made.sources[0].config
    about = Checkpoint(id=config.id, config=config, validation_dice=0.5, environment=MACHINE)
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, about, {"a": torch.zeros(3)})
    whole = path.read_bytes()
    path.unlink()
    if name == "plain":
        save_file({"a": torch.zeros(3)}, path)
    elif name != "gone":
        contents = {"empty": b"", "garbage": b"\xff" * 99, "truncated": whole[:-4]}
        path.write_bytes(contents[name])
    with pytest.raises(UserError) as told:
        read_checkpoint(path)
    assert told.value.where == str(path)


class TestPlan:
    CELL = Cell(transfer="a->b", method="other", seed=0, run="0" * 16)

    def test_cells_of_the_same_settings_are_joined(
        self, stored: StoredPlan, tmp_path: Path
    ) -> None:
        folder = ProtocolFolder(tmp_path / "toy")
        assert write_plan(folder, stored.model_copy(update={"cells": (self.CELL,)})) == (0, 0)
        assert write_plan(folder, stored) == (1, 0)
        assert set(read_plan(folder).cells) == {self.CELL, *stored.cells}
        assert write_plan(folder, stored) == (1, 0), "a cell of this command is no earlier one"
        other = stored.model_copy(update={"settings": "b"})
        assert write_plan(folder, other) == (0, 1)
        assert set(read_plan(folder).cells) == set(stored.cells)

    def test_cells_stand_by_transfer_method_and_seed(
        self, stored: StoredPlan, tmp_path: Path
    ) -> None:
        folder = ProtocolFolder(tmp_path / "toy")
        order = [("x", "m", 1), ("y", "m", 0), ("x", "n", 0), ("x", "m", 0), ("y", "n", 0)]
        cells = tuple(Cell(transfer=t, method=m, seed=s, run=f"{t}{m}{s}") for t, m, s in order)
        write_plan(folder, stored.model_copy(update={"cells": cells}))
        names = [c.run for c in read_plan(folder).cells]
        assert names == ["xm0", "xm1", "xn0", "ym0", "yn0"]

    def test_real_and_phantom_never_share_a_folder(
        self, stored: StoredPlan, tmp_path: Path
    ) -> None:
        folder = ProtocolFolder(tmp_path / "toy")
        write_plan(folder, stored)
        with pytest.raises(UserError, match="never go beside"):
            write_plan(folder, stored.model_copy(update={"data": "phantom"}))

    def test_what_is_missing_or_unfinished_is_told(
        self, made: Plan, stored: StoredPlan, record: Record, tmp_path: Path
    ) -> None:
        folder = ProtocolFolder(tmp_path / "toy")
        left_out = (LeftOut(subject="s", reason="gone"),)
        write_plan(folder, stored.model_copy(update={"left_out": left_out}))
        write_model(folder.record(record.id), record)
        second = stored.cells[1].run
        config = made.runs[1].config
        changes = {"id": second, "config": config, "state": "diverged", "reason": "nan"}
        write_model(folder.record(second), record.model_copy(update=changes))
        results = read_results(folder)
        assert [cell.run for cell, _ in results.finished()] == [record.id]
        assert [why for _, why in results.unfinished()] == ["diverged: nan", "not run"]
        assert results.plan.left_out == left_out
        path = folder.record(record.id)
        path.write_text(path.read_text().replace("finished", "failed"))
        assert "damaged" in dict(read_results(folder).unfinished())[stored.cells[0]]


def test_audits_of_other_runs_are_not_shown(
    stored: StoredPlan, record: Record, tmp_path: Path
) -> None:
    folder = ProtocolFolder(tmp_path / "toy")
    write_plan(folder, stored)
    write_model(folder.record(record.id), record)
    cell = stored.cells[0]
    same: dict[str, Any] = {"classes": ("b",), "outcomes": {}, "auroc": {}, "roc": {}, "code": ""}
    for run, shown in ((cell.run, 1), ("another", 0)):
        judged = {cell.method: run}
        audit = VoxelAudit(transfer=cell.transfer, seed=cell.seed, runs=judged, **same)
        write_model(folder.audit(cell.transfer, cell.seed), audit)
        assert len(read_results(folder).audits()) == shown


def test_an_audit_is_that_of_its_transfer_and_seed(tmp_path: Path) -> None:
    folder = ProtocolFolder(tmp_path / "toy")
    same: dict[str, Any] = {"classes": ("b",), "outcomes": {}, "auroc": {}, "roc": {}, "code": ""}
    for place in (("a->b", 0), ("a->b", 1), ("b->a", 0)):
        audit = VoxelAudit(transfer="a->b", seed=0, runs={"m": "r"}, **same)
        write_model(folder.audit(*place), audit)
    assert open_audit(folder, "a->b", 0) is not None
    for place in (("a->b", 1), ("b->a", 0)):
        with pytest.raises(Damaged, match="is the audit of a->b seed 0"):
            open_audit(folder, *place)
        assert read_audit(folder, *place) is None


def test_a_source_network_is_that_of_its_name(made: Plan, tmp_path: Path) -> None:
    config = made.sources[0].config
    about = Checkpoint(id=config.id, config=config, validation_dice=0.5, environment=MACHINE)
    results = ResultsFolder(tmp_path)
    for name in (config.id, "another"):
        write_checkpoint(results.source(name), about, {"a": torch.zeros(3)})
    assert health.of_source(results.source(config.id)).whole
    (error,) = health.of_source(results.source("another")).damaged
    assert f"is the network {config.id}" in error.what
    assert health.of_source(results.source("none")).missing == [results.source("none")]
    with pytest.raises(Damaged):
        read_source(results, "another")


def test_folders_are_found_by_themselves_and_below_others(
    stored: StoredPlan, tmp_path: Path
) -> None:
    results = ResultsFolder(tmp_path)
    for name in ("b", "a"):
        write_plan(results.protocol(name), stored)
    assert [f.path.name for f in protocol_folders(tmp_path)] == ["a", "b"]
    assert protocol_folders(tmp_path / "a") == [results.protocol("a")]
    assert results.protocol("a").results == results
    with pytest.raises(UserError, match="no results"):
        protocol_folders(tmp_path / "nowhere")


@given(st.lists(st.text("ab_-> @.", min_size=1, max_size=6), min_size=2, max_size=2, unique=True))
def test_no_two_transfers_share_a_file(names: list[str]) -> None:
    one, other = (slug(f"{name}->c") for name in names)
    assert one != other and "/" not in one + other


def test_names_of_files_can_be_read() -> None:
    assert slug("t1->t1ce@10") == "t1-to-t1ce-at-10"
