"""A process that has imported torch once and forks a child for each submission.

It holds no secret and runs no submission's code itself. Orders come as JSON over a seqpacket socket, one a message:

    {"op": "fork", "limits": {...}}  with one file descriptor   -> {"pid": n}
    {"op": "kill", "pid": n}                                    -> {"peak_bytes": n, "status": n}

When the socket closes, because the grader ended or was killed, everything that was forked is killed too.
"""
from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """`python -m autograder.forkserver FD`"""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.environ["TRAINFAST_JUDGED"] = "1"
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a submission leaves behind becomes ours to kill
    _import_everything()
    control.send(b'{"ready": true}')
    children: set[int] = set()
    try:
        while True:
            message, fds, _, _ = socket.recv_fds(control, 1 << 16, 1)
            if not message:
                break
            order = json.loads(message)
            if order["op"] == "fork":
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _become_worker(fds[0], order["limits"])
                os.close(fds[0])
                children.add(pid)
                answer = {"pid": pid}
            else:
                answer = _kill(order["pid"], children)
            control.send(json.dumps(answer).encode())
    finally:
        for pid in list(children):
            _kill(pid, children)


def _import_everything() -> None:
    """All that a lab may need, so that a child pays nothing; no parallel operation, or a fork of it may hang."""
    import torch

    import autograder.worker  # noqa: F401
    from course import data, device, models, plots, surfaces, timing, train  # noqa: F401
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo


def _become_worker(fd: int, limits: dict) -> None:
    """In the child: no descriptor but the socket, no output, the limits; then serve until the judge hangs up."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.dup2(fd, 3)
        os.closerange(4, 4096)
        os.chdir(limits["scratch"])
        for name, value in limits["rlimits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        from autograder.protocol import Connection
        from autograder.worker import serve
        serve(Connection(socket.socket(fileno=3)))
    finally:
        os._exit(0)


def _kill(pid: int, children: set[int]) -> dict:
    """Kill a child with all that it started; its exit status and the peak of its memory."""
    if pid not in children:
        return {"peak_bytes": 0, "status": 0}
    children.discard(pid)
    for kill in (lambda: os.killpg(pid, signal.SIGKILL), lambda: os.kill(pid, signal.SIGKILL)):
        try:
            kill()
        except ProcessLookupError:
            pass
    _, status, usage = os.wait4(pid, 0)
    _kill_orphans(children)
    return {"peak_bytes": usage.ru_maxrss * 1024, "status": status}


def _kill_orphans(children: set[int]) -> None:
    """Processes that left their session and were re-parented to this one."""
    while orphans := _own_children() - children:
        for orphan in orphans:
            try:
                os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def _own_children() -> set[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return {int(pid) for pid in file.read().split()}
    except OSError:
        return set()


if __name__ == "__main__":
    main()
