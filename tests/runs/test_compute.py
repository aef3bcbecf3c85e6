"""What a configuration computes: initial weights, pairing of random numbers, source weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import CPU
from torch import Tensor, nn

from trm_bench.methods.registry import create
from trm_bench.runs import compute, execute
from trm_bench.runs.config import RunConfig, RunMethod
from trm_bench.runs.plan import Job, Plan
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves

DROPOUT = {"name": "UNet", "channels": [4, 8], "strides": [2], "dropout": 0.5}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Plan:
    changes: Any = {
        "network": DROPOUT,
        "methods": ["finetune", "trm_uniform", "scratch"],
        "seeds": [0, 1],
    }
    return helpers.plan(toy_data, tmp_path_factory.mktemp("plan"), **changes)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def jobs(plan: Plan, method: str) -> list[Job]:
    """Of the seeds 0 and 1."""
    return [job for job in plan.runs if job.config.method.name == method]


def parts(job: Job) -> compute.Part:
    return lambda part: execute.load_part(job, CPU, part)


def source(config: RunConfig) -> compute.Source:
    assert config.source_training is not None
    untrained = compute.build(config.source_training, CPU).state_dict()
    return compute.source_of(config, untrained, CPU)


class TestInitialWeights:
    def test_they_depend_on_the_seed_and_nothing_else_of_a_run(self, plan: Plan) -> None:
        finetune = [compute.build(job.config, CPU) for job in jobs(plan, "finetune")]
        scratch = [compute.build(job.config, CPU) for job in jobs(plan, "scratch")]
        for one, other in zip(finetune, scratch, strict=True):
            assert torch.equal(flat(one), flat(other)), "methods of one seed start alike"
        assert not torch.equal(flat(finetune[0]), flat(finetune[1]))

    def test_a_source_starts_from_others(self, plan: Plan) -> None:
        job = jobs(plan, "finetune")[0]
        same_seed = plan.sources[0].config.model_copy(update={"domain": job.config.domain})
        own = flat(compute.build(job.config, CPU))
        assert same_seed.seed == job.config.seed
        assert not torch.equal(own, flat(compute.build(same_seed, CPU)))

    def test_building_draws_nothing_from_the_global_generator(self, plan: Plan) -> None:
        before = torch.get_rng_state()
        compute.build(plan.runs[0].config, CPU)
        assert torch.equal(before, torch.get_rng_state())


class TestModulesOfAMethod:
    @pytest.fixture(params=["refine", "style_contrast"])
    def config(self, plan: Plan, request: pytest.FixtureRequest) -> RunConfig:
        method = RunMethod(name=request.param)
        return jobs(plan, "finetune")[0].config.model_copy(update={"method": method})

    def test_they_come_beside_what_every_method_starts_from(self, config: RunConfig) -> None:
        before = torch.get_rng_state()
        own, bare = (compute.build(config, CPU, bare=bare).state_dict() for bare in (False, True))
        assert torch.equal(before, torch.get_rng_state()), "drawn from the global generator"
        assert own.keys() > bare.keys()
        assert all(torch.equal(own[name], bare[name]) for name in bare)
        plain = config.model_copy(update={"method": RunMethod(name="finetune")})
        assert compute.build(plain, CPU).state_dict().keys() == bare.keys()

    def test_their_weights_depend_on_the_seed(self, config: RunConfig) -> None:
        seeds = (config, config, config.model_copy(update={"seed": config.seed + 7}))
        one, again, other = (compute.build(c, CPU).state_dict() for c in seeds)
        assert all(torch.equal(one[name], again[name]) for name in one)
        names = one.keys() - compute.build(config, CPU, bare=True).state_dict().keys()
        assert any(not torch.equal(one[name], other[name]) for name in names)

    def test_a_kept_network_is_built_again(self, plan: Plan, config: RunConfig) -> None:
        given = source(config)
        job = jobs(plan, "finetune")[0]
        run, loading = compute.start(config, given, parts(job), CPU)
        bare = compute.build(config, CPU, bare=True).state_dict()
        added = [name for name in run.network.state_dict() if name not in bare]
        head = [name for name in bare if run.parts.in_head(name)]
        assert loading is not None and loading["skipped"] == added + head and added
        assert run.fresh().state_dict().keys() == bare.keys()
        settings = run.config.model_copy(update={"steps": 2})
        run.config = settings
        method = create(config.method.name, config.method.parameters)
        compute.train(run, method, Curves())
        again = compute.frozen(config, run.network.state_dict(), CPU)
        image = torch.rand(1, len(config.domain.images), *config.training.patch)
        with torch.no_grad():
            assert torch.equal(again(image), run.network(image))


class TestPairing:
    def masks(self, job: Job, disturb: int) -> list[Tensor]:
        """Which activations dropout kept in each step; `disturb` draws are made beforehand."""
        config = job.config
        frozen = source(config) if config.source else None
        run, _ = compute.start(config, frozen, parts(job), CPU)
        kept: list[Tensor] = []
        for module in run.network.modules():
            if isinstance(module, nn.Dropout | nn.Dropout3d):
                module.register_forward_hook(
                    lambda m, i, output: kept.append((output == 0).cpu()) if m.training else None
                )
        torch.manual_seed(99)
        torch.rand(disturb)
        compute.train(run, create(config.method.name, {}), Curves())
        assert kept and any(bool(mask.any()) for mask in kept), "nothing was dropped"
        return kept

    def test_dropout_is_the_same_for_every_method(self, plan: Plan) -> None:
        reference = self.masks(jobs(plan, "finetune")[0], 0)
        for name in ("finetune", "trm_uniform", "scratch"):
            other = self.masks(jobs(plan, name)[0], 7)
            # the activations differ between methods, what is dropped of them does not
            assert len(other) == len(reference)
            alike = [(a == b).float().mean() for a, b in zip(other, reference, strict=True)]
            assert min(map(float, alike)) > 0.99, name

    def test_dropout_depends_on_the_seed(self, plan: Plan) -> None:
        one, other = (self.masks(job, 0) for job in jobs(plan, "finetune"))
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TestSource:
    def test_its_weights_are_loaded_and_its_head_is_not(self, plan: Plan) -> None:
        job = jobs(plan, "finetune")[0]
        given = source(job.config)
        frozen = given.network
        run, loading = compute.start(job.config, given, parts(job), CPU)
        initial = compute.build(job.config, CPU).state_dict()
        assert loading is not None and loading["skipped"] and not run.same_task
        for name, value in run.network.state_dict().items():
            origin = initial if run.parts.in_head(name) else frozen.state_dict()
            assert torch.equal(value, origin[name]), name
        assert not any(p.requires_grad for p in frozen.parameters()) and not frozen.training

    def test_the_same_task_takes_the_head_along(self, plan: Plan) -> None:
        job = jobs(plan, "finetune")[0]
        assert job.config.source is not None
        twin = job.config.source.model_copy(update={"domain": job.config.domain})
        config = job.config.model_copy(update={"source": twin, "same_task": True})
        given = source(config)
        run, loading = compute.start(config, given, parts(job), CPU)
        assert run.same_task and loading is not None and not loading["skipped"]
        assert torch.equal(flat(run.network), flat(given.network))

    def test_source_patches_are_those_of_its_own_training(self, plan: Plan) -> None:
        job = jobs(plan, "finetune")[0]
        assert job.config.source is not None
        run, _ = compute.start(job.config, source(job.config), parts(job), CPU)
        patches = run.source_patches()
        training = job.config.source_training
        assert training is not None
        members = [m.subject for m in training.subjects.train]
        assert [p.subject for p in patches.store.prepared] == members
        assert patches.store.label_map.classes == training.domain.classes
