"""As a student, then as an instructor: by what is seen and clicked alone."""
import json
import re
import time

import pytest

from autograder.demo import fill, write_class
from autograder.grade import find_submissions
from autograder.grade import grade as grade_class
from autograder.gradebook import save_class
from autograder.judge import Lab

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright").expect
SMALL = "11_doubling"
WRONG = "def sgd_step(param, grad, state, lr=0.1):\n    return param + lr * grad, {}"
RIGHT = WRONG.replace("+", "-")


class Notebook:
    """The notebook that is open in JupyterLab. A cell is named by a piece of its source."""

    def __init__(self, page):
        self.page = page
        expect(page.locator(".jp-NotebookPanel:visible .jp-CodeCell").first).to_be_visible()
        expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle")

    def cell(self, piece: str):
        return self.page.locator(".jp-NotebookPanel:visible .jp-CodeCell", has=self.page.locator(".jp-Cell-inputWrapper", has_text=piece)).first

    def output(self, piece: str):
        return self.cell(piece).locator(".jp-OutputArea-output")

    def write(self, piece: str, source: str) -> None:
        self.cell(piece).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def run(self, piece: str) -> None:
        """Returns when the cell has run."""
        prompt = self.cell(piece).locator(".jp-InputArea-prompt")
        before = prompt.inner_text()
        self.cell(piece).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        expect(prompt).not_to_have_text(before)
        expect(prompt).to_have_text(re.compile(r"\[\d+\]"))

    def save(self, path) -> None:
        before = path.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        deadline = time.monotonic() + 30
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, "not saved"
            self.page.wait_for_timeout(100)


def opened(page, link: str):
    """The tab that a link opens."""
    with page.expect_popup() as popup:
        page.get_by_role("link", name=link).click()
    return popup.value


def test_a_student_sees_the_mistake_named_then_the_points_and_the_welcome_page_knows(page, root, picture):
    row = page.locator("tr", has=page.get_by_role("link", name="11 · Saddle points"))
    expect(row).to_contain_text("not begun: 10 exercises")
    tab = opened(page, "11 · Saddle points")
    lab = Notebook(tab)
    lab.run("setup(")
    expect(lab.output("setup(")).to_contain_text("Grading here")
    lab.write("def sgd_step", WRONG)
    lab.run("def sgd_step")
    lab.run("check(sgd_step)")
    expect(lab.output("check(sgd_step)")).to_contain_text("You add lr times the gradient.")
    picture(tab, "wrong")
    lab.write("def sgd_step", RIGHT)
    lab.run("def sgd_step")
    lab.run("check(sgd_step)")
    expect(lab.output("check(sgd_step)")).to_contain_text("3 of 3 visible points")
    picture(tab, "right")
    tab.keyboard.press("Shift+Enter")  # on to the experiment, which is folded, so that nothing can be clicked
    tab.keyboard.press("Control+Enter")
    expect(lab.output("far = ").locator("img")).to_be_visible()
    tab.get_by_role("heading", name="1 · SGD").scroll_into_view_if_needed()
    picture(tab, "lab")
    lab.save(root / "labs" / "11_saddle_points" / "saddle_points.ipynb")
    page.bring_to_front()
    page.reload()
    expect(row).to_contain_text("1 of 10 exercises, 3 of 72 points")
    picture(page, "welcome")


def test_validate_names_the_failing_check(page, address, picture):
    page.goto(f"{address}/lab/tree/labs/{SMALL}/doubling.ipynb")
    lab = Notebook(page)
    lab.write("def double", "def double(x):\n    return x + 1")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expect(lab.output("check(double)")).to_contain_text("Not so: two is doubled.")
    page.get_by_role("button", name="Validate").click()
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("check(double)")
    expect(dialog).to_contain_text("Not so: two is doubled.")
    picture(page, "validate")


def test_an_instructor_sees_scores_and_feedback_in_the_formgrader(page, root, picture):
    lab = Lab(root, SMALL)
    answers = {"ada": "return 2 * x", "ben": "return x * x"}
    submitted = write_class(root, {student: fill(lab.released, {"double": f"def double(x):\n    {answer}"}) for student, answer in answers.items()}, lab)
    found = find_submissions(SMALL, [submitted])
    save_class(root, SMALL, found, grade_class(SMALL, found, root / "results", jobs=1, root=root), root)
    tab = opened(page, "Formgrader")
    tab.get_by_role("link", name="2", exact=True).click()  # submissions of the one assignment
    expect(tab.locator("tr", has_text="ada")).to_contain_text("0.8 / 4.8")
    expect(tab.locator("tr", has_text="ben")).to_contain_text("0.6 / 4.8")
    picture(tab, "formgrader")
    tab.locator("tr", has_text="ben").get_by_role("link").first.click()
    tab.get_by_role("link", name="doubling", exact=True).click()
    expect(tab.locator("body")).to_contain_text("You square the number.")
    expect(tab.locator("#check-double")).to_have_attribute("placeholder", "0.6")
    picture(tab, "submission")
