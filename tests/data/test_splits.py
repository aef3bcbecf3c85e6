"""Splits: disjoint by patient, stratified, nested shots, deterministic, and leakage refused."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import helpers
import numpy as np
import pytest
import toy
from helpers import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from trm_bench.data import divisions
from trm_bench.data.splits import Held, Split, inner_folds, refuse_leakage, split, split_source
from trm_bench.datasets.base import Subject
from trm_bench.errors import UserError
from trm_bench.protocol.schema import SplitConfig, TargetSplit


def people(scans: list[int], institutions: list[str] | None = None) -> list[Subject]:
    """Patient i with `scans[i]` scans; ids do not sort by patient."""
    return [
        Subject(
            f"{k}-{i:03d}",
            {},
            Path("label"),
            f"patient-{i:03d}",
            institutions[i] if institutions else "",
        )
        for i, number in enumerate(scans)
        for k in range(number)
    ]


def config(
    source: float = 3, train: int = 2, val: int = 1, test: int | str = "rest", **more
) -> SplitConfig:
    return SplitConfig(source=source, target=TargetSplit(train=train, val=val, test=test), **more)


def patients_of(ids: tuple[str, ...]) -> set[str]:
    return {i.partition("-")[2] for i in ids}


cohorts = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc")), min_size=1, max_size=40)
configs = st.builds(
    config,
    source=st.one_of(st.floats(0.05, 0.95), st.integers(1, 10)),
    train=st.integers(1, 8),
    val=st.integers(1, 5),
    test=st.one_of(st.just("rest"), st.integers(1, 8)),
    stratify=st.sampled_from([None, "institution"]),
    seed=st.integers(0, 5),
    design=st.sampled_from(["fixed", "disjoint", "resampled"]),
    sets=st.integers(1, 4),
)


@examples(200)
@given(
    cohort=cohorts,
    settings=configs,
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_any_split_is_right_or_refused(
    cohort: list[tuple[int, str]], settings: SplitConfig, seed: int, order: random.Random
) -> None:
    subjects = people([n for n, _ in cohort], [i for _, i in cohort])
    target, total = settings.target, len(cohort)
    source = round(settings.source * total) if settings.source < 1 else int(settings.source)
    disjoint = settings.design == "disjoint"
    sets = settings.sets if disjoint else 1
    if disjoint and seed >= sets:
        with pytest.raises(UserError, match=rf"seed {seed} has no training set") as caught:
            split(subjects, settings, seed)
        assert caught.value.where == "split.sets"
        return
    left = total - source - sets * target.train - target.val
    test = left if target.test == "rest" else target.test
    if source < 1 or test < 1 or test > left:
        with pytest.raises(UserError, match=rf"{total} usable patients do not suffice") as caught:
            split(subjects, settings, seed)
        assert caught.value.where == "split" and caught.value.fix
        assert ("split.sets" in caught.value.fix) == disjoint
        return
    division = split(subjects, settings, seed)
    parts = division.parts()
    assert {part: len(patients_of(ids)) for part, ids in parts.items()} == {
        "source": source,
        "train": target.train,
        "val": target.val,
        "test": test,
    }
    assert [len(patients_of(ids)) for ids in division.others] == [target.train] * (sets - 1)
    everything = [i for ids in (*parts.values(), *division.others) for i in ids]
    assert len(everything) == len(set(everything))
    for ids in (*parts.values(), *division.others):
        assert {s.id for s in subjects if s.patient.partition("-")[2] in patients_of(ids)} == set(
            ids
        ), "patient split"
    for shots in range(1, target.train + 1):
        some, more = division.train_of(shots), division.train_of(shots + 1)
        assert len(patients_of(some)) == shots and more[: len(some)] == some
    assert division.train_of(target.train) == division.train
    shuffled = list(subjects)
    order.shuffle(shuffled)
    assert split(shuffled, settings, seed) == division
    if settings.design == "fixed":
        assert split(subjects, settings, seed + 1) == division


@examples(100)
@given(
    scans=st.lists(st.integers(1, 3), min_size=12, max_size=20),
    train=st.integers(1, 5),
    val=st.integers(1, 3),
    folds=st.integers(2, 9),
    data=st.data(),
)
def test_inner_folds(
    scans: list[int], train: int, val: int, folds: int, data: st.DataObject
) -> None:
    subjects = people(scans)
    division = split(subjects, config(source=3, train=train, val=val), 0)
    shots = data.draw(st.integers(1, train))
    pool = {*division.train, *division.val}
    if folds > train + val:
        with pytest.raises(UserError, match=rf"{folds} folds of {train + val} training and"):
            inner_folds(division, subjects, shots, folds)
        return
    parts = inner_folds(division, subjects, shots, folds)
    assert len(parts) == folds
    validating = [i for _, ids in parts for i in ids]
    assert sorted(validating) == sorted(pool), "each subject validates once"
    sizes = [len(patients_of(ids)) for _, ids in parts]
    assert max(sizes) - min(sizes) <= 1
    for training, ids in parts:
        assert ids and not patients_of(training) & patients_of(ids)
        assert set(training) <= pool and len(training) == len(set(training))
        left = train + val - len(patients_of(ids))
        assert len(patients_of(training)) == min(shots, left)


def test_shots_count_patients_not_scans() -> None:
    division = split(people([2] * 10), config(source=3, train=4), 0)
    for shots in (1, 2, 4):
        assert (
            len(division.train_of(shots)) == 2 * shots
            and len(patients_of(division.train_of(shots))) == shots
        )


def test_the_seed_and_the_design() -> None:
    subjects = people([1] * 30)
    shared, own = config(seed=1), config(seed=1, design="resampled")
    assert split(subjects, shared, 0) == split(subjects, shared, 7)
    assert len({split(subjects, own, seed) for seed in range(5)}) == 5
    assert len({split(subjects, config(seed=seed), 0) for seed in range(5)}) == 5


@examples(100)
@given(
    cohort=st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc")), min_size=25, max_size=40),
    train=st.integers(1, 4),
    sets=st.integers(1, 5),
    stratify=st.sampled_from([None, "institution"]),
    draw=st.integers(0, 5),
)
def test_disjoint_sets_share_all_but_the_training_set(
    cohort: list[tuple[int, str]], train: int, sets: int, stratify: str | None, draw: int
) -> None:
    subjects = people([n for n, _ in cohort], [i for _, i in cohort])
    sizes = {"source": 3, "val": 1, "stratify": stratify, "seed": draw}
    settings = config(train=train, design="disjoint", sets=sets, **sizes)
    divisions = [split(subjects, settings, seed) for seed in range(sets)]
    assert len({(d.source, d.val, d.test) for d in divisions}) == 1
    assert len({frozenset(d.train) for d in divisions}) == sets
    for own in divisions:
        assert own.others == tuple(d.train for d in divisions if d is not own)

    # one shuffled list: source, sets, validation, test; the sets together are one larger fixed set
    fixed = split(subjects, config(train=sets * train, **sizes), 0)
    assert (fixed.source, fixed.val, fixed.test) == (own.source, own.val, own.test)
    assert fixed.train_patients == sum((d.train_patients for d in divisions), ())


def test_one_disjoint_set_is_the_fixed_split() -> None:
    """The numbers of a protocol with one seed do not change with the design."""
    subjects = people([2] * 20)
    for draw in range(5):
        disjoint = config(seed=draw, design="disjoint", sets=1)
        assert split(subjects, disjoint, 0) == split(subjects, config(seed=draw), 0)


def test_splits_are_those_of_earlier_results() -> None:
    """What has been published is bound to these subjects."""
    subjects = people([1] * 9)
    fixed = split(subjects, config(), 0)
    resampled = split(subjects, config(design="resampled"), 1)
    assert fixed.train == ("0-008", "0-005") and resampled.train == ("0-007", "0-002")


def test_shots_are_nested_in_each_seeds_own_set() -> None:
    subjects = people([1] * 40)
    settings = config(train=5, design="disjoint", sets=5)
    divisions = [split(subjects, settings, seed) for seed in range(5)]
    for shots in (1, 3, 5):
        assert len({i for d in divisions for i in d.train_of(shots)}) == 5 * shots


def test_a_seed_without_a_set_says_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        split(people([1] * 40), config(design="disjoint", sets=3), 4)
    assert caught.value.where == "split.sets"
    assert "raise it to 5" in caught.value.fix and "from 0 to 2" in caught.value.fix


def test_too_few_patients_for_all_sets() -> None:
    subjects, settings = people([1] * 14), config(design="disjoint", sets=5)
    assert len(split([*subjects, *people([1] * 15)[14:]], settings, 0).test) == 1
    with pytest.raises(UserError, match=r"14 usable .* source 3, train 5 x 2, val 1"):
        split(subjects, settings, 0)


def test_every_scan_is_in_some_part() -> None:
    subjects = people([2] * 12)
    assert sum(len(ids) for ids in split(subjects, config(source=0.5), 0).parts().values()) == 24


class TestStrata:
    SIZES = {"big": 60, "middle": 30, "small": 10}  # noqa: RUF012 (constant)

    @pytest.mark.parametrize("sets", [1, 3])
    def test_every_part_holds_the_institutions_in_proportion(self, sets: int) -> None:
        assert self.farthest("institution", sets) <= 2
        assert self.farthest(None, sets) > 3, "the test would not see a difference"

    def farthest(self, stratify: str | None, sets: int) -> float:
        """The farthest that an institution's number in any part lies from its proportion, over 20
        splits.
        """
        institutions = [name for name, n in self.SIZES.items() for _ in range(n)]
        subjects = people([1] * 100, institutions)
        of = {s.id: s.institution for s in subjects}
        apart = 0.0
        for seed in range(20):
            sizes = {"source": 0.4, "train": 12, "val": 10, "stratify": stratify, "seed": seed}
            division = split(subjects, config(design="disjoint", sets=sets, **sizes), 0)
            for ids in (*division.parts().values(), *division.others):
                counts = Counter(of[i] for i in ids)
                apart = max(
                    apart, *(abs(counts[k] - len(ids) * n / 100) for k, n in self.SIZES.items())
                )
        return apart

    def test_every_institution_is_in_every_large_part(self) -> None:
        subjects = people([1] * 40, [f"i{n % 10}" for n in range(40)])
        of = {s.id: s.institution for s in subjects}
        for seed in range(10):
            parts = split(
                subjects, config(source=0.5, train=1, val=1, stratify="institution", seed=seed), 0
            ).parts()
            assert (
                len({of[i] for i in parts["source"]}) == len({of[i] for i in parts["test"]}) == 10
            )


@examples(100)
@given(cohort=cohorts, settings=configs, seed=st.integers(0, 3))
def test_a_source_with_patients_of_its_own(
    cohort: list[tuple[int, str]], settings: SplitConfig, seed: int
) -> None:
    subjects = people([n for n, _ in cohort], [i for _, i in cohort])
    total = len(cohort)
    wanted = round(settings.source * total) if settings.source < 1 else int(settings.source)
    if wanted < 1 or wanted >= total:
        with pytest.raises(UserError, match=rf"{total} usable patients of the source"):
            split_source(subjects, settings, seed)
        return
    train, val = split_source(subjects, settings, seed)
    assert len(patients_of(train)) == wanted
    assert len(patients_of(val)) == min(settings.target.val, total - wanted)
    assert not patients_of(train) & patients_of(val)
    scans = [s.id for s in subjects if patients_of((s.id,)) <= patients_of(train + val)]
    assert sorted(train + val) == sorted(scans), "all scans of a patient go along"
    again = split_source(subjects[::-1], settings, seed + (settings.design != "resampled"))
    assert again == (train, val)


def test_a_target_without_its_source_s_patients() -> None:
    division = split(people([1] * 10), config(source=0.5, train=2, val=1), 0, with_source=False)
    assert not division.source and len(division.test) == 7
    assert set(division.parts()) == {"train", "val", "test"}
    with pytest.raises(UserError, match=r"for train 2, val 1, test rest"):
        split(people([1] * 3), config(source=0.5), 0, with_source=False)


def refuse(division: Split, subjects: list[Subject], contents: dict[str, str]) -> None:
    """Looks for leaks in a split of one data set."""
    patients = {s.id: s.patient for s in subjects}
    others = {f"train of other seeds, {i}": ids for i, ids in enumerate(division.others)}
    refuse_leakage(
        {
            part: [Held(i, "root", patients[i], (contents[i],)) for i in ids]
            for part, ids in {**division.parts(), **others}.items()
        }
    )


class TestLeakage:
    SUBJECTS = people([2, 1, 1, 1, 1])
    CLEAN = Split(("0-000", "1-000"), (("0-001",), ("0-002",)), ("0-003",), ("0-004",))
    CONTENTS = {s.id: s.id for s in SUBJECTS}  # noqa: RUF012 (constant)

    def test_a_clean_split_passes(self) -> None:
        refuse(self.CLEAN, self.SUBJECTS, self.CONTENTS)
        refuse(self.CLEAN, self.SUBJECTS, self.CONTENTS | {"1-000": "same", "0-000": "same"})

    @given(
        pair=st.lists(
            st.sampled_from([s.id for s in SUBJECTS]), min_size=2, max_size=2, unique=True
        )
    )
    @examples(30)
    def test_the_same_voxels_in_two_parts_are_refused(self, pair: list[str]) -> None:
        part = {i: name for name, ids in self.CLEAN.parts().items() for i in ids}
        assume(part[pair[0]] != part[pair[1]])
        with pytest.raises(UserError, match=r"leak: .* are the same content") as caught:
            refuse(self.CLEAN, self.SUBJECTS, self.CONTENTS | dict.fromkeys(pair, "f" * 64))
        assert all(i in str(caught.value) for i in pair)

    @pytest.mark.parametrize("others", [(("0-004",),), (("9-009",), ("0-004",))])
    def test_a_copy_in_the_training_set_of_another_seed_is_refused(
        self, others: tuple[tuple[str, ...], ...]
    ) -> None:
        """In another set than the seed's own, whichever part holds the other copy."""
        subjects = [*self.SUBJECTS, *people([0] * 9 + [10])]
        contents = {s.id: s.id for s in subjects}
        division = Split(("0-000", "1-000"), (("0-001",),), ("0-002",), ("0-003",), others)
        refuse(division, subjects, contents)
        for partner in ("0-000", "0-001", "0-002", "0-003", *others[0]):
            if partner == "0-004":
                continue
            same = contents | dict.fromkeys((partner, "0-004"), "f" * 64)
            with pytest.raises(UserError, match=r"leak: .*train of other seeds.* same content"):
                refuse(division, subjects, same)
        patient = replace(division, others=(*others[:-1], ("0-004", "1-000")))
        with pytest.raises(UserError, match=r"leak: .*train of other seeds.* same patient"):
            refuse(patient, subjects, contents)

    @pytest.mark.parametrize("ends", ["train", "val", "test"])
    def test_a_patient_in_two_parts_is_refused(self, ends: str) -> None:
        parts = {"train": ("0-001",), "val": ("0-003",), "test": ("0-004",)}
        parts[ends] = (*parts[ends], "1-000")
        split_patient = Split(("0-000",), (parts["train"],), parts["val"], parts["test"])
        with pytest.raises(UserError, match=r"leak: .* are the same patient patient-000"):
            refuse(split_patient, self.SUBJECTS, self.CONTENTS)

    def test_a_renamed_and_recompressed_copy_stops_the_benchmark(self, tmp_path: Path) -> None:
        root = toy.write_dataset(tmp_path / "data")
        for folder in ("imagesTr", "labelsTr"):
            voxels = gzip.decompress((root / folder / "toy_000.nii.gz").read_bytes())
            for copy in range(1, 9):  # whichever part toy_000 is in, a copy is in another
                (root / folder / f"toy_{copy:03d}.nii.gz").write_bytes(gzip.compress(voxels, copy))
        with pytest.raises(UserError, match=r"leak: .* are the same content"):
            helpers.plan(root, tmp_path / "out")


def test_the_order_of_training_subjects_is_part_of_the_run(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = helpers.plan(toy_data, tmp_path)
    monkeypatch.setattr(
        divisions, "split", lambda *args, **options: _turned(split(*args, **options))
    )
    after = helpers.plan(toy_data, tmp_path)
    assert [s.id for s in before.sources] == [s.id for s in after.sources], (
        "the source's subjects have not changed"
    )
    assert {r.id for r in before.runs}.isdisjoint(r.id for r in after.runs)
    old, new = (made.runs[0].config.subjects for made in (before, after))
    assert old.train == new.train[::-1] and len(old.train) == 2 and old.test == new.test


def _turned(division: Split) -> Split:
    return Split(division.source, division.train_patients[::-1], division.val, division.test)


@pytest.mark.parametrize("share, patients, sources", [(0.4, 7, 3), (0.4, 8, 3), (0.34, 10, 3)])
def test_a_share_is_rounded_to_the_nearest_number(
    share: float, patients: int, sources: int
) -> None:
    division = split(people([1] * patients), config(source=share, train=1, val=1), 0)
    assert len(division.source) == sources


def test_patients_are_shuffled_evenly() -> None:
    """Over many seeds each patient is in the test part about as often as any other."""
    subjects = people([1] * 10)
    hits = Counter(
        i for seed in range(300) for i in split(subjects, config(source=5, seed=seed), 0).test
    )
    expected = 300 * 2 / 10
    # chi2, 0.1 %
    assert (
        len(hits) == 10
        and np.sum((np.array(list(hits.values())) - expected) ** 2 / expected) < 27.9
    )
