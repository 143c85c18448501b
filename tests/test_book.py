"""The book: what a reader without network, without eyes or without a solution gets. Built from the small course."""
import html
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autograder import book, build, cli, execute, sitecheck
from autograder.leaks import Secrets
from autograder.source import load_lab
from course import claims, syllabus

ROOT = Path(__file__).resolve().parents[1]
FIGURE = '''print([double(x) for x in range(5)])
from course import plots
plots.lines({"double": [double(x) for x in range(5)]}, title="Doubles", xlabel="x", ylabel="2x", alt="A straight line of slope two.")
import warnings
warnings.warn("heed")'''
SYLLABUS = '''[parts]
1 = "Optimisation"
2 = "The model"

[labs.11_doubling]
title = "Doubling"
question = "How do you double a number?"
hours = 1.5
device = "any CPU"

[labs.21_halving]
title = "Halving"
question = "And back?"
hours = 2
after = ["11_doubling"]
device = "a GPU"
planned = true
'''


def course(root: Path) -> Path:
    """The small course with all that a book is made of."""
    (root / "course").mkdir()
    (root / "course" / "syllabus.toml").write_text(SYLLABUS)
    for name in ("book", "docs", "course/claims.toml", "README.md", "autograder/PROTOCOL.md"):
        target = root / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    readme = (root / "README.md").read_text()
    (root / "README.md").write_text(readme.replace(syllabus.table(syllabus.load()), ""))
    build.build(root / "solutions" / "11_doubling", root)
    (root / "solutions" / "21_halving").mkdir()  # planned: somebody is at work on it
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_course) -> Path:
    return course(write_course(tmp_path_factory.mktemp("book"), {"doubling.py": ("print([double(x) for x in range(5)])", FIGURE)}))


@pytest.fixture(scope="module")
def site(root) -> Path:
    said = []
    first = book.make(root, say=said.append)
    assert len(said) == 1 and said[0].startswith("11_doubling: running the reference")
    return first.parent


def text(path: Path) -> str:
    return " ".join(sitecheck.Page(path.read_text()).text.split())


def test_the_first_page_lists_all_labs_and_links_those_that_are_there(site):
    words = text(site / "index.html")
    assert "11 Doubling How do you double a number? 1.5 none any CPU" in words
    assert "21 Halving (planned) And back? 2 11 a GPU" in words
    assert 'href="labs/11_doubling/doubling.html"' in (site / "index.html").read_text()


def test_a_lab_shows_the_hole_for_the_students_code_and_what_the_reference_drew(site):
    page = (site / "labs" / "11_doubling" / "doubling.html").read_text()
    words = text(site / "labs" / "11_doubling" / "doubling.html")
    assert "def double(x: float) -> float: \"\"\"Twice x.\"\"\" # YOUR CODE HERE raise NotImplementedError()" in words
    assert "[0, 2, 4, 6, 8]" in words and "double: 1 of 1 checks pass" in words and "heed" not in words.split("[0, 2, 4, 6, 8]")[1]
    assert "My prediction" not in words and "YOUR ANSWER" not in words
    assert re.search(r'<img alt="A straight line of slope two." [^>]*src="figure-1.png" height="\d+" loading="lazy"', page)
    assert (site / "labs" / "11_doubling" / "figure-1.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_of_a_solution_a_model_answer_or_a_hidden_test_is_on_the_site(site, root):
    secrets = Secrets(*load_lab(root / "solutions" / "11_doubling"))
    assert {"answer_of_the_reference = FACTOR * x", "Because two times two is four, says the model answer."} <= secrets.lines.keys()
    assert sitecheck.problems(site, [secrets]) == []
    everything = html.unescape("".join(path.read_bytes().decode(errors="replace") for path in site.rglob("*") if path.is_file()))
    for secret in ("answer_of_the_reference", "says the model answer", "test_zero_is_doubled", "wrong_answer_of_this_mistake", str(root)):
        assert secret not in everything


def test_the_ledger_has_every_claim_with_its_verdict_and_measurement(site, root):
    words = text(site / "claims.html")
    for claim in claims.load(root / "course" / "claims.toml").values():
        assert " ".join(claim.claim.split()) in words and claim.id in words
        for part in (claim.verdict.capitalize() + ".", claim.figure, claim.measured, claim.protocol, claim.device, claim.date):
            assert " ".join(part.split()) in words, claim.id


def test_the_guide_says_what_a_lab_is_worth(site):
    assert "11 Doubling 0.8 0 4 4.8" in text(site / "instructors.html")  # two hidden tests of 0.2 points too


def test_the_guide_is_the_readmes_and_the_library_has_its_docstrings(site):
    for words in ("autograder grade 11 submitted", "Every submission runs in a sandbox of its own", "autograder doctor"):
        assert words in text(site / "instructors.html")
    assert "Run the visible tests of the exercise that function solves" in text(site / "api" / "check.html")


def test_a_page_has_one_title_and_can_be_used_by_keyboard(site):
    for path in set(site.rglob("*.html")) - {site / "search.html"}:  # a script writes that one
        page = path.read_text()
        assert page.count("<h1") == 1, path
        assert "Skip to content" in page and '<html class="no-js" lang="en"' in page
        levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
        assert all(after - before <= 1 for before, after in zip(levels, levels[1:])), path


def test_what_has_not_changed_is_not_run_again(root, site):
    said = []
    book.make(root, say=said.append)
    assert said == []


FAULTS = {"a picture without words": ('<img src="figure-1.png">', "without alternative text"),
          "an empty alternative text": ('<img alt=" " src="figure-1.png">', "without alternative text"),
          "a page that is not there": ('<a href="../gone.html">x</a>', "leads to ../gone.html, which is not there"),
          "a place that is not there": ('<a href="../../index.html#gone">x</a>', "no such place"),
          "a script from elsewhere": ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
          "a style from elsewhere": ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css"),
          "a highlighted solution": ("<pre><span>    answer_of_the_reference</span> <span>=</span> FACTOR * x\n</pre>", "double's solution"),
          "a hidden test": ("<p>test_zero_is_doubled</p>", "hidden test test_zero_is_doubled")}


@pytest.mark.parametrize("fault, words", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_its_page_named(site, root, tmp_path, fault, words):
    copy = shutil.copytree(site, tmp_path / "site")
    page = copy / "labs" / "11_doubling" / "doubling.html"
    page.write_text(page.read_text().replace("</article>", f"\n{fault}\n</article>"))
    found = sitecheck.problems(copy, [Secrets(*load_lab(root / "solutions" / "11_doubling"))])
    assert len(found) == 1 and found[0].startswith("labs/11_doubling/doubling.html: ") and words in found[0]


def test_a_style_sheet_that_loads_a_font_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.css").write_text('@import "https://fonts.example/a.css"; b { background: url(data:image/png;base64,AA==) } c { src: url("//x.example/f") }')
    assert [line.split(" from")[0] for line in sitecheck.problems(tmp_path)] == ["a.css: loads https://fonts.example/a.css", "a.css: loads //x.example/f"]


def test_a_reference_that_does_not_run_is_one_line_and_the_last_book_stays(root, site, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(execute, "run_notebook", lambda notebook, folder: execute.Executed(notebook, 1.0, 1, "ZeroDivisionError", True))
    done = CliRunner().invoke(cli.app, ["book", "--fresh"])
    assert done.exit_code == 2
    assert done.stderr == "autograder: 11_doubling: the reference's notebook does not run as it should: ZeroDivisionError\n"
    assert (site / "index.html").is_file()


def test_the_run_is_kept_with_its_date_and_device(root, site):
    run = json.loads((root / "build" / "book.aside" / "runs" / "11_doubling.json").read_text())
    assert f"on {run['date']}, {run['device']}" in text(site / "labs" / "11_doubling" / "doubling.html")
