"""Subject-level splits: by patient, stratified, never leaking."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from trm_bench.datasets.base import Subject
from trm_bench.errors import UserError
from trm_bench.protocol.schema import SplitConfig
from trm_bench.seeds import seed_of


@dataclass(frozen=True)
class Split:
    """Subject ids of each part.

    Attributes:
        source: Source training subjects; none where the source has patients of its own.
        train_patients: Target training subjects patient by patient, since shots count patients.
        val: Validation subjects.
        test: Test subjects.
        others: The training sets of the other seeds, where every seed has its own.
    """

    source: tuple[str, ...]
    train_patients: tuple[tuple[str, ...], ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    others: tuple[tuple[str, ...], ...] = ()

    @property
    def train(self) -> tuple[str, ...]:
        """All target training subjects."""
        return self.train_of(len(self.train_patients))

    def train_of(self, shots: int) -> tuple[str, ...]:
        """The training subjects of the first `shots` patients: 1 shot is among 5 shots."""
        return tuple(subject for scans in self.train_patients[:shots] for subject in scans)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The parts by name, without the training sets of other seeds."""
        parts = {"source": self.source, "train": self.train, "val": self.val, "test": self.test}
        return {name: ids for name, ids in parts.items() if ids}


def split(
    subjects: Sequence[Subject], config: SplitConfig, seed: int, with_source: bool = True
) -> Split:
    """Divides patients into source, target train, validation and test; all scans of a patient go
    along.

    Args:
        subjects: Usable subjects, in any order.
        config: The protocol's `split`.
        seed: The training seed; does not matter for the design `fixed`.
        with_source: Whether source networks train on some of these patients.

    Raises:
        UserError: There are too few patients, or no training set for the seed.
    """
    sets = config.sets if config.design == "disjoint" else 1
    own = seed if config.design == "disjoint" else 0
    if own >= sets:
        raise UserError(
            f"seed {seed} has no training set of its own: {sets} are set aside",
            "split.sets",
            f"raise it to {seed + 1}, or choose seeds from 0 to {sets - 1}",
        )
    by_patient, patients = _drawn(subjects, config, seed)
    sizes = _sizes(len(patients), config, sets, with_source)
    source, *trains, val, test = (
        [tuple(s.id for s in by_patient[patient]) for patient in block]
        for block in _blocks(patients, sizes)
    )
    train = tuple(trains.pop(own))
    others = tuple(sum(other, ()) for other in trains)
    return Split(sum(source, ()), train, sum(val, ()), sum(test, ()), others)


def split_source(
    subjects: Sequence[Subject], config: SplitConfig, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divides the patients of a source that has its own.

    Of those that do not train, up to `split.target.val` validate.

    Args:
        subjects: Usable subjects, none of which is the target's.
        config: The protocol's `split`.
        seed: The training seed.

    Returns:
        Training and validation subjects.

    Raises:
        UserError: There are too few patients.
    """
    by_patient, patients = _drawn(subjects, config, seed)
    total = len(patients)
    training = _source_size(total, config)
    validating = min(config.target.val, total - training)
    if training < 1 or validating < 1:
        what = f"{total} usable patients of the source do not suffice to train on {training}"
        raise UserError(f"{what} and to validate", "split.source", "lower it, or add subjects")
    parts = (
        tuple(s.id for patient in block for s in by_patient[patient])
        for block in _blocks(patients, [training, validating])
    )
    train, val = parts
    return train, val


def _drawn(
    subjects: Sequence[Subject], config: SplitConfig, seed: int
) -> tuple[dict[str, list[Subject]], list[str]]:
    """The subjects of each patient, and the patients in the random order of the split."""
    by_patient: dict[str, list[Subject]] = defaultdict(list)
    for subject in sorted(subjects, key=lambda s: s.id):
        by_patient[subject.patient].append(subject)
    drawn_by = seed if config.design == "resampled" else "shared"
    rng = np.random.default_rng(seed_of("split", config.seed, drawn_by))
    return by_patient, _shuffled(by_patient, config.stratify is not None, rng)


def _blocks(patients: Sequence[str], sizes: Sequence[int]) -> Iterator[Sequence[str]]:
    """Consecutive blocks of these sizes."""
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        yield patients[end - size : end]


def _source_size(total: int, config: SplitConfig) -> int:
    return round(config.source * total) if config.source < 1 else int(config.source)


def _sizes(total: int, config: SplitConfig, sets: int, with_source: bool) -> list[int]:
    """Patients of the source, of each training set, of validation and test, in this order."""
    target = config.target
    n_source = _source_size(total, config) if with_source else 0
    rest = total - n_source - sets * target.train - target.val
    n_test = rest if target.test == "rest" else target.test
    if n_source < with_source or n_test < 1 or n_test > rest:
        disjoint = config.design == "disjoint"
        train = f"{sets} x {target.train}" if disjoint else f"{target.train}"
        raise UserError(
            f"{total} usable patients do not suffice for "
            f"{f'source {n_source}, ' if with_source else ''}train {train}, "
            f"val {target.val}, test {target.test}",
            "split",
            f"lower the numbers{' or split.sets' * disjoint}, or add subjects",
        )
    return [n_source, *[target.train] * sets, target.val, n_test]


def inner_folds(
    division: Split, subjects: Sequence[Subject], shots: int, folds: int
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Cross-validation among the patients that a run may train on or validate on.

    Each patient of the target's training and validation parts validates in one fold. The others
    train, in the order of the split and as many of them as `shots`; source and test subjects, and
    other seeds' training sets, are in no fold.

    Args:
        division: The split.
        subjects: All subjects, for their patients.
        shots: Training patients of a run.
        folds: How many, 2 or more.

    Returns:
        Training and validation subjects of each fold.

    Raises:
        UserError: There are fewer patients than folds.
    """
    patient_of = {s.id: s.patient for s in subjects}
    validating: dict[str, list[str]] = defaultdict(list)
    for subject in division.val:
        validating[patient_of[subject]].append(subject)
    pool = [*division.train_patients, *(tuple(scans) for scans in validating.values())]
    if folds > len(pool):
        what = f"{folds} folds of {len(pool)} training and validation patients"
        raise UserError(what, "sweep.folds", "lower it, or give the split more of them")
    parts = []
    for i in range(folds):
        rest = [scans for j, scans in enumerate(pool) if j % folds != i]
        parts.append((sum(rest[:shots], ()), sum(pool[i::folds], ())))
    return parts


def _shuffled(
    by_patient: Mapping[str, list[Subject]], stratify: bool, rng: np.random.Generator
) -> list[str]:
    """A random order of the patients in which, if stratified, every block holds the institutions in
    proportion.
    """
    strata: dict[str, list[str]] = defaultdict(list)
    for patient, scans in by_patient.items():
        strata[scans[0].institution if stratify else ""].append(patient)
    ranked = []
    for _, members in sorted(strata.items()):
        order = rng.permutation(len(members))
        ranked += [((i + rng.random()) / len(members), members[j]) for i, j in enumerate(order)]
    return [patient for _, patient in sorted(ranked)]


@dataclass(frozen=True)
class Held:
    """What a part of a split holds of a subject.

    Attributes:
        subject: Its id.
        origin: The folder of its data set, without which a patient's name says nothing.
        patient: Who it is.
        contents: Hashes of its images' voxels, by which a scan is known under another name, or in
            another data set.
    """

    subject: str
    origin: str
    patient: str
    contents: tuple[str, ...]


def refuse_leakage(parts: Mapping[str, Iterable[Held]]) -> None:
    """Raises `UserError` where a patient, or an image of the same content, lies in two parts.

    Args:
        parts: Of a split, by name; the training sets of other seeds too, which are to be
            independent.
    """
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for part, members in parts.items():
        for held in members:
            contents = (("", f"content {content}") for content in held.contents)
            for origin, key in ((held.origin, f"patient {held.patient}"), *contents):
                other_part, other = seen.setdefault((origin, key), (part, held.subject))
                if other_part != part:
                    raise UserError(
                        f"leak: {held.subject} ({part}) and {other} ({other_part}) "
                        f"are the same {key[:40]}",
                        "split",
                        "remove one of the two from the data",
                    )
