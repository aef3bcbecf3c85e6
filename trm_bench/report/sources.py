"""Readable names of the networks in a results folder, beside the hashes that name their files.

`sources/index.csv` names the source networks and `PROTOCOL/networks/index.csv` the target networks
that are kept. Both are computed from the files and records each time, and never read back: a
network that another command trains meanwhile is missing until the next report, and no more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trm_bench.errors import Damaged, UserError, nearest
from trm_bench.files import write_text
from trm_bench.inputs import exists
from trm_bench.report import sheets
from trm_bench.report.sides import ways
from trm_bench.runs.arrays import open_checkpoint
from trm_bench.runs.config import Imported, RunConfig
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder, run_folders
from trm_bench.runs.records import Checkpoint, Record, StoredPlan
from trm_bench.runs.store import Results, read_model, read_record

INDEX = "index.csv"
COLUMNS = (
    *("id", "name", "protocols", "transfers", "method", "data", "dataset", "channels", "labels"),
    *("classes", "seed", "network", "steps", "validation_dice", "file"),
)
SHORT_ID = 6  # digits that tell two networks of one name apart


@dataclass(frozen=True)
class Network:
    """A network's file, and what it is called.

    Attributes:
        path: Of its file.
        about: What the file says of it.
        name: No two networks of a results folder share one.
        protocols: That it was trained for, of those whose plans name it now.
        transfers: In which it takes part, likewise.
        method: Of a target network, its label; "" for a source.
    """

    path: Path
    about: Checkpoint
    name: str
    protocols: tuple[str, ...] = ()
    transfers: tuple[str, ...] = ()
    method: str = ""


@dataclass(frozen=True)
class Use:
    """Where a plan needs a source network.

    Attributes:
        source: Id of the network.
        protocol: The plan's.
        transfer: Its name.
        way: The domains up to the one that the network was trained on, first to last.
    """

    source: str
    protocol: str
    transfer: str
    way: tuple[str, ...]


def named(results: ResultsFolder) -> list[Network]:
    """The networks of a results folder that can be read, sources first, by name."""
    folders = run_folders(results.path)
    opened = list(_opened(results.path / "sources"))
    uses: dict[str, list[Use]] = {}
    for use in (use for folder in folders if opened for use in _uses(folder)):
        uses.setdefault(use.source, []).append(use)
    sources = [_source(path, about, uses.get(about.id, [])) for path, about in opened]
    kept = [network for folder in folders for network in _kept(folder)]
    return _distinct([*sources, *kept])


def write(results: ResultsFolder) -> list[Path]:
    """Writes the indices of all folders that hold networks.

    Returns:
        The files written.
    """
    by_folder: dict[Path, list[Network]] = {}
    for network in named(results):
        by_folder.setdefault(network.path.parent, []).append(network)
    written = []
    for folder, networks in by_folder.items():
        rows = [COLUMNS, *(_row(network) for network in networks)]
        write_text(folder / INDEX, sheets.of_rows(rows))
        written.append(folder / INDEX)
    return written


def find(results: Path, text: str) -> Path:
    """The file of a network that a person names.

    Args:
        results: The folder of the results.
        text: A file; or a name of an index there, an id, or the beginning of one.

    Raises:
        UserError: Nothing there is called so, or several are.
    """
    path = Path(text)
    if exists(path) or path.suffix == ".safetensors":
        return path  # what is no network is refused by its reader
    there = named(ResultsFolder(results))
    is_id = re.fullmatch(r"[0-9a-f]{4,16}", text)
    called = [n for n in there if n.name == text or (is_id and n.about.id.startswith(text))]
    if len(called) == 1:
        return called[0].path
    if called:
        listed = ", ".join(f"{n.name} ({n.about.id})" for n in called[:5])
        raise UserError(f"'{text}' names {len(called)} networks", results, f"choose one: {listed}")
    fix = "give a file, or --results with the folder that holds it"
    if there:
        fix = f"{nearest(text, [n.name for n in there])}; {results / 'sources' / INDEX} lists them"
    raise UserError(f"no network '{text[:200]}'", results, fix)


def name_of(config: RunConfig | Imported, way: tuple[str, ...] = ()) -> str:
    """What a network is called: data set, channels, labels, and what else tells it apart.

    Args:
        config: Of its training or its import.
        way: The protocol's names of the domains that it was trained on, where they are known.
    """
    channels = "+".join(config.domain.images)
    if isinstance(config, Imported):
        return f"{way[-1] if way else config.network.name} {channels} from elsewhere"
    words = [config.dataset, channels, config.domain.labels]
    words += ["phantom"] if config.data == "phantom" else []
    words += [way[-1]] if way and way[-1] not in words else []
    if config.source is not None and config.kind == "source":
        words += ["after", *([way[-2]] if len(way) > 1 else [config.source.domain.labels])]
    words += [] if config.kind == "source" else [config.method.name]
    return " ".join([*words, f"seed {config.seed}"])


def _chosen(folder: ProtocolFolder) -> Results | None:
    """A protocol's results with the record of one run for each transfer, seed and source.

    What runs of other methods would say of their sources is the same, so that few files are read.
    None where there is no plan that can be trusted.
    """
    try:
        plan = read_model(StoredPlan, folder.plan)
    except UserError:  # of another version
        return None
    if plan is None:
        return None
    found, without = set[tuple[str, int]](), set[str]()
    records: dict[str, Record] = {}
    for cell in plan.cells:
        if (cell.transfer, cell.seed) in found or cell.method in without:
            continue
        record = read_record(folder.record(cell.run))
        if record and record.config.source is None:
            without.add(cell.method)  # such as scratch
        elif record and record.state == "finished":
            records[cell.run] = record
            found.add((cell.transfer, cell.seed))
    return Results(folder, plan, records)


def _uses(folder: ProtocolFolder) -> Iterator[Use]:
    results = _chosen(folder)
    if results is None:
        return
    for (transfer, _), way in ways(results).items():
        for i, config in enumerate(way.configs[:-1], start=1):
            yield Use(config.id, results.plan.protocol.name, transfer, way.names[:i])


def _opened(folder: Path) -> Iterator[tuple[Path, Checkpoint]]:
    """Networks in a folder; what is damaged is for `verify` to tell."""
    for path in sorted(folder.glob("[!.]*.safetensors")):
        try:
            about = open_checkpoint(path)
        except (FileNotFoundError, Damaged, UserError):
            continue
        if about.id == path.stem:
            yield path, about


def _source(path: Path, about: Checkpoint, uses: Iterable[Use]) -> Network:
    uses = list(uses)
    protocols, transfers = (
        tuple(dict.fromkeys(x)) for x in ([u.protocol for u in uses], [u.transfer for u in uses])
    )
    name = name_of(about.config, uses[0].way if uses else ())
    return Network(path, about, name, protocols, transfers)


def _kept(folder: ProtocolFolder) -> Iterator[Network]:
    """The target networks of a protocol, named by the first cell that they fill."""
    opened = list(_opened(folder.networks))
    try:
        plan = read_model(StoredPlan, folder.plan) if opened else None
    except UserError:
        plan = None
    for path, about in opened:
        cells = [c for c in plan.cells if c.run == about.id] if plan else []
        if not plan or not cells:
            yield Network(path, about, name_of(about.config), (folder.path.name,))
            continue
        transfers = tuple(dict.fromkeys(c.transfer for c in cells))
        name = f"{plan.protocol.name} {transfers[0]} {cells[0].method} seed {cells[0].seed}"
        yield Network(path, about, name, (plan.protocol.name,), transfers, cells[0].method)


def _distinct(networks: list[Network]) -> list[Network]:
    times = Counter(n.name for n in networks)
    told_apart = [
        n if times[n.name] == 1 else replace(n, name=f"{n.name} ({n.about.id[:SHORT_ID]})")
        for n in networks
    ]
    return sorted(told_apart, key=lambda n: (n.method != "", n.name))


def _row(network: Network) -> list[object]:
    about, config = network.about, network.about.config
    trained = config if isinstance(config, RunConfig) else None
    dice = about.validation_dice
    return [
        about.id,
        network.name,
        "; ".join(network.protocols),
        "; ".join(network.transfers),
        network.method,
        trained.data if trained else "",
        trained.dataset if trained else "",
        "; ".join(config.domain.images),
        config.domain.labels,
        "; ".join(config.domain.classes),
        trained.seed if trained else "",
        config.network.name,
        trained.training.steps if trained else "",
        "" if dice is None else f"{100 * dice:.4f}",
        network.path.name,
    ]
