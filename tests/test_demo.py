"""The embedded class of lab 11, graded as `autograder demo` does: every student gets what they deserve, and is told why."""
import json
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from autograder.demo import LAB, demo_class, write_class
from autograder.grade import find_submissions, grade
from autograder.gradebook import save_class
from autograder.judge import Lab
from autograder.report import grade_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(results by student, folder). Speed is left to the machine's mood elsewhere: no verdict here depends on a clock."""
    out = tmp_path_factory.mktemp("class")
    lab = Lab(ROOT, LAB)
    submissions = find_submissions(LAB, [write_class(out, demo_class(lab), lab)])
    results = grade(LAB, submissions, out / "results", speed=False, root=ROOT)
    save_class(ROOT, LAB, submissions, results, out)
    return {r["student"].split("_")[0]: r for r in results}, out


def lost(result) -> dict[str, set[str]]:
    """What is not passed, by exercise: the statuses."""
    found: dict[str, set[str]] = {}
    for test in result["tests"]:
        if test["status"] != "passed":
            found.setdefault(test["exercise"], set()).add(test["status"])
    return found


def test_the_reference_gets_every_point(graded):
    assert lost(graded[0]["ada"]) == {} and graded[0]["ada"]["score"] == graded[0]["ada"]["max_score"] == 120


@pytest.mark.parametrize("student, exercise, mistake", [("ben", "adam_step", "without_bias_correction"), ("cleo", "nesterov_step", "no_look_ahead")])
def test_a_known_mistake_is_named_and_its_hint_is_the_message(graded, student, exercise, mistake):
    wrong = [t for t in graded[0][student]["tests"] if t["exercise"] == exercise and t["status"] != "passed"]
    assert wrong and {t["mistake"] for t in wrong} == {mistake}
    hint = next(m.hint for m in Lab(ROOT, LAB).specification.mistakes if m.name == mistake)
    assert hint.split(".")[0] in " ".join(wrong[0]["message"].split())


def test_half_a_lab_gets_its_half(graded):
    assert set(lost(graded[0]["dan"])) == {"adadelta_step", "adam_step", "escape_steps", "most_negative_curvature", "flat_adam_step"}


def test_a_blank_notebook_gets_nothing_and_is_told_what_is_not_written(graded):
    assert graded[0]["eve"]["score"] == 0
    assert all("not written yet" in t["message"] for t in graded[0]["eve"]["tests"])


def test_an_endless_loop_costs_its_own_exercise_only(graded):
    assert lost(graded[0]["finn"]) == {"rmsprop_step": {"timeout"}}


def test_a_cell_that_raises_costs_its_own_exercise_only_and_says_what_it_raised(graded):
    assert lost(graded[0]["gus"]) == {"sgd_step": {"error"}}
    assert "ModuleNotFoundError" in next(t["message"] for t in graded[0]["gus"]["tests"] if t["exercise"] == "sgd_step")


def test_deleted_and_duplicated_check_cells_cost_nothing_and_are_noted(graded):
    assert lost(graded[0]["hana"]) == {} and graded[0]["hana"]["notes"]


def test_each_submission_has_its_own_whole_json_file(graded):
    results, out = graded
    for result in results.values():
        saved = json.loads((out / "results" / LAB / f"{result['student']}.json").read_text())
        assert saved["score"] == result["score"] and {"student", "lab", "score", "max_score", "tests", "device", "isolation", "seconds"} <= saved.keys()
        assert {"name", "exercise", "points", "max_points", "status", "message", "mistake"} <= saved["tests"][0].keys()


def test_the_gradebook_has_the_same_scores(graded):
    results, out = graded
    with Gradebook(f"sqlite:///{out / 'gradebook.db'}") as book:
        scores = {s.student.id: sum(g.auto_score or 0 for n in s.notebooks for g in n.grades) for s in book.find_assignment(LAB).submissions}
    assert scores == {r["student"]: r["score"] for r in results.values()}


def test_the_autograded_notebook_shows_the_message_below_the_check(graded):
    results, out = graded
    notebook = nbformat.read(out / "autograded" / results["ben"]["student"] / LAB / "saddle_points.ipynb", as_version=4)
    check = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "check-adam_step")
    assert "too long" in check.outputs[0].data["text/html"] or "Divide" in check.outputs[0].data["text/html"]


def test_no_result_tells_a_hidden_tests_inputs(graded):
    for result in graded[0].values():
        for test in result["tests"]:
            if test["hidden"]:
                assert "expected  " not in test["message"] and "call  " not in test["message"]


def test_grading_again_keeps_what_is_there(graded):
    results, out = graded
    submissions = find_submissions(LAB, [out / "submitted"])
    again = grade(LAB, submissions, out / "results", speed=False, root=ROOT)
    assert [r["seed"] for r in again] == [results[r["student"].split("_")[0]]["seed"] for r in again]


def test_the_table_has_a_row_for_everyone(graded):
    assert grade_table(LAB, graded[0].values()).row_count == 8
