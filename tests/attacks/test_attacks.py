"""Every attack, graded as `autograder grade` does it, gets its verdict; the grader and the others do not notice."""
import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
import torch
from submitted import Attack, all_attacks

from autograder import bubblewrap, jobs, remote, timing
from autograder.bubblewrap import ROOT
from autograder.demo import LAB, fill, reference_sources
from autograder.grade import find_submissions, grade
from autograder.gradebook import save_class
from autograder.jobs import Job, work
from autograder.processes import tree

ATTACKS = all_attacks()
CANARY = "canary-" + "0123456789abcdef"
MARK = "left_by_a_submission"
QUIET = ("values", "patching", "honest")   # whatever they do wrong shows in their own verdicts


class Grader:
    """A grader with a course of its own, where a canary lies in everything that a submission must not see."""

    def __init__(self, sandboxed: bool):
        self.root = Path(tempfile.mkdtemp(prefix="trainfast-course-"))
        self.root.chmod(0o755)  # what the sandbox does not hide is open to everyone
        for folder in ("solutions", "labs"):
            shutil.copytree(ROOT / folder / LAB, self.root / folder / LAB)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for path in (self.root / "solutions" / LAB).glob("*.py"):
            path.write_text(path.read_text() + f"\n# {CANARY}\n")
        for name in ("gradebook.db", f"results/{LAB}/bob.json", f"submitted/bob/{LAB}/saddle_points.ipynb"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(f'{{"answer": "{CANARY}"}}\n')
        self.secret = ctypes.create_string_buffer(CANARY.encode())
        self.tcp, self.unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.unix.bind(f"\0trainfast-attacks-{os.getpid()}-{sandboxed}")
        self.unix.listen()
        # Another process with a secret; it ends with its standard input, so also when this one is killed.
        self.neighbour = subprocess.Popen(["cat"], stdin=subprocess.PIPE, env={"GRADERS_TOKEN": CANARY, "PATH": os.environ["PATH"]})
        self.known = {"course": str(self.root), "courses": [str(self.root), str(ROOT)], "grader": os.getpid(),
                      "submissions": [str(self.root / f"submitted/bob/{LAB}/saddle_points.ipynb")],
                      "port": self.tcp.getsockname()[1], "abstract": self.unix.getsockname()[1:].decode(),
                      "address": ctypes.addressof(self.secret), "anary": CANARY[1:], "first_request": 1, "sandboxed": sandboxed}
        self.lab = jobs.lab_of(self.root, LAB)
        self.server = jobs.server_for(self.lab)
        self.reference = reference_sources(self.lab)
        cells = [cell.name for cell in self.lab.cells(self.write("reference", {}))]
        self.known["cell"] = cells.index("sgd_step") + 1    # after the cell that tells what is known
        self.before = self.files()

    def write(self, student: str, sources: dict[str, str], *first: str) -> Path:
        """The released notebook with the reference's cells but for these, and with some cells more at the start."""
        notebook = fill(self.lab.released, {**self.reference, **sources})
        notebook.cells[1:1] = [nbformat.v4.new_code_cell(source) for source in first]
        path = self.root / "incoming" / f"{student}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    def grade(self, attack: Attack) -> dict:
        """The attacked exercise, and one beside it."""
        path = self.write("eve", {attack.exercise: attack.source}, f"KNOWN = {self.known!r}", attack.prelude or "pass")
        return self.judge("eve", path, attack.exercise, beside(attack), speed=attack.timed)

    def judge(self, student: str, path: Path, *exercises: str, speed: bool = False) -> dict:
        verdict = work(Job(self.root, LAB, student, path, exercises=exercises, speed=speed))
        assert type(verdict) is dict, f"a submission stopped the grader: {verdict}"
        assert "isolated" in verdict["isolation"] and verdict["isolation"].startswith("not ") != self.known["sandboxed"]
        return verdict

    def files(self) -> dict[str, bytes]:
        """All of the course, but what is being handed in."""
        return {str(path): path.read_bytes() for path in self.root.rglob("*")
                if path.is_file() and "incoming" not in path.parts and "__pycache__" not in path.parts}

    def restore(self) -> None:
        for path in self.files().keys() - self.before.keys():
            os.unlink(path)
        for path, content in self.before.items():
            Path(path).write_bytes(content)

    def processes(self) -> list[int]:
        """All that run below the fork server: itself, and nothing else between two submissions."""
        return [pid for process in self.server._processes for pid in tree(process._popen.pid)]

    def knocks(self) -> int:
        """How many connections were made to the grader's own services."""
        count = 0
        for listener in (self.tcp, self.unix):
            listener.settimeout(0)
            try:
                while True:
                    listener.accept()[0].close()
                    count += 1
            except OSError:
                pass
        return count

    def left(self) -> list[str]:
        """Files that a submission has left where others could find them."""
        places = [Path("/dev/shm"), Path(tempfile.gettempdir()), Path(self.server._folder.name), Path.cwd(), Path.home()]
        return [str(path) for place in places if place.is_dir() for path in place.glob(f"*{MARK}*")]

    def close(self) -> None:
        self.server.close()
        jobs._server.cache_clear()
        self.neighbour.communicate()
        self.tcp.close(), self.unix.close()
        shutil.rmtree(self.root)


def beside(attack: Attack) -> str:
    return "sgd_step" if attack.exercise == "momentum_step" else "momentum_step"


@pytest.fixture(scope="module", autouse=True)
def short_deadlines():
    """So that what waits for a time-out takes no longer than it must. The timing is coarse: no verdict here is near the target."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "CALL_SECONDS", 2.0)
        patch.setattr(remote, "CELL_SECONDS", 5.0)
        patch.setattr(timing, "WINDOW_SECONDS", 0.03)
        patch.setattr(timing, "BASELINE_SECONDS", 0.03)
        patch.setattr(timing, "PAIRS", timing.FEW_PAIRS)
        yield


@pytest.fixture(scope="module")
def grader():
    if reason := bubblewrap.missing() or bubblewrap.cure():
        pytest.skip(f"attacks need a sandbox, and here it is {reason}")
    grader = Grader(sandboxed=True)
    yield grader
    grader.close()


@pytest.fixture(scope="module")
def open_grader():
    """The same without a sandbox: here the attacks that are aimed at it win."""
    if sys.platform != "linux":
        pytest.skip("the attacks are written for Linux")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bubblewrap, "missing", lambda: "this test does without")
        grader = Grader(sandboxed=False)
    yield grader
    grader.close()


def messages(verdict: dict) -> str:
    return "\n".join(test["message"] for test in verdict["tests"])


def marks(*names):
    return [pytest.param(each, id=f"{each.family}-{each.name}", marks=[pytest.mark.gpu] * each.gpu) for each in names]


@pytest.mark.parametrize("attack", marks(*ATTACKS))
def test_an_attack_gets_its_verdict_and_nobody_else_notices(attack, grader):
    if attack.gpu and not (torch.cuda.is_available() and grader.server.gpu):
        pytest.skip("needs a CUDA device, shown to this lab's submissions")
    for _ in range(1 + attack.twice):
        verdict = grader.grade(attack)
    speed = [test for test in verdict["tests"] if test["name"].startswith("speed_")]
    mine = [test for test in verdict["tests"] if test["exercise"] == attack.exercise and test not in speed]
    others = [test for test in verdict["tests"] if test["exercise"] != attack.exercise]

    assert mine and {test["status"] for test in mine} <= attack.status, messages(verdict)
    if attack.status == {"passed"}:
        assert all(test["points"] == test["max_points"] for test in mine)
    elif "passed" not in attack.status:
        assert not any(test["points"] for test in mine)
    assert re.search(attack.says, messages(verdict), re.S), messages(verdict)
    if not attack.spreads:
        assert others and all(test["status"] == "passed" and test["points"] == test["max_points"] for test in others), messages(verdict)
    if attack.timed:
        [speed] = speed
        faster = re.search("([0-9.]+) times faster", speed["message"])
        if attack.family == "honest":   # on a busy machine it may miss the target, but not by so much
            assert faster and float(faster[1]) > 2, speed["message"]
        else:
            assert speed["status"] in ("failed", "error") and speed["points"] == 0, speed["message"]

    assert CANARY not in json.dumps(verdict)
    assert grader.files() == grader.before
    assert grader.knocks() == 0
    assert grader.left() == []
    assert len(grader.processes()) <= 3     # bubblewrap, its number 1, the fork server
    if attack.family in QUIET:
        return
    honest = grader.judge("ada", grader.root / "incoming" / "reference.ipynb", "sgd_step")
    assert honest["score"] == honest["max_score"] > 0, messages(honest)


@pytest.mark.parametrize("attack", marks(*(each for each in ATTACKS if each.open)))
def test_without_a_sandbox_the_same_attack_wins(attack, open_grader):
    """Or the test above would prove nothing."""
    try:
        for _ in range(1 + attack.twice):
            verdict = work(Job(open_grader.root, LAB, "eve", open_grader.write(
                "eve", {attack.exercise: attack.source}, f"KNOWN = {open_grader.known!r}", "pass"), (attack.exercise,), speed=False))
        if open_grader.files() != open_grader.before:
            return
        assert re.search(attack.open, messages(verdict), re.S), verdict
    finally:
        open_grader.restore()
        open_grader.knocks()
        for path in open_grader.left():
            os.unlink(path)


def test_there_are_enough_of_both_kinds():
    honest = [each for each in ATTACKS if each.family == "honest"]
    assert len(honest) >= 12 and len(ATTACKS) - len(honest) >= 40
    assert all(each.tries for each in ATTACKS)


def test_what_attackers_write_in_their_messages_reaches_results_and_gradebook_as_plain_text(grader, tmp_path):
    """A whole class: half characters, a page with a program in it, and an honest one after them."""
    wanted = ["half_characters", "a_page_for_the_instructor", "telling_the_hidden_inputs"]
    for each in ATTACKS:
        if each.name in wanted:
            folder = tmp_path / "submitted" / each.name / LAB
            folder.mkdir(parents=True)
            shutil.copy(grader.write(each.name, {each.exercise: each.source}, f"KNOWN = {grader.known!r}"), folder / "saddle_points.ipynb")
            os.unlink(grader.root / "incoming" / f"{each.name}.ipynb")
    folder = tmp_path / "submitted" / "zoe" / LAB
    folder.mkdir(parents=True)
    shutil.copy(grader.root / "incoming" / "reference.ipynb", folder / "saddle_points.ipynb")
    submissions = find_submissions(LAB, [tmp_path / "submitted"])
    results = grade(LAB, submissions, tmp_path / "results", speed=False, root=grader.root, exercises=["sgd_step"], jobs=1)
    save_class(grader.root, LAB, submissions, results, tmp_path)

    assert [result["score"] == result["max_score"] for result in results] == [False] * 3 + [True]
    for result in results:
        assert json.loads((tmp_path / "results" / LAB / f"{result['student']}.json").read_text())["tests"] == result["tests"]
        text = messages(result)
        assert all(character.isprintable() or character == "\n" for character in text)
        hidden = "\n".join(test["message"] for test in result["tests"] if test["hidden"])
        assert "leak" not in hidden.lower()
    page = (tmp_path / "autograded" / "a_page_for_the_instructor" / LAB / "saddle_points.ipynb").read_text()
    assert "<script>alert" not in "".join(
        output.get("data", {}).get("text/html", "") for cell in nbformat.reads(page, 4).cells for output in cell.get("outputs", []))


def test_a_paused_submission_gets_no_time_and_goes_on_afterwards(grader):
    """Threads and children included: the baseline's windows are measured meanwhile."""
    code = """if True:
        import os, threading
        def busy():
            while True:
                pass
        for _ in range(3):
            if os.fork() == 0:
                threading.Thread(target=busy).start()
                ctypes.CDLL(None).pthread_exit(None)
        def still(): return 1
    """
    submission = remote.Remote(grader.server, ["import ctypes", code])
    try:
        assert not submission.cell_errors
        pids = tree(submission._child.pid)

        def spent():
            return sum(int(field) for pid in pids for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        with submission.paused():
            before = spent()
            time.sleep(0.3)
            assert spent() == before and len(pids) == 4
        time.sleep(0.3)
        assert spent() > before
        submission.begin("still")
        assert submission.ask("call", {"function": "still"}, ((), {}, None), "result", name="still")[0] == 1
    finally:
        submission.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
