"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import torch
import toy
from heard import heard
from helpers import Run

from trm_bench import cli, signals
from trm_bench.seeds import CPU_THREADS

torch.set_num_threads(CPU_THREADS)
heard(signals.SIGNALS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="Of the sweep that is killed again and again."
    )


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy dataset, written once."""
    return toy.write_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, made once: its migrations take seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def database_server() -> Iterator[int]:
    """The port of a PostgreSQL; see `postgres.server`."""
    with postgres.server() as port:
        yield port


@pytest.fixture
def database(database_server: int) -> Iterator[str]:
    """The URL of an empty database."""
    with postgres.database(database_server) as url:
        yield url


@pytest.fixture
def trm_bench(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `trm-bench ARGUMENTS` in this process, 80 columns wide.

    Returns exit code and everything printed.
    """
    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "_width", 80)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["trm-bench", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return call
