"""The command line as a person meets it.

Exit codes, messages without tracebacks, files where they should be.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import toy
from helpers import Run

from trm_bench import environment, estimates, methods
from trm_bench.bench import steps
from trm_bench.display import Display
from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol import bundled
from trm_bench.protocol.schema import TrainingConfig


@pytest.fixture
def file(tmp_path: Path, toy_data: Path) -> Path:
    return toy.write_protocol(tmp_path / "toy.yaml", toy_data)


def test_run_report_and_resume(trm_bench: Run, file: Path, tmp_path: Path) -> None:
    code, text = trm_bench(
        "run", file, "--out", tmp_path / "out", "--jobs", 1, "--methods", "finetune,trm"
    )
    assert code == 0
    folder = tmp_path / "out" / "toy"
    for said in (
        " finetune ",
        " trm ",
        str(folder / "records"),
        "2 runs finished",
    ):
        assert said in text
    assert "mlflow" not in text.lower(), "the toy protocol tracks nothing"
    assert (
        "<h1>toy</h1>" in (folder / "report.html").read_text()
        and f"{folder / 'report.html'}" in text
    )
    table = (folder / "table.md").read_text()
    (folder / "table.md").unlink()
    code, text = trm_bench("report", tmp_path / "out")
    assert code == 0 and (folder / "table.md").read_text() == table
    code, text = trm_bench("run", file, "--out", tmp_path / "out", "--methods", "finetune,trm")
    assert code == 0 and "nothing to do: all runs are finished" in text


def test_dry_run_trains_nothing(trm_bench: Run, file: Path, tmp_path: Path) -> None:
    code, text = trm_bench("run", file, "--out", tmp_path / "out", "--dry-run", "--seeds", "0,1")
    assert code == 0
    assert text.count("to do") == 2 + 6
    assert not (tmp_path / "out" / "toy" / "records").exists()


def test_check(trm_bench: Run, file: Path, tmp_path: Path) -> None:
    code, text = trm_bench("check", file, "--out", tmp_path / "out")
    assert code == 0
    for said in (
        "schema",
        "methods",
        "9 subjects",
        "train 2, val 1, test 3",
        "1 source network and 3 runs, 0 of them done",
        "at a time, of",
        "steps timed at",
        "of prepared volumes",
        "1 seed: nothing is said over seeds",
    ):
        assert said in text
    assert not (tmp_path / "out" / "sources").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.yaml"], "no such protocol"),
        (["run", "FILE", "--set", "training.target.stepz=1"], "did you mean 'steps'"),
        (["run", "FILE", "--methods", "trmm"], "did you mean 'trm'"),
        (["run", "FILE", "--set", "methods.2.bass=3"], "did you mean 'base'"),
        (
            ["run", "FILE", "--set", "methods.2.base=-1"],
            "base: Input should be greater than or equal to 0.001",
        ),
        (["run", "FILE", "--transfers", "lower->whole"], "no transfer 'lower->whole'"),
        (["run", "FILE", "--device", "tpu"], "'tpu' is not a device"),
        (["run", "FILE", "--device", "cuda:99"], "no cuda:99"),
        (["run", "FILE", "--phantom"], "no phantom"),
        (["run", "FILE", "--set", "data.root=/nowhere"], "/nowhere"),
        (["run", "FILE", "--set", "data.dataset=decathlo"], "did you mean 'decathlon'"),
        (["run", "FILE", "--set", "split.target.train=50"], "do not suffice"),
        (["run", "FILE", "--set", "network.name=UNeet"], "did you mean"),
        (["check", "FILE", "--set", "network.channel=[4]"], "did you mean 'channels'"),
        (["check", "FILE", "--set", "training.target.patch=[7,7,7]"], "does not take a patch"),
        (["report", "/nowhere"], "no results"),
        (["methods", "nope"], "no method 'nope'"),
        (["data", "phantom", "--layout", "brats"], "brats"),
        (["run", "FILE", "--out", "/proc/nowhere"], "cannot write here"),
        (["check", "FILE", "--out", "/proc/nowhere"], "/proc/nowhere: cannot be written"),
        (["data", "phantom", "--out", "/proc/nowhere"], "/proc/nowhere: cannot be written"),
        (["data", "phantom", "--spacing", "nan"], "nan mm"),
        (["data", "phantom", "--subjects", "1" + "0" * 30], "--subjects"),
        (["data", "check", "FILE", "--set", "data.root=~nosuchuser/x"], "no such user"),
        (["bench", "--batch", "1" + "0" * 30], "--batch"),
        (["bench", "--patch", "\u00b2,16"], "--patch"),
        (["bench", "--patch", "9" * 5000], "--patch"),
        (["bench", "--patch", "4096,4096,4096"], "voxels a step"),
        (["bench", "--patch", "4096,4096", "--batch", "64"], "memory does not suffice"),
        (["bench", "--methods", "trm,trm"], "'trm' is named twice"),
        (["bench", "--patch", "15,16"], "divisible by 8"),
        (["bench", "--sections", "step"], "did you mean 'steps'"),
        (["bench", "--json", "/"], "is a folder"),
        (["bench", "--json", "/proc/nowhere/x.json"], "cannot be written"),
        (["run", "FILE", "--seeds", "0,00"], "--seeds"),
        (["run", "FILE", "--seeds", "\u00b2"], "--seeds"),
        (["run", "FILE", "--methods", "trm,trm"], "'trm' is named twice"),
        (["run", "FILE", "--methods", ","], "names nothing"),
        (["run", "FILE", "--transfers", "a,a"], "'a' is named twice"),
        (["run", "/dev/zero"], "not a regular file"),
        (["run", "x" * 5000], "no such protocol"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    trm_bench: Run, file: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    filled = [str(file) if a == "FILE" else a for a in arguments]
    if filled[0] in ("run", "check") and "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    code, text = trm_bench(*filled)
    assert code == 2, text
    assert said in text and "Traceback" not in text
    assert not list(tmp_path.rglob("records/*.json"))


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_too(trm_bench: Run, place: str) -> None:
    given = ["run", "nowhere.yaml"]
    code, text = trm_bench(*(["--debug", *given] if place == "before" else [*given, "--debug"]))
    assert code == 2 and "Traceback" in text and "error: nowhere.yaml: no such protocol" in text


def test_what_follows_two_dashes_is_no_option(trm_bench: Run) -> None:
    code, text = trm_bench("report", "--", "--debug")
    assert code == 2 and "--debug: no results" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyError("x\ny" * 999), 3, "error: unexpected KeyError: 'x"),
        (RecursionError("too deep"), 3, "error: unexpected RecursionError: too deep"),
        (MemoryError(), 3, "error: unexpected MemoryError; this is a fault of trm-bench"),
        (EOFError("cut off"), 3, "error: unexpected EOFError: cut off"),
        (OSError(28, "No space left on device", "/x/y"), 2, "error: /x/y: No space left"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_exceptions_are_one_message(
    trm_bench: Run, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: int, said: str
) -> None:
    def broken(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr("trm_bench.report.verdict", broken)
    found, text = trm_bench("verdict", "anywhere")
    assert found == code and text.startswith(said) and "Traceback" not in text
    assert bool(text) == bool(said) and text.count("\n") <= 2 and len(text) < 1000
    if code == 3:
        assert "this is a fault of trm-bench" in text and "--debug" in text
        code, text = trm_bench("verdict", "anywhere", "--debug")
        assert code == 3 and "in broken" in text


def test_names_of_any_bytes_are_printed() -> None:
    name = b"/nowhere/\xff<[red]"
    done = subprocess.run(
        [sys.executable, "-m", "trm_bench", "data", "phantom", "--layout", name],
        capture_output=True,
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 2 and rb"/nowhere/\udcff<[red]" in done.stderr


def test_a_full_disk_below_standard_output_is_named() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trm_bench", "protocols"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard output: No space left on device\n")


def test_a_closed_pipe_is_no_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "trm_bench", "--help"], stdout=closed, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_failed_run_gives_exit_code_1(
    trm_bench: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: methods.Method, run: methods.Context) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(REGISTRY.get("topk"), "prepare", broken)
    code, text = trm_bench("run", file, "--out", tmp_path / "out", "--jobs", 1, "--methods", "topk")
    assert code == 1 and "1 run failed" in text and "Traceback" not in text
    (record,) = (tmp_path / "out" / "toy" / "records").glob("*.json")
    for said in (
        "failed: whole->lower_upper topk seed 0: RuntimeError: out of luck",
        f"record: {record}",
        f"trm-bench show {record.stem} --results {tmp_path / 'out'}",
    ):
        assert said in text
    code, shown = trm_bench("show", record.stem[:12], "--results", tmp_path / "out")
    assert code == 0 and "failed" in shown
    assert "Traceback" in shown and "in broken" in shown and "RuntimeError: out of luck" in shown
    again = ("run", file, "--out", tmp_path / "out", "--jobs", 1, "--methods", "topk", "--debug")
    code, text = trm_bench(*again)
    assert code == 1 and "Traceback" in text and "in broken" in text


def test_lists(trm_bench: Run) -> None:
    code, text = trm_bench("methods")
    assert code == 0 and all(f"  {name} " in text for name in REGISTRY.names())
    assert max(map(len, text.splitlines())) <= 80 and "arXiv:1708.02002" in text
    code, text = trm_bench("methods", "trm")
    assert (
        code == 0
        and "denominator" in text
        and "2502.02340" in text
        and "1.5 .. 100.0 (log)" in text
    )
    code, text = trm_bench("protocols")
    assert code == 0 and all(name in text for name in bundled())
    code, text = trm_bench("--version")
    assert code == 0 and text.strip()


def test_doctor(trm_bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRM_DATA", str(tmp_path))
    (tmp_path / "Task04_Hippocampus").mkdir()
    here = environment.package_version
    monkeypatch.setattr(
        environment, "package_version", lambda n: here(n) if n != "SimpleITK" else ""
    )
    code, text = trm_bench("doctor")
    assert code == 0, "what is optional is no fault"
    for said in ("torch", "memory", "optuna-dashboard", "hippocampus_cross_task"):
        assert said in text
    assert "pip install 'trm-bench[sitk]'" in text and "kaggle_3m" not in text
    monkeypatch.setattr(environment, "package_version", lambda n: here(n) if n != "monai" else "")
    code, text = trm_bench("doctor")
    assert code == 1 and "missing" in text


@pytest.mark.parametrize("command", ["run", "run --dry-run", "check", "sweep"])
@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (("--transfers", "t1->flai"), "did you mean 't1->flair'"),
        (("--transfers", "t1->flair,t1->flair"), "named twice"),
        (("--methods", "finetun"), "did you mean 'finetune"),
        (("--seeds", "-1"), "whole numbers"),
        (("--set", "methods.2.bass=3"), "did you mean 'base'"),
        (("--set", "transfers.pairs=[[t1, flairr]]"), "did you mean 'flair'"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_typing_error_is_told_before_any_data_are_made(
    trm_bench: Run, tmp_path: Path, command: str, choice: tuple[str, str], said: str
) -> None:
    out = tmp_path / "out"
    code, text = trm_bench(
        *command.split(), "fets_cross_modality", "--phantom", "--out", out, *choice
    )
    assert code == 2 and said in text, text
    assert not out.exists()


def test_a_transfer_that_only_the_data_know_is_refused_before_they_are_prepared(
    trm_bench: Run, tmp_path: Path, toy_data: Path
) -> None:
    file = toy.write_protocol(tmp_path / "p.yaml", toy_data, transfers={"kind": "cross_task"})
    given = ("check", file, "--out", tmp_path / "out", "--transfers", "whole->lowerupper")
    code, text = trm_bench(*given)
    assert code == 2 and "did you mean 'whole->lower_upper'" in text
    assert not list(tmp_path.rglob("prepared"))


def test_check_warns_where_memory_or_disk_do_not_suffice(
    trm_bench: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", tmp_path / "out", "--device", "cpu")
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(estimates, "memory_of", lambda device: 2**30)
    code, text = trm_bench("check", file, *out, "--jobs", 1)
    lines = {line.split()[1]: line for line in text.splitlines() if line[:2] in ("ok", "wa")}
    assert code == 0 and lines["memory"].startswith("ok") and lines["disk"].startswith("warn")
    code, text = trm_bench("check", file, *out, "--jobs", 4)
    lines = {line.split()[1]: line for line in text.splitlines() if line[:2] in ("ok", "wa")}
    assert lines["memory"].startswith("warn") and "lower --jobs" in lines["memory"]
    monkeypatch.setattr(estimates, "memory_of", lambda device: 2**10)
    code, text = trm_bench("check", file, *out)
    assert code == 2 and "memory does not suffice" in text


def test_data_check_reports_every_bad_subject(trm_bench: Run, tmp_path: Path) -> None:
    data = toy.write_dataset(tmp_path / "data")
    for name in ("toy_001", "toy_003"):
        image = data / "imagesTr" / f"{name}.nii.gz"
        image.write_bytes(image.read_bytes()[:100])
    code, text = trm_bench("data", "check", toy.write_protocol(tmp_path / "toy.yaml", data))
    assert code == 2 and "toy_001.nii.gz" in text and "toy_003.nii.gz" in text
    assert "7 subjects can be used, 2 cannot" in text


def test_data_phantom(trm_bench: Run, tmp_path: Path) -> None:
    code, text = trm_bench(
        "data", "phantom", "--subjects", 3, "--spacing", 6, "--out", tmp_path / "p"
    )
    assert code == 0 and "data.root=" in text
    assert len(list(tmp_path.rglob("*_flair.nii.gz"))) == 3


def test_risk_map_lies_in_the_image_space(
    trm_bench: Run, file: Path, tmp_path: Path, toy_data: Path
) -> None:
    trm_bench("run", file, "--out", tmp_path / "out", "--jobs", 1, "--methods", "finetune")
    (checkpoint,) = (tmp_path / "out" / "sources").glob("*.safetensors")
    original = nib.load(toy_data / "imagesTr" / "toy_000.nii.gz")
    label = nib.load(toy_data / "labelsTr" / "toy_000.nii.gz")
    maps = []
    # the same subject stored along other axes must give the same map, along those axes
    for name, affine, turn in (
        ("ras", np.eye(4), lambda a: a),
        ("lps", np.diag([-1.0, -1.0, 1.0, 1.0]), lambda a: a[::-1, ::-1]),
    ):
        paths = []
        for kind, source in (("image", original), ("label", label)):
            array = np.ascontiguousarray(turn(np.asarray(source.dataobj)))
            paths.append(tmp_path / f"{name}_{kind}.nii.gz")
            nib.save(nib.Nifti1Image(array, affine), paths[-1])
        out = tmp_path / f"{name}_map.nii.gz"
        code, text = trm_bench(
            "risk-map",
            "--checkpoint",
            checkpoint,
            "--image",
            paths[0],
            "--label",
            paths[1],
            "--out",
            out,
            "--device",
            "cpu",
        )
        assert code == 0 and "LEEP" in text
        found = nib.load(out)
        np.testing.assert_allclose(found.affine, affine)
        assert found.shape == original.shape
        maps.append(turn(np.asarray(found.dataobj)))
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-5)
    assert maps[0].min() >= 0 and maps[0].std() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--checkpoint": "LABEL"}, "not a checkpoint"),
        ({"--image": "/nowhere.nii"}, "is missing"),
        ({"--method": "finetune"}, "no risk map of its own"),
        ({"--out": "map.png"}, "NIfTI"),
        ({"--label": "SMALL"}, "the label has shape (4, 4, 4)"),
    ],
)
def test_risk_map_mistakes(
    trm_bench: Run, file: Path, tmp_path: Path, toy_data: Path, change: dict[str, str], said: str
) -> None:
    trm_bench("run", file, "--out", tmp_path / "out", "--jobs", 1, "--methods", "finetune")
    (checkpoint,) = (tmp_path / "out" / "sources").glob("*.safetensors")
    label = toy_data / "labelsTr" / "toy_000.nii.gz"
    small = tmp_path / "small.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), small)
    options = {
        "--checkpoint": checkpoint,
        "--image": toy_data / "imagesTr" / "toy_000.nii.gz",
        "--label": label,
        "--out": tmp_path / "map.nii",
        "--device": "cpu",
    } | {k: {"LABEL": label, "SMALL": small}.get(v, v) for k, v in change.items()}
    code, text = trm_bench("risk-map", *[x for pair in options.items() for x in pair])
    assert code == 2 and said in text and "Traceback" not in text


@pytest.mark.slow
def test_peak_memory_of_a_method_is_not_that_of_the_calling_process() -> None:
    config = TrainingConfig(steps=1, batch=1, patch=(16, 16, 16), precision="fp32")
    ours, quiet = {"row": ("finetune", config)}, Display(quiet=True)
    before = steps._peaks(ours, quiet)["row"]
    ballast = np.ones(2**27, np.float64)  # 1 GiB in this process
    after = steps._peaks(ours, quiet)["row"]
    assert ballast.all() and abs(after - before) < 2**27 < before


@pytest.mark.slow
def test_bench_prints_all_sections_and_targets(trm_bench: Run, tmp_path: Path) -> None:
    small = ("--patch", "16,16,16", "--steps", 1, "--rounds", 3, "--device", "cpu")
    written = tmp_path / "new" / "bench.json"
    chosen = ("--sections", "steps,loop,inference,start", "--json", written)
    code, text = trm_bench("bench", *small, *chosen)
    assert code == 0, text
    for said in ("bare plain", "bare fp32 channels-last", "trm fp32", "MiB", "torch", ">= 1.25"):
        assert said in text
    for said in ("MONAI tutorial, 1 worker", "ours, with all metrics", "--help", "GFLOP/s"):
        assert said in text
    report = json.loads(written.read_text())
    rows = {row["name"]: row for row in report["sections"]["steps"]["rows"]}
    assert rows["finetune fp32"]["peak_memory"] > 2**26
    # as many operations as the bare step, which has no more in it than the network
    assert rows["finetune fp32"]["flops"] == rows["bare plain"]["flops"] > 10**7
    assert {t["met"] for t in report["targets"]} <= {True, False, None}


@pytest.mark.slow
def test_bench_of_a_2d_network_has_no_tutorial_beside_it(trm_bench: Run) -> None:
    small = ("--patch", "16,16", "--steps", 1, "--rounds", 3, "--device", "cpu")
    code, text = trm_bench("bench", *small, "--sections", "loop,inference")
    assert code == 0 and "whole volumes" in text and "MONAI tutorial" not in text


def test_summary_is_json_without_nan(trm_bench: Run, file: Path, tmp_path: Path) -> None:
    # no finetune: no gains
    trm_bench("run", file, "--out", tmp_path / "out", "--jobs", 1, "--methods", "trm")

    def refuse(name: str) -> None:
        raise ValueError(name)

    summary = json.loads(
        (tmp_path / "out" / "toy" / "summary.json").read_text(), parse_constant=refuse
    )
    own = summary["metrics"]["dice"]["trm"]
    assert summary["reference"] == "trm" and own["gain_interval"] == [None, None]


def test_a_gain_of_nothing_is_a_number_and_the_reference_has_none() -> None:
    from rich.console import Console

    from trm_bench.cli.running import _scores

    row = {"mean": 50.0, "sd_over_seeds": None, "per_transfer": {"a->b": 50.0}, "gain": 0.0}
    rows = {"finetune": [None, None], "twin": [-0.5, 0.5], "alone": [None, None]}
    methods: dict[str, dict[str, object]] = {
        m: {**row, "gain_interval": ends} for m, ends in rows.items()
    }
    methods["alone"]["gain"] = None
    summary = {"protocol": "p", "data": "real", "units": {"dice": "%"}, "reference": "finetune"}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(_scores({**summary, "metrics": {"dice": methods}}, "dice"))
    lines = {
        line.split()[1]: line for line in console.export_text().splitlines() if " 50.00 " in line
    }
    assert lines["finetune"].split()[-2] == "-" and "+0.00 [-0.50, +0.50]" in lines["twin"]
    assert lines["alone"].split()[-2] == "\N{EN DASH}"
