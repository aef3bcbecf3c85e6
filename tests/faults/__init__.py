"""The fault suite: bad inputs, damaged files, kills and full disks, made from a seed.

A case (`case.Case`) does something bad to a folder of its own and calls commands there; what it
finds wrong is a fault. Commands run in forks of a warm process (`runner`), so that thousands of
them take minutes and none can take the suite along. `make faults` runs every case and writes
docs/faults.md; `test_faults.py` runs a few of every kind.
"""

from faults import arguments, checkpoints, disks, kills, nnunet, protocols, results, scans, tracking

EVERY = (
    kills.cases,
    disks.cases,
    protocols.cases,
    results.cases,
    tracking.cases,
    scans.cases,
    nnunet.cases,
    checkpoints.cases,
    arguments.cases,
)
"""What makes cases, each from the base and a seed."""
