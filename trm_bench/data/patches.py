"""Batches.

Subjects on the compute device, and patches cut and augmented there, all of a batch at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from trm_bench.data.volumes import to_classes
from trm_bench.datasets.base import LabelMap
from trm_bench.seeds import generator

if TYPE_CHECKING:
    from trm_bench.data.prepared import Prepared
    from trm_bench.protocol.schema import AugmentConfig, TrainingConfig

FOREGROUND_VOXELS = (
    8192  # kept per subject and class to centre patches on; more would not make patches more varied
)
ROUNDING = 1e-2  # voxels that a point may lie beside where it should


@dataclass(frozen=True)
class Batch:
    """A batch of patches, spatial = the patch (2 or 3 axes).

    Attributes:
        image: float32, shape (B, C, *spatial).
        label: int64 classes, shape (B, *spatial).
        brain: bool, shape (B, *spatial).
        fields: Per-voxel extras that a method has attached to the store, by name, shape (B,
            *spatial).
        class_weight: Of each class of the label, shape (K,); None where the loss asks for none.
    """

    image: Tensor
    label: Tensor
    brain: Tensor
    fields: dict[str, Tensor]
    class_weight: Tensor | None = None


class SubjectStore:
    """Subjects of one domain on one device.

    On the CPU their voxels stay in the files that they were loaded from, mapped, so that all
    processes of a machine share them.

    Args:
        prepared: The subjects.
        modalities: Channels to load.
        label_map: Turns raw label values into classes.
        device: Where the voxels live: 2 bytes a voxel and channel, and 2 more for label and brain
            mask.

    Attributes:
        images: Of each subject the channels, fp16, each (X, Y, Z).
        labels: Of each subject the raw values, uint8.
        brains: Of each subject the mask, bool.
        fields: Of each subject a map that a method has attached, by name; see `attach`.
    """

    def __init__(
        self,
        prepared: Sequence[Prepared],
        modalities: Sequence[str],
        label_map: LabelMap,
        device: torch.device,
    ) -> None:
        self.prepared, self.label_map, self.device = list(prepared), label_map, device
        loaded = [p.load(modalities) for p in prepared]
        self.images = [[channel.to(device) for channel in image] for image, _, _ in loaded]
        self.labels = [label.to(device) for _, label, _ in loaded]
        self.brains = [brain.to(device) for _, _, brain in loaded]
        self.fields: dict[str, list[Tensor]] = {}
        self.shapes = [tuple(label.shape) for label in self.labels]
        every_value = torch.arange(256, dtype=torch.uint8)
        self._class_of = to_classes(every_value, label_map).to(device)

    def __len__(self) -> int:
        return len(self.prepared)

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.label_map.classes)

    def volume(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """One subject.

        Image (1, C, X, Y, Z) float32, label (1, X, Y, Z) int64, brain (1, X, Y, Z) bool.
        """
        image = torch.stack([channel.float() for channel in self.images[index]])
        return image[None], self.classes_of(index), self.brains[index][None]

    def classes_of(self, index: int) -> Tensor:
        """One subject's label alone, (1, X, Y, Z) int64."""
        return self.to_classes(self.labels[index])[None].long()

    def to_classes(self, raw: Tensor) -> Tensor:
        """Raw label values to classes, uint8."""
        return self._class_of.index_select(0, raw.flatten().int()).view(raw.shape)

    def class_weights(self) -> Tensor:
        """1 / n_k, float32 (K,), n_k the number of voxels of class k; 1 where there is none."""
        classes = [self.to_classes(raw).flatten().int() for raw in self.labels]
        counts = torch.stack([c.bincount(minlength=self.classes) for c in classes]).sum(0)
        return 1 / counts.clamp(min=1).float()

    def subset(self, indices: Sequence[int]) -> SubjectStore:
        """A store of some of the subjects, in that order, which shares their voxels and maps.

        What is attached to it later is its own.
        """
        part = copy.copy(self)
        part.prepared = [self.prepared[i] for i in indices]
        part.images = [self.images[i] for i in indices]
        part.labels = [self.labels[i] for i in indices]
        part.brains = [self.brains[i] for i in indices]
        part.shapes = [self.shapes[i] for i in indices]
        part.fields = {name: [maps[i] for i in indices] for name, maps in self.fields.items()}
        return part

    def attach(self, name: str, maps: Sequence[Tensor]) -> None:
        """Stores a per-voxel map of every subject, float32; batches then carry it, cropped as the
        label is.

        Args:
            name: The field's name in `Batch.fields`.
            maps: One map per subject, in order, shape (X, Y, Z) or (1, X, Y, Z).

        Raises:
            ValueError: Number or shapes of the maps do not fit the subjects.
        """
        volumes = [m[0] if m.ndim == 4 and len(m) == 1 else m for m in maps]
        if [tuple(v.shape) for v in volumes] != self.shapes:
            raise ValueError(f"field '{name}': the maps do not fit the {len(self)} subjects")
        self.fields[name] = [v.detach().to(self.device, torch.float32, copy=True) for v in volumes]


class PatchSampler:
    """Draws batches from a store. Batch `step` depends on the seed axes and `step` alone, not on
    who asked before.

    So every method sees the same patches and augmentations, and a method may replay or branch at
    any step. Half of a 2D patch's meaning is that its third axis has length 1: 2D and 3D share all
    code.

    Args:
        store: Where the voxels are.
        config: Patch, batch, foreground share and augmentation.
        axes: Seed axes of this stream, e.g. ("patches", transfer, seed).
    """

    def __init__(self, store: SubjectStore, config: TrainingConfig, *axes: object) -> None:
        self.store, self.config, self.axes = store, config, axes
        self.flat_slices = len(config.patch) == 2
        self.patch = (*config.patch, 1) if self.flat_slices else tuple(config.patch)
        # at least one, as a batch without foreground teaches little
        at_least = 1 if config.foreground > 0 else 0
        self.foreground_patches = max(at_least, round(config.batch * config.foreground))
        balanced = config.loss.voxels == "class_balanced"
        self._class_weight = store.class_weights() if balanced else None
        self._shapes = torch.tensor(store.shapes)
        self._candidates, self._starts, self._counts = _foreground(
            store, generator(*axes, "foreground")
        )

    def batch(self, step: int) -> Batch:
        """The batch of that step; whatever autocast the caller has on does not reach it."""
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast(self.store.device.type, enabled=False),
        ):
            return self._batch(step)

    def _batch(self, step: int) -> Batch:
        draws, store, augment = generator(*self.axes, step), self.store, self.config.augment
        size = self.config.batch
        subject = torch.randint(len(store), (size,), generator=draws)
        start = self._start(subject, draws)
        flips = torch.rand(size, 3, generator=draws) < 0.5
        flips &= torch.tensor([axis in augment.flip for axis in range(3)])
        cuts: Sequence[_Cut]
        if augment.rotate == 0 and augment.scale == 0:
            ends = zip(start.tolist(), flips.tolist(), strict=True)
            cuts = [_Straight(first, self.patch, flipped) for first, flipped in ends]
        else:
            cuts = self._turned(start, flips, draws)
        chosen = list(zip(subject.tolist(), cuts, strict=True))
        image = torch.stack([cut.between(store.images[i]) for i, cut in chosen])
        label = torch.stack([cut.nearest(store.labels[i], store.to_classes) for i, cut in chosen])
        brain = torch.stack([cut.nearest(store.brains[i]) for i, cut in chosen])
        fields = {
            name: torch.stack([cut.nearest(maps[i]) for i, cut in chosen])
            for name, maps in store.fields.items()
        }
        image = _intensity(image, augment, draws)
        batch = Batch(image, label.long(), brain, fields, self._class_weight)
        return _without_third_axis(batch) if self.flat_slices else batch

    def _start(self, subject: Tensor, draws: torch.Generator) -> Tensor:
        """First voxel of each patch, (B, 3): anywhere, or around a foreground voxel.

        Inside the volume if it fits.
        """
        size, patch = len(subject), torch.tensor(self.patch)
        slack = self._shapes[subject] - patch  # below 0 along axes where the patch does not fit
        # Everything is drawn for every patch, whether it is used or not, so that the draws that
        # follow do not depend on which subjects have foreground. Doubles, since float32 cannot
        # name every voxel of a large volume.
        share = torch.rand(size, 3, generator=draws, dtype=torch.float64)
        somewhere = (share * (slack + 1).clamp(min=1)).long()
        # a class that the subject has, each alike, then one of its voxels: a small class is
        # trained on as often as a large one
        counts = self._counts[subject]
        weights = (counts > 0).double()
        has = weights.sum(1) > 0
        weights[~has] = 1.0  # multinomial refuses rows of zeros; what it draws there is not used
        chosen = torch.multinomial(weights, 1, generator=draws)[:, 0]
        rows = torch.arange(size)
        pick = torch.rand(size, generator=draws, dtype=torch.float64) * counts[rows, chosen]
        where = self._starts[subject, chosen] + pick.long()
        if len(self._candidates):
            # a subject without foreground may point one past the end
            centre = self._candidates[where.clamp(max=len(self._candidates) - 1)]
        else:
            centre = torch.zeros(size, 3, dtype=torch.long)
        # moved inwards where it would reach over the volume's edge
        around = torch.minimum((centre - patch // 2).clamp(min=0), slack.clamp(min=0))
        use = has & (rows < self.foreground_patches)
        start = torch.where(use[:, None], around, somewhere)
        # a volume that is smaller than the patch sits in its middle
        return torch.where(slack < 0, slack.div(2, rounding_mode="floor"), start)

    def _turned(self, start: Tensor, flips: Tensor, draws: torch.Generator) -> list[_Turned]:
        """Cuts that are rotated and zoomed about their centres."""
        device = self.store.device
        matrix = _turn_and_zoom(len(start), self.config.augment, self.flat_slices, draws)
        ramps = [torch.arange(n) for n in self.patch]
        axes = [
            torch.where(flips[:, d : d + 1], ramp.flip(0), ramp) + start[:, d : d + 1]
            for d, ramp in enumerate(ramps)
        ]
        points = _moved([a.to(device) for a in axes], matrix.to(device))
        first, size = _boxes(start, torch.tensor(self.patch), matrix)
        return [
            _Turned([p[b] for p in points], low, extent)
            for b, (low, extent) in enumerate(zip(first.tolist(), size.tolist(), strict=True))
        ]


class _Cut(Protocol):
    """Where a patch lies in the volume of its subject; outside of that everything is 0."""

    def between(self, channels: Sequence[Tensor]) -> Tensor:
        """The image, (C, *patch) float32: between voxels interpolated linearly."""

    def nearest(
        self, volume: Tensor, change: Callable[[Tensor], Tensor] = lambda values: values
    ) -> Tensor:
        """Values of the nearest voxels, (*patch), changed where they lie inside."""


@dataclass(frozen=True)
class _Straight:
    """A part of the grid, maybe mirrored along some axes; see `_Cut`."""

    first: Sequence[int]
    size: Sequence[int]
    flips: Sequence[bool]

    def between(self, channels: Sequence[Tensor]) -> Tensor:
        return torch.stack([self.nearest(channel).float() for channel in channels])

    def nearest(
        self, volume: Tensor, change: Callable[[Tensor], Tensor] = lambda values: values
    ) -> Tensor:
        part = _part(volume, self.first, self.size, change)
        return part.flip([d for d in range(3) if self.flips[d]])


@dataclass(frozen=True)
class _Turned:
    """Points between the voxels of a part of the grid; see `_Cut`.

    Attributes:
        points: Voxel coordinates, three tensors (*patch).
        first: Where the part begins.
        size: Of the part, which holds all points and their neighbours.
    """

    points: Sequence[Tensor]
    first: Sequence[int]
    size: Sequence[int]

    def between(self, channels: Sequence[Tensor]) -> Tensor:
        window = torch.stack([_part(channel, self.first, self.size) for channel in channels])
        # -1 and 1 are the outer edges of the part's voxels; the last axis comes first
        ends = list(zip(self.points, self.first, self.size, strict=True))
        grid = torch.stack([(2 * (p - low) + 1) / n - 1 for p, low, n in reversed(ends)], dim=-1)
        window = window.float()
        if self.size[2] > 1:
            return functional.grid_sample(window[None], grid[None], align_corners=False)[0]
        # a slice is not mixed with others
        flat = functional.grid_sample(
            window[None, ..., 0], grid[None, :, :, 0, 1:], align_corners=False
        )
        return flat[0, ..., None]

    def nearest(
        self, volume: Tensor, change: Callable[[Tensor], Tensor] = lambda values: values
    ) -> Tensor:
        window = _part(volume, self.first, self.size, change)
        return window.flatten().index_select(0, self._places).view(self.points[0].shape)

    @cached_property
    def _places(self) -> Tensor:
        """Of the nearest voxel to each point, in the part in row-major order."""
        x, y, z = (p.round().int() - low for p, low in zip(self.points, self.first, strict=True))
        return ((x * self.size[1] + y) * self.size[2] + z).flatten()


def _part(
    volume: Tensor,
    first: Sequence[int],
    size: Sequence[int],
    change: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """A part of a volume, 0 where it reaches over the edge; inside, values are changed."""
    inside, pads = [], list[int]()
    for low, n, whole in zip(first, size, volume.shape, strict=True):
        begin, end = (min(max(at, 0), whole) for at in (low, low + n))
        inside.append(slice(begin, end))
        before = min(max(-low, 0), n)
        pads = [before, n - before - (end - begin), *pads]  # the last axis comes first
    part = change(volume[tuple(inside)])
    return functional.pad(part, pads) if any(pads) else part


def _along(values: Tensor, axis: int) -> Tensor:
    """(B, n) to (B, n, 1, 1), (B, 1, n, 1) or (B, 1, 1, n)."""
    shape = [len(values), 1, 1, 1]
    shape[axis + 1] = values.shape[1]
    return values.reshape(shape)


def _turn_and_zoom(
    size: int, augment: AugmentConfig, in_plane: bool, draws: torch.Generator
) -> Tensor:
    """A matrix of each patch, (B, 3, 3): a rotation times a zoom."""
    angles = (torch.rand(size, 3, generator=draws) * 2 - 1) * math.radians(augment.rotate)
    zoom = 1 + (torch.rand(size, 1, 1, generator=draws) * 2 - 1) * augment.scale
    if in_plane:
        angles[:, :2] = 0
    matrix = torch.eye(3).expand(size, 3, 3)
    for d, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3).repeat(size, 1, 1)
        cos, sin = angles[:, d].cos(), angles[:, d].sin()
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cos, cos, -sin, sin
        matrix = matrix @ turn
    matrix = matrix * zoom
    if in_plane:
        matrix[:, 2, 2] = 1.0
    return matrix


def _moved(axes: Sequence[Tensor], matrix: Tensor) -> list[Tensor]:
    """The sampling points of each patch, turned and zoomed about its centre: three (B, *patch)."""
    centres = [a.float().mean(1, keepdim=True) for a in axes]
    relative = [_along(a - c, d) for d, (a, c) in enumerate(zip(axes, centres, strict=True))]
    return [
        sum(matrix[:, d, e].reshape(-1, 1, 1, 1) * relative[e] for e in range(3))
        + centres[d].reshape(-1, 1, 1, 1)
        for d in range(3)
    ]


def _boxes(start: Tensor, patch: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of the grid that hold the points of each patch and their neighbours.

    Found from the patches' corners, on the CPU, so that nothing waits for a GPU.

    Returns:
        First voxels and sizes, both (B, 3).
    """
    half = (patch - 1) / 2
    centre, reach = start + half, matrix.abs() @ half
    # along an axis in which nothing moves, a slice stays one
    reach = torch.where(reach == half, reach, reach + ROUNDING)
    first = (centre - reach).floor().long()
    return first, (centre + reach).ceil().long() + 1 - first


def _intensity(image: Tensor, augment: AugmentConfig, draws: torch.Generator) -> Tensor:
    """Per patch and channel: gain, shift and Gaussian noise.

    The padding and the background stay at 0.
    """
    if not (augment.contrast or augment.brightness or augment.noise):
        return image
    shape = (*image.shape[:2], *([1] * (image.ndim - 2)))
    gain, shift, amount = (torch.rand(shape, generator=draws).to(image.device) for _ in range(3))
    changed = image * (1 + augment.contrast * (2 * gain - 1)) + augment.brightness * (2 * shift - 1)
    if augment.noise:
        seed = int(torch.randint(2**62, (1,), generator=draws))
        noise = torch.randn(
            image.shape, device=image.device, generator=generator(seed, device=image.device)
        )
        changed = changed + augment.noise * amount * noise
    return torch.where(image == 0, image, changed)


def _without_third_axis(batch: Batch) -> Batch:
    image, label, brain = (part.squeeze(-1) for part in (batch.image, batch.label, batch.brain))
    fields = {name: field.squeeze(-1) for name, field in batch.fields.items()}
    return Batch(image, label, brain, fields, batch.class_weight)


def _foreground(store: SubjectStore, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of up to FOREGROUND_VOXELS voxels of every subject and foreground class, end to
    end.

    Returns:
        Coordinates (M, 3), and first row and number of rows of each (subject, class), both (N, K -
        1).
    """
    rows, counts = [], torch.zeros(len(store), store.classes - 1, dtype=torch.long)
    for i in range(len(store)):
        label = store.classes_of(i)[0].cpu()
        for k in range(1, store.classes):
            where = (label == k).nonzero()
            if len(where) > FOREGROUND_VOXELS:
                where = where[torch.randperm(len(where), generator=draws)[:FOREGROUND_VOXELS]]
            counts[i, k - 1] = len(where)
            rows.append(where)
    starts = counts.flatten().cumsum(0).reshape(counts.shape) - counts
    return torch.cat(rows) if rows else torch.zeros(0, 3, dtype=torch.long), starts, counts
