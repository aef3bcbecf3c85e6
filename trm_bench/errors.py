"""Errors that a person can cause, said in one message: what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a protocol, in data or in a command line; the CLI prints it and exits with 2.

    Args:
        what: One sentence that says what is wrong.
        where: The file, the key path or the option concerned.
        fix: What the person can do about it.
    """

    def __init__(self, what: str, where: object = None, fix: str = "") -> None:
        self.what, self.where, self.fix = what, None if where is None else str(where), fix
        super().__init__(what, self.where, fix)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.fix}" if self.fix else text


class BadSubject(UserError):
    """One subject of a dataset cannot be used; `data.on_bad_subject: skip` leaves it out, visibly.

    Args:
        subject: The subject's id.
        what: One sentence that says what is wrong.
        where: The file that is wrong.
        fix: What the person can do about it.
    """

    def __init__(self, subject: str, what: str, where: object = None, fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.subject = subject
        self.args = (subject, what, self.where, fix)  # so that it crosses process boundaries


class Damaged(UserError):
    """A file of a results folder is not what was written there, or is another one.

    Args:
        what: What is wrong with it, as the end of a sentence that begins with the file.
        where: The file.
        fix: What the person can do about it.
    """

    def __init__(self, what: str, where: object, fix: str = "") -> None:
        again = "give the command that made it again: it sets the file aside and makes it anew"
        super().__init__(what, where, fix or again)
        self.args = (what, self.where, self.fix)  # so that it crosses process boundaries


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Returns "did you mean X?" for the known name closest to `name`, else all known names."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
