"""Damage to a results folder is seen by `verify`, told once, and mended by the command itself."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import toy
from helpers import Run
from rich.console import Console

from trm_bench import pipeline
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.protocol import parse
from trm_bench.verification import verify

KINDS = {
    "plan": "toy/plan.json",
    "record": "toy/records/*.json",
    "source": "sources/*.safetensors",
    "volume": "prepared/decathlon/*.safetensors",
    "prediction": "toy/predictions/*/*.nii.gz",
    "slices": "toy/slices/*.safetensors",
    "audit": "toy/voxels/*.json",
}
TABLES = ("table.md", "table.csv", "metrics.csv", "voxel_rates.csv", "voxel_auroc.csv")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2 * len(content) // 3] ^= 4
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def exchanged(path: Path) -> None:
    """With another file of its kind, or with what is no file of any kind."""
    others = [p for p in sorted(path.parent.glob("*")) if p != path] or [path.parent / "x"]
    other = others[0]
    if not other.is_file():
        other.write_bytes(b"another")
    own = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(own)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def run(out: Path, data: Path) -> str:
    """Runs the toy protocol; returns what was said."""
    said = io.StringIO()
    display = Display(console=Console(file=said, width=1000))
    protocol = parse(toy.protocol(data, methods=["scratch", "finetune", "trm"]), "test")
    pipeline.run(protocol, out, jobs=1, pages=False, display=display)
    return said.getvalue()


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / "toy" / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    run(out, toy_data)
    return out


@pytest.fixture
def out(done: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(done, tmp_path / "out")
    yield tmp_path / "out"


def test_a_whole_folder_has_no_findings(done: Path) -> None:
    read, findings = verify(done)
    assert findings == [] and read == sum(p.is_file() for p in done.rglob("*"))
    assert verify(done / "toy")[1] == [], "a protocol alone, with what it shares"


# each kind, each damage; tests/faults has them all
@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *((kind, flipped) for kind in KINDS),
        *((kind, exchanged) for kind in ("record", "source", "volume", "prediction")),
        ("source", truncated),
        ("volume", truncated),
        ("record", emptied),
        ("plan", a_folder),
        ("prediction", a_folder),
    ],
)
def test_damage_is_found_told_once_and_mended(
    out: Path, toy_data: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    before = tables(out)
    path = sorted(out.glob(KINDS[kind]))[0]
    damage(path)
    state = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    damaged = {f.path for f in verify(out)[1] if f.kind == "damaged"}
    assert path in damaged
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == state, "nothing is changed"
    said = run(out, toy_data)
    assert said.count(f"{path} ") == 1 and "set aside as" in said
    assert list(path.parent.glob(f"{path.name}.damaged*"))
    assert tables(out) == before
    assert {f.kind for f in verify(out)[1]} <= {"set aside", "orphan"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "volume"])
def test_what_is_deleted_is_made_again(out: Path, toy_data: Path, kind: str) -> None:
    before, path = tables(out), sorted(out.glob(KINDS[kind]))[0]
    content = path.read_bytes()
    path.unlink()
    if kind != "audit":  # which a folder may lack, where nothing could be compared
        assert path in {f.path for f in verify(out)[1] if f.kind == "missing"}
    run(out, toy_data)
    assert path.is_file() and tables(out) == before and not verify(out)[1]
    if kind not in ("record", "source"):  # these say how long it took
        assert path.read_bytes() == content


def test_notes_are_no_faults(out: Path, trm_bench: Run) -> None:
    records = out / "toy" / "records"
    stray = out / "toy" / "predictions" / "stray"
    stray.mkdir()
    (out / "toy" / ".host-1-0a.table.md").write_text("half")
    (records / "x.json.damaged").write_text("{")
    code, said = trm_bench("verify", out, "--json")
    found = json.loads(said)
    assert code == 0 and found["faults"] == 0
    assert {f["kind"] for f in found["findings"]} == {"orphan", "leftover", "set aside"}
    (plan,) = out.glob(KINDS["plan"])
    plan.unlink()
    code, said = trm_bench("verify", out)
    assert code == 1 and "missing" in said and "orphan" in said


def test_a_report_does_without_what_is_damaged_and_says_so(out: Path, trm_bench: Run) -> None:
    path = sorted((out / "toy" / "records").glob("*.json"))[0]
    flipped(path)
    before = path.read_bytes()
    code, said = trm_bench("report", out)
    assert code == 0 and "".join(said.split()).count(f"{path.name}:isnotwhat") == 1
    assert path.read_bytes() == before, "reading changes nothing"
    assert "damaged" in (out / "toy" / "report.html").read_text()


@pytest.mark.parametrize("command", ["report", "verdict"])
def test_a_record_that_is_gone_is_told(out: Path, trm_bench: Run, command: str) -> None:
    next(iter((out / "toy" / "records").glob("*.json"))).unlink()
    assert "1 run of the plan has no record" in " ".join(trm_bench(command, out)[1].split())


def test_no_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results"):
        verify(tmp_path)


def test_a_link_out_of_the_results_is_not_followed(
    out: Path, tmp_path: Path, toy_data: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(out / "toy" / "records", elsewhere)
    (out / "toy" / "records").symlink_to(elsewhere)
    with pytest.raises(UserError, match="leads out of the folder"):
        run(out, toy_data)


def test_a_damaged_tracking_store_is_found(out: Path) -> None:
    store = out / "mlflow.db"
    with closing(sqlite3.connect(store)) as made, made:
        made.execute("create table a (b text)")
        made.executemany("insert into a values (?)", [("long enough" * 50,)] * 200)
    assert verify(out)[1] == []
    whole = store.read_bytes()
    damages = [whole[:5000], b"no database" * 99, whole.replace(b"TABLE a", b"T\x80BLE a")]
    for damage in damages:
        store.write_bytes(damage)
        assert [f.path for f in verify(out)[1] if f.is_fault] == [store]
    store.unlink()
    os.mkfifo(store)
    assert [f.path for f in verify(out)[1] if f.is_fault] == [store], "and never waits for it"
