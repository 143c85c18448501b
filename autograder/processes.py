"""Processes as seen from outside, by what Linux tells in /proc; where there is no /proc they have no descendants."""
from __future__ import annotations

import os
import signal
from contextlib import suppress
from glob import glob
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def tree(pid: int) -> list[int]:
    """A process and all its descendants, parents first; empty where there is no /proc."""
    found = [pid] if os.path.isdir(f"/proc/{pid}") else []
    for parent in found:
        for file in glob(f"/proc/{parent}/task/*/children"):
            with suppress(OSError), open(file) as stream:
                found += map(int, stream.read().split())
    return found


def status_bytes(pid: int, field: str) -> int:
    with suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def proportional_bytes(pid: int) -> int:
    """Resident memory, each shared page divided by the number of those who share it."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def cgroup_for(pid: int, memory: int, processes: int) -> Path | None:
    """A cgroup for a process, where we may make one (root, cgroups version 2): the kernel then counts also what no
    process shows, and is never late."""
    parent = CGROUPS / "trainfast"
    try:
        if "memory" not in (CGROUPS / "cgroup.subtree_control").read_text().split():
            return None
        parent.mkdir(exist_ok=True)
        (parent / "cgroup.subtree_control").write_text("+memory +pids")
        group = parent / f"{os.getpid()}-{pid}"
        group.mkdir()
        for name, value in {"memory.max": memory, "memory.swap.max": 0, "memory.oom.group": 1,
                            "pids.max": processes}.items():
            (group / name).write_text(str(value))
        for each in tree(pid):
            (group / "cgroup.procs").write_text(str(each))
        return group
    except OSError:
        return None


def stands(pid: int) -> bool:
    """All of its threads are stopped or dead; the first one may be dead and others alive."""
    for file in glob(f"/proc/{pid}/task/*/stat"):
        with suppress(OSError), open(file) as stream:
            if stream.read().rpartition(")")[2].split()[0] not in "TtZX":
                return False
    return True


def kill(pid: int) -> None:
    send_signal(pid, signal.SIGKILL)


def send_signal(pid: int, number: int) -> None:
    with suppress(OSError):
        os.kill(pid, number)
