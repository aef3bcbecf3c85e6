"""The source variable of LEEP, for source networks without class scores too.

LEEP and the risk map (`trm_bench.transfer_risk`) need a distribution theta_v over a source variable
z in every voxel v. A source network with a segmentation head has one: its softmax (`classes`, the
paper's). Without a head it is made from the penultimate features f_v (C,), which go into the head:

    clusters   theta_zv = share_z N(f_v; c_z, s^2 I) / sum_z' share_z' N(f_v; c_z', s^2 I)
    probe      theta_kv = softmax_k(w_k f_v + b_k)

`clusters` is N-LEEP (Li et al., "Ranking Neural Checkpoints", CVPR 2021) with a plainer mixture:
centres by k-means, one variance for all. P(y | z) follows as for classes. `probe` is a logistic
regression of the target classes, cross-fitted; there z is the target class itself, P(y | z) the
identity, and p_v the probe's probability of the true class.

Both are the softmax of a linear map of the features, since |f_v|^2 is the same for all clusters and
cancels. So each is a `Readout`: the frozen network with another head, which predicts whole volumes
as any network does, and no volume of features is needed for it. What is fitted sees a bounded
`Sample`. docs/evidence.md says why it is so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.seeds import generator, seed_of
from trm_bench.transfer_risk import Scope, in_scope

Evidence = Literal["classes", "clusters", "probe"]
Values = NDArray[np.float64]

MOST_VOXELS = 2**16  # of a sample: 8 C bytes each
LEAST_VARIANCE = 1e-4  # s^2, of features of variance 1: logits stay exact enough in float32
CONSTANT = 1e-5  # a channel that varies less than this share of its size tells nothing but rounding
ABSENT = -1e4  # logit of a class that the probe never saw: probability 0, and finite


class Linear(NamedTuple):
    """A linear map of standardised features, ((f - mean) * scale) @ weight.T + bias, float32.

    Attributes:
        mean: Shape (C,).
        scale: One over the standard deviation, shape (C,); 0 for a channel that is constant.
        weight: Shape (Z, C).
        bias: Shape (Z,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (B, Z, *spatial) of features (B, C, *spatial)."""
        mean, scale, weight, bias = (t.to(features.device) for t in self)
        one_voxel = (-1, *[1] * (features.ndim - 2))
        standardised = (features - mean.reshape(one_voxel)) * scale.reshape(one_voxel)
        mapped = torch.einsum("zc,bc...->bz...", weight, standardised)
        return mapped + bias.reshape(one_voxel)


class Readout(nn.Module):
    """A frozen network that gives a linear map of its penultimate features in place of its logits.

    Features of a lower resolution than the image are resampled after the map, which is the same,
    since both are linear, and takes less memory.

    Args:
        network: Whose features are read; its own head still runs, and is ignored.
        head: Name of its head.
        linear: The map; None for the features themselves.
    """

    def __init__(self, network: nn.Module, head: str, linear: Linear | None = None) -> None:
        super().__init__()
        self.network, self.head, self.linear = network, head, linear

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, Cin, *spatial) to float32 (B, Z, *spatial)."""
        features = penultimate(self.network, self.head, image)
        with torch.autocast(image.device.type, enabled=False):
            logits = features if self.linear is None else self.linear(features)
            return resampled(logits, image.shape[2:])


def penultimate(network: nn.Module, head: str, image: Tensor) -> Tensor:
    """What goes into the head, float32, shape (B, C, *spatial) at the head's resolution.

    Several tensors are put one behind the other, at the resolution of the finest.

    Raises:
        UserError: The head takes no feature map.
    """
    seen: list[tuple[Any, ...]] = []
    hook = network.get_submodule(head).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs)
    )
    try:
        network(image)
    finally:
        hook.remove()
    given = seen[-1] if seen else ()
    maps = [t.float() for t in given if isinstance(t, Tensor) and t.ndim == image.ndim]
    if not maps:
        what = f"the head of {type(network).__name__}, {head}, takes no feature map"
        raise UserError(what, "network", "choose another network, or evidence: classes")
    finest = max((m.shape[2:] for m in maps), key=math.prod)
    return torch.cat([resampled(m, finest) for m in maps], dim=1)


def resampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, *coarse) on a finer grid, linearly interpolated.

    Value i lies at voxel i n / m, for m values and n voxels: so it is behind strided convolutions
    of odd kernels, which MONAI's UNet undoes in its head. Past the last value it is repeated.
    """
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    axes = maps.ndim - 2
    padded = functional.pad(maps, (0, 1) * axes, mode="replicate")
    mode = ("linear", "bilinear", "trilinear")[axes - 1]
    larger = functional.interpolate(
        padded, size=[n + 1 for n in size], mode=mode, align_corners=True
    )
    for axis, n in enumerate(size, start=2):
        larger = larger.narrow(axis, 0, n)
    return larger


@dataclass(frozen=True)
class Sample:
    """Voxels that stand for all in the scope.

    Attributes:
        features: Shape (N, C).
        label: Target classes, integers, shape (N,).
        weight: How many voxels each stands for, above 0, shape (N,).
    """

    features: Values
    label: NDArray[np.int64]
    weight: Values

    @staticmethod
    def joined(parts: Sequence[Sample], balanced: bool = False) -> Sample:
        """Several in one; `balanced` gives all classes that occur the same total weight."""
        features, label, weight = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("features", "label", "weight")
        )
        if balanced:
            weight = weight / np.bincount(label, weight)[label]
        return Sample(features, label, weight)

    def standardised(self) -> tuple[Values, Values, Values]:
        """Features of weighted mean 0 and deviation 1, with that mean and one over the deviation.

        A constant channel becomes 0.
        """
        share = self.weight / self.weight.sum()
        mean = share @ self.features
        deviation = np.sqrt(share @ (self.features - mean) ** 2)
        varies = deviation > CONSTANT * np.sqrt(mean**2 + deviation**2)
        scale = np.divide(1.0, deviation, out=np.zeros_like(mean), where=varies)
        return (self.features - mean) * scale, mean, scale


def draw(
    features: Tensor,
    label: Tensor,
    inside: Tensor | None,
    classes: int,
    most: int,
    draws: torch.Generator,
) -> Sample:
    """Draws voxels of one subject, as many of each class, each with the weight that undoes this.

    So a rare class is well seen, and every sum over the sample is that over the subject on average.

    Args:
        features: Shape (1, C, X, Y, Z).
        label: Shape (1, X, Y, Z).
        inside: The voxels in the scope, a bool mask of the label's shape; None for all.
        classes: Kt.
        most: Voxels of a class at most.
        draws: Of the choice.
    """
    chosen, weights = [], []
    for k in range(classes):
        of_class = label == k if inside is None else (label == k) & inside
        where = of_class.flatten().nonzero()[:, 0].cpu()
        kept = where
        if len(where) > most:
            kept = where[torch.randperm(len(where), generator=draws)[:most].sort().values]
        chosen.append(kept)
        weights.append(np.full(len(kept), len(where) / max(1, len(kept))))
    index = torch.cat(chosen).to(features.device)
    rows = features[0].flatten(1)[:, index].T.cpu().double().numpy()
    return Sample(rows, label.flatten()[index].cpu().numpy(), np.concatenate(weights))


def clusters(sample: Sample, components: int, seed: int) -> Linear:
    """A mixture of Gaussians of one variance in all directions, by k-means.

    share_z, c_z and s^2 are those of the clusters that mini-batch k-means assigns the sample to:
    one maximisation step of a classification EM. Clusters without a voxel are left out.

    Args:
        sample: At least one voxel.
        components: Number of clusters at most; no more than there are voxels.
        seed: Of the first centres and the batches.

    Returns:
        Whose softmax is the responsibilities.
    """
    from sklearn.cluster import MiniBatchKMeans

    values, mean, scale = sample.standardised()
    means = MiniBatchKMeans(
        min(components, len(values)), n_init=3, batch_size=4096, random_state=seed % 2**32
    )
    with _alone():
        assigned = means.fit(values, sample_weight=sample.weight).labels_
    found = [assigned == z for z in np.unique(assigned)]
    mass = np.array([sample.weight[of_z].sum() for of_z in found])
    centres = np.array(
        [sample.weight[of_z] @ values[of_z] / m for of_z, m in zip(found, mass, strict=True)]
    )
    squares = sum(
        float((sample.weight[of_z] @ (values[of_z] - centre) ** 2).sum())
        for of_z, centre in zip(found, centres, strict=True)
    )
    directions = max(1, np.count_nonzero(scale))
    variance = max(squares / (directions * mass.sum()), LEAST_VARIANCE)
    bias = np.log(mass / mass.sum()) - (centres**2).sum(1) / (2 * variance)
    return _linear(mean, scale, centres / variance, bias)


def probe(sample: Sample, classes: int) -> Linear:
    """Multinomial logistic regression of the target classes on the standardised features.

    Minimises sum_i u_i CE_i + |w|^2 / 2 with u the weights, their mean 1; of two classes, w is that
    of their log odds.

    Args:
        sample: At least one voxel.
        classes: Kt; one that does not occur has probability 0.

    Returns:
        Whose softmax is the probe's probabilities.
    """
    from sklearn.linear_model import LogisticRegression

    values, mean, scale = sample.standardised()
    present = np.unique(sample.label)
    weight, bias = np.zeros((classes, values.shape[1])), np.full(classes, ABSENT)
    bias[present] = 0.0
    if len(present) > 1:
        model = LogisticRegression(max_iter=500)
        with _alone():
            model.fit(values, sample.label, sample_weight=sample.weight / sample.weight.mean())
        rows, offsets = model.coef_, model.intercept_
        if len(present) == 2:  # the log odds of the second
            rows, offsets = np.concatenate([-rows, rows]) / 2, np.array([-1, 1]) * offsets / 2
        weight[present], bias[present] = rows, offsets
    return _linear(mean, scale, weight, bias)


def source_variable(
    run: Context, evidence: Evidence, scope: Scope, components: int
) -> list[nn.Module]:
    """The networks whose softmax is theta: for subject i that of `networks[i % len(networks)]`.

    One network, or two probes: a subject's own voxels are not in the one that judges it. Where
    either half of the subjects lacks a class that the other has, so with one subject, it is one
    probe, in sample. Memory: the features of one subject, 4 C bytes a voxel, and the sample.

    Args:
        run: At `prepare`. `diagnostics` gets `evidence`: what was fitted on how many voxels.
        evidence: Which variable.
        scope: Which voxels are drawn; under `class_balanced` classes weigh the same.
        components: Of the mixture, for each target class.

    Raises:
        ValueError: No voxel is in the scope.
    """
    assert run.source is not None
    if evidence == "classes":
        return [run.source]
    parts = _samples(run, scope)
    sample = Sample.joined(parts, balanced=scope == "class_balanced")
    if not len(sample.label):
        raise ValueError(f"no voxel in scope={scope!r} to fit {evidence} on")
    about: dict[str, Any] = {"kind": evidence, "voxels": len(sample.label)}
    if evidence == "clusters":
        seed = seed_of(*run.seed_axes, "clusters")
        maps = [clusters(sample, components * run.classes, seed)]
        about["components"] = len(maps[0].bias)
    else:
        # networks[i] judges the subjects i, i + 2, ... and is fitted on the others
        halves = [
            Sample.joined(parts[i::2], scope == "class_balanced") for i in (1, 0) if parts[i:]
        ]
        seen = [set(half.label) for half in halves]
        about["cross_fitted"] = len(seen) == 2 and seen[0] == seen[1]
        fitted = halves if about["cross_fitted"] else [sample]
        maps = [probe(half, run.classes) for half in fitted]
    run.diagnostics["evidence"] = about
    return [Readout(run.source, run.parts.head, linear) for linear in maps]


def _samples(run: Context, scope: Scope) -> list[Sample]:
    """A sample of every target training subject."""
    assert run.source is not None
    features, subjects = Readout(run.source, run.parts.head), len(run.training_set)
    most = max(1, MOST_VOXELS // (subjects * run.classes))
    samples = []
    for i in range(subjects):
        image, label, brain = run.training_set.volume(i)
        draws = generator(*run.seed_axes, "evidence", i)
        inside = in_scope(scope, label, brain)
        whole = run.outputs(features, image)
        samples.append(draw(whole, label, inside, run.classes, most, draws))
    return samples


def _linear(mean: Values, scale: Values, weight: Values, bias: Values) -> Linear:
    return Linear(*(torch.from_numpy(values).float() for values in (mean, scale, weight, bias)))


@contextmanager
def _alone() -> Iterator[None]:
    """One thread, so that sums run in one order.

    No warning of clusters that coincide, which are left out, nor of a probe that could be fitted
    better still.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
