"""Numbers with their nouns, as messages say them."""

from __future__ import annotations


def counted(number: int, noun: str, many: str = "") -> str:
    """`1 run`, `2 runs`.

    Args:
        number: How many.
        noun: Of one.
        many: Of several; by default with an s.
    """
    return f"{number} {noun if number == 1 else many or f'{noun}s'}"
