"""What messages show of URLs: where, and nothing that is secret."""

from __future__ import annotations

import sys

import pytest

from trm_bench.urls import shown, told, with_driver


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("postgresql://me:secret@host:5432/db?sslpassword=x", "postgresql://***@host:5432/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://me:x@[::1]:5432/db", "postgresql://***@[::1]:5432/db"),
        ("https://me:secret@tracking.example/mlflow", "https://***@tracking.example/mlflow"),
        ("https://me:s@cret@tracking.example", "https://***"),
        ("sqlite:////home/me@lab/x.db", "sqlite:////home/me@lab/x.db"),
        ("me@lab/x.log", "me@lab/x.log"),
    ],
)
def test_what_is_shown_of_a_target(target: str, said: str) -> None:
    assert shown(target) == said


def test_what_is_told_of_an_error_is_its_root_in_one_line_without_secrets() -> None:
    target = "https://me:s%40cret@host/path?token=abc"
    root = ValueError(f"no answer of {target}, s@cret, abc\nand more")
    error = RuntimeError("wrapped")
    error.__cause__ = root
    assert told(error, target) == "no answer of https://***@host/path?token=***, ***, ***"
    odd = "https://me:s@cret@host"
    assert told(ValueError(f"GET {odd}/x: 500"), odd) == "GET https://***@host/x: 500"
    full = OSError(28, "No space left on device", "/results/mlflow.db")
    assert told(full, "sqlite:///x") == "/results/mlflow.db: No space left on device"
    assert told(TimeoutError(), "x.log") == "TimeoutError"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://me@h/d", "postgresql+psycopg://me@h/d?connect_timeout=15"),
        ("postgres://h/d?x=1", "postgresql+psycopg://h/d?x=1&connect_timeout=15"),
        ("postgresql+psycopg://h/d?connect_timeout=3", None),
        ("postgresql+psycopg2://h/d", None),
        ("sqlite:////a/b.db", None),
        ("https://h/x", None),
    ],
)
def test_postgresql_gets_the_driver_that_is_installed(given: str, used: str | None) -> None:
    assert with_driver(given) == (used or given)


def test_without_that_driver_a_url_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert with_driver("postgresql://h/d") == "postgresql://h/d"
