"""From a failed test to at most six lines that a student can use."""
from __future__ import annotations

import textwrap

from course.spec.asserts import Mismatch
from course.spec.declare import Test
from course.spec.recordings import Match
from course.spec.student import Call, StudentError

MAX_LINES, WIDTH = 6, 118


def statement(name: str) -> str:
    """The fact that a test's name states: test_zero_gradient_moves_nothing -> "zero gradient moves nothing"."""
    return name.removeprefix("test_").replace("_", " ")


def compose(test: Test, error: BaseException, match: Match | None, call: Call | None) -> str:
    """What was expected, what came, where they first differ, and what to look at next; the mistake's own words if known.

    For a hidden test the numbers and the call stay hidden, and so do the submission's own words, which may hold them.
    """
    lines = [f"Not so: {statement(test.name)}."]
    if isinstance(error, StudentError) and error.own_words and test.hidden:
        lines.append("Here, on inputs that are not shown, an exception was raised.")
        return clip(lines + wrap(match.hint if match is not None else test.hint))
    if isinstance(error, StudentError):
        lines = [piece for line in str(error).splitlines() for piece in (wrap(line) if len(line) > WIDTH else [line])]
        if match is not None:
            lines += wrap(match.hint)
        elif error.status != "failed" and call is not None and not test.hidden:
            lines.append(f"call      {call.describe()}")
        return clip(lines)
    if match is not None:
        return clip(lines + wrap(match.hint))
    if test.hidden:
        return clip(lines + wrap(test.hint))
    if isinstance(error, Mismatch):
        lines.append(f"expected  {error.expected}   ({error.what}{' at ' + error.where if error.where else ''})")
        lines.append(f"got       {error.got}" + (f"   ({error.why})" if error.why else ""))
    else:
        lines += wrap(first_line(error))[:2]
    if call is not None:
        lines.append(f"call      {call.describe()}")
    return clip(lines + wrap(test.hint))


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def clip(lines: list[str]) -> str:
    lines = [line if len(line) <= WIDTH + 20 else line[:WIDTH + 17] + "..." for line in lines if line.strip()]
    return "\n".join(lines if len(lines) <= MAX_LINES else [*lines[:MAX_LINES - 1], "..."])
