"""The study: every step of every part is a command that the software takes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol.load import load_protocol
from trm_bench.protocol.schema import MethodConfig, Protocol
from trm_bench.report import compared
from trm_bench.sweep.space import space_of

STUDY = Path(__file__).resolve().parents[1] / "study"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STUDY / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and the scripts look each other up
    spec.loader.exec_module(module)
    return module


study, parts, tables, figures = map(_script, ("run", "parts", "tables", "figures"))
STEPS = [(part, step) for part, steps in study.PARTS.items() for step in steps]


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRM_DATA", str(tmp_path))


def protocol_of(name: str) -> Protocol:
    return load_protocol(str(STUDY / f"{name}.yaml"))


def methods_of(step: object, protocol: Protocol) -> list[str]:
    chosen = {"all": REGISTRY.names(), "": protocol.methods}
    return [m if isinstance(m, str) else m.name for m in chosen[step.methods]]


def test_every_protocol_is_of_a_part() -> None:
    assert {step.protocol for _, step in STEPS} == {f.stem for f in STUDY.glob("*.yaml")}


@pytest.mark.parametrize("name", sorted({step.protocol for _, step in STEPS}))
def test_protocols_can_be_read_and_declare_what_they_ask(name: str) -> None:
    protocol = protocol_of(name)
    assert protocol.name == f"study_{name}"
    claim, labels = protocol.claim, {m.label for m in protocol.methods}
    assert claim and ("trm", "finetune") in claim.family
    assert {"scratch", "finetune", "trm", "trm_prior"} <= labels
    # a family of four needs five seeds for a mark
    assert len(claim.family) <= 4 and len(protocol.seeds) >= 5
    if claim.gain is not None:
        assert claim.source.startswith("counterpart")


def test_what_is_tuned_is_swept_before_with_the_same_spaces() -> None:
    tuned = [(part, step) for part, step in STEPS if step.tuned_on]
    assert tuned
    for part, step in tuned:
        steps = study.PARTS[part]
        before = steps[: steps.index(step)]
        sweeps = [s for s in before if s.command == "sweep" and s.protocol == step.tuned_on]
        assert len({s.methods for s in sweeps}) == len(sweeps), "each once"
        sweep = sweeps[-1]
        own, other = protocol_of(step.protocol), protocol_of(step.tuned_on)
        if own.data.root == other.data.root:  # else test patients of one seed are tuned on
            assert own.split.design != "resampled"
        assert {*methods_of(step, own), step.training_of} - {""} <= set(methods_of(sweep, other))
        for name in methods_of(step, own):
            chosen = MethodConfig(name=name)
            spaces = [space_of(chosen, p.training.target, p.sweep).hash for p in (own, other)]
            assert spaces[0] == spaces[1], (step.protocol, name)


def test_no_patient_is_tested_on_that_was_tuned_on() -> None:
    def tested(folder: Path) -> set[str]:
        return set(parts.Part(folder).table("metrics.csv.gz").subject)

    seen = 0
    for step in {step for _, step in STEPS if step.tuned_on}:
        own, other = (protocol_of(name) for name in (step.protocol, step.tuned_on))
        if own.data.root == other.data.root:
            # those that a sweep validates on are not tested on by its protocol
            names = step.name, other.name
            ids, known = (tested(parts.REFERENCE / name) for name in names)
            assert ids <= known, step.name
            seen += 1
    assert seen


def test_a_sweep_has_16_trials_on_one_split() -> None:
    sweeps = {step for _, step in STEPS if step.command == "sweep"}
    assert {step.methods for step in sweeps} == {"", "all"}
    for steps in study.PARTS.values():  # all methods join the family, which is the same everywhere
        for step in steps:
            if step in sweeps and step.methods:
                assert study.Step("sweep", step.protocol) in steps[: steps.index(step)]
    for step in sweeps:
        assert protocol_of(step.protocol).split.design != "resampled"
        assert protocol_of(step.protocol).sweep.trials == 16
        assert protocol_of(step.protocol).sweep.tune_training == "always"


def test_tables_of_defaults_and_of_tuned_values_have_names_of_their_own(tmp_path: Path) -> None:
    names = [step.name for _, step in STEPS if step.command == "run"]
    assert len(set(names)) == len(names)
    steps = [s for s in study.PARTS["A"] if s.tuned_on]
    for step in steps:
        given = step.arguments(tmp_path)
        assert f"name={step.name}" in given and "--borrow" in given
        assert str(tmp_path / "study_brats" / "sweep" / "tuned.yaml") in given
    assert [s.arguments(tmp_path)[-2:] for s in steps][1] == ["--training-of", "finetune"]


def test_only_numbers_and_charts_are_collected(tmp_path: Path) -> None:
    step = study.PARTS["F"][0]
    made = tmp_path / "results" / step.name
    (made / "figures").mkdir(parents=True)
    for name in ("table.md", "metrics.csv", "figures/gains.svg", "figures/risk_a-to-b.png"):
        (made / name).write_text(name)
    for _ in range(2):
        study.collect(tmp_path / "results", tmp_path / "reference", step)
    files = {f for f in (tmp_path / "reference").rglob("*") if f.is_file()}
    there = {str(f.relative_to(tmp_path / "reference" / step.name)): f for f in files}
    assert set(there) == {"table.md", "metrics.csv.gz", "figures/gains.svg"}
    assert gzip.decompress(there["metrics.csv.gz"].read_bytes()) == b"metrics.csv"


# a protocol may have been swept and not yet run
RUN = sorted(path.parent for path in parts.REFERENCE.glob("study_*/summary.json"))


@pytest.mark.parametrize("folder", RUN, ids=lambda f: f.name)
def test_others_can_compare_with_the_reference(folder: Path) -> None:
    known = compared.of_files(folder)
    assert known.summary.protocol == folder.name and known.settings
    methods = known.methods
    assert {"scratch", "finetune", "trm"} <= set(methods)
    for method in methods:
        numbers = known.numbers("dice", method)
        assert numbers and numbers.n_subjects
    states = json.loads((folder / "summary.json").read_text("utf-8"))["states"]
    assert set(states) == {"finished"}, "a run is missing"


class TestPages:
    """README and docs say what the files say."""

    @pytest.mark.parametrize("page", tables.PAGES)
    def test_tables_are_those_of_the_files(self, page: str) -> None:
        text = (tables.ROOT / page).read_text("utf-8")
        assert tables.BLOCK.search(text), "no table of the study"
        assert tables.written(text) == text, "python study/tables.py --write"

    def test_figures_are_those_of_the_files(self, tmp_path: Path) -> None:
        figures.save(tmp_path)
        for drawn in tmp_path.iterdir():
            assert drawn.read_bytes() == (figures.DRAWN / drawn.name).read_bytes(), drawn.name

    def test_no_panel_is_empty(self) -> None:
        shown = [axes for axes in figures.leep().axes if axes.get_visible()]
        assert shown and all(axes.get_title(loc="left") or axes.get_title() for axes in shown)

    @pytest.mark.parametrize("page", ["README.md", "docs/findings.md"])
    def test_numbers_in_sentences_are_in_the_tables(self, page: str) -> None:
        made = "".join(make() for make in tables.BLOCKS.values())
        known = {number.lstrip("+-") for number in re.findall(r"[+-]?\d+\.\d+", made)}
        prose = tables.BLOCK.sub("", _about_the_study((tables.ROOT / page).read_text("utf-8")))
        said = [
            number.lstrip("+-")
            for number in re.findall(r"(?<![\d.:])[+-]?\d+\.\d+(?![\d.])", prose)
        ]
        assert said and not set(said) - known - tables.UNMEASURED

    def test_a_block_of_another_number_is_found(self) -> None:
        text = (tables.ROOT / "docs/study.md").read_text("utf-8")
        number = re.search(r"\d+\.\d+ \|", tables.BLOCK.search(text)[3])
        assert number
        assert tables.written(text.replace(number[0], "99.9 |")) == text


def _about_the_study(text: str) -> str:
    """What stands between the two marks of a page that tells of more."""
    found = re.search(r"<!-- the study -->(.*?)<!-- the study: end -->", text, re.DOTALL)
    assert found, "the study has no marks"
    return found[1]
