"""Class balance and spatial emphasis apart: `trm_decomposed`, and its upper bound, `trm_oracle`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trm_bench.data.patches import Batch, PatchSampler
from trm_bench.errors import UserError
from trm_bench.methods import Context, Fit, Method, hyper
from trm_bench.methods.trm import FIELD, PriorRisk, TransferRiskMap, TrmParameters, UniformRisk
from trm_bench.seeds import generator
from trm_bench.transfer_risk import RiskSummary, Scope, in_scope

ROUNDING = 1e-6  # a mean risk below is that of float32 probabilities that do not sum to 1


class DecomposedParameters(TrmParameters):
    """Those of `trm`, without `normalise`, and those of the two terms."""

    normalise: Literal["none"] = hyper("none", "of the risks: their ratio needs none")
    gamma: float = hyper(
        1.0,
        "exponent of the relative risk: above 0 risky voxels weigh more, below 0 less",
        search=(-2.0, 2.0),
        ge=-10,
        le=10,
    )
    balance: Literal["prior", "mean_risk", "none"] = hyper(
        "prior",
        "what the class term is made of: the class prior, the class's mean risk, or nothing",
        search=["prior", "mean_risk", "none"],
    )
    floor: float = hyper(
        0.1,
        "added to each risk, as a share of its class's mean",
        search=(0.01, 1.0),
        log=True,
        ge=1e-3,
        le=1e3,
    )


class DecomposedRisk(TransferRiskMap):
    """`trm` with a weight of two terms: how much a class counts, and where in the class.

    w(v) = b(y_v) s_v / (mean of s over class y_v), with s_v = (r_v / mean of r over class
    y_v)^`gamma` and r_v = R_v + `floor` * (mean of R over class y_v). Means are over the voxels of
    the class in the whole training set, those in the `scope`. So w is b on average over each class,
    whatever gamma is: the spatial term moves weight between voxels of a class and never between
    classes. gamma > 0 emphasises voxels at high risk, the paper's direction; gamma < 0 those that
    transfer; gamma = 0 nothing. A risk can be 0, and a negative power of it has no bound: hence the
    floor, under which no relative risk is below floor / (1 + floor). A class at no risk has s = 1.

    The class term b is `trm_prior`'s weight (`balance: prior`), the weight of the class's mean risk
    (`mean_risk`), or 1 (`none`). So gamma = 0 under `prior` is `trm_prior`, bit for bit. Costs what
    `trm` costs. Not the paper's method: it tells apart what the paper's weight mixes.
    """

    name = "trm_decomposed"
    paper = "an analysis of Duan et al., ICASSP 2025, arXiv:2502.02340"
    Parameters = DecomposedParameters

    def weights(self, run: Context) -> list[Tensor]:
        return self.weighted(run, self.risks(run))

    def weighted(self, run: Context, risks: list[Tensor]) -> list[Tensor]:
        """The weight maps that risk maps give, both a map for each target training subject."""
        means = class_means(run, self.p.scope, lambda i: risks[i])

        def spatial(i: int) -> Tensor:
            mean = of_class(means, run.training_set.classes_of(i))
            relative = (risks[i].double() + self.p.floor * mean) / (mean + self.p.floor * mean)
            return torch.where(mean > ROUNDING, relative, 1.0) ** self.p.gamma

        scales = class_means(run, self.p.scope, spatial)
        scales[scales == 0] = 1.0  # a class out of the scope
        weights = []
        for i, term in enumerate(self.class_term(run, means)):
            scale = of_class(scales, run.training_set.classes_of(i))
            weights.append((term.double() * spatial(i) / scale).float())
        return weights

    def class_term(self, run: Context, means: Tensor) -> list[Tensor]:
        """b(y_v), a map for each target training subject.

        Args:
            run: At `prepare`.
            means: Of the risk, for each class.
        """
        if self.p.balance == "mean_risk":
            [terms] = self.risk_map.weights([means])
            return [of_class(terms, label) for label in labels(run)]
        control = PriorRisk if self.p.balance == "prior" else UniformRisk
        # what it knows of a source is not this run's
        return control(self.p).weights(replace(run, diagnostics={}))


def class_means(run: Context, scope: Scope, values: Callable[[int], Tensor]) -> Tensor:
    """Mean over the voxels of each class in the scope, all training subjects together.

    Args:
        run: With the training subjects.
        scope: Which voxels count.
        values: Of a subject, by its index, shape (1, X, Y, Z).

    Returns:
        float64, shape (Kt,); 0 for a class without such a voxel.
    """
    sums, counts = torch.zeros(2, run.classes, dtype=torch.float64)
    for i in range(len(run.training_set)):
        label, brain = run.training_set.classes_of(i), run.training_set.brains[i][None]
        inside, of_subject = in_scope(scope, label, brain), values(i).double()
        for k in range(run.classes):
            chosen = of_subject[label == k if inside is None else (label == k) & inside]
            sums[k] += float(chosen.sum())
            counts[k] += chosen.numel()
    return sums / counts.clamp(min=1)


def of_class(values: Tensor, label: Tensor) -> Tensor:
    """The value of each voxel's class, in the shape of the label."""
    return values.to(label.device)[label]


class OracleParameters(DecomposedParameters):
    """Those of `trm_decomposed`, and those of the cross-fit, whose cost is not searched."""

    balance: Literal["prior", "none"] = hyper(
        "prior",
        "what the class term is made of: the class prior, or nothing",
        search=["prior", "none"],
    )
    lost: Literal["soft", "hard"] = hyper(
        "soft",
        "risk of a voxel: probability lost, or whether it was right and is wrong",
        search=["soft", "hard"],
    )
    folds: int = hyper(2, "of the training subjects", ge=2, le=20)
    share: float = hyper(
        1.0, "of the protocol's steps, in each training of the cross-fit", ge=0.01, le=1
    )


class Judged(NamedTuple):
    """What a network makes of a subject: probability of the true class, and whether it is the
    largest; shape (1, X, Y, Z).
    """

    probability: Tensor
    right: Tensor


class OracleRisk(DecomposedRisk):
    """Analysis only, an upper bound at the cost of 1 + 2 `folds` `share` trainings:
    `trm_decomposed` whose R is the voxels that fine-tuning does lose.

    The training subjects are divided into `folds`. For each fold a network is trained from scratch
    and one is fine-tuned, both with the protocol's plain loss, on the subjects of the other folds;
    in the fold, which neither has seen, R_v = max(0, p_v(scratch) - p_v(fine-tuned)), p_v the
    probability of the true class (`lost: soft`), or 1 where scratch is right and fine-tuning wrong
    (`hard`). Then the network is fine-tuned as by `trm_decomposed`, with those weights. Labels of
    training subjects alone are used, never a validation or test subject; the cross-fit keeps its
    last weights, whatever the protocol selects by.

    Every training begins with its own weights, moving statistics, optimiser and random draws, and
    the last one sees fine-tuning's patches. Needs as many training subjects as folds. gamma = 0
    asks for no map, makes no cross-fit and costs one training: it is `trm_decomposed` with gamma =
    0. The loss curve holds all trainings, one behind the other.
    """

    name = "trm_oracle"
    Parameters = OracleParameters
    ignores = ("evidence", "components")
    evidence = None

    def passes(self) -> float:
        return 1 + 2 * self.p.folds * self.p.share if self.p.gamma else 1.0

    def prepare(self, run: Context) -> None:
        subjects, folds = len(run.training_set), self.p.folds
        if self.p.gamma and subjects < folds:
            what = f"{self.name} needs a training subject in each of {folds} folds, of {subjects}"
            fix = f"set folds to {subjects}" if subjects > 1 else "leave it out"
            raise UserError(what, f"methods.{self.name}.folds", fix)
        self.cross_fitting = False
        super().prepare(run)

    def risks(self, run: Context) -> list[Tensor]:
        """None yet: the cross-fit is a part of the training."""
        return [torch.zeros_like(label, dtype=torch.float32) for label in labels(run)]

    def train(self, run: Context, fit: Fit) -> None:
        if self.p.gamma:
            run.training_set.attach(FIELD, self.weighted(run, self.lost_voxels(run, fit)))
        fit(0, run.config.steps)

    def lost_voxels(self, run: Context, fit: Fit) -> list[Tensor]:
        """R of every target training subject; leaves the network as it found it."""
        start = run.weights()
        scratch: dict[int, Judged] = {}
        tuned: dict[int, Judged] = {}
        for fold, held_out in enumerate(self.divided(run)):
            others = [i for i in range(len(run.training_set)) if i not in held_out]
            for state, judged in ((run.fresh().state_dict(), scratch), (start, tuned)):
                run.network.load_state_dict(state)
                with self.cross_fit(run, fold, others):
                    fit(0, run.config.steps)
                judged |= {i: judge(run, i) for i in held_out}
        run.network.load_state_dict(start)
        pairs = [(scratch[i], tuned[i]) for i in range(len(run.training_set))]
        lost = [one.right & ~other.right for one, other in pairs]
        won = [other.right & ~one.right for one, other in pairs]
        risks = [
            hard.float()
            if self.p.lost == "hard"
            else (one.probability - other.probability).clamp(min=0)
            for hard, (one, other) in zip(lost, pairs, strict=True)
        ]
        self.describe(run, lost, won, risks)
        return risks

    def divided(self, run: Context) -> list[list[int]]:
        """The training subjects of each fold."""
        draws = generator(*run.seed_axes, self.name, "folds")
        order = torch.randperm(len(run.training_set), generator=draws).tolist()
        return [sorted(order[fold :: self.p.folds]) for fold in range(self.p.folds)]

    @contextmanager
    def cross_fit(self, run: Context, fold: int, others: list[int]) -> Iterator[None]:
        """While it is open, the run is one of plain training on some subjects, the last weights of
        which count. Draws of dropout inside move none outside.
        """
        own = run.config, run.patches
        steps = max(1, round(self.p.share * run.config.steps))
        run.config = run.config.model_copy(update={"steps": steps, "select": "last"})
        seen = run.training_set.subset(others)
        run.patches = PatchSampler(seen, run.config, *run.patches.axes, self.name, fold)
        self.cross_fitting = True
        try:
            with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
                yield
        finally:
            run.config, run.patches = own
            self.cross_fitting = False

    def terms(self, run: Context, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.cross_fitting:
            return Method.terms(self, run, logits, batch)
        return super().terms(run, logits, batch)

    def describe(
        self, run: Context, lost: list[Tensor], won: list[Tensor], risks: list[Tensor]
    ) -> None:
        """For the record: shares of each class that were lost and won, and how far the class tells
        the risk.
        """
        summary = RiskSummary(run.classes)
        for i, (risk, label) in enumerate(zip(risks, labels(run), strict=True)):
            inside = in_scope(self.p.scope, label, run.training_set.brains[i][None])
            summary.update(risk, torch.zeros_like(risk), label, inside)
        found = summary.result()
        run.diagnostics["cross_fit"] = {
            "folds": self.p.folds,
            "lost": class_means(run, self.p.scope, lambda i: lost[i]).tolist(),
            "won": class_means(run, self.p.scope, lambda i: won[i]).tolist(),
            **{key: found[key] for key in ("risk_per_class", "class_explained")},
        }

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {}


def labels(run: Context) -> Iterator[Tensor]:
    """Of the target training subjects, shape (1, X, Y, Z)."""
    return (run.training_set.classes_of(i) for i in range(len(run.training_set)))


def judge(run: Context, index: int) -> Judged:
    """What the run's network makes of a training subject."""
    image, label, _ = run.training_set.volume(index)
    probabilities = run.predict(run.network, image)
    true = probabilities.gather(1, label.unsqueeze(1)).squeeze(1)
    return Judged(true, probabilities.argmax(1) == label)
