"""The subjects of a protocol's data sets, opened and prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trm_bench.data.prepared import Prepared
from trm_bench.data.splits import Held
from trm_bench.datasets.base import Dataset, Subject
from trm_bench.protocol.schema import Domain, SetConfig, VolumeConfig


@dataclass(frozen=True)
class Cohort:
    """A data set of a protocol.

    Attributes:
        data: As the protocol has it.
        dataset: Opened.
        subjects: The usable ones.
        prepared: Their prepared volumes, by id.
    """

    data: SetConfig
    dataset: Dataset
    subjects: Sequence[Subject]
    prepared: Mapping[str, Prepared]

    @property
    def contents(self) -> dict[str, str]:
        """Subject to the hash of its files' contents."""
        return {subject.id: self.prepared[subject.id].digest for subject in self.subjects}

    @property
    def origin(self) -> str:
        """The folder, however it is spelled: within one, a patient's name says who it is."""
        return str(self.dataset.root.resolve())

    def of(self, domain: Domain) -> list[Subject]:
        """The subjects of a domain's institutions."""
        wanted, unwanted = domain.institutions, domain.except_institutions
        return [
            s
            for s in self.subjects
            if (not wanted or s.institution in wanted) and s.institution not in unwanted
        ]

    def held(self, subjects: Sequence[str]) -> list[Held]:
        """By what subjects are known again in another part of a split."""
        by_id, origin = {s.id: s for s in self.subjects}, self.origin
        return [Held(i, origin, by_id[i].patient, tuple(self.prepared[i].voxels)) for i in subjects]


Cohorts = Mapping[SetConfig, Cohort]


def find(
    cohorts: Cohorts, dataset: str, volume: VolumeConfig, subject: str, digest: str
) -> Prepared | None:
    """A prepared volume by what a configuration says of it; None where it is no longer there."""
    for cohort in cohorts.values():
        if (cohort.dataset.name, cohort.data.volume) == (dataset, volume):
            prepared = cohort.prepared.get(subject)
            if prepared is not None and prepared.digest == digest:
                return prepared
    return None
