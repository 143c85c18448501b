"""Changing what a submission must not change. The grader compares every byte of its course afterwards."""
from submitted import attack


@attack("sgd_step", "error", says=r"wrote: \[\]", open=r"wrote: \['test_hidden")
def over_the_hidden_tests():
    """Replaces the hidden tests by an empty file."""
    def sgd_step(param, grad, state, lr=0.1):
        wrote = []
        for name in ("test_hidden.py", "saddle_points.py", "new.py"):
            try:
                open(f"{KNOWN['course']}/solutions/11_saddle_points/{name}", "w").close()
                wrote.append(name)
            except OSError:
                pass
        raise AssertionError(f"wrote: {wrote}")


@attack("sgd_step", "error", says=r"wrote: \[\]", open=r"wrote: \['gradebook")
def marks_into_the_gradebook():
    """Gives itself full marks in the gradebook and in its own result."""
    import json
    import os

    def sgd_step(param, grad, state, lr=0.1):
        wrote = []
        for name in ("gradebook.db", "results/11_saddle_points/eve.json"):
            try:
                path = f"{KNOWN['course']}/{name}"
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w") as file:
                    json.dump({"student": "eve", "score": 120}, file)
                wrote.append(name)
            except OSError:
                pass
        raise AssertionError(f"wrote: {wrote}")


@attack("sgd_step", "error", says=r"wrote: \[\]", open=r"wrote: \['bob")
def into_another_submission():
    """Spoils the notebook of a fellow student, who is graded later."""
    def sgd_step(param, grad, state, lr=0.1):
        wrote = []
        for path in KNOWN["submissions"]:
            try:
                with open(path, "a") as file:
                    file.write("spoilt")
                wrote.append("bob")
            except OSError:
                pass
        raise AssertionError(f"wrote: {wrote}")


@attack("sgd_step", "error", says=r"wrote: \[\]")
def over_the_library():
    """Changes the course's library, the visible tests and the worker on disk, for all who come after."""
    import autograder.worker
    import course.spec.asserts
    import torch

    def sgd_step(param, grad, state, lr=0.1):
        wrote = []
        for path in (course.spec.asserts.__file__, autograder.worker.__file__, torch.__file__,
                     KNOWN["course"] + "/labs/11_saddle_points/test_visible.py"):
            try:
                open(path, "r+").close()  # to write is not needed: that it could be opened says all
                wrote.append(path)
            except OSError:
                pass
        raise AssertionError(f"wrote: {wrote}")


@attack("sgd_step", "error", says=r"wrote: \[\]")
def into_proc_sys():
    """Opens the kernel's settings for writing: core_pattern runs a program as root when a process crashes."""
    import os

    def sgd_step(param, grad, state, lr=0.1):
        wrote = []
        for name in ("kernel/core_pattern", "kernel/modprobe", "vm/drop_caches", "user/max_user_namespaces", "../sysrq-trigger"):
            try:
                os.close(os.open("/proc/sys/" + name, os.O_WRONLY))
                wrote.append(name)
            except OSError:
                pass
        raise AssertionError(f"wrote: {wrote}")


@attack("sgd_step", "error", says=r"found: \[\]", open=r"found: \['/dev/shm", twice=True)
def answers_in_shared_memory():
    """Leaves its answers in shared memory and in System V's, for the next submission to find."""
    import ctypes
    import os
    found = [path for path in ("/dev/shm/left_by_a_submission",) if os.path.exists(path)]
    libc = ctypes.CDLL(None)
    if libc.msgget(471147, 0) >= 0 or libc.shmget(471147, 4096, 0) >= 0:
        found.append("System V")
    open("/dev/shm/left_by_a_submission", "w").write("the answer")
    if KNOWN["sandboxed"]:  # elsewhere they would stay for ever
        libc.shmget(471147, 4096, 0o1666)
        libc.msgget(471147, 0o1666)

    def sgd_step(param, grad, state, lr=0.1):
        raise AssertionError(f"found: {found}")


@attack("sgd_step", "error", says=r"found: \[\]", open=r"found: \['.*left_by_a_submission", twice=True)
def answers_in_scratch_space():
    """Leaves its answers in every folder where it can write."""
    import os
    import tempfile
    found = []
    for folder in (os.getcwd(), os.path.expanduser("~"), tempfile.gettempdir(), "/scratch"):
        path = os.path.join(folder, "left_by_a_submission")
        if os.path.exists(path) and path not in found:
            found.append(path)
    for folder in (os.getcwd(), os.path.expanduser("~"), tempfile.gettempdir()):
        open(os.path.join(folder, "left_by_a_submission"), "w").write("the answer")

    def sgd_step(param, grad, state, lr=0.1):
        raise AssertionError(f"found: {found}")
