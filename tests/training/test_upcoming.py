"""Batches that a second thread makes are those that the first would have made."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest
import torch
from harness import CPU, context

from trm_bench.training.upcoming import upcoming


class Maker:
    """Stands for a sampler; says which steps were asked for, and by which thread."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.fails_at = fails_at

    def batch(self, step: int) -> int:
        self.asked.append(step)
        self.threads.add(threading.get_ident())
        if step == self.fails_at:
            raise ValueError(f"no batch {step}")
        return step


def batches(maker: Any, steps: range, device: torch.device = CPU) -> Any:
    return upcoming(maker, steps, device)


def test_all_steps_come_in_order_from_another_thread() -> None:
    maker = Maker()
    assert list(batches(maker, range(3, 8))) == [3, 4, 5, 6, 7] == maker.asked
    assert threading.get_ident() not in maker.threads and len(maker.threads) == 1
    assert list(batches(maker, range(3, 4))) == [3] and list(batches(maker, range(3, 3))) == []


def test_on_another_device_no_thread_makes_them() -> None:
    maker = Maker()
    assert list(batches(maker, range(2), torch.device("meta"))) == [0, 1]
    assert maker.threads == {threading.get_ident()}


def test_what_is_closed_asks_for_one_more_at_most_and_leaves_no_thread() -> None:
    maker, before = Maker(), threading.active_count()
    with closing(batches(maker, range(100))) as coming:
        assert next(coming) == 0
    assert maker.asked in ([0], [0, 1])
    assert threading.active_count() == before


def test_what_fails_there_fails_here_at_its_own_step() -> None:
    with closing(batches(Maker(fails_at=2), range(5))) as coming:
        assert [next(coming), next(coming)] == [0, 1]
        with pytest.raises(ValueError, match="no batch 2"):
            next(coming)


def test_batches_are_the_samplers_to_the_bit() -> None:
    run = context(augment={"rotate": 20, "noise": 0.1})
    for step, batch in enumerate(upcoming(run.patches, range(4), CPU)):
        expected = run.patches.batch(step)
        assert torch.equal(batch.image, expected.image)
        assert torch.equal(batch.label, expected.label)
