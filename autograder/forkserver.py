"""A process that has imported torch once and forks a child for each submission.

It holds no secret and runs no submission's code itself; it lives in the same sandbox as its children. Orders come as
lines of JSON over a socket, and each is answered by one:

    {"op": "fork", ...} with one file descriptor   -> {"pid": n} with a pidfd of the child, or {"error": why}
    {"op": "kill", "pid": n}                       -> {"peak_bytes": n, "status": n}

It works in one of three modes. "nested": a child gets namespaces of its own. "fresh": where these are refused, this
process becomes the one child itself, and the next submission needs another bubblewrap. "plain": no isolation.
When the socket closes, because the grader ended or was killed, everything that was forked is killed too.
"""
from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import resource
import signal
import socket
import sys
from collections.abc import Callable

from autograder import isolate

MANY = 8  # children, after which more will come: merging pages costs as much time as it saves over the next twenty


def main() -> None:
    """`python -m autograder.forkserver FD MODE UID`, UID being -1 for who one is."""
    control, mode, uid = socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    if sys.platform == "linux":
        isolate.adopt_orphans()
    if uid != -1:
        isolate.become(uid)
    if mode == "nested":
        # Find out before the long import whether a child's isolation is possible here.
        order, _ = receive(control)
        pid, refused = _spawn(mode, lambda: _prepare(mode, order))
        if refused:
            return send(control, {"error": refused})
        _kill(pid, {pid})
    _import_everything()
    send(control, {"ready": True})
    children: set[int] = set()
    forked = 0
    try:
        while True:
            order, fd = receive(control)
            if order is None:
                break
            if order["op"] == "kill":
                send(control, _kill(order["pid"], children))
            elif mode == "fresh":
                _prepare(mode, order)
                _send_pid(control, os.getpid())
                _serve(fd)
                os._exit(0)
            else:
                forked += 1
                if forked == MANY and sys.platform == "linux":
                    isolate.merge_pages()
                pid, error = _spawn(mode, lambda: _prepare(mode, order), lambda: _serve(fd))
                os.close(fd)
                if error:
                    send(control, {"error": error})
                else:
                    children.add(pid)
                    _send_pid(control, pid)
    finally:
        for pid in list(children):
            _kill(pid, children)


def send(control: socket.socket, message: dict, fd: int | None = None) -> None:
    socket.send_fds(control, [json.dumps(message).encode() + b"\n"], [] if fd is None else [fd])


def receive(control: socket.socket) -> tuple[dict | None, int | None]:
    """A message and the descriptor that came with it; None if there is nobody on the other side any more."""
    line, descriptors = b"", []
    while not line.endswith(b"\n"):
        try:
            part, fds, _, _ = socket.recv_fds(control, 1 << 16, 1)
        except ConnectionError:
            part, fds = b"", []
        descriptors += fds
        if not part:
            return None, None
        line += part
    return json.loads(line), descriptors[0] if descriptors else None


def _send_pid(control: socket.socket, pid: int) -> None:
    """With a pidfd, from which the grader learns what number the process has outside."""
    pidfd = os.pidfd_open(pid) if sys.platform == "linux" else None
    send(control, {"pid": pid}, pidfd)
    if pidfd is not None:
        os.close(pidfd)


def _import_everything() -> None:
    """All that a lab may need, so that a child pays nothing; no parallel operation, or a fork of it may hang."""
    import numpy.ctypeslib  # noqa: F401: safetensors would, at a submission's first tensor
    import torch

    import autograder.worker  # noqa: F401
    from course import check, claims, cluster, data, device, layers, models, plots, ranks, surfaces, timing, train  # noqa: F401
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo
    if importlib.util.find_spec("triton"):
        import triton.language  # noqa: F401
    gc.collect()
    gc.freeze()  # a child's collector leaves these pages alone, so they stay shared


def _spawn(mode: str, prepare: Callable[[], None], serve: Callable[[], None] = signal.pause) -> tuple[int, str]:
    """Fork a process that prepares and serves. Its number, and what went wrong; it serves only if nothing did."""
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            if mode == "nested":
                isolate.unshare()
                if (pid := os.fork()) != 0:  # only a child of this one enters the new pid namespace
                    os.write(writing, b"%d\n" % pid)
                    os._exit(0)
            prepare()
        except BaseException as error:
            os.write(writing, f"{error or type(error).__name__}\n".encode())
            os._exit(1)
        try:
            os.write(writing, b"ready\n")
            os.close(writing)
            serve()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, errors="replace") as pipe:
        lines = pipe.read().splitlines()
    pid = first
    if mode == "nested":
        os.waitpid(first, 0)
        pid = next((int(line) for line in lines if line.isdigit()), 0)
    words = [line for line in lines if not line.isdigit()]
    if words == ["ready"]:
        return pid, ""
    if pid:
        os.waitpid(pid, 0)
    return 0, "; ".join(words) or "a process died while it was isolated"


def _prepare(mode: str, order: dict) -> None:
    """In the child: scratch space, no output, the limits, and in the end no way back."""
    if mode == "plain" and sys.platform == "linux":
        isolate.die_with_parent()
    if mode != "fresh":
        os.setsid()
    if mode == "nested":
        isolate.furnish(order["scratch_bytes"])
    os.chdir(order["scratch"])
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    for name, value in order["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if mode != "plain":
        isolate.confine(order["gpu"])


def _serve(fd: int) -> None:
    """Reply to the judge's frames until it hangs up, with no file open but the socket."""
    os.dup2(fd, 3)
    os.closerange(4, 4096)
    import numpy
    import torch

    from autograder.protocol import Connection
    from autograder.worker import serve
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):  # or every child would draw the same numbers
        seed(int.from_bytes(os.urandom(4)))
    serve(Connection(socket.socket(fileno=3)))


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
    _, status, usage = os.wait4(pid, 0)  # of a namespace's number 1: returns when the others are gone too
    _kill_orphans(children)
    return {"peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), "status": status}


def _kill_orphans(children: set[int]) -> None:
    """Without namespaces: processes that left their session and were re-parented to this one."""
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
