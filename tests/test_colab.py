"""A notebook alone on Colab: one cell brings the course, keeps torch, and what comes back is graded as it stands.

Without Colab: a new environment that has what Colab has and nothing else, and the repository at a local git address.
"""
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement

from autograder.demo import fill, mistake_source, reference_sources
from autograder.execute import seconds_of
from autograder.grade import ROOT
from autograder.judge import Lab, judge
from autograder.notebook import repository_address
from autograder.repair import judged_cells
from autograder.sandbox import ForkServer
from autograder.submission import read_notebook
from autograder.submission import grade_id
from course.verdict import VERDICT

LAB, TOPIC = "11_saddle_points", "saddle_points"
THERE = ("torch", "torchvision", "numpy", "matplotlib", "ipython", "ipykernel")  # more is on Colab, but nothing here counts on it
COLABS_PIP = "pip==24.1.2"
SETUP_SECONDS = 60  # on a machine with nothing else to do


def distributions(*names: str) -> dict[str, importlib.metadata.Distribution]:
    """These and all that they need."""
    found, wanted = {}, [Requirement(name) for name in names]
    seen = set()
    while wanted:
        want = wanted.pop()
        if str(want) not in seen:
            seen.add(str(want))
            distribution = found[want.name] = importlib.metadata.distribution(want.name)
            wanted += [need for need in map(Requirement, distribution.requires or [])
                       if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *want.extras})]
    return found


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A new environment; torch and its like are links to this one's, in a folder that pip cannot change."""
    place = tmp_path_factory.mktemp("runtime")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    if subprocess.run([python, "-m", "pip", "install", "--quiet", COLABS_PIP], capture_output=True).returncode:
        pytest.skip("no package index can be reached from here")
    preinstalled = place / "preinstalled" / "site-packages"  # by this name hypothesis knows that these are not our modules
    preinstalled.mkdir(parents=True)
    for distribution in distributions(*THERE).values():
        for top in {Path(file).parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (preinstalled / top).exists():
                (preinstalled / top).symlink_to(distribution.locate_file(top))
    [packages] = (place / "venv" / "lib").glob("python*/site-packages")
    (packages / "preinstalled.pth").write_text(f"{preinstalled}\n")
    spec = place / "jupyter" / "kernels" / "colab"
    spec.mkdir(parents=True)
    spec.joinpath("kernel.json").write_text(json.dumps({"display_name": "colab", "language": "python",
                                                        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]}))
    return SimpleNamespace(place=place, packages=packages, address=git_repository(place / "repository"))


def git_repository(folder: Path) -> str:
    """The address of a repository with what is in this working tree."""
    for name in ("course", "autograder", "labs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.kept*"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for command in (["init", "--quiet"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder.as_uri()


def run(notebook, runtime, folder: Path, monkeypatch, leave_out=()) -> None:
    """In a new kernel of the environment, in an empty folder where only the notebook is. Outputs go into `notebook`."""
    folder.mkdir()
    nbformat.write(notebook, folder / f"{TOPIC}.ipynb")
    for name in [name for name in os.environ if name.startswith(("PYTHON", "VIRTUAL_ENV", "TRAINFAST", "NBGRADER"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_PATH", str(runtime.place / "jupyter"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setenv("IPYTHONDIR", str(runtime.place / "ipython"))
    client = NotebookClient(new_notebook(cells=[cell for cell in notebook.cells if not set(leave_out) & set(cell.metadata.get("tags", []))]),
                            timeout=600, kernel_name="colab", resources={"metadata": {"path": str(folder)}})
    client.execute()


def as_colab_saves(notebook):
    """Colab knows neither ids nor nbgrader; it keeps its own notes, and of outputs what it can show."""
    saved = json.loads(nbformat.writes(notebook))
    saved |= {"nbformat_minor": 0, "metadata": {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}}
    for number, cell in enumerate(saved["cells"]):
        del cell["id"]
        cell["metadata"] = {"id": f"k{number}Zq_3xY", **({"outputId": "0a1b", "colab": {"base_uri": "https://localhost:8080/"}} if cell.get("outputs") else {})}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(VERDICT, None)
    return saved


def verdicts(notebook) -> dict[str, dict]:
    return {output.data[VERDICT]["exercise"]: output.data[VERDICT] for cell in notebook.cells for output in cell.get("outputs", [])
            if VERDICT in output.get("data", {})}


@pytest.fixture(scope="module")
def worked(runtime, tmp_path_factory):
    """Lab 11 as a student leaves it: all right but Nesterov's step, which is a known mistake. Set up, and every exercise run."""
    lab = Lab(ROOT, LAB)
    name, wrong = mistake_source(lab, "no_look_ahead")
    notebook = fill(lab.released, {**reference_sources(lab), name: wrong})
    setup = next(cell for cell in notebook.cells if cell.metadata.get("tags") == ["setup"])
    assert repository_address(ROOT) in setup.source
    setup.source = setup.source.replace(repository_address(ROOT), runtime.address)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(notebook, runtime, tmp_path_factory.mktemp("colab") / "content", monkeypatch, leave_out=["experiment"])
    return notebook


def test_one_cell_brings_the_course_within_a_minute(worked):
    setup = next(cell for cell in worked.cells if cell.metadata.get("tags") == ["setup"])
    others = max(1, os.getloadavg()[0] / os.cpu_count())
    assert seconds_of(setup) <= SETUP_SECONDS * others
    assert "Grading here" in str(setup.outputs) and "After a restart" in str(setup.outputs)


def test_colabs_own_torch_stays(runtime, worked):
    assert (runtime.packages / "course").is_dir()
    assert not list(runtime.packages.glob("torch*")) and not list(runtime.packages.glob("numpy*")) and not list(runtime.packages.glob("triton*"))


def test_visible_tests_and_hints_come_with_the_course(worked):
    found = verdicts(worked)
    assert set(found) == set(reference_sources(Lab(ROOT, LAB)))
    wrong = found.pop("nesterov_step")
    assert any("momentum" in result["message"] for result in wrong["results"]) and wrong["points"] < wrong["max_points"]
    assert all(verdict["points"] == verdict["max_points"] for verdict in found.values())


def test_what_colab_saves_earns_the_same_score(worked, tmp_path):
    lab = Lab(ROOT, LAB)
    texts = {"here": nbformat.writes(worked), "colab": json.dumps(as_colab_saves(worked))}
    points = {}
    with ForkServer(labs=ROOT / "labs") as server:
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            verdict = judge(lab, server, name, judged_cells(read_notebook(tmp_path / name), lab.released), speed=False)
            points[name] = {test.name: test.points for test in verdict.tests}
    assert points["colab"] == points["here"] and sum(points["here"].values()) > 90


def test_the_downloaded_file_alone_goes_on_after_a_restart(runtime, worked, tmp_path, monkeypatch):
    """File, Download .ipynb; and in a new runtime File, Upload notebook: another kernel, an empty folder."""
    uploaded = nbformat.reads(json.dumps(as_colab_saves(worked)), as_version=4)
    wanted = ("import os", "def momentum_step", "check(momentum_step)")
    again = new_notebook(cells=[new_code_cell(cell.source) for cell in uploaded.cells if cell.source.startswith(wanted)])
    run(again, runtime, tmp_path / "content", monkeypatch)
    assert verdicts(again)["momentum_step"]["points"] == 6
