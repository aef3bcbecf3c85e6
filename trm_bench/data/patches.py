"""Batches.

Subjects on the compute device, and patches cut and augmented there, all of a batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """

    image: Tensor
    label: Tensor
    brain: Tensor
    fields: dict[str, Tensor]


class Voxels:
    """One value of every voxel of several subjects: a channel of the image, the label, a map.

    On the CPU each subject stays where it was loaded from, a mapped file, so that all processes of
    a machine share it. On a GPU they lie end to end, and a batch of patches is one gather. Neither
    needs padding, whatever the shapes.

    Attributes:
        subjects: Of each its voxels in row-major order, flat.
        end_to_end: The same in one tensor, or None where they are not.
    """

    def __init__(self, volumes: Sequence[Tensor], device: torch.device, end_to_end: bool) -> None:
        self.subjects = [volume.flatten() for volume in volumes]
        self.end_to_end: Tensor | None = None
        if end_to_end:
            self.end_to_end = torch.cat(self.subjects).to(device)
            self.subjects = list(self.end_to_end.split([len(one) for one in self.subjects]))

    def at(self, subject: Tensor, index: Tensor) -> Tensor:
        """Values at places, both (B, *patch).

        Args:
            subject: Number of each patch's subject, (B,).
            index: Positions, counted from `SubjectStore.offsets` of the subject on.
        """
        if self.end_to_end is not None:
            return self.end_to_end[index]
        found = torch.empty(index.shape, dtype=self.subjects[0].dtype)
        patches = zip(subject.tolist(), index.flatten(1), found.flatten(1), strict=True)
        for number, places, patch in patches:
            # half the time of indexing by brackets
            torch.index_select(self.subjects[number], 0, places, out=patch)
        return found


class SubjectStore:
    """Subjects of one domain on one device.

    Args:
        prepared: The subjects.
        modalities: Channels to load.
        label_map: Turns raw label values into classes.
        device: Where the voxels live: 2 bytes a voxel and channel, and 2 more for label and brain
            mask; on the CPU they are those of the files, mapped.
        end_to_end: See `Voxels`; by default on all devices but the CPU.
    """

    def __init__(
        self,
        prepared: Sequence[Prepared],
        modalities: Sequence[str],
        label_map: LabelMap,
        device: torch.device,
        end_to_end: bool | None = None,
    ) -> None:
        self.prepared, self.label_map, self.device = list(prepared), label_map, device
        self.end_to_end = device.type != "cpu" if end_to_end is None else end_to_end
        images, labels, brains = zip(*(p.load(modalities) for p in prepared), strict=True)
        self.shapes = [tuple(label.shape) for label in labels]
        sizes = [math.prod(shape) * self.end_to_end for shape in self.shapes]
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.image = [self._voxels(channel) for channel in zip(*images, strict=True)]
        self.label, self.brain = self._voxels(labels), self._voxels(brains)
        every_value = torch.arange(256, dtype=torch.uint8)
        self.class_of = to_classes(every_value, label_map).long().to(device)
        self.fields: dict[str, Voxels] = {}

    def _voxels(self, volumes: Sequence[Tensor]) -> Voxels:
        return Voxels(volumes, self.device, self.end_to_end)

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
        shape = self.shapes[index]
        image = torch.stack([channel.subjects[index].float() for channel in self.image])
        brain = self.brain.subjects[index].reshape(1, *shape)
        return image.reshape(1, -1, *shape), self.classes_of(index), brain

    def classes_of(self, index: int) -> Tensor:
        """One subject's label alone, (1, X, Y, Z) int64."""
        classes = self.class_of.index_select(0, self.label.subjects[index].int())
        return classes.reshape(1, *self.shapes[index])

    def classes_at(self, subject: Tensor, index: Tensor) -> Tensor:
        """Classes at places, int64; see `Voxels.at`."""
        raw = self.label.at(subject, index)
        return self.class_of.index_select(0, raw.flatten().int()).reshape(index.shape)

    def window(self, index: int, box: Sequence[slice]) -> Tensor:
        """A part of one subject's image, (C, x, y, z) float32; what lies outside is left out."""
        shape = self.shapes[index]
        return torch.stack([c.subjects[index].view(shape)[tuple(box)].float() for c in self.image])

    def attach(self, name: str, maps: Sequence[Tensor]) -> None:
        """Stores a per-voxel map of every subject, float32; batches then carry it, cropped as the
        label is.

        Args:
            name: The field's name in `Batch.fields`.
            maps: One map per subject, in order, shape (X, Y, Z) or (1, X, Y, Z).

        Raises:
            ValueError: Number or shapes of the maps do not fit the subjects.
        """
        batched = [m.ndim == 4 and len(m) == 1 for m in maps]
        shapes = [tuple(m.shape[b:]) for m, b in zip(maps, batched, strict=True)]
        if shapes != self.shapes:
            raise ValueError(f"field '{name}': the maps do not fit the {len(self)} subjects")
        own = [m.detach().to(self.device, torch.float32, copy=True) for m in maps]
        self.fields[name] = self._voxels(own)


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
        self._shapes = torch.tensor(store.shapes)
        self._offsets = torch.tensor(store.offsets)
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
        draws = generator(*self.axes, step)
        size = self.config.batch
        subject = torch.randint(len(self.store), (size,), generator=draws)
        start = self._start(subject, draws)
        index, inside, image = self._cut(subject, start, draws)
        store = self.store
        label = torch.where(inside, store.classes_at(subject, index), 0)
        brain = store.brain.at(subject, index) & inside
        fields = {
            name: torch.where(inside, field.at(subject, index), 0.0)
            for name, field in store.fields.items()
        }
        batch = Batch(_intensity(image, self.config.augment, draws), label, brain, fields)
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

    def _cut(
        self, subject: Tensor, start: Tensor, draws: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Position of the voxel under each patch voxel (B, *patch), whether it is inside, and the
        image.
        """
        augment, device = self.config.augment, self.store.device
        flips = torch.rand(len(subject), 3, generator=draws) < 0.5
        allowed = torch.tensor([axis in augment.flip for axis in range(3)])
        flips &= allowed
        # of one subject the voxels can be counted in 32 bits, in half the time
        whole = torch.int64 if self.store.end_to_end else torch.int32
        shapes = self._shapes[subject].to(device, whole)
        offsets = self._offsets[subject].to(device, whole)
        axes = []
        for d in range(3):
            steps = torch.arange(self.patch[d])
            ramp = torch.where(flips[:, d : d + 1], steps.flip(0), steps)
            axes.append((start[:, d : d + 1] + ramp).to(device, whole))
        if augment.rotate == 0 and augment.scale == 0:
            index, inside = _flat_index([_along(a, d) for d, a in enumerate(axes)], shapes, offsets)
            return index, inside, _gather(self.store.image, subject, index, inside)
        matrix = _turn_and_zoom(len(subject), augment, self.flat_slices, draws)
        points = _moved(axes, matrix.to(device))
        nearest, inside = _flat_index([p.round().to(whole) for p in points], shapes, offsets)
        boxes = _boxes(start, torch.tensor(self.patch), matrix)
        return nearest, inside, _interpolated(self.store, subject, points, boxes)


def _along(values: Tensor, axis: int) -> Tensor:
    """(B, n) to (B, n, 1, 1), (B, 1, n, 1) or (B, 1, 1, n)."""
    shape = [len(values), 1, 1, 1]
    shape[axis + 1] = values.shape[1]
    return values.reshape(shape)


def _flat_index(points: Sequence[Tensor], shapes: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Voxel coordinates (three tensors that broadcast to (B, *patch)) to positions in `Voxels`."""
    # Positions are those of row-major order, built up axis by axis as i, then i * J + j, then
    # (i * J + j) * K + k, so that no tensor of coordinates is ever stacked. A point outside is held
    # at the edge, so that the gather that follows is always valid; `inside` then masks it.
    index: Tensor | None = None
    inside: Tensor | None = None
    for d, point in enumerate(points):
        size = shapes[:, d].reshape(-1, 1, 1, 1)
        held = torch.minimum(point.clamp(min=0), size - 1)
        within = point == held
        inside = within if inside is None else inside & within
        index = held if index is None else index * size + held
    assert index is not None and inside is not None
    return index + offsets.reshape(-1, 1, 1, 1), inside


def _gather(image: Sequence[Voxels], subject: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    """C channels at (B, *patch) to (B, C, *patch) float32, 0 outside."""
    return torch.stack([c.at(subject, index).float() * inside for c in image], dim=1)


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


def _boxes(start: Tensor, patch: Tensor, matrix: Tensor) -> list[list[slice]]:
    """Of each patch the voxels between which its points lie, as far as volumes reach below.

    Found from the patch's corners, on the CPU, so that nothing waits for a GPU.
    """
    half = (patch - 1) / 2
    centre, reach = start + half, matrix.abs() @ half + ROUNDING
    first = (centre - reach).floor().long().clamp(min=0).tolist()
    end = ((centre + reach).ceil().long() + 1).clamp(min=0).tolist()
    return [
        [slice(*ends) for ends in zip(*both, strict=True)] for both in zip(first, end, strict=True)
    ]


def _interpolated(
    store: SubjectStore,
    subject: Tensor,
    points: Sequence[Tensor],
    boxes: Sequence[Sequence[slice]],
) -> Tensor:
    """The image between voxels, linearly, 0 outside the volume: (B, C, *patch) float32.

    Args:
        store: Where the voxels are.
        subject: Number of each patch's subject, (B,).
        points: Voxel coordinates, three tensors (B, *patch).
        boxes: Of each patch the part of the volume that its points need; 2D patches need a slice.
    """
    patches = []
    for b, (number, box) in enumerate(zip(subject.tolist(), boxes, strict=True)):
        window = store.window(number, box)
        if not window.numel():
            patches.append(window.new_zeros(len(window), *points[0].shape[1:]))
            continue
        # -1 and 1 are the outer edges of the window's voxels; the last axis comes first
        grid = torch.stack(
            [(2 * (points[d][b] - box[d].start) + 1) / window.shape[1 + d] - 1 for d in (2, 1, 0)],
            dim=-1,
        )
        flat = grid.shape[2] == 1 and window.shape[3] == 1  # a slice is not mixed with others
        if flat:
            window, grid = window[..., 0], grid[:, :, 0, 1:]
        found = functional.grid_sample(window[None], grid[None], align_corners=False)[0]
        patches.append(found[..., None] if flat else found)
    return torch.stack(patches)


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
    fields = {name: field.squeeze(-1) for name, field in batch.fields.items()}
    return Batch(batch.image.squeeze(-1), batch.label.squeeze(-1), batch.brain.squeeze(-1), fields)


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
