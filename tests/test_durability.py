"""Nothing is lost: whatever dies and whenever, the same command finishes the rest and repeats nothing finished.

Most facts are about the machinery, with workers that judge nothing and cost nothing; one is about the real thing.
"""
import json
import multiprocessing
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest

from autograder import grade as grading
from autograder import ledger, results, timing
from autograder import pool as pools
from autograder.cli import app
from autograder.grade import NothingToGrade, Submission, grade, known_exercises, only
from autograder.jobs import Job
from autograder.ledger import merge
from autograder.results import Busy, CannotWrite, one_writer, read_json, write_atomically
from course.spec.run import Result

ROOT = Path(__file__).resolve().parents[1]
LAB = "11_doubling"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# ---------------------------------------------------------------- workers that judge nothing

WORK = '''\
import os, secrets, signal, sys, time
from pathlib import Path

def work(job):
    """What a job does stands in its path's name: sleep, die the first time, die always, fail, or nothing."""
    what, here = job.path.stem, job.path.parent
    with open(here / "log", "a") as log:
        log.write(f"{job.student} {os.getpid()}\\n")
    if what == "sleeps":
        time.sleep(600)
    if what == "dies" or what == "dies_once" and len([l for l in (here / "log").read_text().splitlines() if l.startswith(job.student + " ")]) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exits":
        os._exit(0)
    if what == "fails":
        raise ValueError("all of them")
    time.sleep(0.05)
    return {"student": job.student, "lab": job.lab, "score": 1.0, "max_score": 1.0, "error": "", "notes": [], "tests": [],
            "device": "d", "isolation": "isolated", "seconds": 0.0, "seed": secrets.randbits(60), "peak_bytes": 0}
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(what, ...)` is a list of jobs that do this; `fake.work` does them, also in a worker."""
    (tmp_path / "trainfast_fake_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    import trainfast_fake_work

    def jobs(*what):
        return [Job(tmp_path, LAB, f"{name}_{number}", tmp_path / f"{name}.ipynb") for number, name in enumerate(what)]
    jobs.work, jobs.log = trainfast_fake_work.work, tmp_path / "log"
    yield jobs
    del sys.modules["trainfast_fake_work"]


def run(pool, jobs):
    return {job.student: answer if isinstance(answer, str) else "judged" for job, answer in pool.run(jobs)}


def test_a_dead_worker_costs_only_the_job_it_had_and_that_is_tried_once_more(fake):
    with pools.Pool(2, fake.work) as pool:
        answers = run(pool, fake("ok", "dies_once", "ok", "dies", "exits", "ok", "ok"))
    assert [name for name, answer in answers.items() if answer != "judged"] in (["dies_3", "exits_4"], ["exits_4", "dies_3"])
    assert "died 2 times" in answers["dies_3"]
    tries = [line.split()[0] for line in fake.log.read_text().splitlines()]
    assert {name: tries.count(name) for name in tries} == {"ok_0": 1, "dies_once_1": 2, "ok_2": 1, "dies_3": 2, "exits_4": 2, "ok_5": 1, "ok_6": 1}


def test_what_concerns_every_submission_is_raised_and_no_worker_stays(fake):
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="all of them"), pools.Pool(2, fake.work) as pool:
        run(pool, fake("sleeps", "fails"))
    assert set(multiprocessing.active_children()) == before


def test_an_idle_worker_that_is_killed_is_replaced(fake):
    with pools.Pool(1, fake.work) as pool:
        run(pool, fake("ok"))
        worker, = pool._idle
        worker.process.kill()
        worker.process.join()
        assert run(pool, fake("dies_once")) == {"dies_once_0": "judged"}    # one death is still allowed


def test_one_at_a_time_is_one_at_a_time(fake):
    with pools.Pool(3, fake.work) as pool:
        running = []
        for job, _ in pool.run(fake(*["ok"] * 4), at_a_time=1):
            running.append(len(fake.log.read_text().splitlines()))
    assert running == [1, 2, 3, 4] and len({line.split()[1] for line in fake.log.read_text().splitlines()}) == 1


# A grader whose workers judge nothing, to be killed. It prints a line when all is done.
GRADER = '''\
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from autograder import grade, pool
from trainfast_fake_work import work
if __name__ == "__main__":
    grade.specification_stamp = lambda root, lab: "0" * 16
    grade._workers = lambda scheduler, jobs: pool.Pool(2, work)
    submissions = [grade.Submission(f"s{{i:02}}", Path({folder!r}) / "ok.ipynb") for i in range(24)]
    grade.grade("11_doubling", submissions, Path({folder!r}) / "results", **eval(sys.argv[1]))
    print("done")
'''


@linux
@pytest.mark.parametrize("options", [{}, {"regrade": True}], ids=["first time", "regrading"])
def test_a_grader_killed_at_any_moment_goes_on_where_it_was(fake, tmp_path, options):
    (tmp_path / "grader.py").write_text(GRADER.format(folder=str(tmp_path)))
    (tmp_path / "ok.ipynb").write_text("{}")
    folder, command = tmp_path / "results" / LAB, [sys.executable, str(tmp_path / "grader.py"), repr(options)]
    if options:
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    first = {path.stem: read_json(path)["seed"] for path in folder.glob("*.json")}
    finished, kills = {}, 0
    while True:
        grader = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        wanted = len(finished) + 7
        while grader.poll() is None and len(_seeds(folder, first)) < wanted:
            time.sleep(0.01)
        started = psutil.Process(grader.pid).children(recursive=True) if grader.poll() is None else []
        grader.kill()
        said = grader.communicate()[0]
        assert psutil.wait_procs(started, timeout=60)[1] == []
        now = _seeds(folder, first)
        assert finished.items() <= now.items()     # nothing lost, nothing repeated
        finished = now
        if said:
            break
        kills += 1
    assert len(finished) == 24 and kills >= 2 and not (folder / ".regrading").exists()


def _seeds(folder, first):
    """What was judged since then: the seed of each result tells one run of it from another."""
    now = {path.stem: (read_json(path) or {}).get("seed") for path in folder.glob("*.json")}
    return {name: seed for name, seed in now.items() if seed != first.get(name)}


# ---------------------------------------------------------------- which are judged, and what is kept

class Here:
    """Workers in this process. `verdicts` maps a test to its status, or a student to words."""
    gpus = 0

    def __init__(self):
        self.asked, self.verdicts = [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, jobs, at_a_time=None):
        for job in jobs:
            self.asked.append((job.student, job.exercises, at_a_time))
            if job.student in self.verdicts:
                yield job, self.verdicts[job.student]
                continue
            tests = [self._test(name) for name in ("double_two", "double_speed", "triple_two")]
            tests = [t for t in tests if job.exercises is None or t.exercise in job.exercises]
            yield job, {"student": job.student, "lab": job.lab, "error": "", "notes": [], "device": "d", "isolation": "isolated",
                        "score": sum(t.points for t in tests), "max_score": float(len(tests)), "seconds": 1.0, "seed": 0,
                        "peak_bytes": 1, "tests": [t.to_dict() for t in tests]}

    def _test(self, name):
        status = self.verdicts.get(name, "passed")
        if isinstance(status, list):
            status = status.pop(0)
        return Result(name, name.split("_")[0], float(status == "passed"), float(status != "deferred"), status)


@pytest.fixture
def here(monkeypatch):
    workers = Here()
    monkeypatch.setattr(grading, "_workers", lambda scheduler, jobs: workers)
    monkeypatch.setattr(grading, "specification_stamp", lambda root, lab: workers.verdicts.get("stamp", "a" * 16))
    monkeypatch.setattr(ledger, "not_judged", lambda job, reason: {
        "student": job.student, "lab": job.lab, "error": reason, "notes": [], "tests": [], "device": "", "isolation": "", "score": 0.0,
        "max_score": 3.0, "seconds": 0.0, "seed": 0, "peak_bytes": 0})
    return workers


@pytest.fixture
def three(tmp_path):
    for name in ("ada", "ben", "cleo"):
        (tmp_path / f"{name}.ipynb").write_text(name)
    return [Submission(name, tmp_path / f"{name}.ipynb") for name in ("ada", "ben", "cleo")]


def students(workers):
    asked, workers.asked = [student for student, *_ in workers.asked], []
    return asked


def test_what_is_judged_stays_judged_until_the_notebook_or_the_tests_change(here, three, tmp_path):
    grade(LAB, three, tmp_path / "r")
    assert students(here) == ["ada", "ben", "cleo"]
    assert [r["student"] for r in grade(LAB, three, tmp_path / "r")] == ["ada", "ben", "cleo"] and students(here) == []
    three[1].path.write_text("changed")
    grade(LAB, three, tmp_path / "r")
    assert students(here) == ["ben"]
    here.verdicts["stamp"] = "b" * 16
    grade(LAB, three, tmp_path / "r")
    assert students(here) == ["ada", "ben", "cleo"]


def test_progress_is_told_once_for_each(here, three, tmp_path):
    told = []
    here.verdicts["double_speed"] = "inconclusive"
    for _ in range(2):
        grade(LAB, three, tmp_path / "r", progress=lambda result: told.append(result["student"]))
    assert told == ["ada", "ben", "cleo"] * 2


def test_one_student_is_judged_again_and_no_other(here, three, tmp_path):
    grade(LAB, three, tmp_path / "r")
    students(here)
    grade(LAB, only(["ben"], three), tmp_path / "r", regrade=True)
    assert students(here) == ["ben"]


def test_a_student_or_an_exercise_that_is_not_there_is_named_with_those_that_are(three, small_course):
    with pytest.raises(NothingToGrade, match="No submission of eve is there; there are those of ada, ben, cleo."):
        only(["ada", "eve"], three)
    root = small_course()
    assert known_exercises(root, LAB, ["triple"]) == ["triple"] and known_exercises(root, LAB, None) == []
    with pytest.raises(NothingToGrade, match="has no exercise halve; it has double, triple."):
        known_exercises(root, LAB, ["double", "halve"])


def test_one_exercise_is_judged_again_and_all_other_verdicts_stay(here, three, tmp_path):
    here.verdicts = {"double_two": "failed", "triple_two": "failed"}
    grade(LAB, three, tmp_path / "r")
    students(here)
    here.verdicts = {"stamp": "b" * 16}     # the test of double is mended
    three[2].path.write_text("changed")     # there is nothing to merge into
    new = {r["student"]: r for r in grade(LAB, three, tmp_path / "r", exercises=["double"])}
    assert here.asked == [("ada", ("double",), None), ("ben", ("double",), None), ("cleo", None, None)]
    assert {name: [t["status"] for t in r["tests"]] for name, r in new.items()} == {
        "ada": ["passed", "passed", "failed"], "ben": ["passed", "passed", "failed"], "cleo": ["passed"] * 3}
    assert new["ada"]["score"] == 2 and new["ada"]["max_score"] == 3
    students(here)
    grade(LAB, three, tmp_path / "r")  # that the test of triple is the same is not known
    assert students(here) == ["ada", "ben"]


def test_merging_keeps_the_order_and_counts_nothing_deferred():
    def result(*tests, isolation="isolated"):
        return {"tests": [Result(name, name[0], p, 0 if s == "deferred" else 1, s).to_dict() for name, p, s in tests],
                "error": "", "notes": [], "device": "", "isolation": isolation, "seconds": 1, "peak_bytes": 5, "stamp": "kept"}
    kept = result(("a1", 1, "passed"), ("b1", 0, "failed"), ("b2", 0, "failed"), ("c1", 1, "passed"), isolation="not isolated: why")
    merged = merge(kept, result(("b1", 1, "passed"), ("b3", 0, "deferred"), ("c1", 0, "failed")), lambda t: t["exercise"] == "b")
    assert [t["name"] for t in merged["tests"]] == ["a1", "b1", "b3", "c1"]
    assert (merged["score"], merged["max_score"], merged["stamp"]) == (3, 3, "kept")
    assert merged["isolation"] == "not isolated: why"  # of a part of it


def test_a_submission_that_cannot_be_judged_has_an_error_and_is_tried_again_the_next_time(here, three, tmp_path):
    here.verdicts["ben"] = "the process that judged it died"
    found = grade(LAB, three, tmp_path / "r")
    assert [r["error"] for r in found] == ["", "the process that judged it died", ""]
    students(here)
    del here.verdicts["ben"]
    assert [r["error"] for r in grade(LAB, three, tmp_path / "r")] == ["", "", ""] and students(here) == ["ben"]


def test_inconclusive_speed_is_tried_once_more_alone_after_all_others(here, three, tmp_path):
    here.verdicts["double_speed"] = ["inconclusive", "passed", "inconclusive", "inconclusive", "passed"]
    found = grade(LAB, three, tmp_path / "r")
    assert here.asked[3:] == [("ada", ("double",), 1), ("cleo", ("double",), 1)]
    assert [r["tests"][1]["status"] for r in found] == ["inconclusive", "passed", "passed"]
    assert [len(r["tests"]) for r in found] == [3, 3, 3]
    students(here)
    grade(LAB, three, tmp_path / "r")
    assert students(here) == []     # once


def test_a_second_look_that_a_kill_prevented_is_made_the_next_time(here, three, tmp_path):
    here.verdicts["double_speed"] = "inconclusive"
    run = here.run

    def killed(jobs, at_a_time=None):
        if at_a_time == 1:
            raise KeyboardInterrupt
        yield from run(jobs, at_a_time)
    here.run = killed
    with pytest.raises(KeyboardInterrupt):
        grade(LAB, three, tmp_path / "r")
    here.run, here.asked, here.verdicts = run, [], {}
    assert all(r["tests"][1]["status"] == "passed" for r in grade(LAB, three, tmp_path / "r"))
    assert here.asked == [(name, ("double",), 1) for name in ("ada", "ben", "cleo")]


def test_results_of_a_grader_without_isolation_do_not_pass_where_it_is_required(here, three, tmp_path):
    grade(LAB, three, tmp_path / "r")
    path = tmp_path / "r" / LAB / "ada.json"
    path.write_text(path.read_text().replace('"isolated"', '"not isolated: no bubblewrap"'))
    students(here)
    grade(LAB, three, tmp_path / "r", require_isolation=True)
    assert students(here) == ["ada"]


# ---------------------------------------------------------------- files

@contextmanager
def a_file_may_hold(size):
    """As on a disk with so much room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_as_it_was_or_complete_and_a_failure_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new folder" / "result.json"
    write_atomically(path, b"first")
    with a_file_may_hold(100), pytest.raises(CannotWrite, match="cannot be written: File too large. Make room or choose another"):
        write_atomically(path, b"x" * 1000)
    assert path.read_bytes() == b"first" and [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_on_a_full_disk_grading_stops_with_what_was_judged_and_goes_on_when_there_is_room(here, three, tmp_path):
    grade(LAB, three[:1], tmp_path / "r")
    with a_file_may_hold(100), pytest.raises(CannotWrite, match="ben.json cannot be written"):
        grade(LAB, three, tmp_path / "r")
    students(here)
    assert len(grade(LAB, three, tmp_path / "r")) == 3 and students(here) == ["ben", "cleo"]


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "read only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("root, and mounting is not allowed")
    yield folder
    subprocess.run(["umount", folder], capture_output=True) if os.geteuid() == 0 else folder.chmod(0o755)


def test_a_folder_that_is_read_only_is_a_clear_error(read_only):
    with pytest.raises(CannotWrite, match="read only cannot be written: (Read-only file system|Permission denied)"):
        with one_writer(read_only):
            pass


def test_a_gradebook_that_cannot_be_written_is_a_clear_error(tmp_path):
    from sqlalchemy import create_engine, text
    engine = create_engine(f"sqlite:///{tmp_path / 'gradebook.db'}")
    with a_file_may_hold(0), pytest.raises(CannotWrite, match=r"gradebook\.db cannot be written: .+\. Make room"):
        with results.gradebook_errors(tmp_path / "gradebook.db"), engine.begin() as connection:
            connection.execute(text("create table marks (student text)"))


def test_a_gradebook_whose_making_was_cut_short_is_made_anew_and_no_other(tmp_path):
    made, path = "create table alembic_version (version_num text); insert into alembic_version values ('1')", tmp_path / "grade book.db"
    for script, stays in [("create table student (id text)", False), ("create table alembic_version (version_num text)", False),
                          (made, True), ("create table assignment (id text); insert into assignment values ('a')", True)]:
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as book:
            book.executescript(script)
        with results.gradebook_errors(path):
            assert path.exists() == stays
    path.unlink()
    with results.gradebook_errors(path):
        assert not path.exists()


def test_two_graders_do_not_write_to_one_folder(tmp_path):
    with one_writer(tmp_path / "out"):
        with pytest.raises(Busy, match="Another grader is writing to .*out. Wait for it"), one_writer(tmp_path / "out"):
            pass
        with one_writer(tmp_path / "elsewhere"):
            pass
    with one_writer(tmp_path / "out"):
        pass


def test_what_a_killed_grader_left_half_written_is_removed(tmp_path):
    left = [tmp_path / "results" / LAB / ".ada.json.123.partial", tmp_path / "autograded" / "ada" / LAB / ".doubling.ipynb.123.partial"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_text("half of")
    with one_writer(tmp_path):
        assert not any(path.exists() for path in left)


def test_the_command_line_has_these_errors_in_one_line(tmp_path, small_course, monkeypatch):
    from typer.testing import CliRunner
    root = small_course()
    (root / "ada.ipynb").write_text("{}")
    monkeypatch.chdir(root)
    for options, words in [(["--student", "eve"], "No submission of eve"), (["--exercise", "halve"], "has no exercise halve")]:
        found = CliRunner().invoke(app, ["grade", "11", "ada.ipynb", *options])
        assert found.exit_code == 2 and words in found.output and found.output.count("\n") == 1
    with one_writer(tmp_path / "out"):
        found = CliRunner().invoke(app, ["grade", "11", "ada.ipynb", "--out", str(tmp_path / "out")])
    assert found.exit_code == 2 and found.output.startswith("autograder: Another grader is writing to")


# ---------------------------------------------------------------- timing

def test_one_timing_runs_at_a_time(monkeypatch, tmp_path):
    inside, most = [], []

    def judged(*args):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.1)
        inside.pop()
    monkeypatch.setattr(timing, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(timing, "_judge_alone", judged)
    threads = [threading.Thread(target=timing._judge, args=(None,) * 5) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1, 1, 1, 1]


def test_a_killed_timing_lets_the_next_one_run(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(timing, "_judge_alone", lambda *args: "judged")
    holder = subprocess.Popen([sys.executable, "-c", "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); "
                               "lock.acquire(); print('held', flush=True); time.sleep(600)", timing.LOCK], stdout=subprocess.PIPE)
    holder.stdout.readline()
    threading.Timer(0.3, holder.kill).start()
    start = time.monotonic()
    assert timing._judge(*(None,) * 5) == "judged" and time.monotonic() - start >= 0.2
    holder.communicate()


# ---------------------------------------------------------------- the real thing

SLOW = "def double(x):\n    import time\n    time.sleep(0.1)\n    return 2 * x"


@pytest.fixture
def small_class(small_course):
    """A repository with the small lab and six submissions of it."""
    from autograder import build
    from autograder.demo import fill
    from autograder.judge import Lab
    root = small_course()
    build.build(root / "solutions" / LAB, root)
    lab = Lab(root, LAB)
    for number in range(6):
        path = root / "submitted" / f"s{number}" / LAB / "doubling.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(fill(lab.released, {"double": SLOW, "triple": "def triple(x):\n    return 3 * x"}), path)
    return root


@linux
@pytest.mark.slow
def test_a_class_survives_the_death_of_its_grader_and_then_of_a_worker(small_class):
    command = [sys.executable, "-m", "autograder.cli", "grade", "11", "submitted", "--jobs", "1", "--no-gradebook"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = small_class / "results" / LAB

    def start():
        return subprocess.Popen(command, cwd=small_class, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for(condition, grader):
        until = time.monotonic() + 300
        while not condition():
            assert grader.poll() is None and time.monotonic() < until, grader.communicate()[0]
            time.sleep(0.02)
    grader = start()
    wait_for(lambda: len(list(folder.glob("*.json"))) >= 2, grader)
    started = psutil.Process(grader.pid).children(recursive=True)
    assert any("forkserver" in " ".join(process.cmdline()) for process in started)
    grader.kill()
    grader.communicate()
    assert psutil.wait_procs(started, timeout=60)[1] == []
    finished = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert 2 <= len(finished) < 6 and all(json.loads(content)["score"] == 0.8 for content in finished.values())

    grader = start()
    sandbox = lambda: [p for p in psutil.Process(grader.pid).children(recursive=True) if "forkserver" in " ".join(p.cmdline())]
    wait_for(sandbox, grader)
    worker = next(p for p in sandbox()[0].parents() if p.ppid() == grader.pid)
    started = worker.children(recursive=True)
    worker.kill()
    said, _ = grader.communicate(timeout=600)
    assert grader.returncode == 0, said
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert {path.stem: read_json(path)["score"] for path in folder.glob("*.json")} == {f"s{n}": 0.8 for n in range(6)}
    assert finished.items() <= {path.name: path.read_bytes() for path in folder.glob("*.json")}.items()


@pytest.mark.slow
def test_where_submissions_cannot_be_isolated_a_grader_that_must_judges_nothing(small_class, monkeypatch):
    from typer.testing import CliRunner
    monkeypatch.chdir(small_class)
    monkeypatch.setenv("PATH", "/nowhere")
    found = CliRunner().invoke(app, ["grade", "11", "submitted", "--require-isolation", "--jobs", "1"])
    assert found.exit_code == 2 and "not isolated: bubblewrap is not installed" in found.output
    assert not list((small_class / "results").rglob("*.json"))
