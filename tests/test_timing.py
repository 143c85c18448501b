"""Facts about timing. Nothing here depends on how fast this machine is, only on differences that no noise can hide."""

import gc
import math
import resource
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course import timing
from course.timing import Ratio, compare, ratio_interval

FEW = settings(max_examples=40, deadline=None, database=None)
SECONDS = st.floats(1e-7, 1e3)
PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=2, max_size=40).map(lambda p: tuple(zip(*p)))


# --- the interval ----------------------------------------------------------------------------------------------------

@FEW
@given(times=PAIRS, seed=st.integers(0, 9))
def test_the_interval_holds_the_ratio_of_medians_and_repeats(times, seed):
    ratio, low, high = ratio_interval(*times, seed=seed)
    assert low <= ratio <= high and ratio == pytest.approx(np.median(times[0]) / np.median(times[1]))
    assert (ratio, low, high) == ratio_interval(*times, seed=seed)


@FEW
@given(times=PAIRS, factor=st.floats(1e-3, 1e3))
def test_the_interval_does_not_depend_on_the_unit_and_grows_with_the_baseline(times, factor):
    baseline, candidate = map(np.array, times)
    plain = np.array(ratio_interval(baseline, candidate))
    np.testing.assert_allclose(ratio_interval(baseline * factor, candidate * factor), plain, rtol=1e-9)
    np.testing.assert_allclose(ratio_interval(baseline * factor, candidate), plain * factor, rtol=1e-9)


@FEW
@given(times=PAIRS)
def test_a_swap_of_the_two_inverts_the_interval(times):
    ratio, low, high = ratio_interval(*times)
    np.testing.assert_allclose(ratio_interval(*times[::-1]), (1 / ratio, 1 / high, 1 / low), rtol=1e-9)


@FEW
@given(times=PAIRS)
def test_more_confidence_needs_a_wider_interval(times):
    _, low, high = ratio_interval(*times, confidence=0.5)
    _, wide_low, wide_high = ratio_interval(*times, confidence=0.99)
    assert wide_low <= low and high <= wide_high


def test_constant_times_leave_no_doubt():
    assert ratio_interval([6.0] * 5, [2.0] * 5) == pytest.approx((3, 3, 3))


def test_a_slow_moment_that_hits_both_widens_little():
    # Half of the pairs are ten times slower, baseline and candidate alike: as pairs they still say 2.
    slow = np.where(np.arange(41) % 2, 10.0, 1.0)
    _, low, high = ratio_interval(2 * slow, slow)
    assert low == pytest.approx(2) and high == pytest.approx(2)


def test_a_few_windows_that_something_disturbed_change_nothing():
    disturbed = np.where(np.arange(41) % 14, 1.0, 1000.0)
    assert ratio_interval(np.full(41, 2.0), disturbed) == ratio_interval(np.full(41, 2.0), np.ones(41)) == (2, 2, 2)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        baseline, candidate = 3 * rng.lognormal(0, 0.3, 40), rng.lognormal(0, 0.3, 40)
        _, low, high = ratio_interval(baseline, candidate, seed=trial)
        hits += low <= 3 <= high
    assert 180 <= hits <= 199  # 190 expected, standard deviation 3


@pytest.mark.parametrize("times", [([1.0, 2.0], [1.0]), ([1.0], [1.0]), ([], []), ([1.0, 0.0], [1.0, 1.0]),
                                   ([1.0, math.nan], [1.0, 1.0]), ([1.0, 1.0], [math.inf, 1.0]), ([[1.0]], [[1.0]])])
def test_times_that_are_no_times_are_refused(times):
    with pytest.raises(ValueError, match="times"):
        ratio_interval(*times)


# --- verdicts --------------------------------------------------------------------------------------------------------

@given(low=st.floats(0.01, 100), width=st.floats(1, 10), target=st.floats(0.01, 100))
def test_a_verdict_is_given_only_when_the_whole_interval_agrees(low, width, target):
    r = Ratio(low * width**0.5, low, low * width, 1e-3, 2e-3, 10, "cpu")
    assert r.reaches(target) == ("passed" if low >= target else "failed" if low * width < target else "inconclusive")
    assert (r.verdict == "faster") == (low > 1) and (r.verdict == "slower") == (low * width < 1)
    assert r.verdict in str(r) and "95% interval" in str(r)


def test_a_ratio_beside_one_with_an_interval_around_one_is_inconclusive():
    for ratio in (0.95, 1.05):
        assert Ratio(ratio, 0.9, 1.1, 1e-3, 1e-3, 10, "cpu").verdict == "inconclusive"


def test_durations_have_three_digits_and_a_unit():
    assert [timing.duration(s) for s in (12.345, 1.2e-3, 3.456e-6, 2e-9)] == ["12.3 s", "1.2 ms", "3.46 µs", "2 ns"]


# --- comparing -------------------------------------------------------------------------------------------------------

def sleep_for(milliseconds):
    return lambda *args: time.sleep(milliseconds / 1e3)


def test_five_times_the_sleep_is_slower():
    r = compare(sleep_for(1), sleep_for(5), lambda seed: (seed,), seconds=0.3, device="cpu")
    assert r.verdict == "faster" and r.ratio > 1.5 and r.reaches(1.2) == "passed" and r.reaches(100) == "failed"
    assert r.candidate_seconds < r.baseline_seconds and r.baseline_seconds > 4e-3 and r.device == "cpu"
    r = compare(sleep_for(5), sleep_for(1), lambda seed: (seed,), seconds=0.3, device="cpu")
    assert r.verdict == "slower" and r.ratio < 0.7


@pytest.fixture
def spend(monkeypatch):
    """A clock that only the functions under test move: `spend(seconds)`."""
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def spend(seconds):
        now[0] += seconds
    return spend


def test_making_the_inputs_is_not_on_the_clock(spend):
    r = compare(lambda x: spend(1e-3), lambda x: spend(4e-3), lambda seed: (spend(1.0),), seconds=20, device="cpu")
    assert (r.ratio, r.low, r.high, r.candidate_seconds) == pytest.approx((4, 4, 4, 1e-3)) and r.windows == 10


def test_the_first_call_may_be_slow_and_does_not_count(spend):
    calls = []

    def compiles_first():
        spend(1e-3 if calls else 1000)
        calls.append(1)
    r = compare(compiles_first, lambda: spend(5e-3), lambda seed: (), seconds=2, device="cpu")
    assert r.ratio == pytest.approx(5) and r.candidate_seconds == pytest.approx(1e-3)
    assert len(calls) >= 5 * r.windows  # and its windows are as long as any


class Recorder:
    """Two functions that note which of them met which inputs."""

    def __init__(self):
        self.windows, self.seeds = [], []
        self.candidate, self.baseline = (lambda box, name=name: self.note(name, box) for name in "cb")

    def inputs(self, seed):
        self.seeds.append(seed)
        return ([seed],)  # a new object each time

    def note(self, name, box):
        time.sleep(1e-3)
        if not self.windows or self.windows[-1][:2] != (name, id(box)):
            self.windows.append((name, id(box), box))  # kept alive, so that no id comes twice


@pytest.fixture(scope="module")
def record():
    r = Recorder()
    r.result = compare(r.candidate, r.baseline, r.inputs, seconds=0.2, device="cpu", seed=50)
    return r


def test_candidate_and_baseline_take_turns_in_both_orders(record):
    turns = "".join(name for name, *_ in record.windows[2:])  # the first two warm up
    assert turns == ("cbbc" * len(turns))[:len(turns)] and len(turns) == 2 * record.result.windows >= 12


def test_each_window_has_new_inputs_equal_for_both(record):
    pairs = [record.windows[i:i + 2] for i in range(2, len(record.windows), 2)]
    seeds = [box[0] for _, _, box in (w for pair in pairs for w in pair)]
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == len(pairs) and 50 not in seeds
    assert all(a[1] != b[1] for a, b in pairs)


@FEW
@given(cost=st.floats(-8, 0).map(lambda e: 10**e))
def test_a_window_lasts_five_milliseconds_and_not_much_more(cost):
    with pytest.MonkeyPatch.context() as patch:  # a clock without noise
        patch.setattr(timing, "window", lambda function, inputs, repeats, device: repeats * cost)
        repeats = timing._repeats(None, (), None)
    assert repeats * cost >= 5e-3 and (repeats == 1 or repeats * cost < 2e-2)


def test_slow_functions_still_get_enough_windows_for_an_interval():
    assert compare(sleep_for(6), sleep_for(6), lambda seed: (), seconds=0.0, device="cpu").windows == timing.MIN_PAIRS


def test_an_error_reaches_the_caller_and_garbage_collection_goes_on():
    def broken(x):
        raise ZeroDivisionError("on purpose")
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        compare(broken, sleep_for(1), lambda seed: (seed,), device="cpu")
    assert gc.isenabled()


def test_memory_that_is_kept_is_not_fetched_again_page_by_page():
    def pages_of_five_rounds():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            [torch.ones(20 << 20, dtype=torch.uint8) for _ in range(2)]  # 40 MiB a round, 10,240 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    if not timing.keep_memory():
        pytest.skip("the C library is not glibc")
    pages_of_five_rounds()
    assert pages_of_five_rounds() < 10_240


# --- limits ----------------------------------------------------------------------------------------------------------

def test_the_limits_of_the_machine_are_measured_once_and_hold(monkeypatch):
    bandwidth, flops = timing.memory_bandwidth("cpu"), timing.peak_flops("cpu", torch.float32)
    assert 1e8 < bandwidth < 1e13 and 1e8 < flops < 1e15
    monkeypatch.setattr(timing, "window", None)  # a second measurement would fail
    assert timing.memory_bandwidth(torch.device("cpu")) == bandwidth and timing.peak_flops("cpu") == flops


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_work_counts_and_not_its_launch():
    make = lambda seed: (torch.randn(4096, 4096, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)),)
    r = compare(lambda a: a @ a, lambda a: [a @ a for _ in range(5)], make, seconds=1)
    assert r.ratio > 2 and r.device == "cuda" and 2 * 4096**3 / r.candidate_seconds < 3 * timing.peak_flops("cuda")
