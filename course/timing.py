"""How long does it take, really? Honest comparison of two functions on this device, and the device's own limits.

What makes it honest: a warm-up; windows long enough for the clock; new inputs for each window, made while the clock
stands; candidate and baseline by turns (A B, B A, ...), so that a slow moment hits both; medians; and an interval that
says how far the ratio can be trusted.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course.device import default_device

WINDOW = 5e-3  # seconds: shorter windows measure the clock and the scheduler
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MIN_PAIRS, MAX_PAIRS = 6, 400  # six pairs are the least from which a 95% interval means something


@dataclass(frozen=True)
class Ratio:
    """How many times faster the candidate is than the baseline: 2 means half the time. low..high is a 95% interval."""
    ratio: float
    low: float
    high: float
    candidate_seconds: float  # median, per call
    baseline_seconds: float
    windows: int  # measured for each of the two
    device: str

    @property
    def verdict(self) -> str:
        """The candidate is "faster" or "slower" than the baseline, or the measurement is "inconclusive"."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "inconclusive"

    def reaches(self, target: float) -> str:
        """Is the ratio at least `target`? "passed", "failed", or "inconclusive" where the interval holds the target."""
        return "passed" if self.low >= target else "failed" if self.high < target else "inconclusive"

    def __str__(self) -> str:
        return (f"{self.verdict}: {self.ratio:.2f} times the baseline's speed (95% interval {self.low:.2f} to "
                f"{self.high:.2f}); {duration(self.candidate_seconds)} against {duration(self.baseline_seconds)} "
                f"a call, {self.windows} windows each, {self.device}")


def duration(seconds: float) -> str:
    """Three digits and a unit: 0.00123 -> "1.23 ms"."""
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def compare(candidate: Callable, baseline: Callable, make_inputs: Callable[[int], tuple], *, seconds: float = 2.0,
            device: torch.device | str | None = None, seed: int = 0) -> Ratio:
    """Time `candidate(*inputs)` against `baseline(*inputs)`.

    make_inputs  from an integer seed to a tuple of arguments, on `device`; called for each window outside the clock.
                 Both functions get equal inputs, but not the same objects. Short functions run many times in a
                 window on one set of inputs, so one that changes its arguments meets its own changes.
    seconds      about how long to measure; slow functions take longer, because six windows are the least
    device       "cpu" or "cuda"; None: the GPU if there is one
    """
    device = torch.device(device or default_device())
    functions = (candidate, baseline)
    repeats = [_repeats(f, make_inputs(seed), device) for f in functions]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while (pairs := len(times[1])) < MIN_PAIRS or (pairs < MAX_PAIRS and time.perf_counter() < end):
        for which in ((0, 1), (1, 0))[pairs % 2]:
            inputs = make_inputs(seed + 1 + pairs)
            times[which].append(window(functions[which], inputs, repeats[which], device) / repeats[which])
    ratio, low, high = ratio_interval(times[1], times[0], seed=seed)
    return Ratio(ratio, low, high, float(np.median(times[0])), float(np.median(times[1])), len(times[0]), str(device))


def window(function: Callable, inputs: Sequence[Any], repeats: int, device: torch.device) -> float:
    """Seconds for `repeats` calls. On a GPU its own clock counts, from an idle start until all the work is done."""
    collecting = gc.isenabled()
    gc.disable()  # a collection would land in one of the windows by chance
    try:
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record(torch.cuda.current_stream(device))
            for _ in range(repeats):
                function(*inputs)
            stop.record(torch.cuda.current_stream(device))
            torch.cuda.synchronize(device)
            return start.elapsed_time(stop) / 1e3
        begin = time.perf_counter()
        for _ in range(repeats):
            function(*inputs)
        return time.perf_counter() - begin
    finally:
        if collecting:
            gc.enable()


def keep_memory() -> bool:
    """From now on this process keeps the memory that tensors of up to 32 MiB free. False where the C library is not glibc.

    By default glibc may give it back to the system at once, and the next tensor gets it anew, page by page. In a network
    without gradients, where each layer frees what the one before it made, that can take longer than the arithmetic; and
    whether it happens depends on sizes and on chance, so that it would be mistaken for a gain or a loss of speed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(M_MMAP_THRESHOLD, 1 << 25), mallopt(M_TRIM_THRESHOLD, 1 << 30)))


def _repeats(function: Callable, inputs: Sequence[Any], device: torch.device) -> int:
    """Warm up, and find how many calls fill a window."""
    window(function, inputs, 1, device)  # the first call may compile, allocate, load
    repeats = 1
    while (spent := window(function, inputs, repeats, device)) < WINDOW:
        repeats = max(2 * repeats, min(10 * repeats, int(1.3 * repeats * WINDOW / max(spent, 1e-9))))
    return repeats


def ratio_interval(baseline_times: Sequence[float], candidate_times: Sequence[float], confidence: float = 0.95,
                   seed: int = 0) -> tuple[float, float, float]:
    """median(baseline) / median(candidate) and its bootstrap interval: (ratio, low, high).

    The times come in pairs that were measured next to each other; whole pairs are drawn again, 2,000 times
    (percentile bootstrap, Efron & Tibshirani 1993, chapter 13, on the logarithm, so that a swap of the two inverts
    the interval). The same seed gives the same interval. Raises ValueError for unequal lengths, fewer than two pairs,
    or times that are not positive and finite.
    """
    times = [np.asarray(t, dtype=float) for t in (baseline_times, candidate_times)]
    if times[0].ndim != 1 or times[0].shape != times[1].shape or len(times[0]) < 2:
        raise ValueError(f"times come in pairs, at least two: got shapes {times[0].shape} and {times[1].shape}")
    if not all(np.isfinite(t).all() and (t > 0).all() for t in times):
        raise ValueError("times must be positive and finite")
    drawn = np.random.default_rng(seed).integers(len(times[0]), size=(2000, len(times[0])))
    b, c = (np.log(np.median(t[drawn], axis=1)) for t in times)
    low, high = np.exp(np.quantile(b - c, [(1 - confidence) / 2, (1 + confidence) / 2]))
    ratio = float(np.median(times[0]) / np.median(times[1]))
    return ratio, min(float(low), ratio), max(float(high), ratio)  # few pairs can leave the ratio itself outside


# --- the limits of this machine --------------------------------------------------------------------------------------

def memory_bandwidth(device: torch.device | str | None = None) -> float:
    """Bytes a second, reading and writing counted, by the best of several copies of 256 MiB. Measured once a process.

    A cache larger than that, or a kernel that only reads, can go beyond it.
    """
    return _bandwidth(str(torch.device(device or default_device())))


def peak_flops(device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second (a multiply-add is two) of the best square matrix product. Measured once a process.

    On a GPU float32 means float32: TF32 only if torch is told to use it. int8: products of int8 summed in int32.
    """
    return _flops(str(torch.device(device or default_device())), dtype)


@functools.cache
def _bandwidth(name: str) -> float:
    device = torch.device(name)
    source = torch.ones(2**26, device=device)  # float32
    target = torch.zeros_like(source)
    best = min(window(target.copy_, (source,), 1, device) for _ in range(8))
    return 2 * source.nbytes / best


@functools.cache
def _flops(name: str, dtype: torch.dtype) -> float:
    device, n, best = torch.device(name), 256, 0.0
    while n <= 8192:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty(n, n, device=device, dtype=torch.int32 if dtype == torch.int8 else dtype)
        multiply = lambda: torch._int_mm(a, b.t(), out=out) if dtype == torch.int8 else torch.mm(a, b, out=out)
        multiply()
        spent = min(window(multiply, (), 1, device) for _ in range(5))
        best = max(best, 2 * n**3 / spent)
        if spent > 20e-3:  # long enough to be at its peak
            break
        n *= 2
    return best
