"""Any task of the Medical Segmentation Decathlon, as its dataset.json describes it."""

from __future__ import annotations

from pathlib import Path

from trm_bench.datasets.base import Archive, Subject
from trm_bench.datasets.described import DescribedDataset, label_maps
from trm_bench.datasets.subjects import BACKGROUND
from trm_bench.inputs import is_file

# As MONAI publishes them beside its mirror of the archives.
MIRROR = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
CHECKSUMS = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}


class Decathlon(DescribedDataset):
    """One task's folder: ``dataset.json``, ``imagesTr``, ``labelsTr``.

    Modalities are those of ``modality`` in lower case (FLAIR: flair, T1gd: t1gd). A task with
    several keeps them on the fourth axis of one file per subject. Only ``training`` is used: the
    test images have no public labels.

    Label maps: ``all`` (each label its class), ``whole`` (every label as one class), and a binary
    map for each label, under its name in lower case; see `described.label_maps`. With at most three
    labels their joined names (Task04: ``anterior_posterior``) are another name of ``all``.

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
    title = "Any task of the Medical Segmentation Decathlon (MR and CT of ten organs)"
    licence = "CC-BY-SA 4.0"
    citation = (
        "M. Antonelli et al., The Medical Segmentation Decathlon, "
        "Nature Communications 13:4128, 2022"
    )
    access = "free"
    url = "http://medicaldecathlon.com"
    layout = """\
Task04_Hippocampus/          data.root
  dataset.json
  imagesTr/NAME.nii.gz       several modalities on the fourth axis
  labelsTr/NAME.nii.gz"""
    archives = {  # noqa: RUF012
        task: Archive(f"{MIRROR}/{task}.tar", f"md5:{md5}") for task, md5 in CHECKSUMS.items()
    }
    fix = "use the dataset.json that comes with the task"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        if "channel_names" in self.content:
            raise self.error("the folder is in nnU-Net's layout", "set data.dataset: nnunet")
        self.task = str(self.content.get("name", ""))
        self.modalities = self.channel_names("modality")
        several = len(self.modalities) > 1
        self.channels = {name: i for i, name in enumerate(self.modalities)} if several else {}
        labels = self.numbered("labels")
        if 0 not in labels or len(labels) < 2:
            raise self.error("'labels' needs 0 (the background) and at least one more")
        if BACKGROUND in [name for value, name in labels.items() if value]:
            raise self.error(f"'labels' calls another value than 0 '{BACKGROUND}'")
        self.label_maps = label_maps(labels)
        self._training = self._pairs()

    def subjects(self) -> list[Subject]:
        """Lists the training subjects, sorted by id.

        Raises:
            UserError: `dataset.json` is a symbolic link that leads outside the root.
        """
        self.refuse_link(self._json)
        subjects = []
        for name, (image, label) in sorted(self._training.items()):
            images = {modality: image for modality in self.modalities} if is_file(image) else {}
            subjects.append(Subject(name, images, label))
        return subjects

    def expected_file(self, subject: Subject, modality: str) -> Path:
        """The image that dataset.json lists."""
        return self._training[subject.id][0]

    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        """Subject to image and label file."""
        entries = self.content.get("training")
        if not isinstance(entries, list) or not entries:
            raise self.error("'training' is not a list of images and labels")
        pairs: dict[str, tuple[Path, Path]] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise self.error(f"'training[{index}]' is not an object with image and label")
            image, label = (
                self.file(entry.get(key), f"training[{index}].{key}") for key in ("image", "label")
            )
            if image.name.startswith("."):  # macOS' "._" companions, which some archives list
                continue
            name = image.name.removesuffix(".gz").removesuffix(".nii")
            if name in pairs:
                raise self.error(f"'training' lists {name} twice")
            pairs[name] = image, label
        return pairs
