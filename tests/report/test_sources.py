"""The indices of networks: every file has a name of its own, by which commands find it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import toy
from given import checkpoint, weights
from reported import columns, documented

from trm_bench import pipeline, report
from trm_bench.errors import UserError
from trm_bench.protocol import parse
from trm_bench.report import sources
from trm_bench.runs.folders import ResultsFolder
from trm_bench.verification import verify

CHAIN = {"kind": "cross_task", "pairs": [["whole", "lower", "lower_upper"], ["whole", "lower"]]}


@pytest.fixture(scope="module")
def done(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a chain and of a single transfer, whose target networks are kept."""
    out = tmp_path_factory.mktemp("done") / "out"
    changes = {"transfers": CHAIN, "methods": ["scratch", "finetune"], "keep": "all"}
    pipeline.run(parse(toy.protocol(toy_data, **changes), "test"), out, jobs=1, pages=False)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "out")


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    with (folder / sources.INDEX).open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_the_indices_name_what_lies_beside_them(done: Path) -> None:
    of_sources, kept = rows(done / "sources"), rows(done / "toy" / "networks")
    whole, lower = "decathlon mri whole seed 0", "decathlon mri lower after whole seed 0"
    assert set(of_sources) == {whole, lower}
    assert of_sources[whole]["transfers"] == "whole->lower->lower_upper; whole->lower"
    assert of_sources[lower]["transfers"] == "whole->lower->lower_upper"
    assert of_sources[lower]["classes"] == "background; lower"
    assert len(kept) == 4 and kept["toy whole->lower finetune seed 0"]["method"] == "finetune"
    for folder, index in ((done / "sources", of_sources), (done / "toy" / "networks", kept)):
        files = {path.name for path in folder.glob("*.safetensors")}
        assert files == {row["file"] for row in index.values()}
        assert all(row["protocols"] == "toy" and row["steps"] == "6" for row in index.values())
        assert all(0 <= float(row["validation_dice"]) <= 100 for row in index.values())
        assert columns(folder / sources.INDEX) == documented("### index.csv")
    assert verify(done)[1] == []


def test_a_network_is_found_by_name_by_id_and_as_a_file(done: Path) -> None:
    for row in rows(done / "sources").values():
        path = done / "sources" / row["file"]
        for text in (row["name"], row["id"], row["id"][:10], str(path)):
            assert sources.find(done, text) == path
    with pytest.raises(UserError, match="did you mean 'decathlon mri whole seed 0'") as caught:
        sources.find(done, "decathlon mri whole seed 1")
    assert "no network" in caught.value.what


def test_networks_of_one_name_are_told_apart(copy: Path) -> None:
    for seed_of, name in ((1, "a"), (2, "b")):
        made = checkpoint(copy / "sources" / name, weights(), code=str(seed_of))
        about = sources.open_checkpoint(made)
        made.rename(copy / "sources" / f"{about.id}.safetensors")
    report.write(ResultsFolder(copy).protocol("toy"))
    own = [n for n in rows(copy / "sources") if n.startswith("test mri ball phantom seed 0 (")]
    assert len(own) == 2 and len({sources.find(copy, name) for name in own}) == 2
    assert rows(copy / "sources")[own[0]]["protocols"] == "", "no plan names it"


def test_what_is_damaged_is_left_out_and_the_rest_stays(copy: Path) -> None:
    one, other = sorted((copy / "sources").glob("*.safetensors"))
    one.write_bytes(one.read_bytes()[:100])
    (copy / "toy" / "plan.json").write_text("{}")
    (copy / "sources" / sources.INDEX).write_text("nonsense")
    sources.write(ResultsFolder(copy))
    (row,) = rows(copy / "sources").values()
    assert row["file"] == other.name and row["protocols"] == ""
    (copy / "toy" / "plan.json").unlink()
    sources.write(ResultsFolder(copy))
    assert set(rows(copy / "sources")) == {row["name"]}
