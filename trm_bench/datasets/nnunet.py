"""Any dataset in nnU-Net's raw layout (version 2), as its dataset.json describes it."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from trm_bench.datasets.base import Subject
from trm_bench.datasets.columns import read_column
from trm_bench.datasets.described import LARGEST_VALUE, DescribedDataset, label_maps, plain_name
from trm_bench.datasets.subjects import BACKGROUND
from trm_bench.errors import UserError
from trm_bench.inputs import is_file

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""The values of `file_ending` that are read; the last two through SimpleITK."""
_COLUMNS = {"institutions.csv": "institution", "patients.csv": "patient"}


class NnUNet(DescribedDataset):
    """One dataset's folder, such as ``Dataset101_Name``.

    Files ``imagesTr/CASE_0000.nii.gz`` (one for each channel) and ``labelsTr/CASE.nii.gz``; the
    subjects' ids are CASE. Where dataset.json has the key ``dataset``, it names each case's files
    instead; they stay inside the folder. Only training cases are used.

    Modalities are those of ``channel_names`` in lower case (T1 CE: t1_ce); a name that several
    channels share ends with the channel's number (``zscore_0``, ``zscore_1``).

    Label maps: ``all`` (each label its class), ``whole`` (every label as one class), and a binary
    map for each label, as for `Decathlon`. Labels that are lists of values are regions: each value
    is a class of ``all``, called as the label that has it alone, else ``value_N``, ``all`` is
    scored by the regions, and each region has a binary map. (``regions_class_order`` says how
    nnU-Net writes predictions, and does not matter here.)

    ``institutions.csv`` (columns subject, institution) and ``patients.csv`` (subject, patient) are
    optional: a subject that they lack has no known institution, and is its own patient.

    The key ``distance_unit``, which nnU-Net does not know, may say ``voxels`` where the files have
    lost their voxel size. A label ``ignore`` is refused: its voxels have no truth, and training and
    scores would take them for background.

    Raises:
        UserError: ``dataset.json`` is missing, is no JSON, lacks a key, or describes what is not
            read here.

    Source: F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based
    biomedical image segmentation", Nature Methods 18, 2021; documentation/dataset_format.md.
    """

    name = "nnunet"
    title = "Any dataset in the raw layout of nnU-Net v2"
    licence = "That of the data"
    citation = (
        "That of the data; the layout: F. Isensee et al., nnU-Net: a self-configuring method for "
        "deep learning-based biomedical image segmentation, Nature Methods 18:203-211, 2021"
    )
    access = "your own"
    url = "https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md"
    layout = """\
Dataset101_Name/             data.root
  dataset.json               channel_names, labels, file_ending
  imagesTr/CASE_0000.nii.gz  one file for each channel
  labelsTr/CASE.nii.gz
  institutions.csv           optional: subject,institution
  patients.csv               optional: subject,patient"""
    fix = "write it as nnU-Net's dataset_format.md says"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        if "training" in self.content and "file_ending" not in self.content:
            raise self.error(
                "the folder is in the Decathlon's layout", "set data.dataset: decathlon"
            )
        key = "channel_names" if "channel_names" in self.content else "modality"
        self.modalities = self.channel_names(key, repeated=True)
        self.label_maps = label_maps(*self._labels())
        self.ending = str(self.content.get("file_ending"))
        if self.ending not in ENDINGS:
            what = f"'file_ending' is {self.ending!r:.50}; what is read is {', '.join(ENDINGS)}"
            raise self.error(what, "convert the files to one of these, and say so there")

    def subjects(self) -> list[Subject]:
        """Lists the training cases, sorted by id.

        Raises:
            UserError: There is none, their number is not ``numTraining``, a file belongs to no
                channel, a table names another subject, or a description is a symbolic link that
                leads outside the root.
        """
        self.refuse_link(self._json)
        cases = self._cases
        number = self.content.get("numTraining", len(cases))
        if number != len(cases):
            what = f"'numTraining' is {number!r:.50}, the folder has {len(cases)} training cases"
            raise self.error(what, "copy the missing cases, or correct the number")
        said = {column: self._table(table, column, cases) for table, column in _COLUMNS.items()}
        subjects = []
        for case in sorted(cases):
            images, label = cases[case]
            more = {column: of.get(case, "") for column, of in said.items()}
            there = {modality: file for modality, file in images.items() if is_file(file)}
            subjects.append(Subject(case, there, label, **more))
        return subjects

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """The image's name in the layout."""
        return self._cases[subject.id][0][modality]

    @cached_property
    def _cases(self) -> dict[str, tuple[dict[str, Path], Path]]:
        """Case to its images and label."""
        return self._named_cases() if "dataset" in self.content else self._listed_cases()

    def _listed_cases(self) -> dict[str, tuple[dict[str, Path], Path]]:
        """Case to its images and label, as the files' names tell."""
        images, labels = self.root / "imagesTr", self.root / "labelsTr"
        cases = {file.name.removesuffix(self.ending) for file in self._inside(labels)}
        for file in self._inside(images):
            match = re.fullmatch(r"(.+)_(\d{4})", file.name.removesuffix(self.ending), re.ASCII)
            if match is None or int(match[2]) >= len(self.modalities):
                what = f"the name does not end with the number of a channel, _0000{self.ending}"
                last = f"_{len(self.modalities) - 1:04}{self.ending}"
                if len(self.modalities) > 1:
                    what = f"{what} to {last}"
                raise UserError(what, file, "rename it, or correct channel_names in dataset.json")
            cases.add(match[1])
        if not cases:
            what = f"no case: no file labelsTr/CASE{self.ending}"
            raise UserError(what, self.root, "point data.root at one dataset's folder")
        return {
            case: (
                {m: images / f"{case}_{i:04}{self.ending}" for i, m in enumerate(self.modalities)},
                labels / f"{case}{self.ending}",
            )
            for case in cases
        }

    def _inside(self, folder: Path) -> list[Path]:
        try:
            return [
                file
                for file in folder.iterdir()
                if file.name.endswith(self.ending) and not file.name.startswith(".")
            ]
        except OSError as error:
            fix = "point data.root at one dataset's folder"
            raise UserError(f"cannot be read: {error.strerror}", folder, fix) from error

    def _named_cases(self) -> dict[str, tuple[dict[str, Path], Path]]:
        """Case to its images and label, as dataset.json names them."""
        entries = self.content["dataset"]
        if not isinstance(entries, dict) or not entries:
            raise self.error("'dataset' is not an object that names each case's files")
        cases = {}
        for case, entry in entries.items():
            key = f"dataset.{case:.100}"
            images = entry.get("images") if isinstance(entry, dict) else None
            if not isinstance(images, list) or len(images) != len(self.modalities):
                what = f"'{key}' is not an object with a label and {len(self.modalities)} images"
                raise self.error(what)
            files = [self.file(text, f"{key}.images[{i}]") for i, text in enumerate(images)]
            label = self.file(entry.get("label"), f"{key}.label")
            cases[case] = dict(zip(self.modalities, files, strict=True)), label
        return cases

    def _labels(self) -> tuple[dict[int, str], dict[str, tuple[int, ...]]]:
        """Each label value's name, and the regions, if any label is one."""
        entries = self.content.get("labels")
        if not isinstance(entries, dict) or not entries:
            raise self.error("'labels' is not an object of names with their values")
        if "ignore" in entries:
            what = "'labels' has 'ignore', the label of voxels without truth, which no method here"
            fix = "use a set that is labelled throughout, or leave 'ignore' out if no file has it"
            raise self.error(f"{what} and no score can leave out", fix)
        named: dict[str, tuple[int, ...]] = {}
        for text, value in entries.items():
            name, values = plain_name(text), tuple(value) if isinstance(value, list) else (value,)
            if not name or not values or not all(map(_is_value, values)):
                what = f"'labels' has the entry {text!r:.100}: {value!r:.100}"
                raise self.error(f"{what}, not a name with values up to {LARGEST_VALUE}")
            if name in named or len({*values}) < len(values):
                raise self.error(f"'labels' has {text!r:.100} or one of its values twice")
            named[name] = values
        background = [name for name, values in named.items() if 0 in values]
        if len(background) != 1 or len(named) < 2 or named.pop(background[0]) != (0,):
            raise self.error("'labels' needs one label 0 (the background) and at least one more")
        alone = [(values[0], name) for name, values in named.items() if len(values) == 1]
        if len(dict(alone)) < len(alone):
            raise self.error("'labels' gives one value two names")
        every = {value: f"value_{value}" for values in named.values() for value in sorted(values)}
        names = {0: BACKGROUND} | every | dict(alone)
        if len({*names.values()}) < len(names):  # a label is called background, or value_2
            raise self.error(f"'labels' gives two values one name: {', '.join(names.values())}")
        regions = named if len(alone) < len(named) else {}
        return dict(sorted(names.items())), regions

    def _table(self, name: str, column: str, cases: dict[str, Any]) -> dict[str, str]:
        """What institutions.csv or patients.csv says; nothing where there is none."""
        file, fix = self.root / name, f"give it the columns subject and {column}, or remove it"
        if not is_file(file):
            return {}
        self.refuse_link(file)
        found = read_column(file, "subject", column, fix)
        if unknown := sorted(found.keys() - cases.keys()):
            what = f"no training case is called {', '.join(unknown[:5])}"
            raise UserError(what, file, "remove or correct the row")
        return found


def _is_value(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_VALUE
