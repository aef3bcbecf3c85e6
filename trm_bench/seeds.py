"""Seeds from named axes, and determinism: the same names draw alike, whatever else changes."""

from __future__ import annotations

import hashlib
import os
import warnings

import torch

# Of a training: sums run in the same order, so numbers do not depend on how many run side by side.
CPU_THREADS = 1


def seed_of(*axes: object) -> int:
    """A 63-bit seed from names and numbers, e.g. ``seed_of("patches", transfer, 0)``.

    The same on every machine.
    """
    text = "\x1f".join(f"{type(axis).__name__}:{axis}" for axis in axes)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*axes: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded from the axes."""
    return torch.Generator(device=device).manual_seed(seed_of(*axes))


def deterministic(device: torch.device) -> None:
    """Makes this process repeat itself: bit for bit on a CPU, as far as kernels can on a GPU."""
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; bf16 is what makes GPUs fast here
    # PyTorch would write NaN into all memory that it takes, so that reading it before it is written
    # shows; no kernel here does, and runs repeat without.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Trilinear upsampling and volumetric cross-entropy have no CUDA kernel that repeats itself: no
    # error, and nothing is said of it in every process.
    on_gpu = device.type == "cuda"
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)
    if on_gpu:
        warnings.filterwarnings("ignore", r"\w+ does not have a deterministic implementation")
