"""Plain fine-tuning: the reference of the gains."""

from trm_bench.methods import Method


class Finetune(Method):
    """All weights start from the source network, the head too where the classes are the same, and
    train alike.
    """

    name = "finetune"
    paper = "-"
