"""`autograder import ...` and `autograder export ...`: submissions in, grades and autograders out."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

imports = typer.Typer(no_args_is_help=True, help="Submissions from elsewhere into submitted/STUDENT/LAB/.")
exports = typer.Typer(no_args_is_help=True, help="Grades for elsewhere, and labs as autograders of elsewhere.")
TIMES = "When each was handed in: what CANVAS/api/v1/courses/N/assignments/N/submissions?per_page=100 shows, saved as JSON."
HIDDEN = "When students see hidden tests' results: visible, after_due_date, after_published, hidden."
Lab = Annotated[str, typer.Argument(help="Number, name or folder of the lab.")]
Roster = Annotated[Path, typer.Option(help="CSV: id, name, email, canvas_id, ..., or what Canvas's gradebook exports.")]
Database = Annotated[Path, typer.Option(help="nbgrader's gradebook, which autograder grade writes.")]


@imports.callback()
def _imports() -> None:
    """Makes it a group while it has one command only."""


@imports.command("canvas")
def import_canvas(archive: Annotated[Path, typer.Argument(metavar="ZIP", help='From "Download Submissions" of the assignment.')],
                  roster: Roster,
                  out: Annotated[Path, typer.Option(help="nbgrader's submitted/ tree.")] = Path("submitted"),
                  lab: Annotated[str, typer.Option(help="Which lab it is, if the files' names do not say it.")] = "",
                  times: Annotated[Path | None, typer.Option(help=TIMES)] = None) -> None:
    """Canvas's zip of submissions. Exit code 3 if a person must look at something; all else is imported."""
    from autograder.canvas import import_submissions
    from autograder.roster import load_roster
    from autograder.source import find_labs, find_root
    labs = {folder.name[3:]: folder.name for folder in find_labs([lab] if lab else [], find_root())}
    found = import_submissions(archive, load_roster(roster), out, labs, times)
    typer.echo(f"{found.lab}: {len(found.written)} notebooks written to {out}, {len(found.unchanged)} were there already.")
    late = "Late" if times else "Late, and with --times nbgrader knows by how much"
    for words, students in ((late, found.late), ("Nothing handed in", found.missing)):
        if students:
            typer.echo(f"{words}: {', '.join(students)}")
    for problem in found.problems:
        typer.echo(problem, err=True)
    if found.problems:
        raise typer.Exit(3)


@exports.command("canvas")
def export_canvas(lab: Lab, roster: Roster,
                  assignment: Annotated[str, typer.Option(help='The column as Canvas exports it: "Saddle points (98765)".')],
                  gradebook: Database = Path("gradebook.db"),
                  out: Annotated[Path, typer.Option(help="The CSV for Canvas's gradebook, Import.")] = Path("canvas.csv")) -> None:
    """One lab's grades as Canvas imports them. Exit code 3 if a grade could not be exported."""
    from autograder.grades import as_canvas, read_grades
    from autograder.results import write_atomically
    from autograder.roster import load_roster
    grades, problems = as_canvas(read_grades(gradebook, _name(lab)), load_roster(roster), assignment)
    write_atomically(out, grades.encode())
    typer.echo(f"wrote {out}")
    for problem in problems:
        typer.echo(problem, err=True)
    if any("roster" in problem for problem in problems):
        raise typer.Exit(3)


@exports.command("csv")
def export_csv(labs: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="Default: all labs that have grades.")] = None,
               gradebook: Database = Path("gradebook.db"),
               roster: Annotated[Path | None, typer.Option(help="Adds names, and who handed in nothing.")] = None,
               out: Annotated[Path, typer.Option(help="The CSV.")] = Path("grades.csv")) -> None:
    """All grades, a row for each student and lab."""
    from autograder.grades import as_csv, graded_labs, read_grades
    from autograder.results import write_atomically
    from autograder.roster import load_roster
    names = [_name(lab) for lab in labs] if labs else graded_labs(gradebook)
    text = as_csv([read_grades(gradebook, name) for name in names], load_roster(roster) if roster else None)
    write_atomically(out, text.encode())
    typer.echo(f"wrote {out}")


@exports.command("gradescope")
def export_gradescope(lab: Lab, out: Annotated[Path | None, typer.Option(help="Default: gradescope_LAB.zip")] = None,
                      hidden: Annotated[str, typer.Option(help=HIDDEN)] = "after_published") -> None:
    """A lab as a Gradescope autograder: upload the zip there."""
    from autograder.gradescope import VISIBILITIES, write_zip
    from autograder.source import find_root
    if hidden not in VISIBILITIES:
        raise typer.BadParameter(f"one of {', '.join(VISIBILITIES)}", param_hint="--hidden")
    name = _name(lab)
    typer.echo("\n".join(write_zip(find_root(), name, out or Path(f"gradescope_{name}.zip"), hidden)))


def _name(lab: str) -> str:
    from autograder.source import find_labs, find_root
    return find_labs([lab], find_root())[0].name
