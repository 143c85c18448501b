"""What the functions of this lab must do: the part that a student has too.

One process says what N ranks must compute: sums of plain tensors, torch's own optimisers. What they must not waste is
read off the messages: everything that a rank launches goes through whoever runs these tests.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from course.cluster import Cluster, Run, nbytes, stream, taking
from course.spec import assert_close, assert_that, exercise, probe, work
from course.spec.student import StudentError

# Every example runs several ranks, and each message of theirs crosses two pipes in grading.
some, few = settings(max_examples=4), settings(max_examples=2)
worlds = st.integers(1, 4)
ITEM = 8    # bytes of a float64


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def normal(shape, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def cut(numel: int, world: int) -> list[tuple[int, int]]:
    """Shards in order, all ceil(numel / world) long until the numbers run out."""
    size = math.ceil(numel / world)
    return [(min(r * size, numel), min(r * size + size, numel)) for r in range(world)]


def pad(tensor: Tensor, world: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(-len(tensor) % world)])


def shard_of(tensor: Tensor, world: int, rank: int) -> Tensor:
    return pad(tensor, world).view(world, -1)[rank].clone()


def most(run: Run, what: Callable[[int], float]) -> float:
    return max(what(rank) for rank in range(len(run.values)))


def two_things(value) -> tuple:
    assert_that(type(value) in (tuple, list) and len(value) == 2,
                "Two things must be returned: the new parameters and the new state.")
    return value


def overlapped(run: Run, rank: int, kind: str) -> int:
    """How many operations of one kind were launched before, and waited for after, some computation of the rank."""
    count, begun, computed = 0, {}, 0
    for event in run.log:
        if event.rank == rank and event.what == "compute" and event.ticket >= 0:
            computed += 1
        elif event.rank == rank and event.what == "launch" and event.name == kind:
            begun[event.ticket] = computed
        elif event.rank == rank and event.what == "wait" and event.ticket in begun:
            count += computed > begun.pop(event.ticket)
    return count


def launched_at(run: Run, rank: int, kind: str) -> list[int]:
    """For each operation of one kind, in order: after how many computations of the rank it was launched."""
    return [sum(e.what == "compute" and e.rank == rank for e in run.log[:place])
            for place, event in enumerate(run.log) if (event.rank, event.what, event.name) == (rank, "launch", kind)]


def answered(run: Callable[[], object]) -> object:
    """What `run` gives, or how it fails; not more, as the rest of a message differs from one Python to the next."""
    try:
        return run()
    except (StudentError, AssertionError) as error:
        if "is not written yet" in str(error):
            raise
        known = ("No rank can go on", "do not agree", "ended without it", "changed its argument", "cannot cut", "KeyError")
        return next((words for words in known if words in str(error)), "another failure")


# ---------------------------------------------------------------- shard_bounds

@exercise("shard_bounds", points=3)
@given(numel=st.integers(0, 50), world=st.integers(1, 9))
def test_shards_cover_everything_once_and_in_order(student, numel, world):
    """Each shard begins where the one before ends; the first begins at 0, the last ends at numel."""
    bounds = student.shard_bounds(numel, world)
    assert_that(type(bounds) in (list, tuple) and len(bounds) == world, f"One pair for each of {world} ranks is wanted.")
    assert_that(all(type(b) in (list, tuple) and len(b) == 2 for b in bounds), "Each entry must be a pair: (begin, end).")
    flat = [x for pair in bounds for x in pair]
    assert_close(flat[0], 0, "where the first shard begins")
    assert_close(flat[-1], numel, "where the last shard ends")
    for rank, (before, after) in enumerate(pairwise(bounds)):
        assert_close(after[0], before[1], f"where the shard of rank {rank + 1} begins, after that of rank {rank} has ended")


@exercise("shard_bounds", points=3)
@given(numel=st.integers(1, 50), world=st.integers(1, 9))
def test_shards_are_of_one_size_until_the_numbers_run_out(student, numel, world):
    """The size is numel / world, rounded up. Cut what goes beyond numel off: min(..., numel)."""
    lengths = [end - begin for begin, end in student.shard_bounds(numel, world)]
    assert_close(lengths, [end - begin for begin, end in cut(numel, world)], "lengths of the shards")


@probe("shard_bounds")
def shards_of_some_sizes(student):
    return [student.shard_bounds(n, w) for n, w in ((10, 4), (12, 4), (2, 4), (0, 3), (7, 1), (9, 8))]


# ---------------------------------------------------------------- rings

@st.composite
def tensors_to_sum(draw) -> list[tuple[Tensor]]:
    """One tensor for each rank, all equally long; not always divisible, sometimes fewer numbers than ranks."""
    random, world, numel = draw(generators()), draw(worlds), draw(st.integers(1, 13))
    return [(normal(numel, random),) for _ in range(world)]


def total(args: list[tuple[Tensor]]) -> Tensor:
    return torch.stack([own[0] for own in args]).sum(0)


def neighbours(run: Run, rank: int) -> set[int]:
    return {event.peer for event in run.events(rank, "launch") if event.name == "send"}


def forgotten_sends(run: Run, rank: int) -> int:
    waited = {event.ticket for event in run.events(rank, "wait")}
    return sum(event.name == "send" and event.ticket not in waited for event in run.events(rank, "launch"))


def assert_sends_are_waited_for(run: Run) -> None:
    for rank in range(run.world):
        assert_that(not forgotten_sends(run, rank), f"Rank {rank} never waits for {forgotten_sends(run, rank)} of its sends. Here they "
                                                    "arrive all the same; between real ranks they may not, and all hang.")


def assert_only_sends_and_receives(run: Run) -> None:
    kinds = {kind for rank in range(run.world) for kind in run.kinds(rank)}
    assert_that(kinds <= {"send", "recv"}, f"Only send and recv are allowed here, not {', '.join(sorted(kinds - {'send', 'recv'}))}.")


@exercise("ring_reduce_scatter", points=7)
@some
@example(args=[(torch.arange(9.0).double() * 10**rank,) for rank in range(4)])
@given(args=tensors_to_sum())
def test_each_rank_ends_with_its_shard_of_the_sum(student, args):
    """In step s = 1, 2, ... rank r sends part r - s (mod world) and adds what comes to part r - s - 1."""
    run, whole = student.ring_reduce_scatter.on_ranks(args), total(args)
    for rank, (begin, end) in enumerate(cut(len(whole), len(args))):
        assert_close(run.values[rank], whole[begin:end], f"what rank {rank} of {len(args)} returns", rtol=1e-9, atol=1e-12)


@exercise("ring_reduce_scatter", points=5)
@few
@given(random=generators(), world=st.integers(2, 4), size=st.integers(2, 4))
def test_no_rank_sends_more_than_its_share_of_the_sum_needs(student, random, world, size):
    """Send one part a step and world - 1 parts in all, never the whole tensor: (world - 1) / world of its bytes."""
    run = student.ring_reduce_scatter.on_ranks([(normal(world * size, random),) for _ in range(world)])
    assert_only_sends_and_receives(run)
    for rank in range(world):
        assert_close(run.sent_bytes(rank), (world - 1) * size * ITEM, f"bytes that rank {rank} of {world} sends")


@exercise("ring_reduce_scatter", points=4)
@few
@given(random=generators(), world=st.integers(3, 4))
def test_partial_sums_go_round_a_ring(student, random, world):
    """Every rank sends to one neighbour only and receives from the other one only. Keep each send's handle, and wait for
    it after you have received."""
    run = student.ring_reduce_scatter.on_ranks([(normal(2 * world, random),) for _ in range(world)])
    assert_only_sends_and_receives(run)
    assert_sends_are_waited_for(run)
    steps = {tuple((peer - rank) % world for peer in neighbours(run, rank)) for rank in range(world)}
    assert_that(steps in ({(1,)}, {(world - 1,)}),
                "Not every rank sends to one neighbour only, the same way round.")


@probe("ring_reduce_scatter")
def scattered_sums(student):
    def of(world, numel):
        run = student.ring_reduce_scatter.on_ranks([(torch.arange(1.0, numel + 1).double() * 10**rank,) for rank in range(world)])
        return [[value for value in run.values], [run.sent_bytes(rank) for rank in range(world)],
                [sorted((peer - rank) % world for peer in neighbours(run, rank)) for rank in range(world)], forgotten_sends(run, 0)]
    return [answered(lambda: of(*size)) for size in ((4, 8), (3, 7), (2, 2))]


@st.composite
def shards_to_join(draw) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    random, world, numel = draw(generators()), draw(worlds), draw(st.integers(1, 13))
    whole = normal(numel, random)
    return whole, [(whole[begin:end].clone(), numel) for begin, end in cut(numel, world)]


@exercise("ring_all_gather", points=6)
@some
@example(problem=(torch.arange(9.0), [(torch.arange(9.0)[a:b].clone(), 9) for a, b in cut(9, 4)]))
@given(problem=shards_to_join())
def test_every_rank_ends_with_all_shards_in_order(student, problem):
    """First send your own shard; from then on send what has just come in. Put each where its owner's number says."""
    whole, args = problem
    run = student.ring_all_gather.on_ranks(args)
    for rank, value in enumerate(run.values):
        assert_close(value, whole, f"what rank {rank} of {len(args)} returns", rtol=0, atol=0)


@exercise("ring_all_gather", points=4)
@few
@given(random=generators(), world=st.integers(3, 4), size=st.integers(2, 4))
def test_each_rank_passes_on_one_shard_a_step_to_one_neighbour(student, random, world, size):
    """world - 1 shards are sent by each rank, all to the same neighbour. Wait for each send, after you have received."""
    whole = normal(world * size, random)
    run = student.ring_all_gather.on_ranks([(part.clone(), len(whole)) for part in whole.split(size)])
    assert_only_sends_and_receives(run)
    for rank in range(world):
        assert_close(run.sent_bytes(rank), (world - 1) * size * ITEM, f"bytes that rank {rank} of {world} sends")
        assert_that(len(neighbours(run, rank)) == 1, f"Rank {rank} sends to {len(neighbours(run, rank))} ranks, not to one neighbour.")
    assert_sends_are_waited_for(run)


@probe("ring_all_gather")
def joined_shards(student):
    def of(world, numel):
        whole = torch.arange(1.0, numel + 1).double()
        run = student.ring_all_gather.on_ranks([(whole[a:b].clone(), numel) for a, b in cut(numel, world)])
        return [[value for value in run.values], [run.sent_bytes(rank) for rank in range(world)],
                [len(neighbours(run, rank)) for rank in range(world)], forgotten_sends(run, 0)]
    return [answered(lambda: of(*size)) for size in ((4, 8), (3, 7), (2, 2))]


@exercise("ring_all_reduce", points=0)
@some
@example(random=torch.Generator(), world=3, shape=(3, 4))
@given(random=generators(), world=worlds, shape=st.sampled_from([(5,), (3, 4), (1,), (2, 2, 2)]))
def test_every_rank_ends_with_the_sum_in_the_shape_of_its_tensor(student, random, world, shape):
    """Flatten, reduce-scatter, all-gather, and give the result the shape of what came in."""
    args = [(normal(shape, random),) for _ in range(world)]
    run = student.ring_all_reduce.on_ranks(args)
    for rank, value in enumerate(run.values):
        assert_close(value, total(args), f"what rank {rank} of {world} returns", rtol=1e-9, atol=1e-12)
        assert_close(value, run.values[0], f"what rank {rank} returns, against rank 0", rtol=0, atol=0)


@exercise("ring_all_reduce", points=0)
@few
@given(random=generators(), world=st.integers(3, 4), size=st.integers(1, 3))
def test_each_rank_sends_twice_its_share(student, random, world, size):
    """2 (world - 1) / world of the tensor's bytes: a reduce-scatter and an all-gather, nothing else."""
    run = student.ring_all_reduce.on_ranks([(normal(world * size, random),) for _ in range(world)])
    assert_only_sends_and_receives(run)
    assert_close([run.sent_bytes(rank) for rank in range(world)], [2 * (world - 1) * size * ITEM] * world, "bytes that each rank sends")


@probe("ring_all_reduce")
def sums_everywhere(student):
    def of(world, shape):
        values = torch.arange(1.0, 1 + math.prod(shape)).double().view(shape)
        run = student.ring_all_reduce.on_ranks([(values * 10**rank,) for rank in range(world)])
        return [[value for value in run.values], [run.sent_bytes(rank) for rank in range(world)], len(run.kinds(0))]
    return [answered(lambda: of(*size)) for size in ((4, (2, 4)), (3, (3,)))]


# ---------------------------------------------------------------- bucketize

sizes_of_gradients = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@exercise("bucketize", points=0)
@given(sizes=sizes_of_gradients, limit=st.integers(10, 60))
def test_buckets_hold_every_parameter_once_and_the_last_one_first(student, sizes, limit):
    """Walk from the last parameter to the first: backward meets them in that order."""
    buckets = student.bucketize(sizes, limit)
    flat = [i for bucket in buckets for i in bucket]
    assert_close(flat, list(reversed(range(len(sizes)))), "the parameters in the buckets, one after the other")


@exercise("bucketize", points=0)
@example(sizes=[6, 5], limit=10)
@example(sizes=[5, 5], limit=10)
@given(sizes=sizes_of_gradients, limit=st.integers(10, 60))
def test_a_bucket_is_closed_when_the_next_gradient_would_not_fit(student, sizes, limit):
    """No bucket above `limit` unless it holds a single gradient, no empty one, and none closed too early."""
    buckets = student.bucketize(sizes, limit)
    full = [sum(sizes[i] for i in bucket) for bucket in buckets]
    for number, (bucket, amount) in enumerate(zip(buckets, full)):
        assert_that(len(bucket) > 0, f"Bucket {number} is empty.")
        assert_that(amount <= limit or len(bucket) == 1, f"Bucket {number} holds {amount} bytes, more than {limit}.")
    for number, (bucket, amount) in enumerate(zip(buckets[1:], full)):
        assert_that(amount + sizes[bucket[0]] > limit, f"Bucket {number} was closed with {amount} bytes, although the next gradient "
                                                       f"of {sizes[bucket[0]]} would have fitted below {limit}.")


@probe("bucketize")
def buckets_of_some_sizes(student):
    return [student.bucketize(sizes, limit) for sizes, limit in
            (([10, 10, 10, 10], 20), ([5, 30, 5, 5], 12), ([1, 2, 3, 4, 5, 6], 7), ([9], 4), ([4, 4, 3], 7))]


# ---------------------------------------------------------------- ddp_step

class Problem:
    """A loss on each rank whose gradient is a * p + b for its own a and b: simple, but it depends on the parameters."""

    def __init__(self, random: torch.Generator, world: int, shapes: list[tuple], order: list[list[int]] | None = None,
                 unused: list[set] | None = None, seconds: float = 0.0):
        self.shapes, self.world, self.seconds = shapes, world, seconds
        self.order = order or [list(reversed(range(len(shapes))))] * world
        self.unused = unused or [set()] * world
        self.a, self.b = ([[normal(shape, random) for shape in shapes] for _ in range(world)] for _ in "ab")
        self.start = [[normal(shape, random) for shape in shapes] for _ in range(world)]

    def gradient(self, rank: int, i: int, params: list[Tensor]) -> Tensor:
        return torch.zeros_like(params[i]) if i in self.unused[rank] else self.a[rank][i] * params[i] + self.b[rank][i]

    def backward(self, rank: int) -> Callable:
        def backward(params):
            assert_that(type(params) in (list, tuple) and len(params) == len(self.shapes)
                        and all(isinstance(p, Tensor) and p.shape == torch.Size(s) for p, s in zip(params, self.shapes)),
                        "backward wants the list of parameters, each in its shape.")
            return ((i, self.gradient(rank, i, params)) for i in self.order[rank] if i not in self.unused[rank])
        return taking(lambda args, item: self.seconds * (item is not None), stream(backward))

    def mean(self, i: int, params: list[Tensor]) -> Tensor:
        return torch.stack([self.gradient(rank, i, params) for rank in range(self.world)]).mean(0)


SHAPES = [(2, 3), (4,), (3,), (2, 2), (5,)]
BUCKETS = [[4, 3], [2], [1, 0]]


def ddp_steps(function, problem: Problem, buckets=BUCKETS, steps: int = 1, **hyper) -> list[Run]:
    """Some steps, each rank's parameters and state handed on to its next step."""
    runs, own = [], [(params, {}) for params in problem.start]
    for _ in range(steps):
        run = function.on_ranks([(params, problem.backward(rank), buckets, state) for rank, (params, state) in enumerate(own)], **hyper)
        own = [two_things(value) for value in run.values]
        runs.append(run)
    return runs


def assert_ddp_values(problem: Problem, runs: list[Run], lr: float) -> None:
    expected = problem.start[0]
    for number, run in enumerate(runs, start=1):
        expected = [p - lr * problem.mean(i, expected) for i, p in enumerate(expected)]
        for rank, value in enumerate(run.values):
            assert_close(value[0], expected, f"parameters of rank {rank} after step {number}", rtol=1e-9, atol=1e-11)


@exercise("ddp_step", points=6)
@few
@example(random=torch.Generator(), world=1, lr=0.1, order=[4, 3, 2, 1, 0])
@example(random=torch.Generator(), world=2, lr=0.1, order=[3, 4, 2, 0, 1])
@given(random=generators(), world=st.integers(2, 3), lr=st.floats(0.05, 0.5), order=st.permutations(range(len(SHAPES))))
def test_all_ranks_take_the_step_of_the_whole_batch(student, random, world, lr, order):
    """Start from rank 0's parameters; then p - lr * (sum of the gradients / world), in each parameter's own shape. A
    bucket may leave only when *all* its gradients are there, in whatever order they come."""
    problem = Problem(random, world, SHAPES, [order] * world)
    assert_ddp_values(problem, ddp_steps(student.ddp_step, problem, steps=3, lr=lr), lr)


@exercise("ddp_step", points=3)
@few
@given(random=generators(), world=st.integers(2, 3))
def test_parameters_are_broadcast_once_and_not_at_every_step(student, random, world):
    """Only when the state is empty. Equal parameters and equal gradients stay equal by themselves."""
    first, second = ddp_steps(student.ddp_step, Problem(random, world, SHAPES), steps=2)
    assert_that("broadcast" in first.kinds(0), "In the first step nothing is broadcast.")
    assert_close(second.kinds(0), ["all_reduce"] * len(BUCKETS), "what rank 0 launches in the second step")


@exercise("ddp_step", points=5)
@few
@given(random=generators(), world=st.integers(2, 3))
def test_an_unused_parameter_stops_nobody(student, random, world):
    """The hook is never called for it on that rank. Its bucket must still be sent, with zeros, as the others wait for it;
    and the parameter moves there too, with the others' gradient."""
    problem = Problem(random, world, SHAPES, unused=[{3}, {0, 2}, set()][:world])
    assert_ddp_values(problem, ddp_steps(student.ddp_step, problem, lr=0.1), 0.1)


@exercise("ddp_step", points=6)
@few
@given(random=generators(), world=st.integers(2, 3))
def test_buckets_travel_while_backward_still_runs(student, random, world):
    """Launch a bucket inside the hook, as soon as its last gradient is there; wait for none of them before backward ends."""
    problem = Problem(random, world, SHAPES)
    run, = ddp_steps(student.ddp_step, problem, lr=0.1)
    for rank in range(world):
        assert_close(run.kinds(rank).count("all_reduce"), len(BUCKETS), f"all_reduces of rank {rank}, one for each bucket")
        assert_that(overlapped(run, rank, "all_reduce") >= len(BUCKETS) - 1,
                    f"Of {len(BUCKETS)} buckets, rank {rank} has {overlapped(run, rank, 'all_reduce')} in flight while backward runs.")


@probe("ddp_step")
def two_steps_of_two_ranks(student):
    def of():
        problem = Problem(torch.Generator().manual_seed(0), 2, SHAPES)
        runs = ddp_steps(student.ddp_step, problem, steps=2, lr=0.1)
        return [[value[0] for run in runs for value in run.values], [run.kinds(0).count("broadcast") for run in runs],
                [overlapped(run, 0, "all_reduce") for run in runs], launched_at(runs[1], 0, "all_reduce")]
    return answered(of)


@probe("ddp_step")
def a_step_with_unused_parameters(student):
    problem = Problem(torch.Generator().manual_seed(0), 2, SHAPES, unused=[{3}, {0, 2}])
    return answered(lambda: [value[0] for value in ddp_steps(student.ddp_step, problem, lr=0.1)[0].values])


@probe("ddp_step")
def a_step_with_a_late_gradient(student):
    def of(order):
        problem = Problem(torch.Generator().manual_seed(0), 2, SHAPES, order=order)
        return [value[0] for value in ddp_steps(student.ddp_step, problem, lr=0.1)[0].values]
    return [answered(lambda: of(order)) for order in ([[4, 2, 1, 0, 3], [4, 3, 2, 1, 0]], [[3, 4, 2, 0, 1]] * 2, [[4, 2, 3, 1, 0]] * 2)]


# ---------------------------------------------------------------- memory_per_rank

@exercise("memory_per_rank", points=3)
@given(params=st.integers(1, 10**11), world=st.integers(1, 1024))
def test_stage_0_holds_sixteen_bytes_for_each_parameter(student, params, world):
    """2 + 2 bytes for parameter and gradient, 4 + 4 + 4 for the master copy, m and v, on every rank."""
    found = student.memory_per_rank(params, world, 0)
    assert_close(found, {"parameters": 2.0 * params, "gradients": 2.0 * params, "optimizer": 12.0 * params}, "stage 0", rtol=1e-9)


@exercise("memory_per_rank", points=3)
@given(params=st.integers(1, 10**11), world=st.integers(2, 1024))
def test_each_stage_shards_one_thing_more(student, params, world):
    """Stage 1 divides the optimiser by the number of ranks, stage 2 the gradients too, stage 3 the parameters too."""
    for stage, sharded in enumerate([set(), {"optimizer"}, {"optimizer", "gradients"}, {"optimizer", "gradients", "parameters"}]):
        found = student.memory_per_rank(params, world, stage)
        for name, size in (("parameters", 2.0), ("gradients", 2.0), ("optimizer", 12.0)):
            expected = size * params / (world if name in sharded else 1)
            assert_close(found[name], expected, f"bytes of {name} in stage {stage}", rtol=1e-9)


@probe("memory_per_rank")
def bytes_of_a_small_model(student):
    return [student.memory_per_rank(1000, world, stage) for world in (1, 4) for stage in range(4)]


# ---------------------------------------------------------------- zero1_step

LR = 0.05
OPTIMIZERS = {"sgd": lambda params: torch.optim.SGD(params, lr=LR), "momentum": lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9),
              "adamw": lambda params: torch.optim.AdamW(params, lr=LR, weight_decay=0.01)}
STATES = {"sgd": 0, "momentum": 1, "adamw": 2}      # tensors of state for each parameter
rules = st.sampled_from(sorted(OPTIMIZERS))


def trained(rule: str, start: list[Tensor], grads: Callable[[int, list[Tensor]], list[Tensor]], steps: int) -> list[list[Tensor]]:
    """What one process with torch's optimiser comes to after each step; grads(step, params) gives the mean gradients."""
    params = [p.clone() for p in start]
    optimizer, places = OPTIMIZERS[rule](params), []
    for step in range(steps):
        for p, g in zip(params, grads(step, params)):
            p.grad = g
        optimizer.step()
        places.append([p.clone() for p in params])
    return places


def zero1_steps(function, start: Tensor, grads: list[list[Tensor]], rule: str) -> list[Run]:
    """grads[step][rank] are the gradients."""
    runs, own = [], [(start, {}) for _ in grads[0]]
    for per_rank in grads:
        runs.append(function.on_ranks([(param, grad, state) for grad, (param, state) in zip(per_rank, own)], rule=rule, lr=LR))
        own = [two_things(value) for value in runs[-1].values]
    return runs


def assert_like_one_process(rule: str, start: Tensor, grads: list[list[Tensor]], runs: list[Run]) -> None:
    places = trained(rule, [start], lambda step, params: [torch.stack(grads[step]).mean(0)], len(grads))
    for number, (run, (expected,)) in enumerate(zip(runs, places), start=1):
        for rank, value in enumerate(run.values):
            assert_close(value[0], expected, f"parameters of rank {rank} of {run.world} after step {number} of {rule}", rtol=1e-6, atol=1e-8)


@exercise("zero1_step", points=6)
@some
@example(random=torch.Generator(), world=3, numel=7, rule="adamw")
@example(random=torch.Generator(), world=2, numel=3, rule="sgd")     # AdamW does not see a factor in the gradient
@given(random=generators(), world=worlds, numel=st.integers(1, 11), rule=rules)
def test_sharded_steps_land_where_one_process_lands(student, random, world, numel, rule):
    """Mean gradient of your shard, update your shard, gather all shards, cut the padding off. Hand the state on."""
    start, grads = normal(numel, random), [[normal(numel, random) for _ in range(world)] for _ in range(3)]
    assert_like_one_process(rule, start, grads, zero1_steps(student.zero1_step, start, grads, rule))


@exercise("zero1_step", points=4)
@few
@given(random=generators(), world=st.integers(2, 4), rule=st.sampled_from(["momentum", "adamw"]))
def test_each_rank_keeps_the_state_of_its_shard_only(student, random, world, rule):
    """Call update with your own shard of parameters and gradient: then its state is as short as they are."""
    numel = 24 * world
    run, = zero1_steps(student.zero1_step, normal(numel, random), [[normal(numel, random) for _ in range(world)]], rule)
    for rank, (_, state) in enumerate(run.values):
        assert_that(nbytes(state) > 0, "No state is returned, so the next step cannot know what this one did.")
        limit = STATES[rule] * numel // world * ITEM
        assert_that(nbytes(state) <= 1.25 * limit, f"Rank {rank} of {world} keeps {nbytes(state)} bytes of optimiser state; its shard needs {limit}.")


@exercise("zero1_step", points=3)
@few
@given(random=generators(), world=st.integers(2, 4), size=st.integers(2, 5))
def test_sharding_the_state_costs_no_more_messages_than_plain_data_parallelism(student, random, world, size):
    """A reduce-scatter of the gradient and an all-gather of the parameters: together as much as one all-reduce."""
    numel = world * size
    run, = zero1_steps(student.zero1_step, normal(numel, random), [[normal(numel, random) for _ in range(world)]], "adamw")
    for rank in range(world):
        assert_that(run.sent_bytes(rank) <= 2 * (world - 1) * size * ITEM + 1e-6,
                    f"Rank {rank} of {world} sends {run.sent_bytes(rank):g} bytes; a ring all-reduce of the gradient sends "
                    f"{2 * (world - 1) * size * ITEM}.")


@probe("zero1_step")
def sharded_steps(student):
    def of(world, numel, rule):
        random = torch.Generator().manual_seed(1)
        runs = zero1_steps(student.zero1_step, normal(numel, random), [[normal(numel, random) for _ in range(world)] for _ in range(2)], rule)
        return [[value[0] for run in runs for value in run.values], [nbytes(value[1]) for value in runs[-1].values],
                [run.sent_bytes(0) for run in runs]]
    return [answered(lambda: of(*case)) for case in ((2, 6, "adamw"), (3, 6, "momentum"))]


@probe("zero1_step")
def a_sharded_step_that_does_not_divide(student):
    random = torch.Generator().manual_seed(1)
    start, grads = normal(7, random), [[normal(7, random) for _ in range(3)]]
    return answered(lambda: [value[0] for value in zero1_steps(student.zero1_step, start, grads, "sgd")[0].values])


# ---------------------------------------------------------------- zero2_step

def zero2_steps(function, problem: Problem, rule: str, steps: int = 1, **options) -> list[Run]:
    runs, own = [], [(problem.start[0], {}) for _ in range(problem.world)]
    for _ in range(steps):
        run = function.on_ranks([(params, problem.backward(rank), state) for rank, (params, state) in enumerate(own)], rule=rule, lr=LR, **options)
        own = [two_things(value) for value in run.values]
        runs.append(run)
    return runs


def assert_layers_like_one_process(problem: Problem, rule: str, runs: list[Run]) -> None:
    places = trained(rule, problem.start[0], lambda _, params: [problem.mean(i, params) for i in range(len(params))], len(runs))
    for number, (run, expected) in enumerate(zip(runs, places), start=1):
        for rank, value in enumerate(run.values):
            assert_close(value[0], expected, f"layers of rank {rank} of {run.world} after step {number} of {rule}", rtol=1e-6, atol=1e-8)


@exercise("zero2_step", points=5)
@some
@example(random=torch.Generator(), world=2, numels=[3, 4], rule="adamw")
@example(random=torch.Generator(), world=2, numels=[3], rule="sgd")
@given(random=generators(), world=worlds, numels=st.lists(st.integers(1, 9), min_size=1, max_size=4), rule=rules)
def test_steps_with_sharded_gradients_land_where_one_process_lands(student, random, world, numels, rule):
    """For each layer: your shard of the mean gradient, update(rule, ...) with that layer's own state, gather, cut."""
    problem = Problem(random, world, [(n,) for n in numels])
    assert_layers_like_one_process(problem, rule, zero2_steps(student.zero2_step, problem, rule, steps=3))


@exercise("zero2_step", points=3)
@few
@given(random=generators(), world=st.integers(2, 3), layers=st.integers(3, 5))
def test_gradients_leave_while_backward_still_runs(student, random, world, layers):
    """Launch the reduce_scatter inside the hook and wait for it after backward."""
    problem = Problem(random, world, [(2 * world,)] * layers)
    run, = zero2_steps(student.zero2_step, problem, "sgd")
    for rank in range(world):
        count = overlapped(run, rank, "reduce_scatter")
        assert_that(count >= layers - 1, f"Of {layers} layers, rank {rank} has {count} gradients in flight while backward runs.")


@exercise("zero2_step", points=3)
@few
@given(random=generators(), world=st.integers(2, 4), layers=st.integers(1, 3))
def test_each_layer_takes_one_reduce_scatter_and_one_all_gather(student, random, world, layers):
    """With an all_reduce everybody would hold every gradient again."""
    run, = zero2_steps(student.zero2_step, Problem(random, world, [(3 * world,)] * layers), "momentum")
    assert_close(sorted(run.kinds(0)), sorted(["all_gather", "reduce_scatter"] * layers), "what rank 0 launches, sorted")
    assert_close(run.sent_bytes(0), layers * 2 * (world - 1) * 3 * ITEM, "bytes that rank 0 sends")


@exercise("zero2_step", points=2)
@few
@given(random=generators(), world=st.integers(2, 3), layers=st.integers(6, 9))
def test_no_more_than_the_gradients_on_their_way_are_held(student, random, world, layers):
    """What is sent belongs to the message: keep the handle in the hook and no name for the gradient."""
    size = 8 * world
    run, = zero2_steps(student.zero2_step, Problem(random, world, [(size,)] * layers), "sgd")
    held = most(run, run.items_peak) / (size * ITEM)
    assert_that(held <= 3, f"At one moment {held:g} of {layers} layers' gradients are held in full; two are needed.")


@probe("zero2_step")
def layers_after_two_steps(student):
    def of(world, shapes, rule):
        problem = Problem(torch.Generator().manual_seed(2), world, shapes)
        runs = zero2_steps(student.zero2_step, problem, rule, steps=2)
        return [[value[0] for run in runs for value in run.values], [nbytes(value[1]) for value in runs[-1].values],
                sorted(runs[0].kinds(0)), overlapped(runs[0], 0, "reduce_scatter"), launched_at(runs[0], 0, "reduce_scatter"),
                runs[0].items_peak(0)]
    return [answered(lambda: of(*case)) for case in ((2, [(4,), (6,), (2,)], "adamw"), (3, [(3,), (6,)], "momentum"))]


@probe("zero2_step")
def layers_that_do_not_divide(student):
    problem = Problem(torch.Generator().manual_seed(2), 3, [(4,), (5,)])
    return answered(lambda: [value[0] for value in zero2_steps(student.zero2_step, problem, "sgd")[0].values])


# ---------------------------------------------------------------- prefetch

class Stack:
    """Layers cut into shards, and what using one gives: its numbers' sum times a factor that only the rank knows."""

    def __init__(self, random: torch.Generator, world: int, sizes: list[int], seconds: float = 0.0):
        self.world, self.sizes, self.seconds = world, sizes, seconds
        self.layers = [normal(size, random) for size in sizes]

    def args(self, order: list[int]) -> list[tuple]:
        def use(rank: int) -> Callable:
            def use(layer, weight):
                self.check(layer, weight)
                return (rank + 1) * weight.sum()
            return taking(self.seconds, use)
        return [([shard_of(layer, self.world, rank) for layer in self.layers], self.sizes, order, use(rank)) for rank in range(self.world)]

    def check(self, layer: int, weight: Tensor) -> None:
        assert_that(type(layer) is int and 0 <= layer < len(self.layers), "The layer's number comes first, then its weight.")
        assert_close(weight, self.layers[layer], f"the weight with which layer {layer} is used", rtol=0, atol=0)

    def results(self, rank: int, order: list[int]) -> list[Tensor]:
        return [(rank + 1) * self.layers[layer].sum() for layer in order]


def there_and_back(layers: int) -> list[int]:
    return [*range(layers), *reversed(range(layers))]


@exercise("prefetch", points=4)
@some
@example(random=torch.Generator(), world=3, sizes=[3, 4], back=True)
@given(random=generators(), world=worlds, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), back=st.booleans())
def test_each_layer_is_used_in_order_and_whole(student, random, world, sizes, back):
    """Call use(layer, weight) with the gathered weight, its padding cut off, and collect what it returns in a list."""
    order, stack = there_and_back(len(sizes)) if back else list(range(len(sizes))), Stack(random, world, sizes)
    run = student.prefetch.on_ranks(stack.args(order))
    for rank in range(world):
        assert_close([e.ticket for e in run.events(rank, "compute")], order, f"the layers that rank {rank} uses, in order")
        assert_close(run.values[rank], stack.results(rank, order), f"what rank {rank} returns", rtol=1e-9, atol=1e-12)


@exercise("prefetch", points=5)
@few
@given(random=generators(), world=st.integers(2, 3), layers=st.integers(3, 6))
def test_the_next_layer_travels_while_this_one_is_used(student, random, world, layers):
    """Launch the next all_gather before you call use, and wait for it after."""
    run = student.prefetch.on_ranks(Stack(random, world, [4] * layers).args(list(range(layers))))
    for rank in range(world):
        idle = [layer for layer, flying in enumerate(run.in_flight(rank)[:-1]) if not flying]
        assert_that(not idle, f"While rank {rank} uses the layers {idle}, no message is in flight.")


@exercise("prefetch", points=4)
@few
@given(random=generators(), world=st.integers(2, 3), layers=st.integers(6, 9))
def test_no_more_than_the_layer_in_use_and_the_next_are_held(student, random, world, layers):
    """Gather one layer ahead, not all of them and none after the last, and keep no list of weights: a layer that was used
    must be let go."""
    size = 8 * world
    run = student.prefetch.on_ranks(Stack(random, world, [size] * layers).args(list(range(layers))))
    assert_close(len(run.kinds(0)), layers, f"the gathers that rank 0 launches for {layers} uses")
    held = most(run, run.held_peak) / (size * ITEM)
    assert_that(held <= 3, f"At one moment {held:g} of {layers} layers are held in full; two are needed.")


@probe("prefetch")
def a_stack_there_and_back(student):
    def of(world, sizes, order):
        stack = Stack(torch.Generator().manual_seed(3), world, sizes)
        run = student.prefetch.on_ranks(stack.args(order))
        return [[e.ticket for e in run.events(0, "compute")], list(run.values), run.in_flight(0),
                run.held_peak(0) / ITEM, len(run.kinds(0))]
    return [answered(lambda: of(*case)) for case in ((2, [4, 4, 4, 4, 4], list(range(5))), (2, [6, 2, 4], there_and_back(3)))]


@probe("prefetch")
def a_stack_that_does_not_divide(student):
    stack = Stack(torch.Generator().manual_seed(3), 3, [4, 5])
    return answered(lambda: list(student.prefetch.on_ranks(stack.args([0, 1, 0])).values))


# ---------------------------------------------------------------- zero3_forward_backward

class Network:
    """y = x * w, layer after layer, and half the squared sum at the end; each rank has an input of its own."""

    def __init__(self, random: torch.Generator, world: int, layers: int, width: int):
        self.world, self.layers, self.width = world, layers, width
        self.weights = [normal(width, random) for _ in range(layers)]
        self.inputs = [normal(width, random) for _ in range(world)]

    def forward(self, i, weight, x):
        self.check(i, weight)
        y = x * weight
        return y.square().sum() / 2 if i == self.layers - 1 else y

    def backward(self, i, weight, x, grad):
        self.check(i, weight)
        assert_that((grad is None) == (i == self.layers - 1), f"grad_y of layer {i} is " + ("None" if grad is None else "not None") + ".")
        grad_y = x * weight if grad is None else grad
        return grad_y * weight, grad_y * x

    def check(self, i, weight) -> None:
        assert_that(type(i) is int and 0 <= i < self.layers, "The layer's number comes first, then its weight.")
        assert_close(weight, self.weights[i], f"the weight with which layer {i} is used", rtol=0, atol=0)

    def args(self) -> list[tuple]:
        def timed(function):
            return taking(0.0, function)
        return [([shard_of(w, self.world, rank) for w in self.weights], [self.width] * self.layers, self.inputs[rank],
                 timed(self.forward), timed(self.backward)) for rank in range(self.world)]

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """Loss of each rank, mean gradient of each layer, by autograd."""
        weights = [w.clone().requires_grad_() for w in self.weights]
        losses = []
        for x in self.inputs:
            for w in weights:
                x = x * w
            losses.append(x.square().sum() / 2)
        (sum(losses) / self.world).backward()
        return [loss.detach() for loss in losses], [w.grad for w in weights]


@exercise("zero3_forward_backward", points=0)
@some
@example(random=torch.Generator(), world=3, layers=3, width=4)
@given(random=generators(), world=worlds, layers=st.integers(1, 4), width=st.integers(1, 7))
def test_loss_and_shards_of_the_mean_gradient_are_those_of_one_process(student, random, world, layers, width):
    """Keep each layer's input for backward, hand grad_x down as the next grad_y, reduce-scatter grad_weight, divide by world."""
    network = Network(random, world, layers, width)
    losses, grads = network.expected()
    for rank, value in enumerate(student.zero3_forward_backward.on_ranks(network.args()).values):
        loss, shards = two_things(value)
        assert_close(loss, losses[rank], f"loss of rank {rank}", rtol=1e-9, atol=1e-12)
        expected = [shard_of(g, world, rank) for g in grads]
        assert_close(shards, expected, f"gradient shards of rank {rank} of {world}", rtol=1e-8, atol=1e-10)


@exercise("zero3_forward_backward", points=0)
@few
@given(random=generators(), world=st.integers(2, 3), layers=st.integers(6, 8))
def test_layers_are_gathered_for_each_use_and_let_go_after_it(student, random, world, layers):
    """Gather inside both loops and keep no list of weights. A layer that is gathered once and kept is held by everybody."""
    network = Network(random, world, layers, 4 * world)
    run = student.zero3_forward_backward.on_ranks(network.args())
    held = most(run, run.held_peak) / (4 * world * ITEM)
    assert_that(held <= 3, f"At one moment {held:g} of {layers} layers are held in full; one or two are needed.")
    kept = most(run, run.items_peak) / (4 * world * ITEM)
    assert_that(kept <= 5, f"At one moment {kept:g} whole gradients are held, of x and of the weights; of {layers} layers four are needed.")
    gathers = run.kinds(0).count("all_gather")
    assert_that(2 * layers - 1 <= gathers <= 2 * layers, f"{gathers} gathers for {layers} layers, forward and backward; {2 * layers} are wanted.")
    assert_close(run.kinds(0).count("reduce_scatter"), layers, "reduce_scatters, one for each layer")
    assert_close(len(run.kinds(0)), gathers + layers, "operations in all")


@probe("zero3_forward_backward")
def a_network_of_three_layers(student):
    def of():
        run = student.zero3_forward_backward.on_ranks(Network(torch.Generator().manual_seed(4), 2, 4, 4).args())
        return [list(run.values), run.held_peak(0) / ITEM, run.items_peak(0) / ITEM, sorted(run.kinds(0)), launched_at(run, 0, "all_gather")]
    return answered(of)


@probe("zero3_forward_backward")
def a_network_that_does_not_divide(student):
    return answered(lambda: list(student.zero3_forward_backward.on_ranks(Network(torch.Generator().manual_seed(4), 3, 2, 4).args()).values))


# ---------------------------------------------------------------- work

# Each number stands for a thousand: messages of 4 kB on a link a thousand times slower than a real one's 4 GB a second.
LAYERS, WIDTH = 12, 1 << 10
LINK = Cluster(latency=5e-6, bandwidth=4e6)


def stack_seconds(function) -> float:
    """Simulated time of one pass there and back through 12 layers, on 8 ranks; a use takes as long as a gather."""
    use = taking(LINK.duration("all_gather", 4 * WIDTH, 8), lambda layer, weight: None)
    order = there_and_back(LAYERS)
    return function.on_ranks([([torch.ones(WIDTH // 8)] * LAYERS, [WIDTH] * LAYERS, order, use)], LINK, alike=8).seconds


@work("prefetch", points=8, ratio=1.4, cost=stack_seconds,
      limit=lambda: ((2 * LAYERS + 1) * LINK.duration("all_gather", 4 * WIDTH, 8), "the first gather, then the uses without a pause"))
def serial_gathers(comm, shards, sizes, order, use):
    """Simulated time of 24 uses of 12 layers on 8 ranks, against gathering each layer when it is needed."""
    results = []
    for layer in order:
        weight = comm.all_gather(shards[layer]).wait()[:sizes[layer]]
        results.append(use(layer, weight))
    return results


def backward_seconds(function) -> float:
    """Simulated time of a step of 12 parameters in 6 buckets, on 8 ranks; backward takes as long as the messages."""
    params = [torch.ones(WIDTH)] * LAYERS
    buckets = [[i, i - 1] for i in range(LAYERS - 1, 0, -2)]
    seconds = LINK.duration("all_reduce", 2 * 4 * WIDTH, 8) / 2
    backward = taking(lambda args, item: seconds * (item is not None), stream(lambda params: ((i, params[i]) for i in reversed(range(LAYERS)))))
    return function.on_ranks([(params, backward, buckets, {"step": 1})], LINK, alike=8).seconds


@work("ddp_step", points=7, ratio=1.4, cost=backward_seconds,
      limit=lambda: (7 * LINK.duration("all_reduce", 2 * 4 * WIDTH, 8), "backward without a pause, then the last bucket"))
def reduce_at_the_end(comm, params, backward, buckets, state, lr=0.1):
    """Simulated time of a step with 6 buckets on 8 ranks, against sending all of them when backward has ended."""
    grads = {}
    backward(params, lambda i, grad: grads.update({i: grad}))
    handles = [comm.all_reduce(torch.cat([grads[i] for i in bucket])) for bucket in buckets]
    means = [handle.wait() / comm.world for handle in handles]
    parts = {i: part for bucket, mean in zip(buckets, means) for i, part in zip(bucket, mean.chunk(len(bucket)))}
    return [p - lr * parts[i] for i, p in enumerate(params)], {"step": 2}
