"""The book: the course as a static site that needs no network, in build/book.

It consists of the pages in book/ with sections of the README, the labs as students get them beside the outputs of a real
run of the reference, the ledger of claims, and the docstrings of what labs import. A solution is never part of it: the
students' notebooks go in, and the finished site is searched for the secret lines of every lab.
"""
from __future__ import annotations

import ast
import base64
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from autograder import build, cellcode, execute, notebook
from autograder.demo import fill, reference_sources
from autograder.judge import Lab
from autograder.leaks import Secrets
from autograder.results import read_json, write_json
from autograder.sitecheck import problems
from autograder.source import load_lab
from autograder.submission import is_solution
from course import claims, device, syllabus

BADGE = re.compile(r"\s*\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)")
PICTURE = re.compile(r'(<img [^>]*)src="data:image/png;base64,([A-Za-z0-9+/=]+)"')
ABOUT = """

:::{{note}}
This is the lab as a student gets it: your functions go where it says `YOUR CODE HERE`. Figures, verdicts and what stands
beside *You* are those of the reference solution, on {date}, {device}. To do the lab, open `{place}`
with `make lab`{colab}.
:::
"""


class BookError(RuntimeError):
    """The book cannot be made; the text says what is wrong with which page."""
    for_people = True


def make(root: Path, *, fresh: bool = False, links: bool = False, say: Callable[[str], None] = print) -> Path:
    """Build the site and look it over; returns its first page. Only a site without fault takes the place of the last one.

    `fresh` runs every lab again, `links` also visits the links that lead out of the site. Raises BookError and SpecError.
    """
    aside, out = root / "build" / "book.aside", root / "build" / "book"
    plan = syllabus.load(root / "course" / "syllabus.toml")
    labs = [load_lab(root / "solutions" / lab.name) for lab in plan.labs if not lab.planned]
    files, points = _common_pages(root), {}
    for lab, spec in labs:
        name = lab.folder.name
        student = notebook.student_notebook(notebook.instructor_notebook(lab, spec, notebook.repository_address(root)))
        run = reference_run(root, name, student, aside / "runs" / f"{name}.json", fresh, say)
        files |= lab_pages(f"labs/{name}/{lab.name}.ipynb", student, run)
        points[name] = points_of(student)
    files |= _generated_pages(root, plan, files, points)
    _sync(files, aside / "source")
    site = aside / "site"
    _sphinx(aside, "html", site)
    if faults := problems(site, [Secrets(lab, spec) for lab, spec in labs]):
        raise BookError("\n".join(["the book is not right:", *faults[:20], *[f"... and {len(faults) - 20} more"] * (len(faults) > 20)]))
    shutil.rmtree(out, ignore_errors=True)
    os.replace(site, out)
    if links:
        _sphinx(aside, "linkcheck", aside / "links")
    return out / "index.html"


def _sphinx(aside: Path, builder: str, out: Path) -> None:
    """Every page is written, as each shows the list of all; what has not changed is not read again."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-a", "-q", "-W", "--keep-going", "-d", aside / "doctrees", aside / "source", out]
    if subprocess.run(list(map(str, command))).returncode:
        shutil.rmtree(aside / "doctrees", ignore_errors=True)  # or the next time would not warn of the same pages
        raise BookError("Sphinx says above what is wrong with the book's pages")


def _sync(files: dict[str, bytes], folder: Path) -> None:
    """Make the folder hold these files; those that are so already keep their date."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, data in files.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != data:
            build.write(folder / name, data)


# ---------------------------------------------------------------- labs

def reference_run(root: Path, name: str, student: NotebookNode, kept: Path, fresh: bool, say: Callable[[str], None]) -> dict:
    """The outputs of each code cell when the reference's functions stand in the notebook: run now, or kept from before.

    A run counts until the lab's code or the files beside the notebook change; its texts may change.
    """
    solved = fill(student, reference_sources(Lab(root, name)))
    folder = root / "labs" / name
    parts = [cell.source.encode() for cell in solved.cells if cell.cell_type == "code"]
    parts += [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".ipynb"]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()
    run = read_json(kept)
    if fresh or not run or run["key"] != key:
        say(f"{name}: running the reference; this takes some minutes")
        done = execute.run_notebook(solved, folder)
        if wrong := [done.error] if done.error else execute.failed_checks(done.notebook):
            raise BookError(f"{name}: the reference's notebook does not run as it should: {wrong[0]}")
        card = device.describe()
        run = {"key": key, "date": datetime.date.today().isoformat(), "device": f"{card.cpu}, {card.cores} cores",
               "outputs": [cell.outputs for cell in done.notebook.cells if cell.cell_type == "code"]}
        write_json(kept, run)
    return run


def lab_pages(place: str, student: NotebookNode, run: dict) -> dict[str, bytes]:
    """The page of a lab, and its pictures: the student's cells, each with what it showed when the reference ran.

    Cells for the student's own words are left out.
    """
    pictures: dict[str, bytes] = {}
    cells, outputs = [], iter(run["outputs"])
    for cell in student.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            folded = cell.metadata.get("jupyter", {}).get("source_hidden", False) or tags == ["setup"]
            looks = ["hide-input"] * folded + ["exercise"] * is_solution(cell)
            shown = [output for found in next(outputs) for output in _shown(found, pictures)]
            cells.append(new_code_cell(cell.source, id=cell.id, metadata={"tags": looks}, outputs=shown))
        elif "prediction" not in tags and not cell.metadata.get("nbgrader", {}).get("solution"):
            cells.append(new_markdown_cell(cell.source, id=cell.id))
    colab = BADGE.search(cells[0].source)
    cells[0].source = BADGE.sub("", cells[0].source) + ABOUT.format(
        date=run["date"], device=run["device"], place=place, colab=f" or [in Colab]({colab[1]})" if colab else "")
    page = notebook.to_bytes(new_notebook(cells=cells, metadata={key: student.metadata[key] for key in ("kernelspec", "language_info")}))
    folder = Path(place).parent.as_posix()
    return {place: page, **{f"_extra/{folder}/{name}": data for name, data in pictures.items()}}


def _shown(output: dict, pictures: dict[str, bytes]) -> Iterable[NotebookNode]:
    """An output as the page shows it. Pictures inside HTML become files, which a browser loads when they come in sight.

    Not stderr: a warning there quotes the line that it is about.
    """
    def to_file(found: re.Match) -> str:
        name = f"figure-{len(pictures) + 1}.png"
        pictures[name] = data = base64.b64decode(found[2])
        height = ""
        if width := re.search(r' width="(\d+)"', found[1]):  # with its height the browser keeps room for it
            pixels = [int.from_bytes(data[at:at + 4], "big") for at in (16, 20)]
            height = f' height="{round(int(width[1]) * pixels[1] / pixels[0])}"'
        return f'{found[1]}src="{name}"{height} loading="lazy"'

    if output["output_type"] == "stream":
        if output["name"] == "stdout":
            yield new_output("stream", name="stdout", text=output["text"])
    elif output["output_type"] in ("display_data", "execute_result"):
        kinds = ("text/html", "text/plain") if "text/html" in output["data"] else ("image/png", "text/plain")
        data = {kind: output["data"][kind] for kind in kinds if kind in output["data"]}
        if "text/html" in data:
            data["text/html"] = PICTURE.sub(to_file, data["text/html"])
        yield new_output("display_data", data)


# ---------------------------------------------------------------- other pages

def _common_pages(root: Path) -> dict[str, bytes]:
    """book/ itself, and what its pages take from the repository, where the README's links expect it."""
    book = root / "book"
    files = {path.relative_to(book).as_posix(): path.read_bytes() for path in book.rglob("*")
             if path.is_file() and not build.unseen(path.relative_to(book))}
    for path in [root / "README.md", root / "autograder" / "PROTOCOL.md", *(root / "docs").glob("*.png")]:
        files[path.relative_to(root).as_posix()] = path.read_bytes()
    return files


def _generated_pages(root: Path, plan: syllabus.Syllabus, files: dict[str, bytes], points: dict[str, Counter]) -> dict[str, bytes]:
    """The pages with a mark, each with what belongs there, and one for each module that a lab imports."""
    modules = sorted({module for name, data in files.items() if name.endswith(".ipynb") for module in _imported(data)})
    marks = {"labs": overview(plan), "contents": contents(plan), "claims": ledger(claims.load(root / "course" / "claims.toml"), plan),
             "points": point_table(points, plan), "modules": "```{toctree}\n" + "\n".join(f"api/{module}" for module in modules) + "\n```"}
    pages = {f"api/{module}.rst": _module_page(module).encode() for module in modules}
    for name, data in files.items():
        if name.endswith(".md") and name != "README.md":
            pages[name] = re.sub(r"<!-- (\w+) -->", lambda mark: marks.get(mark[1], mark[0]), data.decode()).encode()
    return pages


def overview(plan: syllabus.Syllabus) -> str:
    """The labs by part, each with its question, hours, and what it needs."""
    text = []
    for part, title in plan.parts.items():
        if labs := [lab for lab in plan.labs if lab.part == part]:
            text += [f"## {title}", "", "{.labs}", "| Lab | Hours | After | Needs |", "| --- | --- | --- | --- |"]
            for lab in labs:
                name = f"{lab.name[:2]} {lab.title}"
                name = f"**{name}** (planned)" if lab.planned else f"**[{name}]({lab.notebook})**"
                text.append(f"| {name}<br>{lab.question} | {lab.hours:g} | {', '.join(n[:2] for n in lab.after) or 'none'} | {lab.device} |")
            text.append("")
    return "\n".join(text)


def contents(plan: syllabus.Syllabus) -> str:
    """The labs that are there as hidden tables of contents, one for each part: the list at the side of every page."""
    text = ""
    for part, title in plan.parts.items():
        if labs := [lab.notebook.removesuffix(".ipynb") for lab in plan.labs if lab.part == part and not lab.planned]:
            text += "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *labs, "```", ""])
    return text


def points_of(student: NotebookNode) -> Counter:
    """A lab's points by what earns them: check, speed, written."""
    found = Counter()
    for cell in student.cells:
        kind = "written" if cell.cell_type == "markdown" else cell.source.split("(")[0]
        found[kind] += cell.metadata.get("nbgrader", {}).get("points", 0)
    return found


def point_table(points: dict[str, Counter], plan: syllabus.Syllabus) -> str:
    rows = ["| Lab | Code | Speed and work | Written answers | All |", "| --- | --: | --: | --: | --: |"]
    for name, found in points.items():
        lab = plan.lab(name)
        numbers = [found["check"], found["speed"], found["written"], found.total()]
        rows.append(f"| [{name[:2]} {lab.title}]({lab.notebook}) | {' | '.join(f'{n:g}' for n in numbers)} |")
    return "\n".join(rows)


def ledger(found: dict[str, claims.Claim], plan: syllabus.Syllabus) -> str:
    """Every claim, by lab: what is claimed and by whom, the verdict, and what was measured how, where and when."""
    titles = {lab.name: f"{lab.name[:2]} {lab.title}" for lab in plan.labs}
    text = ["| Verdict | Claims |", "| --- | --- |", *(f"| {verdict} | {sum(c.verdict == verdict for c in found.values())} |" for verdict in claims.VERDICTS)]
    for lab in sorted({claim.lab for claim in found.values()}):
        text += ["", f"## {titles.get(lab, lab.replace('_', ' '))}", ""]
        for claim in (claim for claim in found.values() if claim.lab == lab):
            result = ": ".join(filter(None, (claim.figure, claim.measured)))
            text += [f"{plain(claim.claim)} [({f'text {claim.source}' if claim.source else 'a slip'})]{{.source}}",
                     f": **{claim.verdict.capitalize()}.** {plain(result)}{'.' if result else ''} `{claim.id}`"]
            if claim.verdict != claims.OPEN:
                text.append(f": *How:* {plain(claim.protocol)}. *Device:* {plain(claim.device)}; {claim.date}.")
            text.append("")
    return "\n".join(text)


def plain(text: str) -> str:
    """Text that Markdown shall take as it is."""
    return re.sub(r"([\\`*_{}\[\]<>$|#~^&])", r"\\\1", text)


def _imported(page: bytes) -> Iterable[str]:
    """The modules of the course that a lab's code cells import."""
    for cell in nbformat.reads(page.decode(), as_version=4).cells:
        for node in ast.walk(cellcode.parse(cell.source) or ast.Module([], [])) if cell.cell_type == "code" else ():
            if isinstance(node, ast.ImportFrom) and node.module == "course":
                yield from (name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("course."):
                yield node.module.split(".")[1]


def _module_page(module: str) -> str:
    title = f"course.{module}"
    return f"{title}\n{'=' * len(title)}\n\n.. automodule:: {title}\n   :members:\n   :member-order: bysource\n"
