"""Fuzz targets: what is parsed raises a message for people, or gives something whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import layouts
import nibabel as nib
import numpy as np
import pytest
import toy
import yaml
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from faults.protocols import paths, value_at
from trm_bench.datasets import open_dataset
from trm_bench.errors import UserError
from trm_bench.protocol import Protocol, load_protocol
from trm_bench.runs.records import Record
from trm_bench.runs.store import read_record

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**20)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["/etc/passwd", "../..", "~nosuchuser", "x" * 5000, "²", "a\0b"])
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def changed(draw: st.DataObject, content: Any) -> Any:
    """The content with one to three of its values replaced by anything."""
    content = json.loads(json.dumps(content))
    for _ in range(draw.draw(st.integers(1, 3))):
        if every := list(paths(content)):
            path = draw.draw(st.sampled_from(every))
            value_at(content, path[:-1])[path[-1]] = draw.draw(ANYTHING)
    return content


@examples(200)
@given(draw=st.data())
def test_a_protocol_of_anything(place: Path, draw: st.DataObject) -> None:
    file = place / "p.yaml"
    content = changed(draw, toy.protocol(place))
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        assert isinstance(load_protocol(str(file)), Protocol)
    except UserError as error:
        assert str(file) in str(error)


@examples(200)
@given(
    content=st.binary(max_size=300)
    | st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace"))
)
def test_a_protocol_of_any_bytes(place: Path, content: bytes) -> None:
    file = place / "p.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.yaml"):
        load_protocol(str(file))


@pytest.fixture(scope="module")
def record(place: Path, toy_data: Path) -> dict[str, Any]:
    """A record of a run, as it is stored."""
    from trm_bench import pipeline
    from trm_bench.protocol import parse

    training = {"steps": 1, "batch": 1, "patch": [16, 16, 16]}
    both = {"source": training, "target": training}
    changes = {"training": both, "methods": ["scratch"]}
    loaded = parse(toy.protocol(toy_data, **changes), "test")
    outcome = pipeline.run(loaded, place / "out", pages=False)
    (file,) = outcome.folder.records.glob("*.json")
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return stored


@examples(300)
@given(draw=st.data())
def test_a_record_of_anything(record: dict[str, Any], draw: st.DataObject) -> None:
    try:
        found = Record.model_validate(changed(draw, record))
    except ValueError:
        return
    numbers = [v for of in found.metrics.values() for r in of.values() for v in r.values()]
    assert np.isfinite(numbers).all()
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


@examples(200)
@given(draw=st.data())
def test_a_file_of_another_record_is_no_record(
    place: Path, record: dict[str, Any], draw: st.DataObject
) -> None:
    file = place / "records" / f"{record['id']}.json"
    file.parent.mkdir(exist_ok=True)
    content = draw.draw(st.binary(max_size=200) | st.just(None))
    if content is None:
        content = json.dumps(changed(draw, record)).encode()
    file.write_bytes(content)
    assert read_record(file) is None


@pytest.mark.parametrize("name", ["decathlon", "nnunet"])
@examples(150)
@given(draw=st.data())
def test_a_dataset_json_of_anything(name: str, place: Path, draw: st.DataObject) -> None:
    root = place / name
    if not root.is_dir():
        if name == "nnunet":
            case = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
            labels_ = {"background": 0, "whole": [1, 2], "core": 2, "rim": [3]}
            layouts.nnunet(
                root, ["T1"], labels_, ["a"], regions_class_order=[1, 2, 3], dataset={"a": case}
            )
        else:
            toy.write_dataset(root, 2)
    about = root / "dataset.json"
    if not (root / "whole.json").exists():
        about.rename(root / "whole.json")
    content = changed(draw, json.loads((root / "whole.json").read_text()))
    about.write_text(json.dumps(content))
    try:
        dataset = open_dataset(name, root)
        subjects = dataset.subjects()
    except UserError as error:
        assert str(root) in str(error)
    else:
        assert all(Path(s.id).name == s.id for s in subjects)
        assert all(root in file.parents for s in subjects for file in dataset.files(s))
        for label_map in dataset.label_maps.values():
            assert {*label_map.values.values()} == {*range(len(label_map.classes))}


FIELDS = ["1", "FeTS_000", "FeTS_001", "", "x" * 200, '"', "=1", "\0", "é"]
LINES = st.lists(st.lists(st.sampled_from(FIELDS), max_size=4).map(",".join), max_size=6).map(
    "\n".join
)


@examples(150)
@given(text=LINES | LINES.map(lambda t: f"Partition_ID,Subject_ID\n{t}") | st.text(max_size=80))
def test_a_partitioning_csv_of_anything(place: Path, text: str) -> None:
    root = place / "fets"
    for name in ("FeTS_000", "FeTS_001"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for part in ("t1", "t1ce", "t2", "flair", "seg"):
            (root / name / f"{name}_{part}.nii.gz").touch()
    (root / "partitioning_1.csv").write_text(text, encoding="utf-8", errors="replace")
    try:
        subjects = open_dataset("fets2021", root).subjects()
    except UserError as error:
        assert "partitioning_1.csv" in str(error)
    else:
        assert [s.id for s in subjects] == ["FeTS_000", "FeTS_001"]


@examples(300)
@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_a_nifti_header_of_any_bytes(place: Path, changes: list[tuple[int, int]]) -> None:
    root = place / "scans"
    if not root.is_dir():
        toy.write_dataset(root, 1)
        image: Any = nib.load(root / "imagesTr" / "toy_000.nii.gz")
        nib.save(image, root / "whole.nii")
    content = bytearray((root / "whole.nii").read_bytes())
    for at, value in changes:
        content[at] = value
    (root / "imagesTr" / "toy_000.nii.gz").write_bytes(gzip.compress(bytes(content), 1))
    dataset = open_dataset("decathlon", root)
    (subject,) = dataset.subjects()
    try:
        scan = dataset.read(subject, tuple(dataset.modalities))
    except UserError as error:
        assert "toy_000" in str(error)
    else:
        assert np.isfinite(scan.image).all() and np.isfinite(scan.affine).all()
