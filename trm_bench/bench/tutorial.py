"""The same network in the training loop of MONAI's own tutorials on 3D segmentation.

Spleen and brain tumours: cached volumes, transforms in the workers of a data loader, DiceCELoss.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

import torch

from trm_bench.bench.bare import Kind, as_a_script
from trm_bench.bench.machine import Machine
from trm_bench.bench.steps import label
from trm_bench.bench.timing import Row, Section, Timed, in_turns, wall
from trm_bench.bench.workload import Workload, context, step_seconds
from trm_bench.display import Display
from trm_bench.protocol.schema import AugmentConfig

AUGMENT = AugmentConfig(
    flip=(0, 1, 2), rotate=15, scale=0.1, contrast=0.1, brightness=0.1, noise=0.1
)
TUTORIAL = "MONAI tutorial"


def measure(
    workload: Workload, compiled: bool, machine: Machine, display: Display
) -> Section | None:
    """Times MONAI's loop at several numbers of workers beside ours with the same augmentation.

    Args:
        workload: What is trained.
        compiled: Time ours through torch.compile too.
        machine: Where.
        display: Where progress is shown.

    Returns:
        None for a 2D network, for which there is no such tutorial.
    """
    if len(workload.training.patch) == 2:
        return None
    device = workload.device
    with _Loops(workload, _workers(machine.cores)) as loops:
        works: dict[str, Timed] = dict(loops.works)
        for way, precision in product([False, True] if compiled else [False], machine.precisions):
            config = workload.config(augment=AUGMENT, precision=precision, compile=way)
            works[label("finetune", precision, way)] = partial(
                step_seconds, "finetune", workload.subjects, config, device, wall
            )
        with display.stage("timing loops", (workload.rounds + 1) * len(works)) as stage:
            for work in works.values():
                work()
                stage.advance()
            times = in_turns(works, workload.rounds, stage.advance)
    rows = tuple(Row(name, own) for name, own in times.items())
    best = min((r for r in rows if r.name.startswith(TUTORIAL)), key=lambda row: row.median).name
    note = (
        "Time that passes, with the same crops, flips, rotation, scaling, intensities and noise. "
        "MONAI's workers are processes that may use all cores; the training has one thread. "
        f"`ratio` is to '{best}', the best of them."
    )
    return Section("a step in a whole training loop", "step", rows, best, note)


def _workers(cores: int) -> list[int]:
    """None, and as many as powers of two up to the cores."""
    counts = [0, *(2**i for i in range(cores.bit_length()))]
    return [count for count in counts if count <= cores]


class _Loops:
    """MONAI's loop at each number of workers, which live until the end."""

    def __init__(self, workload: Workload, workers: list[int]) -> None:
        self.device, self.steps = workload.device, workload.training.steps
        self.rate = workload.training.optimizer.lr
        data = _cached(workload)
        self.run = context(workload.subjects, workload.training, self.device)
        self.network = self.run.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.loaders = {n: _loader(data, workload, n) for n in workers}

    def __enter__(self) -> _Loops:
        return self

    def __exit__(self, *error: object) -> None:
        self.loaders.clear()  # the workers end with their loader

    @property
    def works(self) -> dict[str, Timed]:
        """By name; each trains so many steps."""
        return {
            f"{TUTORIAL}, {n} worker{'' if n == 1 else 's'}": partial(self._seconds, n)
            for n in self.loaders
        }

    def _seconds(self, workers: int) -> float:
        """Of a step, from the second of an epoch on: the first waits for the workers to begin."""
        from monai.losses import DiceCELoss

        batches = iter(self.loaders[workers])
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        on_gpu = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.rate)
        scaler = torch.amp.GradScaler(self.device.type, enabled=on_gpu)

        def train(steps: int) -> None:
            total = 0.0
            for _ in range(steps):
                batch = next(batches)
                image, truth = batch["image"].to(self.device), batch["label"].to(self.device)
                optimizer.zero_grad()
                with torch.autocast(self.device.type, torch.float16, enabled=on_gpu):
                    value = loss(self.network(image), truth)
                scaler.scale(value).backward()
                scaler.step(optimizer)
                scaler.update()
                total += value.item()

        self.network.train()
        with as_a_script(Kind("fp32", plain=True)):
            train(1)
            return wall(self.device, lambda: train(self.steps)) / self.steps


def _cached(workload: Workload) -> Any:
    """The random volumes, read and with their channel first, and what is drawn anew each time."""
    from monai import transforms
    from monai.data import CacheDataset

    subjects, patch = workload.subjects, workload.training.patch
    volumes = [subjects.volume(i) for i in range(len(subjects))]
    both, turn = ["image", "label"], (math.radians(AUGMENT.rotate),) * 3
    return CacheDataset(
        [{"image": image[0].cpu(), "label": label.cpu()} for image, label, _ in volumes],
        transforms.Compose(
            [
                transforms.EnsureTyped(keys=both),
                transforms.RandCropByPosNegLabeld(
                    keys=both, label_key="label", spatial_size=patch, pos=1, neg=1, num_samples=1
                ),
                *(transforms.RandFlipd(both, prob=0.5, spatial_axis=a) for a in AUGMENT.flip),
                transforms.RandAffined(
                    keys=both,
                    prob=1.0,
                    rotate_range=turn,
                    scale_range=(AUGMENT.scale,) * 3,
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                ),
                transforms.RandGaussianNoised("image", prob=1.0, std=AUGMENT.noise),
                transforms.RandScaleIntensityd("image", factors=AUGMENT.contrast, prob=1.0),
                transforms.RandShiftIntensityd("image", offsets=AUGMENT.brightness, prob=1.0),
            ]
        ),
        progress=False,
    )


def _loader(data: Any, workload: Workload, workers: int) -> Any:
    """Epochs of one step more than a turn has."""
    from monai.data import DataLoader
    from torch.utils.data import RandomSampler

    batch = workload.training.batch
    draws = (workload.training.steps + 1) * batch
    return DataLoader(
        data,
        batch_size=batch,
        num_workers=workers,
        sampler=RandomSampler(data, replacement=True, num_samples=draws),
        persistent_workers=workers > 0,
        pin_memory=workload.device.type == "cuda",
    )
