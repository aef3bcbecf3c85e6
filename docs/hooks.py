"""What MkDocs adds to the pages of docs/: tables made of the code, and files of the repository.

A line `<!-- made: NAME -->` in a page becomes what a function here makes, and a line
`<!-- file: PATH -->` the file of the repository, so that nothing is written down twice. Links that
lead from docs/ to the rest of the repository are turned to where the site has it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {  # files of the repository that are a page of their own
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "results/reference/README.md": "reference.md",
}
ASSETS = (
    "results/reference/*/figures/*.png",
    "results/reference/study/figures/*.svg",
    "examples/*.py",
    "examples/*.png",
    "LICENSE",
)
MADE = re.compile(r"^<!-- (made|file): (\S+) -->$", re.M)
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
MARKS = re.compile(r"([|*\[\]])")

Table = list[list[str]]


# What MkDocs calls


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures and scripts that pages show from outside docs/."""
    for path in (p for pattern in ASSETS for p in sorted(ROOT.glob(pattern))):
        where = f"repository/{path.relative_to(ROOT)}"
        files.append(File.generated(config, where, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """The page with all that is made, and with links as they are on the site."""
    here = DOCS / page.file.src_uri

    def made(found: re.Match[str]) -> str:
        kind, name = found.groups()
        if kind == "file":
            file = ROOT / name
            text = file.read_text(encoding="utf-8")
            code = file.suffix == ".py"
            return f"```python\n{text}```" if code else linked(text, file, here)
        if name not in MAKERS:
            raise PluginError(f"{page.file.src_uri}: nothing makes '{name}'")
        return MAKERS[name]()

    return MADE.sub(made, linked(markdown, here, here))


def linked(text: str, file: Path, page: Path) -> str:
    """The text of a file with its links as they are in a page of the site."""

    def turned(found: re.Match[str]) -> str:
        target = (file.parent / found[1]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            return found[1]  # MkDocs says that it leads nowhere
        if not target.is_relative_to(DOCS):
            name = str(target.relative_to(ROOT))
            target = DOCS / PAGES.get(name, f"repository/{name}")
        return os.path.relpath(target, page.parent)

    return LINK.sub(turned, text)


# Tables


def table(head: list[str], rows: Table) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def plain(text: object) -> str:
    """Text that Markdown shows as it is; what stands in backticks is code already."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    return "".join(
        part if part.startswith("`") else MARKS.sub(r"\\\1", part.replace("<", "&lt;"))
        for part in parts
    )


def code(value: object) -> str:
    """In backticks."""
    return f"`{value}`"


def paragraphs(docstring: str | None) -> str:
    """What a docstring says before its sections of arguments."""
    text = inspect.cleandoc(docstring or "")
    about = re.split(r"\n\n(?:Args|Attributes|Raises|Source):", text)[0]
    return "\n\n".join(plain(part) for part in about.split("\n\n"))


# The protocol's keys


def protocol() -> str:
    """A section for each block of the schema."""
    from trm_bench.protocol.reference import json_schema

    schema = json_schema()
    if unlike := schema["$defs"].keys() ^ TITLES.keys():
        raise PluginError(f"docs/hooks.py: TITLES lacks, or has in vain: {', '.join(unlike)}")
    parts = [_block("The protocol", schema)]
    parts += [_block(title, schema["$defs"][name]) for name, title in TITLES.items()]
    return "\n\n".join(parts)


TITLES = {  # in the order of the page
    "Claim": "claim",
    "DataConfig": "data",
    "VolumeConfig": "data.volume",
    "DomainConfig": "domains: subjects",
    "CheckpointConfig": "domains: a checkpoint",
    "SplitConfig": "split",
    "TargetSplit": "split.target",
    "TransfersConfig": "transfers",
    "NetworkConfig": "network",
    "TrainingsConfig": "training",
    "TrainingConfig": "training.source, training.target",
    "OptimizerConfig": "training: optimizer",
    "LossConfig": "training: loss",
    "AugmentConfig": "training: augment",
    "MethodConfig": "methods",
    "MethodTraining": "methods: training",
    "MethodSettings": "methods: per_transfer",
    "EvaluationConfig": "evaluation",
    "SweepConfig": "sweep",
    "SharedSpace": "sweep.shared_space",
    "PhantomConfig": "phantom",
}


def _block(title: str, block: dict[str, Any]) -> str:
    rows = [
        [code(key), _values(entry), _default(entry), plain(entry["description"])]
        for key, entry in block["properties"].items()
    ]
    if isinstance(block.get("additionalProperties"), dict):
        rows.append(["any other", "anything plain", "", "see above"])
    heading = f"## {title} {{#{_anchor(block['title'])}}}"
    head = ["key", "value", "default", "meaning"]
    return f"{heading}\n\n{plain(block['description'])}\n\n{table(head, rows)}"


def _anchor(block: str) -> str:
    return re.sub(r"\W+", "-", block.lower())


def _default(entry: dict[str, Any]) -> str:
    if "default" not in entry:
        return "**needed**"
    value = entry["default"]
    if isinstance(value, dict) and value:
        return "its defaults"
    return code(json.dumps(value) if not isinstance(value, str) else value or '""')


LIMITS = {
    "minimum": "≥ {:g}",
    "exclusiveMinimum": "> {:g}",
    "maximum": "≤ {:g}",
    "exclusiveMaximum": "< {:g}",
}


def _values(entry: dict[str, Any]) -> str:
    """What an entry of the schema may be, in words."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{TITLES[name]}](#{_anchor(name)})"
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(_values(one) for one in entry["anyOf"]))
    if "enum" in entry:
        return ", ".join(code(value) for value in entry["enum"])
    if "const" in entry:
        return code(entry["const"])
    match entry.get("type"):
        case "array" if "prefixItems" in entry:
            return f"[{', '.join(_values(one) for one in entry['prefixItems'])}]"
        case "array":
            number = [entry.get(key) for key in ("minItems", "maxItems")]
            many = f"{number[0]} to {number[1]}" if number[1] and number[1] < 100 else "list"
            return f"{many} of ({_values(entry['items'])})"
        case "object":
            of = entry["additionalProperties"]
            return f"name to ({_values(of)})" if isinstance(of, dict) else "plain values by name"
        case "integer" | "number" | "string" | "boolean" | "null" as kind:
            said = [text.format(entry[key]) for key, text in LIMITS.items() if key in entry]
            words = {"integer": "whole number", "string": "text", "boolean": "true or false"}
            return " ".join([words.get(kind, kind), ", ".join(said)]).strip()
    return "anything"


# Methods, data sets, commands


def methods() -> str:
    """A section for each method."""
    from trm_bench.methods.registry import REGISTRY
    from trm_bench.sweep.space import declarations

    parts = []
    for name in REGISTRY.names():
        kind = REGISTRY.get(name)
        searched = declarations(kind)
        rows = [
            [code(key), code(json.dumps(field.default)), plain(searched.get(key, "-")),
             plain(field.description or "")]
            for key, field in kind.Parameters.model_fields.items()
        ]  # fmt: skip
        uses = [
            words
            for words, does in (
                ("validation labels", kind.uses_validation),
                ("source data", kind.uses_source_data),
            )
            if does
        ]
        facts = [f"Source: {plain(kind.paper)}"] * (kind.paper != "-")
        facts += [f"Uses {' and '.join(uses)} beside what fine-tuning uses."] * bool(uses)
        text = [f"## {name}", paragraphs(kind.__doc__), " ".join(facts)]
        text += [table(["parameter", "default", "range of a sweep", "what"], rows)] * bool(rows)
        for preset, values in kind.presets.items():
            said = ", ".join(code(f"{key}: {json.dumps(value)}") for key, value in values.items())
            text.append(f"{code(f'preset: {preset}')} sets {said}.")
        parts.append("\n\n".join(part for part in text if part))
    return "\n\n".join(parts)


def datasets() -> str:
    """A table of all data sets, and the layout that each is expected in."""
    from trm_bench.cli.listing import _named
    from trm_bench.datasets import REGISTRY

    head = ["`data.dataset`", "what", "modalities", "label maps", "licence", "access"]
    rows, layouts = [], []
    for name in REGISTRY.names():
        kind = REGISTRY.get(name)
        get = f"[{plain(kind.access)}]({kind.url})" if kind.url else plain(kind.access)
        named = [plain(_named(kind, of)) for of in ("modalities", "label_maps")]
        rows.append([code(name), plain(kind.title), *named, plain(kind.licence), get])
        cite = f"Cite: {plain(kind.citation)}"
        layouts.append(f"### `{name}`\n\n{cite}\n\n```text\n{kind.layout.strip()}\n```")
    return "\n\n".join([table(head, rows), *layouts])


def commands() -> str:
    """A section for each command, as `--help` has it."""
    import typer

    from trm_bench.cli import app

    parts = []
    for name, command in _commands(typer.main.get_command(app), ""):
        usage = [_usage(p) for p in command.params if p.param_type_name == "argument"]
        rows = [
            [", ".join(code(o) for o in (*p.opts, *p.secondary_opts)), plain(p.help or "")]
            for p in command.params
            if p.param_type_name == "option" and p.name != "help"
        ]
        about = "\n\n".join(plain(t) for t in inspect.cleandoc(command.help or "").split("\n\n"))
        line = " ".join(["trm-bench", name, *usage, *["[OPTIONS]"] * bool(rows)])
        text = [f"## {name}", f"```text\n{line}\n```", about]
        text += [table(["option", "what"], rows)] * bool(rows)
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def _usage(argument: Any) -> str:
    text = (argument.metavar or argument.name.upper()).strip("[]")
    return text if argument.required else f"[{text}]"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if inner := getattr(command, "commands", None):
        for key, one in inner.items():
            yield from _commands(one, f"{name} {key}".strip())
    else:
        yield name, command


# Bundled protocols and what they take

UNTOLD = {  # of protocols whose data say it: source networks of a seed, and transfers
    "lgg_cross_institution": (5, 5),
    "msd_brain_cross_modality": (4, 12),
    "msd_prostate_cross_modality": (2, 2),
}
MOST_CHANNELS = MOST_CLASSES = 4  # of any bundled protocol


class Cost(NamedTuple):
    """What a bundled protocol takes.

    Attributes:
        name: Of the protocol.
        protocol: Itself.
        transfers: Its number of transfers.
        sources: Source networks, over all seeds.
        runs: Cells, over all seeds.
        steps: Of all trainings.
        memory: Bytes of a training, estimated.
        hours: On one core, of training alone; None where no step was measured.
    """

    name: str
    protocol: Any
    transfers: int
    sources: int
    runs: int
    steps: int
    memory: int
    hours: float | None


def _costs() -> Iterator[Cost]:
    from trm_bench.networks import training_bytes
    from trm_bench.protocol import bundled, load_protocol

    paces = {name: _pace(name) for name in ("hippocampus_cross_task", "lgg_cross_modality")}
    paced = {_work(load_protocol(name)): pace for name, pace in paces.items()}
    for name in bundled():
        p = load_protocol(name, phantom=name == "demo")  # which is for nothing else
        of_seed, ways = _ways(name, p)
        sources, runs = len(p.seeds) * of_seed, len(p.seeds) * ways * len(p.methods)
        steps = sources * p.training.source.steps + runs * p.training.target.steps
        most = max(
            training_bytes(p.network, t, MOST_CHANNELS, MOST_CLASSES)
            for t in (p.training.source, p.training.target)
        )
        pace = paced.get(_work(p))
        hours = pace and steps * pace / 3600
        yield Cost(name, p, ways, sources, runs, steps, most, hours)


def protocols() -> str:
    """What each bundled protocol trains, and an estimate of what that takes."""
    whats, costs = [], []
    for cost in _costs():
        p = cost.protocol
        data = ", ".join(code(d) for d in dict.fromkeys(of.dataset for of in p.sets))
        whats.append([code(cost.name), plain(p.description), data, "yes" if p.phantom else "-"])
        costs.append([
            code(cost.name), str(cost.transfers), f"{len(p.methods)} x {len(p.seeds)}",
            f"{cost.sources} + {cost.runs}", f"{cost.steps:,}", f"{cost.memory / 2**30:.1f}",
            f"{cost.hours / 2:.1f}" if cost.hours else "?",
        ])  # fmt: skip
    head = ["protocol", "transfers", "methods x seeds", "trainings", "steps", "GiB a training"]
    return "\n\n".join([
        table(["protocol", "what", "data", "phantom"], whats),
        "## What they take",
        table([*head, "hours on two cores"], costs),
    ])  # fmt: skip


def study() -> str:
    """What all bundled protocols take together, by the size of a training."""
    sizes: dict[str, list[Cost]] = {}
    for cost in sorted((c for c in _costs() if c.name != "demo"), key=lambda c: c.memory):
        sizes.setdefault(f"{cost.memory / 2**30:.1f}", []).append(cost)
    rows = []
    for size, costs in [*sizes.items(), ("all", [c for cs in sizes.values() for c in cs])]:
        measured = [c.hours for c in costs if c.hours]
        rows.append([
            size, str(len(costs)), f"{sum(c.sources + c.runs for c in costs):,}",
            f"{sum(c.steps for c in costs):,}",
            (f"{sum(measured):.1f} for {len(measured)} of {len(costs)}" if measured else "?"),
        ])  # fmt: skip
    head = ["GiB a training", "protocols", "trainings", "steps", "hours of one core, measured pace"]
    return table(head, rows)


def _ways(name: str, p: Any) -> tuple[int, int]:
    """Numbers of source networks of a seed and of transfers."""
    from trm_bench.datasets import REGISTRY

    pairs, shots = p.transfers.pairs, len(p.transfers.shots or (0,))
    if isinstance(pairs, str):
        kind = REGISTRY.get(p.data.dataset)
        number = len(p.data.modalities or getattr(kind, "modalities", ()))
        sources, ways = UNTOLD.get(name) or (number, number * (number - 1))
        assert ways, f"{name}: say in UNTOLD how many transfers its data make"
        return sources, ways * shots
    return len({way[:-1] for way in pairs}), len(pairs) * shots


def _work(p: Any) -> tuple[Any, ...]:
    """What the time of a step depends on."""
    target = p.training.target
    return p.network.model_dump_json(), target.patch, target.batch


def _pace(name: str) -> float:
    """Seconds of a step with one thread, of the reference results."""
    found = json.loads((ROOT / f"results/reference/{name}/provenance.json").read_text())
    seeds, given = len(found["protocol"]["seeds"]), found["protocol"]
    ways = len(given["transfers"]["pairs"])
    steps = {side: given["training"][side]["steps"] for side in ("source", "target")}
    trained = ways * steps["source"] + ways * len(given["methods"]) * steps["target"]
    return found["training_seconds"] / (seeds * trained)


MAKERS: dict[str, Callable[[], str]] = {
    "protocol": protocol,
    "methods": methods,
    "datasets": datasets,
    "commands": commands,
    "protocols": protocols,
    "study": study,
}
