"""`autograder verify`: the course's own proof. One table a lab, one row a demand of the design, each with its figure.

A row that was not measured is red. The two long ones (--mutants, --robust N) are kept in the lab's verified.json with
a stamp of its code and tests, so that they count until one of these changes.
"""
from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autograder import execute, mutants, timing
from autograder.demo import fill, reference_sources
from autograder.ledger import specification_stamp
from autograder.judge import Lab, judge
from autograder.leaks import Secrets
from autograder.repair import judged_cells
from autograder.results import read_json, write_json
from autograder.sandbox import ForkServer
from autograder.source import load_lab_source, reference_namespace
from course.device import slug
from course.spec.recordings import agree, answers_of
from course.spec.run import run, warm_up
from course.spec.student import Local, Student

CHECK_SECONDS, GRADING_SECONDS, NOTEBOOK_SECONDS, NOTEBOOK_BYTES = 2.0, 10.0, 180.0, 3e9
KILL_RATE, FEWEST_MISTAKES, ENOUGH_MISTAKES, ROBUST_RUNS = 0.95, 3, 5, 100


@dataclass
class Row:
    """`ok` is None where nothing was measured. `details` are shown below the table when the row is not green."""
    name: str
    figure: str
    ok: bool | None
    details: list[str] = field(default_factory=list)


class Verification:
    """The rows of one lab. Expects a built lab."""

    def __init__(self, root: Path, name: str, server: ForkServer):
        self.root, self.lab, self.server = root, Lab(root, name), server
        self.source = load_lab_source(self.lab.folder)
        self.reference = reference_namespace(self.source)
        self.sources = reference_sources(self.lab)
        self.cells = judged_cells(fill(self.lab.released, self.sources), self.lab.released)
        self.kept_path = self.lab.folder / "verified.json"
        self.stamp = specification_stamp(root, name)

    def rows(self) -> list[Row]:
        verdict = judge(self.lab, self.server, "reference", self.cells)
        return [self.reference_row(verdict), self.notebook_row(), self.long_row(), *self.blank_rows(), *self.mistake_rows(), self.mutants_row(),
                self.robust_row(), self.checks_row(), self.grading_row(), self.figures_row(), self.speed_row(verdict)]

    def reference_row(self, verdict) -> Row:
        wrong = [f"{t.name}: {t.message}" for t in verdict.tests if t.status not in ("passed", "deferred")]
        deferred = sum(t.status == "deferred" for t in verdict.tests)
        figure = f"{verdict.score:g} of {verdict.max_score:g} points" + (f", {deferred} deferred" if deferred else "")
        return Row("reference earns full marks", figure, not wrong and verdict.max_score > 0, wrong)

    def notebook_row(self) -> Row:
        notebook = fill(self.lab.released, self.sources)
        self.executed = execute.run_notebook(notebook, self.lab.released_folder)
        e = self.executed
        problems = [e.error] if e.error else execute.failed_checks(e.notebook)
        ok = not problems and e.seconds <= NOTEBOOK_SECONDS and e.peak_bytes <= NOTEBOOK_BYTES and e.offline
        figure = f"{e.seconds:.0f} s, {e.peak_bytes / 1e9:.1f} GB, {'no network, ' if e.offline else 'network not cut off, '}no GPU"
        return Row("reference notebook runs and passes its checks in 3 min, 3 GB", figure, ok, problems)

    def long_row(self) -> Row:
        found = execute.long_cells(self.executed.notebook)
        silent = [f"{seconds:.0f} s, and no word of it in the text before: {begin}" for seconds, begin, said in found if not said]
        return Row(f"a cell over {execute.LONG_SECONDS:g} s says so beforehand", f"{len(found)} such cells", not silent and not self.executed.error, silent)

    def blank_rows(self) -> list[Row]:
        verdict = judge(self.lab, self.server, "blank", judged_cells(self.lab.released, self.lab.released))
        given = [f"{t.name} gives {t.points:g}" for t in verdict.tests if t.points]
        found = self.leaks()
        return [Row("blank notebook earns nothing", f"{verdict.score:g} of {verdict.max_score:g} points", not given and verdict.max_score > 0, given),
                Row("nothing of a solution or hidden test released", f"{len(found)} leaks", not found, found[:10])]

    def leaks(self) -> list[str]:
        """Lines of solutions and hidden tests in what students get."""
        secrets = Secrets(self.source, self.lab.specification)
        texts = [(f"{self.lab.topic}.ipynb", cell.source) for cell in self.lab.released.cells]
        texts += [(p.name, p.read_bytes().decode(errors="replace")) for p in sorted(self.lab.released_folder.rglob("*"))
                  if p.is_file() and p.suffix not in (".ipynb", ".pyc")]
        texts += [(f"course/{p.name}", p.read_text(encoding="utf-8")) for p in sorted((self.root / "course").rglob("*.py"))]
        return [f"{name}: line of {leak.origin}" for name, text in texts if (leak := secrets.find(text))]

    def mistake_rows(self) -> list[Row]:
        spec, count = self.lab.specification, {}
        uncaught, unnamed, confused, answers = [], [], [], {}
        for mistake in spec.mistakes:
            count[mistake.exercise] = count.get(mistake.exercise, 0) + 1
            student = Student(Local({**self.reference, mistake.exercise: mistake.function}))
            results = {r.name: r for r in run(spec, student, seed=secrets.randbits(31), recordings=self.lab.recordings,
                                              reference=self.lab.reference, exercises=[mistake.exercise])}
            caught = results.get(mistake.caught_by)
            if caught is None or caught.status == "passed":
                uncaught.append(f"{mistake.name}: {mistake.caught_by} " + ("does not exist" if caught is None else "passes"))
            elif caught.mistake != mistake.name:
                unnamed.append(f"{mistake.name}: named {caught.mistake or 'nothing'}")
            mine = answers_of(student, [p for p in spec.probes if p.exercise == mistake.exercise])
            for other, (exercise, theirs) in answers.items():
                # Far apart, so that another machine's last bits cannot make them one.
                if exercise == mistake.exercise and mine is not None and agree(theirs, mine, rtol=1e-4, atol=1e-7):
                    confused.append(f"{mistake.name} and {other} answer the probes alike")
            answers[mistake.name] = (mistake.exercise, mine)
        few = [f"{e}: {count.get(e, 0)} mistakes" for e in spec.exercises() if count.get(e, 0) < FEWEST_MISTAKES]
        under = sum(count.get(e, 0) < ENOUGH_MISTAKES for e in spec.exercises())
        total = len(spec.mistakes)
        return [Row("known mistakes an exercise", f"{total} in all, {min(count.values(), default=0)} to {max(count.values(), default=0)} each"
                    + (f"; fewer than {ENOUGH_MISTAKES} in {under}" if under else ""), not few and total > 0, few),
                Row("each caught by the test it names", f"{total - len(uncaught)} of {total}", not uncaught and total > 0, uncaught),
                Row("each named by its message", f"{total - len(unnamed) - len(uncaught)} of {total}", not unnamed and not uncaught and total > 0, unnamed),
                Row("no two mistakes confused", f"{len(confused)} pairs", not confused and total > 0, confused)]

    def kept(self, what: str) -> dict | None:
        """A long measurement of this very code and these tests."""
        found = (read_json(self.kept_path) or {}).get(what)
        return found if found and found["stamp"] == self.stamp else None

    def keep(self, what: str, measured: dict) -> None:
        content = read_json(self.kept_path) or {}
        content[what] = {**measured, "stamp": self.stamp, "date": datetime.date.today().isoformat(), "device": slug()}
        write_json(self.kept_path, content)

    def mutants_row(self) -> Row:
        kept = self.kept("mutants")
        name = "mutants of the reference killed"
        if kept is None:
            return Row(name, "not measured: run with --mutants", None)
        relevant = kept["mutants"] - kept["equivalent"]
        rate = kept["killed"] / max(relevant, 1)
        open_ones = [f"{s['exercise']}: {s['line']}  ->  {s['becomes']}" for s in kept["survivors"] if not s["why"]]
        figure = f"{rate:.1%} of {relevant}; {kept['equivalent']} more explained as equivalent ({kept['date']})"
        return Row(name, figure, rate >= KILL_RATE and not open_ones, open_ones)

    def robust_row(self) -> Row:
        kept = self.kept("robust")
        name = "reference passes with fresh seeds"
        if kept is None or kept["runs"] < ROBUST_RUNS:
            return Row(name, f"not measured: run with --robust {ROBUST_RUNS}", None)
        figure = f"{kept['passed']} of {kept['runs']}, {kept['busy']} of them on a busy machine; {kept['inconclusive']} of {kept['timed']} timings inconclusive ({kept['date']})"
        return Row(name, figure, kept["passed"] == kept["runs"], kept["failures"])

    def measure_mutants(self, progress) -> None:
        self.keep("mutants", mutants.try_all(self.root, self.lab.name, progress))

    def measure_robust(self, runs: int, progress) -> None:
        """Half of the runs with every core busy; every tenth run times the speed targets too."""
        failures, inconclusive, timed = [], 0, 0
        for index in range(runs):
            with busy() if index % 2 else contextlib.nullcontext():
                verdict = judge(self.lab, self.server, "reference", self.cells, speed=index % 10 in (0, 5))
            timed += sum(t.name.startswith("speed_") for t in verdict.tests)
            inconclusive += sum(t.status == "inconclusive" for t in verdict.tests)
            bad = [t for t in verdict.tests if t.status not in ("passed", "deferred", "inconclusive")]
            failures += [f"seed {verdict.seed}: {t.name}: {t.message}" for t in bad[:1]]
            progress(index + 1, runs)
        self.keep("robust", {"runs": runs, "passed": runs - len(failures), "busy": runs // 2, "timed": timed,
                             "inconclusive": inconclusive, "failures": failures[:10]})

    def checks_row(self) -> Row:
        """As in the notebook: the visible tests in a warm process."""
        from course.spec.load import load
        spec = load(self.lab.released_folder)
        warm_up()
        seconds = {}
        for exercise in spec.exercises():
            start = time.perf_counter()
            run(spec, Student(Local(self.reference)), seed=0, recordings=self.lab.recordings, exercises=[exercise])
            seconds[exercise] = time.perf_counter() - start
        slow = [f"{e}: {s:.1f} s" for e, s in seconds.items() if s > CHECK_SECONDS]
        longest = max(seconds, key=seconds.get)
        return Row("each check answers in 2 s", f"{seconds[longest]:.2f} s the longest ({longest})", not slow, slow)

    def grading_row(self) -> Row:
        verdict = judge(self.lab, self.server, "reference", self.cells, speed=False)
        return Row("correctness of a submission judged in 10 s", f"{verdict.seconds:.1f} s", verdict.seconds <= GRADING_SECONDS)

    def figures_row(self) -> Row:
        counts = execute.figures_by_exercise(self.executed.notebook, list(self.sources))
        without = [f"{e}: no figure" for e, n in counts.items() if n == 0]
        silent = execute.figures_without_alt(self.executed.notebook)
        claim = execute.has_claim_figure(self.executed.notebook)
        problems = without + [f"{silent} figures without alternative text"] * bool(silent) + ["no figure in the claim's section"] * (not claim)
        return Row("figures, one an exercise, the claim's among them", f"{sum(counts.values())} figures", not problems, problems)

    def speed_row(self, verdict) -> Row:
        targets, words, bad = self.lab.specification.speeds, [], []
        by_name = {t.name: t for t in verdict.tests}
        for target in targets:
            mine = by_name[target.name]
            words.append(f"{target.exercise}: {mine.status}, {mine.message.split(';')[0]}")
            if mine.status == "deferred":
                continue
            lazy = timing.judge_baseline(self.lab, self.server, target)
            words[-1] += f"; the baseline itself {lazy.message.split(' times')[0]}"
            if mine.status != "passed" or lazy.status == "passed" or target.limit is None:
                bad.append(f"{target.name}: reference {mine.status}, baseline {lazy.status}, " + ("limit given" if target.limit else "no limit"))
        return Row("speed: the reference gets it, the baseline not", "; ".join(words) or "no target", bool(targets) and not bad, bad)


@contextlib.contextmanager
def busy():
    """Every core at work, until the end of the block or of this process, however it ends.

    Where other programs keep two processes a core waiting already, nothing is added.
    """
    cores, burn = os.cpu_count() or 1, f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    burners = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(cores if os.getloadavg()[0] < 3 * cores else 0)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def table(lab: str, rows: list[Row]) -> Table:
    result = Table(title=lab, title_justify="left")
    for column in ("", "demand", "measured"):
        result.add_column(column, overflow="fold")
    for row in rows:
        mark = "[green]yes[/]" if row.ok else "[red]not measured[/]" if row.ok is None else "[red]NO[/]"
        result.add_row(mark, escape(row.name), escape(row.figure))
    return result


def verify(root: Path, labs: list[str], *, with_mutants: bool = False, robust: int = 0,
           progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> dict[str, list[Row]]:
    """The rows of each lab; the long measurements are made first where they are asked for."""
    found = {}
    with ForkServer(labs=root / "labs") as server:
        for name in labs:
            verification = Verification(root, name, server)
            if with_mutants:
                verification.measure_mutants(lambda done, total: progress(f"{name}: mutants", done, total))
            if robust:
                verification.measure_robust(robust, lambda done, total: progress(f"{name}: fresh seeds", done, total))
            found[name] = verification.rows()
    return found


def show(found: dict[str, list[Row]]) -> bool:
    """Print the tables; True if every row is green."""
    console = Console()
    for lab, rows in found.items():
        console.print(table(lab, rows))
        for row in rows:
            if not row.ok:
                for detail in row.details:
                    console.print(f"  [red]{escape(row.name)}[/]: {escape(detail)}")
    return all(row.ok for rows in found.values() for row in rows)


def as_json(found: dict[str, list[Row]]) -> dict:
    return {lab: [asdict(row) for row in rows] for lab, rows in found.items()}
