"""The specification runner: verdicts, messages and named mistakes, for a lab of one exercise."""
import os

import hypothesis.configuration
import pytest
import torch

from course.spec.load import SpecError, load
from course.spec.messages import MAX_LINES
from course.spec.recordings import Recordings, answers_of, load_recordings, to_bytes
from course.spec.run import SpecificationBroken, run
from course.spec.student import Local, Student, StudentError
from course.verdict import amount

VISIBLE = '''
import torch
from hypothesis import given, strategies as st
from course.spec import assert_close, exercise, probe

@exercise("square", points=2)
@given(st.floats(-3, 3))
def test_the_square_is_x_times_x(student, x):
    """Multiply the number by itself."""
    x = torch.tensor([x], dtype=torch.float64)
    assert_close(student.square(x), x * x)

@exercise("square", points=1)
def test_gradient_is_two_x(student):
    """Do not detach."""
    x = torch.tensor([1.0, -2.0])
    _, (grad,) = student.square.vjp(x, cotangent=torch.ones(2))
    assert_close(grad, 2 * x, "gradient")

@exercise("apply", points=1)
def test_apply_calls_the_function(student):
    calls = []
    def double(x):
        calls.append(x)
        return 2 * x
    assert_close(student.apply(double, torch.ones(2)), 2 * torch.ones(2))
    assert len(calls) == 1

@probe("square")
def three_numbers(student):
    return student.square(torch.tensor([1.0, 2.0, -3.0]))
'''
HIDDEN = '''
import torch
from course.spec import assert_close, exercise

@exercise("square", points=3)
def test_a_secret_number_is_squared(student, reference):
    """Think of large numbers."""
    x = torch.tensor([123456.0])
    assert_close(student.square(x), reference.square(x))
'''


def square(x):
    return x * x


def apply(function, x):
    return function(x)


@pytest.fixture
def folder(tmp_path):
    lab = tmp_path / "99_toy"
    lab.mkdir()
    (lab / "test_visible.py").write_text(VISIBLE)
    (lab / "test_hidden.py").write_text(HIDDEN)
    return lab


def judge(folder, square_function, *, hidden=False, recordings=None, **kwargs):
    spec = load(folder, hidden=hidden)
    reference = Student(Local({"square": square}))
    return {r.name: r for r in run(spec, Student(Local({"square": square_function, "apply": apply})), seed=1, recordings=recordings,
                                   reference=reference, **kwargs)}


def cubes():
    reference = Student(Local({"square": square}))
    cube = Student(Local({"square": lambda x: x**3}))
    return lambda spec: Recordings({"square": {"reference": answers_of(reference, spec.probes), "cube": answers_of(cube, spec.probes)}},
                                   {"square": {"cube": "You multiply three times. Twice is enough."}})


def test_the_reference_earns_every_point(folder):
    results = judge(folder, square, hidden=True)
    assert {r.status for r in results.values()} == {"passed"}
    assert sum(r.points for r in results.values()) == 7


def test_a_known_mistake_is_named_in_every_failed_test_of_its_exercise(folder):
    results = judge(folder, lambda x: x**3, hidden=True, recordings=cubes()(load(folder)))
    assert {r.mistake for r in results.values() if r.status == "failed"} == {"cube"}
    assert "Twice is enough" in results["test_the_square_is_x_times_x"].message


def test_an_unknown_mistake_gets_expected_got_and_the_call(folder):
    message = judge(folder, lambda x: x + 1, recordings=cubes()(load(folder)))["test_the_square_is_x_times_x"].message
    assert all(word in message for word in ("expected", "got", "call", "square(", "Multiply the number by itself"))
    assert len(message.splitlines()) <= MAX_LINES


def test_a_hidden_test_tells_no_numbers(folder):
    message = judge(folder, lambda x: x + 1, hidden=True)["test_a_secret_number_is_squared"].message
    assert "123456" not in message and "expected" not in message and "Think of large numbers" in message


def test_a_hidden_test_tells_no_numbers_when_the_function_crashes(folder):
    def crash(x):
        raise ValueError("no")
    message = judge(folder, crash, hidden=True)["test_a_secret_number_is_squared"].message
    assert "123456" not in message and "ValueError: no" in message


def not_written(x):
    raise NotImplementedError


def changes_its_argument(x):
    return x.mul_(x)


def divides_by_zero(x):
    return 1 / 0


def random(x):
    return x * x * (1 + torch.rand(1))


def exits(x):
    raise SystemExit(0)


@pytest.mark.parametrize("function, words", [
    (not_written, "not written yet"), (changes_its_argument, "changed its argument"), (divides_by_zero, "ZeroDivisionError"),
    (exits, "SystemExit"), (lambda x: object(), "an object of type object"), (lambda x: None, "expected"), (random, "expected"),
    (lambda x: x.float() ** 2, "dtype")])
def test_every_failure_is_said_in_words(function, words, folder):
    result = judge(folder, function)["test_the_square_is_x_times_x"]
    assert result.points == 0 and words in result.message
    assert len(result.message.splitlines()) <= MAX_LINES


def test_writing_into_a_given_dict_is_told_apart_from_changing_a_tensor(folder):
    def keeps(x):
        x["seen"] = True
        return x
    spec_student = Student(Local({"square": keeps}))
    with pytest.raises(StudentError, match="build a new dict"):
        spec_student.square({"v": torch.zeros(1)})


def test_a_result_without_gradient_is_noticed(folder):
    assert judge(folder, lambda x: x.detach() ** 2)["test_gradient_is_two_x"].status == "failed"


def test_a_callback_gets_copies_and_its_calls_are_counted(folder):
    assert judge(folder, square)["test_apply_calls_the_function"].status == "passed"


def test_only_the_exercise_asked_for_is_run(folder):
    assert set(judge(folder, square, exercises=["apply"])) == {"test_apply_calls_the_function"}


def test_an_interrupt_is_no_verdict(folder):
    def interrupt(x):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        judge(folder, interrupt)


def test_a_test_file_edited_meanwhile_is_read_again(folder):
    judge(folder, square)
    (folder / "test_visible.py").write_text(VISIBLE.replace("x * x)", "x * x + 1)"))
    assert judge(folder, square)["test_the_square_is_x_times_x"].status == "failed"


def test_two_seeds_draw_different_inputs(folder):
    def inputs_of(seed):
        seen = []
        def spy(x):
            seen.append(x.tolist())
            return x * x
        run(load(folder), Student(Local({"square": spy, "apply": apply})), seed=seed, exercises=["square"])
        return seen
    assert inputs_of(1) == inputs_of(1) != inputs_of(2)


def test_recordings_keep_their_bytes_and_their_values(folder, tmp_path):
    recordings = cubes()(load(folder))
    path = tmp_path / "probes.safetensors"
    path.write_bytes(to_bytes(recordings))
    again = load_recordings(path)
    assert to_bytes(again) == to_bytes(recordings)
    assert again.hints == recordings.hints
    assert again.expected("three_numbers", "square").tolist() == [1, 4, 9]


def test_a_damaged_recording_says_which_file(tmp_path):
    (tmp_path / "probes.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="probes.safetensors"):
        load_recordings(tmp_path / "probes.safetensors")


def test_a_test_without_exercise_is_an_error_with_its_line(folder):
    (folder / "test_visible.py").write_text(VISIBLE + "\ndef test_lost(student):\n    pass\n")
    line = (VISIBLE + "\ndef test_lost").count("\n") + 1
    with pytest.raises(SpecError, match=f"test_visible.py:{line}: test_lost names no exercise"):
        load(folder)


def test_a_broken_test_file_is_an_error_with_its_line(folder):
    (folder / "test_visible.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(SpecError, match="test_visible.py:2: ZeroDivisionError"):
        load(folder)


def test_a_specification_that_pytest_cannot_run_is_not_a_verdict(folder):
    spec = load(folder)
    (folder / "test_visible.py").write_text("import nothing_of_this_name")
    with pytest.raises(SpecificationBroken):
        run(spec, Student(Local({"square": square})), seed=1)


def test_a_file_named_torch_beside_the_tests_does_not_shadow_torch(folder, monkeypatch):
    (folder / "torch.py").write_text("raise RuntimeError('shadowed')")
    (folder / "pytest.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(folder)
    assert judge(folder, square)["test_the_square_is_x_times_x"].status == "passed"


def test_the_environment_is_left_as_it_was(folder):
    before = dict(os.environ)
    judge(folder, square)
    assert dict(os.environ) == before


def test_what_is_counted_is_told_in_its_own_unit():
    assert [amount(589824, "bytes"), amount(0.0021, "s")] == ["589,824 bytes", "2.1 ms"]


def test_a_callback_that_says_nothing_is_still_a_failure_for_people():
    def objects(x):
        raise AssertionError
    student = Student(Local({"f": lambda function, x: function(x)}))
    with pytest.raises(StudentError, match="no message"):
        student.f(objects, torch.ones(1))


def test_hypothesis_keeps_nothing_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not hypothesis.configuration.storage_directory("x").path.is_relative_to(tmp_path)
