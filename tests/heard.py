"""Signals that the commands of tests must hear."""

from __future__ import annotations

import signal
from collections.abc import Iterable


def heard(numbers: Iterable[int]) -> None:
    """Has the processes that this one starts hear some signals.

    Below nohup, or in the background of a script, the shell has some ignored, which goes on to
    whatever is started from there: a test that sends one would wait for ever.
    """
    for number in numbers:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
