"""Runs on several machines: a dask scheduler, workers that any site can start, and their keys."""
