"""`autograder speed`: the speed targets on this device, the reference's code or a notebook's."""
from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autograder.judge import Lab
from autograder.source import load_lab_source, reference_namespace
from course.check import judged
from course.spec.load import load
from course.speed import measure
from course.verdict import amount


def measure_labs(root: Path, labs: list[str], notebook: Path | None = None) -> list[dict]:
    """One receipt a target. A notebook's code is executed in this process: measure your own code so, nobody else's."""
    receipts = []
    for name in labs:
        targets = load(root / "solutions" / name).speeds
        if not targets:
            continue
        namespace = _notebook_namespace(root, name, notebook) if notebook else reference_namespace(load_lab_source(root / "solutions" / name))
        receipts += [{"lab": name, **measure(target, namespace[target.exercise]).receipt()} for target in targets]
    return receipts


def _notebook_namespace(root: Path, lab: str, notebook: Path) -> dict:
    namespace: dict = {"__name__": "__main__"}
    with judged():
        for index, cell in enumerate(Lab(root, lab).cells(notebook)):
            exec(compile(cell.source, f"<cell {index}>", "exec"), namespace)
    return namespace


def print_speeds(receipts: list[dict]) -> None:
    table = Table(title="speed on this device", title_justify="left",
                  caption=receipts[0]["device"] + f", torch {receipts[0]['torch']}" if receipts else "no lab here has a speed target",
                  caption_justify="left")
    for column in ("lab", "function", "ratio (95% interval)", "wanted", "time", "baseline", "limit", ""):
        table.add_column(column, overflow="fold")
    for r in receipts:
        measured = [f"{r['ratio']:.1f} ({r['low']:.1f} to {r['high']:.1f})", f"{r['wanted']:g}", amount(r["seconds"], r["unit"]),
                    amount(r["baseline_seconds"], r["unit"])] if r["ratio"] else ["", f"{r['wanted']:g}", "", ""]
        limit = f"{amount(r['limit_seconds'], r['unit'])}, {r['limit']}" if r["limit_seconds"] else ""
        table.add_row(r["lab"], r["exercise"], *measured, escape(limit), escape(r["problem"] or r["status"]))
    Console().print(table)
