"""Whether a protocol's folder is as the last command left it, report and all: then it may rest."""

from __future__ import annotations

from trm_bench.files import write_text
from trm_bench.fingerprint import digest_of, package_digest
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.seals import digest_of_file

APART = ("predictions", "networks", "sweep")  # no report reads them; records hold their checksums


def settle(folder: ProtocolFolder, tracked: str) -> None:
    """Notes that all is done and written.

    Args:
        folder: Of the protocol.
        tracked: In which tracking store, "" for none.
    """
    write_text(folder.settled, _state(folder, tracked) + "\n")


def is_settled(folder: ProtocolFolder, tracked: str) -> bool:
    """Whether no file has changed since, nor the software, nor where runs are tracked."""
    try:
        noted = folder.settled.read_text(encoding="ascii").strip()
        return noted == _state(folder, tracked)
    except (OSError, UnicodeDecodeError):
        return False


def _state(folder: ProtocolFolder, tracked: str) -> str:
    """sha256 of the names and contents of all files that a report is made from or consists of."""
    root, apart = folder.path, {folder.lock.name, folder.settled.name, *APART}
    paths = [p for p in sorted(root.rglob("*")) if p.relative_to(root).parts[0] not in apart]
    files = {p.relative_to(root).as_posix(): digest_of_file(p) for p in paths if p.is_file()}
    return digest_of(package_digest(), files, tracked)
