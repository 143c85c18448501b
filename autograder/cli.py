"""The command line. Each command imports what it needs when it is called, so that `autograder --help` is quick."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from autograder.exchange import exports, imports


class _PlainErrors(TyperGroup):
    """An error that the user can mend is one line and exit code 2, without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Exception as error:
            spec = sys.modules.get("course.spec.load")  # not imported before a command needs it
            expected = (OSError, spec.SpecError) if spec else OSError
            if not isinstance(error, expected) and not getattr(error, "for_people", False):
                raise
            typer.echo(f"autograder: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(cls=_PlainErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Build, prove, release and grade the labs of Trainfast.")
app.add_typer(imports, name="import")
app.add_typer(exports, name="export")
Labs = Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="Number, name or folder. Default: all labs.")]


@app.command()
def build(labs: Labs = None,
          check: Annotated[bool, typer.Option("--check", help="Only name what is stale; exit 1 if anything is.")] = False,
          force: Annotated[bool, typer.Option("--force", help="Also overwrite notebooks that were worked in.")] = False,
          source: Annotated[bool, typer.Option("--source", help="Make nbgrader's source/ instead, for generate_assignment.")] = False) -> None:
    """Make labs/ from solutions/."""
    from autograder import build as builder
    from autograder.source import find_labs, find_root
    root = find_root()
    folders = find_labs(labs or [], root)
    if source:
        for folder in folders:
            typer.echo(f"wrote {builder.build_source(folder, root / 'source', root)}")
        return
    if check:
        stale = builder.stale(folders, root)
        typer.echo("\n".join([*stale, "Run: autograder build"] if stale else ["labs/ is up to date."]))
        raise typer.Exit(1 if stale else 0)
    said = [line for folder in folders for line in builder.build(folder, root, force=force)] + builder.refresh_readme(root)
    typer.echo("\n".join(said or ["labs/ is up to date."]))


@app.command()
def release(out: Annotated[Path, typer.Option("--out", help="A new or empty folder.")],
            force: Annotated[bool, typer.Option("--force", help="Replace an earlier release in a folder that is not empty.")] = False) -> None:
    """Write the students' repository: labs and course, without solutions and hidden tests."""
    from autograder.release import release as write_release
    from autograder.source import find_root
    for line in write_release(out, find_root(), force=force):
        typer.echo(line)


@app.command()
def grade(lab: Annotated[str, typer.Argument(help="Number, name or folder of the lab.")],
          submissions: Annotated[list[Path], typer.Argument(help="Notebooks, folders of notebooks, or nbgrader's submitted/ tree.")],
          out: Annotated[Path, typer.Option(help="results/LAB/STUDENT.json, the autograded notebooks and the gradebook go here.")] = Path("."),
          jobs: Annotated[int, typer.Option(help="Submissions judged at a time. Default: physical cores.")] = 0,
          regrade: Annotated[bool, typer.Option("--regrade", help="Judge again what has a result already.")] = False,
          student: Annotated[list[str] | None, typer.Option(help="Judge this student again, and no other. May be repeated.")] = None,
          exercise: Annotated[list[str] | None, typer.Option(help="Judge this exercise again, and keep all other verdicts. May be repeated.")] = None,
          gradebook: Annotated[bool, typer.Option(help="Write nbgrader's gradebook too.")] = True,
          require_isolation: Annotated[bool, typer.Option("--require-isolation", help="Judge nothing where submissions cannot be isolated.")] = False,
          scheduler: Annotated[str, typer.Option(help="Let the workers of this Dask cluster judge: tcp://HOST:PORT.")] = "") -> None:
    """Judge submissions, each in a process of its own; print the table; save every result.

    Exit code 0: every submission was judged. 3: some are unreadable, each with its reason in the table; all others
    were judged. 2: nothing was, for a reason that is printed.
    """
    from autograder.grade import find_submissions, known_exercises, only
    from autograder.report import print_table
    from autograder.source import find_labs, find_root
    root = find_root()
    name = find_labs([lab], root)[0].name
    found = find_submissions(name, submissions)
    if student:
        found, regrade = only(student, found), True
    results = _grade(root, name, found, out, gradebook, jobs=jobs, regrade=regrade, require_isolation=require_isolation,
                     exercises=known_exercises(root, name, exercise), scheduler=scheduler)
    print_table(name, results)
    if any(result["error"] for result in results):
        raise typer.Exit(3)


def _grade(root: Path, lab: str, found: list, out: Path, gradebook: bool = True, **options) -> list[dict]:
    """Judge under a progress bar, then write the gradebook."""
    from rich.progress import Progress

    from autograder.grade import grade as grade_class
    from autograder.results import gradebook_errors, one_writer
    with one_writer(out), Progress(transient=True) as bar:
        task = bar.add_task(f"{lab}: grading", total=len(found))
        results = grade_class(lab, found, out / "results", root=root, progress=lambda _: bar.advance(task), **options)
        if gradebook:
            from autograder.gradebook import save_class
            task = bar.add_task("gradebook", total=len(found))
            with gradebook_errors(out / "gradebook.db"):
                save_class(root, lab, found, results, out, progress=lambda: bar.advance(task))
    return results


@app.command()
def demo(out: Annotated[Path | None, typer.Option(help="Keep the class, its results and gradebook here.")] = None) -> None:
    """Grade an embedded class of eight and print the grade table."""
    import tempfile

    from autograder.demo import LAB, demo_class, write_class
    from autograder.grade import find_submissions
    from autograder.judge import Lab
    from autograder.report import print_table
    from autograder.source import find_root
    root = find_root()
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        lab = Lab(root, LAB)
        submitted = write_class(folder, demo_class(lab), lab)
        print_table(LAB, _grade(root, LAB, find_submissions(LAB, [submitted]), folder))


@app.command()
def verify(labs: Labs = None,
           with_mutants: Annotated[bool, typer.Option("--mutants", help="Also try automatic mutants of the reference (minutes).")] = False,
           robust: Annotated[int, typer.Option(help="Also judge the reference N times with fresh seeds, half of them on a busy machine.")] = 0,
           json_file: Annotated[Path | None, typer.Option("--json", help="Write the tables here too.")] = None) -> None:
    """The course's own proof: one table a lab, exit 1 if any row is not green."""
    from rich.progress import Progress

    from autograder import verify as verifier
    from autograder.results import write_json
    from autograder.source import find_labs, find_root
    root = find_root()
    with Progress(transient=True) as bar:
        tasks: dict[str, int] = {}

        def progress(what: str, done: int, total: int) -> None:
            tasks.setdefault(what, bar.add_task(what, total=total))
            bar.update(tasks[what], completed=done)
        found = verifier.verify(root, [folder.name for folder in find_labs(labs or [], root)], with_mutants=with_mutants,
                                robust=robust, progress=progress)
    green = verifier.show(found)
    if json_file:
        write_json(json_file, verifier.as_json(found))
    raise typer.Exit(0 if green else 1)


@app.command()
def speed(labs: Labs = None,
          notebook: Annotated[Path | None, typer.Option(help="Measure the functions of this notebook instead of the reference.")] = None,
          json_file: Annotated[Path | None, typer.Option("--json", help="Write the measurements here too.")] = None) -> None:
    """Measure each speed target on this device: code against baseline and physical limit."""
    from autograder.results import write_json
    from autograder.source import find_labs, find_root
    from autograder.speeds import measure_labs, print_speeds
    root = find_root()
    measured = measure_labs(root, [folder.name for folder in find_labs(labs or [], root)], notebook)
    print_speeds(measured)
    if json_file:
        write_json(json_file, {"speed": measured})


@app.command()
def book(fresh: Annotated[bool, typer.Option("--fresh", help="Run every lab again, not only those that changed.")] = False,
         links: Annotated[bool, typer.Option("--links", help="Visit the links to other sites too.")] = False) -> None:
    """Make the course a static site, in build/book."""
    from autograder.book import make
    from autograder.source import find_root
    typer.echo(f"open {make(find_root(), fresh=fresh, links=links, say=typer.echo)}")


@app.command()
def doctor() -> None:
    """What this machine can do, what then runs how, and whether submissions will be isolated."""
    from autograder.sandbox import isolation_report
    from course.device import describe
    typer.echo(str(describe(isolation=isolation_report())))


if __name__ == "__main__":
    app()
