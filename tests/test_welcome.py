"""The page on which JupyterLab opens tells what the saved notebooks tell."""
import json
import subprocess
import sys

import pytest

from course import welcome
from course.verdict import VERDICT

TESTS = '''\
@exercise("double", points=2)
def test_two(student): ...


@exercise("double", points=1.5)
def test_three(student): ...


@exercise("triple", points=4)
def test_four(student): ...


@exercise("halve", points=0)
def test_five(student): ...
'''


def verdict(exercise: str, points: float, *statuses: str) -> dict:
    return {"output_type": "display_data", "metadata": {},
            "data": {"text/plain": "", VERDICT: {"exercise": exercise, "points": points, "results": [{"status": s} for s in statuses]}}}


@pytest.fixture
def saved(tmp_path):
    """`saved(output, ...)` is a course with lab 11, saved with these outputs, each in a cell of its own."""
    folder = tmp_path / "labs" / "11_saddle_points"
    folder.mkdir(parents=True)
    (folder / "test_visible.py").write_text(TESTS)

    def save(*outputs):
        cells = [{"cell_type": "markdown", "source": ""}] + [{"cell_type": "code", "source": "", "outputs": [output]} for output in outputs]
        (folder / "saddle_points.ipynb").write_text(json.dumps({"cells": cells}))
        return tmp_path
    return save


def progress(root) -> welcome.Progress:
    return welcome.progress(root / "labs" / "11_saddle_points" / "saddle_points.ipynb")


def test_a_notebook_without_verdicts_is_not_begun(saved):
    found = progress(saved({"output_type": "stream", "text": "hello"}))
    assert (found.begun, found.exercises, found.done, found.max_points) == (False, 2, 0, 7.5)
    assert "not begun: 2 exercises" in welcome.page(saved())


def test_done_is_an_exercise_of_which_every_test_passed(saved):
    root = saved(verdict("double", 3.5, "passed", "passed"), verdict("triple", 0, "failed"))
    assert str(progress(root)) == "1 of 2 exercises, 3.5 of 7.5 points"
    assert "1 of 2 exercises, 3.5 of 7.5 points" in welcome.page(root)


def test_the_last_verdict_of_an_exercise_counts(saved):
    assert progress(saved(verdict("double", 3.5, "passed"), verdict("double", 0, "timeout"))).points == 0


def test_optional_exercises_are_counted_apart(saved):
    assert str(progress(saved(verdict("halve", 0, "passed")))) == "0 of 2 exercises and 1 optional, 0 of 7.5 points"


def test_what_this_device_cannot_judge_holds_nobody_up(saved):
    assert progress(saved(verdict("triple", 0, "deferred"))).done == 1


@pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', '{"cells": [{"outputs": [{"data": {"%s": 7}}]}]}' % VERDICT, "\udcff"])
def test_a_damaged_notebook_is_named_and_the_page_is_there(saved, content):
    root = saved()
    (root / "labs" / "11_saddle_points" / "saddle_points.ipynb").write_text(content, errors="surrogateescape")
    assert "this notebook cannot be read" in welcome.page(root)


def test_nothing_of_a_notebook_becomes_html(saved):
    assert "<script>alert" not in welcome.page(saved(verdict("<script>alert(1)</script>", 1, "passed"), verdict("double", 1, "<script>alert(1)</script>")))


def test_links_follow_the_servers_address_and_only_instructors_see_the_formgrader(saved):
    root = saved()
    assert 'href="/user/ada/lab/tree/labs/11_saddle_points/saddle_points.ipynb"' in welcome.page(root, "/user/ada/")
    assert "ormgrader" not in welcome.page(root)
    (root / "nbgrader_config.py").write_text("")
    assert 'href="/user/ada/formgrader"' in welcome.page(root, "/user/ada/")


def test_a_folder_without_labs_says_what_to_do(tmp_path):
    assert "no lab here yet" in welcome.page(tmp_path) and "make lab" in welcome.page(tmp_path)


def test_the_page_needs_no_torch_and_no_server(tmp_path):
    code = "import sys; from pathlib import Path; from course import welcome; welcome.page(Path()); sys.exit(bool({'torch', 'jupyter_server'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
