"""Trainings on other machines, by dask.distributed: an address is all that this package needs.

`engine` connects and compares what is installed, `executor` gives tasks to workers, `worker` is a
worker's process, `scripts` writes the jobs that start workers, `certificates` what they trust.
"""
