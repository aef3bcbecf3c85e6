"""Model soups: the mean of the weights of several networks that were fine-tuned from one source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trm_bench.data.patches import PatchSampler
from trm_bench.methods import Context, Fit, Method, Parameters, Tree, hyper

State = dict[str, Tensor]
SEEDS, CHECKPOINTS = "seeds", "checkpoints"


class SoupParameters(Parameters):
    """Hyper-parameters of soups.

    The number of ingredients is no paper's: those of Wortsman et al. are the dozens of models of a
    search.
    """

    over: Literal["seeds", "checkpoints"] = hyper(
        SEEDS,
        "ingredients: trainings that see other patches, or one training at several steps",
        search=[SEEDS, CHECKPOINTS],
    )
    ingredients: int = hyper(3, "networks at hand", search=[2, 3, 5], ge=1, le=100)


class Soup(Method):
    """A uniform soup: theta = 1/k sum_i theta_i over k = `ingredients` networks.

    Wortsman et al., ICML 2022, arXiv:2203.05482, section 2. All ingredients start from the same
    weights, new head included, since networks with heads of their own do not lie in one basin, and
    their mean is none.

    over = seeds: k trainings of all steps. The first sees the patches that every method sees, each
    of the others patches and augmentations of its own; dropout draws on. The paper's ingredients
    differ in their hyper-parameters as well, which here would be tuning. Costs k trainings.

    over = checkpoints: one training, with its weights at k evenly spaced steps of its second half,
    of which the last is the end; after Izmailov et al., UAI 2018, arXiv:1803.05407 (SWA), and
    Kaddour 2022, arXiv:2209.14981 (LAWA). The learning rate stays the protocol's, where SWA holds
    it up so that the checkpoints differ more. Costs one training.

    An ingredient is what a training ends with, whatever the protocol selects or averages; an
    earlier checkpoint is the weights after its step. Dense prediction asks for no change. Moving
    statistics of batch norm are averaged like weights, as wise_ft and forkmerge mix them; Izmailov
    et al. compute them anew in a pass over the training data. What is no floating-point number is
    the first ingredient's. A soup of one is fine-tuning.
    """

    name = "soup"
    paper = "Wortsman et al., ICML 2022, arXiv:2203.05482"
    Parameters = SoupParameters

    def passes(self) -> float:
        return self.p.ingredients if self.p.over == SEEDS else 1

    def prepare(self, run: Context) -> None:
        self.earlier: list[State] = []  # checkpoints before the end

    def train(self, run: Context, fit: Fit) -> None:
        start, patches, ingredients = run.weights(), run.patches, []
        for i in range(self.p.ingredients if self.p.over == SEEDS else 1):
            if i:
                axes = (*patches.axes, "soup", i)  # of both kinds of soup
                run.patches = PatchSampler(patches.store, patches.config, *axes)
                run.network.load_state_dict(start)
            fit(0, run.config.steps)
            ingredients.append(run.weights())
        run.patches = patches
        ingredients = [*self.earlier, *ingredients]
        run.diagnostics["ingredients"] = len(ingredients)
        run.network.load_state_dict(self.mixed(run, ingredients))

    def after_update(self, run: Context) -> None:
        steps = run.config.steps
        if self.p.over == CHECKPOINTS and run.step + 1 in self.stops(steps):
            self.earlier.append(run.weights())

    def stops(self, steps: int) -> set[int]:
        """After how many steps a checkpoint is taken, but for the last; fewer of few steps."""
        k = self.p.ingredients
        return {round(steps * (1 + i / k) / 2) for i in range(1, k)} - {steps}

    def state(self, run: Context) -> Tree:
        return {"earlier": self.earlier}

    def restore(self, run: Context, state: Tree) -> None:
        self.earlier = state["earlier"]

    def mixed(self, run: Context, ingredients: Sequence[State]) -> State:
        """The soup."""
        return mean(ingredients)


class GreedySoup(Soup):
    """A greedy soup: as `soup`, but an ingredient stays only where validation does not fall.

    Wortsman et al., ICML 2022, arXiv:2203.05482, algorithm 1: from the ingredient with the best
    validation Dice on, the others join in the order of theirs, each where the mean with it is no
    worse than the mean without. So the soup is never worse on validation than its best ingredient.
    The ingredients are those of `soup`, bit for bit.

    Cost: that of `soup`, and up to 2k - 1 validations.
    """

    name = "greedy_soup"
    paper = "Wortsman et al., ICML 2022, arXiv:2203.05482"
    uses_validation = True

    def mixed(self, run: Context, ingredients: Sequence[State]) -> State:
        def score(state: State) -> float:
            run.network.load_state_dict(state)
            return run.validate(run.network)

        scores = [score(state) for state in ingredients]
        # stable: of equals, the earlier one
        first, *others = sorted(range(len(ingredients)), key=lambda i: -scores[i])
        kept, best = [first], scores[first]
        for i in others:
            dice = score(mean([ingredients[j] for j in (*kept, i)]))
            if dice >= best:
                kept, best = [*kept, i], dice
        run.diagnostics |= {"kept": kept, "validation_dice": scores, "validation_dice_mixed": best}
        return mean([ingredients[i] for i in kept])


def mean(states: Sequence[State]) -> State:
    """The mean of each tensor; what is not a floating-point number is the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }
