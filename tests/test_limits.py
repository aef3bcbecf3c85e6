"""Limits on code of others: too much is ended, and what stays within is not touched."""

from __future__ import annotations

import signal
import threading
import time
from itertools import count

import pytest
import torch

from trm_bench.limits import Exceeded, limits


def draws() -> list[torch.Tensor]:
    weight = torch.nn.init.trunc_normal_(torch.empty(3, 4))
    return [weight, torch.rand(5), torch.randperm(7), torch.bernoulli(weight.abs().clamp(max=1))]


def test_random_draws_are_the_same_to_the_bit() -> None:
    torch.manual_seed(3)
    plain = draws()
    torch.manual_seed(3)
    with limits(1000, 60):
        watched = draws()
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_numbers_are_counted_before_they_are_allocated() -> None:
    with pytest.raises(Exceeded, match="1000 numbers"), limits(1000, 60):
        torch.ones(10**15)  # more than any machine has
    with pytest.raises(Exceeded), limits(1000, 60):
        torch.arange(40)[:, None] + torch.arange(40)
    with pytest.raises(Exceeded), limits(1000, 60):
        for _ in range(3):
            torch.empty(400)


def test_views_changes_in_place_and_the_meta_device_are_free() -> None:
    with limits(1000, 60):
        kept = torch.zeros(900)
        for _ in range(10):
            kept.view(30, 30).t().add_(1)
        torch.empty(10**12, device="meta").sum(0, keepdim=True)
    assert bool((kept == 10).all())


def test_time_is_limited_also_where_the_first_alarm_is_swallowed() -> None:
    with pytest.raises(Exceeded, match=r"0\.05 seconds"), limits(10, 0.05):
        try:
            for _ in count():
                pass
        except Exceeded:
            pass
        for _ in count():
            pass


def test_gradients_are_on_again_where_the_alarm_met_the_end_of_a_no_grad() -> None:
    with pytest.raises(Exceeded), limits(10, 0.05):
        torch.set_grad_enabled(False)
        while True:
            pass
    assert torch.is_grad_enabled()


def test_the_handler_and_an_earlier_timer_are_put_back() -> None:
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *signalled: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 30.0)
        with limits(10, 60):
            pass
        assert 20 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with limits(10, 60):  # outlasts the earlier timer, which rings when it may
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                pass
        end = time.monotonic() + 10
        while not rang and time.monotonic() < end:
            pass
        assert rang == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_threads_are_not_watched_and_leave_the_signal_alone() -> None:
    before, done = signal.getsignal(signal.SIGALRM), []

    def work() -> None:
        with limits(10, 60):
            done.append(signal.getsignal(signal.SIGALRM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [before]
