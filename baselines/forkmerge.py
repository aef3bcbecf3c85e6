"""ForkMerge: branches with and without source data, merged as validation says."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trm_bench.data.patches import Batch
from trm_bench.methods import Context, Fit, Parameters, hyper
from trm_bench.seeds import generator

from .source_head import SourceHeadMethod, head_replaced, target_statistics

Weight = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
State = dict[str, Tensor]
HEAD = "source_head."  # before the names of the source head's weights in a branch's state


class ForkMergeParameters(Parameters):
    """Hyper-parameters of ForkMerge.

    The defaults are the authors' code's, with one auxiliary task.
    """

    weights: tuple[Weight, ...] = hyper(
        (0.0, 1.0), "source loss weight of each branch", min_length=1, max_length=100
    )
    rounds: int = hyper(
        4, "times that branches are forked and merged", search=[1, 2, 4, 8], ge=1, le=1000
    )
    alphas: tuple[Share, ...] = hyper(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "merge weights tried", min_length=1, max_length=100
    )


class ForkMerge(SourceHeadMethod):
    """Branches b minimise L_target + lambda_b L_source from one start; every Delta t steps they are
    merged, as scored.

    Jiang et al., NeurIPS 2023, arXiv:2301.12618, algorithm 1: theta_{t + Delta t} = sum_b Lambda_b
    theta_b with sum_b Lambda_b = 1, Lambda chosen by the target's validation metric. Delta t =
    steps / `rounds`, and `weights` are the lambda_b. Lambda is searched greedily as in the authors'
    code: from the best branch on, branches join in the order of their score, each with alpha times
    the mean weight of those before, for alpha in `alphas` and 0. So the best branch is itself a
    candidate, and the merged network is never worse on validation. Moving statistics are merged
    like weights, counters are the best branch's.

    As in the authors' code, a step of branch b sees one batch, a source batch with probability
    lambda_b / (1 + lambda_b), so that the two losses enter as weighted and a branch's step costs
    what a plain step costs. Where source and target differ in classes, the source loss goes through
    a copy of the source head. Source batches come from the source's training split, and are
    normalised by their own statistics without changing the moving ones. What differs: each branch's
    optimiser starts again every round, where the authors' goes on.

    Cost: as many trainings as branches, and in every round a validation of each branch and of up to
    len(`alphas`) mixtures for each branch but the best. `weights` = [0] with one round is
    fine-tuning.
    """

    name = "forkmerge"
    paper = "Jiang et al., NeurIPS 2023, arXiv:2301.12618"
    Parameters = ForkMergeParameters
    uses_validation = True
    uses_source_data = True

    def passes(self) -> float:
        return len(self.p.weights)

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        self.source_patches = run.source_patches() if any(self.p.weights) else None

    def train(self, run: Context, fit: Fit) -> None:
        bounds = [round(i * run.config.steps / self.p.rounds) for i in range(self.p.rounds + 1)]
        history = run.diagnostics["merges"] = []
        for first, last in pairwise(bounds):
            if first == last:
                continue
            start, branches = self.copied(run), []
            for branch in range(len(self.p.weights)):
                self.branch = branch
                self.load(run, start)
                fit(first, last)
                branches.append(self.copied(run))
            history.append({"step": last, **self.merge(run, branches)})

    def trains_head(self, run: Context) -> bool:
        return not run.same_task

    def loss(self, run: Context, batch: Batch) -> Tensor:
        weight = self.p.weights[self.branch]
        draws = generator(*run.seed_axes, self.name, self.branch, run.step)
        if float(torch.rand((), generator=draws, dtype=torch.float64)) >= weight / (1 + weight):
            return super().loss(run, batch)
        assert self.source_patches is not None
        source = self.source_patches.batch(run.step)
        with target_statistics(run.network), head_replaced(run, self.head_of_source(run)):
            logits = run.network(source.image)
        return self.segmentation_loss(run, logits, source)

    def merge(self, run: Context, branches: list[State]) -> dict[str, object]:
        """Leaves the merged weights in the network.

        Returns:
            For the record: the branches' validation Dice, their merge weights, and the merged
            network's Dice.
        """
        parents = [self.score(run, state) for state in branches]
        # stable: of equals, the earlier branch
        order = sorted(range(len(branches)), key=lambda b: -parents[b])
        # `mass` holds each branch's share, not yet normalised. A branch that joins gets alpha times
        # the mean share of those before it, and stays out (0) where no alpha helps.
        merged, best, mass = branches[order[0]], parents[order[0]], {order[0]: 1.0}
        for b in order[1:]:
            total, kept = sum(mass.values()), (0.0, merged)
            for alpha in self.p.alphas:
                extra = alpha * total / len(mass)
                candidate = mix(merged, branches[b], extra / (total + extra))
                dice = self.score(run, candidate) if extra else best
                if dice > best:
                    best, kept = dice, (extra, candidate)
            mass[b], merged = kept
        self.load(run, merged)
        weights = [mass[b] / sum(mass.values()) for b in range(len(branches))]
        return {"parents": parents, "weights": weights, "merged": best}

    def score(self, run: Context, state: State) -> float:
        """Validation Dice of a state."""
        self.load(run, state)
        return run.validate(run.network)

    def copied(self, run: Context) -> State:
        """A copy of all that a branch trains: the network, and the source head."""
        head = self.source_head.state_dict()
        return run.weights() | {f"{HEAD}{k}": v.clone() for k, v in head.items()}

    def load(self, run: Context, state: State) -> None:
        """The other way round."""
        head = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
        self.source_head.load_state_dict(head)
        own = {k: v for k, v in state.items() if not k.startswith(HEAD)}
        run.network.load_state_dict(own)


def mix(one: State, other: State, share: float) -> State:
    """(1 - share) one + share other, exact at both ends.

    What is not a floating-point number is `one`'s.
    """
    return {
        k: torch.lerp(v, other[k], share) if v.is_floating_point() else v for k, v in one.items()
    }
