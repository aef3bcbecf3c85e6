"""bf16 on a CPU, which a protocol may choose for speed: what it changes is less than seeds do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy

from trm_bench import pipeline
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.store import read_results

SEEDS = list(range(4))


@pytest.mark.slow
def test_dice_agrees_between_precisions_within_the_spread_of_seeds(
    toy_data: Path, tmp_path: Path
) -> None:
    dice = {}
    for precision in ("fp32", "bf16"):
        training = toy.protocol(toy_data)["training"]["target"] | {
            "steps": 60,
            "precision": precision,
        }
        path = toy.write_protocol(
            tmp_path / f"{precision}.yaml",
            toy_data,
            seeds=SEEDS,
            methods=["finetune", "trm"],
            training={"source": training, "target": training},
        )
        folder = ResultsFolder(tmp_path / precision)
        pipeline.run(pipeline.load(str(path)), folder.path, jobs=1, pages=False)
        rows = [
            (cell.method, cell.seed, region["dice"])
            for cell, record in read_results(folder.protocol("toy")).finished()
            for regions in record.metrics.values()
            for region in regions.values()
        ]
        frame = pd.DataFrame(rows, columns=["method", "seed", "dice"])
        dice[precision] = frame.groupby(["method", "seed"]).dice.mean()
    full, half = dice["fp32"].unstack(), dice["bf16"].unstack()
    assert full.mean(axis=None) > 0.5, "nothing was learned, so that anything would agree"
    assert not np.array_equal(full, half), "bf16 was not used"
    spread = full.std(axis=1).mean()
    assert np.abs((half - full).mean(axis=1)).max() < spread
