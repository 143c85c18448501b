"""Rosters, Canvas and Gradescope: what comes in and what goes out."""
import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from autograder import build, gradescope
from autograder.canvas import CanvasError, import_submissions
from autograder.cli import app
from autograder.demo import fill
from autograder.grade import find_submissions
from autograder.grades import NoGrades, as_canvas, as_csv, graded_labs, read_grades
from autograder.judge import Lab
from autograder.roster import RosterError, load_roster

LAB = "11_doubling"
LABS = {"doubling": LAB, "halving": "12_halving"}
ROSTER = """\
id,name,email,canvas_id,sis_user_id,sis_login_id,section,11,12_halving
ada,"Lovelace, Ada",ada@example.org,101,S1,al01,A,2030-05-08,
ben,Ben Nevis,ben@example.org,102,S2,bn02,A,,2030-06-01 18:00
cleo,Cleo de Nile,cleo@example.org,,,,B,,
dan,"Doe, Dan",,104,S4,dd04,B,,
"""


@pytest.fixture
def roster(tmp_path):
    """`roster(text)` writes and loads it."""
    def load(text=ROSTER, encoding="utf-8"):
        (tmp_path / "roster.csv").write_bytes(text.encode(encoding))
        return load_roster(tmp_path / "roster.csv")
    return load


# ---------------------------------------------------------------- rosters

def test_a_roster_has_ids_names_and_extensions(roster):
    students = roster()
    assert list(students) == ["ada", "ben", "cleo", "dan"] and students["ada"].name == "Lovelace, Ada" and students["ben"].canvas_id == "102"
    assert students["ada"].extension(LAB).replace(tzinfo=None) == datetime(2030, 5, 8, 23, 59, 59)
    assert students["ben"].extension("12_halving").hour == 18 and students["ben"].extension(LAB) is None
    assert students["ben"].extension("12_halving").tzinfo is not None


@pytest.mark.parametrize("text, encoding", [("id;name\nada;Ada Lovelace\n", "utf-8-sig"), ("id\tname\r\nada\tAda Lovelace\r\n\r\n", "utf-8"),
                                            ("\ufeffid,name\nada,Ada Lovelace\n,,\n", "utf-8")])
def test_spreadsheets_ways_of_writing_csv_are_read(roster, text, encoding):
    assert {s.id: s.name for s in roster(text, encoding).values()} == {"ada": "Ada Lovelace"}


def test_what_canvas_exports_is_a_roster(roster):
    students = roster("Student,ID,SIS User ID,SIS Login ID,Section,Doubling (9)\n,,,,,Manual Posting\n    Points Possible,,,,,4\n"
                      '"Lovelace, Ada",101,S1,al01,A,3\n"Student, Test",102,,,A,\n')
    assert {s.id: (s.name, s.canvas_id, s.section) for s in students.values()} == {
        "al01": ("Lovelace, Ada", "101", "A"), "102": ("Student, Test", "102", "A")}


@pytest.mark.parametrize("text, words", [
    ("name\nAda\n", "roster.csv:1: there is no column id, but name"), ("id\nada\nada\n", "roster.csv:3: ada is there a second time"),
    ("id\n../ada\n", "roster.csv:2: '../ada' cannot be a student's id"), ("id\n.\n", "cannot be"), ("id\na b\n", "cannot be"),
    ("id,11\nada,tomorrow\n", "roster.csv:2: 'tomorrow' is no date; write it like 2030-05-08"), ("", "there is no column id, but nothing"),
    ("id,canvas_id\nada,1\nben,1\n", "ben and ada have the same canvas_id, 1")])
def test_a_faulty_roster_is_one_line_with_its_place(roster, text, words):
    with pytest.raises(RosterError) as error:
        roster(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_another_encoding_is_said(roster):
    with pytest.raises(RosterError, match="is not in UTF-8"):
        roster("id,name\nada,Adé\n", "latin-1")


# ---------------------------------------------------------------- Canvas in

@pytest.fixture
def canvas(tmp_path, roster):
    """`canvas({name: content})` imports such a zip, whose file names come in this order."""
    def bring(files, text=ROSTER, labs=LABS, times=None):
        with zipfile.ZipFile(tmp_path / "submissions.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        if times is not None:
            (tmp_path / "times.json").write_text(json.dumps(times))
        return import_submissions(tmp_path / "submissions.zip", roster(text), tmp_path / "submitted", labs, times and tmp_path / "times.json")
    return bring


def submitted(tmp_path):
    folder = tmp_path / "submitted"
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_each_students_notebook_comes_to_its_place(canvas, tmp_path):
    found = canvas({"lovelaceada_101_9001_doubling.ipynb": "ada", "nevisben_LATE_102_9002_doubling-1.ipynb": "ben"})
    assert submitted(tmp_path) == {f"ada/{LAB}/doubling.ipynb": "ada", f"ben/{LAB}/doubling.ipynb": "ben"}
    assert (found.lab, found.written, found.late, found.missing, found.problems) == (LAB, ["ada", "ben"], ["ben"], ["cleo", "dan"], [])
    assert [s.student for s in find_submissions(LAB, [tmp_path / "submitted"])] == ["ada", "ben"]


@pytest.mark.parametrize("names, wanted", [
    (["doubling.ipynb", "doubling-1.ipynb", "doubling-2.ipynb"], 2), (["doubling-10.ipynb", "doubling-9.ipynb"], 0),
    (["notes.ipynb", "doubling.ipynb"], 1), (["doubling (1).ipynb", "scratch-3.ipynb"], 0), (["report.pdf", "Doubling.ipynb.txt"], 1)])
@pytest.mark.parametrize("numbered", [True, False], ids=["file ids", "one id for all"])
def test_of_several_files_the_labs_newest_notebook_counts(canvas, tmp_path, names, wanted, numbered):
    ids = [9000 + (sorted(range(len(names)), key=lambda i: i == wanted).index(i) if numbered else 0) for i in range(len(names))]
    canvas({f"lovelaceada_101_{number}_{name}": name for number, name in zip(ids, names)}, labs={"doubling": LAB})
    assert submitted(tmp_path)[f"ada/{LAB}/doubling.ipynb"] == names[wanted]


def test_a_second_download_replaces_what_is_newer_and_nothing_else(canvas, tmp_path):
    first = {"lovelaceada_101_1_doubling.ipynb": "ada", "nevisben_102_2_doubling.ipynb": "ben"}
    canvas(first, times=[{"user_id": 101, "submitted_at": "2030-05-01T10:00:00Z"}, {"user_id": 102, "submitted_at": "2030-05-01T10:00:00Z"}])
    found = canvas({**first, "nevisben_102_3_doubling-1.ipynb": "ben again"})
    assert (found.written, found.unchanged) == (["ben"], ["ada"])
    assert submitted(tmp_path) == {f"ada/{LAB}/doubling.ipynb": "ada", f"ben/{LAB}/doubling.ipynb": "ben again",
                                   f"ada/{LAB}/timestamp.txt": "2030-05-01 10:00:00 UTC\n"}    # the other one's is not known any more


def test_times_are_as_nbgrader_reads_them(canvas, tmp_path):
    from nbgrader.utils import parse_utc
    canvas({"lovelaceada_101_1_doubling.ipynb": "ada"},
           times=[{"user_id": 101, "submitted_at": "2030-05-01T10:00:00+02:00"}, {"user_id": 102, "submitted_at": None}])
    assert parse_utc((tmp_path / "submitted" / "ada" / LAB / "timestamp.txt").read_text().strip()) == datetime(2030, 5, 1, 8)
    with pytest.raises(CanvasError, match="is not Canvas's list of submissions"):
        canvas({"lovelaceada_101_1_doubling.ipynb": "ada"}, times={"errors": "unauthorized"})


def test_names_help_where_there_is_no_id_and_where_they_collide_nobody_is_guessed(canvas, tmp_path):
    found = canvas({"denilecleo_555_1_doubling.ipynb": "cleo"})
    assert found.written == ["cleo"] and not found.problems
    twins = "id,name\nada1,Ada Lovelace\nada2,Ada Lovelace\nben,Ben Nevis\n"
    found = canvas({"lovelaceada_1_1_doubling.ipynb": "?", "nevisben_2_2_doubling.ipynb": "b", "nevisben_3_3_doubling.ipynb": "b"}, twins)
    assert not found.written and found.missing == ["ada1", "ada2", "ben"]
    assert [p.split(";")[0] for p in found.problems] == ["lovelaceada (Canvas user 1) can be ada1 or ada2",
                                                         "nevisben (Canvas user 2) can be ben", "nevisben (Canvas user 3) can be ben"]
    found = canvas({"lovelaceada_1_1_doubling.ipynb": "first", "lovelaceada_2_2_doubling.ipynb": "second"}, "id,canvas_id\nada1,1\nada2,2\n")
    assert found.written == ["ada1", "ada2"] and submitted(tmp_path)[f"ada2/{LAB}/doubling.ipynb"] == "second"


def test_names_with_other_letters_are_found(canvas, tmp_path):
    found = canvas({"müllerjosé_7_1_doubling.ipynb": "x", "o_briensean_8_2_doubling.ipynb": "y"}, 'id,name\njm,José Müller\nso,"O_Brien, Seán"\n')
    assert found.written == ["jm"] and "o_briensean (Canvas user 8) is not in the roster" in found.problems[0]


def test_nothing_is_written_outside_of_the_folder(canvas, tmp_path):
    evil = ["../../lovelaceada_101_1_doubling.ipynb", "/tmp/lovelaceada_101_1_doubling.ipynb", "..\\lovelaceada_101_1_doubling.ipynb",
            "C:\\lovelaceada_101_1_doubling.ipynb", "../.bashrc", "a/../../lovelaceada_101_1_doubling.ipynb"]
    found = canvas({name: "evil" for name in evil}, labs={"doubling": LAB})
    assert len(found.problems) == len(evil) and all("points out of the archive: not imported" in p for p in found.problems)
    assert submitted(tmp_path) == {} and not found.written
    canvas({"lovelaceada_101_1_..%2f..%2fdoubling.ipynb": "odd"}, labs={"doubling": LAB})
    assert list(submitted(tmp_path)) == [f"ada/{LAB}/doubling.ipynb"]


def test_what_cannot_be_graded_has_its_line_and_the_rest_comes_in(canvas, tmp_path):
    found = canvas({"submissions/lovelaceada_101_1_doubling.ipynb": "ada", "__MACOSX/._lovelaceada_101_1_doubling.ipynb": "", ".DS_Store": "",
                    "nevisben_102_text.html": "words", "doedan_104_2_report.pdf": "%PDF", "eve_999_3_doubling.ipynb": "eve", "readme.txt": ""})
    assert found.written == ["ada"] and found.missing == ["ben", "cleo"]
    assert found.problems == ["'nevisben_102_text.html' is a text or a link, not a file: not imported.",
                              "'readme.txt' is not named as Canvas names files: not imported.",
                              "eve (Canvas user 999) is not in the roster: doubling.ipynb not imported.",
                              "dan handed in no notebook, but report.pdf."]


def test_damaged_and_anonymous_archives_are_said(canvas, tmp_path, roster):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CanvasError, match="broken.zip is not a whole zip archive"):
        import_submissions(tmp_path / "broken.zip", roster(), tmp_path, LABS)
    for name in ("anon_aB3xY_9001_doubling.ipynb", "LATE_anon_aB3xY_9001_doubling.ipynb"):
        with pytest.raises(CanvasError, match="Turn off anonymous grading"):
            canvas({name: "?"})
    canvas({"lovelaceada_101_1_doubling.ipynb": "a" * 50, "nevisben_102_2_doubling.ipynb": "b" * 50})
    data = (tmp_path / "submissions.zip").read_bytes().replace(b"a" * 50, b"c" * 50)
    (tmp_path / "submissions.zip").write_bytes(data)
    found = import_submissions(tmp_path / "submissions.zip", roster(), tmp_path / "again", LABS)
    assert found.written == ["ben"] and "ada: doubling.ipynb in the archive is damaged" in found.problems[0]


def test_which_lab_it_is_comes_from_the_files_or_must_be_said(canvas):
    assert canvas({"lovelaceada_101_1_halving.ipynb": "", "nevisben_102_2_doubling.ipynb": "", "doedan_104_3_halving-2.ipynb": ""}).lab == "12_halving"
    with pytest.raises(CanvasError, match="Say which lab it is with --lab"):
        canvas({"lovelaceada_101_1_homework.ipynb": ""})
    assert canvas({"lovelaceada_101_1_homework.ipynb": "x"}, labs={"doubling": LAB}).written == ["ada"]


# ---------------------------------------------------------------- grades out

@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A gradebook in which ada has all, ben is late and waits for marking, eve is not in the roster; nobody's speed was measured."""
    from nbgrader.api import Gradebook

    from autograder.gradebook import put_environment_on_path, quiet
    put_environment_on_path()
    path = tmp_path_factory.mktemp("grades") / "gradebook.db"
    with quiet(), Gradebook(f"sqlite:///{path}", "trainfast") as book:
        book.add_assignment(LAB)
        book.add_notebook("doubling", LAB)
        for name, points in (("check-double", 2), ("speed-double", 1), ("claim", 1)):
            book.add_grade_cell(name, "doubling", LAB, max_score=points, cell_type="code")
        for student, check, claim, penalty in (("ada", 2, 1, 0), ("ben", 1.505, None, 0.25), ("eve", 0, 0, 0)):
            book.add_student(student)
            book.add_submission(LAB, student, timestamp=datetime(2030, 5, 1, 8))
            for name, score in (("check-double", check), ("speed-double", None), ("claim", claim)):
                grade = book.find_grade(name, "doubling", LAB, student)
                grade.auto_score, grade.needs_manual_grade = score, score is None
            book.find_submission(LAB, student).notebooks[0].late_submission_penalty = penalty
        book.db.commit()
    return path


def test_a_grade_is_the_score_less_the_penalty_of_what_could_be_measured(database):
    grades = read_grades(database, LAB)
    assert grades.max_score == 3 and grades.by_student["ada"].score == 3 and grades.by_student["ada"].unmarked == 0
    assert grades.by_student["ben"].score == pytest.approx(1.255) and grades.by_student["ben"].unmarked == 1
    assert graded_labs(database) == [LAB]


def test_canvas_gets_its_own_ids_and_columns(database, roster):
    text, said = as_canvas(read_grades(database, LAB), roster(), "Doubling (98765)")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Doubling (98765)"],
                    ["    Points Possible", "", "", "", "", "3"],
                    ["Lovelace, Ada", "101", "S1", "al01", "A", "3"], ["Ben Nevis", "102", "S2", "bn02", "A", "1.25"],
                    ["Doe, Dan", "104", "S4", "dd04", "B", ""]]
    assert said == ["eve has a grade and is not in the roster.", "cleo has no canvas_id, sis_user_id or sis_login_id in the roster.",
                    "1 of 3 wait for answers to be marked in the formgrader."]


def test_all_grades_are_one_table(database, roster):
    rows = list(csv.DictReader(io.StringIO(as_csv([read_grades(database, LAB)], roster()))))
    assert [(r["student"], r["score"], r["max_score"], r["late_penalty"]) for r in rows] == [
        ("ada", "3", "3", "0"), ("ben", "1.25", "3", "0.25"), ("cleo", "", "3", ""), ("dan", "", "3", ""), ("eve", "0", "3", "0")]
    assert rows[0]["email"] == "ada@example.org" and rows[1]["waits_for_marking"] == "1" and rows[0]["submitted"].startswith("2030-05-01")


def test_a_gradebook_without_grades_is_said(database, tmp_path):
    with pytest.raises(NoGrades, match="there is no gradebook; autograder grade writes one"):
        read_grades(tmp_path / "none.db", LAB)
    with pytest.raises(NoGrades, match="has no grades of 12_halving; grade it first"):
        read_grades(database, "12_halving")
    assert not (tmp_path / "none.db").exists()


def test_the_commands_do_it(small_course, tmp_path, database, monkeypatch, roster):
    root = small_course()
    monkeypatch.chdir(root)
    roster()
    with zipfile.ZipFile("submissions.zip", "w") as archive:
        archive.writestr("lovelaceada_LATE_101_9001_doubling.ipynb", "ada")
        archive.writestr("eve_999_3_doubling.ipynb", "eve")

    def command(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)])
    found = command("import", "canvas", "submissions.zip", "--roster", tmp_path / "roster.csv", "--out", "submitted")
    assert found.exit_code == 3 and "by how much: ada\nNothing handed in: ben, cleo, dan\n" in found.output and "eve (Canvas user 999)" in found.output
    assert (root / "submitted" / "ada" / LAB / "doubling.ipynb").read_text() == "ada"
    found = command("export", "canvas", "11", "--roster", tmp_path / "roster.csv", "--assignment", "Doubling (9)", "--gradebook", database)
    assert found.exit_code == 3 and (root / "canvas.csv").read_text().startswith("Student,ID,")
    assert command("export", "csv", "--gradebook", database).exit_code == 0 and (root / "grades.csv").read_text().count("\n") == 4
    found = command("export", "csv", "--gradebook", "none.db")
    assert found.exit_code == 2 and found.output == "autograder: none.db: there is no gradebook; autograder grade writes one.\n"


# ---------------------------------------------------------------- Gradescope

@pytest.fixture
def container(small_course, tmp_path, monkeypatch):
    """The repository with the small lab, and a folder in which its zip is unpacked as Gradescope does."""
    root = small_course()
    build.build(root / "solutions" / LAB, root)
    monkeypatch.chdir(root)
    found = CliRunner().invoke(app, ["export", "gradescope", "11", "--out", str(tmp_path / "a.zip")])
    assert found.exit_code == 0 and "0.8 autograder points; students hand in doubling.ipynb" in found.output
    place = tmp_path / "autograder"
    for name in ("source", "submission", "results"):
        (place / name).mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", tmp_path / "a.zip", place / "source"], check=True)
    (place / "run_autograder").write_bytes((place / "source" / "run_autograder").read_bytes())
    os.chmod(place / "run_autograder", 0o755)
    (place / "venv").symlink_to(Path(sys.prefix))   # what setup.sh would install
    return root, place


def run_in(place, script):
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "AUTOGRADER_ROOT": str(place)}
    return subprocess.run([place / script], cwd=place, env=environment, capture_output=True, text=True)


def test_the_zip_holds_what_is_needed_and_of_other_labs_nothing(small_course, tmp_path):
    root = small_course()
    build.build(root / "solutions" / LAB, root)
    (root / "solutions" / "12_halving").mkdir()
    (root / "solutions" / "12_halving" / "test_hidden.py").write_text("secret")
    for name in ("a.zip", "b.zip"):
        gradescope.write_zip(root, LAB, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        assert {"setup.sh", "run_autograder", f"solutions/{LAB}/test_hidden.py", f"labs/{LAB}/doubling.ipynb", "constraints.txt"} <= set(names)
        assert not [name for name in names if "12_halving" in name or "__pycache__" in name or name.startswith(("tests/", "."))]
        assert [oct(archive.getinfo(name).external_attr >> 16) for name in ("setup.sh", "run_autograder", "constraints.txt")] == ["0o755", "0o755", "0o644"]


@pytest.mark.slow
def test_in_gradescopes_container_a_submission_gets_its_results(container):
    root, place = container
    os.chmod(place / "source" / "setup.sh", 0o755)
    assert run_in(place, "source/setup.sh").returncode == 0     # finds that all is there
    lab = Lab(root, LAB)
    nbformat.write(fill(lab.released, {"double": "def double(x):\n    return x**2"}), place / "submission" / "doubling.ipynb")
    done = run_in(place, "run_autograder")
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "results" / "results.json").read_text())
    assert results["score"] == pytest.approx(0.6) and results["extra_data"]["max_score"] == pytest.approx(0.8)
    assert "isolated" in done.stdout and results["stdout_visibility"] == "hidden"
    tests = {test["name"]: test for test in results["tests"]}
    assert {name: (t["status"], t["score"], t["max_score"], t["visibility"]) for name, t in tests.items()} == {
        "double: two is doubled": ("passed", 0.4, 0.4, "visible"), "triple: two is tripled": ("failed", 0, 0, "visible"),
        "double: a negative number is doubled": ("failed", 0, 0.2, "after_published"), "double: zero is doubled": ("passed", 0.2, 0.2, "after_published")}
    negative = tests["double: a negative number is doubled"]
    assert "You square the number" in negative["output"]
    assert all(set(test) == {"name", "score", "max_score", "status", "output", "visibility"} for test in tests.values())


def test_without_the_labs_notebook_a_student_reads_what_to_hand_in(tmp_path):
    for name in ("submission", "results"):
        (tmp_path / name).mkdir()
    assert gradescope.run(tmp_path, LAB, "visible")["output"] == "Hand in one notebook, doubling.ipynb. There is no .ipynb file."
    (tmp_path / "submission" / "folder").mkdir()
    for name in ("a.ipynb", "folder/b.ipynb"):
        (tmp_path / "submission" / name).write_text("{}")
    content = gradescope.run(tmp_path, LAB, "visible")
    assert content == json.loads((tmp_path / "results" / "results.json").read_text())
    assert content["score"] == 0 and content["output"].endswith("There is a.ipynb, b.ipynb.")
    assert gradescope.find_notebook(tmp_path / "submission", "a")[0].name == "a.ipynb"


def test_what_was_deferred_is_no_pass_and_counts_nothing():
    test = {"exercise": "double", "name": "speed_against_slow", "points": 0, "max_points": 0, "status": "deferred", "message": "No GPU.", "hidden": False}
    result = {"score": 0, "max_score": 0, "seconds": 1.0, "error": "", "notes": ["a cell was missing"], "device": "", "isolation": "", "seed": 1, "tests": [test]}
    shown = gradescope.as_results(result, "visible")
    assert shown["output"] == "a cell was missing." and shown["tests"][0]["name"].endswith("(deferred)")
    assert (shown["tests"][0]["status"], shown["tests"][0]["max_score"], shown["tests"][0]["output"]) == ("failed", 0, "No GPU.")
