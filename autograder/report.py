"""The grade table."""
from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ORDER = ("failed", "error", "timeout", "inconclusive", "deferred")


def grade_table(lab: str, results: Iterable[dict]) -> Table:
    """One row a student: score, what is not right and why, what was not judged, time."""
    results = list(results)
    table = Table(title=lab, caption=_caption(results), title_justify="left", caption_justify="left", show_lines=False)
    table.add_column("student", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    table.add_column("not right", ratio=1, overflow="fold")
    table.add_column("s", justify="right", no_wrap=True)
    for result in results:
        table.add_row(escape(result["student"]), f"{result['score']:g}", f"{result['max_score']:g}",
                      escape(_summary(result)), f"{result['seconds']:.1f}")
    return table


def _summary(result: dict) -> str:
    """`adam_step: without_bias_correction; sgd_step: not written; ...` in the order of the lab."""
    if result["error"]:
        return result["error"]
    exercises: dict[str, str] = {}
    for test in result["tests"]:
        if test["status"] == "passed" or test["exercise"] in exercises:
            continue
        if "not written yet" in test["message"]:
            words = "not written"
        elif test["status"] in ("deferred", "inconclusive"):
            words = f"speed {test['status']}"
        elif test["mistake"]:
            words = test["mistake"].replace("_", " ")
        else:
            words = test["status"] if test["status"] != "failed" else "failed"
        exercises[test["exercise"]] = words
    grouped: dict[str, list[str]] = {}
    for exercise, words in exercises.items():
        grouped.setdefault(words, []).append(exercise)
    total = len({t["exercise"] for t in result["tests"]})
    return "; ".join(f"{words}: {'everything' if len(names) == total else ', '.join(names)}" for words, names in grouped.items())


def _caption(results: list[dict]) -> str:
    unreadable = sum(bool(r["error"]) for r in results)
    isolation = sorted({r["isolation"] for r in results if r["isolation"]})
    unmeasured = sorted({t["exercise"] for r in results for t in r["tests"] if t["status"] in ("deferred", "inconclusive")})
    repaired = sum(bool(r.get("notes")) for r in results)
    parts = [f"{len(results)} submissions" + (f", {repaired} of them repaired" if repaired else "")
             + (f", {unreadable} unreadable" if unreadable else "")]
    parts += isolation
    if unmeasured:
        parts.append(f"not measured, in neither score nor maximum: {', '.join(unmeasured)}")
    return ". ".join(parts) + "."


def print_table(lab: str, results: Iterable[dict]) -> None:
    Console().print(grade_table(lab, results))
