"""SLURM for tests: all of it on loopback, as root, without systemd, cgroups or accounting.

Each instance has its own folder, ports and munge, so that several may run at once and none meets
a machine's own. Its nodes are processes that say they have four cores and two GPUs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from trm_bench.files import lives

NODES, GPUS, CORES = 2, 2, 4
PATIENCE = 30.0

SETTINGS = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=10
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName=n{i} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cores} "
    "RealMemory=16000 Gres=gpu:{gpus}\n"
)


def absent() -> str | None:
    """What SLURM lacks to run here, if anything."""
    missing = [p for p in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(p) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "SLURM's own processes want root"


class Slurm:
    """One of its own; `start` it, and `stop` it whatever happens.

    Args:
        folder: Of its own, with a short path: sockets lie in it.

    Attributes:
        environment: In which SLURM's commands speak to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Returns when all nodes can be used."""
        self._configure()
        folder = self.folder
        key, sock = folder / "munge.key", folder / "munge.socket"
        named = {"key": key, "pid": folder / "munged.pid", "log": folder / "munged.log"}
        files = [f"--{name}-file={path}" for name, path in named.items()]
        seed = f"--seed-file={folder / 'munge.seed'}"
        # --force: the folder above, /tmp, is everybody's
        self("munged", "--force", f"--socket={sock}", seed, *files)
        self("slurmctld")
        for i in range(NODES):
            self("slurmd", "-N", f"n{i}")
        self.wait(lambda: self("sinfo", "-h", "-o", "%T").split() == ["idle"], "nodes are not up")

    def _configure(self) -> None:
        controller, *ports = _free_ports(1 + NODES)
        text = SETTINGS.format(folder=self.folder, controller=controller)
        for i, port in enumerate(ports):
            text = NODE.format(i=i, port=port, cores=CORES, gpus=GPUS) + text
        (self.folder / "slurm.conf").write_text(text)
        devices = self.folder / "devices"
        devices.mkdir()
        for i, stand_in in zip(range(GPUS), ("null", "zero"), strict=True):  # character devices
            (devices / f"gpu{i}").symlink_to(f"/dev/{stand_in}")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={devices}/gpu[0-{GPUS - 1}]\n")
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def __call__(self, *command: str) -> str:
        """What a command of SLURM prints; its daemons go on by themselves."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout.strip()

    def state(self, job: str) -> set[str]:
        """States of a job, or of all of an array."""
        return set(self("squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%T").split())

    def tasks(self, job: str) -> dict[int, str]:
        """Array index to the job's own id."""
        lines = self("squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%K %A").splitlines()
        return {int(index): own for index, own in (line.split() for line in lines)}

    def wait(self, met: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
        """Until a condition is met; fails with SLURM's own words where it is not."""
        end = time.monotonic() + patience
        while not met():
            assert time.monotonic() < end, f"{what}\n{self('squeue', '-t', 'all')}\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        """The last lines of its logs."""
        return "\n".join(
            f"{log.name}: {line}"
            for log in sorted(self.folder.glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()[-15:]
        )

    def stop(self) -> None:
        """Ends its jobs and itself."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self("scancel", "--user=root")
            self.wait(lambda: not self("squeue", "-h"), "jobs do not end")
        pids = {file: _pid(file) for file in self.folder.glob("*.pid")}
        for pid in pids.values():
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while (
            any(pid is not None and lives(pid) for pid in pids.values()) and time.monotonic() < end
        ):
            time.sleep(0.05)


def _pid(file: Path) -> int | None:
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        probes = [open_sockets.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
