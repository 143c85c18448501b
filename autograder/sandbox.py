"""Starts the processes in which submissions run, and proves that they are isolated. Trusted side.

One fork server a judge, inside bubblewrap; each submission gets a forked child with namespaces of its own, reached
over a socket pair. bubblewrap.py is what it sees; forkserver.py and isolate.py are what runs inside.
"""
from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autograder import bubblewrap, processes
from autograder.bubblewrap import HOME, ROOT, SCRATCH_BYTES, UID
from autograder.forkserver import receive, send
from autograder.isolate import SCRATCH
from autograder.protocol import Connection, Deadline, ProtocolError

MEMORY, PROCESSES = 4 << 30, 256
RLIMITS = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 64 << 20, "RLIMIT_NOFILE": 256, "RLIMIT_CPU": 300}
# Without CUDA, which reserves far more than it uses. The import of torch alone takes 3.4 GiB of addresses.
CPU_RLIMITS = {"RLIMIT_DATA": 4 << 30, "RLIMIT_AS": 16 << 30}
WATCH_SECONDS = 0.2
NO_NESTED = "TRAINFAST_NO_NESTED_NAMESPACES"    # for tests: as on a system that refuses them


class SandboxError(RuntimeError):
    """No process could be started for a submission; the text says why."""
    for_people = True


@dataclass(eq=False)
class Child:
    """One submission's process. `ended` says why, if the sandbox put an end to it."""
    pid: int        # of the process that holds all others of this submission
    connection: Connection
    process: _Process
    number: int     # the pid as the fork server knows it
    cgroup: Path | None = None
    ended: str = ""
    peak_bytes: int = 0     # of resident memory, of its largest process


class ForkServer:
    """Use as a context manager; `fork()` gives a fresh child, `kill(child)` ends it with all that it started.

    `isolation` begins with "isolated" only after a self-test has passed inside; otherwise it says what is missing, or
    with `require_isolation` a SandboxError does. `labs` is the folder of the visible tests, which the child imports
    for timing. With `gpu`, children see the GPU's devices. `memory` caps what all processes of one child hold together.
    """

    def __init__(self, *, gpu: bool = False, require_isolation: bool = False, labs: Path = ROOT / "labs",
                 memory: int = MEMORY):
        self.gpu, self.labs, self.memory = gpu, Path(labs).resolve(), memory
        self.isolation = ""
        self._mode = "plain"
        self._process: _Process | None = None   # the one that forks all; in fresh mode there is none
        self._processes: list[_Process] = []    # all that may be running
        self._folder = tempfile.TemporaryDirectory(prefix="trainfast-")
        try:
            self._choose_mode()
            if require_isolation and self._mode == "plain":
                raise SandboxError(self.isolation)
            if self._mode != "fresh" and self._process is None:
                self._process = self._start()
        except BaseException:
            self.close()
            raise

    def fork(self) -> Child:
        """A fresh child that waits for frames. A fork server that has died is replaced; once also if it dies now."""
        try:
            return self._fork()
        except SandboxError:
            if self._process is not None and self._process.alive():
                raise
            return self._fork()

    def kill(self, child: Child) -> int:
        """End the child and everything it started; the peak of its resident memory in bytes."""
        child.connection.close()
        child.process.end(child)
        return child.peak_bytes

    def pause(self, child: Child) -> None:
        """Stop all of its processes, threads included, until `resume`."""
        before, end = None, time.monotonic() + 5
        while time.monotonic() < end:
            tree = processes.tree(child.pid)
            if tree == before and all(map(processes.stands, tree)):
                return  # nobody is left who could start another
            for pid in tree:
                processes.send_signal(pid, signal.SIGSTOP)
            before = tree

    def resume(self, child: Child) -> None:
        for pid in processes.tree(child.pid):
            processes.send_signal(pid, signal.SIGCONT)

    def starved(self, child: Child) -> float:
        """Seconds for which its main threads stood ready while other programs had the processors: the longest of them."""
        waited = [0.0]
        for pid in processes.tree(child.pid):
            with suppress(OSError, IndexError), open(f"/proc/{pid}/schedstat") as stream:
                waited.append(int(stream.read().split()[1]) / 1e9)
        return max(waited)

    def close(self) -> None:
        self._stop()
        self._folder.cleanup()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _choose_mode(self) -> None:
        """The first that passes the self-test here; forkserver.py says what the modes are."""
        if missing := bubblewrap.missing():
            self.isolation = f"not isolated: {missing}"
            return
        failures = []
        for self._mode in ("nested", "fresh"):
            try:
                if self._mode == "nested" and os.environ.get(NO_NESTED):
                    raise SandboxError(f"{NO_NESTED} is set")
                who = self._self_test()
            except SandboxError as error:
                failures.append(str(error))
                self._stop()
                continue
            memory = f"{self.memory / 2**30:g} GiB of memory"
            self.isolation = f"isolated: bubblewrap, {who}, own network, own pids, {memory} each"
            if self._mode == "fresh":
                self.isolation += f"; slow, because namespaces cannot be nested ({failures[0]})"
            return
        reason = failures[0] if "self-test" in failures[0] else bubblewrap.cure() or failures[-1]
        self._mode, self.isolation = "plain", f"not isolated: {reason}"

    def _self_test(self) -> str:
        """Run isolate.probe where submissions will run; says as whom. Raises SandboxError with what is wrong."""
        child = self._fork()
        try:
            with _traps(self, child.process) as expected:
                wrong = _ask_probe(child.connection, expected)
        except (ProtocolError, Deadline) as error:
            raise SandboxError(f"the self-test gave no answer: {error} {child.process.words()}") from None
        finally:
            self.kill(child)
        if wrong:
            raise SandboxError(f"the self-test failed: {'; '.join(wrong)}")
        return "a uid for each" if self._mode == "fresh" and child.process.drops else f"uid {child.process.uid}"

    def _fork(self) -> Child:
        if self._mode == "fresh":
            return self._start().fork(self._order())
        if self._process is None or not self._process.alive():
            self._process = self._start()
        return self._process.fork(self._order())

    def _stop(self) -> None:
        for process in self._processes:
            process.stop()
        self._process, self._processes = None, []

    def _start(self) -> _Process:
        plain, drops = self._mode == "plain", bubblewrap.can_become_anyone()
        scratch = self._folder.name if plain else SCRATCH
        # Without user namespaces processes are counted by uid, so that each submission needs one of its own.
        uid = UID + (self._mode == "fresh") * secrets.randbelow(1 << 26) if drops else os.geteuid() or 65534
        wrapper = [] if plain else bubblewrap.command(self._mode, uid, drops, self.gpu, self.labs, Path(self._folder.name))
        command = [*wrapper, sys.executable, "-P", "-m", "autograder.forkserver"]
        process = _Process(command, self._mode, uid, drops and not plain, bubblewrap.environment(scratch, self.gpu),
                           self._folder.name, self.memory, self._order())
        self._processes = [p for p in self._processes if p.alive()] + [process]
        return process

    def _order(self) -> dict:
        """To the fork server: a child's limits. In plain mode its processes would be counted with all of the user's."""
        plain = self._mode == "plain"
        rlimits = RLIMITS | ({} if self.gpu or sys.platform != "linux" else CPU_RLIMITS)
        if not plain:
            rlimits |= {"RLIMIT_NPROC": PROCESSES}
        return {"op": "fork", "rlimits": rlimits, "scratch": self._folder.name if plain else SCRATCH,
                "scratch_bytes": SCRATCH_BYTES, "gpu": self.gpu}


class _Process:
    """A running fork server and its children, with a thread that started it and watches the children's memory."""

    def __init__(self, command: list[str], mode: str, uid: int, drops: bool, environment: dict, folder: str,
                 memory: int, order: dict):
        self.mode, self.uid, self.drops, self.memory = mode, uid, drops, memory
        self.children: list[Child] = []
        self._lock, self._talking = threading.Lock(), threading.Lock()  # of the list; of the socket
        self._errors = tempfile.TemporaryFile()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(300)  # the import of torch on a busy machine
        self._popen: subprocess.Popen | None = None
        started = threading.Event()
        arguments = [*command, str(theirs.fileno()), mode, str(uid if drops else -1)]
        options = dict(pass_fds=[theirs.fileno()], env=environment, cwd=folder, stdin=subprocess.DEVNULL,
                       stdout=self._errors, stderr=self._errors, start_new_session=True)
        threading.Thread(target=self._run, args=(arguments, options, started), daemon=True).start()
        started.wait()
        theirs.close()
        try:
            if mode == "nested":
                self._ask(order)
            else:
                self._receive()
        except SandboxError:
            self.stop()
            raise

    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None and self._control.fileno() != -1

    def fork(self, order: dict) -> Child:
        ours, theirs = socket.socketpair()
        try:
            answer, pidfd = self._ask(order, theirs.fileno())
        except SandboxError:
            ours.close()
            raise
        finally:
            theirs.close()
        pid = number = answer["pid"]
        if pidfd is not None:
            pid = self._popen.pid if self.mode == "fresh" else processes.pid_of(pidfd)
            os.close(pidfd)
        for each in processes.tree(pid):  # if the machine runs out of memory, these go, and not the grader
            with suppress(OSError):
                Path(f"/proc/{each}/oom_score_adj").write_text("1000")
        child = Child(pid, Connection(ours), self, number, processes.cgroup_for(pid, self.memory + 2 * SCRATCH_BYTES, PROCESSES))
        self.children.append(child)
        return child

    def end(self, child: Child) -> None:
        with self._lock:
            if child not in self.children:
                return
            self.children.remove(child)
        child.peak_bytes = max([child.peak_bytes, *(processes.status_bytes(pid, "VmHWM") for pid in processes.tree(child.pid))])
        try:
            if self.mode == "fresh":
                self.stop()
            else:
                answer, _ = self._ask({"op": "kill", "pid": child.number})
                child.peak_bytes = max(child.peak_bytes, answer["peak_bytes"])
        except SandboxError as error:  # a server that died has taken its children along
            child.ended = child.ended or str(error)
        if child.cgroup is not None:
            with suppress(OSError):
                if "oom_kill 0" not in (child.cgroup / "memory.events").read_text().splitlines():
                    child.ended = child.ended or _too_much(self.memory)
                child.cgroup.rmdir()

    def stop(self) -> None:
        """End the process with all its children; without bubblewrap it does that itself when the socket closes."""
        self._control.close()
        if self._popen is None:
            return
        if self.mode != "plain":
            self._kill_inside()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def words(self) -> str:
        """The last thing that the process itself said."""
        self._errors.seek(0)
        return (self._errors.read().decode(errors="replace").strip().splitlines() or [""])[-1][:500]

    def _run(self, arguments: list[str], options: dict, started: threading.Event) -> None:
        # This thread lives as long as the process, because --die-with-parent means the thread that started it.
        try:
            self._popen = subprocess.Popen(arguments, **options)
        except OSError as error:
            self._errors.write(str(error).encode())
            return
        finally:
            started.set()
        while self._popen.poll() is None:
            for child in list(self.children):
                self._watch(child)
            time.sleep(WATCH_SECONDS)

    def _watch(self, child: Child) -> None:
        tree = processes.tree(child.pid)
        held = sum(processes.status_bytes(pid, "VmRSS") for pid in tree)
        if held > self.memory:  # shared pages were counted more than once; counting them well takes longer
            held = sum(processes.proportional_bytes(pid) for pid in tree)
        with self._lock:
            if held > self.memory and child in self.children:  # else the pid may be another's by now
                child.ended, child.peak_bytes = _too_much(self.memory), held
                self._kill_inside() if self.mode == "fresh" else processes.kill(child.pid)

    def _kill_inside(self) -> None:
        """bubblewrap's number 1; with it goes all that is inside, and then bubblewrap itself."""
        for pid in processes.tree(self._popen.pid)[1:2]:
            processes.kill(pid)

    def _ask(self, order: dict, fd: int | None = None) -> tuple[dict, int | None]:
        with self._talking:
            with suppress(OSError):  # receiving says what is the matter
                send(self._control, order, fd)
            return self._receive()

    def _receive(self) -> tuple[dict, int | None]:
        try:
            answer, fd = receive(self._control)
        except OSError:
            answer = None
        if answer is None:  # ended, or hanging
            self.stop()
            raise SandboxError(f"the fork server ended. {self.words()}".strip())
        if "error" in answer:
            raise SandboxError(answer["error"])
        return answer, fd


def _too_much(memory: int) -> str:
    return f"used more than {memory / 2**30:g} GiB of memory"


# ---------------------------------------------------------------- whether it holds

@contextmanager
def _traps(server: ForkServer, process: _Process) -> Iterator[dict]:
    """What isolate.probe must not be able to reach, set up for the time of the test, and what else it needs to know."""
    with ExitStack() as stack:
        course = [server.labs.parent] if server.labs.parent != bubblewrap.torch_folder() else []  # that is an installed package
        planted = []
        for folder in (Path(tempfile.gettempdir()), HOME, *(root / ".trainfast" for root in course)):
            with suppress(OSError):  # where not even the grader can write, nothing can be planted
                if folder.name == ".trainfast":
                    folder.mkdir(exist_ok=True)
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".trainfast-secret-"))
                os.chmod(file.name, 0o644)  # only its place protects it
                planted.append(file.name)
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        abstract = f"trainfast-{secrets.token_hex(8)}"
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind("\0" + abstract)
        listener.listen()
        names = ["pid", "net", "ipc", "mnt", "uts", *([] if process.drops and process.mode == "fresh" else ["user"])]
        absent = [root / name for root in course for name in ("solutions", "results", "submitted", "gradebook.db")]
        yield {"uid": process.uid, "dropped": process.drops, "alone": process.mode == "nested",
               "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in names},
               "secrets": [*planted, "/etc/shadow", str(ROOT / "autograder" / "judge.py")],
               "absent": [str(path) for path in absent], "port": port, "abstract": abstract,
               "writable": [SCRATCH, "/tmp", "/dev/shm", *(["/proc", "/dev/pts"] if process.mode == "fresh" else [])],
               "scratch_bytes": SCRATCH_BYTES, "processes": PROCESSES,
               "environment": [*bubblewrap.environment(SCRATCH, server.gpu), "PWD", "LC_CTYPE"]}


def _ask_probe(connection: Connection, expected: dict) -> list[str]:
    """Call isolate.probe in a child, by the frames that call a student's function."""
    deadline = time.monotonic() + 20
    cells = {"cells": ["from autograder.isolate import probe"], "skip": [], "seed": 0}
    connection.send("cells", cells, deadline=deadline)
    connection.receive(deadline=deadline)
    connection.send("call", {"function": "probe", "request": 1}, ((expected,), {}, None), deadline=deadline)
    op, body, value = connection.receive(deadline=deadline)
    if op != "result":
        return [str(body.get("message"))]
    return value[0]


def isolation_report() -> str:
    """Whether submissions will be isolated on this machine, in words; the self-test is made."""
    try:
        with ForkServer(require_isolation=True) as server:
            return server.isolation
    except SandboxError as error:
        return str(error)
