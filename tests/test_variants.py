"""Right answers that are not the reference's (tests/lab_NN/correct_variants.py) pass every test of their lab, whatever the seed."""
import importlib.util
from functools import cache
from pathlib import Path

import pytest

from autograder.source import load_lab_source, reference_namespace
from course.spec.load import load
from course.spec.run import run, warm_up
from course.spec.student import Local, Student
from variants import marked

ROOT = Path(__file__).resolve().parent.parent
LABS = sorted(path.parent.name.removeprefix("lab_") for path in ROOT.glob("tests/lab_*/correct_variants.py"))
SEEDS = range(3)


@cache
def folder(number: str) -> Path:
    return next(ROOT.glob(f"solutions/{number}_*"))


@cache
def variants(number: str) -> dict[str, list]:
    """Exercise -> right functions. Imported by path: the folders are no packages, and the files' names are the same."""
    spec = importlib.util.spec_from_file_location(f"lab_{number}_variants", ROOT / f"tests/lab_{number}/correct_variants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return marked(module)


@cache
def specification(number: str):
    warm_up()
    return load(folder(number), hidden=True)


@cache
def reference(number: str) -> Student:
    return Student(Local(reference_namespace(load_lab_source(folder(number)))))


ROUNDS = [(number, round) for number in LABS for round in range(max(map(len, variants(number).values())))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number, round", ROUNDS)
def test_right_answers_pass(number, round, seed):
    """In each round a student who has written every exercise otherwise than the reference."""
    functions = {exercise: choice[round % len(choice)] for exercise, choice in variants(number).items()}
    results = run(specification(number), Student(Local(functions)), seed=seed, reference=reference(number))
    wrong = [(functions[r.exercise].__name__, r.message) for r in results if r.status != "passed"]
    assert not wrong


@pytest.mark.parametrize("number", sorted(path.name[:2] for path in ROOT.glob("solutions/[0-9]*")))
def test_every_exercise_has_a_variant(number):
    assert all(variants(number).get(exercise) for exercise in specification(number).exercises())
