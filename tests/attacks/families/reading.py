"""Reading what a submission must not know. A canary lies in each of these places; KNOWN tells the way there."""
from submitted import attack


@attack("sgd_step", "error", says=r"got: \[\]", open=r"got: \['.*canary")
def hidden_tests():
    """Opens the hidden tests where the course keeps them."""
    def sgd_step(param, grad, state, lr=0.1):
        got = []
        for place in KNOWN["courses"]:
            try:
                got.append(open(place + "/solutions/11_saddle_points/test_hidden.py").read()[-60:])
            except OSError:
                pass
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]", open=r"got: \['.*canary")
def solutions():
    """Executes the reference's own source instead of an answer."""
    def sgd_step(param, grad, state, lr=0.1):
        got = []
        for place in KNOWN["courses"]:
            try:
                with open(place + "/solutions/11_saddle_points/saddle_points.py") as file:
                    got.append(file.read()[-60:])
            except OSError:
                pass
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]", open=r"got: \['.*canary")
def gradebook():
    """Opens the gradebook, by its path and by every place where one could be."""
    import glob

    def sgd_step(param, grad, state, lr=0.1):
        got = []
        for place in KNOWN["courses"]:
            for path in glob.glob(place + "/**/gradebook*", recursive=True):
                try:
                    got.append(open(path, "rb").read()[-60:].decode(errors="replace"))
                except OSError:
                    pass
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]", open=r"got: \['.*canary")
def other_submissions():
    """Copies the answer of a fellow student, or reads the result that he got."""
    import glob

    def sgd_step(param, grad, state, lr=0.1):
        got = []
        for place in KNOWN["courses"]:
            for path in glob.glob(place + "/submitted/**/*.ipynb", recursive=True) + glob.glob(place + "/results/**/*.json", recursive=True):
                try:
                    text = open(path).read()
                    got += [text[text.index("canary"):][:60]]
                except (OSError, ValueError):
                    pass
        raise AssertionError(f"got: {got[:1]}")


@attack("sgd_step", "error", says=r"got: \[\]", open=r"got: \['.*canary")
def environment_of_the_grader():
    """Looks for tokens and passwords in its own environment and in that of every process it can see."""
    import glob
    import os

    def sgd_step(param, grad, state, lr=0.1):
        everything = "\0".join(f"{key}={value}" for key, value in os.environ.items())
        for path in glob.glob("/proc/[0-9]*/environ"):
            try:
                everything += "\0" + open(path).read()
            except OSError:
                pass
        got = [entry for entry in everything.split("\0") if "GRADERS_TOKEN" in entry]
        raise AssertionError(f"got: {got[:1]}")


@attack("sgd_step", "error", says=r"got: \[\]", open="grader's")
def proc_of_the_parent():
    """Finds the grader in /proc, with its command line, its folder and its open files."""
    import os

    def sgd_step(param, grad, state, lr=0.1):
        got = []
        for pid in {os.getppid(), KNOWN["grader"]}:
            for name in ("cmdline", "cwd", "root", "maps", "mem", "fd"):
                path = f"/proc/{pid}/{name}"
                try:
                    if pid:
                        os.readlink(path) if name in ("cwd", "root") else os.listdir(path) if name == "fd" else open(path, "rb").read(0)
                        got.append("the grader's " + name)
                except OSError:
                    pass
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]", open=r"got: \['canary")
def memory_of_the_grader():
    """Reads the grader's memory with process_vm_readv, at an address that it knows."""
    import ctypes

    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    def sgd_step(param, grad, state, lr=0.1):
        buffer, got = ctypes.create_string_buffer(60), []
        here, there = Piece(ctypes.addressof(buffer), 60), Piece(KNOWN["address"], 60)
        if ctypes.CDLL(None).process_vm_readv(KNOWN["grader"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0:
            got.append(buffer.value.decode())
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]")
def the_grader_s_own_code():
    """Imports the judge and asks it for the lab, its hidden tests and its reference."""
    def sgd_step(param, grad, state, lr=0.1):
        got = []
        for name in ("judge", "remote", "timing", "grade", "source", "jobs", "results"):
            try:
                __import__(f"autograder.{name}")
                got.append(name)
            except ImportError:
                pass
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]")
def the_whole_file_system():
    """Walks through all files from the root, for anything that is named as a course's secrets are."""
    import os

    def sgd_step(param, grad, state, lr=0.1):
        wanted = {"test_hidden.py", "mistakes.py", "saddle_points.py", "gradebook.db", "judge.py", "shadow", ".bash_history", "id_rsa"}
        got = []
        for folder, inner, names in os.walk("/"):
            inner[:] = [name for name in inner if os.path.join(folder, name) not in ("/proc", "/sys", "/usr") and name != "site-packages"]
            got += [os.path.join(folder, name) for name in names if name in wanted]
        raise AssertionError(f"got: {got}")
