"""The students' repository: the labs and the course, and nothing from which an answer or a hidden test can be had."""
from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from autograder import build
from autograder.leaks import Secrets
from autograder.source import all_labs, load_lab
from course import syllabus
from course.spec.load import SpecError

AUTHORS_PART = "# ---- for authors and instructors"  # the Makefile below this line is not released
README = """\
# Trainfast: labs

You write, from scratch, what makes neural networks train faster, smaller and without blowing up, and you measure
whether it does.

You need Linux, macOS or WSL with Python 3.11 or later (on Debian and Ubuntu also the package python3-venv) and make.

    make lab

installs everything into .venv and opens JupyterLab on a page that lists the labs and how far you are in each. Without make, use conda
(`conda env create -f environment.yml`) and then `python -m course.welcome`.

{table}

In each lab, run the setup cell first. Write the functions; the check below each says in a second whether it is right,
and if not, what to look at. Hand in the notebook (`.ipynb`) with everything that you wrote in it.
"""
GITIGNORE = ".venv/\n__pycache__/\n*.egg-info/\n.ipynb_checkpoints/\n.trainfast/\n"
PYPROJECT = """\
[build-system]
requires = {requires}
build-backend = "hatchling.build"

[project]
name = "trainfast"
version = "{version}"
description = {description}
requires-python = "{python}"
dependencies = {dependencies}

[project.optional-dependencies]
lab = {lab}

[tool.trainfast]
repository = "{repository}"

[tool.hatch.build.targets.wheel]
packages = ["course"]

[tool.hatch.build.targets.wheel.force-include]
labs = "course/_labs"
"""


def release(out: Path, root: Path, *, force: bool = False) -> list[str]:
    """Write the students' repository to `out`; returns lines to print.

    Everything is made and searched for leaks aside and only then moved into place. In a folder that is not empty,
    `force` replaces what a release consists of and touches nothing else (its .git stays).
    """
    out = Path(out).resolve()
    sources = [root.resolve() / name for name in ("solutions", "labs", "course", "autograder")]
    if root.resolve().is_relative_to(out) or any(out.is_relative_to(source) for source in sources):
        raise FileExistsError(f"{out} belongs to the course itself; choose a folder apart from it")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(f"{out} is not empty; empty it, or say --force to replace an earlier release there")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=out.parent) as aside:
        files = _files(root)
        _refuse_leaks(root, files)
        for name, data in files.items():
            build.write(Path(aside) / "new" / name, data)
        for entry in sorted((Path(aside) / "new").iterdir()):
            if (out / entry.name).exists():
                (Path(aside) / "old").mkdir(exist_ok=True)
                os.replace(out / entry.name, Path(aside) / "old" / entry.name)
            os.replace(entry, out / entry.name)
    labs = {name.split("/")[1] for name in files if name.startswith("labs/")}
    return [f"released {len(labs)} labs, {len(files)} files, to {out}"]


def _files(root: Path) -> dict[str, bytes]:
    files = {}
    planned = {lab.name for lab in syllabus.load().labs if lab.planned}  # still being written
    for folder in all_labs(root):
        if folder.name in planned:
            continue
        files |= {f"labs/{folder.name}/{name}": data for name, data in build.contents(folder, root)[0].items()}
    for path in sorted((root / "course").rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and not build.unseen(name) and "_labs" not in name.parts:
            files[name.as_posix()] = path.read_bytes()
    for path in [root / "constraints.txt", *sorted(root.glob("LICEN[CS]E*"))]:
        files[path.name] = path.read_bytes()
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    environment = (root / "environment.yml").read_text(encoding="utf-8")
    texts = {"Makefile": makefile.split(AUTHORS_PART)[0].rstrip() + "\n",
             "environment.yml": environment.replace("[dev]", "[lab]"),
             "pyproject.toml": _pyproject(root), ".gitignore": GITIGNORE,
             "README.md": README.format(table=syllabus.table(syllabus.load(), planned=False))}
    return files | {name: text.encode() for name, text in texts.items()}


def _pyproject(root: Path) -> str:
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = data["project"]
    return PYPROJECT.format(requires=_list(data["build-system"]["requires"]), version=project["version"],
                            description=json.dumps(project["description"]), python=project["requires-python"],
                            dependencies=_list(project["dependencies"]), lab=_list(project["optional-dependencies"]["lab"]),
                            repository=data["tool"]["trainfast"]["repository"])


def _list(items: list[str]) -> str:
    return "[\n" + "".join(f"    {json.dumps(item)},\n" for item in items) + "]"


def _refuse_leaks(root: Path, files: dict[str, bytes]) -> None:
    """A line that two labs have in common, and one of them shows, is no secret outside of the other's folder."""
    secrets = {folder.name: Secrets(*load_lab(folder)) for folder in all_labs(root)}
    for lab, own in secrets.items():
        elsewhere = own.without(set().union(*(other.public for name, other in secrets.items() if name != lab)))
        for name, data in files.items():
            for text in _texts(name, data):
                if leak := (own if name.startswith(f"labs/{lab}/") else elsewhere).find(text):
                    raise SpecError(f"{name} would give away {leak.origin}: its line {leak.line} is the same; "
                                    "write one of them in another way")


def _texts(name: str, data: bytes) -> Iterator[str]:
    """Everything in a file that can be read."""
    if name.endswith(".ipynb"):
        for cell in json.loads(data)["cells"]:
            yield "".join(cell["source"])
    elif name.endswith(".safetensors"):
        yield data.decode(errors="replace").replace('"', "\n")  # the header's JSON, a string a line
    else:
        yield data.decode(errors="replace")
