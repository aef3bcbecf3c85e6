"""Seeds from named axes: what depends on the same names is drawn alike, whatever else changes."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*axes: object) -> int:
    """A 63-bit seed from names and numbers, e.g. ``seed_of("patches", transfer, 0)``; the same on every machine."""
    text = "\x1f".join(f"{type(axis).__name__}:{axis}" for axis in axes)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*axes: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded from the axes."""
    return torch.Generator(device=device).manual_seed(seed_of(*axes))
