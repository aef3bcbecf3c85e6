"""The risk-weighted loss in a plain MONAI training loop: T1 to FLAIR on the phantom, on a CPU in a minute.

python examples/monai_loop.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)

from trm_bench.phantom import write_phantom
from trm_bench.transfer_risk import LeepStatistics, RiskMap, RiskWeightedLoss

torch.manual_seed(0)
root = write_phantom(
    "fets2021", Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()), subjects=6, spacing=6.0
)
names = sorted(path.name for path in root.iterdir() if path.is_dir())
keys = ["t1", "flair", "seg"]
load = Compose([
    LoadImaged(keys), EnsureChannelFirstd(keys), NormalizeIntensityd(["t1", "flair"], nonzero=True),
    SpatialPadd(keys, (48, 48, 32)),
])  # fmt: skip
subjects = [load({k: root / n / f"{n}_{k}.nii.gz" for k in keys}) for n in names]
for s in subjects:
    s["seg"] = (s["seg"] > 0).float()


def train(network, modality, subjects, loss, steps):
    crop = RandSpatialCropd(
        [modality, "seg", *(["weight"] if "weight" in subjects[0] else [])], (32, 32, 24), random_size=False
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps):
        patch = crop(subjects[step % len(subjects)])
        optimizer.zero_grad()
        value = loss(network(patch[modality].as_tensor()[None]), patch)
        value.backward()
        optimizer.step()
    print(f"{modality}: loss {value.item():.3f} after {steps} steps")


plain = DiceCELoss(to_onehot_y=True, softmax=True)
source = UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2))
train(source, "t1", subjects[:4], lambda logits, patch: plain(logits, patch["seg"][None]), steps=40)

# One pass of the frozen source over the target training set, then one weight map beside every label.
source.eval()
statistics = LeepStatistics(target_classes=2, source_classes=2)
with torch.no_grad():
    theta = [source(s["flair"].as_tensor()[None]).softmax(1) for s in subjects[4:]]
labels = [s["seg"].as_tensor().long() for s in subjects[4:]]
for p, y in zip(theta, labels):
    statistics.update(p, y)
risk_map = RiskMap(statistics.conditional(), risk="one_minus", weight="power", base=10)
for s, weight in zip(subjects[4:], risk_map.weights([risk_map(p, y) for p, y in zip(theta, labels)])):
    s["weight"] = weight.float()

network = UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2))
network.load_state_dict(source.state_dict())
weighted = RiskWeightedLoss(with_dice=1.0)
train(
    network,
    "flair",
    subjects[4:],
    lambda logits, patch: weighted(logits, patch["seg"].as_tensor(), patch["weight"]),
    40,
)
