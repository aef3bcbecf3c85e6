"""Downloads from a server on this machine: what is cut goes on, what is wrong is not kept."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import Run
from typer.testing import CliRunner

from trm_bench import cli, datasets, download
from trm_bench.datasets import Dataset
from trm_bench.datasets.base import Archive
from trm_bench.errors import UserError

NAME = "Task99_Tiny"
CONTENT = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200)) * 500  # 3.2 MB


class Server(ThreadingHTTPServer):
    """Serves one file, with byte ranges.

    Attributes:
        cuts: Bytes of the answers' bodies, after which the connection is closed; then whole ones.
        ranges: Whether ranges are known.
        asked: The Range header of each request, "" for none.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.cuts, self.ranges, self.asked = content, list[int](), True, list[str]()
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that stops reading is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        server.asked.append(asked)
        start = int(asked[6:-1]) if asked and server.ranges else 0
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else server.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        most = server.cuts.pop(0) if server.cuts else total
        self.wfile.write(server.content[start : start + most])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def tar(*members: tuple[str, bytes], **changes: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in changes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


WHOLE = tar((f"{NAME}/dataset.json", b"{}"), (f"{NAME}/imagesTr/a.nii.gz", CONTENT))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(WHOLE) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def archive(server: Server, content: bytes | None = None) -> Archive:
    known = hashlib.md5(server.content if content is None else content).hexdigest()
    return Archive(f"http://127.0.0.1:{server.server_port}/{NAME}.tar", f"md5:{known}")


def fetch(server: Server, folder: Path, content: bytes | None = None) -> bool:
    return download.fetch(NAME, archive(server, content), folder, lambda have, of: None)


def is_whole(folder: Path) -> bool:
    (target,) = folder.iterdir()  # and nothing hidden beside it
    files = {str(f.relative_to(target)): f.read_bytes() for f in target.rglob("*") if f.is_file()}
    return target.name == NAME and files == {"dataset.json": b"{}", "imagesTr/a.nii.gz": CONTENT}


def test_an_archive_is_extracted_and_then_there_is_nothing_to_do(
    server: Server, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    progress = lambda have, of: told.append((have, of))  # noqa: E731
    assert download.fetch(NAME, archive(server), tmp_path / "new", progress)
    assert is_whole(tmp_path / "new") and server.asked == [""]
    assert told[-1] == (len(WHOLE), len(WHOLE)) and told == sorted(told)
    (tmp_path / "new" / f".{NAME}.tar.part").write_bytes(b"of a command killed at its end")
    assert not fetch(server, tmp_path / "new") and server.asked == [""]
    assert is_whole(tmp_path / "new")


def test_a_connection_that_breaks_is_made_again_where_it_broke(
    server: Server, tmp_path: Path
) -> None:
    server.cuts = [1_000_000, 1_000_000]
    assert fetch(server, tmp_path) and is_whole(tmp_path)
    kept = 1_000_000 // download.CHUNK * download.CHUNK
    assert server.asked == ["", f"bytes={kept}-", f"bytes={2 * kept}-"]


@pytest.mark.parametrize("have", [1, 2_000_000, len(WHOLE)])
def test_a_killed_download_goes_on(have: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.tar.part").write_bytes(WHOLE[:have])
    killed = tmp_path / f".{NAME}.extracted" / NAME / "imagesTr"
    killed.mkdir(parents=True)
    (killed / "b.nii.gz").write_bytes(b"of a command that was killed")
    assert fetch(server, tmp_path) and is_whole(tmp_path)
    assert server.asked == [f"bytes={have}-"]


def test_a_server_without_ranges_sends_all_of_it(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / f".{NAME}.tar.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path) and is_whole(tmp_path)


def test_more_than_the_server_has_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.tar.part").write_bytes(b"x" * (len(WHOLE) + 1))
    assert fetch(server, tmp_path) and is_whole(tmp_path)
    assert server.asked == [f"bytes={len(WHOLE) + 1}-", ""]


def test_where_no_byte_arrives_the_command_ends(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 0]
    with pytest.raises(UserError, match=r"cannot be downloaded.*\n.*goes on") as caught:
        fetch(server, tmp_path)
    assert caught.value.where == archive(server).url
    kept = (tmp_path / f".{NAME}.tar.part").stat().st_size
    assert 1_000_000 - download.CHUNK < kept <= 1_000_000
    assert fetch(server, tmp_path) and is_whole(tmp_path)


def test_another_file_is_removed_and_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"md5 .* was removed"):
        fetch(server, tmp_path, b"another")
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_is_noticed(server: Server, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.tar.part").write_bytes(b"x" + WHOLE[1:1000])
    with pytest.raises(UserError, match="md5"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path) and is_whole(tmp_path)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_what_the_server_refuses_is_told(status: int, server: Server, tmp_path: Path) -> None:
    server.status = status
    with pytest.raises(UserError, match=f"the server answers {status}"):
        fetch(server, tmp_path)


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
EVIL = {
    "way up": tar(("../evil", b"x"), (f"{NAME}/dataset.json", b"{}")),
    "way up inside": tar((f"{NAME}/../../../evil", b"x")),
    "link": tar((f"{NAME}/dataset.json", b""), **LINK),
    "hard link": tar((f"{NAME}/a", b""), type=tarfile.LNKTYPE, linkname="../../evil"),
    "device": tar((f"{NAME}/null", b""), type=tarfile.CHRTYPE),
    "pipe": tar((f"{NAME}/pipe", b""), type=tarfile.FIFOTYPE),
    "no folder": tar((NAME, b"x")),
    "another folder": tar(("other/dataset.json", b"{}")),
    "no tar": b"<html>" * 1000,
    "cut": WHOLE[:1_000_000],
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_archive_holds_plain_files_in_its_folder(
    kind: str, server: Server, tmp_path: Path
) -> None:
    server.content = EVIL[kind]
    with pytest.raises(UserError) as caught:
        fetch(server, tmp_path / "a" / "b")
    assert f".{NAME}.tar.part" in str(caught.value.where)
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "a" / "b" / NAME).exists()


def test_what_is_extracted_is_bounded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST_FILES", 1)
    with pytest.raises(UserError, match="holds"):
        fetch(server, tmp_path)
    monkeypatch.setattr(download, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        fetch(server, tmp_path / "other")


def test_there_must_be_room_for_the_archive_and_its_files(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 2 * len(WHOLE) - 1

    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(UserError, match=r"0\.0 GB are needed") as caught:
        fetch(server, tmp_path)
    assert caught.value.where == str(tmp_path)


def test_two_commands_do_not_write_one_file(server: Server, tmp_path: Path) -> None:
    def meanwhile(have: int, of: int | None) -> None:
        with pytest.raises(UserError, match="another command downloads this"):
            fetch(server, tmp_path)

    assert download.fetch(NAME, archive(server), tmp_path, meanwhile) and is_whole(tmp_path)


def test_a_link_in_the_place_of_the_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / f".{NAME}.tar.part").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        fetch(server, tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"x"


# The command


def test_the_command_says_the_licence_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = datasets.REGISTRY.get("decathlon")
    monkeypatch.setattr(kind, "archives", {NAME: archive(server)})
    runner = CliRunner()
    for end in (f"{tmp_path / NAME}\n", f"{tmp_path / NAME} is there: nothing to do\n"):
        said = runner.invoke(cli.app, ["data", "download", NAME, "--out", str(tmp_path)])
        assert said.exit_code == 0 and "licence: CC-BY-SA 4.0\n" in said.output
        assert said.output.endswith(end)
    assert is_whole(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fets2021", r"registration.*med\.upenn\.edu(.|\n)*NAME_seg\.nii\.gz"),
        ("iseg2019", r"iseg2019\.web\.unc\.edu(.|\n)*subject-1-T1\.hdr"),
        ("lgg", r"Kaggle account.*kaggle\.com(.|\n)*_mask\.tif"),
        ("nnunet", r"your own(.|\n)*imagesTr/CASE_0000\.nii\.gz"),
        ("decathlon", r"name one: Task01_BrainTumour,.* Task10_Colon"),
        ("Task4_Hippocampus", "did you mean 'Task04_Hippocampus'"),
    ],
)
def test_what_is_not_downloaded_says_where_it_is(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        download.find(name)
    assert re.search(says, str(caught.value))


def test_every_archive_of_a_dataset_is_found_by_its_name() -> None:
    found: dict[str, type[Dataset]] = {}
    for kind in map(datasets.REGISTRY.get, datasets.REGISTRY.names()):
        for name, one in kind.archives.items():
            assert download.find(name) == (kind, one) and name not in found
            assert one.url.startswith("https://") and f"/{name}." in one.url
            algorithm, digest = one.checksum.split(":")
            assert len(digest) == 2 * hashlib.new(algorithm).digest_size
            found[name] = kind
    assert len(found) == 10


def test_the_checksums_are_those_that_monai_publishes() -> None:
    from monai.apps.datasets import DecathlonDataset

    ours = datasets.REGISTRY.get("decathlon").archives
    assert {name: one.checksum for name, one in ours.items()} == {
        name: f"md5:{md5}" for name, md5 in DecathlonDataset.md5.items()
    }
    assert {name: one.url for name, one in ours.items()} == DecathlonDataset.resource


def test_the_list_of_datasets_and_each_by_its_name(trm_bench: Run) -> None:
    runner = CliRunner()
    table = trm_bench("datasets")[1]
    assert max(map(len, table.splitlines())) <= 80
    words = table.split()
    for name in datasets.REGISTRY.names():
        kind = datasets.REGISTRY.get(name)
        assert name in words
        for said in (kind.title, kind.licence, kind.access):
            assert set(said.split()) <= set(words)
        shown = runner.invoke(cli.app, ["datasets", name]).output
        for fact in (kind.title, kind.licence, kind.citation, kind.url, *kind.archives):
            assert fact and fact in shown
        assert all(line in shown for line in kind.layout.splitlines()) and kind.layout
    described, fixed = (trm_bench("datasets", name)[1] for name in ("nnunet", "fets2021"))
    assert "from its dataset.json" in described and "t1, t1ce, t2, flair" in fixed
    assert isinstance(runner.invoke(cli.app, ["datasets", "lggg"]).exception, UserError)
