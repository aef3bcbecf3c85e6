"""Which machine this is, and the peak of its matrix products, which nothing can beat."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from trm_bench import environment
from trm_bench.bench.timing import Row, busy
from trm_bench.runs.executors import default_jobs
from trm_bench.seeds import CPU_THREADS
from trm_bench.training.compiling import compiler

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices that are multiplied
TRIES = 10


@dataclass(frozen=True)
class Machine:
    """What the times depend on.

    Attributes:
        device: cpu, or cuda:N.
        name: Of the processor, or of the GPU.
        cores: That this process may use.
        flags: Of the processor, as far as they matter.
        torch: Its version.
        threads: Of a training on a CPU.
        load: Average number of processes at work over the last minute, before anything was timed.
        compiler: Of C++, which torch.compile needs on a CPU; "" where there is none.
        peaks: GFLOP/s of matrix products, by precision.
    """

    device: str
    name: str
    cores: int
    flags: tuple[str, ...]
    torch: str
    threads: int
    load: float | None
    compiler: str
    peaks: dict[str, float]

    @property
    def precisions(self) -> list[str]:
        """Those that the device computes in by itself."""
        return list(self.peaks)

    def share(self, row: Row) -> float | None:
        """Of the peak of a row's precision, where operations and peak are known."""
        peak = self.peaks.get(row.precision)
        return row.flops / row.median / 1e9 / peak if row.flops and peak else None


def look(device: torch.device) -> Machine:
    """Describes the machine and measures its peaks, with as many threads as a training has."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    flags = environment.processor()[1]
    return Machine(
        device=str(device),
        name=environment.describe(device).device_name,
        cores=default_jobs(torch.device("cpu")),
        flags=flags,
        torch=torch.__version__,
        threads=CPU_THREADS,
        load=load,
        compiler=compiler(),
        peaks={
            name: _peak(device, kind)
            for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))
            if name == "fp32" or has_bf16(device, flags)
        },
    )


def has_bf16(device: torch.device, flags: tuple[str, ...]) -> bool:
    """Whether bf16 can be quick here; where it cannot, it is emulated, and no use."""
    if device.type == "cuda":
        return environment.has_bf16(device)
    return not BF16_FLAGS.isdisjoint(flags)


def _peak(device: torch.device, kind: torch.dtype) -> float:
    """GFLOP/s of the best of some products of square matrices."""
    side = SIDE[device.type]
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    product = torch.empty_like(one)
    seconds = [busy(device, lambda: torch.mm(one, other, out=product)) for _ in range(TRIES)]
    return 2 * side**3 / min(seconds) / 1e9
