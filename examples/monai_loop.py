"""The risk-weighted loss in a plain MONAI loop, on the phantom: monai_loop.py [FOLDER]"""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from monai import transforms as mt
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.utils import set_determinism

from trm_bench.phantom import write_phantom
from trm_bench.transfer_risk import LeepStatistics, RiskMap, RiskWeightedLoss

set_determinism(0)
folder = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())
root = write_phantom("fets2021", folder, subjects=6, spacing=6.0)
keys = ["t1", "flair", "seg"]
load = mt.Compose([
    mt.LoadImaged(keys), mt.EnsureChannelFirstd(keys), mt.EnsureTyped(keys, track_meta=False),
    mt.NormalizeIntensityd(keys[:2], nonzero=True), mt.SpatialPadd(keys, (48, 48, 32)),
    mt.Lambdad("seg", lambda seg: (seg > 0).float()),
])  # fmt: skip
folders = sorted(root.glob("FeTS*"))
subjects = [load({k: f / f"{f.name}_{k}.nii.gz" for k in keys}) for f in folders]


def train(network, modality, cases, loss):
    crop = mt.RandCropByPosNegLabeld(list(cases[0]), "seg", (32, 32, 24), neg=0, num_samples=1)
    optimizer, values = torch.optim.AdamW(network.parameters(), lr=1e-3), []
    for case in 40 // len(cases) * cases:
        (patch,) = crop(case)
        values.append(loss(network(patch[modality][None]), patch))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    first, last = sum(values[:10]) / 10, sum(values[-10:]) / 10
    print(f"{modality}: mean loss {first:.3f} at first, {last:.3f} at last")


# A source network, pre-trained with the usual loss.
source, plain = UNet(3, 1, 2, (8, 16, 32), (2, 2)), DiceCELoss(to_onehot_y=True, softmax=True)
train(source, "t1", subjects[:4], lambda logits, p: plain(logits, p["seg"][None]))

# One pass of the frozen source over the target training set, then a weight map for each label.
target, statistics = subjects[4:], LeepStatistics(target_classes=2, source_classes=2)
with torch.no_grad():
    evidence = [(source.eval()(s["flair"][None]).softmax(1), s["seg"].long()) for s in target]
for theta, label in evidence:
    statistics.update(theta, label)
risk_map = RiskMap(statistics.conditional(), risk="one_minus", weight="power", base=10)
for i, weight in enumerate(risk_map.weights([risk_map(*both) for both in evidence])):
    target[i]["weight"] = weight.float()

# Fine-tuning, with the weights cropped as the label is.
loss, network = RiskWeightedLoss(with_dice=1.0), copy.deepcopy(source).train()
train(network, "flair", target, lambda logits, p: loss(logits, p["seg"], p["weight"]))
