"""How often marks and verdicts are wrong, by simulation: what docs/statistics.md shows.

    .venv/bin/python benchmarks/statistics.py                      all scenarios, resumable (hours)
    .venv/bin/python benchmarks/statistics.py --repetitions 200    a look, in some minutes

A scenario draws tables of gains without any true gain: 17 methods over one reference, whose own
draws are half of every variance, so that gains correlate by 0.5. Error rates are those of the
suite's own `intervals.mean_squares` and `generalised.p_value`. An interval holds the truth exactly
where the p-value of the difference from it is above 0.05, so that coverage is 1 - the rate of one
test. Finished scenarios lie in a JSON file a piece; the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

# this file is not the standard library's `statistics`, which others import
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from trm_bench.analysis import generalised, verdict
from trm_bench.analysis.generalised import MeanSquares
from trm_bench.analysis.intervals import FIXED, Design, mean_squares, overlap, trimmed
from trm_bench.files import write_json, write_text

METHODS = 17
FAMILIES = (4, METHODS)
ALPHA = 0.05
LIMIT = 0.06
TAILS = np.geomspace(0.5, 1e-5, 400)


class _Quantiles(dict[int, Any]):
    """Degrees of freedom to the squared t quantiles of `TAILS`."""

    def __missing__(self, freedom: int) -> Any:
        self[freedom] = special.stdtrit(freedom, 1 - TAILS) ** 2
        return self[freedom]


T_SQUARED = _Quantiles()


class Scenario(NamedTuple):
    """What is drawn. Standard deviations are in points.

    Attributes:
        kind: Heading of its rows.
        subjects: Test subjects, or patients in all where splits are drawn for each seed.
        seeds: Of the trainings.
        seed_sd: Of a method's gain between seeds.
        subject_sd: Between subjects.
        residual_sd: The rest.
        transfers: Number of them; the mean over them is tested.
        shared: Whether they have the same subjects.
        missing: Share of cells that are missing.
        ties: Whether gains are rounded, so that most subjects tie.
        skew: Skewness of the seeds' effects.
        split: Source, training and validation patients, where splits are drawn for each seed.
        source: Share of the seeds' variance that acts through the source's patients.
        train: Through the training patients.
    """

    kind: str
    subjects: int
    seeds: int
    seed_sd: float
    subject_sd: float = 1.0
    residual_sd: float = 1.9
    transfers: int = 1
    shared: bool = True
    missing: float = 0.0
    ties: bool = False
    skew: float = 0.0
    split: tuple[int, int, int] | None = None
    source: float = 0.0
    train: float = 0.0

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(str(x).replace(" ", "_") for x in self).replace("/", "_")

    @property
    def design(self) -> Design:
        """Of the splits."""
        if self.split is None:
            return FIXED
        source, train, val = self.split
        test = self.subjects - source - train - val
        return Design("resampled", overlap(source, train, test, self.subjects))


def scenarios() -> Iterator[Scenario]:
    """All of them."""
    for subjects in (9, 70, 139):
        for seeds in (3, 5, 10):
            for sd in (0.0, 0.25, 0.5, 1.0, 4.0):
                yield Scenario("one transfer", subjects, seeds, sd)
    for seeds in (3, 5, 10):
        for sd in (0.0, 0.5, 4.0):
            yield Scenario("small table", 4, seeds, sd)
            yield Scenario("a tenth of the cells missing", 30, seeds, sd, missing=0.1)
            yield Scenario("ties", 30, seeds, sd, 0.2, 0.3, ties=True)
            yield Scenario("mean over 2 transfers", 30, seeds, sd, transfers=2)
            yield Scenario("mean over 12 transfers", 30, seeds, sd, transfers=12)
            yield Scenario("own subjects", 12, seeds, sd, transfers=3, shared=False)
            yield Scenario("12 transfers, missing", 30, seeds, sd, transfers=12, missing=0.05)
        for skew in (0.5, 1.0, 2.0):
            yield Scenario(f"seeds' effects of skewness {skew:g}", 70, seeds, 2.0, skew=skew)
        for subjects, split in ((10, (4, 2, 1)), (22, (9, 3, 2)), (75, (30, 12, 8))):
            for source, train in ((0.25, 0.25), (0.5, 0.5), (1.0, 0.0)):
                kind = f"resampled, {source:.0%} through source, {train:.0%} through training"
                parts: dict[str, Any] = {"split": split, "source": source, "train": train}
                yield Scenario(kind, subjects, seeds, 2.0, **parts)


# -------------------------------------------------------------------------------------- drawing


def pair(rng: np.random.Generator, shape: tuple[int, ...], skew: float = 0.0) -> Any:
    """Effects on the gains of all methods over one reference, (method, *shape), variance 1.

    Skewed ones are the methods' own: exponential, mixed with normal ones to the skewness asked for.
    """
    own, common = rng.normal(size=(METHODS, *shape)), rng.normal(size=shape)
    mixed = (own - common) / np.sqrt(2)
    if not skew:
        return mixed
    part = (skew / 2) ** (2 / 3)  # an exponential has skewness 2
    if part >= 1:
        return rng.exponential(size=mixed.shape) - 1
    return np.sqrt(part) * (rng.exponential(size=mixed.shape) - 1) + np.sqrt(1 - part) * mixed


def table(s: Scenario, rng: np.random.Generator) -> Any:
    """Gains without a true gain, (method, transfer, subject, seed), NaN where missing."""
    people = s.subjects if s.shared else s.subjects * s.transfers
    # half of a subject's variance is the same in all transfers; seeds' effects are not
    several = s.transfers > 1
    of_subject = pair(rng, (1, people, 1))
    if several:
        own = pair(rng, (s.transfers, people, 1))
        of_subject = (of_subject + own) / np.sqrt(2)
    gain = s.subject_sd * of_subject + s.residual_sd * pair(rng, (s.transfers, people, s.seeds))
    if s.split is None:
        gain = gain + s.seed_sd * pair(rng, (s.transfers, 1, s.seeds), s.skew)
    else:
        gain = gain + s.seed_sd * pair(rng, (1, 1, s.seeds)) * np.sqrt(1 - s.source - s.train)
        gain = _split(s, gain, rng)
    if not s.shared:
        home = np.arange(people) // s.subjects
        gain[:, home[None, :] != np.arange(s.transfers)[:, None]] = np.nan
    if s.ties:
        gain = np.round(gain)
    if s.missing:
        gain[rng.random(gain.shape) < s.missing] = np.nan
    return gain


def _split(s: Scenario, gain: Any, rng: np.random.Generator) -> Any:
    """Every seed draws its split; patients act through the parts that they are in."""
    assert s.split is not None
    source, train, val = s.split
    influence = pair(rng, (2, s.subjects))
    for j in range(s.seeds):
        order = rng.permutation(s.subjects)
        members = order[:source], order[source : source + train]
        for part, share, of_part in zip((0, 1), (s.source, s.train), members, strict=True):
            mean = influence[:, part, of_part].mean(axis=1) * np.sqrt(len(of_part))
            gain[..., j] += s.seed_sd * np.sqrt(share) * mean[:, None, None]
        gain[:, :, order[: source + train + val], j] = np.nan
    return gain


# ------------------------------------------------------------------------------------- testing


def squares_of(gain: Any, design: Design) -> tuple[float, MeanSquares | None]:
    """The mean over transfers of one method's gains, and its mean squares."""
    gain = trimmed(gain)
    return float(np.nanmean(gain, axis=(1, 2)).mean()), mean_squares(gain, design)


def others(mean: Any, q: MeanSquares, gain: Any) -> dict[str, Any]:
    """p-values of alternatives, for one transfer without missing cells."""
    a, b, e = (np.asarray(x) for x in q[:3])
    between, f_a, f_b = np.maximum(b - e, 0), q.f_a, q.f_b
    freedom = (a + between) ** 2 / (a**2 / f_a + b**2 / f_b + e**2 / (f_a * f_b))
    two_way = np.abs(mean) / np.sqrt(a + between)
    seed_means = gain.mean(axis=1)
    # the largest tail at which sqrt(tA^2 A + tB^2 max(B - E, 0)) is not yet reached
    widths = np.sqrt(np.outer(a, T_SQUARED[f_a]) + np.outer(between, T_SQUARED[f_b]))
    reached = (widths < np.abs(mean)[:, None]).sum(axis=1)
    conservative = 2 * TAILS[np.minimum(reached, len(TAILS) - 1)]
    return {
        "Wilcoxon over subjects": stats.wilcoxon(gain.mean(axis=2), axis=1).pvalue,
        "t over seed means": stats.ttest_1samp(seed_means, 0, axis=1).pvalue,
        "two-way, Satterthwaite": 2 * special.stdtr(np.maximum(freedom, 1), -two_way),
        "sqrt(tA^2 A + tB^2 max(B - E, 0))": conservative,
    }


def family_error(p: Any, k: int) -> float:
    """How often Holm's procedure marks any of the first k."""
    return float((np.nanmin(p[:, :k], axis=1) <= ALPHA / k).mean())


def simulate(s: Scenario, repetitions: int, gain: float = 0.0, level: float = ALPHA) -> Any:
    """Error rates of a scenario (or, with a true gain, the power at a level)."""
    rng = np.random.default_rng([repetitions, *s.name.encode()])
    p = np.full((repetitions, METHODS), np.nan)
    rest: dict[str, Any] = {}
    plain = s.transfers == 1 and not s.missing and s.split is None and s.seeds > 2
    for i in range(repetitions):
        drawn = table(s, rng) + gain
        known = [squares_of(of_method, s.design) for of_method in drawn]
        ready = [(k, m, q) for k, (m, q) in enumerate(known) if q is not None]
        for f_a in {q.f_a for _, _, q in ready}:
            at = [(k, m, q) for k, m, q in ready if q.f_a == f_a]
            means = np.array([m for _, m, _ in at])
            a, b, e = (np.array([q[part] for _, _, q in at], float) for part in range(3))
            q = at[0][2]._replace(a=a, b=b, e=e)
            p[i, [k for k, _, _ in at]] = generalised.p_value(means, q)
            if plain:
                for name, value in others(means, q, drawn[:, 0]).items():
                    rest.setdefault(name, np.full(p.shape, np.nan))[i] = value
    return {
        name: {
            "one": float((values[np.isfinite(values)] <= level).mean()),
            **{f"family of {k}": family_error(values, k) for k in FAMILIES},
        }
        for name, values in {"generalised": p, **rest}.items()
    }


# -------------------------------------------------------------------------------------- verdicts


def verdicts(subjects: int, seeds: int, sd: float, part: float, repetitions: int) -> dict[str, Any]:
    """How often each word comes out for a claim of 4 points, a true gain of a part of it.

    As `verdict.judge` does: trm against fine-tuning and three controls, over which it gains alike,
    at the family's level.
    """
    s = Scenario("verdict", subjects, seeds, sd)
    rng = np.random.default_rng([subjects, seeds, round(100 * sd), round(100 * part)])
    claimed, found, k = 4.0, {word: 0 for word in verdict.RULES}, 4
    holds = 0
    for _ in range(repetitions):
        drawn = (table(s, rng) + part * claimed)[:k]
        known = [squares_of(of_method, FIXED) for of_method in drawn]
        means = np.array([m for m, _ in known])
        a, b, e = (np.array([q[i] for _, q in known if q], float) for i in range(3))
        q = MeanSquares(a, b, e, subjects - 1, seeds - 1)
        order = np.sort(generalised.p_value(means, q))
        rejected = int(np.argmax([*(order > ALPHA / (k - np.arange(k))), True]))
        half = generalised.half_width(q, 1 - ALPHA / max(k - rejected, 1))
        low, high = means - half, means + half
        found[str(verdict.words(low[0], high[0], claimed))] += 1
        # the second and third stand for the two decisive controls
        holds += bool(low[0] >= claimed / 2 and (low[1:3] > 0).all())
    return {**{w: n / repetitions for w, n in found.items()}, "exit 0": holds / repetitions}


# ----------------------------------------------------------------------------------------- pages


def run(out: Path, repetitions: int) -> dict[str, Any]:
    """Everything, each piece from its file where that is there."""

    def kept(name: str, make: Callable[[], Any]) -> Any:
        path = out / f"{name}.json"
        if not path.is_file():
            write_json(path, make())
            print(name, flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    errors = [(s, kept(s.name, partial(simulate, s, repetitions))) for s in scenarios()]
    powers = {}
    for seeds in (3, 5, 8, 10, 15):
        for sd in (0.25, 0.5, 1.0):
            s = Scenario("power", 70, seeds, sd, 1.5, 1.7)
            make = partial(simulate, s, repetitions // 4, gain=1.0, level=ALPHA / 4)
            powers[seeds, sd] = kept(f"power-{seeds}-{sd}", make)
    words = {}
    for seeds in (5, 8, 10):
        for sd in (0.25, 0.5, 1.0, 2.0):
            for part in (0.0, 0.1, 0.5, 1.0):
                piece = 70, seeds, sd, part
                name = "verdict-" + "-".join(map(str, piece))
                words[piece] = kept(name, partial(verdicts, *piece, repetitions))
    return {"errors": errors, "powers": powers, "words": words}


def pages(found: dict[str, Any], repetitions: int) -> str:
    """The tables, in Markdown."""
    lines = [f"{repetitions} repetitions each; the rate of one test is over 17 times as many.", ""]
    lines += [
        "| | seeds | one test | family of 4 | family of 17 | coverage |",
        "|---|---|---|---|---|---|",
    ]
    worst: dict[tuple[str, int], list[dict[str, float]]] = {}
    for s, rates in found["errors"]:
        worst.setdefault((s.kind, s.seeds), []).append(rates["generalised"])
    for (kind, seeds), several in worst.items():
        one, *families = (max(r[k] for r in several) for k in several[0])
        rates = " | ".join(_rate(x) for x in (one, *families))
        lines.append(f"| {kind} | {seeds} | {rates} | {1 - one:.3f} |")
    lines += ["", "The alternatives, in the scenarios of one transfer (the largest rate):", ""]
    lines += ["| | seeds | one test | family of 4 | family of 17 |", "|---|---|---|---|---|"]
    plain = [(s, r) for s, r in found["errors"] if s.kind == "one transfer"]
    for name in plain[0][1]:
        for seeds in (3, 5, 10):
            several = [r[name] for s, r in plain if s.seeds == seeds]
            rates = " | ".join(_rate(max(r[k] for r in several)) for k in several[0])
            lines.append(f"| {name} | {seeds} | {rates} |")
    lines += ["", "The verdict on a claim of 4 points (70 subjects, family of 4):", ""]
    head = [*verdict.RULES, "exit 0"]
    lines += [f"| true gain | seed sd | seeds | {' | '.join(head)} |", "|---" * 9 + "|"]
    for (_, seeds, sd, part), chances in found["words"].items():
        rates = " | ".join(f"{chances[w]:.3f}" for w in head)
        lines.append(f"| {4 * part:g} | {sd:g} | {seeds} | {rates} |")
    return "\n".join(lines) + "\n"


def _rate(rate: float) -> str:
    return f"**{rate:.3f}**" if rate > LIMIT else f"{rate:.3f}"


def figure(found: dict[str, Any], path: Path) -> None:
    """Family errors against the seeds' noise, and power, beside the alternatives."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    plain = [(s, r) for s, r in found["errors"] if s.kind == "one transfer" and s.seeds == 5]
    sds = sorted({s.seed_sd for s, _ in plain})
    for name in plain[0][1]:
        bold = {"linewidth": 2.5} if name == "generalised" else {"linewidth": 1, "linestyle": "--"}
        rates = [max(r[name]["family of 4"] for s, r in plain if s.seed_sd == sd) for sd in sds]
        left.plot(sds, rates, marker="o", markersize=3, label=name, **bold)
        if name == "Wilcoxon over subjects" or name == "t over seed means":
            continue  # invalid, so that their power means nothing
        for sd, alpha in ((0.25, 0.4), (1.0, 1.0)):
            seeds = sorted({m for m, x in found["powers"] if x == sd})
            power = [found["powers"][m, sd][name]["one"] for m in seeds]
            label = name if sd == 1.0 else None
            colour = left.lines[-1].get_color()
            right.plot(seeds, power, color=colour, alpha=alpha, label=label, **bold)
    left.axhline(ALPHA, color="black", linewidth=0.7)
    left.set(xlabel="sd of a gain between seeds [points]", ylabel="family-wise error, 4 tests")
    left.set_title("5 seeds, the worst of 9 to 139 subjects", fontsize=9)
    right.set(xlabel="seeds", ylabel="power at 0.05 / 4, +1 point", ylim=(0, 1))
    right.set_title("70 subjects; seeds' sd 1 point (pale: 0.25)", fontsize=9)
    for ax in (left, right):
        ax.legend(fontsize=6.5, frameon=False)
    picture.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("results/statistics"))
    arguments = parser.parse_args()
    count = arguments.repetitions
    everything = run(arguments.out / str(count), count)
    write_text(arguments.out / "statistics.md", pages(everything, count))
    figure(everything, arguments.out / "statistics.png")
