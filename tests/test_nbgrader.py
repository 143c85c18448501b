"""nbgrader's own commands and formgrader, on the path of `autograder grade`."""
import contextlib
import csv
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import jinja2
import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output, new_raw_cell
from nbgrader.api import Gradebook
from nbgrader.plugins import CsvExportPlugin

from autograder import build
from autograder.demo import fill
from autograder.gradebook import GradebookError, GradebookWriter, annotate, as_html, as_text, cells_of, put_environment_on_path, save_class, scores_of
from autograder.grade import ROOT, find_submissions
from autograder.grade import grade as grade_class
from autograder.judge import Lab
from autograder.late import LatePenalty
from autograder.leaks import Secrets, normal
from autograder.pages import harmless_markdown
from autograder.source import load_lab
from autograder.submission import grade_id
from course.verdict import RECEIPT

LAB, TOPIC = "11_doubling", "doubling"
TIMED = {
    "doubling.py": ("check(double)\n", "check(double)\n\n# %%\nspeed(double)\n"),
    "test_visible.py": ("from course.spec import assert_close, exercise, probe\n", '''\
from course.spec import assert_close, exercise, probe, speed


@speed("double", points=1, ratio=2, inputs=lambda seed: (float(seed),), requires=lambda: "no machine doubles fast enough.")
def adding(x):
    """Faster than adding?"""
    return x + x
'''),
}
CONFIG = f'load_subconfig("nbgrader_config.py", path={str(ROOT)!r})\nc.LatePenalty.percent_per_day = 10\n'
RIGHT = """\
import sys, warnings

def double(x):
    warnings.warn("careful")
    print("noise", file=sys.stderr)
    return x + x
"""
ANSWER = "Because <script>alert('answer')</script> $2<4$."


# ---------------------------------------------------------------- a class, graded by nbgrader and by the autograder

@pytest.fixture(scope="module")
def course(tmp_path_factory, write_course):
    """A course folder that nbgrader's commands have graded, and in it graded/, the same class by `autograder grade`."""
    root = write_course(tmp_path_factory.mktemp("nbgrader"), TIMED)
    build.build(root / "solutions" / LAB, root)
    build.build_source(root / "solutions" / LAB, root / "source", root)
    (root / "nbgrader_config.py").write_text(CONFIG)
    nbgrader(root, "generate_assignment", LAB)
    (root / "graded").mkdir()
    hand_in(root)
    put_environment_on_path()
    for folder in (root, root / "graded"):
        with Gradebook(f"sqlite:///{folder}/gradebook.db", "trainfast") as book:
            book.update_or_create_assignment(LAB, duedate=datetime(2030, 1, 1, 12))
    said = nbgrader(root, "autograde", LAB)
    submissions = find_submissions(LAB, [root / "submitted"])
    results = grade_class(LAB, submissions, root / "graded" / "results", jobs=1, root=root)
    save_class(root, LAB, submissions, results, root / "graded")
    for folder in (root, root / "graded"):
        nbgrader(folder, "generate_feedback", LAB)
    return SimpleNamespace(root=root, graded=root / "graded", said=said, submissions=submissions, results=results)


def nbgrader(folder: Path, *arguments: str, code: int = 0) -> str:
    """What the command said, to both."""
    ran = subprocess.run([sys.executable, "-m", "nbgrader", *arguments], cwd=folder, env=quiet_environment(folder), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert ran.returncode == code, ran.stdout
    return ran.stdout


def quiet_environment(folder: Path) -> dict[str, str]:
    """Nobody's own settings of Jupyter take part."""
    own = {name: str(folder.parent / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    return {**os.environ, **own}


def hand_in(root: Path) -> None:
    """ada: all right, noisy, four days late, two of which the roster grants. ben: a known mistake, a lost check, scripts. cy: no notebook. eve: blank."""
    released = Lab(root, LAB).released
    ada = fill(released, {"double": RIGHT, "triple": "def triple(x):\n    return 3 * x"})
    ben = fill(released, {"double": "def double(x):\n    return x * x"})
    next(cell for cell in ben.cells if grade_id(cell) == "claim").source = ANSWER
    ben.cells = [cell for cell in ben.cells if grade_id(cell) != "check-double"] + [new_raw_cell("<script>alert('raw')</script>")]
    for student, text in {"ada": nbformat.writes(ada), "ben": nbformat.writes(ben), "cy": "%PDF-1.4", "eve": nbformat.writes(released)}.items():
        folder = root / "submitted" / student / LAB
        folder.mkdir(parents=True)
        (folder / f"{TOPIC}.ipynb").write_text(text)
    (root / "submitted" / "ada" / LAB / "timestamp.txt").write_text("2030-01-05 12:05:00 UTC")
    for folder in (root, root / "graded"):
        (folder / "roster.csv").write_text("id,11,12\nada,2030-01-03 12:00+00:00,\nben,2029-12-24,2030-02-02\n")
    (root / "submitted" / "ben" / LAB / "timestamp.txt").write_text("2030-01-01 12:05:00 UTC")


def grades(folder: Path, student: str) -> dict[str, tuple]:
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as book:
        return {g.name: (g.auto_score, g.manual_score, g.needs_manual_grade)
                for g in book.find_submission_notebook(TOPIC, LAB, student).grades}


def exported(folder: Path) -> list[dict[str, str]]:
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as book:
        CsvExportPlugin(to=str(folder / "grades.csv")).export(book)
    return list(csv.DictReader((folder / "grades.csv").open()))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def feedback(folder: Path, student: str) -> str:
    return (folder / "feedback" / student / LAB / f"{TOPIC}.html").read_text()


def test_nbgraders_release_is_labs(course):
    assert files(course.root / "release") == files(course.root / "labs")
    for name in files(course.root / "labs"):
        assert (course.root / "release" / name).read_bytes() == (course.root / "labs" / name).read_bytes(), name


def test_nothing_hidden_lies_in_any_tree(course):
    beside = ["probes.safetensors", "test_visible.py"]
    times = {"ada": ["timestamp.txt"], "ben": ["timestamp.txt"], "cy": [], "eve": []}

    def tree(name: str, more: list[str]) -> list[str]:
        return sorted(f"{student}/{LAB}/{file}" for student in times for file in [name, *more, *times[student]])
    assert files(course.root / "release") == sorted(f"{LAB}/{name}" for name in [f"{TOPIC}.ipynb", *beside])
    assert files(course.root / "source") == files(course.graded / "source") == files(course.root / "release")
    assert files(course.root / "autograded") == tree(f"{TOPIC}.ipynb", beside)
    assert files(course.root / "feedback") == tree(f"{TOPIC}.html", beside)
    assert files(course.graded / "autograded") == tree(f"{TOPIC}.ipynb", [])
    assert files(course.graded / "feedback") == tree(f"{TOPIC}.html", [])


def test_no_line_of_a_solution_or_hidden_test_is_in_any_tree(course):
    secrets = Secrets(*load_lab(course.root / "solutions" / LAB))
    assert "answer_of_the_reference = FACTOR * x" in secrets.lines
    for folder in [course.root / name for name in ("release", "autograded", "feedback")] + [course.graded / "autograded", course.graded / "feedback"]:
        for name in files(folder):
            text = (folder / name).read_bytes().decode(errors="replace")
            if name.endswith(".html"):
                text = html.unescape(re.sub("<[^>]+>", "", text))
            elif name.endswith(".ipynb"):
                text = "\n".join(leaf for leaf in leaves(json.loads(text)))
            words = " ".join(normal(text))
            assert [line for line in secrets.lines if line in words] == [], folder / name
            assert "nothing at all" not in text and "-1.5" not in text, folder / name
            assert not any(hidden in text for hidden in secrets.names), folder / name


def leaves(value):
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from leaves(inner)


def test_nbgrader_and_the_autograder_give_the_same_scores(course):
    nbgrader(course.root, "export", "--to", "grades.csv")
    table = list(csv.DictReader((course.root / "grades.csv").open()))
    assert table == exported(course.graded)
    assert {row["student_id"]: (row["raw_score"], row["max_score"]) for row in table} == {
        "ada": ("0.8", "5.8"), "ben": ("0.6", "5.8"), "cy": ("0.0", "5.8"), "eve": ("0.0", "5.8")}
    assert {r["student"]: r["score"] for r in course.results} == pytest.approx({"ada": 0.8, "ben": 0.6, "cy": 0, "eve": 0})
    for student in ("ada", "ben", "cy", "eve"):
        assert grades(course.root, student) == grades(course.graded, student)


def test_nbgrader_and_the_autograder_write_the_same_feedback(course):
    for student in ("ada", "ben", "cy", "eve"):
        assert feedback(course.root, student) == feedback(course.graded, student)


def test_warnings_and_output_to_stderr_cost_nothing(course):
    assert grades(course.root, "ada")["check-double"] == (0.8, None, False)


def test_what_could_not_be_measured_waits_for_a_person(course):
    assert grades(course.graded, "ada")["speed-double"] == (None, None, True)
    assert "no machine doubles fast enough" in feedback(course.graded, "ada")


def test_a_written_answer_waits_for_a_person_and_a_blank_one_does_not(course):
    assert grades(course.graded, "ben")["claim"] == (None, None, True)
    assert grades(course.graded, "eve")["claim"] == (0, None, False)


def test_an_unreadable_notebook_is_named_and_stops_nobody(course):
    reason = next(result["error"] for result in course.results if result["student"] == "cy")
    assert f"cy: {reason}" in course.said
    assert html.escape(reason) in feedback(course.graded, "cy")


def test_a_late_submission_loses_points_by_day_after_the_grace_and_the_students_own_date(course):
    rows = {row["student_id"]: (row["late_submission_penalty"], row["score"]) for row in exported(course.graded)}
    assert (rows["ada"], rows["ben"]) == (("0.16", "0.64"), ("0.0", "0.6"))


def test_feedback_has_each_message_and_no_traceback(course):
    assert "You square the number. Multiply it by two instead." in feedback(course.graded, "ben")
    assert "Repaired before grading: check-double was missing" in feedback(course.graded, "ben")
    assert "double is not written yet" in feedback(course.graded, "eve")
    assert not any("Traceback (most" in feedback(course.graded, student) for student in ("ada", "ben", "cy", "eve"))


def test_nothing_that_a_student_wrote_runs_on_a_page(course):
    page = feedback(course.graded, "ben")
    assert "alert('answer')" in html.unescape(page) and "alert('raw')" in html.unescape(page)
    assert not re.search(r"<script[^>]*>\s*alert", page)
    assert "$2&lt;4$" in page


def test_validate_runs_the_students_own_check(course):
    folder = course.root / "elsewhere" / LAB
    shutil.copytree(course.root / "labs" / LAB, folder)
    released = nbformat.read(folder / f"{TOPIC}.ipynb", as_version=4)
    nbformat.write(fill(released, {"double": "def double(x):\n    return x + 1"}), folder / f"{TOPIC}.ipynb")
    said = nbgrader(folder, "validate", f"{TOPIC}.ipynb")
    assert "check(double)" in said and "Not so: two is doubled." in said and "Traceback" not in said


# ---------------------------------------------------------------- the formgrader

@pytest.fixture(scope="module")
def formgrader(course):
    """`ask(path, body=None)` talks to a Jupyter server opened where `autograder grade` wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (course.graded.parent / "server.log").open("w+")
    server = subprocess.Popen([sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
                               "--IdentityProvider.token=secret", f"--ServerApp.root_dir={course.graded}"],
                              cwd=course.graded, env=quiet_environment(course.root), stdout=log, stderr=log)

    def ask(path: str, body: dict | None = None, method: str = "GET") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", method=method, headers={"Authorization": "token secret"},
                                         data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.read().decode()
    try:
        deadline = time.monotonic() + 300
        while True:
            assert server.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            try:
                ask("api/status")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield ask
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        try:
            server.wait(60)
            left = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        finally:
            for process in [server, *family]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()
            log.close()
    assert left == []


def test_the_formgrader_shows_labs_scores_and_submissions(course, formgrader):
    [lab] = json.loads(formgrader("formgrader/api/assignments"))
    assert (lab["name"], lab["num_submissions"], lab["max_score"]) == (LAB, 4, 5.8)
    shown = {s["student"]: s for s in json.loads(formgrader(f"formgrader/api/submissions/{LAB}"))}
    assert {name: s["score"] for name, s in shown.items()} == {"ada": 0.8, "ben": 0.6, "cy": 0, "eve": 0}
    assert all(s["autograded"] for s in shown.values())
    assert json.loads(formgrader(f"formgrader/api/submission/{LAB}/ada"))["score"] == 0.8
    page = formgrader(f"formgrader/submissions/{notebook_id(formgrader, 'ben')}/")
    assert 'id="check-double"' in page and "You square the number." in page
    assert not re.search(r"<script[^>]*>\s*alert", page)


def test_grading_again_keeps_marks_and_comments(course, formgrader):
    mine = f"?submission_id={notebook_id(formgrader, 'ben')}"
    [claim] = [g for g in json.loads(formgrader(f"formgrader/api/grades{mine}")) if g["name"] == "claim"]
    [comment] = [c for c in json.loads(formgrader(f"formgrader/api/comments{mine}")) if c["name"] == "claim"]
    formgrader(f"formgrader/api/grade/{claim['id']}", {"manual_score": 3, "extra_credit": 0.5}, "PUT")
    formgrader(f"formgrader/api/comment/{comment['id']}", {"manual_comment": "Well argued."}, "PUT")

    def kept() -> bool:
        with Gradebook(f"sqlite:///{course.graded}/gradebook.db") as book:
            notebook = book.find_submission_notebook(TOPIC, LAB, "ben")
            [theirs] = [c.comment for c in notebook.comments if c.name == "claim"]
            return (notebook.score, theirs) == (pytest.approx(4.1), "Well argued.")
    assert kept()
    answer = json.loads(formgrader(f"formgrader/api/submission/{LAB}/ben/autograde", {}, "POST"))  # the formgrader's own button
    assert answer["success"], answer
    assert kept() and grades(course.graded, "ben")["check-double"] == (0.6, None, False)
    save_class(course.root, LAB, course.submissions, course.results, course.graded)
    assert kept()


def notebook_id(ask, student: str) -> str:
    return next(n["id"] for n in json.loads(ask(f"formgrader/api/submitted_notebooks/{LAB}/{TOPIC}")) if n["student"] == student)


# ---------------------------------------------------------------- the parts, alone

def test_another_set_of_graded_cells_is_refused_in_a_sentence(course):
    released = Lab(course.root, LAB).released
    released.cells = [cell for cell in released.cells if grade_id(cell) != "claim"]
    with pytest.raises(GradebookError, match="other graded cells.*--out"):
        GradebookWriter(course.graded, LAB, released)


def test_what_is_not_judged_this_time_keeps_its_score(course):
    released = Lab(course.root, LAB).released
    ada = next(result for result in course.results if result["student"] == "ada")
    GradebookWriter(course.graded, LAB, released).save({**ada, "tests": []}, released, Path("ada.ipynb"))
    assert grades(course.graded, "ada")["check-double"] == (0.8, None, False)


def verdict(name: str, status: str = "failed", message: str = "", points: float = 0, most: float = 1) -> dict:
    return {"name": name, "exercise": "double", "points": points, "max_points": most, "status": status, "message": message}


def test_a_hint_that_several_tests_share_is_shown_once():
    tests = [verdict("test_two_is_doubled", message="Not so: two is doubled.\nYou square."),
             verdict("test_zero_is_doubled", message="Not so: zero is doubled.\nYou square."), verdict("test_one_is_doubled", "passed", points=1)]
    assert as_text(tests) == "[failed] 0 of 1: two is doubled\nYou square.\n[failed] 0 of 1: zero is doubled\n[passed] 1 of 1: one is doubled"
    assert as_html(tests).count("You square.") == 1 and as_html(tests).count("<b ") == 3


def test_what_a_message_quotes_is_no_html():
    assert "<img" not in as_html([verdict("test_two", message="got <img src=x onerror=alert(1)>")])


def test_a_cell_with_nothing_measured_has_no_score_and_others_have_the_sum():
    passed = [verdict(f"test_{i}", "passed", points=points) for i, points in enumerate((0.4, 0.2, 0.2))]
    result = {"tests": [*passed,
                        verdict("speed_against_x", "deferred"), {**verdict("speed_against_y", "inconclusive"), "exercise": "triple"}]}
    assert scores_of(result) == {"check-double": 0.8, "speed-double": None, "speed-triple": None}
    assert list(cells_of(result)) == ["check-double", "speed-double", "speed-triple"]


def test_a_fault_of_the_grader_costs_nobody_points():
    assert scores_of({"stamp": "", "tests": [verdict("test_a", "error")]}) == {"check-double": None}


def test_a_receipt_stays_and_is_called_self_reported():
    cell = new_code_cell("speed(double)", metadata={"nbgrader": {"grade_id": "speed-double"}},
                         outputs=[new_output("display_data", {RECEIPT: [{"ratio": 3}], "text/plain": "3 times faster"}), new_output("stream", text="x")])
    [judged, receipt] = annotate(new_notebook(cells=[cell]), {"tests": [verdict("speed_against_adding", "deferred")], "error": ""}).cells[0].outputs
    assert "deferred" in judged.data["text/html"] and receipt.data[RECEIPT] == [{"ratio": 3}]
    assert receipt.data["text/plain"] == "Self-reported, on the student's own device:\n3 times faster"


def test_raw_cells_become_text_that_no_fence_ends():
    [cell] = annotate(new_notebook(cells=[new_raw_cell("```\n<b>x</b>")]), {"tests": [], "error": ""}).cells
    assert (cell.cell_type, cell.source) == ("markdown", "````\n```\n<b>x</b>\n````")


@pytest.mark.parametrize("source, shown", [
    ("**bold** and $a<b$", "<p><strong>bold</strong> and $a&lt;b$</p>"),
    ("[here](https://a.b) <a href='javascript:alert(1)'>x</a>", '<p><a href="https://a.b">here</a> <a>x</a></p>'),
    ("<img src=x onerror=alert(1)><b class='full-credit' id='check-double' style='position:fixed'>x</b>", '<p><img src="x"><b>x</b></p>'),
    ("<img src='data:text/html,x'><img src='data:image/png;base64,x'>", '<p><img><img src="data:image/png;base64,x"></p>'),
    ("<input> <iframe src=x>", "<p>&lt;input&gt; &lt;iframe src=x&gt;</p>"),
    ("![](attachment:lost.png) <script>", "<pre>![](attachment:lost.png) &lt;script&gt;</pre>"),
])
def test_markdown_of_students_keeps_its_form_and_loses_what_runs(source, shown):
    environment = jinja2.Environment()
    environment.filters["markdown2html"] = harmless_markdown
    assert environment.from_string("{{ cell.source | markdown2html }}").render(cell={"source": source}).strip().removesuffix("</iframe>") == shown


@pytest.mark.parametrize("hours, penalty", [(0.1, None), (0.2, 1), (24.1, 1), (24.2, 2), (24 * 30, 5)])
def test_a_late_day_begins_after_the_grace_and_there_is_a_most(hours, penalty):
    plugin = LatePenalty(percent_per_day=10, grace_minutes=10, most_percent=50)
    assert plugin.late_submission_penalty("ada", 10.0, hours * 3600) == penalty


def test_without_a_percentage_nothing_is_taken_off():
    assert LatePenalty().late_submission_penalty("ada", 10.0, 1e6) is None
