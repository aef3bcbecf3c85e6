"""MONAI's networks, imported without what they do not need.

MONAI imports all of itself, and with it every package that some part of it could use; those below
are of no use to networks, losses, metrics and inference, and make up half of the time and of the
memory. It does without what is not installed, and so they seem not to be while it is imported.
Import this module before anything else of MONAI.
"""

from __future__ import annotations

import sys

UNUSED = ("matplotlib", "mlflow", "nilearn", "optuna", "pandas", "sklearn")

_hidden = [name for name in UNUSED if name not in sys.modules]
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]  # None: there is no such one
try:
    from monai.networks import nets
finally:
    for name in _hidden:
        del sys.modules[name]

__all__ = ["nets"]
