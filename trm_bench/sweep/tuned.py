"""What a sweep leaves, `tuned.yaml`: made of finished trials, and applied to a protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trm_bench.errors import UserError, nearest
from trm_bench.protocol.schema import MethodConfig, MethodSettings, MethodTraining, Protocol
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import (
    Record,
    SweptMethod,
    SweptTrial,
    Taken,
    Trials,
    Tuned,
    TunedMethod,
)
from trm_bench.runs.store import read_trials, tuned_here, write_tuned
from trm_bench.sweep.proposals import Trial
from trm_bench.sweep.space import Space, space_of


def entry(
    chosen: MethodConfig,
    transfer: str | None,
    space: Space,
    trials: Sequence[Trial],
    records: Sequence[Record],
) -> tuple[TunedMethod, SweptMethod]:
    """The best of a method's trials, the earlier one of equals, and what they cost.

    Args:
        chosen: The method in the protocol.
        transfer: Which one, where each has its own values.
        space: Of the method.
        trials: All of them, in order.
        records: Of their runs, each once.
    """
    scores = {t.number: t.score for t in trials if t.score is not None}
    best = min(scores, key=lambda number: (-scores[number], number), default=None)
    tuned = TunedMethod(
        method=chosen.label,
        name=chosen.name,
        transfer=transfer,
        trial=best,
        values={} if best is None else dict(trials[best].values),
        validation_dice=None if best is None else scores[best],
        default_validation_dice=trials[0].score,
        finished=len(scores),
        failed=len(trials) - len(scores),
        runs=len(records),
        steps=sum(record.config.training.steps for record in records),
        passes=sum(record.passes for record in records),
        space=space.described(),
        space_hash=space.hash,
        code=records[0].config.code,
    )
    by_id = {record.id: record for record in records}
    of_method = SweptMethod(
        method=chosen.label,
        transfer=transfer,
        seconds=sum(map(_seconds, records)),
        trials=tuple(swept(t, [by_id[run] for run in t.runs if run in by_id]) for t in trials),
    )
    return tuned, of_method


def swept(trial: Trial, records: Sequence[Record]) -> SweptTrial:
    """A trial with what the records of its runs say."""
    reasons = [f"{r.state}: {r.reason}" for r in records if r.state != "finished"]
    shares = [share for record in records for _, share in record.curves.get("voxel_share", [])]
    return SweptTrial(
        number=trial.number,
        values=dict(trial.values),
        validation_dice=trial.score,
        reason=reasons[0] if reasons else "",
        voxel_share=sum(shares) / len(shares) if shares else None,
        seconds=sum(map(_seconds, records)),
        runs=trial.runs,
    )


def _seconds(record: Record) -> float:
    return sum(record.seconds.values())


def keep(
    folder: ProtocolFolder, tuned: Tuned, swept: Sequence[SweptMethod]
) -> tuple[Tuned, int, int]:
    """Writes tuned.yaml and trials.json, with what earlier sweeps of this budget and data left.

    Returns:
        What was written, and the numbers of earlier entries kept and dropped.
    """
    earlier = tuned_here(folder)
    labels = {m.method for m in tuned.methods}
    others = [m for m in (earlier.methods if earlier else ()) if m.method not in labels]
    same = earlier is not None and (
        earlier.model_copy(update={"methods": ()}) == tuned.model_copy(update={"methods": ()})
    )
    kept = others if same else []
    methods = sorted([*kept, *tuned.methods], key=lambda m: (m.method, m.transfer or ""))
    by_name = {(s.method, s.transfer): s for s in (*read_trials(folder).methods, *swept)}
    trials = [by_name[m.method, m.transfer] for m in methods if (m.method, m.transfer) in by_name]
    joined = tuned.model_copy(update={"methods": tuple(methods)})
    write_tuned(folder, joined, Trials(methods=tuple(trials)))
    return joined, len(kept), len(others) - len(kept)


def applied(protocol: Protocol, taken: Taken, where: Path, borrow: bool = False) -> Protocol:
    """A protocol whose methods have their tuned values; see `plan.refuse_misfit` for the data.

    Args:
        protocol: With the methods to run.
        taken: Of a sweep of that protocol, or of another one to borrow from.
        where: The file, for messages.
        borrow: Whether another protocol's values are welcome.

    Raises:
        UserError: The file is of another protocol, lacks a method, or a search space has changed;
            or it is of this protocol, and nothing is to be borrowed; or the method whose training
            is taken was tuned without it.
    """
    tuned, training_of = taken.tuned, taken.training_of
    own = not taken.is_borrowed(protocol.name)
    if not own and not borrow:
        what = f"was tuned for the protocol '{tuned.protocol}', and this is '{protocol.name}'"
        fix = f"make one for it: trm-bench sweep {protocol.name}; or take these with --borrow"
        raise UserError(what, where, fix)
    if own and borrow:
        raise UserError("is of this very protocol", where, "leave --borrow out")
    if borrow and any(entry.transfer is not None for entry in tuned.methods):
        what = "has values of each transfer, which another protocol does not have"
        raise UserError(what, where, "borrow from a sweep with sweep.per: protocol")
    methods = protocol.methods
    if training_of:
        name = _entries(training_of, tuned, where)[0].name
        leading = {chosen.label: chosen for chosen in methods}.get(training_of)
        leading = leading or MethodConfig(name=name, label=training_of)
        of_all = _applied_to(leading, protocol, tuned, where)
        methods = tuple(_trained_as(of_all, chosen, where) for chosen in methods)
    else:
        methods = tuple(_applied_to(chosen, protocol, tuned, where) for chosen in methods)
    return protocol.model_copy(update={"methods": methods})


def _trained_as(leading: MethodConfig, chosen: MethodConfig, where: Path) -> MethodConfig:
    """A method with another one's training, but for what the protocol sets of its own by hand."""
    several = {name: settings.training for name, settings in leading.per_transfer.items()}
    if MethodTraining() in (several.values() or [leading.training]):
        fix = "sweep it with sweep.tune_training: always"
        raise UserError(f"'{leading.label}' was tuned without the training", where, fix)
    own = {t: chosen.at(t).over(MethodSettings(training=of)) for t, of in several.items()}
    training = chosen.over(MethodSettings(training=leading.training)).training
    return chosen.model_copy(
        update={"training": training, "per_transfer": own or chosen.per_transfer}
    )


def _applied_to(
    chosen: MethodConfig, protocol: Protocol, tuned: Tuned, where: Path
) -> MethodConfig:
    label = chosen.label
    again, entries = _again(label, tuned), _entries(label, tuned, where)
    space = space_of(chosen, protocol.training.target, protocol.sweep)
    per_transfer: dict[str, MethodSettings] = {}
    for one in entries:
        if (one.name, one.space_hash) != (chosen.name, space.hash):
            fix = f"{again}, or undo the change of its parameters or ranges"
            raise UserError(f"the search space of '{label}' is another one now", where, fix)
        if one.trial is None:
            fix = f"see why in the records and {again}, or leave it out with --methods"
            raise UserError(f"no trial of '{label}' finished", where, fix)
        if one.transfer is not None:
            per_transfer[one.transfer] = space.settings(one.values)
    if per_transfer:
        return chosen.model_copy(update={"per_transfer": per_transfer})
    return with_settings(chosen, space.settings(entries[0].values))


def _entries(label: str, tuned: Tuned, where: Path) -> list[TunedMethod]:
    """What a file holds for a method: one, or one of each transfer."""
    entries = [m for m in tuned.methods if m.method == label]
    if not entries:
        known = list(dict.fromkeys(m.method for m in tuned.methods))
        fix = f"{_again(label, tuned)}, or leave it out with --methods; {nearest(label, known)}"
        raise UserError(f"holds nothing for '{label}'", where, fix)
    return entries


def _again(label: str, tuned: Tuned) -> str:
    return f"sweep it again (trm-bench sweep {tuned.protocol} --methods {label})"


def with_settings(chosen: MethodConfig, settings: MethodSettings, label: str = "") -> MethodConfig:
    """A method with other settings over its own."""
    merged = settings.over(chosen)
    return MethodConfig(
        name=chosen.name,
        label=label or chosen.label,
        training=merged.training,
        **merged.parameters,
    )


def lines(tuned: Tuned) -> Iterator[str]:
    """A line on each method: the defaults, the best trial, how many there were, its values."""
    width = max(len(m.title) for m in tuned.methods)
    for m in tuned.methods:
        failed = f" ({m.failed} failed)" if m.failed else ""
        yield (
            f"{m.title:{width}}  default {_dice(m.default_validation_dice)}  "
            f"best {_dice(m.validation_dice)}  {m.finished + m.failed} trials{failed}  "
            f"{shown(m.values)}"
        )


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def shown(values: Mapping[str, Any]) -> str:
    """Values as one line."""
    said = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    return ", ".join(said) or "-"
