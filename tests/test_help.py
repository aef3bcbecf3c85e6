"""What --help says: every command ends with an example, and every example is a call."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from trm_bench.cli.options import app


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command with the words that name it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ROOT = get_command(app)
COMMANDS = dict(commands(ROOT))


def examples(command: Any) -> list[str]:
    text = command.epilog or command.help or ""
    _, _, after = text.partition("Example:")
    lines = [line.strip() for line in after.splitlines()]
    return [line for line in lines if "trm-bench " in line]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_ends_with_an_example_that_it_understands(path: tuple[str, ...]) -> None:
    given = examples(COMMANDS[path])
    assert given, "add epilog=example(...) to its decorator"
    for line in given:
        words = shlex.split(line)
        words = words[words.index("trm-bench") + 1 :]
        assert tuple(words[: len(path)]) == path, line
        # parsed, and not called; what it does not understand it raises
        with COMMANDS[path].make_context(" ".join(path), words[len(path) :]) as context:
            assert not context.args, line


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name}"
