"""The risk-weighted loss in a plain MONAI loop, T1 to FLAIR on the phantom: python examples/monai_loop.py [FOLDER]"""

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
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
root = write_phantom("fets2021", folder, subjects=6, spacing=6.0)
keys = ["t1", "flair", "seg"]
load = mt.Compose([
    mt.LoadImaged(keys), mt.EnsureChannelFirstd(keys), mt.EnsureTyped(keys, track_meta=False),
    mt.NormalizeIntensityd(keys[:2], nonzero=True), mt.SpatialPadd(keys, (48, 48, 32)),
    mt.Lambdad("seg", lambda seg: (seg > 0).float()),
])  # fmt: skip
names = sorted(path.name for path in root.iterdir() if path.is_dir())
subjects = [load({k: root / n / f"{n}_{k}.nii.gz" for k in keys}) for n in names]


def train(network, modality, cases, loss, steps=40):
    crop = mt.RandCropByPosNegLabeld(list(cases[0]), "seg", (32, 32, 24), neg=0, num_samples=1)
    optimizer, values = torch.optim.AdamW(network.parameters(), lr=1e-3), []
    for step in range(steps):
        (patch,) = crop(cases[step % len(cases)])
        optimizer.zero_grad()
        value = loss(network(patch[modality][None]), patch)
        value.backward()
        optimizer.step()
        values.append(value.item())
    print(f"{modality}: mean loss {sum(values[:10]) / 10:.3f} at first, {sum(values[-10:]) / 10:.3f} at last")


# A source network, pre-trained with the usual loss.
plain, source = DiceCELoss(to_onehot_y=True, softmax=True), UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2))
train(source, "t1", subjects[:4], lambda logits, patch: plain(logits, patch["seg"][None]))

# One pass of the frozen source over the target training set, then one weight map beside every label.
target, statistics = subjects[4:], LeepStatistics(target_classes=2, source_classes=2)
with torch.no_grad():
    evidence = [(source.eval()(s["flair"][None]).softmax(1), s["seg"].long()) for s in target]
for theta, label in evidence:
    statistics.update(theta, label)
risk_map = RiskMap(statistics.conditional(), risk="one_minus", weight="power", base=10)
for subject, weight in zip(target, risk_map.weights([risk_map(*e) for e in evidence]), strict=True):
    subject["weight"] = weight.float()

# Fine-tuning, with the weights cropped as the label is.
network, weighted = UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2)), RiskWeightedLoss(with_dice=1.0)
network.load_state_dict(source.state_dict())
train(network, "flair", target, lambda logits, patch: weighted(logits, patch["seg"], patch["weight"]))
