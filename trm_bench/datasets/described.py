"""Datasets that a dataset.json describes: what the Decathlon's and nnU-Net's layouts share."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

from trm_bench.datasets.base import LabelMap, NiftiDataset
from trm_bench.datasets.subjects import BACKGROUND
from trm_bench.errors import UserError
from trm_bench.inputs import is_file, read_text

MOST_NAMES_IN_ALIAS = 3
MOST_BYTES = 2**24  # of dataset.json
LONGEST_NAME = 100  # of a modality or a label
LARGEST_VALUE = 255  # of a label


class DescribedDataset(NiftiDataset):
    """A folder whose ``dataset.json`` names modalities and labels.

    Its key ``distance_unit`` (``mm``, the default, or ``voxels``) says whether the files' voxel
    size is to be believed: some published sets have lost it.

    Attributes:
        fix: What to do about a dataset.json that is wrong.

    Raises:
        UserError: ``dataset.json`` is missing, is no JSON, or lacks a key.
    """

    fix: ClassVar[str] = "use the dataset.json that comes with the data"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._json = self.root / "dataset.json"
        self.content = self._load()
        unit = self.content.get("distance_unit", "mm")
        if unit not in ("mm", "voxels"):
            raise self.error(f'\'distance_unit\' is {unit!r:.50}, not "mm" or "voxels"')
        self.distance_unit = unit

    def error(self, what: str, fix: str = "") -> UserError:
        """What is wrong with dataset.json."""
        return UserError(what, self._json, fix or self.fix)

    def refuse_link(self, file: Path) -> None:
        """Raises `UserError` for a description that lies outside the root by a symbolic link."""
        if self.leads_outside(file):
            what = "leads outside the dataset's folder by a symbolic link"
            raise UserError(what, file, "copy it, or set data.allow_links: true")

    def numbered(self, key: str, repeated: bool = False) -> dict[int, str]:
        """The object under `key`, number to name, e.g. ``{"0": "FLAIR"}``, by ascending number.

        Args:
            key: In dataset.json.
            repeated: Whether a name may stand there several times; each then ends with its number.
        """
        entries = self.content.get(key)
        if not isinstance(entries, dict) or not entries:
            raise self.error(f"'{key}' is not an object that numbers names, such as {{\"0\": ...}}")
        numbered: dict[int, str] = {}
        for number, name in entries.items():
            clean = plain_name(name)
            shown = f"{number!r:.50}: {name!r:.150}"
            numeral = re.fullmatch(r"\d{1,3}", number, re.ASCII) and int(number) <= LARGEST_VALUE
            if not numeral or not clean:
                what = f"'{key}' has the entry {shown}, not a number up to {LARGEST_VALUE}"
                raise self.error(f"{what} and a name")
            if int(number) in numbered or (clean in numbered.values() and not repeated):
                raise self.error(f"'{key}' has {shown} twice")
            numbered[int(number)] = clean
        of = Counter(numbered.values())
        return {i: f"{name}_{i}" if of[name] > 1 else name for i, name in sorted(numbered.items())}

    def channel_names(self, key: str, repeated: bool = False) -> tuple[str, ...]:
        """The names of the channels under `key`, in the order of the channels; see `numbered`."""
        names = self.numbered(key, repeated)
        if [*names] != [*range(len(names))]:
            raise self.error(f"the keys of '{key}' are {[*names]}, not 0, 1, 2 and so on")
        if len({*names.values()}) < len(names):  # such as ct, ct and ct_1
            raise self.error(f"'{key}' has a name twice")
        return tuple(names.values())

    def file(self, text: object, key: str) -> Path:
        """A file inside the root that dataset.json names; raises `UserError` for anything else."""
        if not isinstance(text, str) or not PurePosixPath(text).name:
            raise self.error(f"'{key}' is not a file name")
        parts = [part.encode(errors="replace") for part in PurePosixPath(text).parts]
        if not text.isprintable() or max(map(len, parts)) > 255 or len(parts) > 20:
            raise self.error(f"'{key}' is {text[:100]!r}, which no file can be called")
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(text)
            if path.is_absolute() or path.anchor or ".." in path.parts:
                what = f"'{key}' is {text[:200]!r}, which lies outside the dataset's folder"
                raise self.error(what)
        return self.root / text

    def _load(self) -> dict[str, Any]:
        if not is_file(self._json):
            inside = sorted(file.parent.name for file in self.root.glob("*/dataset.json"))
            fix = f"point data.root at one such folder{': ' if inside else ''}{', '.join(inside)}"
            raise UserError("no dataset.json", self.root, fix)
        text = read_text(self._json, MOST_BYTES, self.fix)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(f"the file is no JSON ({error})") from error
        if not isinstance(content, dict):
            raise self.error("the file holds no JSON object")
        return content


def plain_name(name: object) -> str:
    """Lower case, with each run of other characters than letters and digits as one underscore.

    It is "" for what gives no name: other things than text, no letters, or too many.
    """
    text = name if isinstance(name, str) else ""
    plain = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return plain if len(plain) <= LONGEST_NAME else ""


def label_maps(
    names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, LabelMap]:
    """The segmentation tasks of a set whose label values have names.

    ``all`` (each value its class, scored by the regions), ``whole`` (every value as one class), and
    a binary map for each region, or for each value where there are no regions. Up to three values'
    joined names are another name of ``all`` where there are no regions. What is itself called "all"
    or "whole" has no binary map.

    Args:
        names: Label value to name, from 0 (the background, whatever its name) up.
        regions: Region to its label values, for labels that are unions of others.
    """
    index = {value: i for i, value in enumerate(names)}
    foreground = {value: name for value, name in names.items() if value}
    scored = {name: tuple(index[v] for v in values) for name, values in (regions or {}).items()}
    everything = LabelMap((BACKGROUND, *foreground.values()), index, scored)
    whole = LabelMap((BACKGROUND, "whole"), {value: int(value > 0) for value in names})
    maps = {"all": everything, "whole": whole}
    for name, values in (regions or {n: (v,) for v, n in foreground.items()}).items():
        binary = {value: int(value in values) for value in names}
        maps.setdefault(name, LabelMap((BACKGROUND, name), binary))
    if not regions and len(foreground) <= MOST_NAMES_IN_ALIAS:
        maps.setdefault("_".join(foreground.values()), everything)
    return maps
