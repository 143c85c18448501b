"""What students get: everything to work with, and nothing to copy from. Searched here with means of its own."""
import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autograder import cli
from autograder.release import _refuse_leaks, release
from course import syllabus
from course.spec.load import SpecError

ROOT = Path(__file__).resolve().parents[1]
PLANNED = {lab.name for lab in syllabus.load().labs if lab.planned}
LABS = sorted(path for path in (ROOT / "solutions").iterdir() if path.is_dir() and path.name[:2].isdigit() and path.name not in PLANNED)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("students") / "repository"
    release(out, ROOT)
    return out


def squeeze(line: str) -> str:
    return " ".join(line.split())


def readable(path: Path) -> list[str]:
    """Every string that a file holds, line by line."""
    data = path.read_bytes()
    if path.suffix == ".ipynb":
        strings = []
        def walk(node):
            for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
                walk(item)
            if isinstance(node, str):
                strings.append(node)
            if isinstance(node, dict) and isinstance(node.get("source"), list):
                strings.append("".join(node["source"]))
        walk(json.loads(data))
        text = "\n".join(strings)
    elif path.suffix == ".safetensors":
        header = data[8:8 + int.from_bytes(data[:8], "little")].decode()
        text = "\n".join(json.loads(header).get("__metadata__", {}).values()).replace('"', "\n")
    else:
        text = data.decode(errors="replace")
    return [squeeze(line) for line in text.splitlines()]


def split_script(path: Path) -> tuple[set[str], set[str]]:
    """(lines of solutions and model answers, all other lines) of a lab's script."""
    secret, shown, inside, written = set(), set(), False, False
    for line in path.read_text().splitlines():
        if line.startswith("# %%"):
            written = '"written"' in line
        elif "BEGIN SOLUTION" in line or "END SOLUTION" in line:
            inside = "BEGIN" in line
        else:
            (secret if inside or written else shown).add(squeeze(line.removeprefix("# ") if written else line))
    return secret, shown


@cache
def visible_lines(lab: Path) -> set[str]:
    return split_script(lab / f"{lab.name[3:]}.py")[1] | set(map(squeeze, (lab / "test_visible.py").read_text().splitlines()))


def given_away(secret: set[str], lab: Path, path: Path, released: Path) -> set[str]:
    """Secret lines of a lab in a released file; what another lab shows is no secret outside of this lab's folder."""
    if not path.is_relative_to(released / "labs" / lab.name):
        secret = secret.difference(*(visible_lines(other) for other in LABS if other != lab))
    return secret & set(readable(path))


def is_substantial(line: str) -> bool:
    return len(line) >= 20 and not line.startswith(("import ", "from "))


def test_no_line_of_a_solution_or_model_answer_is_released(released):
    for lab in LABS:
        secret, shown = split_script(lab / f"{lab.name[3:]}.py")
        secret = {line for line in secret - shown if is_substantial(line)}
        assert len(secret) > 5
        for path in filter(Path.is_file, released.rglob("*")):
            assert not given_away(secret, lab, path, released), f"{path.relative_to(released)} gives away a solution of {lab.name}"


def test_no_hidden_test_and_no_mistake_is_released(released):
    for lab in LABS:
        names, secret = set(), set()
        for name in ("test_hidden.py", "mistakes.py"):
            tree = ast.parse((lab / name).read_text())
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                names |= {function.name} if function.name.startswith("test_") else set()
                start = function.body[1 if ast.get_docstring(function) else 0:]  # a mistake's docstring is its hint
                lines = (lab / name).read_text().splitlines()
                secret |= {squeeze(line) for node in start for line in lines[node.lineno - 1:node.end_lineno]}
        secret = {line for line in secret - visible_lines(lab) if is_substantial(line)}
        assert len(secret) > 5 and names
        for path in filter(Path.is_file, released.rglob("*")):
            assert not given_away(secret, lab, path, released), f"{path.relative_to(released)} gives away a hidden test or mistake of {lab.name}"
            assert not names & set(re.findall(r"\btest_\w+", "\n".join(readable(path)))), path


def test_the_released_files_are_labs_course_and_what_installs_them(released):
    top = {path.name for path in released.iterdir()} - {"LICENSE"}
    assert top == {"labs", "course", "pyproject.toml", "constraints.txt", "environment.yml", "Makefile", "README.md", ".gitignore"}
    files = {path.name for path in released.rglob("*")}
    assert not files & {"test_hidden.py", "mistakes.py", "verified.json", "solutions", "autograder", "__pycache__"}
    assert {lab.name for lab in LABS} == {path.name for path in (released / "labs").iterdir()}


def test_the_students_project_installs_the_course_without_the_grader(released):
    theirs, ours = (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (released, ROOT))
    assert theirs["project"]["dependencies"] == ours["project"]["dependencies"]
    assert theirs["project"]["optional-dependencies"] == {"lab": ours["project"]["optional-dependencies"]["lab"]}
    assert "scripts" not in theirs["project"]
    assert theirs["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["course"]
    assert ".[lab]" in (released / "environment.yml").read_text()
    makefile = (released / "Makefile").read_text()
    assert re.findall(r"^(\w+):", makefile, re.MULTILINE) == ["setup", "lab"] and "autograder" not in makefile


def test_a_check_works_in_the_released_repository_alone(released):
    """The blank notebook's first check, where neither autograder nor solutions can be found."""
    lab = LABS[0]
    code = f"""
import sys
from pathlib import Path
sys.path[:] = [{str(released)!r}] + [p for p in sys.path if p and not (Path(p) / "autograder").is_dir()]
import importlib.util, json
assert importlib.util.find_spec("autograder") is None
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
cells = json.load(open({lab.name[3:] + ".ipynb"!r}))["cells"]
for cell in cells:
    if cell["cell_type"] == "code" and "experiment" not in cell["metadata"].get("tags", []):
        source = "".join(cell["source"])
        shell.run_cell(source).raise_error()
        if source.startswith("check("):
            break
import course
assert course.__file__.startswith({str(released)!r}), course.__file__
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=released / "labs" / lab.name, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not written yet" in done.stdout


@pytest.fixture
def small_repository(small_course) -> Path:
    """The small lab with everything else that a release takes from the repository."""
    root = small_course()
    (root / "course").mkdir()
    (root / "course" / "__init__.py").write_text("")
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    return root


def test_a_folder_that_is_not_empty_is_refused_unless_forced(small_repository, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)
    (out / "labs").mkdir()
    (out / "labs" / "of last year.ipynb").write_text("old")
    (out / "notes.txt").write_text("mine")
    monkeypatch.chdir(small_repository)
    done = CliRunner().invoke(cli.app, ["release", "--out", str(out)])
    assert done.exit_code == 2 and "is not empty" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (out / "labs" / "of last year.ipynb").exists()
    done = CliRunner().invoke(cli.app, ["release", "--out", str(out), "--force"])
    assert done.exit_code == 0, done.output
    assert (out / ".git").is_dir() and (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in (out / "labs").iterdir()] == ["11_doubling"]


@pytest.mark.parametrize("where", [".", "..", "labs", "solutions/new"])
def test_a_release_never_goes_over_the_course_itself(small_repository, where):
    with pytest.raises(FileExistsError, match="belongs to the course itself"):
        release(small_repository / where, small_repository, force=True)
    assert (small_repository / "solutions" / "11_doubling" / "doubling.py").exists()


def test_a_solution_in_the_library_is_refused_and_nothing_is_written(small_repository, tmp_path):
    (small_repository / "course" / "helpers.py").write_text("def f(x):\n    answer_of_the_reference = FACTOR * x\n")
    out = tmp_path / "out"
    with pytest.raises(SpecError, match="course/helpers.py would give away double's solution: its line 2"):
        release(out, small_repository)
    assert not any(out.iterdir()) and not list(tmp_path.glob(".release-*"))


def test_a_line_that_another_lab_shows_is_secret_in_its_own_labs_folder_alone(small_repository):
    line = "answer_of_the_reference = FACTOR * x"
    shutil.copytree(small_repository / "solutions" / "11_doubling", small_repository / "solutions" / "12_showing")
    script = small_repository / "solutions" / "12_showing" / "doubling.py"
    shown = script.read_text().replace("11_doubling", "12_showing") + f'\n# %% tags=["experiment"]\nx = 2\n{line}\n'
    script.rename(script.with_name("showing.py")).write_text(shown)
    _refuse_leaks(small_repository, {"labs/12_showing/helpers.py": line.encode(), "course/helpers.py": line.encode()})
    with pytest.raises(SpecError, match="labs/11_doubling/helpers.py would give away double's solution"):
        _refuse_leaks(small_repository, {"labs/11_doubling/helpers.py": line.encode()})
