"""What a run is called.

Everything that can change its numbers is in its name, and it is what runs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import toy
from helpers import CPU
from pydantic import ValidationError

from trm_bench.errors import UserError
from trm_bench.fingerprint import digest_of
from trm_bench.runs import execute
from trm_bench.runs import plan as planning
from trm_bench.runs.config import RunConfig
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.plan import Job, Plan
from trm_bench.runs.store import read_record


def ids(made: Plan) -> tuple[set[str], set[str]]:
    return {job.id for job in made.sources}, {job.id for job in made.runs}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Plan:
    return helpers.plan(toy_data, tmp_path_factory.mktemp("plan"))


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values of nested mappings and lists that are neither."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    nested = dict | list
    return [
        found
        for key, value in items
        for found in (leaves(value, (*path, key)) if isinstance(value, nested) else [(*path, key)])
    ]


class TestIdentity:
    def test_a_config_survives_json(self, plan: Plan) -> None:
        for job in (*plan.sources, *plan.runs):
            again = RunConfig.model_validate_json(job.config.model_dump_json())
            assert again == job.config and again.id == job.config.id == job.id

    @pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
    def test_every_value_counts(self, plan: Plan) -> None:
        """Each single value of the stored configuration, the source's too, is part of the name."""
        config = next(job.config for job in plan.runs if job.source)
        paths = leaves(config.model_dump(mode="json"))
        assert len(paths) > 100
        wrong = []
        for path in paths:
            changed = config.model_dump(mode="json")
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = "another value"
            # not validated, since another value may not be a valid one: the name is what counts
            if RunConfig.model_construct(**changed).id == config.id:
                wrong.append(path)
        assert not wrong
        assert config.id == digest_of(config.model_dump(mode="json"))[:16]

    @pytest.mark.parametrize(
        "change",
        [
            {"evaluation": {"overlap": 0.25}},
            {"evaluation": {"surface_tolerance": 2.0}},
            {"network": {"name": "UNet", "channels": [4, 8], "strides": [2], "norm": "batch"}},
            {"seeds": [1]},
        ],
    )
    def test_shared_keys_of_the_protocol_change_sources_and_runs(
        self, plan: Plan, tmp_path: Path, toy_data: Path, change: dict[str, Any]
    ) -> None:
        other = helpers.plan(toy_data, tmp_path, **change)
        for before, after in zip(ids(plan), ids(other), strict=True):
            assert before.isdisjoint(after)

    @pytest.mark.parametrize("part", ["volume", "source", "target", "metrics"])
    def test_other_keys_change_what_they_concern(
        self, plan: Plan, tmp_path: Path, toy_data: Path, part: str
    ) -> None:
        whole = toy.protocol(toy_data)
        if part == "volume":
            whole["data"]["volume"]["intensity"] = "percentile"
        elif part == "metrics":
            whole["metrics"] = ["dice"]
        else:
            whole["training"][part]["steps"] = 3
        sources, runs = ids(helpers.plan(toy_data, tmp_path, **whole))
        scratch = {job.id for job in plan.runs if not job.source}
        assert sources.isdisjoint(ids(plan)[0]) == (part in ("volume", "source"))
        kept = runs & ids(plan)[1]
        assert kept == (scratch if part == "source" else set())

    def test_names_do_not_depend_on_folders_labels_claims_or_neighbours(
        self, plan: Plan, tmp_path: Path
    ) -> None:
        moved = toy.write_dataset(tmp_path / "elsewhere")
        changes: Any = {
            "description": "other words",
            "methods": [{"name": "trm", "label": "another-name"}],
            "name": "other",
        }
        (run,) = ids(helpers.plan(moved, tmp_path / "out", **changes))[1]
        assert run in ids(plan)[1]

    def test_the_parameters_of_a_method_are_resolved(self, plan: Plan) -> None:
        (trm,) = (job for job in plan.runs if job.config.method.name == "trm")
        assert trm.config.method.parameters["base"] == 3.0
        assert trm.config.method.parameters["with_dice"] is None

    def test_the_code_counts(
        self, plan: Plan, tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "code_fingerprint", lambda *modules: "other code")
        other = helpers.plan(toy_data, tmp_path)
        assert all(a.isdisjoint(b) for a, b in zip(ids(plan), ids(other), strict=True))


class TestSettingsOfAMethod:
    """What a method's own `training` and `per_transfer` change, and what they do not."""

    def of(self, root: Path, out: Path, method: dict[str, object]) -> tuple[Plan, RunConfig]:
        changed = helpers.plan(root, out, methods=["finetune", {"name": "trm", **method}])
        return changed, changed.runs[1].config

    def test_the_training_of_one_method(self, tmp_path: Path, toy_data: Path) -> None:
        before, plain = self.of(toy_data, tmp_path, {})
        own = {"lr": 0.5, "weight_decay": 0.25, "warmup": 0.125, "dice_share": 0.75}
        after, config = self.of(toy_data, tmp_path, {"training": own})
        assert after.runs[0].id == before.runs[0].id and config.source == plain.source
        assert after.settings == before.settings and after.conditions == before.conditions
        training = config.training
        assert (training.optimizer.lr, training.optimizer.weight_decay) == (0.5, 0.25)
        assert (training.warmup, training.loss.dice, training.loss.cross_entropy) == (
            0.125,
            1.5,
            0.5,
        )
        rest = {"optimizer": plain.training.optimizer, "warmup": 0.0, "loss": plain.training.loss}
        assert training.model_copy(update=rest) == plain.training

    def test_the_protocols_own_values_change_nothing(self, tmp_path: Path, toy_data: Path) -> None:
        _, plain = self.of(toy_data, tmp_path, {})
        loss, o = plain.training.loss, plain.training.optimizer
        same = {"lr": o.lr, "weight_decay": o.weight_decay, "dice_share": loss.dice_share}
        assert self.of(toy_data, tmp_path, {"training": same})[1].id == plain.id

    def test_settings_of_one_transfer(self, tmp_path: Path, toy_data: Path) -> None:
        pairs = {
            "kind": "cross_task",
            "pairs": [["whole", "lower_upper"], ["lower_upper", "whole"]],
        }
        own = {"base": 5.0, "training": {"lr": 0.5}}
        method = {
            "name": "trm",
            "risk": "neg_log",
            "training": {"warmup": 0.5},
            "per_transfer": {"lower_upper->whole": own},
        }
        changed = helpers.plan(toy_data, tmp_path, transfers=pairs, methods=[method])
        first, second = (job.config for job in changed.runs)
        values = [
            (c.method.parameters["risk"], c.method.parameters["base"]) for c in (first, second)
        ]
        assert values == [("neg_log", 3.0), ("neg_log", 5.0)]
        assert [c.training.warmup for c in (first, second)] == [0.5, 0.5]
        assert [c.training.optimizer.lr for c in (first, second)] == [0.01, 0.5]

    def test_an_unknown_transfer_is_named(self, tmp_path: Path, toy_data: Path) -> None:
        with pytest.raises(UserError, match="no transfer 'whole'"):
            self.of(toy_data, tmp_path, {"per_transfer": {"whole->lower": {}, "whole": {}}})


class TestDevice:
    @pytest.fixture
    def bf16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **more: True)

    def test_another_device_names_new_runs(
        self, plan: Plan, tmp_path: Path, toy_data: Path, bf16: None
    ) -> None:
        gpu = helpers.plan(toy_data, tmp_path, device=torch.device("cuda"))
        assert all(a.isdisjoint(b) for a, b in zip(ids(plan), ids(gpu), strict=True))
        assert gpu.settings != plan.settings, "they never stand in one table"
        assert {job.config.training.precision for job in plan.runs} == {"fp32"}
        assert {job.config.training.precision for job in (*gpu.runs, *gpu.sources)} == {"bf16"}

    def test_the_same_precision_on_another_device_is_another_run(
        self, plan: Plan, tmp_path: Path, toy_data: Path
    ) -> None:
        """Kernels differ, and over a training the last bits grow into other weights."""
        training = toy.protocol(toy_data)["training"]
        for part in training.values():
            part["precision"] = "fp32"
        gpu = helpers.plan(toy_data, tmp_path, device=torch.device("cuda"), training=training)
        assert {job.config.device for job in (*gpu.runs, *gpu.sources)} == {"cuda"}
        assert all(a.isdisjoint(b) for a, b in zip(ids(plan), ids(gpu), strict=True))

    def test_auto_is_what_it_resolves_to(self, plan: Plan, tmp_path: Path, toy_data: Path) -> None:
        training = toy.protocol(toy_data)["training"]
        for part in training.values():
            part["precision"] = "fp32"
        assert ids(helpers.plan(toy_data, tmp_path, training=training)) == ids(plan)

    def test_an_unresolved_precision_is_refused(self, plan: Plan) -> None:
        content = plan.runs[0].config.model_dump(mode="json")
        content["training"]["precision"] = "auto"
        with pytest.raises(ValidationError, match="must be resolved"):
            RunConfig.model_validate(content)


class TestWhatIsHashedIsWhatRuns:
    def test_a_stored_config_alone_repeats_the_run(self, tmp_path: Path, toy_data: Path) -> None:
        """The record of another folder is enough: no protocol, no plan."""
        made = helpers.plan(toy_data, tmp_path / "first", methods=["trm"])
        quiet: Any = lambda *at: None  # noqa: E731
        for job in (*made.sources, *made.runs):
            assert execute.do(job, CPU, quiet) == "finished"
        first = read_record(made.runs[0].result)
        assert first is not None and first.config.source_training is not None
        folder = ProtocolFolder(tmp_path / "second" / "any_name")
        files = made.sources[0].prepared | made.runs[0].prepared
        for config in (first.config.source_training, first.config):
            execute.do(Job(config, "again", folder, files, files), CPU, quiet)
        second = read_record(folder.record(first.id))
        assert second is not None and second.config == first.config
        assert (second.metrics, second.curves) == (first.metrics, first.curves)

    def test_controls_differ_from_fine_tuning_in_what_they_control_alone(
        self, tmp_path: Path, toy_data: Path
    ) -> None:
        training = toy.protocol(toy_data)["training"]
        training["target"] |= {"select": "best", "validate_every": 2}
        longer = {"name": "finetune_longer", "times": 3, "training": {"lr": 0.5}}
        methods = ["finetune", longer, "finetune_with_validation"]
        made = helpers.plan(toy_data, tmp_path, training=training, methods=methods)
        plain, longer, joined = (job.config for job in made.runs)
        assert (longer.training.steps, longer.training.validate_every) == (18, 6)
        assert longer.training.optimizer.lr == 0.5
        own = {"training": {"steps", "validate_every", "optimizer"}, "method": True, "code": True}
        assert longer.model_dump(exclude=own) == plain.model_dump(exclude=own)
        assert len(plain.subjects.train) == 2 and len(plain.subjects.val) == 1
        assert joined.subjects.train == plain.subjects.train + plain.subjects.val
        assert joined.training.select == "last"
        own = {"training": {"select"}, "subjects": {"train"}, "method": True, "code": True}
        assert joined.model_dump(exclude=own) == plain.model_dump(exclude=own)
        assert len(made.sources) == 1 and made.sources[0].config.training.steps == 6

    def test_a_run_without_test_subjects_is_not_tested(
        self, tmp_path: Path, toy_data: Path
    ) -> None:
        (job,) = helpers.plan(toy_data, tmp_path, methods=["scratch"]).runs
        subjects = job.config.subjects.model_copy(update={"test": ()})
        config = job.config.model_copy(update={"subjects": subjects, "metrics": ()})
        untested = Job(config, "no test", job.folder, job.prepared)
        assert execute.do(untested, CPU, lambda *at: None) == "finished"
        record = read_record(untested.result)
        assert record is not None and record.metrics == {} and record.validation_dice is not None
        assert set(record.manifest) == {"train", "val"}
        assert not untested.folder.slices(untested.id).exists()

    def test_another_volume_under_the_name_is_refused(self, tmp_path: Path, toy_data: Path) -> None:
        (job,) = helpers.plan(toy_data, tmp_path, methods=["scratch"]).runs
        one, other = (job.config.subjects.train[i].subject for i in (0, 1))
        swapped = {**job.prepared, one: job.prepared[other]}
        mixed = Job(job.config, "swapped", job.folder, swapped)
        assert execute.do(mixed, CPU, lambda *at: None).startswith("failed: Damaged")
        record = read_record(mixed.result)
        assert record is not None and "another prepared volume" in record.reason

    def test_only_methods_that_transfer_reach_the_source_data(
        self, tmp_path: Path, toy_data: Path
    ) -> None:
        made = helpers.plan(toy_data, tmp_path, methods=["scratch", "finetune"])
        scratch, finetune = made.runs
        assert len(execute.load_part(finetune, CPU, "source")) == 3
        with pytest.raises(AssertionError, match="only where one of ours trained it"):
            execute.load_part(scratch, CPU, "source")
        members = {m.subject for part in scratch.config.subjects.parts().values() for m in part}
        assert set(scratch.prepared) == members, "a run gets no file that it has no business with"


class TestCost:
    """By it long runs start first, so that it must grow with what takes time."""

    def costs(self, where: Path, data: Path, *methods: str, **of_target: Any) -> list[float]:
        training = toy.protocol(data)["training"]
        training["target"] |= of_target
        made = helpers.plan(data, where, training=training, methods=list(methods))
        return [job.cost for job in made.runs]

    def test_steps_patches_passes_and_validations_cost(
        self, tmp_path: Path, toy_data: Path
    ) -> None:
        finetune, forked, longer = self.costs(
            tmp_path / "plain", toy_data, "finetune", "forkmerge", "finetune_longer"
        )
        assert finetune < forked == longer, "of twice the passes, and of twice the steps"
        (best,) = self.costs(tmp_path / "best", toy_data, "finetune", select="best")
        (wide,) = self.costs(tmp_path / "wide", toy_data, "finetune", batch=8)
        assert finetune < best and finetune < wide

    def test_testing_costs_what_the_windows_cost(self, tmp_path: Path, toy_data: Path) -> None:
        (job,) = helpers.plan(toy_data, tmp_path, methods=["scratch"]).runs
        untested = job.config.subjects.model_copy(update={"test": ()})
        without = Job(
            job.config.model_copy(update={"subjects": untested, "metrics": ()}),
            "no test",
            job.folder,
            job.prepared,
            voxels=job.voxels,
        )
        overlap, dims = job.config.evaluation.overlap, len(job.config.training.patch)
        patch = math.prod(job.config.training.patch)
        tested = sum(max(patch, job.voxels[m.subject]) for m in job.config.subjects.test)
        assert job.cost - without.cost == pytest.approx(tested / (1 - overlap) ** dims)
