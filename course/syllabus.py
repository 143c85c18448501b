"""The list of labs, syllabus.toml, and its table in the README."""
from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("syllabus.toml")
BEGIN, END = "<!-- labs: begin (made from course/syllabus.toml by autograder build) -->", "<!-- labs: end -->"


@dataclass(frozen=True)
class Lab:
    """One lab. `after` names the labs that come before it; a planned one is not there yet."""
    name: str
    title: str
    question: str
    hours: float
    after: tuple[str, ...]
    device: str
    planned: bool = False

    @property
    def part(self) -> int:
        return int(self.name[0])

    @property
    def notebook(self) -> str:
        """Its place in the repository."""
        return f"labs/{self.name}/{self.name[3:]}.ipynb"


@dataclass(frozen=True)
class Syllabus:
    parts: dict[int, str]
    labs: tuple[Lab, ...]

    def lab(self, name: str) -> Lab:
        return next(lab for lab in self.labs if lab.name == name)


def load(path: Path = FILE) -> Syllabus:
    """Labs in the order of their numbers. Raises ValueError that names the lab and what is wrong with it."""
    data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    parts = {int(number): title for number, title in data["parts"].items()}
    labs = []
    for name, fields in sorted(data["labs"].items()):
        try:
            lab = Lab(name=name, **{**fields, "after": tuple(fields.get("after", ()))})
        except TypeError as error:
            raise ValueError(f"{path}: {name}: {str(error).split('() ')[-1]}") from None
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", name) or lab.part not in parts:
            raise ValueError(f"{path}: {name}: a lab is called NN_topic, and its first digit is one of the parts")
        if unknown := set(lab.after) - data["labs"].keys():
            raise ValueError(f"{path}: {name}: comes after {', '.join(sorted(unknown))}, which is not in the list")
        labs.append(lab)
    return Syllabus(parts, tuple(labs))


def table(syllabus: Syllabus, *, planned: bool = True) -> str:
    """The labs as a Markdown table; without those not there yet if not `planned`."""
    rows = ["| Part | Lab | Question | Hours | After | Needs |", "| --- | --- | --- | --- | --- | --- |"]
    for lab in syllabus.labs:
        if planned or not lab.planned:
            title = f"{lab.name[:2]} {lab.title} (planned)" if lab.planned else f"[{lab.name[:2]} {lab.title}]({lab.notebook})"
            rows.append(f"| {syllabus.parts[lab.part]} | {title} | {lab.question} | {lab.hours:g} "
                        f"| {', '.join(name[:2] for name in lab.after) or 'none'} | {lab.device} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """`text` with a fresh table between its two marks; unchanged if it has none."""
    fresh = f"{BEGIN}\n{table(load())}\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: fresh, text, flags=re.DOTALL)
