"""Whole benchmarks on toy data: records, resume, pairing, determinism, faults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pandas as pd
import pytest
import torch
import toy

from trm_bench import estimates, methods, pipeline, preparing, seeds
from trm_bench.analysis.table import COLUMNS
from trm_bench.data import patches
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.methods import Method
from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol import parse
from trm_bench.runs import execute
from trm_bench.runs.executors import LocalPool
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.locks import only_one
from trm_bench.runs.plan import Job, Plan
from trm_bench.runs.store import Results, read_results
from trm_bench.training import loop

CPU = torch.device("cpu")
CORES = len(os.sched_getaffinity(0))


def run(
    out: Path, root: Path, jobs: int = 1, transfers: tuple[str, ...] = (), **changes: Any
) -> pipeline.Outcome:
    loaded = parse(toy.protocol(root, **changes), "test")
    return pipeline.run(loaded, out, jobs=jobs, transfers=transfers, pages=False)


def read(folder: Path) -> Results:
    return read_results(ProtocolFolder(folder))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """The toy benchmark, run once; tests must not change the folder."""
    return run(tmp_path_factory.mktemp("finished"), toy_data).folder.path


def numbers(folder: Path) -> str:
    return (folder / "metrics.csv").read_text()


class TestResults:
    def test_layout(self, finished: Path) -> None:
        for name in (
            "plan.json",
            "metrics.csv",
            "table.md",
            "table.csv",
            "table.tex",
            "summary.json",
            "negative_transfer.csv",
        ):
            assert (finished / name).is_file(), name
        assert len(list((finished / "records").glob("*.json"))) == 3
        assert len(list((finished.parent / "sources").glob("*.safetensors"))) == 1
        assert sorted(p.name for p in (finished / "figures").glob("*.png")) == [
            "predictions_whole-to-lower_upper.png",
            "risk_whole-to-lower_upper.png",
        ]

    def test_the_long_table_is_complete(self, finished: Path) -> None:
        table = pd.read_csv(finished / "metrics.csv")
        assert list(table.columns) == COLUMNS
        assert not table.duplicated(COLUMNS[:-1]).any()
        assert len(table) == 3 * 3 * 2 * 3  # methods, test subjects, classes, metrics
        assert np.isfinite(table.value).all()
        assert set(table["class"]) == {"lower", "upper"}

    def test_a_record_says_how_it_came_about(self, finished: Path) -> None:
        found = read(finished)
        for cell, record in found.finished():
            assert (
                record.config.method.name == cell.method
                and record.id == cell.run == record.config.id
            )
            assert record.environment.packages["torch"] == version("torch")
            assert {len(record.manifest[part]) for part in ("train", "val", "test")} == {2, 1, 3}
            for files in record.manifest["test"].values():
                assert all(size > 0 and len(sha) == 64 for size, sha in files.values())
            assert record.curves["loss"][-1][0] == 6
            assert record.seconds["train"] > 0 and record.peak_memory_bytes
        by_method = {c.method: r for c, r in found.finished()}
        assert by_method["scratch"].config.source is None
        assert by_method["finetune"].loading.skipped, "the head is new: the classes differ"
        diagnostics = by_method["trm"].diagnostics
        assert diagnostics["leep"] < 0 and 0 <= diagnostics["class_explained"] <= 1
        assert np.array(diagnostics["conditional"]).shape == (3, 2)
        np.testing.assert_allclose(np.sum(diagnostics["conditional"], axis=0), 1, atol=1e-9)

    def test_the_summary_agrees_with_the_table(self, finished: Path) -> None:
        table, summary = (
            pd.read_csv(finished / "metrics.csv"),
            json.loads((finished / "summary.json").read_text()),
        )
        assert summary["data"] == "real"
        dice = table[table.metric == "dice"].groupby("method").value.mean()
        for method in ("scratch", "finetune", "trm"):
            found = summary["metrics"]["dice"][method]
            assert found["mean"] == pytest.approx(dice[method])
            assert found["gain"] == pytest.approx(dice[method] - dice["finetune"], abs=1e-9)
            assert found["gain_relative_percent"] == pytest.approx(
                100 * (dice[method] / dice["finetune"] - 1)
            )
            assert found["n_subjects"] == 3
        gap = summary["negative_transfer"]["trm"]
        assert gap["gap"] == pytest.approx(dice["scratch"] - dice["trm"])
        assert gap["interval"] == [None, None] and gap["present"] is None, "one seed"
        hd95 = summary["metrics"]["hd95"]
        gain = hd95["finetune"]["mean"] - hd95["trm"]["mean"]
        assert hd95["trm"]["gain"] == pytest.approx(gain)

    def test_passes_are_those_of_the_records(self, finished: Path) -> None:
        told = pd.read_csv(finished / "table.csv", index_col="method")["passes / finetune"]
        plan = json.loads((finished / "plan.json").read_text())
        passes = {
            cell["method"]: json.loads((finished / f"records/{cell['run']}.json").read_text())[
                "passes"
            ]
            for cell in plan["cells"]
        }
        assert passes["finetune"] == 6, "a pass a step"
        expected = {method: n / passes["finetune"] for method, n in passes.items()}
        assert told.to_dict() == pytest.approx(expected)

    def test_provenance_names_data_code_and_machine(self, finished: Path) -> None:
        found = json.loads((finished / "provenance.json").read_text())
        assert set(found["code"]) == {"scratch", "finetune", "trm"}
        assert len(found["environments"]) == 1 and found["environments"][0]["packages"]["torch"]
        split = found["split"]["seed 0"]
        assert {part: len(ids) for part, ids in split.items()} == {
            "train": 2,
            "val": 1,
            "test": 3,
            "source": 3,
        }
        assert set(found["files"]) == {i for ids in split.values() for i in ids}
        assert "root" not in found["protocol"]["data"]

    @pytest.mark.parametrize("unit", ["mm", "voxels"])
    def test_the_plan_names_the_unit_of_distances(
        self, unit: str, tmp_path: Path, toy_data: Path
    ) -> None:
        data = {**toy.protocol(toy_data)["data"], "distance_unit": unit}
        folder = run(tmp_path, toy_data, methods=["scratch"], data=data).folder.path
        assert {cell.distance_unit for cell in read(folder).plan.cells} == {unit}


class TestDisjointDesign:
    SPLIT = {  # noqa: RUF012 (constant)
        "source": 2,
        "target": {"train": 2, "val": 1, "test": "rest"},
        "design": "disjoint",
        "sets": 2,
    }

    def test_every_seed_trains_on_a_set_of_its_own(self, tmp_path: Path, toy_data: Path) -> None:
        methods = ["scratch", "finetune"]
        outcome = run(tmp_path, toy_data, methods=methods, split=self.SPLIT, seeds=[0, 1])
        assert outcome.states == {"finished": 4}
        first, second = (
            [r for c, r in read(outcome.folder.path).finished() if c.seed == seed]
            for seed in (0, 1)
        )
        for a, b in zip(first, second, strict=True):
            assert len(a.manifest["train"]) == len(b.manifest["train"]) == 2
            assert set(a.manifest["train"]).isdisjoint(b.manifest["train"])
            assert set(a.metrics) == set(b.metrics) and len(a.metrics) == 2
            shared = set(a.manifest["test"]) | set(a.manifest["val"])
            assert shared == set(b.manifest["test"]) | set(b.manifest["val"])
            assert shared.isdisjoint({*a.manifest["train"], *b.manifest["train"]})
        # that all seeds share the test subjects keeps them in one table
        table = pd.read_csv(outcome.folder.path / "metrics.csv")
        assert (table.groupby(["method", "class", "metric", "subject"]).seed.nunique() == 2).all()

    def test_a_choice_of_seeds_does_not_change_the_split(
        self, tmp_path: Path, toy_data: Path
    ) -> None:
        both = helpers.plan(toy_data, tmp_path, split=self.SPLIT, seeds=[0, 1])
        alone = helpers.plan(toy_data, tmp_path, split=self.SPLIT, seeds=[1])
        assert alone.settings == both.settings, "two commands make one table"
        assert [job.id for job in alone.runs] == [j.id for j in both.runs if j.config.seed == 1]

    def test_a_seed_too_many_trains_nothing(self, tmp_path: Path, toy_data: Path) -> None:
        with pytest.raises(UserError, match=r"split\.sets: seed 2 has no training set of its own"):
            run(tmp_path, toy_data, methods=["scratch"], split=self.SPLIT, seeds=[0, 2])
        assert not list(tmp_path.rglob("records/*.json"))


class TestRepeatability:
    def test_twice_the_same(self, finished: Path, tmp_path: Path, toy_data: Path) -> None:
        assert numbers(run(tmp_path, toy_data).folder.path) == numbers(finished)

    @pytest.mark.slow
    def test_the_number_of_jobs_does_not_matter(
        self, finished: Path, tmp_path: Path, toy_data: Path
    ) -> None:
        assert numbers(run(tmp_path, toy_data, jobs=2).folder.path) == numbers(finished)

    def test_where_data_and_results_lie_does_not_matter(
        self, finished: Path, tmp_path: Path
    ) -> None:
        moved = toy.write_dataset(tmp_path / "elsewhere")
        folder = run(tmp_path / "out", moved).folder.path
        assert sorted(p.name for p in (folder / "records").iterdir()) == sorted(
            p.name for p in (finished / "records").iterdir()
        )

    def test_a_method_does_not_change_another(
        self, finished: Path, tmp_path: Path, toy_data: Path
    ) -> None:
        folder = run(tmp_path, toy_data, methods=["focal", "finetune"]).folder.path
        both = [
            pd.read_csv(f / "metrics.csv").query("method == 'finetune'") for f in (folder, finished)
        ]
        pd.testing.assert_frame_equal(*[t.reset_index(drop=True) for t in both])

    def test_seeds_matter(self, tmp_path: Path, toy_data: Path) -> None:
        table = pd.read_csv(
            run(tmp_path, toy_data, methods=["scratch"], seeds=[0, 1]).folder.path / "metrics.csv"
        )
        by_seed = table.pivot(index=["subject", "class", "metric"], columns="seed", values="value")
        assert (by_seed[0] != by_seed[1]).any()

    def test_determinism_is_not_overridden(self) -> None:
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
        seeds.deterministic(CPU)
        assert not torch.backends.cudnn.benchmark and torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32, "fp32 means fp32"
        assert (
            torch.are_deterministic_algorithms_enabled()
            and torch.get_num_threads() == seeds.CPU_THREADS
        )


class TestResume:
    @pytest.fixture
    def trained(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        titles: list[str] = []
        whole = execute.do

        def spy(job: Job, *arguments: Any) -> str:
            titles.append(job.title)
            return whole(job, *arguments)

        monkeypatch.setattr(execute, "do", spy)
        return titles

    def test_nothing_is_done_twice(
        self, tmp_path: Path, toy_data: Path, trained: list[str]
    ) -> None:
        before = numbers(run(tmp_path, toy_data).folder.path)
        assert len(trained) == 4
        assert numbers(run(tmp_path, toy_data).folder.path) == before
        assert len(trained) == 4

    def test_only_what_is_missing(self, tmp_path: Path, toy_data: Path, trained: list[str]) -> None:
        folder = run(tmp_path, toy_data).folder.path
        before = numbers(folder)
        (cell,) = [c for c in read(folder).cells if c.method == "trm"]
        (folder / "records" / f"{cell.run}.json").unlink()
        trained.clear()
        assert numbers(run(tmp_path, toy_data).folder.path) == before
        assert trained == ["whole->lower_upper trm seed 0"]

    def test_a_damaged_record_is_done_again(
        self, tmp_path: Path, toy_data: Path, trained: list[str]
    ) -> None:
        folder = run(tmp_path, toy_data, methods=["scratch"]).folder.path
        (record,) = (folder / "records").glob("*.json")
        record.write_text(record.read_text()[:100])
        trained.clear()
        run(tmp_path, toy_data, methods=["scratch"])
        assert len(trained) == 1

    def test_methods_of_two_commands_make_one_table(
        self, tmp_path: Path, toy_data: Path, trained: list[str]
    ) -> None:
        run(tmp_path, toy_data, methods=["scratch", "finetune"])
        trained.clear()
        folder = run(tmp_path, toy_data, methods=["topk"]).folder.path
        assert trained == ["whole->lower_upper topk seed 0"]
        assert set(pd.read_csv(folder / "metrics.csv").method) == {"scratch", "finetune", "topk"}

    def test_other_settings_start_a_new_table(self, tmp_path: Path, toy_data: Path) -> None:
        changed = toy.protocol(toy_data)["training"]
        changed["target"]["steps"] = 3
        run(tmp_path, toy_data, methods=["scratch", "finetune"])
        folder = run(tmp_path, toy_data, methods=["scratch"], training=changed).folder.path
        assert set(pd.read_csv(folder / "metrics.csv").method) == {"scratch"}
        assert len(list((folder / "records").glob("*.json"))) == 3, "earlier records stay on disk"

    def test_a_changed_file_is_another_run(self, tmp_path: Path, trained: list[str]) -> None:
        data = toy.write_dataset(tmp_path / "data")
        folder = run(tmp_path / "out", data, methods=["scratch"]).folder.path
        before = {p.name for p in (folder / "records").iterdir()}
        toy.write_dataset(data, seed=1)
        run(tmp_path / "out", data, methods=["scratch"])
        assert len({p.name for p in (folder / "records").iterdir()} - before) == 1


NETWORKS = {
    "UNet": {"channels": [4, 8], "strides": [2]},
    "DynUNet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
    },
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1]},
}


class TestNetworks:
    @pytest.mark.slow
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("name", list(NETWORKS))
    def test_whole_benchmark(self, name: str, dims: int, tmp_path: Path, toy_data: Path) -> None:
        side = 64 if name == "SwinUNETR" else 16
        part = {"steps": 1, "batch": 1, "patch": [side] * dims}
        outcome = run(
            tmp_path,
            toy_data,
            network={"name": name, **NETWORKS[name]},
            training={"source": part, "target": part},
            split={"source": 1, "target": {"train": 1, "val": 1, "test": 1}},
            methods=["trm"],
            metrics=["dice"],
        )
        assert outcome.states == {"finished": 1}
        for _, record in read(outcome.folder.path).finished():
            assert record.loading.loaded > len(record.loading.skipped) > 0


class TestPairing:
    def test_methods_see_the_same_patches_and_start(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, list[torch.Tensor]] = {}
        heads: dict[str, torch.Tensor] = {}
        current = ""
        whole_batch, whole_train = patches.PatchSampler.batch, loop.train

        def batch(sampler: patches.PatchSampler, step: int) -> patches.Batch:
            found = whole_batch(sampler, step)
            seen.setdefault(current, []).append(
                torch.cat([found.image.flatten(), found.label.flatten()])
            )
            return found

        def train(context: methods.Context, method: Method, *arguments: Any) -> None:
            nonlocal current
            current = method.name
            parameters = dict(context.network.named_parameters())
            heads[current] = torch.cat(
                [p.detach().flatten() for n, p in parameters.items() if context.parts.in_head(n)]
            )
            whole_train(context, method, *arguments)

        monkeypatch.setattr(patches.PatchSampler, "batch", batch)
        monkeypatch.setattr(loop, "train", train)
        run(tmp_path, toy_data, methods=["finetune", "scratch", "trm", "trm_shuffled", "focal"])
        seen["finetune"] = seen["finetune"][:6]
        for name in ("finetune", "trm", "trm_shuffled", "focal"):
            assert len(seen[name]) == 6
            assert all(
                torch.equal(a, b) for a, b in zip(seen[name], seen["finetune"], strict=True)
            ), name
            assert torch.equal(heads[name], heads["finetune"]), name
        assert all(
            torch.equal(a, b) for a, b in zip(seen["scratch"][-6:], seen["finetune"], strict=True)
        )
        assert torch.equal(heads["scratch"], heads["finetune"])

    def test_arms_differ_in_the_method_alone(self, finished: Path) -> None:
        configs = [record.config for _, record in read(finished).finished()]
        shared = [config.model_dump(exclude={"method", "code", "source"}) for config in configs]
        assert len(configs) == 3 and all(config == shared[0] for config in shared)

    def test_test_subjects_are_loaded_after_training(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        whole_load, whole_train = execute.load_part, loop.train

        def load(job: Job, device: torch.device, part: str) -> Any:
            order.append(part)
            return whole_load(job, device, part)

        def train(*arguments: Any) -> None:
            whole_train(*arguments)
            order.append("trained")

        monkeypatch.setattr(execute, "load_part", load)
        monkeypatch.setattr(loop, "train", train)
        run(tmp_path, toy_data, methods=["wise_ft"])  # which selects on validation
        source, method = order[: order.index("trained") + 1], order[order.index("trained") + 1 :]
        assert source == ["train", "val", "trained"]
        assert method == ["train", "val", "trained", "test"]

    def test_scratch_is_trained_once_for_all_sources(self, tmp_path: Path, toy_data: Path) -> None:
        pairs = [["whole", "lower_upper"], ["lower", "lower_upper"]]
        loaded = parse(
            toy.protocol(
                toy_data,
                transfers={"kind": "cross_task", "pairs": pairs},
                methods=["scratch", "finetune"],
            ),
            "test",
        )
        folder = pipeline.run(loaded, tmp_path / "two", jobs=1, pages=False).folder.path
        cells = read(folder).cells
        assert len(cells) == 4
        assert len({c.run for c in cells if c.method == "scratch"}) == 1
        assert len({c.run for c in cells if c.method == "finetune"}) == 2
        table = pd.read_csv(folder / "metrics.csv").query("method == 'scratch'")
        assert table.transfer.nunique() == 2


class TestFaults:
    def test_a_diverging_run_is_recorded_and_the_rest_go_on(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            REGISTRY.get("focal"),
            "voxel_loss",
            lambda self, run, logits, batch: logits.sum() * float("nan"),
        )
        outcome = run(tmp_path, toy_data, methods=["focal", "scratch"])
        assert outcome.states == {"diverged": 1, "finished": 1}
        found = read(outcome.folder.path)
        (cell,) = [c for c in found.cells if c.method == "focal"]
        record = found.record(cell)
        assert record is not None and record.state == "diverged" and "nan" in record.reason
        assert "diverged" in (outcome.folder.path / "table.md").read_text()
        assert run(tmp_path, toy_data, methods=["focal", "scratch"]).states == outcome.states

    def test_a_failing_run_is_tried_again(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Method, run: methods.Context) -> None:
            raise RuntimeError("out of luck")

        with monkeypatch.context() as patch:
            patch.setattr(REGISTRY.get("topk"), "prepare", broken)
            outcome = run(tmp_path, toy_data, methods=["topk", "scratch"])
        assert outcome.states == {"failed": 1, "finished": 1}
        assert "out of luck" in (outcome.folder.path / "table.md").read_text()
        assert run(tmp_path, toy_data, methods=["topk", "scratch"]).states == {"finished": 2}

    def test_a_failing_source_fails_its_runs_alone(
        self, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any) -> None:
            raise RuntimeError("no source")

        monkeypatch.setattr(execute, "_train_source", broken)
        outcome = run(tmp_path, toy_data)
        assert outcome.states == {"failed": 2, "finished": 1}
        reasons = [why for _, why in read(outcome.folder.path).unfinished()]
        assert reasons == ["failed: its source network failed: RuntimeError: no source"] * 2
        records = read(outcome.folder.path).records.values()
        traces = [record.traceback for record in records if record.state == "failed"]
        assert len(traces) == 2 and all("in broken\n" in trace for trace in traces)

    def test_a_full_disk_is_said_and_resumed(
        self, finished: Path, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = Path.replace

        def full(self: Path, target: Path) -> Path:
            if "records" in str(target):
                raise OSError(28, "No space left on device", str(target))
            return whole(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            with pytest.raises(OSError, match="No space"):
                run(tmp_path, toy_data)
        assert not list(tmp_path.rglob(".*.json"))
        assert numbers(run(tmp_path, toy_data).folder.path) == numbers(finished)

    def test_two_commands_in_one_folder(self, tmp_path: Path, toy_data: Path) -> None:
        with (
            only_one(ProtocolFolder(tmp_path / "toy")),
            pytest.raises(UserError, match="another trm-bench command"),
        ):
            run(tmp_path, toy_data)

    def test_stand_in_and_real_results_never_mix(
        self, finished: Path, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preparing.phantom, "is_phantom", lambda root: True)
        folder = run(tmp_path, toy_data, methods=["scratch"]).folder.path
        assert json.loads((folder / "summary.json").read_text())["data"] == "phantom"
        assert "STAND-IN" in (folder / "table.md").read_text()
        assert {p.name for p in (folder / "records").iterdir()}.isdisjoint(
            p.name for p in (finished / "records").iterdir()
        )
        monkeypatch.undo()
        with pytest.raises(UserError, match="never go beside"):
            run(tmp_path, toy_data, methods=["scratch"])


class TestBadSubjects:
    @pytest.fixture
    def damaged(self, tmp_path: Path) -> Iterator[Path]:
        data = toy.write_dataset(tmp_path / "data")
        image = data / "imagesTr" / "toy_004.nii.gz"
        image.write_bytes(image.read_bytes()[:200])
        yield data

    def test_stops_by_default_and_names_the_file(self, damaged: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="toy_004") as caught:
            run(tmp_path / "out", damaged)
        assert "toy_004.nii.gz" in str(caught.value) and "on_bad_subject=skip" in str(caught.value)

    def test_is_left_out_visibly(self, damaged: Path, tmp_path: Path) -> None:
        data = toy.protocol(damaged)["data"] | {"on_bad_subject": "skip"}
        folder = run(tmp_path / "out", damaged, data=data, methods=["scratch"]).folder.path
        assert "toy_004" not in numbers(folder)
        assert "Left out: toy_004" in (folder / "table.md").read_text()
        assert json.loads((folder / "plan.json").read_text())["left_out"][0]["subject"] == "toy_004"


@pytest.mark.parametrize(
    ("device", "given", "jobs"), [("cuda:0", None, 9), ("cuda:0", 2, 2), ("cpu", None, CORES)]
)
def test_only_a_pool_on_gpus_whose_size_nobody_gave_is_filled(
    monkeypatch: pytest.MonkeyPatch, device: str, given: int | None, jobs: int
) -> None:
    monkeypatch.setattr(estimates, "pace_of", lambda plan, device: "pace")
    monkeypatch.setattr(estimates, "jobs_that_fill", lambda pace, device: 9)
    pool = LocalPool(torch.device(device), given)
    pipeline.fill(pool, Plan([], []), given, Display(quiet=True))
    assert pool.jobs == jobs
