"""Sensible answers that are not the reference's must pass every test of lab 41, whatever the seed."""
import importlib.util
from functools import cache
from pathlib import Path

import pytest

from autograder.source import load_lab_source, reference_namespace
from course.spec.load import load
from course.spec.run import run, warm_up
from course.spec.student import Local, Student

LAB = Path(__file__).resolve().parents[2] / "solutions" / "41_zero"
SEEDS = range(3)


def import_variants() -> dict[str, list]:
    # By path: this folder is no package, and another lab's variants may have the same name.
    spec = importlib.util.spec_from_file_location("lab_41_variants", Path(__file__).with_name("correct_variants.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VARIANTS


VARIANTS = import_variants()
ROUNDS = max(map(len, VARIANTS.values()))


@cache
def specification():
    warm_up()
    return load(LAB, hidden=True)


@cache
def reference() -> Student:
    return Student(Local(reference_namespace(load_lab_source(LAB))))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("round", range(ROUNDS))
def test_right_answers_pass(round, seed):
    """In each round a student who has written every exercise otherwise than the reference."""
    functions = {exercise: variants[round % len(variants)] for exercise, variants in VARIANTS.items()}
    results = run(specification(), Student(Local(functions)), seed=seed, reference=reference())
    wrong = [(functions[r.exercise].__name__, r.message) for r in results if r.status != "passed"]
    assert not wrong


def test_every_exercise_has_a_variant():
    assert all(VARIANTS.get(exercise) for exercise in specification().exercises())
