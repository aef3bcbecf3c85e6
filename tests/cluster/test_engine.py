"""What `--on` may name, and what is compared before anything is given out."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm_bench.cluster.engine import (
    SHOWN,
    about,
    address_of,
    connected,
    refuse_differences,
    require_distributed,
)
from trm_bench.errors import UserError


def scheduler_file(folder: Path, content: Any) -> Path:
    path = folder / "scheduler.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_or_its_folder_names_a_cluster(tmp_path: Path) -> None:
    path = scheduler_file(tmp_path, {"address": "tls://10.1.2.3:8786"})
    assert address_of(str(path)) == ("tls://10.1.2.3:8786", tmp_path)
    assert address_of(str(tmp_path)) == ("tls://10.1.2.3:8786", tmp_path)
    assert address_of("tls://head.example:8786") == ("tls://head.example:8786", None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "[" * 100_000,
        "\x00\xff",
        {"address": 3},
        {"address": "nowhere"},
        {"id": "x"},
    ],
)
def test_what_is_no_schedulers_file_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError) as caught:
        address_of(str(scheduler_file(tmp_path, content)))
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_is_not_there_yet_is_told(tmp_path: Path) -> None:
    for where in (tmp_path / "scheduler.json", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="trm-bench cluster"):
            address_of(str(where))


@pytest.mark.parametrize(
    "address",
    ["tcp://10.1.2.3:8786", "tcp://head:8786", "tcp://0.0.0.0:8786", "tcp://[::]:8786"],
)
def test_an_open_port_is_refused(tmp_path: Path, address: str) -> None:
    for where in (address, str(scheduler_file(tmp_path, {"address": address}))):
        with pytest.raises(UserError, match="runs code as you"):
            address_of(where)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "[::1]", "localhost"])
def test_loopback_needs_no_certificates(host: str) -> None:
    assert address_of(f"tcp://{host}:8786")[0].endswith(":8786")


@given(st.text(st.characters(exclude_characters="/"), max_size=30), st.text(max_size=30))
def test_any_address_is_taken_or_refused(scheme: str, rest: str) -> None:
    where = f"{scheme}://{rest}"
    try:
        address, _ = address_of(where)
    except UserError:
        return
    assert address == where and scheme.lower() in ("tls", "tcp")


def test_differences_are_listed() -> None:
    ours = {"Python": "3.11.7", "torch": "2.13.0", "code": "abc"}
    alike = {**ours, "slots": "1", "device": "cuda"}
    refuse_differences(ours, {"tls://a:1": alike, "tls://b:1": alike})
    other = {"tls://b:1": {**alike, "torch": "2.12.0"}, "tls://a:1": {**alike, "code": ""}}
    with pytest.raises(UserError) as caught:
        refuse_differences(ours, other)
    assert caught.value.what.splitlines()[1:] == [
        "tls://a:1: code not there, not abc",
        "tls://b:1: torch 2.12.0, not 2.13.0",
    ]
    threads = {f"tls://{i}:1": {**alike, "slots": "8"} for i in range(SHOWN + 2)}
    with pytest.raises(UserError, match=r"slots 8, not 1\n(.*\n)+and 2 more"):
        refuse_differences(ours, threads)


def test_what_is_compared_covers_code_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = about()
    assert {"Python", "trm-bench", "torch", "monai", "numpy"} <= compared.keys()
    assert len(compared["code"]) == 16 and all(compared.values())


def test_without_the_extra_its_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trm_bench.cluster.folder.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trm-bench\[cluster\]"):
        require_distributed()


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs trm-bench[cluster]")
    monkeypatch.setattr("trm_bench.cluster.engine.CONNECT", 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        where = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        with (
            pytest.raises(UserError, match="does not answer"),
            connected(where, "auto", lambda text: None),
        ):
            pass


def test_a_device_of_its_own_belongs_to_each_worker() -> None:
    pytest.importorskip("distributed", reason="needs trm-bench[cluster]")
    with (
        pytest.raises(UserError, match="no device of a cluster"),
        connected("tcp://127.0.0.1:1", "cuda:3", lambda text: None),
    ):
        pass
