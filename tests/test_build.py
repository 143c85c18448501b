"""solutions/ to labs/: what students get, the same bytes each time, and nothing of theirs lost."""
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator
from traitlets.config import Config
from typer.testing import CliRunner

from autograder import build, cli
from course.spec.load import SpecError
from course.spec.recordings import load_recordings, to_bytes

ROOT = Path(__file__).resolve().parents[1]
LAB = "11_doubling"


@pytest.fixture
def built(small_course):
    root = small_course()
    build.build(root / "solutions" / LAB, root)
    return root


def notebook_of(root: Path):
    return nbformat.read(root / "labs" / LAB / "doubling.ipynb", as_version=4)


def cell_of(root: Path, name: str):
    return next(cell for cell in notebook_of(root).cells if cell.id == name)


def run(root: Path, monkeypatch, *arguments: str):
    monkeypatch.chdir(root)
    return CliRunner().invoke(cli.app, ["build", *arguments])


# ---------------------------------------------------------------- the notebook

def test_building_twice_gives_identical_bytes(built):
    first = {path: path.read_bytes() for path in (built / "labs").rglob("*") if path.is_file()}
    assert sorted(path.name for path in first) == ["doubling.ipynb", "probes.safetensors", "test_visible.py"]
    for path in first:
        path.unlink()
    build.build(built / "solutions" / LAB, built)
    assert {path: path.read_bytes() for path in first} == first


def test_the_blank_notebook_keeps_signature_and_docstring_and_no_solution_line(built):
    assert cell_of(built, "double").source == (
        'def double(x: float) -> float:\n    """Twice x."""\n    # YOUR CODE HERE\n    raise NotImplementedError()')
    text = (built / "labs" / LAB / "doubling.ipynb").read_text()
    for secret in ("answer_of_the_reference", "what was written before", "SOLUTION", "model answer", "test_zero_is_doubled"):
        assert secret not in text


def test_metadata_is_nbgraders_and_points_are_those_of_all_tests(built):
    notebook = notebook_of(built)
    MetadataValidator().validate_nb(notebook)
    nbformat.validate(notebook)
    graded = {cell.id: cell.metadata.nbgrader.points for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")}
    assert graded == {"check-double": 0.8, "claim": 4}  # 0.4 visible, 0.2 + 0.2 hidden; triple is optional


def test_code_that_would_tell_what_is_to_be_predicted_is_folded(small_course):
    root = small_course()
    script = root / "solutions" / LAB / "doubling.py"
    figure = '# %% tags=["experiment"]\nplots.lines([1], title="It grows")\n'
    script.write_text(script.read_text() + "\n# %% [markdown]\n# ## Next\n# **Predict**\n\n" + figure.replace("[1]", "[2]")
                      + '\n# %% [markdown] tags=["prediction"]\n# *Mine:*\n\n# %% tags=["experiment"]\nx = 1\n\n' + figure
                      + "\n# %% [markdown]\n# ## A new section\n\n" + figure.replace("[1]", "[3]"))
    build.build(root / "solutions" / LAB, root)
    folded = [cell.source for cell in notebook_of(root).cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert folded == ['plots.lines([1], title="It grows")']


@pytest.mark.parametrize("kind, locked", [("text", True), ("setup", True), ("given", True), ("check-triple", True),
                                          ("double", False), ("claim", False), ("prediction", None), ("experiment", None)])
def test_students_can_change_solutions_notes_and_experiments_only(built, kind, locked):
    cell = next(cell for cell in notebook_of(built).cells if cell.id.startswith(kind))
    assert cell.metadata.get("nbgrader", {}).get("locked") is locked
    assert cell.metadata.get("editable", True) is not bool(locked)


def test_the_setup_cell_installs_on_colab_only_and_the_title_has_the_badge(built):
    title, setup = notebook_of(built).cells[:2]
    assert "colab.research.google.com/github/someone/course/blob/main/labs/11_doubling/doubling.ipynb" in title.source
    lines = setup.source.splitlines()
    assert lines[2].startswith('if "COLAB_RELEASE_TAG" in os.environ:')
    assert lines[3] == '    %pip install -q "trainfast @ git+https://github.com/someone/course"'
    assert lines[-1] == 'setup("11_doubling")'


def test_an_address_that_colab_cannot_open_gives_no_badge(small_course):
    root = small_course()
    (root / "pyproject.toml").write_text('[tool.trainfast]\nrepository = "file:///srv/course"\n')
    build.build(root / "solutions" / LAB, root)
    assert notebook_of(root).cells[0].source.count("colab") == 0
    assert "git+file:///srv/course" in notebook_of(root).cells[1].source


def test_a_marker_inside_a_string_is_an_error_of_the_author(small_course):
    root = small_course({"doubling.py": ("FACTOR = 2", 'TEXT = """\n# %% not a cell\n"""\nFACTOR = 2')})
    with pytest.raises(SpecError, match=r"doubling.py:\d+: "):
        build.contents(root / "solutions" / LAB, root)


def test_nbgraders_own_release_of_the_source_tree_has_the_same_cells(built, tmp_path):
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    source = build.build_source(built / "solutions" / LAB, tmp_path / "course" / "source", built)
    assert sorted(path.name for path in source.iterdir()) == ["doubling.ipynb", "probes.safetensors", "test_visible.py"]
    assert "answer_of_the_reference" in (source / "doubling.ipynb").read_text()
    config = Config({"CourseDirectory": {"root": str(tmp_path / "course"), "assignment_id": LAB},
                     "GenerateAssignment": {"no_database": True}, "SaveCells": {"enabled": False}})
    GenerateAssignment(coursedir=CourseDirectory(config=config), config=config).start()
    theirs = nbformat.read(tmp_path / "course" / "release" / LAB / "doubling.ipynb", as_version=4)
    assert theirs.cells == notebook_of(built).cells


# ---------------------------------------------------------------- what lies beside it

def test_recordings_hold_the_reference_and_every_mistake_with_its_hint(built):
    recordings = load_recordings(built / "labs" / LAB / "probes.safetensors")
    assert recordings.answers == {"double": {"reference": {"some_doubles": [1.0, 6.0]}, "squared": {"some_doubles": [0.25, 9.0]}}}
    assert recordings.hints == {"double": {"squared": "You square the number. Multiply it by two instead."}}


def test_last_bits_of_another_machine_do_not_change_the_recordings(built):
    path = built / "labs" / LAB / "probes.safetensors"
    recordings = load_recordings(path)
    recordings.answers["double"]["squared"]["some_doubles"][1] *= 1 + 1e-12
    path.write_bytes(to_bytes(recordings))
    assert build.stale([built / "solutions" / LAB], built) == []
    recordings.answers["double"]["squared"]["some_doubles"][1] += 0.01
    path.write_bytes(to_bytes(recordings))
    assert build.stale([built / "solutions" / LAB], built) == [f"labs/{LAB}/probes.safetensors is stale"]


def test_a_damaged_recording_is_made_anew(built):
    path = built / "labs" / LAB / "probes.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    build.build(built / "solutions" / LAB, built)
    assert path.read_bytes() == whole


def test_a_mistake_on_which_a_probe_fails_is_an_error_of_the_author(small_course):
    root = small_course({"mistakes.py": ("x**2", "x.nothing")})
    with pytest.raises(SpecError, match=r"mistakes.py:4: some_doubles does not run to its end on squared: .*AttributeError"):
        build.contents(root / "solutions" / LAB, root)


def test_companions_come_along_but_not_what_only_the_grader_has(small_course):
    root = small_course({"full_run.json": "[1, 2]", "full_run.py": "print('a long measurement')\n", "verified.json": "{}",
                         "sketch.py": "x = 3\nFACTOR = 2\nanswer_of_the_reference   =  FACTOR * x\n", ".notes": "hush"})
    files, remarks = build.contents(root / "solutions" / LAB, root)
    assert sorted(files) == ["doubling.ipynb", "full_run.json", "full_run.py", "probes.safetensors", "test_visible.py"]
    assert remarks == ["11_doubling/sketch.py stays behind: its line 3 is also in double's solution"]


def test_a_visible_test_that_repeats_a_solution_is_an_error_of_the_author(small_course):
    root = small_course({"test_visible.py": ("\n\n\n@probe", "\n\ndef spoiler(x, FACTOR=2):\n    answer_of_the_reference = FACTOR * x\n\n\n@probe")})
    with pytest.raises(SpecError, match=r"test_visible.py:16: this line is also in double's solution"):
        build.contents(root / "solutions" / LAB, root)


# ---------------------------------------------------------------- the command

def test_check_names_each_stale_file_and_exits_1(built, monkeypatch):
    done = run(built, monkeypatch, "--check")
    assert (done.exit_code, done.output) == (0, "labs/ is up to date.\n")
    lab = built / "labs" / LAB
    (lab / "test_visible.py").write_text("")
    (lab / "probes.safetensors").unlink()
    (lab / "test_hidden.py").write_text("")
    done = run(built, monkeypatch, "--check")
    assert done.exit_code == 1
    assert done.output.splitlines()[:-1] == [f"labs/{LAB}/test_visible.py is stale", f"labs/{LAB}/probes.safetensors is missing",
                                             f"labs/{LAB}/test_hidden.py is not made by the build"]


def test_the_command_line_starts_without_torch_and_jupyter():
    code = "import sys, autograder.cli; sys.exit(bool({'torch', 'nbformat', 'IPython'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_authors_error_ends_the_command_with_one_line_and_code_2(small_course, monkeypatch):
    done = run(small_course({"doubling.py": ("check(triple)", "check(quadruple)")}), monkeypatch)
    assert done.exit_code == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "doubling.py:42: check(quadruple)" in done.stderr


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_notebook_that_was_worked_in_is_left_alone_while_the_lab_is_the_same(built, monkeypatch):
    path = built / "labs" / LAB / "doubling.ipynb"
    edit(path, "raise NotImplementedError()", "return 2 * x")
    mine = path.read_text()
    assert "stays as it is" in run(built, monkeypatch).output
    assert path.read_text() == mine
    run(built, monkeypatch, "--force")
    assert "return 2 * x" not in path.read_text()
    assert "return 2 * x" in path.with_name("doubling.kept.ipynb").read_text()


def test_a_notebook_that_was_worked_in_is_kept_aside_when_the_lab_changes(built, monkeypatch):
    path = built / "labs" / LAB / "doubling.ipynb"
    edit(path, "raise NotImplementedError()", "return 2 * x")
    edit(built / "solutions" / LAB / "doubling.py", "How do you", "How would you")
    assert "kept labs/11_doubling/doubling.kept.ipynb" in run(built, monkeypatch).output
    assert "How would you" in path.read_text() and "return 2 * x" not in path.read_text()
    assert "return 2 * x" in path.with_name("doubling.kept.ipynb").read_text()
    assert run(built, monkeypatch, "--check").exit_code == 0


def test_a_notebook_that_was_only_run_is_replaced_when_the_lab_changes(built, monkeypatch):
    path = built / "labs" / LAB / "doubling.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][1]["execution_count"] = 1
    path.write_text(json.dumps(notebook))
    edit(built / "solutions" / LAB / "doubling.py", "How do you", "How would you")
    assert run(built, monkeypatch).output == "wrote labs/11_doubling/doubling.ipynb\n"


def test_nothing_half_written_stays_when_the_disk_is_full(built, monkeypatch):
    path = built / "labs" / LAB / "test_visible.py"
    before = path.read_bytes()
    edit(built / "solutions" / LAB / "test_visible.py", "Multiply by two.", "Multiply it by two.")

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    done = run(built, monkeypatch)
    assert done.exit_code == 2 and "No space left" in done.stderr
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))


def test_labs_of_this_repository_are_fresh():
    from autograder.source import all_labs
    assert build.stale(all_labs(ROOT), ROOT) == []
