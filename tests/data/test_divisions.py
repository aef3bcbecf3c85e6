"""Divisions: no patient on two sides, whatever a transfer's domains have in common."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.data.cohorts import Cohort, find
from trm_bench.data.divisions import Division, divide, same_patients
from trm_bench.data.splits import split
from trm_bench.datasets.base import Subject
from trm_bench.errors import UserError
from trm_bench.protocol.domains import CheckpointConfig
from trm_bench.protocol.schema import (
    Domain,
    SetConfig,
    SplitConfig,
    TargetSplit,
    Transfer,
    VolumeConfig,
)

HERE = SetConfig(dataset="fake", root="here", volume=VolumeConfig())
FINER = HERE.model_copy(update={"volume": VolumeConfig(spacing=(1, 1, 1))})
SPELLED = HERE.model_copy(update={"root": "there/../here"})
THERE = HERE.model_copy(update={"root": "there"})
SETS = (HERE, FINER, SPELLED, THERE)
SITES = ("a", "b", "c")
MODALITIES = ("t1", "t2")

Cohorts = dict[SetConfig, Cohort]


def cohort(
    data: SetConfig, people: list[tuple[int, str]], copies: Collection[int] = (), name: str = ""
) -> Cohort:
    """Patient i with so many scans at a site; scans of `copies` are those of `here`.

    Patients' names begin with `name`, or the folder's.
    """
    folder = Path(data.root).resolve().name
    subjects = [
        Subject(f"{k}-{i:03d}", {}, Path("label"), f"{name or folder}-{i:03d}", site)
        for i, (scans, site) in enumerate(people)
        for k in range(scans)
    ]
    prepared: dict[str, Any] = {}
    for subject in subjects:
        place = "here" if int(subject.id[2:]) in copies else folder
        voxels = tuple(f"{place} {subject.id} {m}" for m in MODALITIES)
        prepared[subject.id] = SimpleNamespace(voxels=voxels, digest=f"{place} {subject.id}")
    dataset: Any = SimpleNamespace(root=Path(data.root), name=data.dataset)
    return Cohort(data, dataset, subjects, prepared)


def domain(data: SetConfig = HERE, **more: Any) -> Domain:
    return Domain(name="x", data=data, images=("t1",), labels="whole", **more)


def transfer(*sources: Domain | CheckpointConfig, target: Domain) -> Transfer:
    return Transfer(sources=sources, target=target, shots=1, way=("x",), name="x")


def config(source: float = 3, train: int = 2, val: int = 1, **more: Any) -> SplitConfig:
    return SplitConfig(source=source, target=TargetSplit(train=train, val=val), **more)


def people(*numbers: int) -> list[tuple[int, str]]:
    """So many patients of each site, with one scan each."""
    return [(1, site) for site, number in zip(SITES, numbers, strict=False) for _ in range(number)]


def patients(cohort: Cohort, ids: tuple[str, ...]) -> set[tuple[str, str]]:
    of = {s.id: s.patient for s in cohort.subjects}
    return {(str(cohort.dataset.root.resolve()), of[i]) for i in ids}


def scans(cohort: Cohort, ids: tuple[str, ...]) -> set[str]:
    return {voxels for i in ids for voxels in cohort.prepared[i].voxels}


def refuse_two_sides(found: Division, way: Transfer, cohorts: Cohorts) -> None:
    """Fails where a patient or a scan of a source is one of the target's."""
    ours = cohorts[way.target.data]
    own = found.target
    blocks = [own.train, own.val, own.test, *own.others]
    for source, (train, val) in zip(way.sources, found.sources, strict=True):
        if isinstance(source, CheckpointConfig):
            assert not train and not val
            continue
        theirs = cohorts[source.data]
        assert train and val and not patients(theirs, train) & patients(theirs, val)
        assert {*train, *val} <= {s.id for s in theirs.of(source)}
        for block in blocks:
            assert not patients(ours, block) & patients(theirs, train)
            assert not scans(ours, block) & scans(theirs, train)
        if same_patients(source, way.target):
            assert (train, val) == (own.source, own.val)
        else:
            assert not any(patients(ours, block) & patients(theirs, val) for block in blocks)
            assert not any(scans(ours, block) & scans(theirs, val) for block in blocks)
    for i, block in enumerate(blocks):
        assert not any(patients(ours, block) & patients(ours, other) for other in blocks[:i])
        assert {*block} <= {s.id for s in ours.of(way.target)}


cohort_of_some = st.lists(st.tuples(st.integers(1, 2), st.sampled_from(SITES)), max_size=25)
some_sites = st.lists(st.sampled_from(SITES), max_size=2, unique=True).map(tuple)
some_domain = st.one_of(
    st.builds(domain, st.sampled_from(SETS), institutions=some_sites),
    st.builds(domain, st.sampled_from(SETS), except_institutions=some_sites),
)
settings = st.builds(
    config,
    source=st.one_of(st.floats(0.2, 0.8), st.integers(1, 6)),
    train=st.integers(1, 3),
    val=st.integers(1, 2),
    stratify=st.sampled_from([None, "institution"]),
    design=st.sampled_from(["fixed", "disjoint", "resampled"]),
    sets=st.integers(1, 3),
    seed=st.integers(0, 3),
)


@examples(300)
@given(
    here=cohort_of_some,
    there=cohort_of_some,
    copies=st.sampled_from([(), (), (), range(3)]),
    sources=st.lists(some_domain, min_size=1, max_size=3),
    target=some_domain,
    settings=settings,
    seed=st.integers(0, 2),
)
def test_no_patient_is_on_two_sides(
    here: list[tuple[int, str]],
    there: list[tuple[int, str]],
    copies: Collection[int],
    sources: list[Domain],
    target: Domain,
    settings: SplitConfig,
    seed: int,
) -> None:
    cohorts = {data: cohort(data, here) for data in (HERE, FINER, SPELLED)}
    cohorts[THERE] = cohort(THERE, there, copies)
    way = transfer(*sources, target=target)
    try:
        found = divide(way, cohorts, settings, seed)
    except UserError as error:
        assert error.fix and error.where in ("split", "split.source", "split.sets")
        return
    refuse_two_sides(found, way, cohorts)


def test_the_subjects_of_a_domain() -> None:
    own = cohort(HERE, people(2, 3, 4))

    def number(**sites: tuple[str, ...]) -> int:
        return len(own.of(domain(**sites)))

    assert [number(), number(institutions=("a", "c"))] == [9, 6]
    assert number(except_institutions=("c",)) == 5


class TestSharedPool:
    """A source of the same patients, as between modalities: what results so far were made with."""

    COHORTS: Cohorts = {d: cohort(d, people(6, 7)) for d in (HERE, FINER)}  # noqa: RUF012

    @pytest.mark.parametrize("sites", [(), ("b",)])
    @pytest.mark.parametrize("design", ["fixed", "disjoint", "resampled"])
    def test_it_is_the_split_of_one_data_set(self, sites: tuple[str, ...], design: str) -> None:
        settings, target = config(design=design, sets=1), domain(institutions=sites)
        source = target.model_copy(update={"images": ("t2",), "name": "y"})
        whole = split(self.COHORTS[HERE].of(target), settings, 0)
        for other in (source, source.model_copy(update={"data": FINER})):
            found = divide(transfer(other, target=target), self.COHORTS, settings, 0)
            assert found == Division(whole, ((whole.source, whole.val),))
        chain = divide(transfer(source, source, target=target), self.COHORTS, settings, 0)
        assert chain.sources == 2 * ((whole.source, whole.val),)

    def test_the_order_of_sites_does_not_matter(self) -> None:
        one, other = (domain(institutions=s) for s in (("a", "b"), ("b", "a")))
        assert same_patients(one, other)
        for other in (domain(), domain(THERE), domain(except_institutions=("c",))):
            assert not same_patients(one, other)
            assert other == domain() or not same_patients(domain(), other)

    def test_what_one_preparation_lacks_is_in_no_part(self) -> None:
        finer = self.COHORTS[FINER]
        fewer = Cohort(FINER, finer.dataset, finer.subjects[3:], finer.prepared)
        way = transfer(domain(FINER), target=domain())
        found = divide(way, {**self.COHORTS, FINER: fewer}, config(), 0)
        assert found.target == split(fewer.subjects, config(), 0)


class TestSourceOfItsOwn:
    COHORTS: Cohorts = {  # noqa: RUF012 (constant)
        HERE: cohort(HERE, people(6, 6, 6)),
        THERE: cohort(THERE, people(5, 5)),
    }

    def divided(self, *sources: Domain | CheckpointConfig, target: Domain) -> Division:
        way = transfer(*sources, target=target)
        found = divide(way, self.COHORTS, config(), 0)
        refuse_two_sides(found, way, self.COHORTS)
        return found

    def test_the_target_keeps_all_its_patients(self) -> None:
        found = self.divided(domain(THERE), target=domain())
        assert not found.target.source
        assert sum(map(len, found.target.parts().values())) == 18
        ((train, val),) = found.sources
        assert (len(train), len(val)) == (3, 1)

    def test_a_site_that_both_lists_name_is_the_target_s(self) -> None:
        found = self.divided(domain(institutions=("a", "b")), target=domain(institutions=("b",)))
        of = {s.id: s.institution for s in self.COHORTS[HERE].subjects}
        assert {of[i] for part in found.sources[0] for i in part} == {"a"}

    def test_leave_one_out(self) -> None:
        others = domain(except_institutions=("c",))
        found = self.divided(others, target=domain(institutions=("c",)))
        assert sum(map(len, found.target.parts().values())) == 6

    def test_a_chain_that_begins_with_a_checkpoint(self) -> None:
        elsewhere = CheckpointConfig(checkpoint="net.pt")
        found = self.divided(elsewhere, domain(THERE), target=domain())
        assert found.sources[0] == ((), ()) and found.sources[1][0]

    def test_one_folder_under_two_names(self) -> None:
        """Other images of the same patients, whose voxels give nothing away."""
        spelled = cohort(SPELLED, people(6, 6, 6))
        blind: dict[str, Any] = {
            i: SimpleNamespace(voxels=(f"other {i}",), digest="") for i in spelled.prepared
        }
        again = Cohort(SPELLED, spelled.dataset, spelled.subjects, blind)
        way = transfer(domain(SPELLED), target=domain(institutions=("a",)))
        found = divide(way, {**self.COHORTS, SPELLED: again}, config(), 0)
        refuse_two_sides(found, way, {**self.COHORTS, SPELLED: again})
        everything = transfer(domain(SPELLED), target=domain())
        with pytest.raises(UserError, match="0 usable patients of the source"):
            divide(everything, {**self.COHORTS, SPELLED: again}, config(), 0)

    def test_a_copy_in_another_data_set_is_refused(self) -> None:
        way = transfer(domain(THERE), target=domain())
        for copies in ({0}, {1}):  # the one trains, the other validates
            copied = {**self.COHORTS, THERE: cohort(THERE, people(2), copies)}
            with pytest.raises(UserError, match=r"leak: .* are the same content"):
                divide(way, copied, config(source=1), 0)

    def test_a_copy_in_the_training_set_of_another_seed_is_refused(self) -> None:
        own = split(self.COHORTS[HERE].subjects, config(design="disjoint", sets=2), 0, False)
        ((other,),) = {ids[:1] for ids in own.others}
        copied = {**self.COHORTS, THERE: cohort(THERE, people(20), {int(other[2:])})}
        settings = config(source=19, design="disjoint", sets=2)
        with pytest.raises(UserError, match=rf"{other} \(train of other seeds, 1\)"):
            divide(transfer(domain(THERE), target=domain()), copied, settings, 0)

    def test_one_name_in_two_data_sets_is_two_patients(self) -> None:
        named = {data: cohort(data, people(6), name="patient") for data in (HERE, THERE)}
        found = divide(transfer(domain(THERE), target=domain()), named, config(source=5), 0)
        assert sum(map(len, found.sources[0])) == 6

    def test_two_sources_may_share_patients(self) -> None:
        found = self.divided(domain(THERE), domain(THERE), target=domain())
        assert found.sources[0] == found.sources[1]


def test_a_volume_is_found_by_its_subject_and_its_files() -> None:
    """Two subjects of one part may be copies: each has a volume of its own."""
    made = cohort(HERE, [(1, "a"), (1, "a")])
    twins: Any = made.prepared
    first, second = twins
    twins[second].digest = twins[first].digest
    cohorts, digest = {HERE: made}, twins[first].digest
    for subject in (first, second):
        assert find(cohorts, "fake", HERE.volume, subject, digest) is twins[subject]
    assert find(cohorts, "fake", HERE.volume, first, "other files") is None
    assert find(cohorts, "fake", HERE.volume, "nobody", digest) is None
    assert find(cohorts, "fake", FINER.volume, first, digest) is None
    assert find(cohorts, "other", HERE.volume, first, digest) is None
