"""Training steps through torch.compile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn

from trm_bench.errors import UserError

BACKEND = "inductor"
COMPILERS = ("g++", "clang++", "c++")
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # of the environment, PyTorch's


def compile_steps(network: nn.Module) -> None:
    """Has the calls of a network compiled, in place, when the first one comes.

    What was compiled is kept in the user's cache, where all workers find it: PyTorch's own place
    is a folder in /tmp that another user could have made before, with code in it.

    Evaluation stays as it is; see `networks.evaluating`. What this process compiled before is
    forgotten, since PyTorch would make a kernel for sizes in general of the second size that it
    meets, so that last bits, and the speed, were a matter of what ran before.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    torch.compiler.reset()
    # importing what compiles sets the variable where the user does not
    if os.environ.get(VARIABLE, default_cache_dir()) == default_cache_dir():
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ[VARIABLE] = str(cache / "trm-bench" / "compiled")
    network.compile(backend=BACKEND, dynamic=False)


def compiler() -> str:
    """The C++ compiler that is found first, CXX before `COMPILERS`; "" where there is none."""
    names = (os.environ.get("CXX", ""), *COMPILERS)
    return next((name for name in names if name and shutil.which(name)), "")


def require_compiler(device: torch.device) -> None:
    """Compiling for a CPU takes a C++ compiler.

    Raises:
        UserError: There is none.
    """
    if device.type == "cpu" and not compiler():
        fix = f"install one of {', '.join(COMPILERS)}, or leave compile out"
        raise UserError("there is no C++ compiler", "training.*.compile", fix)
