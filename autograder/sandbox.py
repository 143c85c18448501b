"""Starts the processes in which submissions run. Trusted side.

One fork server a judge; each submission gets a forked child of its own, reached over a socket pair.
"""
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from autograder.protocol import Connection

NOT_ISOLATED = "not isolated: a plain subprocess of this user"
RLIMITS = {"RLIMIT_CORE": 0, "RLIMIT_DATA": 4 << 30, "RLIMIT_FSIZE": 64 << 20, "RLIMIT_NOFILE": 256, "RLIMIT_CPU": 300}


class SandboxError(RuntimeError):
    """No process could be started for a submission; the text says why."""
    for_people = True


@dataclass
class Child:
    """One submission's process."""
    pid: int
    connection: Connection


class ForkServer:
    """Use as a context manager; `fork()` gives a fresh child, `kill(child)` ends it with all that it started."""

    isolation = NOT_ISOLATED

    def __init__(self):
        self._scratch = tempfile.TemporaryDirectory(prefix="trainfast-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": self._scratch.name, "OMP_NUM_THREADS": "1",
                       "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1",
                       "MPLCONFIGDIR": self._scratch.name, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        self._process = subprocess.Popen([sys.executable, "-P", "-m", "autograder.forkserver", str(theirs.fileno())],
                                         pass_fds=[theirs.fileno()], env=environment, cwd=self._scratch.name,
                                         stdin=subprocess.DEVNULL)
        theirs.close()
        self._control.settimeout(120)
        self._answer("the fork server did not start")

    def fork(self) -> Child:
        """A fresh child that waits for frames."""
        ours, theirs = socket.socketpair()
        order = {"op": "fork", "limits": {"rlimits": RLIMITS, "scratch": self._scratch.name}}
        socket.send_fds(self._control, [json.dumps(order).encode()], [theirs.fileno()])
        theirs.close()
        return Child(self._answer("no process could be forked")["pid"], Connection(ours))

    def kill(self, child: Child) -> int:
        """End the child and everything it started; the peak of its resident memory in bytes."""
        child.connection.close()
        self._control.send(json.dumps({"op": "kill", "pid": child.pid}).encode())
        return self._answer("a submission's process could not be ended")["peak_bytes"]

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._scratch.cleanup()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _answer(self, otherwise: str) -> dict:
        try:
            message = self._control.recv(1 << 16)
        except OSError as error:
            raise SandboxError(f"{otherwise}: {error}") from error
        if not message:
            raise SandboxError(f"{otherwise}; its own words are above")
        return json.loads(message)


def isolation_report() -> str:
    """Whether submissions will be isolated on this machine, in words."""
    return NOT_ISOLATED
