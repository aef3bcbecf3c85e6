"""The mutants: one place of the numeric core each, broken as a hurried author might break it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """A change of one module.

    Attributes:
        name: What is wrong with it.
        module: Dotted name.
        old: Text that stands in the module once.
        new: What takes its place.
        tests: Arguments for pytest: the tests that should notice.
    """

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]

    def path(self, root: Path) -> Path:
        """The module's file."""
        parts = self.module.split(".")
        # the folder baselines/ is installed as trm_bench.baselines
        parts = parts[1:] if parts[1] == "baselines" else parts
        path = root.joinpath(*parts)
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    def changed(self, root: Path) -> str:
        """The module's text with the change.

        Raises:
            ValueError: The old text does not stand there once: the code has moved on.
        """
        text = self.path(root).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.module} holds {text.count(self.old)} x {self.old}"
            )
        return text.replace(self.old, self.new)


def _of(module: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    named = (name.partition("::") for name in tests.split())  # a file, and maybe a class of it
    selected = [f"tests/{file}.py{colons}{part}" for file, colons, part in named]
    if module.startswith("baselines.") and "test_baselines" in tests:
        selected += ["-k", module.removeprefix("baselines.")]  # its tests hold its name
    where = f"trm_bench.{module}"
    return [Mutant(name, where, old, new, tuple(selected)) for name, old, new in changes]


MUTANTS = [
    # -------------------------------------------------------------------------------------- speed
    *_of(
        "bench.timing",
        "bench/test_targets",
        ("ratios are of medians", "statistics.median(each), min", "one.median / other.median, min"),
        ("one work takes all its turns at once", "for _ in range(rounds):\n        for name, work in works.items():", "for name, work in works.items():\n        for _ in range(rounds):"),
    ),
    *_of(
        "bench.targets",
        "bench/test_targets",
        ("less is better", "self.value.median >= self.reach", "self.value.median <= self.reach"),
        ("a GPU has the targets of a CPU", "of_gpu if on_gpu else of_cpu", "of_cpu"),
        ("tuned is the slowest", "return min(chosen", "return max(chosen"),
    ),
    *_of(
        "bench.protocol",
        "bench/test_targets",
        ("sources are trained once a run", "{r.source.id: r", "{r.id if hasattr(r, 'id') else id(r): r"),
        ("preparation is training", 'record.seconds["train"] + record.seconds["test"]', "sum(record.seconds.values())"),
    ),
    *_of(
        "bench.bare",
        "bench/test_bare",
        ("what follows a script is not deterministic", "before[0], warn_only", "False, warn_only"),
        ("operations of all steps are those of one", "operations(self._steps) // self.run.config.steps", "operations(self._steps)"),
    ),
    # ---------------------------------------------------------------------------------- integrity
    *_of(
        "seals",
        "runs/test_store test_seals",
        ("any checksum will do", "if actual != found[-1][1].decode():", "if not actual:"),
        ("the seal counts itself", "content[:start] + BLANK.encode() + content[end:]", "content"),
        ("tensors are not read", "!= payload:", "== payload + 1 * 'x':"),
        ("files are not held to their sum", "if digest_of_file(path) != digest:", "if not digest:"),
        ("a changed file keeps its old sum", "_digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)", "_digest(path)"),
    ),
    *_of(
        "files",
        "test_files",
        ("another machine's processes are judged here", "m[1] == HOST and not lives", "not lives"),
        ("a machine's name is enough", '" ".join(known).encode()', "b''"),
        ("writers of one file share a part", "{os.getpid()}-{secrets.token_hex(4)}", "{os.getpid()}-0"),
        ("what is new is forgotten", "_changed(path) < oldest", "_changed(path) > 0"),
    ),
    *_of(
        "runs.locks",
        "runs/test_locks",
        ("a lock that is held is none", "if error.errno in HELD:", "if not error.errno:"),
        ("without locks nothing goes on", "except NoLocks as error:", "except ZeroDivisionError as error:"),
        ("a broken disk has no locks", "if error.errno in ABSENT:", "if error.errno:"),
    ),
    *_of(
        "runs.claims",
        "runs/test_claims",
        ("two may hold a claim", "os.O_CREAT | os.O_EXCL | os.O_WRONLY", "os.O_CREAT | os.O_WRONLY"),
        ("no claim is stale", "return clock(path.parent) - path.stat().st_mtime > STALE_AFTER", "return False"),
        ("claims are judged by this machine's clock", "clock(path.parent) -", "time.time() -"),
        ("a sleeper is taken for dead", "return not lives(int(by[\"process\"]))", "pass"),
        ("processes elsewhere are judged here", 'if by.get("host") == HOST and', "if"),
        ("the claim of the faster is lost", "if _identity(aside) != stale:", "if not stale:"),
        ("the claim of the next is removed", "if holder(path) == ours:", "if ours:"),
        ("claims grow old", "os.utime(path)", "pass"),
    ),
    *_of(
        "runs.execute",
        "runs/test_claims",
        ("what another did is done again", "if found.done and kept:", "if not found:"),
    ),
    *_of(
        "runs.executors",
        "runs/test_executors",
        ("tasks of a failed one start", 'if event.kind != "done" and task.id not in self._skipped:', "if not task.id:"),
        ("one of several before is enough", "elif not self._before[index] and", "elif"),
        ("the last task comes first", "heapq.heappop(self._ready)", "self._ready.pop()"),
    ),
    *_of(
        "runs.store",
        "runs/test_store",
        ("a record under any name", "if not path.stem == record.id == record.config.id:", "if not record.id:"),
        ("a record of any subjects", "not tested == set(record.metrics) == set(record.predictions)", "not tested"),
        ("an audit of any transfer", "(audit.transfer, audit.seed) != (transfer, seed)", "not audit.runs"),
    ),
    *_of(
        "runs.health",
        "runs/test_store test_verification",
        ("a source under any name", "!= path.stem:", "== '':"),
        ("predictions are not looked at", "for file, digest in kept(folder, health.record):", "for file, digest in ():"),
    ),
    # ------------------------------------------------------------------------------------ methods
    *_of(
        "methods.trm",
        "methods/test_trm",
        ("trm_shuffled does not shuffle", "= values[order]", "= values"),
        (
            "trm_shuffled shuffles across classes",
            "for k in label.unique():\n                values = weight[label == k]",
            "for k in label.unique():\n                values = weight.flatten()[: (label == k).sum()]",
        ),
        (
            "trm_shuffled ignores the seed",
            'generator(*run.seed_axes, "shuffle", i, int(k))',
            'generator("shuffle", i, int(k))',
        ),
        (
            "trm_prior is trm",
            "yield torch.ones_like(image[:, :1]), label, brain",
            "yield run.predict(run.source, image), label, brain",
        ),
        (
            "trm_uniform is trm",
            "return [torch.ones_like(label) for label in labels]",
            "return super().weights(run)",
        ),
        ("trm ignores normalise", "            self.p.normalise,\n", '            "none",\n'),
        ("trm ignores weight", "            self.p.weight,\n", '            "risk",\n'),
        ("trm ignores strength", "            self.p.strength,\n", "            1.0,\n"),
        ("trm ignores base", "            self.p.base,\n", "            10.0,\n"),
        ("trm ignores risk", "            self.p.risk,\n", '            "one_minus",\n'),
        ("trm ignores the scope", "probabilities.shape[1], self.p.scope", "probabilities.shape[1]"),
        ("trm ignores the denominator", "            self.p.denominator,\n", '            "voxels",\n'),
        (
            "trm ignores loss.cross_entropy",
            "cross_entropy=weights.cross_entropy",
            "cross_entropy=1.0",
        ),
        (
            "trm ignores with_dice",
            "weights.dice if self.p.with_dice is None else self.p.with_dice",
            "weights.dice",
        ),
    ),
    *_of(
        "methods.evidence",
        "methods/test_evidence",
        ("clusters weigh the same", "np.log(mass / mass.sum())", "np.zeros(len(mass))"),
        ("responsibilities forget the centres' size", "- (centres**2).sum(1) / (2 * variance)", "- 0 * mass"),
        ("the variance is of all directions together", "squares / (directions * mass.sum())", "squares / mass.sum()"),
        ("the variance ignores the weights", "(sample.weight[of_z] @ (values[of_z] - centre) ** 2)", "((values[of_z] - centre) ** 2)"),
        ("the seed of the clusters is fixed", "random_state=seed % 2**32", "random_state=0"),
        ("features are not standardised by their mean", "return (self.features - mean) * scale, mean, scale", "return self.features * scale, mean, scale"),
        ("rounding is a feature", "varies = deviation > CONSTANT *", "varies = deviation > 0 *"),
        ("drawn voxels count once", "len(where) / max(1, len(kept))", "1.0"),
        ("the scope of the sample is ignored", "label == k if inside is None else (label == k) & inside", "label == k"),
        ("balancing does nothing", "weight = weight / np.bincount(label, weight)[label]", "pass"),
        ("the probe ignores weights", "sample_weight=sample.weight / sample.weight.mean()", "sample_weight=None"),
        ("the probe of two classes is twice as sure", "np.concatenate([-rows, rows]) / 2", "np.concatenate([-rows, rows])"),
        ("an absent class is as likely as any", "np.full(classes, ABSENT)", "np.zeros(classes)"),
        ("a probe judges what it has seen", "for i in (1, 0) if parts[i:]", "for i in (0, 1) if parts[i:]"),
        ("a probe that lacks a class is used", "len(seen) == 2 and seen[0] == seen[1]", "len(seen) == 2"),
        ("features lie between the voxels", "align_corners=True", "align_corners=False"),
        ("a sample is the same for all seeds", 'generator(*run.seed_axes, "evidence", i)', 'generator("evidence", i)'),
    ),
    *_of(
        "methods.trm",
        "methods/test_evidence",
        ("a probe is judged by LEEP", 'if chosen == "probe":', "if False:"),
        ("trm always needs the head", 'self.evidence == "classes"', "True"),
        ("all subjects are judged by one probe", "self.networks[i % len(self.networks)]", "self.networks[0]"),
    ),
    *_of(
        "methods",
        "methods/test_evidence",
        ("a source without a head is taken", "if self.needs_head() and not has_head:", "if False:"),
        ("source data are not asked for", "if self.uses_source_data and not has_data:", "if False:"),
    ),
    *_of(
        "methods",
        "methods/test_interface methods/test_trm methods/test_baselines",
        ("the plain loss ignores cross_entropy", "config.cross_entropy * self", "self"),
        ("the plain loss ignores dice", "config.dice * soft_dice", "soft_dice"),
        ("the plain loss subtracts dice", "config.dice * soft_dice", "-config.dice * soft_dice"),
        ("the penalty is not added", "batch) + self.penalty(run)", "batch)"),
    ),
    *_of(
        "baselines.focal",
        "methods/test_hard_voxels",
        ("focal weighs easy voxels up", "(1 - (-ce).exp())", "((-ce).exp())"),
        ("focal ignores gamma", "** self.p.gamma", "** 2.0"),
    ),
    *_of(
        "baselines.topk",
        "methods/test_hard_voxels",
        ("topk takes the easiest", "sorted=False)", "sorted=False, largest=False)"),
        ("topk ignores its share", "self.p.share * ce.numel()", "0.3 * ce.numel()"),
    ),
    *_of(
        "baselines.forkmerge",
        "methods/test_baselines",
        ("forkmerge takes a source batch with probability lambda", "weight / (1 + weight)", "weight"),
        ("forkmerge never takes a source batch", ">= weight / (1 + weight)", ">= 0"),
        ("forkmerge is silent on validation labels", "uses_validation = True", "uses_validation = False"),
        ("forkmerge is silent on source data", "uses_source_data = True", "uses_source_data = False"),
        ("forkmerge keeps a worse mixture", "if dice > best", "if dice < best"),
        ("forkmerge branches do not start alike", "self.load(run, start)", "pass"),
        ("forkmerge starts from the first branch", "key=lambda b: -parents[b]", "key=lambda b: b"),
    ),
    *_of(
        "baselines.l2_sp",
        "methods/test_baselines",
        ("l2_sp pulls to zero", "- self.start).square()", ").square()"),
        ("l2_sp pulls the head to the source", "in_head(n) and not run.same_task", "in_head(n) and False"),
        ("l2_sp ignores beta", "self.p.beta / 2 * flat(self.new)", "0 * flat(self.new)"),
    ),
    *_of(
        "baselines.delta",
        "methods/test_baselines",
        ("delta compares with itself", "- start[name].float()", "- maps[name].float()"),
        ("delta ignores attention", "(squares.mean(2) * weight)", "squares.mean(2)"),
    ),
    *_of(
        "baselines.bss",
        "methods/test_baselines",
        ("bss shrinks the largest", ")[:k].sum()", ")[-k:].sum()"),
        ("bss looks at the shallowest map", "return min(reversed(", "return max(reversed("),
    ),
    *_of(
        "baselines.stochnorm",
        "methods/test_baselines",
        ("stochnorm ignores p", "< self.p.p", "< 0.5"),
        ("stochnorm draws once", "self.name, run.step)", "self.name)"),
        ("stochnorm swaps its branches", "choice, super().forward(input), moving)", "choice, moving, super().forward(input))"),
    ),
    *_of(
        "baselines.co_tuning",
        "methods/test_baselines",
        ("co_tuning ignores temperature", "(logits / self.p.temperature)", "logits"),
        ("co_tuning ignores strength", "loss + self.p.strength * functional", "loss + functional"),
    ),
    *_of(
        "baselines.auto_rgn",
        "methods/test_baselines",
        ("auto_rgn does not divide by the weights", "return gradients / torch", "return gradients * 0 + torch"),
        ("auto_rgn never scales", 'group["lr"] *= scale', "pass"),
    ),
    *_of(
        "baselines.disagreement",
        "methods/test_baselines",
        ("disagreement ignores gamma", "agree.detach() ** self.p.gamma * ce", "agree.detach() * ce"),
        ("disagreement is rewarded", "self.p.reduce * (1 - agree.mean())", "self.p.reduce * agree.mean()"),
    ),
    *_of(
        "baselines.finetune_longer",
        "methods/test_baselines",
        ("more steps are validated more often", '("steps", "validate_every")', '("steps",)'),
    ),
    *_of(
        "baselines.wise_ft",
        "methods/test_baselines",
        ("wise_ft keeps the worst", "best = max(scores", "best = min(scores"),
        ("wise_ft swaps its ends", "torch.lerp(self.start[k], v, alpha)", "torch.lerp(v, self.start[k], alpha)"),
    ),
    *_of(
        "baselines.lp_ft",
        "methods/test_baselines",
        ("lp_ft never probes", "self.probing = True", "self.probing = False"),
        ("lp_ft probes with moving statistics", "run.network.eval().get", "run.network.get"),
    ),
    *_of(
        "baselines.frozen_encoder",
        "methods/test_baselines",
        ("frozen_encoder trains the encoder", "requires_grad_(False)", "requires_grad_(True)"),
        ("frozen_encoder moves its statistics", "norm.eval()", "pass"),
    ),
    # -------------------------------------------------------------------------------------- LEEP
    *_of(
        "transfer_risk",
        "test_transfer_risk",
        ("the conditional is of the wrong axis", "per_source = joint.sum(0, keepdim=True)", "per_source = joint.sum(1, keepdim=True)"),
        ("the joint is not normalised", "return mass / total", "return mass"),
        ("labelled is all", 'return label > 0', "return None"),
        ("labelled: the background is at risk", "probability[0] = 1", "pass"),
        ("class_balanced is all", 'if self.scope == "class_balanced":', "if False:"),
        ("the brain mask is ignored", "(flat == k) & inside.flatten()", "(flat == k)"),
        ("risk is transferability", "-p.clamp(min=SMALLEST_PROBABILITY).log() if", "p.clamp(min=SMALLEST_PROBABILITY).log() if"),
        ("one_minus is p", "else 1 - p", "else p"),
        ("power is of the wrong base", "(self.base ** risk.double())", "(10.0 ** risk.double())"),
        ("affine forgets its 1", "return 1 + self.strength * risk", "return self.strength * risk"),
        ("max is per image", "scale = max(float(r.max()) for r in risks)", "scale = float(risks[0].max())"),
        ("mean_one counts images, not voxels", "sum(r.numel() for r in risks)", "len(risks)"),
        ("minmax keeps the minimum", "[(r - r.min()) / (r.max()", "[r / (r.max()"),
        ("over foreground is over all", 'if self.over == "foreground":', "if False:"),
        ("the denominator counts background", "foreground = label > 0", "foreground = label >= 0"),
        ("the loss ignores its weights", "weighted = (weight * functional", "weighted = (functional"),
        ("eta squared is not bounded by classes", "between / variance", "variance / variance"),
    ),
    # ------------------------------------------------------------------------------------ patches
    *_of(
        "data.patches",
        "data/test_patches",
        ("patches do not depend on the step", "generator(*self.axes, step)", "generator(*self.axes)"),
        ("patches do not depend on their names", "draws = generator(*self.axes, step)", "draws = generator(step)"),
        ("no patch is centred on foreground", "use = has & (rows < self", "use = has & (rows < 0 * self"),
        ("classes are drawn by their size", "weights = (counts > 0).double()", "weights = counts.double()"),
        ("patches may begin one voxel late", "slack.clamp(min=0))", "slack.clamp(min=0) + 1)"),
        ("labels outside are not background", "label = torch.where(inside, self.store.label[index], 0)", "label = self.store.label[index]"),
        ("flips ignore which axes may be", "flips &= allowed", "pass"),
        ("maps are not cropped with the label", "torch.where(inside, field[index], 0.0)", "torch.where(inside, field[: index.numel()].reshape(index.shape), 0.0)"),
        ("zoom is not about 1", "zoom = 1 + (", "zoom = 1.05 + ("),
        ("rotations are half as large", "math.radians(augment.rotate)", "math.radians(augment.rotate / 2)"),
        ("labels are rounded down", "p.round().long()", "p.long()"),
        ("interpolation swaps its weights", "[(below.long(), 1 - fraction), (below.long() + 1, fraction)]", "[(below.long(), fraction), (below.long() + 1, 1 - fraction)]"),
        ("noise reaches the background", "return torch.where(image == 0, image, changed)", "return changed"),
        ("offsets of subjects are lost", "return index + offsets.reshape(-1, 1, 1, 1), inside", "return index, inside"),
    ),
    # --------------------------------------------------------------------------------- evaluation
    *_of(
        "training.evaluation",
        "training/test_evaluation",
        ("the overlap is fixed", "overlap=evaluation.overlap", "overlap=0.5"),
        ("the windows' batch is fixed", "sw_batch_size=evaluation.batch", "sw_batch_size=4"),
        ("logits are not normalised", "training, evaluation).softmax(1)", "training, evaluation)"),
        ("a missed object has no distance", '"hd95": (0.0, "diagonal")', '"hd95": (0.0, 0.0)'),
        ("both empty is a miss", '"dice": (1.0, 0.0)', '"dice": (0.0, 0.0)'),
        ("hd95 is the largest distance", "percentile=95", "percentile=100"),
        ("the spacing is ignored", "percentile=95, spacing=list(spacing)", "percentile=95"),
        ("the tolerance is ignored", "[tolerance] * ours", "[1.0] * ours"),
        ("classes are compared on the working grid", 'mode="trilinear"', 'mode="nearest"'),
        ("validation takes one subject", "return sum(values) / len(values)", "return values[0]"),
    ),
    # --------------------------------------------------------------------------------------- loop
    *_of(
        "training.loop",
        "training/test_loop",
        ("the best weights are the last", "if score > self.score:", "if True:"),
        ("gradients are not clipped", "if config.clip is not None:", "if False:"),
        ("a later piece starts the schedule again", "config.schedule, first + t, config.steps", "config.schedule, t, config.steps"),
        ("warm-up is ignored", "first + t, config.steps, config.warmup", "first + t, config.steps"),
        ("weight decay is ignored", "lr=o.lr, weight_decay=o.weight_decay)\n", "lr=o.lr)\n"),
        ("passes count nothing", "curves.passes += torch.is_grad_enabled()", "pass"),
        ("the balance is that of Dice", "norms[VOXELS] / total", "norms[DICE] / total"),
        ("the method never hears of the update", "method.before_update(run)", "pass"),
    ),
    # ----------------------------------------------------------------------------------- resuming
    *_of(
        "training.loop",
        "training/test_resuming",
        ("the optimiser begins anew", 'self.optimizer.load_state_dict(state["optimizer"])', "pass"),
        ("a method's groups are not the optimiser's", "self.optimizer.param_groups = groups", "pass"),
        ("the schedule begins anew", 'self.schedule.load_state_dict(state["schedule"])', "pass"),
        ("losses since the last look are lost", 'self.recent = moved(state["recent"], self.run.device)', "pass"),
        ("the best weights so far are lost", 'self.best.score, self.best.state = moved(state["best"], self.run.device)', "pass"),
        ("the curves begin anew", 'vars(self.curves).update(state["curves"])', "pass"),
        ("the steps begin anew", 'self.step = state["step"]', "pass"),
        ("a fit that had ended is done again", "if replay.begin(pace.restore):", "if replay.begin(pace.restore) and False:"),
    ),
    *_of(
        "training.resuming",
        "training/test_resuming",
        ("the network begins anew", 'network.load_state_dict(state["network"])', "pass"),
        ("what is trained is forgotten", "parameter.requires_grad_(name in trained)", "pass"),
        ("modes are forgotten", "module.training = name in training", "pass"),
        ("a method's state is forgotten", 'self.method.restore(run, moved(state["method"], run.device))', "pass"),
        ("diagnostics are forgotten", 'run.diagnostics.update(state["diagnostics"])', "pass"),
        ("draws begin anew", 'torch.set_rng_state(state["generators"]["cpu"])', "pass"),
        ("what a method forgets is not noticed", "if lost:", "if False:"),
        ("a method that tells nothing is saved", "if own and type(self.method).state is Method.state:", "if False:"),
        ("fits that ended are not kept", "self.ended.append(copied(self.held.state()))", "self.held.state()"),
        ("fits that were put back are not kept", "        if had_ended:\n            self.ended.append(state)\n", ""),
        ("a savepoint goes on changing", "tensor.detach().cpu().clone()", "tensor.detach().cpu()"),
    ),
    *_of(
        "training.leaves",
        "training/test_resuming",
        ("changes of tensors are not seen", "return id(leaf), leaf._version, leaf.requires_grad", "return id(leaf), leaf.requires_grad"),
        ("an iterator never moves", "next(_UNKNOWN)", "0"),
        ("modules have no attributes of their own", 'if not k.startswith("_")}', "if False}"),
    ),
    *_of(
        "baselines.auto_rgn",
        "training/test_resuming",
        ("auto_rgn forgets its scales and norms", 'self.scales, self.seen = state["scales"], state["seen"]', "pass"),
    ),
    *_of(
        "baselines.source_head",
        "training/test_resuming",
        ("source heads begin anew", 'self.source_head.load_state_dict(state["source_head"])', "pass"),
    ),
    *_of(
        "runs.savepoints",
        "runs/test_savepoints",
        ("savepoints take any share of the time", "max(self.pause, (now - start) * (1 - SHARE) / SHARE)", "self.pause"),
        ("a stop is not heard", "        if asked:\n            raise signals.Stopped\n", ""),
        ("a stop saves nothing", "(asked or time.monotonic() >= self.due)", "time.monotonic() >= self.due"),
        ("another PyTorch goes on", "if saved.torch != torch.__version__:", "if False:"),
        ("earlier sittings took no time", "saved.resumed + 1, saved.seconds", "saved.resumed + 1, 0.0"),
        ("infinity is written as JSON", "value if math.isfinite(value) else", "value if True else"),
        ("a full disk ends a training", "except (OSError, Unfit) as error:", "except Unfit as error:"),
    ),
    # ------------------------------------------------------------------------------------- splits
    *_of(
        "data.splits",
        "data/test_splits",
        ("splits do not depend on the seed", '"split", config.seed, drawn_by', '"split", 0, drawn_by'),
        ("resampling is ignored", 'seed if config.design == "resampled" else "shared"', '"shared"'),
        ("every seed trains on set 0", "trains.pop(own)", "trains.pop(0)"),
        ("sets of other seeds are not counted", "- sets * target.train", "- target.train"),
        ("scans of a patient are divided", "by_patient[subject.patient].append", "by_patient[subject.id].append"),
        ("institutions are ignored", 'institution if stratify else ""', 'institution if False else ""'),
        ("leaks of content pass", 'f"content {content}")', 'f"content {held.subject}")'),
        ("leaks of patients pass", "if other_part != part:", "if False:"),
        ("one shot less", "self.train_patients[:shots]", "self.train_patients[: shots - 1]"),
        ("a share of the source is rounded down", "round(config.source * total)", "int(config.source * total)"),
        ("a source of its own validates on all that is left", "min(config.target.val, total - training)", "total - training"),
        ("a source of its own trains on one patient fewer", "_blocks(patients, [training, validating])", "_blocks(patients, [training - 1, validating])"),
        ("patients are set aside for no source", "_source_size(total, config) if with_source else 0", "_source_size(total, config)"),
    ),
    *_of(
        "data.splits",
        "data/test_divisions",
        ("a patient's name is the same in every data set", '((held.origin, f"patient', '(("", f"patient'),
    ),
    *_of(
        "data.divisions",
        "data/test_divisions",
        ("modalities of the same patients are split apart", "return ours == theirs", "return False"),
        ("other sites are the same patients", "set(d.institutions), set(d.except", "set(), set(d.except"),
        ("sites that are left out are the same patients", "set(d.except_institutions))", "set())"),
        ("a source keeps the target's patients", "if subject.patient not in patients", ""),
        ("names of another data set are left out", "if cohorts[source.data].origin != cohorts[target.data].origin:", "if False:"),
        ("leaks are not looked for", "    refuse_leakage(_held(", "    (_held("),
        ("leaks between training sets pass", "enumerate(division.target.others, 1)", "enumerate((), 1)"),
        ("leaks into the source's validation pass", ".held((*train, *val))", ".held(train)"),
        ("leaks from a source of its own pass", "if source is not None and not shares:", "if False:"),
        ("what one preparation lacks is in a part", "pool = [s for s in pool if s.id in usable]", "pass"),
        ("a source that shares trains on the target's part", "parts.append((own.source, own.val))", "parts.append((own.train, own.val))"),
    ),
    *_of(
        "data.cohorts",
        "data/test_divisions",
        ("one folder under two names is two", "str(self.dataset.root.resolve())", "str(self.dataset.root)"),
        ("the site left out is among the others", "and s.institution not in unwanted", ""),
        ("every site is the domain's", "(not wanted or s.institution in wanted)", "True"),
    ),
    *_of(
        "protocol.transfers",
        "protocol/test_transfers",
        ("others are all", '"except_institutions": domain.institutions', '"except_institutions": ()'),
        ("a checkpoint is a target of all pairs", " if not isinstance(way[1][1], CheckpointConfig)]", "]"),
        ("a checkpoint can be in between", "for source in sources[1:])", "for source in ())"),
        ("shots may exceed the training set", "if max(shots) > most:", "if False:"),
        ("shots are all the same", "shots=n, way=names", "shots=most, way=names"),
        ("a domain without images has none in play", "for m in d.images or shared}", "for m in d.images or ()}"),
        ("data.modalities are every data set's", " if data.dataset == protocol.data.dataset else None", ""),
        ("another label map of the same name passes", "if dataset.label_maps.get(name, found) != found:", "if False:"),
        ("data.label_maps are every data set's", "if not domains or (data.dataset, data.root) == (shared.dataset, shared.root):", "if True:"),
        ("labels of a domain are the protocol's", "domain.labels if domain.labels is not None else data.labels", "data.labels"),
        ("an institution need not exist", '_require("institution", institutions, known,', '_require("institution", (), known,'),
    ),
    # ----------------------------------------------------------------------------------- elsewhere
    *_of(
        "importing",
        "test_domains::TestCheckpoints",
        ("another network than the protocol's is taken", "if config.network is not None and config.network != protocol.network:", "if False:"),
        ("a checkpoint's sha256 is not asked for", "checkpoints.read(path, config.sha256)", "checkpoints.read(path)"),
        ("what no file held counts as its weights", "for n, t in state.items() if n not in initial}", "for n, t in state.items()}"),
        ("a damaged import is used", "if found.done:", "if file.exists():"),
        ("an import never has a head", "config.partial, imported.has_head", "config.partial, False"),
        ("rename is ignored", "parts, config.rename, config.partial", "parts, (), config.partial"),
        ("an import is always partial", "config.rename, config.partial, imported", "config.rename, True, imported"),
        ("an import's name ignores rename", "        rename=config.rename,\n", ""),
    ),
    *_of(
        "checkpoints.fitting",
        "checkpoints/test_fitting",
        ("a tensor of another shape is taken", "if tensor.shape != place.shape:", "if False:"),
        ("a tensor of whole numbers is taken", "if tensor.is_floating_point() != place.is_floating_point():", "if False:"),
        ("NaN is a weight", "if not bool(tensor.isfinite().all()):", "if False:"),
        ("a head comes along uninvited", "if parts.in_head(now) and not with_head:", "if False:"),
        ("a head need not come along", "    if with_head and head:", "    if False:"),
        ("a head of other classes is left out without a word", "if reason and with_head and parts.in_head(now):", "if False:"),
        ("tensors are left out without a word", "((odd or missing) and not partial)", "(missing and not partial)"),
        ("initial values stay without a word", "((odd or missing) and not partial)", "(odd and not partial)"),
        ("a tensor may have two values", "not torch.equal(state[alias], value)", "False"),
        ("the other name of a tensor gets nothing", "reached.add(alias)", "reached.add(now)"),
        ("rules forget what the one before has done", "rule.sub(replacement, now)", "rule.sub(replacement, name)"),
        ("two tensors may become one", "        if now in taken:", "        if False:"),
        ("heads for deep supervision do not fit", "COARSE_HEAD if COARSE_HEADS.match(now) else UNKNOWN", "UNKNOWN"),
    ),
    *_of(
        "networks",
        "test_networks",
        ("adapted channels are not rescaled", "chosen * (source_channels / target_channels)", "chosen"),
        ("the first channel is repeated alone", "[j % source_channels for j in range(target_channels)]", "[0 for j in range(target_channels)]"),
        ("mean is repeat", 'if way == "mean":', "if False:"),
        ("what was adapted is not told", '"adapted": list(adapted)', '"adapted": []'),
        ("channels that are no axis are adapted", "if one[1:2] != (source_channels,) or other", "if False and other"),
        ("every source may lack tensors", "    if partial:\n", "    if True:\n"),
    ),
    *_of(
        "runs.compute",
        "test_domains::TestDatasets test_domains::TestCheckpoints",
        ("the source keeps its number of channels", "if config.channels is None:", "if True:"),
        ("adapted layers go unnamed", "return Source(network, adapted, names)", "return Source(network, adapted)"),
        ("data of other channels can be trained on", "len(source.domain.images) == len(config.domain.images)", "True"),
        ("an import has all tensors", 'config.source.kind == "checkpoint"\n    loading', "False\n    loading"),
    ),
    *_of(
        "runs.plan",
        "test_domains",
        ("a method is not asked about its source", "arm.method.check_source(start.config.has_head, compute.has_data(config))", "pass"),
        ("a head of other classes comes along", "if same_task and len(theirs.classes) != len(ours.classes):", "if False:"),
        ("maps of one name in two data sets are one task", "source.cohort.origin == cohort.origin and theirs", "theirs"),
        ("a chain starts anew", '"finetune" if source else "scratch"', '"scratch"'),
    ),
    *_of(
        "datasets.grid",
        "datasets/test_grid",
        ("a volume is not turned back", "return apply_orientation(whole, back)", "return whole"),
        ("a volume is turned the other way", "ornt_transform(np.array(CANONICAL), np.array(self.orientation))", "np.array(self.orientation)"),
        ("a volume lies at the first voxel", "whole[self._box] = volume", "whole[tuple(slice(n) for n in volume.shape)] = volume"),
        ("a file's volume is cut out unturned", "apply_orientation(array, np.array(self.orientation))", "array"),
        ("any shape lies on the grid", "if array.shape != tuple(self.shape):", "if False:"),
    ),
    # --------------------------------------------------------------------------------- statistics
    *_of(
        "analysis.tests",
        "analysis/test_tests",
        ("zeros are dropped before ranking", 'zero_method="pratt"', 'zero_method="wilcox"'),
        ("ranks ignore the size of differences", "stats.rankdata(np.abs(d))", "np.ones(len(d))"),
        ("effect sizes have the other sign", "np.sign(changed)", "-np.sign(changed)"),
        ("zeros have a part in the effect size", "changed = d[d != 0]", "changed = d"),
        ("no correction for many networks", "= family.holm(p)", "= p"),
        ("ranks of two transfers", "MIN_TRANSFERS = 5", "MIN_TRANSFERS = 2"),
    ),
    *_of(
        "analysis.table",
        "analysis/test_table",
        ("a missing class is left out of the mean", "np.where(used[None, :, None, None, :], full, 0.0)", "np.nan_to_num(full)"),
        ("duplicated rows pass", "table[table.duplicated(", "table[0 * table.duplicated("),
        ("the table is in shares", "SCALE[metric] * value", "value"),
    ),
    *_of(
        "analysis.table",
        "analysis/test_tests",
        ("a lower distance is worse", '"hd95": False', '"hd95": True'),
    ),
    *_of(
        "analysis.generalised",
        "analysis/test_generalised",
        ("subjects are known exactly", "(a * of_a)", "(a + 0 * of_a)"),
        ("seeds are known exactly", "np.maximum(b * of_b - e, 0.0)", "np.maximum(b + 0 * of_b - e, 0.0)"),
        ("the residual is forgotten", "np.maximum(b * of_b - e, 0.0)", "np.maximum(b * of_b, 0.0)"),
        ("the inflation is forgotten", "seeds = squares.inflation * ", "seeds = "),
        ("p is one-sided", "special.erfc(z / np.sqrt(2))", "special.erfc(z / np.sqrt(2)) / 2"),
        ("the quantiles crowd nowhere", "t**2 * (3 - 2 * t), freedom), weights * 3 * t * (1 - t)", "t, freedom), weights / 2"),
    ),
    *_of(
        "analysis.intervals",
        "analysis/test_intervals",
        ("relative gains are of the wrong method", "100 * mean / of_versus", "100 * mean / (of_versus + mean)"),
        ("seeds have no part in the interval", "b = (score.sum(axis=0) ** 2)", "b = 0 * (score.sum(axis=0) ** 2)"),
        ("intervals are half as wide", "half = float(generalised.half_width(squares, level))", "half = 0.5 * float(generalised.half_width(squares, level))"),
        ("transfers weigh by their subjects", "(centred / (count * len(values)))", "(centred / count.mean())"),
        ("degrees of freedom ignore blocks", "n - int(block.max()) - 1, m - 1", "n - 1, m - 1"),
        ("spread over seeds divides by n", '"sd": means.std(ddof=1)', '"sd": means.std()'),
        ("two seeds make an interval", "MIN_SEEDS = 3", "MIN_SEEDS = 2"),
        ("resampled seeds have the residual of crossed ones", "(score**2).sum(), f_a", "0.0, f_a"),
        ("splits do not overlap", "1 + m * design.ratio", "1.0"),
        ("the overlap forgets the source", "max(source, train) / patients", "train / patients"),
        ("the overlap forgets the test subjects", "max(test / (source + train), share / (1 - share))", "share / (1 - share)"),
        ("cells that are missing count as whole", "1 if whole.all() else 50", "1"),
        ("a ratio's interval forgets its denominator", "mean_squares(gain - ratio * base, design)", "mean_squares(gain, design)"),
        ("no interval is no transfer", ".where(low.notna(), None)", ""),
    ),
    *_of(
        "analysis.family",
        "analysis/test_family",
        ("the family is not corrected", "np.arange(len(p), 0, -1)", "1.0"),
        ("a larger p is corrected to a smaller one", "np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))", "p[order] * np.arange(len(p), 0, -1)"),
        ("intervals are each on their own", "1 - ALPHA / max(k - rejected, 1)", "1 - ALPHA"),
        ("intervals forget what was rejected", "ALPHA / max(k - rejected, 1)", "ALPHA / k"),
        ("three seeds are marked", "return 5 if k <= 4 else 8", "return 3"),
        ("a mark is always good", "np.where(rows[\"gain\"] > 0, BETTER, WORSE)", "np.where(rows[\"gain\"] > -99, BETTER, WORSE)"),
        ("what is not tested leaves the family", "k = len(pairs)", "k = int(overall(1 - ALPHA, relative=False)[\"p\"].notna().sum())"),
    ),
    *_of(
        "analysis.power",
        "analysis/test_power",
        ("power forgets the seeds", "self.seed**2 / m + e", "0 * self.seed + e"),
        ("power forgets how widths vary", "np.meshgrid(expected.a / over_a, expected.b / over_b", "np.meshgrid(0 * over_a + expected.a, 0 * over_b + expected.b"),
        ("power looks at one side of the wrong sign", "self.beyond(self.half - gain)", "self.beyond(self.half + gain)"),
        ("a spread keeps the residual of its means", "np.sqrt(e * n * m)", "np.sqrt(e)"),
    ),
    *_of(
        "analysis.verdict",
        "analysis/test_verdict",
        ("an interval that touches 0 lies above it", "(low > 0) & reaches, low > 0, reaches", "(low >= 0) & reaches, low >= 0, reaches"),
        ("contradicted is not reproduced", "[high < 0,", "[high < low,"),
        ("every gain above 0 reproduces the claim", "[high < 0, (low > 0) & reaches", "[high < 0, low > 0"),
        ("any gain above 0 makes a claim stand", 'if not row["low"] >= row["claimed"] / 2', 'if not row["low"] > 0'),
        ("controls need not be beaten", "if not survives.get(name)", "if False"),
        ("two seeds are a verdict", "main[\"n_seeds\"] < (needed :=", "0 > (needed :="),
        ("the confusion table forgets the claim's other reading", "max(claimed) / 2", "claimed[-1] / 2"),
    ),
    *_of(
        "analysis.voxels",
        "analysis/test_negative_transfer",
        ("lost is won", "(scratch == label) & (transfer != label)", "(scratch != label) & (transfer == label)"),
        ("the curve is of the wrong side", "np.interp(FALSE_POSITIVE_RATES, false, true)", "np.interp(FALSE_POSITIVE_RATES, true, false)"),
    ),
    *_of(
        "analysis.negative_transfer",
        "analysis/test_negative_transfer",
        ("a gap is a gain", "[(SCRATCH, ", "[(REFERENCE, "),
    ),
    *_of(
        "analysis.costs",
        "analysis/test_costs",
        ("a record without passes took none", "if record.passes]", "]"),
    ),
    # ------------------------------------------------------------------------------------ run ids
    *_of(
        "runs.config",
        "runs/test_config",
        ("a name ignores data.volume", 'digest_of(self.model_dump(mode="json"))', 'digest_of(self.model_dump(mode="json", exclude={"volume"}))'),
    ),
    *_of(
        "runs.plan",
        "runs/test_config",
        ("a configuration ignores data.volume", "volume=domain.data.volume,", "volume=type(domain.data.volume)(),"),
        ("a configuration ignores evaluation", "evaluation=self.protocol.evaluation,", "evaluation=type(self.protocol.evaluation)(),"),
        ("a name ignores the device", '"cuda" if self.device.type == "cuda" else "cpu"', '"cpu"'),
        ("precision is that of a CPU", "precision = resolved_precision(self.device, training.precision, self.bf16)", 'precision = resolved_precision(torch.device("cpu"), training.precision, False)'),
        ("a name ignores the code", "code=code_fingerprint(*NUMERIC, *modules)", 'code=""'),
        ("scratch sees the source", "source if arm.method.transfers else None", "source"),
        ("a table ignores the device", "self.data, self.device.type, precision, code)", "self.data, code)"),
        ("metrics are not part of a run", 'config.model_copy(update={"metrics": metrics})', "config"),
        ("a control trains like the rest", "method.adjusted(training)", "training"),
        ("the validation subjects do not join", "subjects.train + subjects.val", "subjects.train"),
        ("the training of a method is the protocol's", "settings.training.applied(self.protocol.training.target)", "self.protocol.training.target"),
    ),
    *_of(
        "sweep.proposals",
        "sweep/test_proposals",
        ("the seed of a proposal is ignored", "small = seed % 2**32", "small = 0"),
        ("batch mates are ignored", "for values in mates:", "for values in ():"),
        ("a failed trial is a result", '"FAIL" if trial.score is None else "COMPLETE"', '"COMPLETE"'),
        ("what does not matter is drawn", "if space.matters(dimension, own):", "if True:"),
    ),
    *_of(
        "sweep.driver",
        "sweep/test_sweep",
        ("a trial is tested", "tested=False,\n            folds", "tested=True,\n            folds"),
    ),
    *_of(
        "runs.plan",
        "sweep/test_sweep",
        ("a trial trains on the subjects that score it", "validation_in_training_set and self.tested", "validation_in_training_set"),
    ),
    *_of(
        "runs.compute",
        "runs/test_compute",
        ("initial weights ignore the seed", 'seed_of("initial weights", config.kind, config.seed)', 'seed_of("initial weights", config.kind)'),
        ("initial weights ignore the kind", 'seed_of("initial weights", config.kind, config.seed)', 'seed_of("initial weights", config.seed)'),
        ("dropout is not paired", 'torch.manual_seed(seed_of("training", *run.seed_axes))', "pass"),
        ("the new head takes the source's weights", "run.parts, run.same_task, partial", "run.parts, False, partial"),
        ("patches ignore the seed", "len(training_set), config.seed)", "len(training_set))"),
    ),
    *_of(
        "report.tracking",
        "report/test_postgres",
        ("a PostgreSQL is made by two at once", "pg_advisory_xact_lock(", "abs("),
        ("two folders share a parent", 'place = "" if self.own else', 'place = "" if True else'),
    ),
    *_of(
        "report.settled",
        "report/test_settled",
        ("an edited report is taken for whole", "digest_of_file(p) for p in paths", "0 for p in paths"),
        ("a report of another version stays", "digest_of(package_digest(), files, tracked)", "digest_of(files, tracked)"),
        ("what is not tracked is done", "digest_of(package_digest(), files, tracked)", "digest_of(package_digest(), files)"),
    ),
    *_of(
        "report.comparison",
        "report/test_comparison",
        ("ends of a difference are swapped", "value - math.hypot(b - b1, a2 - a)", "value - math.hypot(b2 - b, a - a1)"),
        ("whatever differs agrees", "AGREE if low <= 0 <= high else DIFFER", "AGREE"),
        ("other transfers are compared", "same and alike)", "same)"),
    ),
    *_of(
        "report.evidence",
        "report/test_words",
        ("scratch is the best method", "rows = rows if others.empty else others", "rows = rows"),
    ),
    *_of(
        "cluster.certificates",
        "cluster/test_certificates",
        ("others may write to the folder", "_refuse_others(cluster.resolve(), 0o022)", "_refuse_others(cluster.resolve(), 0)"),
        ("others may read a key", "_refuse_others(file, 0o077)", "_refuse_others(file, 0)"),
        ("links are followed", "status = path.lstat()", "status = path.stat()"),
        ("old certificates stay", "datetime.now(UTC) > LEFT", "datetime.now(UTC) > -LEFT"),
        ("the certificate is not signed by its authority", "builder.sign(authority,", "builder.sign(own,"),
    ),
    *_of(
        "cluster.scripts",
        "cluster/test_scripts",
        ("the folder is not quoted", "return shlex.join(map(str, words))", 'return " ".join(map(str, words))'),
        ("a job without its GPU trains on the CPU", "echo 'this job was given no GPU' >&2", "start env CUDA_VISIBLE_DEVICES= true"),
        ("what was cancelled is queued again", '"$told" = USR1', '-n "$told"'),
        ("workers are not told", "trap 'told=USR1; pass USR1' USR1", "trap 'told=USR1' USR1"),
        ("all GPUs for everyone", 'start env CUDA_VISIBLE_DEVICES="$gpu"', "start env"),
        ("it is queued again without a scheduler", " && [ -e {scheduler_file} ]", ""),
        ("the port is not encrypted", '"--protocol", "tls"', '"--protocol", "tcp"'),
    ),
    *_of(
        "cluster.queues",
        "cluster/test_scripts",
        ("workers do not wait for the scheduler", '"--dependency=after:{}"', '"--nice=0"'),
        ("days are not counted", "(24 * days + hours)", "hours"),
    ),
]  # fmt: skip

# Survivors that no test can kill, and why.
EQUIVALENT: dict[str, str] = {}
