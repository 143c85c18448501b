"""How verdicts look in the notebook: compact, readable in light and dark themes, plain text where there is no HTML.

Each verdict also carries its data, so that a saved notebook tells how far its student is.
"""
from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the welcome page reads verdicts without torch, which course.spec needs
    from course.spec.run import Result

VERDICT, RECEIPT = "application/vnd.trainfast.verdict+json", "application/vnd.trainfast.receipt+json"
# Middle tones, readable on white and on dark grey; a heading mixes in the page's own ink, for a contrast of more than 4.5:1 on both.
GOOD, BAD, OPEN = "#2e8540", "#d1495b", "#8a6d00"
BOX = "border-left:4px solid {colour};padding:2px 10px;margin:2px 0;line-height:1.45"
MARK = {"passed": "passed", "deferred": "deferred", "inconclusive": "inconclusive", "timeout": "out of time"}


def show(exercise: str, results: list[Result]) -> None:
    """The verdict of one check: points, and the first failure's message; the other failures by name only."""
    from course.spec.messages import statement
    passed, wrong = [r for r in results if r.status == "passed"], [r for r in results if r.status != "passed"]
    broken = [r for r in wrong if r.status != "deferred"]
    wrong = broken or wrong
    points, maximum = sum(r.points for r in results), sum(r.max_points for r in results)
    worth = f"{points:g} of {maximum:g} visible points" if maximum else "no points: optional"
    head = f"{exercise}: {len(passed)} of {len(results)} checks pass, {worth}"
    data = {VERDICT: {"exercise": exercise, "points": points, "max_points": maximum, "results": [r.to_dict() for r in results]}}
    others = "" if len(wrong) < 2 else "Further checks fail: " + "; ".join(statement(r.name) for r in wrong[1:]) + "."
    if wrong and (not broken or all("is not written yet" in r.message for r in broken)):
        _display(head, [wrong[0].message], "", OPEN, data)
    else:
        _display(head, wrong[0].message.splitlines() if wrong else [], others, BAD if wrong else GOOD, data)


def show_speed(exercise: str, measured: list) -> None:
    """The verdict of speed targets, with the physical limit, and the receipt."""
    lines = []
    for m in measured:
        lines += [m.target.title, *m.result().message.splitlines()]
        if m.ratio is not None and m.limit_seconds:
            mine, limit = (amount(x, m.target.unit) for x in (m.ratio.candidate_seconds, m.limit_seconds))
            lines.append(f"{mine} a unit of work; the limit is {limit}: {m.limit_reason}.")
    statuses = {m.result().status for m in measured}
    colour = GOOD if statuses == {"passed"} else BAD if statuses & {"failed", "error"} else OPEN
    _display(f"{exercise}: speed on this device: {', '.join(sorted(MARK.get(s, s) for s in statuses))}", lines, "", colour,
             {RECEIPT: [m.receipt() for m in measured]})


def show_card(card: Any) -> None:
    """The device card of the setup cell."""
    _publish({"text/plain": str(card), "text/html": card._repr_html_()})


def amount(x: float, unit: str) -> str:
    return seconds(x) if unit == "s" else f"{x:,.0f} {unit}"


def seconds(t: float) -> str:
    """A duration with a unit that suits it: 2.1 s, 340 ms, 12 us."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if t >= size:
            return f"{t / size:.3g} {unit}"
    return f"{t / 1e-6:.3g} us"


def _display(head: str, lines: list[str], tail: str, colour: str, data: dict) -> None:
    body = "".join(f"<div style='white-space:pre-wrap'>{html.escape(line)}</div>" for line in lines)
    if tail:
        body += f"<div style='opacity:.75'>{html.escape(tail)}</div>"
    page = (f"<div style='{BOX.format(colour=colour)}'><b style='color:color-mix(in srgb,{colour} 75%,currentColor)'>{html.escape(head)}</b>"
            f"<div style='font-family:var(--jp-code-font-family,monospace);font-size:.92em'>{body}</div></div>")
    _publish({"text/plain": "\n".join([head, *lines, *([tail] if tail else [])]), "text/html": page, **data})


def _publish(bundle: dict) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import publish_display_data
        inside = get_ipython() is not None
    except ImportError:
        inside = False
    if inside:
        publish_display_data(bundle)
    else:
        print(bundle["text/plain"])
