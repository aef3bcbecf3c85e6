"""Cases of data in nnU-Net's layout: scans, dataset.json and tables, damaged in every way."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.base import Base, write_protocol
from faults.case import CODE, Case, Scene, shown
from faults.scans import (
    DAMAGES,
    OF_IMAGES,
    OF_LABELS,
    PLACES,
    TABLES,
    TEXTS,
    VALUES,
    a_place,
    a_text,
    flip,
    header,
    some_bytes,
    some_value,
)

CASE = "A_000"
FILES = (f"imagesTr/{CASE}_0001.nii.gz", f"labelsTr/{CASE}.nii.gz", "dataset.json")
"""What must be there; tables need not."""


def changed(
    file: str,
    change: Callable[[Path, random.Random], object],
    seed: str,
    command: str,
    scene: Scene,
) -> None:
    """A file of a folder in nnU-Net's layout is changed."""
    data = scene.folder / "data"
    shutil.copytree(scene.base.sites, data)
    path = data / file
    if not path.exists():  # patients.csv
        path.write_text("subject,patient\nA_000,p1\nA_001,p1\n")
    refused = change(path, random.Random(seed)) is True
    write_protocol(
        scene.folder / "p.yaml",
        data,
        data={"dataset": "nnunet", "root": str(data), "labels": "all"},
        transfers={"kind": "cross_institution", "pairs": [["A", "B"]]},
        split={"source": 2, "target": {"train": 1, "val": 1}},
    )
    tail = ("--out", "out") if command == "check" else ()
    names = [path.name, CASE, "dataset.json", "data.", "transfers.", "split", "A_", "B_"]
    answer = scene.call(
        *command.split(), "p.yaml", *tail, codes=(2,) if refused else (0, 2), names=names
    )
    if "root:" in answer.output:
        scene.fault(CODE, f"shows what is in a file outside the root: {shown(answer)}")


def tables(column: str) -> dict[str, str]:
    """Other contents of the table with this column."""
    head = f"subject,{column}\n"
    of_nnunet = {
        "a case that is none": f"{head}Z_999,A\n",
        "no values": f"{head}A_000,\n",
        "one for all": head + "".join(f"{s}_{i:03d},one\n" for s in "AB" for i in range(4)),
        "markup": f"{head}A_000,[red]x[/red] <b>\n",
        "control characters": f"{head}A_000,\x1b[31mred\n",
        "a name of lines": f'{head}A_000,"a\nb"\n',
        "UTF-16": "\ufeff" + head,
    }
    fets = {n: t.replace("Partition_ID,Subject_ID", head.strip()) for n, t in TABLES.items()}
    turned = {
        n: t.replace("1,FeTS_000", "A_000,1").replace("2,FeTS_000", "A_000,2")
        for n, t in fets.items()
    }
    return {**turned, **of_nnunet}


def cases(base: Base, seed: int) -> Iterator[Case]:
    """Each file of the layout with each damage, through each command in turn."""
    changes: dict[str, dict[str, Callable[[Path, random.Random], object]]] = {
        FILES[0]: {**DAMAGES, **OF_IMAGES, **{f"flip {i}": flip for i in range(30)}},
        FILES[1]: {**DAMAGES, **OF_LABELS, **{f"header {i}": header for i in range(30)}},
        FILES[2]: {
            **{name: partial(a_text, text) for name, text in TEXTS.items()},
            **{f"value {i}": partial(some_value, i % (len(VALUES) + 1)) for i in range(92)},
        },
    }
    for column in ("institution", "patient"):
        changes[f"{column}s.csv"] = {
            name: partial(a_text, text) for name, text in tables(column).items()
        }
    for file, several in changes.items():
        if not file.endswith("nii.gz"):
            several |= {f"bytes {i}": some_bytes for i in range(30)}
            several |= {place: partial(a_place, place) for place in PLACES}
        for turn, (name, change) in enumerate(several.items()):
            command = ("data check", "check")[turn % 2]
            play = partial(changed, file, change, f"{seed} {name}", command)
            yield Case("data: nnunet", f"{file}, {name} ({command})", play)
