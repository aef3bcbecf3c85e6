"""The design of a table's splits, told from the runs' own subjects."""

from __future__ import annotations

from trm_bench.analysis.intervals import Design, overlap
from trm_bench.runs.config import Member, RunConfig
from trm_bench.runs.store import Results


def design_of(results: Results) -> Design:
    """The design of the splits, from the runs' own subjects."""
    name = results.plan.protocol.split.design
    if name != "resampled":
        return Design(name)
    # of runs that do not transfer, the source's part is not known
    records = (record for _, record in results.finished() if record.config.source)
    sizes = [sizes_of(record.config) for record in records]
    return Design(name, max((overlap(*of_run) for of_run in sizes), default=1.0))


def sizes_of(config: RunConfig) -> tuple[int, int, int, int]:
    """Numbers of subjects: source and target training, test, and all; see `intervals.overlap`.

    A source that has patients of its own, which never are tested, counts none.
    """
    own, training = config.subjects, config.source_training
    source: tuple[Member, ...] = ()
    if training and shares_split(training, config):
        source = training.subjects.train
    members = {m.subject for part in (*own.parts().values(), source) for m in part}
    return len(source), len(own.train), len(own.test), len(members)


def shares_split(source: RunConfig, target: RunConfig) -> bool:
    """Whether a source's patients are the target's: both then validate on the same subjects."""
    ours, theirs = source.subjects.val, target.subjects.val
    if source.volume == target.volume:  # else the hashes may be of other modalities
        return ours == theirs
    return [m.subject for m in ours] == [m.subject for m in theirs]
