"""A physics-based MR phantom, written as FeTS2021 and iSeg-2019 lay out their files.

It stands in for the real data where those cannot be had: the same loaders read it, modalities
differ as they do in MR, institutions differ, tumours look like tumours. `docs/phantom.md` says what
is modelled, from which sources, and what is not. It is no evidence about any paper: its folder
holds `PHANTOM.json`, and whatever is computed from it is marked.

One subject, in order: anatomy, tumour, tissue fractions (`subject`), signals and scanner, files
(`folder`). Lengths are in millimetres and times in milliseconds throughout.
"""

from trm_bench.phantom.folder import MARKER, damaged_files, is_phantom, write_phantom
from trm_bench.phantom.geometry import LAYOUTS

__all__ = ["LAYOUTS", "MARKER", "damaged_files", "is_phantom", "write_phantom"]
