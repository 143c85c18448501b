"""Automatic mutants of a reference: what counts as rejected."""
import pytest

from autograder import mutants
from autograder.mutants import Mutant, killed
from autograder.source import load_lab_source


def double_of(root) -> str:
    return next(cell.source for cell in load_lab_source(root / "solutions" / "11_doubling").of_kind("solution") if cell.name == "double")


def test_a_mutant_that_ends_its_process_is_rejected_and_nothing_else_is(small_course):
    """A kernel that writes beyond its tensor may do so; the others are still tried."""
    root = small_course()
    source = double_of(root)
    assert not killed(root, "11_doubling", Mutant("double", source, "", ""))
    crash = source.replace("answer_of_the_reference = FACTOR * x", "import os; os.kill(os.getpid(), 9)")
    assert killed(root, "11_doubling", Mutant("double", crash, "", ""))
    wrong = source.replace("FACTOR * x", "FACTOR + x + 1")
    assert killed(root, "11_doubling", Mutant("double", wrong, "", ""))


@pytest.mark.parametrize("forever", ["while True:\n        pass", "import time\n    time.sleep(1e6)"])
def test_a_mutant_that_never_ends_is_rejected(small_course, monkeypatch, forever):
    monkeypatch.setattr(mutants, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(mutants, "SECONDS", 5)
    root = small_course()
    source = double_of(root)
    assert killed(root, "11_doubling", Mutant("double", source.replace("answer_of_the_reference = FACTOR * x", forever), "", ""))
