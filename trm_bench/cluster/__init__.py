"""Trainings on other machines, by dask.distributed: an address is all that this package needs.

`engine` connects and compares what is installed, `executor` gives tasks to workers, `worker` is a
worker's process. `folder` holds what they find each other by, with `certificates` that let them in;
`scripts` start them, in the jobs of `queues` or on `machines`.
"""
