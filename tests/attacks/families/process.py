"""Ending itself, its parent or nobody: crashes, signals, processes left behind, privileges."""
from submitted import attack


@attack("sgd_step", "error", says="KeyboardInterrupt")
def keyboard_interrupt():
    """Raises what Ctrl-C raises: a grader that takes it for its own stops the class."""
    def sgd_step(param, grad, state, lr=0.1):
        raise KeyboardInterrupt


@attack("sgd_step", "error", says="SystemExit")
def sys_exit():
    """Ends the program with success."""
    import sys

    def sgd_step(param, grad, state, lr=0.1):
        sys.exit(0)


@attack("sgd_step", "error", says="ended its process")
def os_exit():
    """Ends the process with success, past every handler."""
    import os

    def sgd_step(param, grad, state, lr=0.1):
        os._exit(0)


@attack("sgd_step", "error", says="The cell .* ended its process")
def exit_from_the_cell():
    """Ends the process before any test has begun; the other cells are run without it."""
    import os
    os._exit(0)


@attack("sgd_step", "error", says="ended its process")
def segmentation_fault():
    """Reads address zero through ctypes."""
    import ctypes

    def sgd_step(param, grad, state, lr=0.1):
        ctypes.string_at(0)


@attack("sgd_step", "error", says="RecursionError")
def recursion():
    """Calls itself for ever."""
    def sgd_step(param, grad, state, lr=0.1):
        return sgd_step(param, grad, state, lr)


@attack("sgd_step", "error", says="ended its process|RecursionError|MemoryError")
def recursion_without_a_limit():
    """Calls itself, through C, until the stack is used up."""
    import sys

    class Deep:
        def __getattr__(self, name):
            return getattr(self, name + "x")

    def sgd_step(param, grad, state, lr=0.1):
        sys.setrecursionlimit(10**8)
        return Deep().x


@attack("sgd_step", "timeout", says="no answer within")
def loop_that_swallows_everything():
    """An endless loop that catches every exception, also the one that should end it."""
    def sgd_step(param, grad, state, lr=0.1):
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass


@attack("sgd_step", "timeout", says="did not end within")
def loop_in_the_cell():
    """An endless loop where the function should be defined."""
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


@attack("sgd_step", "timeout or error", says="no answer within|ended its process")
def deaf_to_signals():
    """Ignores every signal that can be ignored, stops itself, and kills all that it can reach."""
    import os
    import signal
    import time

    def sgd_step(param, grad, state, lr=0.1):
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
            for whom in (-1, 0):
                try:
                    os.kill(whom, number)
                except OSError:
                    pass
        time.sleep(1000)


@attack("sgd_step", "error", says=r"hit: \[\]")
def killing_the_parent():
    """Kills the grader: its parent, the numbers below its own, and the one that it knows."""
    import os
    import signal

    def sgd_step(param, grad, state, lr=0.1):
        hit = []
        for pid in {os.getppid(), KNOWN["grader"], *range(2, 400)} - {0, os.getpid()}:
            try:
                os.kill(pid, signal.SIGKILL)
                hit.append(pid)
            except OSError:
                pass
        raise AssertionError(f"hit: {hit}")


@attack("sgd_step", "error", says=r"hit: \[\]")
def tracing_the_parent():
    """Attaches to the grader as a debugger does, to change its memory."""
    import ctypes
    import os

    def sgd_step(param, grad, state, lr=0.1):
        libc, hit = ctypes.CDLL(None), []
        for pid in (os.getppid(), KNOWN["grader"], 1):
            for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
                if libc.ptrace(request, pid, 0, 0) == 0:
                    hit.append(pid)
        try:
            os.close(os.open(f"/proc/{KNOWN['grader']}/mem", os.O_RDWR))
            hit.append("mem")
        except OSError:
            pass
        raise AssertionError(f"hit: {hit}")


@attack("sgd_step", "error", says=r"got: \[\]")
def namespaces():
    """Makes namespaces of its own, in which it would be root, mounts, and calls programs that run as root."""
    import ctypes
    import subprocess

    def sgd_step(param, grad, state, lr=0.1):
        libc, got = ctypes.CDLL(None), []
        for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000):  # user, mount, pid, net
            got += [hex(flag)] * (libc.unshare(flag) == 0)
        for name, arguments in {"mount": (b"x", b"/dev/shm", b"tmpfs", 0, None), "setns": (0, 0), "chroot": (b"/dev/shm",), "setuid": (0,)}.items():
            got += [name] * (getattr(libc, name)(*arguments) == 0)
        for command in (["unshare", "-Ur", "true"], ["su", "-c", "true"], ["sudo", "-n", "true"]):
            try:
                got += [command[0]] * (subprocess.run(command, capture_output=True).returncode == 0)
            except OSError:
                pass
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "passed")
def a_process_left_behind():
    """Answers rightly, and leaves a daemon in a session of its own; it must be gone when the submission is."""
    import os
    import time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)

    def sgd_step(param, grad, state, lr=0.1):
        return param - lr * grad, {}


@attack("sgd_step", "passed")
def work_at_the_exit():
    """Answers rightly, and hides an endless loop in what runs at exit."""
    import atexit
    import threading

    def forever():
        while True:
            pass
    atexit.register(forever)
    threading.Thread(target=lambda: threading.Event().wait()).start()  # not a daemon: exit would wait for it

    def sgd_step(param, grad, state, lr=0.1):
        return param - lr * grad, {}
