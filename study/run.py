"""Runs a part of the study: sweeps and runs of the protocols beside this file, one after another.

    TRM_DATA=FOLDER python study/run.py A
    TRM_DATA=FOLDER python study/run.py A --reference results/reference/study

Each command resumes, so that the same call goes on after a kill. docs/study.md says what the parts
ask.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

# What a report leaves and others can use: numbers, and charts without an image of a subject.
KEPT = (
    "comparisons.csv",
    "gamma.csv",
    "negative_transfer.csv",
    "provenance.json",
    "sensitivity.csv",
    "summary.json",
    "table.csv",
    "table.md",
    "table.tex",
    "transferability.csv",
    "voxel_auroc.csv",
    "voxel_rates.csv",
    "figures/gains.svg",
    "figures/gains_by_transfer.svg",
    "figures/gamma.svg",
    "sweep/summary.md",
    "sweep/trials.json",
    "sweep/tuned.yaml",
)
COMPRESSED = ("metrics.csv",)


@dataclass(frozen=True)
class Step:
    """A command on a protocol of the study.

    Attributes:
        command: `run` or `sweep`.
        protocol: Name of the file beside this one.
        methods: `all`; "" for the protocol's, the declared family.
        tuned_on: The protocol whose sweep the values are from; "" for the defaults.
        training_of: The method whose tuned training all have; "" where each has its own values.
    """

    command: str
    protocol: str
    methods: str = ""
    tuned_on: str = ""
    training_of: str = ""

    @property
    def name(self) -> str:
        """Of the results' folder: defaults and tuned values have tables of their own."""
        values = "_shared" if self.training_of else "_tuned" if self.tuned_on else ""
        return f"study_{self.protocol}{values}"

    def arguments(self, results: Path) -> list[str]:
        """The command's, without where its results go."""
        given = [self.command, str(HERE / f"{self.protocol}.yaml")]
        if self.methods:
            given += ["--methods", self.methods]
        if self.tuned_on:
            tuned = results / f"study_{self.tuned_on}" / "sweep" / "tuned.yaml"
            given += ["--set", f"name={self.name}", "--tuned", str(tuned), "--borrow"]
        if self.training_of:
            given += ["--training-of", self.training_of]
        return given


PARTS: dict[str, tuple[Step, ...]] = {
    "A": (
        Step("run", "brats_family"),
        Step("run", "brats_family_fixed"),
        Step("run", "brats_long"),
        Step("sweep", "brats"),
        Step("run", "brats_family_fixed", tuned_on="brats"),
        Step("run", "brats_family_fixed", tuned_on="brats", training_of="finetune"),
    ),
    "B": (
        Step("run", "brats", "all"),
        Step("sweep", "brats"),
        Step("sweep", "brats", "all"),  # the family has been
        Step("run", "brats", "all", tuned_on="brats"),
        Step("sweep", "brats_folds"),
        Step("run", "brats_folds"),
        Step("run", "brats_folds", tuned_on="brats_folds"),
    ),
    "C": (
        Step("run", "brats_shots"),
        Step("run", "brats_regions"),
        Step("run", "brats_shots_fixed"),
        Step("sweep", "brats"),
        Step("run", "brats_shots_fixed", tuned_on="brats"),
        Step("run", "brats_shots_fixed", tuned_on="brats", training_of="finetune"),
    ),
    "D": (
        Step("run", "neonatal_family"),
        Step("run", "neonatal", "all"),
        Step("sweep", "brats"),
        Step("run", "neonatal_family", tuned_on="brats"),
        Step("run", "neonatal_family", tuned_on="brats", training_of="finetune"),
        Step("sweep", "brats", "all"),  # the family has been
        Step("run", "neonatal", "all", tuned_on="brats"),
    ),
    "E": (
        Step("run", "cardiac"),
        Step("sweep", "hippocampus"),
        Step("run", "cardiac", tuned_on="hippocampus"),
        Step("run", "cardiac_all", "all"),
        Step("sweep", "hippocampus", "all"),  # the family has been
        Step("run", "cardiac_all", "all", tuned_on="hippocampus"),
    ),
    "F": (
        Step("run", "hippocampus", "all"),
        Step("run", "hippocampus_family"),
        Step("sweep", "hippocampus"),
        Step("run", "hippocampus_family", tuned_on="hippocampus"),
        Step("run", "hippocampus_shots"),
        Step("run", "hippocampus_gamma"),
        Step("sweep", "hippocampus", "all"),  # the family has been
        Step("run", "hippocampus", "all", tuned_on="hippocampus"),
    ),
    "G": (
        Step("run", "lgg"),
        Step("sweep", "lgg"),
        Step("run", "lgg", tuned_on="lgg"),
        Step("run", "lgg", tuned_on="lgg", training_of="finetune"),
        Step("run", "lgg_all", "all"),
        Step("sweep", "lgg", "all"),  # the family has been
        Step("run", "lgg_all", "all", tuned_on="lgg"),
    ),
    "H": (
        Step("run", "datasets"),
        Step("run", "datasets_long"),
    ),
}


def collect(results: Path, reference: Path, step: Step) -> None:
    """Copies what a step's report left to the folder of the reference results."""
    source, target = results / step.name, reference / step.name
    for name in KEPT:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    for name in COMPRESSED:
        if (source / name).is_file():
            content = (source / name).read_bytes()  # the same bytes whenever it is made
            (target / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--jobs", default="2", help="trainings at a time")
    parser.add_argument("--reference", type=Path, help="copy what the reports left to here")
    parser.add_argument("--collect", action="store_true", help="train nothing, only copy")
    given = parser.parse_args()
    for step in PARTS[given.part]:
        if not given.collect:
            where = ["--out", str(given.out), "--jobs", given.jobs]
            command = [sys.executable, "-m", "trm_bench", *step.arguments(given.out), *where]
            print("+", *command[2:], flush=True)
            code = subprocess.run(command, check=False).returncode
            if code:
                return code
        if given.reference:
            collect(given.out, given.reference, step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
