"""Training from random initial weights: what every transfer is measured against."""

from trm_bench.methods import Method


class Scratch(Method):
    """No transfer: the target training alone, from the initial weights that all methods share."""

    name = "scratch"
    paper = "-"
    transfers = False
