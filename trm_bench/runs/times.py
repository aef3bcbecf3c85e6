"""When runs were at work, as their records say."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from trm_bench.runs.records import Record


def span(records: Iterable[Record]) -> tuple[datetime, datetime] | None:
    """Start of the first run and end of the last one; None where no run tells when it started.

    Args:
        records: Of the runs.
    """
    spans = [
        (started, started + timedelta(seconds=sum(record.seconds.values())))
        for record in records
        if record.started
        for started in [datetime.fromisoformat(record.started)]
    ]
    if not spans:
        return None
    return min(started for started, _ in spans), max(ended for _, ended in spans)
