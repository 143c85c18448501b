"""probes.safetensors: what the reference and every known mistake answer on the fixed probes.

Numbers only, so that no code is given away; the mistakes' hints are in the file's metadata.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from course.spec.declare import Probe
from course.spec.student import Student, StudentError
from course.spec.values import Value, first_difference, pack, unpack

REFERENCE = "reference"
# Two machines may differ in the last bits; two mistakes differ by far more (verify proves it).
RTOL, ATOL = 1e-6, 1e-9


@dataclass(frozen=True)
class Match:
    """A known mistake that answers the probes as the student's function does."""
    mistake: str
    hint: str


class Recordings:
    """`answers[exercise][who][probe]` is a value; `hints[exercise][mistake]` the text that the student reads."""

    def __init__(self, answers: dict, hints: dict):
        self.answers, self.hints = answers, hints

    def expected(self, probe: str, exercise: str) -> Value:
        """What the reference answered on a probe."""
        return self.answers[exercise][REFERENCE][probe]

    def diagnose(self, exercise: str, student: Student, probes: list[Probe]) -> Match | None:
        """The known mistake that answers every probe of the exercise as the student does, if there is one."""
        known = self.answers.get(exercise, {})
        mine = answers_of(student, [p for p in probes if p.exercise == exercise and p.name in known.get(REFERENCE, {})])
        if mine is None or not mine or agree(known[REFERENCE], mine):
            return None
        for who, theirs in known.items():
            if who != REFERENCE and agree(theirs, mine):
                return Match(who, self.hints[exercise][who])
        return None


def agree(expected: dict[str, Value], got: dict[str, Value], rtol: float = RTOL, atol: float = ATOL) -> bool:
    return first_difference(expected, got, rtol=rtol, atol=atol) is None


def answers_of(student: Student, probes: list[Probe]) -> dict[str, Value] | None:
    """The student's answers on the probes, or None where a probe cannot be run to its end."""
    try:
        return {probe.name: probe.run(student) for probe in probes}
    except (StudentError, AssertionError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AttributeError):
        return None  # a probe may stumble over a result of unexpected shape


def to_bytes(recordings: Recordings) -> bytes:
    """Deterministic: the same recordings give the same bytes."""
    skeleton, tensors = pack(recordings.answers)
    tensors = {f"{i:05}": t.detach().cpu().contiguous().clone() for i, t in enumerate(tensors)}
    # One metadata entry only: safetensors writes several in no fixed order.
    return save(tensors, {"recordings": json.dumps([_finite(skeleton), recordings.hints])})


def load_recordings(path: Path) -> Recordings:
    """Raises ValueError with the file's name if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
            skeleton, hints = json.loads(file.metadata()["recordings"])
        return Recordings(unpack(skeleton, tensors), hints)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error}). Restore it from the course's release.") from error


def _finite(node):
    if isinstance(node, float) and not math.isfinite(node):
        raise ValueError("a probe answered with a Python float that is not finite; return it as a tensor")
    if isinstance(node, dict):
        return {key: _finite(item) for key, item in node.items()}
    return [_finite(item) for item in node] if isinstance(node, list) else node
