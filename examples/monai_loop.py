"""The risk-weighted loss in a plain MONAI loop, on the phantom: monai_loop.py [FOLDER]"""

import copy
import sys
import tempfile
from pathlib import Path

import matplotlib
import torch
from monai import transforms as mt
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.utils import set_determinism

from trm_bench.phantom import write_phantom
from trm_bench.transfer_risk import LeepStatistics, RiskMap, RiskWeightedLoss

matplotlib.use("Agg")
from matplotlib import pyplot as plt

set_determinism(0)
folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
root = write_phantom("fets2021", folder, subjects=8, spacing=6.0)
keys, patch = ["t2", "flair", "seg"], (32, 32, 24)
load = mt.Compose([
    mt.LoadImaged(keys), mt.EnsureChannelFirstd(keys), mt.EnsureTyped(keys, track_meta=False),
    mt.NormalizeIntensityd(keys[:2], nonzero=True), mt.SpatialPadd(keys, (48, 48, 32)),
    mt.Lambdad("seg", lambda seg: (seg > 0).float()),
])  # fmt: skip
folders = sorted(root.glob("FeTS*"))
subjects = [load({k: f / f"{f.name}_{k}.nii.gz" for k in keys}) for f in folders]
target_set, source_set, test_set = subjects[:2], subjects[2:6], subjects[6:]


def train(network, modality, cases, loss, steps, lr):
    crop = mt.RandCropByPosNegLabeld(list(cases[0]), "seg", patch, neg=0.3, num_samples=1)
    optimizer, values = torch.optim.AdamW(network.parameters(), lr=lr), []
    for case in steps // len(cases) * cases:
        (piece,) = crop(case)
        values.append(loss(network(piece[modality][None]), piece))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    first, last = sum(values[:10]) / 10, sum(values[-10:]) / 10
    print(f"{modality}: mean loss {first:.3f} at first, {last:.3f} at last")


@torch.no_grad()
def predict(network, case):
    return sliding_window_inference(case["flair"][None], patch, 4, network.eval()).softmax(1)


def dice(network):
    metric = DiceMetric(include_background=False)
    for case in test_set:
        metric(predict(network, case).argmax(1, keepdim=True), case["seg"][None])
    return 100 * metric.aggregate().item()


# A source network, pre-trained with the usual loss.
source, plain = UNet(3, 1, 2, (8, 16, 32), (2, 2)), DiceCELoss(to_onehot_y=True, softmax=True)
train(source, "t2", source_set, lambda logits, p: plain(logits, p["seg"][None]), 100, 4e-3)

# One pass of the frozen source over the target training set, then a weight map for each label.
statistics = LeepStatistics(target_classes=2, source_classes=2)
evidence = [(predict(source, case), case["seg"].long()) for case in target_set]
for theta, label in evidence:
    statistics.update(theta, label)
risk_map = RiskMap(statistics.conditional(), risk="one_minus", weight="power", base=3)
for i, weight in enumerate(risk_map.weights([risk_map(*both) for both in evidence])):
    target_set[i]["weight"] = weight.float()

# Fine-tuning, with the weights cropped as the label is.
loss, network = RiskWeightedLoss("weights", with_dice=1.0), copy.deepcopy(source).train()
train(network, "flair", target_set, lambda x, p: loss(x, p["seg"], p["weight"]), 80, 2e-3)
print(f"Dice on FLAIR, {len(test_set)} test subjects: {dice(source):.1f} % before, ", end="")
print(f"{dice(network):.1f} % after")

# A test subject, in the slice with most of its tumour.
case, before, after = test_set[0], predict(source, test_set[0]), predict(network, test_set[0])
z = int(case["seg"].sum((0, 1, 2)).argmax())
risk = risk_map(before, case["seg"].long())
panels = {"FLAIR": case["flair"], "label": case["seg"], "risk": risk,
          "before": before.argmax(1), "after": after.argmax(1)}  # fmt: skip
figure, axes = plt.subplots(1, len(panels), figsize=(10, 2.6), layout="constrained")
for ax, (title, volume) in zip(axes, panels.items(), strict=True):
    image = volume[0, 8:40, 8:40, z].T  # without the padding
    ax.imshow(image, cmap="inferno" if title == "risk" else "gray", origin="lower")
    ax.set(title=title, xticks=[], yticks=[])
figure.savefig(folder / "monai_loop.png", dpi=150)
print(folder / "monai_loop.png")
