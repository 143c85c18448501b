"""The ledger of claims, claims.toml: what the course's source texts say, and what was measured.

    claims.show("11-sgd-stalls", measured="314 steps")     the text, the course's own measurement and the reader's, together
    claims.full_run("11_saddle_points")                    the dated results of a lab's long run, to draw beside one's own

A claim has an id (its lab's number and a name), the claim in our own words, its source (the letter of a text), its lab, a
verdict, and, once measured, the protocol, what was found, perhaps as value, interval and unit, the device and the date.
"""
from __future__ import annotations

import html
import json
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("claims.toml")
OPEN = "not measured yet"
VERDICTS = ("holds", "holds in part", "does not hold here", OPEN)


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. `interval` is a 95% interval where `protocol` does not say otherwise."""
    id: str
    claim: str
    source: str
    lab: str
    verdict: str = OPEN
    protocol: str = ""
    measured: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    device: str = ""
    date: str = ""

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.id}: the verdict {self.verdict!r} is none of {', '.join(VERDICTS)}")
        missing = [name for name in ("protocol", "measured", "device", "date") if not getattr(self, name)]
        if self.verdict != OPEN and missing:
            raise ValueError(f"{self.id}: a claim with the verdict {self.verdict!r} also needs {', '.join(missing)}")
        if self.verdict == OPEN and len(missing) < 4:
            raise ValueError(f"{self.id}: something was measured, so the verdict cannot be {OPEN!r}")
        if self.interval and (self.value is None or not self.interval[0] <= self.value <= self.interval[1]):
            raise ValueError(f"{self.id}: the value {self.value} is not inside its interval {list(self.interval)}")

    @property
    def figure(self) -> str:
        """Value, interval and unit in one line; empty where there is no single number."""
        if self.value is None:
            return ""
        between = f" ({self.interval[0]:g} to {self.interval[1]:g})" if self.interval else ""
        return f"{self.value:g}{between} {self.unit}".rstrip()


def load(path: Path = FILE) -> dict[str, Claim]:
    """All claims by id, in the file's order. Raises ValueError, naming the claim, for a row that is not complete."""
    claims = {}
    for name, row in tomllib.loads(path.read_text(encoding="utf-8"))["claims"].items():
        try:
            row = row | {"date": str(row.get("date", ""))} | ({"interval": tuple(row["interval"])} if "interval" in row else {})
            claims[name] = Claim(id=name, **row)
        except TypeError as error:  # a field that is missing or unknown
            raise ValueError(f"{name}: {error}") from None
    return claims


def show(name: str, measured: Any = None) -> None:
    """Display what the text says, what the course measured, and what the reader measured."""
    claims = load()
    if name not in claims:
        raise KeyError(f"no claim {name!r}; this ledger has {', '.join(claims)}")
    claim = claims[name]
    ours = ": ".join(part for part in (claim.figure, claim.measured) if part)
    ours = f"{ours}. {claim.verdict.capitalize()} ({claim.device}, {claim.date})." if ours else f"{claim.verdict.capitalize()}."
    rows = {f"Text {claim.source}": claim.claim, "Course": ours}
    if measured is not None:
        rows["You"] = str(measured)
    plain = "\n".join(f"{label:<8} {text}" for label, text in rows.items())
    # Only opacity and currentColor, so that the table suits a dark and a light theme alike.
    cell = "padding:1px 14px 1px 0; text-align:left; vertical-align:top; border:none; background:none; white-space:normal"
    body = "".join(f'<tr style="background:none"><th scope="row" style="{cell}; font-weight:normal; opacity:.65; white-space:nowrap">'
                   f'{html.escape(label)}</th><td style="{cell}{"; font-weight:bold" if label == "You" else ""}">'
                   f'{html.escape(text)}</td></tr>' for label, text in rows.items())
    page = ('<table style="border:none; border-left:3px solid currentColor; margin:0 0 .8em; padding-left:10px; '
            f'border-collapse:separate; font-size:90%; max-width:60em">{body}</table>')
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        print(plain)
    else:
        from IPython.display import display
        display({"text/plain": plain, "text/html": page}, raw=True)


def full_run(lab: str) -> dict[str, Any]:
    """The results of the lab's long run, by part: full_run.json beside the notebook, else as it came with the course."""
    package, here = Path(__file__).resolve().parent, Path.cwd()
    mine = here.name == lab or not re.fullmatch(r"\d\d_\w+", here.name)  # another lab's folder holds that lab's results
    places = [*[here] * mine, *(folder / lab for folder in (package.parent / "labs", package.parent / "solutions", package / "_labs"))]
    for place in places:
        file = place / "full_run.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"no full_run.json of lab {lab}: keep it beside the notebook, or run full_run.py (it takes long)")
