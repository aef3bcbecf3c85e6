"""Style codes tell source from target patches, features do not, and the decoder is told."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trm_bench.data.patches import Batch
from trm_bench.errors import UserError
from trm_bench.methods import Context, Parameters, hyper
from trm_bench.networks import Parts
from trm_bench.seeds import generator

from .encoder import EncoderMethod, encoder_blocks, watch
from .source_head import SourceHeadMethod, head_input, head_replaced, target_statistics

OWN = "style"  # the name of the method's own modules in the network
SMALLEST_VARIANCE = 1e-5  # added, so that a level of one voxel has a gradient


class StyleContrastParameters(Parameters):
    """Hyper-parameters of style contrast; none is the paper's."""

    source: float = hyper(
        0.5, "weight of the loss of source patches", search=(0.01, 2.0), log=True, ge=0, le=1e6
    )
    style: float = hyper(
        0.1, "weight of the contrast of styles", search=(0.01, 1.0), log=True, ge=0, le=1e6
    )
    content: float = hyper(
        0.1, "weight of the contrast of features", search=(0.01, 1.0), log=True, ge=0, le=1e6
    )
    temperature: float = hyper(
        0.1, "of both contrasts", search=(0.05, 1.0), log=True, ge=1e-3, le=1e3
    )
    condition: bool = hyper(True, "whether the decoder is told the style", search=[True, False])
    size: int = hyper(16, "numbers in a style code", search=[8, 16, 32], ge=1, le=1024)
    voxels: int = hyper(64, "of a class and batch whose features are contrasted", ge=1, le=4096)


class StyleContrast(EncoderMethod, SourceHeadMethod):
    """Fine-tuning on L_target + source L_source + style C(s, domain) + content C(f, class).

    After Li, Cheng, Li & Qiu, "Mitigating Negative Style Transfer in Hybrid Dialogue System", AAAI
    2023, arXiv:2212.07183. There one model answers in two kinds of dialogue, whose styles get into
    each other's way; a latent variable of each dialogue is contrasted by its kind, and a style
    prefix made of it conditions the generator. Here the two kinds are source and target, which
    stay in training together:

        s_b = W [mean and standard deviation of every channel of every encoder level] + w   (size,)
        x'  = x (1 + scale(s_b)) + shift(s_b)     the deepest level's output, before the decoder

    C is the supervised contrastive loss of Khosla et al., NeurIPS 2020, arXiv:2004.11362 (L_out),
    on vectors z of length 1 with labels l, A(i) being all but i and P(i) those of A(i) with l_i:

        C = mean over i with P(i) not empty of
            -1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a in A(i)} exp(z_i z_a / t))

    Styles: z is s_b of all patches of a step, l their domain; with one patch of each there is no
    pair, and the term is 0. Content: z is the feature, at the head's input, of up to `voxels` drawn
    voxels of each class and domain, l their class. Where source and target have the same classes,
    voxels of one class attract across domains; else nobody knows which classes correspond, so that
    each domain is contrasted by itself, and the two are averaged.

    Kept: one model for both domains, trained on both; style codes that attract within a domain and
    repel across; a decoder conditioned on the code. Changed: the paper's code is a Gaussian latent
    variable of pooled token states, with a prior and a divergence; here it is a function of channel
    statistics, which is what style is to images, and nothing is drawn. The paper's self-supervised
    pairs, two draws of one latent variable, serve data whose styles nobody labelled; domains are
    known here. Its prefix is attended to by every decoder layer; a convolutional decoder has no
    attention, so scale and shift at the bottleneck, as in AdaIN (Huang & Belongie, ICCV 2017,
    arXiv:1703.06868) but without its normalisation, stand for it, and begin at the identity. Skip
    connections go around it. The contrast of content is ours: the paper has no voxels that mean
    the same in both domains.

    The loss of source patches is the protocol's, through the network's own head where the classes
    are the same, else through a copy of the source's. Source batches come from the source's
    training split, are normalised by their own statistics and leave the moving ones alone. MONAI's
    `ContrastiveLoss` is of pairs, without labels, so C is written here. Cost: two passes a step.
    source = style = content = 0 without `condition` is fine-tuning.

    Raises:
        UserError: Which part of the network is the encoder is not known, or its levels give no
            feature maps.
    """

    name = "style_contrast"
    paper = "after Li et al., AAAI 2023, arXiv:2212.07183"
    Parameters = StyleContrastParameters
    uses_source_data = True

    def needs_head(self) -> bool:
        return bool(self.p.source)

    def passes(self) -> float:
        return 2.0 if self._on_source else 1.0

    @property
    def _on_source(self) -> bool:
        return bool(self.p.source or self.p.style or self.p.content)

    def architecture(self, network: nn.Module, parts: Parts, image: Tensor) -> nn.Module:
        if not (self.p.style or self.p.condition):
            return network
        on_paper = copy.deepcopy(network).to("meta").eval()
        with torch.no_grad(), watch(encoder_blocks(on_paper, parts)) as maps:
            on_paper(image)
        levels = {name: m.shape[1] for name, m in maps.items() if m.ndim == image.ndim}
        if not levels:
            what = f"the encoder of {type(network).__name__} gives no feature maps"
            raise UserError(what, "network", f"choose another network, or leave {self.name} out")
        styled = Styled(list(levels.values()), self.p.size, self.p.condition)
        for name in levels:
            network.get_submodule(name).register_forward_hook(styled.look)
        network.add_module(OWN, styled)
        return network

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        if self._on_source:
            self.source_patches = run.source_patches()

    def trains_head(self, run: Context) -> bool:
        return not run.same_task

    def loss(self, run: Context, batch: Batch) -> Tensor:
        if not self._on_source:
            return super().loss(run, batch)
        codes = {OWN: run.network.get_submodule(f"{OWN}.code")} if self.p.style else {}
        with watch(codes) as seen, head_input(run) as features:
            loss = super().loss(run, batch)
        source = self.source_patches.batch(run.step)
        with (
            target_statistics(run.network),
            head_replaced(run, self.head_of_source(run)),
            watch(codes) as its,
            head_input(run) as its_features,
        ):
            logits = run.network(source.image)
        if self.p.source:
            terms = self.terms(run, logits, source)
            loss = loss + self.p.source * torch.stack([*terms.values()]).sum()
        if self.p.style:
            both = torch.cat([seen[OWN], its[OWN]])
            domains = torch.arange(2, device=both.device).repeat_interleave(len(both) // 2)
            loss = loss + self.p.style * contrast(both, domains, self.p.temperature)
        if self.p.content:
            maps = features[0], its_features[0]
            loss = loss + self.p.content * self._content(run, maps, (batch, source))
        return loss

    def _content(
        self, run: Context, maps: tuple[Tensor, Tensor], batches: tuple[Batch, Batch]
    ) -> Tensor:
        classes = run.classes, self.source_patches.store.classes
        parts = [
            drawn(*given, self.p.voxels, generator(*run.seed_axes, self.name, i, run.step))
            for i, given in enumerate(zip(maps, (b.label for b in batches), classes, strict=True))
        ]
        if run.same_task:
            (target, label), (source, its_label) = parts
            both, labels = torch.cat([target, source]), torch.cat([label, its_label])
            return contrast(both, labels, self.p.temperature)
        return torch.stack([contrast(*part, self.p.temperature) for part in parts]).mean()


class Styled(nn.Module):
    """The style of a patch from what its encoder's levels give, and what is told the decoder.

    Args:
        channels: Of each level, in the order of computation.
        size: Of the code.
        condition: Whether the last level's output is scaled and shifted.
    """

    def __init__(self, channels: list[int], size: int, condition: bool) -> None:
        super().__init__()
        self.levels = len(channels)
        self.code = nn.Linear(2 * sum(channels), size)
        self.told = nn.Linear(size, 2 * channels[-1]) if condition else None
        if self.told is not None:
            nn.init.zeros_(self.told.weight)
            nn.init.zeros_(self.told.bias)
        self.seen: list[Tensor] = []  # of the levels so far in this pass

    def look(self, level: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """A forward hook of every level; of the last, what goes on to the decoder.

        A method of a module, so that a copied network looks into its own.
        """
        self.seen.append(statistics(output))
        if len(self.seen) < self.levels:
            return None
        code = self.code(torch.cat(self.seen, dim=1))
        self.seen.clear()
        if self.told is None:
            return None
        scale, shift = self.told(code).to(output.dtype).chunk(2, dim=1)
        every = (..., *[None] * (output.ndim - 2))
        return output * (1 + scale[every]) + shift[every]


def statistics(maps: Tensor) -> Tensor:
    """Mean and standard deviation of each channel, float32: (B, C, *spatial) to (B, 2 C)."""
    values = maps.float().flatten(2)
    variance = values.var(2, correction=0)
    return torch.cat([values.mean(2), (variance + SMALLEST_VARIANCE).sqrt()], dim=1)


def contrast(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss, a float32 scalar; 0 where no two have one label.

    Args:
        vectors: Of any length but 0, shape (N, D).
        labels: Integers, shape (N,); whatever has a negative one is left out.
        temperature: t.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        z = nn.functional.normalize(vectors.float(), dim=1)
        there = labels >= 0
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device) & there
        logits = (z @ z.T / temperature).masked_fill(~others, -torch.inf)
        # who is all alone has no sum, and must not give NaN
        logits = logits.where(others.any(1, keepdim=True), 0.0)
        log_share = logits - logits.logsumexp(1, keepdim=True)
        positive = others & (labels[:, None] == labels) & there[:, None]
        number = positive.sum(1)
        each = -log_share.where(positive, 0.0).sum(1) / number.clamp(min=1)
        return each.sum() / (number > 0).sum().clamp(min=1)


def drawn(
    features: Tensor, label: Tensor, classes: int, most: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Features of drawn voxels, up to so many of each class, and their classes.

    No number of voxels is known to the host: places that a class cannot fill have the label -1.

    Args:
        features: Shape (B, C, *coarse); the value i of m lies at voxel i n / m of n.
        label: Shape (B, *spatial).
        classes: K.
        most: Voxels of a class at most.
        draws: Of the choice.

    Returns:
        Shapes (N, C) and (N,), with N at most K * most.
    """
    for axis, (m, n) in enumerate(zip(features.shape[2:], label.shape[1:], strict=True), start=1):
        places = torch.arange(m, device=label.device) * n // m
        label = label.index_select(axis, places)
    flat = label.flatten()
    order = torch.rand(len(flat), generator=draws).to(flat.device)
    rows = features.movedim(1, -1).flatten(0, -2)
    chosen, labels = [], []
    for k in range(classes):
        first = order.masked_fill(flat != k, -1.0).topk(min(most, len(flat)))
        chosen.append(first.indices)
        labels.append(torch.where(first.values >= 0, k, -1))
    return rows.index_select(0, torch.cat(chosen)), torch.cat(labels)
