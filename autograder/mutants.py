"""Automatic mutation of the reference: wrong answers that nobody listed. Every one should be rejected.

cosmic-ray makes the mutants; only changes between the solution marks count. A survivor is either a gap in the tests
or an equivalent program: which one, the author writes into survivors.toml beside the lab:

    [[survivor]]
    exercise = "adagrad_step"
    becomes = "return param - lr * grad / (s.sqrt() - eps), {"s": s}"
    why = "..."
"""
from __future__ import annotations

import os
import re
import secrets
import signal
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

ARITHMETIC = "Add|Sub|Mul|Div|Pow|Mod|FloorDiv"
COMPARISON = "Eq|NotEq|Lt|LtE|Gt|GtE"
# Bit operations on floats only raise TypeError: killing them proves nothing.
OPERATORS = re.compile(rf"core/(ReplaceBinaryOperator_({ARITHMETIC})_(Add|Sub|Mul|Div|Pow)|ReplaceComparisonOperator_({COMPARISON})_({COMPARISON})"
                       r"|ReplaceUnaryOperator_(USub_UAdd|Delete_USub|Delete_Not)|AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
                       r"|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue|ReplaceContinueWithBreak|NumberReplacer|ZeroIterationForLoop)")
# A mutant that computes or waits longer has gone into an endless loop, which the tests would reject.
CPU_SECONDS, SECONDS = 20, 120


@dataclass(frozen=True)
class Mutant:
    exercise: str
    source: str     # the whole solution cell
    line: str       # the changed line as it was
    becomes: str    # and as it is in the mutant


def mutants(exercise: str, source: str) -> Iterator[Mutant]:
    """Every mutant of one solution cell, each once."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code
    seen = {source}
    for name in filter(OPERATORS.fullmatch, cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)()
        occurrence = 0
        while (changed := mutate_code(source, operator, occurrence)) is not None:
            occurrence += 1
            if changed not in seen:
                seen.add(changed)
                if (difference := _solution_difference(source, changed)) is not None:
                    yield Mutant(exercise, changed, *difference)


def _solution_difference(source: str, changed: str) -> tuple[str, str] | None:
    """The changed line before and after, if it is within the solution marks."""
    inside = False
    for before, after in zip(source.splitlines(), changed.splitlines()):
        if "BEGIN SOLUTION" in before:
            inside = True
        elif "END SOLUTION" in before:
            inside = False
        elif before != after:
            return (before.strip(), after.strip()) if inside else None
    return None


@lru_cache(maxsize=None)
def _context(root: Path, lab_name: str):
    """What each process that tries mutants needs, once."""
    from autograder.judge import Lab
    from autograder.source import load_lab_source, reference_namespace
    from course.spec.run import run, warm_up
    from course.spec.student import Local, Student
    import torch
    torch.set_num_threads(1)
    warm_up()
    lab = Lab(root, lab_name)
    reference = reference_namespace(load_lab_source(lab.folder))
    # What a first run reads and imports, all the forks then have.
    run(lab.specification, Student(Local(reference)), seed=0, reference=lab.reference, exercises=lab.specification.exercises()[:1])
    return lab, reference


def killed(root: Path, lab_name: str, mutant: Mutant) -> bool:
    """Does any test of the exercise reject the mutant? In a process of its own: a kernel that writes beyond its tensor
    may end it, which is a rejection too."""
    context = _context(root, lab_name)
    if (pid := os.fork()) == 0:
        try:
            os._exit(int(_rejected(*context, mutant)))
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] != 0


def _rejected(lab, reference: dict, mutant: Mutant) -> bool:
    from autograder.source import execute
    from course.spec.run import run
    from course.spec.student import Local, Student
    namespace = dict(reference)

    def too_long(*_):
        raise TimeoutError("endless loop")
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, SECONDS))
    for alarm, timer, seconds in timers:
        signal.signal(alarm, too_long)
        signal.setitimer(timer, seconds, 1)     # and again: Hypothesis replays what failed
    try:
        execute(mutant.source, "<mutant>", namespace)
        results = run(lab.specification, Student(Local(namespace)), seed=secrets.randbits(31), reference=lab.reference,
                      exercises=[mutant.exercise], stop_early=True)
        return any(r.status != "passed" for r in results)
    except Exception:
        return True
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)


def explained(lab_folder: Path) -> dict[tuple[str, str], str]:
    """survivors.toml as {(exercise, changed line): why}."""
    path = lab_folder / "survivors.toml"
    rows = tomllib.loads(path.read_text())["survivor"] if path.is_file() else []
    return {(row["exercise"], row["becomes"]): row["why"] for row in rows}


def try_all(root: Path, lab_name: str, progress=lambda done, total: None) -> dict:
    """Kill rate over all mutants that are not explained as equivalent, and the survivors."""
    from autograder.grade import physical_cores
    from autograder.source import load_lab_source
    folder = root / "solutions" / lab_name
    cells = [cell for cell in load_lab_source(folder).cells if cell.kind == "solution"]
    every = [m for cell in cells for m in mutants(cell.name, cell.source)]
    with ProcessPoolExecutor(physical_cores(), mp_context=get_context("spawn")) as pool:
        verdicts = []
        for verdict in pool.map(killed, [root] * len(every), [lab_name] * len(every), every, chunksize=4):
            verdicts.append(verdict)
            progress(len(verdicts), len(every))
    reasons = explained(folder)
    survivors = [{"exercise": m.exercise, "line": m.line, "becomes": m.becomes, "why": reasons.get((m.exercise, m.becomes), "")}
                 for m, verdict in zip(every, verdicts) if not verdict]
    return {"mutants": len(every), "killed": sum(verdicts), "equivalent": sum(bool(s["why"]) for s in survivors), "survivors": survivors}
