"""What is changed in a fork before its command: to save time, or to plant a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def no_pictures() -> None:
    """Pictures become files of one byte; nothing is judged by them, and they take the most time."""
    from matplotlib.figure import Figure

    def save(self: Figure, file: Any, **how: Any) -> None:
        Path(file).write_bytes(b"-")

    Figure.savefig = save  # type: ignore[method-assign,assignment]
