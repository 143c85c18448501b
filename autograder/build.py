"""From solutions/NN_topic to labs/NN_topic: the student's notebook and what lies beside it.

Beside it lies everything of the lab's folder except the script, the hidden tests, the mistakes, what verify keeps
there, hidden files, and files that repeat a line of a solution or of a hidden test.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import nbformat

from autograder import notebook
from autograder.leaks import Secrets
from autograder.probes import probes_file
from autograder.script import fail
from autograder.source import LabSource, load_lab
from course import syllabus
from course.spec.load import HIDDEN, MISTAKES, PROBES, VISIBLE, Specification

STAYS = (HIDDEN, MISTAKES, PROBES, "verified.json", "survivors.toml")


def contents(folder: Path, root: Path) -> tuple[dict[str, bytes], list[str]]:
    """What labs/NN_topic holds, by file name, and remarks for the author. Raises SpecError."""
    lab, spec = load_lab(folder)
    student = notebook.student_notebook(notebook.instructor_notebook(lab, spec, notebook.repository_address(root)))
    files, remarks = _companions(lab, spec, Secrets(lab, spec))
    if spec.probes:
        files[PROBES] = probes_file(lab, spec, root / "labs" / lab.folder.name / PROBES)
    return {f"{lab.name}.ipynb": notebook.to_bytes(student), **files}, remarks


def _companions(lab: LabSource, spec: Specification, secrets: Secrets) -> tuple[dict[str, bytes], list[str]]:
    files, remarks = {}, []
    for path in sorted(lab.folder.rglob("*")):
        name = path.relative_to(lab.folder).as_posix()
        if not path.is_file() or unseen(Path(name)) or path == lab.path or name in STAYS:
            continue
        data = path.read_bytes()
        leak = secrets.find(data.decode(errors="replace"))
        if leak and name == VISIBLE:
            fail(path, leak.line, f"this line is also in {leak.origin}, and students get this file; write it in another way")
        if leak:
            remarks.append(f"{lab.folder.name}/{name} stays behind: its line {leak.line} is also in {leak.origin}")
        else:
            files[name] = data
    return files, remarks


def build(folder: Path, root: Path, *, force: bool = False) -> list[str]:
    """Bring labs/NN_topic up to date; one line for each thing done, none if all was fresh.

    A notebook that somebody has worked in is never lost: it is left alone as long as the lab is the same (unless
    `force`), and kept under another name when the lab has changed.
    """
    files, said = contents(folder, root)
    out = root / "labs" / folder.name
    for name, data in files.items():
        path = out / name
        if path.is_file() and path.read_bytes() == data:
            continue
        if path.suffix == ".ipynb" and path.is_file() and (worked_in := _worked_in(path, data)):
            if worked_in == "same lab" and not force:
                said.append(f"{_at(path, root)} has been worked in and stays as it is (--force builds it anew)")
                continue
            said.append(f"kept {_at(_set_aside(path), root)}, which had been worked in")
        write(path, data)
        said.append(f"wrote {_at(path, root)}")
    return said


def stale(folders: Iterable[Path], root: Path) -> list[str]:
    """What in labs/ is not as a build would make it, one line for each; README.md's table of labs too."""
    found = []
    folders = list(folders)
    for folder in folders:
        files, _ = contents(folder, root)
        out = root / "labs" / folder.name
        found += [f"{_at(out / name, root)} is {'stale' if (out / name).is_file() else 'missing'}"
                  for name, data in files.items() if not (out / name).is_file() or (out / name).read_bytes() != data]
        found += [f"{_at(path, root)} is not made by the build" for path in sorted(out.rglob("*"))
                  if path.is_file() and path.relative_to(out).as_posix() not in files
                  and not unseen(path.relative_to(out)) and ".kept" not in path.name]
    readme = root / "README.md"
    if readme.is_file() and readme.read_text(encoding="utf-8") != syllabus.with_table(readme.read_text(encoding="utf-8")):
        found.append("README.md's table of labs is stale")
    return found


def refresh_readme(root: Path) -> list[str]:
    """Write README.md's table of labs anew from the syllabus."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text == syllabus.with_table(text):
        return []
    write(path, syllabus.with_table(text).encode())
    return ["wrote README.md's table of labs"]


def build_source(folder: Path, out: Path, root: Path) -> Path:
    """nbgrader's source/NN_topic under `out`: the notebook with solutions, beside it only what students may have.

    It carries the student's build stamp: what `nbgrader generate_assignment` makes of it is then equal to labs/.
    """
    lab, spec = load_lab(folder)
    instructor = notebook.instructor_notebook(lab, spec, notebook.repository_address(root))
    files, _ = contents(folder, root)
    student = nbformat.reads(files[f"{lab.name}.ipynb"].decode(), as_version=4)
    instructor.metadata["trainfast"] = student.metadata["trainfast"]
    out = out / lab.folder.name
    for path in out.rglob("*"):  # nbgrader hands on whatever lies here
        if path.is_file() and path.relative_to(out).as_posix() not in files:
            path.unlink()
    for name, data in (files | {f"{lab.name}.ipynb": notebook.to_bytes(instructor)}).items():
        write(out / name, data)
    return out


def write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _worked_in(path: Path, fresh: bytes) -> str:
    """"" if the notebook at `path` is as an older build left it; else "same lab" or "other lab", whose state it is in."""
    try:
        found = nbformat.read(path, as_version=4)
        stamp = found.metadata["trainfast"]
    except Exception:
        return "other lab"  # unreadable or foreign, but it may be somebody's work
    if stamp["build"] == nbformat.reads(fresh.decode(), as_version=4).metadata["trainfast"]["build"]:
        return "same lab"
    return "other lab" if notebook.digest(found) != stamp["cells"] else ""


def _set_aside(path: Path) -> Path:
    kept = path.with_name(f"{path.stem}.kept.ipynb")
    number = 2
    while kept.exists():
        kept = path.with_name(f"{path.stem}.kept{number}.ipynb")
        number += 1
    return path.rename(kept)


def unseen(path: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.parts)


def _at(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
