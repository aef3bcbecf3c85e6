"""The schema.

Bundled protocols are valid, mistakes are named with their key path, transfers expand as documented.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy
import yaml

from trm_bench.errors import UserError
from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol import Protocol, bundled, load_protocol, parse
from trm_bench.protocol.choices import choose_methods, choose_seeds, refuse_borrowed_labels
from trm_bench.protocol.load import folder_of
from trm_bench.protocol.schema import MethodTraining


def load(path: Path, *overrides: str, phantom: bool = False, **changes: Any) -> Protocol:
    file = toy.write_protocol(path / "p.yaml", path, **changes)
    return load_protocol(str(file), overrides, phantom)


@pytest.mark.parametrize("name", list(bundled()))
def test_bundled_protocols_are_valid_by_name_and_by_path(name: str) -> None:
    by_name = load_protocol(name)
    assert by_name.name == name and by_name.description
    assert load_protocol(str(bundled()[name])) == by_name
    if by_name.phantom:
        small = load_protocol(name, phantom=True)
        assert small.training.target.steps < by_name.training.target.steps


def test_the_paper_claims_are_carried() -> None:
    claims = {n: load_protocol(n).claim for n in ("fets_cross_modality", "iseg_cross_modality")}
    assert {n: c.gain for n, c in claims.items() if c} == {
        "fets_cross_modality": 4.37,
        "iseg_cross_modality": 1.81,
    }
    assert all(c and c.unit == "points-or-relative" for c in claims.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.target.stepz=3", r"training\.target\.stepz: unknown key; did you mean 'steps'"),
        ("splt.seed=1", r"splt: unknown key; did you mean 'split'"),
        (
            "training.target.steps=0",
            r"training\.target\.steps: input should be greater than or equal to 1",
        ),
        ("training.target.steps=many", r"training\.target\.steps: input should be a valid integer"),
        ("training.target.optimizer.name=adam", r"training\.target\.optimizer\.name"),
        ("training.target.loss={cross_entropy: 0, dice: 0}", "nothing would be learned"),
        ("training.target.loss.gamma=2", r"target\.loss: gamma is a parameter of voxels: focal"),
        ("training.target.loss.voxels=focl", r"loss\.voxels: input should be 'cross_entropy', 'fo"),
        ("training.target.ema=1", r"training\.target\.ema: input should be less than 1"),
        ("methods.0.training.ema=0.9", r"methods\.0\.training\.ema: unknown key"),
        ("split.by=subject", r"split\.by: unknown key"),
        ("training.target.warmup=1", r"training\.target\.warmup: input should be less than 1"),
        ("methods.0.training.lrr=1", r"methods\.0\.training\.lrr: unknown key; did you mean 'lr'"),
        ("methods.0.training.steps=1", r"methods\.0\.training\.steps: unknown key"),
        (
            "methods.0.training.lr=0",
            r"methods\.0\.training\.lr: input should be greater than or equal to 0.00000001",
        ),
        ("sweep.trails=3", r"sweep\.trails: unknown key; did you mean 'trials'"),
        ("sweep.trials=0", r"sweep\.trials: input should be greater than or equal to 1"),
        ("sweep.seeds=[0, 0]", r"sweep\.seeds: must be different, but 0 is listed twice"),
        ("sweep.sampler=grid", r"sweep\.sampler: input should be 'tpe' or 'random'"),
        ("sweep.shared_space.lrr=[1, 2]", r"shared_space\.lrr: unknown key; did you mean 'lr'"),
        ("sweep.shared_space.lr=[0, 1]", r"shared_space\.lr: must be \[low, high\] within 1e-08"),
        ("sweep.shared_space.warmup=[0.0, 1.0]", r"warmup: must be \[low, high\] within 0 to 0.99"),
        ("sweep.shared_space.dice_share=[0.9, 0.1]", r"dice_share: must be \[low, high\]"),
        ("training.target.patch=[16,16]", "both be 2D or both 3D"),
        ("training.target.patch=[16,16,0]", r"training\.target\.patch\.2: input should be greater"),
        ("data.volume.spacing=[1,1,-1]", r"data\.volume\.spacing\.2: input should be greater"),
        ("methods=[trm, trm]", "listed twice"),
        ("methods=[]", r"methods"),
        ("seeds=[0,0]", r"seeds: must be different, but 0 is listed twice"),
        ("transfers.pairs=[[whole,whole]]", "same"),
        ("transfers.shots=[]", "shots"),
        ("data.labels=whole", "cross_task"),
        ("metrics=[iou]", r"metrics\.0"),
        ("name=../evil", "name"),
        ("nonsense", "not key.path=value"),
        ("seeds=[1", "not YAML"),
        ("methods.7.base=2", "not an index"),
        ("methods.\u00b2.base=2", "not an index"),
        ("seeds.0.x=1", r"seeds\.0: input should be a valid integer"),
        ("training.target.steps=true", r"training\.target\.steps: true is not a number"),
        ("training.target.steps=.inf", r"training\.target\.steps: input should be a finite"),
        ("methods.2.base=.nan", r"methods\.2\.base: must be a finite number"),
        ("network.channels=[.inf]", r"network\.channels: must be a finite number"),
        ("training.target.batch=1" + "0" * 30, r"training\.target\.batch: the number is beyond"),
        ("training.target.patch=[4096,4096,4096]", r"training\.target: batch x patch: more than"),
        ("training.target.optimizer.lr=1e-320", r"optimizer\.lr: input should be greater"),
        ("training.target.loss={cross_entropy: 1e-320, dice: 0}", "nothing would be learned"),
        ("training.target={steps: 1, patch: [8,8,8], warmup: 0.1}", "nothing would be learned"),
        ("training.target.augment.flip=[1,1]", r"augment\.flip: must be different"),
        ("evaluation.overlap=0.999999", r"evaluation\.overlap: input should be less"),
        ("data.volume.spacing=[1,1,1e-6]", r"data\.volume\.spacing\.2: input should be greater"),
        ("seeds=[2147483648]", r"seeds\.0: input should be less"),
        ("seeds=[0, '0']", r"seeds: must be different"),
        ("metrics=[dice,dice]", r"metrics: must be different"),
        ("data.modalities=[a,a]", r"data\.modalities: must be different"),
        ("transfers.shots=[1,1]", r"transfers\.shots: must be different"),
        ("transfers.pairs=[]", r"transfers\.pairs: tuple should have at least 1 item"),
        ("transfers.pairs=[[a,b],[a,b]]", r"transfers\.pairs: must be different"),
        ("claim={family: [[trm,scratch],[trm,scratch]]}", r"claim\.family: must be different"),
        ("claim={family: [[trm,focal]]}", "claim.family: names methods that are not listed: focal"),
        ("sweep.transfers=[a,a]", r"sweep\.transfers: must be different"),
        ("sweep.trials=1000000000", r"sweep\.trials: input should be less"),
        ("phantom={subjects: 100000000}", r"phantom\.subjects: input should be less"),
        ('data.root="a\\0b"', r"data\.root: holds the control character U\+0000"),
        ("name=sources", "name: 'sources' is a folder that all protocols share"),
        ("name=" + "a" * 300, "name: string should have at most 60"),
        ("data.allow_links=7", r"data\.allow_links"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, override)


def test_overrides(tmp_path: Path) -> None:
    found = load(
        tmp_path, "training.target.steps=7", "seeds=[3, 4]", "methods.2.base=3.0", "tracking=off"
    )
    assert found.training.target.steps == 7 and found.training.source.steps == 6
    assert found.seeds == (3, 4) and found.tracking == "off"
    assert found.methods[2].name == "trm" and found.methods[2].parameters == {"base": 3.0}


def test_phantom_overrides_come_before_set(tmp_path: Path) -> None:
    block = {
        "subjects": 5,
        "spacing": 6,
        "overrides": {"training.target.steps": 2, "training.source.steps": 2},
    }
    file = toy.write_protocol(tmp_path / "p.yaml", tmp_path, phantom=block)
    found = load_protocol(str(file), ["training.target.steps=9"], phantom=True)
    assert (found.training.source.steps, found.training.target.steps) == (2, 9)
    with pytest.raises(UserError, match="no phantom"):
        load(tmp_path, phantom=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML"),
        ("- a", "mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_files_that_are_not_protocols(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_protocol(str(file))


def test_a_missing_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'hippocampus_cross_task'"):
        load_protocol("hippocampus_crosstask")


def test_data_root_needs_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(tmp_path, "data.root=${TRM_TEST_ROOT}/x")
    monkeypatch.delenv("TRM_TEST_ROOT", raising=False)
    with pytest.raises(UserError, match="TRM_TEST_ROOT is not set"):
        folder_of(found, *found.sets)
    monkeypatch.setenv("TRM_TEST_ROOT", "/data")
    assert folder_of(found, *found.sets) == Path("/data/x")
    with pytest.raises(UserError, match=r"data\.root: '~nosuchuser/x': no such user"):
        nobodys = load(tmp_path, "data.root=~nosuchuser/x")
        folder_of(nobodys, *nobodys.sets)


def test_a_long_list_of_mistakes_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\n    and 80 more") as caught:
        load(tmp_path, f"seeds={[-1] * 100}")
    assert len(str(caught.value).splitlines()) < 30


def test_an_override_of_one_training_leaves_the_one_it_was_copied_from(tmp_path: Path) -> None:
    """The bundled protocols write the target's as `<<: *training`."""
    found = load_protocol("fets_cross_modality", ["training.target.optimizer.lr=0.5"])
    assert found.training.target.optimizer.lr == 0.5
    assert found.training.source.optimizer.lr == 1e-3


def test_a_method_with_a_warm_up_of_its_own_needs_more_than_one_step(tmp_path: Path) -> None:
    own = "methods=[{name: trm, per_transfer: {a: {training: {warmup: 0.1}}}}]"
    with pytest.raises(UserError, match=r"methods\.trm\.per_transfer\.a\.training\.warmup"):
        load(tmp_path, own, "training.target.steps=1")
    assert load(tmp_path, own, "training.target.steps=2")


def test_a_share_of_dice_keeps_the_least_sum_of_the_weights(tmp_path: Path) -> None:
    found = load(tmp_path, "training.target.loss={cross_entropy: 1e-6, dice: 0}")
    applied = MethodTraining(dice_share=0.3).applied(found.training.target)
    assert applied.loss.dice == pytest.approx(3e-7)


def test_protocols_survive_the_journey_into_a_record(tmp_path: Path) -> None:
    """What plan.json holds can be read back as the same protocol."""
    found = load(tmp_path, "methods.2.base=3.0")
    assert parse(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json"))), "x") == found


def test_a_choice_of_methods_leaves_the_declared_family_as_it_is(tmp_path: Path) -> None:
    found = load(tmp_path, "claim={family: [[trm,scratch]]}")
    chosen = choose_methods(found, ["scratch"], REGISTRY.names())
    assert chosen.claim == found.claim
    # as plan.json keeps it
    assert parse(chosen.model_dump(mode="json"), "x") == chosen


def test_choices(tmp_path: Path) -> None:
    found = load(tmp_path, "methods=[scratch, {name: trm, label: trm3, base: 3.0}]")
    chosen = choose_methods(found, ["trm3", "focal"], REGISTRY.names())
    assert [(m.name, m.parameters) for m in chosen.methods] == [
        ("trm", {"base": 3.0}),
        ("focal", {}),
    ]
    with pytest.raises(UserError, match="did you mean 'focal'"):
        choose_methods(found, ["fokal"], REGISTRY.names())
    assert choose_seeds(found, ["5"]).seeds == (5,)
    for wrong in (["a"], ["1", "1"], ["0", "00"], ["\u00b2"], ["-1"], ["2147483648"], ["9" * 5000]):
        with pytest.raises(UserError, match="--seeds"):
            choose_seeds(found, wrong)


def test_a_label_that_is_the_name_of_another_method_is_refused(tmp_path: Path) -> None:
    known = REGISTRY.names()
    refuse_borrowed_labels(load(tmp_path, "methods=[trm, {name: trm, label: mine}]"), known)
    borrowed = load(tmp_path, "methods=[scratch, {name: scratch, label: trm}]")
    with pytest.raises(UserError, match=r"methods\.1\.label: 'scratch' is labelled 'trm'"):
        refuse_borrowed_labels(borrowed, known)


class TestExtends:
    def write(self, path: Path, **files: dict[str, Any]) -> None:
        for name, content in files.items():
            (path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def test_blocks_join_and_lists_do_not(self, tmp_path: Path) -> None:
        own = {
            "extends": "base.yaml",
            "name": "own",
            "seeds": [7, 8],
            "data": {"volume": {"spacing": [2, 2, 2]}},
            "training": {"target": {"optimizer": {"lr": 0.5}}},
        }
        self.write(tmp_path, base=toy.protocol(tmp_path), own=own)
        base, found = (load_protocol(str(tmp_path / f"{n}.yaml")) for n in ("base", "own"))
        assert (found.name, found.seeds, base.seeds) == ("own", (7, 8), (0,))
        assert found.data.volume.spacing == (2, 2, 2)
        assert found.data.volume.intensity == base.data.volume.intensity == "zscore"
        target = found.training.target
        assert (target.optimizer.lr, target.optimizer.name, target.steps) == (0.5, "adamw", 6)
        assert found.training.source == base.training.source and found.methods == base.methods

    def test_another_network_takes_nothing_of_the_first(self, tmp_path: Path) -> None:
        network = {"name": "SegResNet", "init_filters": 8}
        own = {"extends": "base.yaml", "name": "own", "network": network}
        self.write(tmp_path, base=toy.protocol(tmp_path), own=own)
        assert load_protocol(str(tmp_path / "own.yaml")).network.arguments == {"init_filters": 8}

    def test_a_bundled_one_and_one_that_extends_another(self, tmp_path: Path) -> None:
        first = {"extends": "hippocampus_cross_task", "name": "first", "seeds": [3]}
        self.write(tmp_path, first=first, second={"extends": "first.yaml", "name": "second"})
        found = load_protocol(str(tmp_path / "second.yaml"), ["training.target.steps=9"])
        assert (found.name, found.seeds, found.training.target.steps) == ("second", (3,), 9)

    @pytest.mark.parametrize(
        ("extends", "message"),
        [
            ("hippocampus_crosstask", "did you mean 'hippocampus_cross_task'"),
            ("own.yaml", "extends this protocol in turn"),
            ("mate.yaml", "extends this protocol in turn"),
            ("../base.yaml", "lies outside the protocol's folder"),
            ("/etc/passwd", "lies outside the protocol's folder"),
            ("", "no protocol ''"),
            (["a"], "is not the name of a protocol"),
        ],
    )
    def test_what_cannot_be_extended(self, tmp_path: Path, extends: Any, message: str) -> None:
        folder = tmp_path / "protocols"
        folder.mkdir()
        self.write(tmp_path, base=toy.protocol(tmp_path))
        self.write(folder, own={"extends": extends}, mate={"extends": "own.yaml"})
        with pytest.raises(UserError, match=message) as caught:
            load_protocol(str(folder / "own.yaml"))
        assert "extends" in str(caught.value.where)
