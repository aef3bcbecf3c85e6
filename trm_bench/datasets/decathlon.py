"""Any task of the Medical Segmentation Decathlon, as its dataset.json describes it."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from trm_bench.datasets.base import LabelMap, NiftiDataset, Subject
from trm_bench.errors import UserError
from trm_bench.inputs import is_file, read_text

MOST_NAMES_IN_ALIAS = 3
MOST_BYTES = 2**24  # of dataset.json
LONGEST_NAME = 100  # of a modality or a label


class Decathlon(NiftiDataset):
    """One task's folder: ``dataset.json``, ``imagesTr``, ``labelsTr``.

    Modalities are those of ``modality`` in lower case (FLAIR: flair, T1gd: t1gd). A task with
    several keeps them on the fourth axis of one file per subject. Only ``training`` is used: the
    test images have no public labels.

    Label maps: ``all`` (each label its class), ``whole`` (every label as one class), and a binary
    map for each label, under its name in lower case. With at most three labels their joined names
    (Task04: ``anterior_posterior``) are another name of ``all``. A label that is itself called
    "all" or "whole" has no binary map.

    The ids are the images' names. Nothing in a task says which of them come from one person, so
    each is its own patient: the hippocampus task, whose source is 195 scans, publishes 394 volumes.

    Attributes:
        task: The task's name, from ``name``; "" where it has none.

    Raises:
        UserError: ``dataset.json`` is missing, is no JSON, lacks a key, or lists a path outside the
            root.

    Source: M. Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications
    13:4128, 2022.
    """

    name = "decathlon"
    licence = "CC-BY-SA 4.0"
    citation = (
        "M. Antonelli et al., The Medical Segmentation Decathlon, "
        "Nature Communications 13:4128, 2022"
    )

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._json = self.root / "dataset.json"
        content = self._load()
        self.task = str(content.get("name", ""))
        modalities = self._numbered(content, "modality")
        if [*modalities] != [*range(len(modalities))]:
            raise self._error(f"the keys of 'modality' are {[*modalities]}, not 0, 1, 2 and so on")
        self.modalities = tuple(modalities.values())
        self.channels = {name: i for i, name in modalities.items()} if len(modalities) > 1 else {}
        self.label_maps = self._label_maps(self._numbered(content, "labels"))
        self._training = self._pairs(content)

    def subjects(self) -> list[Subject]:
        """Lists the training subjects, sorted by id.

        Raises:
            UserError: `dataset.json` is a symbolic link that leads outside the root.
        """
        if self.leads_outside(self._json):
            what = "leads outside the dataset's folder by a symbolic link"
            raise UserError(what, self._json, "copy it, or set data.allow_links: true")
        subjects = []
        for name, (image, label) in sorted(self._training.items()):
            images = {modality: image for modality in self.modalities} if is_file(image) else {}
            subjects.append(Subject(name, images, label))
        return subjects

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """The image that dataset.json lists."""
        return self._training[subject.id][0]

    def _error(self, what: str) -> UserError:
        return UserError(what, self._json, "use the dataset.json that comes with the task")

    def _load(self) -> dict[str, Any]:
        if not is_file(self._json):
            inside = sorted(file.parent.name for file in self.root.glob("*/dataset.json"))
            fix = f"point data.root at one task's folder{': ' if inside else ''}{', '.join(inside)}"
            raise UserError("no dataset.json", self.root, fix)
        text = read_text(self._json, MOST_BYTES, "use the dataset.json that comes with the task")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._error(f"the file is no JSON ({error})") from error
        if not isinstance(content, dict):
            raise self._error("the file holds no JSON object")
        return content

    def _numbered(self, content: dict[str, Any], key: str) -> dict[int, str]:
        """The object under `key`, number to name, e.g. ``{"0": "FLAIR"}``, by ascending number."""
        entries = content.get(key)
        if not isinstance(entries, dict) or not entries:
            raise self._error(
                f"'{key}' is not an object that numbers names, such as {{\"0\": ...}}"
            )
        numbered: dict[int, str] = {}
        for number, name in entries.items():
            clean = _sanitised(name) if isinstance(name, str) else ""
            shown = f"{number!r:.50}: {name!r:.150}"
            numeral = re.fullmatch(r"\d{1,3}", number, re.ASCII) and int(number) <= 255
            if not numeral or not 0 < len(clean) <= LONGEST_NAME:
                what = f"'{key}' has the entry {shown}, not a number up to 255 and a name"
                raise self._error(what)
            if int(number) in numbered or clean in numbered.values():
                raise self._error(f"'{key}' has {shown} twice")
            numbered[int(number)] = clean
        return dict(sorted(numbered.items()))

    def _label_maps(self, labels: dict[int, str]) -> dict[str, LabelMap]:
        if 0 not in labels or len(labels) < 2:
            raise self._error("'labels' needs 0 (the background) and at least one more")
        names = [name for value, name in labels.items() if value > 0]
        everything = LabelMap(("background", *names), {v: i for i, v in enumerate(labels)})
        whole = LabelMap(("background", "whole"), {v: int(v > 0) for v in labels})
        maps = {"all": everything, "whole": whole}
        for name in names:
            values = {v: int(n == name) for v, n in labels.items()}
            maps.setdefault(name, LabelMap(("background", name), values))
        if len(names) <= MOST_NAMES_IN_ALIAS:
            maps.setdefault("_".join(names), everything)
        return maps

    def _pairs(self, content: dict[str, Any]) -> dict[str, tuple[Path, Path]]:
        """Subject to image and label file."""
        entries = content.get("training")
        if not isinstance(entries, list) or not entries:
            raise self._error("'training' is not a list of images and labels")
        pairs: dict[str, tuple[Path, Path]] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self._error(f"'training[{index}]' is not an object with image and label")
            image, label = (
                self._path(entry.get(key), f"training[{index}].{key}") for key in ("image", "label")
            )
            if image.name.startswith("."):  # macOS' "._" companions, which some archives list
                continue
            name = image.name.removesuffix(".gz").removesuffix(".nii")
            if name in pairs:
                raise self._error(f"'training' lists {name} twice")
            pairs[name] = image, label
        return pairs

    def _path(self, text: object, key: str) -> Path:
        """A file inside the root; raises `UserError` for anything else."""
        if not isinstance(text, str) or not PurePosixPath(text).name:
            raise self._error(f"'{key}' is not a file name")
        parts = [part.encode(errors="replace") for part in PurePosixPath(text).parts]
        if not text.isprintable() or max(map(len, parts)) > 255 or len(parts) > 20:
            raise self._error(f"'{key}' is {text[:100]!r}, which no file can be called")
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(text)
            if path.is_absolute() or path.anchor or ".." in path.parts:
                raise self._error(
                    f"'{key}' is {text[:200]!r}, which lies outside the task's folder"
                )
        return self.root / text


def _sanitised(name: str) -> str:
    """Lower case, with each run of other characters than letters and digits as one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
