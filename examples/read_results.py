"""Reads a results folder with pandas: read_results.py [FOLDER]

Cells begin with `# %%`: run them one by one in an editor, or the whole file. Without a folder it
reads the reference results of this repository; a folder of yours is `results/PROTOCOL`.
"""

# %% The scores: a row for each test subject, class and metric
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

reference = Path(__file__).parents[1] / "results/reference/hippocampus_cross_task"
folder = Path(sys.argv[1]) if sys.argv[1:] else reference
(file,) = [*folder.glob("metrics.csv"), *folder.glob("metrics.csv.gz")][:1]
scores = pd.read_csv(file)
print(scores.head(3).to_string(index=False), "\n")

# %% Mean Dice by method: classes first, then subjects, then seeds, then transfers
dice = scores[scores.metric == "dice"]
cells = dice.groupby(["transfer", "method", "seed", "subject"]).value.mean()
of_seeds = cells.groupby(["transfer", "method", "seed"]).mean()
means = of_seeds.groupby(["transfer", "method"]).mean().groupby("method").mean()
print(means.sort_values(ascending=False).round(2).to_string(), "\n")

# %% Gains over fine-tuning, paired: the same transfer, seed and subject
wide = cells.unstack("method")
gains = wide.sub(wide["finetune"], axis=0).drop(columns="finetune")
table = pd.DataFrame({
    "gain [points]": gains.groupby("transfer").mean().mean(),
    "better in [% of pairs]": 100 * (gains > 0).mean(),
})  # fmt: skip
print(table.sort_values("gain [points]").round(2).to_string(), "\n")

# %% The intervals are in comparisons.csv, which says how each was computed
comparisons = pd.read_csv(folder / "comparisons.csv")
over = comparisons.query("metric == 'dice' and transfer == 'mean' and versus == 'finetune'")
print(over[["method", "gain", "low", "high", "n_seeds"]].round(2).to_string(index=False), "\n")

# %% A chart: the gain of every subject, mean over seeds, and the mean of all
order = table["gain [points]"].sort_values().index
of_subjects = gains.groupby(["transfer", "subject"]).mean()
figure, ax = plt.subplots(figsize=(7, 0.35 * len(order) + 1.2), layout="constrained")
for y, method in enumerate(order):
    values = of_subjects[method].dropna()
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
    ax.plot(values, y + jitter, ".", color="0.7", markersize=4)
ax.plot(table.loc[order, "gain [points]"], range(len(order)), "D", color="C0")
ax.axvline(0, color="0.3", linewidth=1)
ax.set(yticks=range(len(order)), yticklabels=order, xlabel="gain over finetune [Dice points]")
ax.set_title("Every test subject, and the mean")
picture = Path("read_results.png")
figure.savefig(picture, dpi=150)
print(picture.resolve())
