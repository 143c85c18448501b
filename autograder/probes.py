"""Record what the reference and every known mistake answer on the probes: the content of probes.safetensors."""
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autograder.script import fail
from autograder.source import LabSource, place, reference_namespace
from course.spec.declare import Probe
from course.spec.load import Specification
from course.spec.recordings import REFERENCE, Recordings, agree, load_recordings, to_bytes
from course.spec.student import Local, Student
from course.spec.values import Value


def probes_file(lab: LabSource, spec: Specification, before: Path) -> bytes:
    """The bytes of probes.safetensors; those of the file `before` if its numbers agree.

    Another machine's last bits may differ, and the file should change only when an answer does.
    """
    new = record(lab, spec)
    try:
        old = load_recordings(before)
    except ValueError:
        return to_bytes(new)
    return before.read_bytes() if _same(old, new) else to_bytes(new)


def record(lab: LabSource, spec: Specification) -> Recordings:
    """Raises SpecError if a probe does not run to its end on the reference or on a mistake."""
    namespace = reference_namespace(lab)
    answers: dict[str, dict] = {}
    for probe in spec.probes:
        known = answers.setdefault(probe.exercise, {})
        known.setdefault(REFERENCE, {})[probe.name] = _answer(probe, namespace, REFERENCE, probe.run)
        for mistake in spec.mistakes:
            if mistake.exercise == probe.exercise:
                wrong = namespace | {mistake.exercise: mistake.function}
                known.setdefault(mistake.name, {})[probe.name] = _answer(probe, wrong, mistake.name, mistake.function)
    hints = {exercise: {m.name: m.hint for m in spec.mistakes if m.exercise == exercise} for exercise in answers}
    return Recordings(answers, hints)


def _answer(probe: Probe, namespace: dict[str, Any], who: str, at: Callable) -> Value:
    random.seed(0)
    torch.manual_seed(0)
    try:
        return probe.run(Student(Local(namespace)))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        fail(*place(at), f"{probe.name} does not run to its end on {who}: {type(error).__name__}: {reason}")


def _same(old: Recordings, new: Recordings) -> bool:
    who = {exercise: list(known) for exercise, known in new.answers.items()}
    return (old.hints == new.hints and who == {exercise: list(known) for exercise, known in old.answers.items()}
            and all(agree(old.answers[exercise][name], new.answers[exercise][name])
                    for exercise, names in who.items() for name in names))
