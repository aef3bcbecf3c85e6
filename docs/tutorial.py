"""Runs the tutorial: `python docs/tutorial.py` compares, with `--write` it renews what is shown.

Of docs/tutorial.md, blocks with a title are files, which are written; ```console blocks hold
commands (`$ ...`), which are run in order in one empty folder, and what they print. A line `...`
stands for lines that are left out. Times, numbers and the like differ between machines, so that
lines are compared with their numbers masked. All other blocks are not run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
LEFT_OUT = "..."
PROGRAMS = {
    "trm-bench": [sys.executable, "-m", "trm_bench"],
    "python": [sys.executable],
    "pip": [sys.executable, "-m", "pip"],
}


@dataclass(frozen=True)
class Command:
    """A command of the page.

    Attributes:
        line: As a person types it.
        shown: What the page says that it prints.
        start: Where that begins in the page's text.
        end: Where it ends.
    """

    line: str
    shown: str
    start: int
    end: int


def commands(text: str, folder: Path) -> Iterator[Command]:
    """The commands in their order; files are written as the page comes to them."""
    for block in BLOCK.finditer(text):
        kind, title, content = block.groups()
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(content, encoding="utf-8")
        elif kind == "console":
            lines = [*re.finditer(r"^\$ (.*)\n", content, re.M)]
            ends = [*(line.start() for line in lines[1:]), len(content)]
            for line, end in zip(lines, ends, strict=True):
                start = block.start(3)
                shown = content[line.end() : end]
                yield Command(line[1], shown, start + line.end(), start + end)


def printed(command: str, folder: Path) -> str:
    """What a command prints to standard output.

    Packages are installed into the folder, without a network, and found there.

    Raises:
        RuntimeError: It fails.
    """
    program, *arguments = shlex.split(command)
    packages = folder / "packages"
    paths = [str(packages), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PIP_TARGET": str(packages),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # of pip: 0 switches the isolation off
        "TERM": "dumb",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [*PROGRAMS[program], *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"$ {command}\n{done.stdout}{done.stderr}")
    text = done.stdout.replace(f"{folder}/", "")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines()).strip("\n") + "\n"


def abridged(text: str, like: str) -> str:
    """A text with as many lines at its start and its end as another has around its `...`."""
    lines, model = text.splitlines(), like.splitlines()
    if LEFT_OUT not in model:
        return text if text.strip() else ""
    first = model.index(LEFT_OUT)
    last = len(model) - first - 1
    if len(lines) <= first + last:
        return text
    return "\n".join([*lines[:first], LEFT_OUT, *lines[len(lines) - last :]]) + "\n"


def masked(text: str) -> list[str]:
    """Lines without what may differ between machines: numbers, ids, widths, which is the best."""
    text = re.sub(r"\*\*|</?u>|-{2,}|[─━]+", "", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "ID", text)
    text = re.sub(r"[-+]?\d[\d.,:]*( (s|seconds|min|minutes|h|hours|[KMG]i?B)\b)?", "#", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def main() -> None:
    """Runs all commands; exits with 1 where one prints something else than the page shows."""
    text, renewed, at, differing = PAGE.read_text(encoding="utf-8"), "", 0, []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands(text, Path(folder)):
            print(f"$ {command.line}", file=sys.stderr)
            found = abridged(printed(command.line, Path(folder)), command.shown)
            if masked(found) != masked(command.shown):
                differing.append(f"$ {command.line}\n{found}")
            renewed += text[at : command.start] + found
            at = command.end
    if "--write" in sys.argv:
        PAGE.write_text(renewed + text[at:], encoding="utf-8")
    elif differing:
        sys.exit("\n".join(["the page shows something else than these print:", *differing]))


if __name__ == "__main__":
    main()
