"""A lab small enough to be built in a moment, for tests of the tools."""
from pathlib import Path

import pytest

from course.device import prepare_triton

prepare_triton()  # before any test imports Triton

SCRIPT = '''\
# %% [markdown]
# # Doubling
# How do you double a number? See the **formula** below.

# %% tags=["setup"]
from course.check import check, setup, speed

setup("11_doubling")

# %%
FACTOR = 2


# %%
def double(x: float) -> float:
    """Twice x."""
    ### BEGIN SOLUTION
    answer_of_the_reference = FACTOR * x
    return answer_of_the_reference
    ### END SOLUTION


# %%
check(double)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
print([double(x) for x in range(5)])


# %%
def triple(x: float) -> float:
    """Three times x; an optional exercise."""
    ### BEGIN SOLUTION
    return x + double(x)  # what was written before
    ### END SOLUTION


# %%
check(triple)

# %% [markdown]
# **Why** does doubling a number twice make it four times as large?

# %% [markdown] tags=["written"] points=4 name="claim"
# Because two times two is four, says the model answer.
'''
VISIBLE = '''\
from course.spec import assert_close, exercise, probe


@exercise("double", points=0.4)
def test_two_is_doubled(student):
    """Multiply by two."""
    assert_close(student.double(2.0), 4.0)


@exercise("triple", points=0)
def test_two_is_tripled(student):
    """Multiply by three."""
    assert_close(student.triple(2.0), 6.0)


@probe("double")
def some_doubles(student):
    return [student.double(x) for x in (0.5, 3.0)]
'''
HIDDEN = '''\
from course.spec import assert_close, exercise


@exercise("double", points=0.2)
def test_a_negative_number_is_doubled(student):
    """Negative numbers too."""
    assert_close(student.double(-1.5), -3.0, "the double of a negative number")


@exercise("double", points=0.2)
def test_zero_is_doubled(student):
    """Zero too."""
    assert_close(student.double(0.0), 0.0, "the double of nothing at all")
'''
MISTAKES = '''\
from course.spec import mistake


@mistake("double", caught_by="test_two_is_doubled")
def squared(x):
    """You square the number. Multiply it by two instead."""
    wrong_answer_of_this_mistake = x**2
    return wrong_answer_of_this_mistake
'''
FILES = {"doubling.py": SCRIPT, "test_visible.py": VISIBLE, "test_hidden.py": HIDDEN, "mistakes.py": MISTAKES}
PYPROJECT = '[tool.trainfast]\nrepository = "https://github.com/someone/course"\n'


@pytest.fixture(scope="session")
def write_course():
    """`write_course(folder, {file: (old, new)})` writes a repository with the lab 11_doubling, with these edits; a string
    instead of a pair is the whole file, None leaves it out. Returns the repository's folder."""
    def write(folder: Path, edits: dict | None = None) -> Path:
        root = folder / "course repository"
        lab = root / "solutions" / "11_doubling"
        lab.mkdir(parents=True, exist_ok=True)
        (root / "pyproject.toml").write_text(PYPROJECT)
        for name in {**FILES, **(edits or {})}:
            text, edit = FILES.get(name), (edits or {}).get(name, ("", ""))
            if isinstance(edit, tuple):
                assert edit[0] in text, f"{edit[0]!r} is not in {name}"
                text = text.replace(*edit)
            else:
                text = edit
            if text is not None:
                (lab / name).write_text(text)
        return root
    return write


@pytest.fixture
def small_course(tmp_path: Path, write_course):
    """write_course, in this test's own folder."""
    return lambda edits=None: write_course(tmp_path, edits)
