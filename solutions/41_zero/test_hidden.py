"""What only the grader has: other sizes, more ranks, and shortcuts that the visible tests may not see."""
from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from course.cluster import Cluster, nbytes
from course.spec import assert_close, assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
few, generators, worlds, normal, cut, total = (
    visible.few, visible.generators, visible.worlds, visible.normal, visible.cut, visible.total)
ITEM, SHAPES, STATES, Problem, Stack, there_and_back = (
    visible.ITEM, visible.SHAPES, visible.STATES, visible.Problem, visible.Stack, visible.there_and_back)
ddp_steps, assert_ddp_values = visible.ddp_steps, visible.assert_ddp_values
zero1_steps, assert_like_one_process = visible.zero1_steps, visible.assert_like_one_process
zero2_steps, assert_layers_like_one_process = visible.zero2_steps, visible.assert_layers_like_one_process


@exercise("shard_bounds", points=2)
@given(numel=st.integers(0, 10**9), world=st.integers(1, 64))
def test_bounds_are_right_for_large_models_too(student, numel, world):
    """Whole numbers only: numel / world as a float rounds wrongly when numel is large."""
    assert_close(student.shard_bounds(numel, world), cut(numel, world), "bounds")


@exercise("ring_reduce_scatter", points=2)
@few
@given(random=generators(), numel=st.integers(1, 9), world=worlds)
def test_a_reduce_scatter_keeps_dtype_and_empty_shards(student, random, numel, world):
    """float32 stays float32, and a rank whose shard is empty returns an empty tensor."""
    args = [(normal(numel, random).float(),) for _ in range(world)]
    run, whole = student.ring_reduce_scatter.on_ranks(args), total(args)
    for rank, (begin, end) in enumerate(cut(numel, world)):
        assert_close(run.values[rank], whole[begin:end], f"what rank {rank} returns", rtol=1e-5, atol=1e-5)


@exercise("ring_all_gather", points=2)
@few
@given(random=generators(), numel=st.integers(1, 9), world=worlds)
def test_a_gather_works_with_empty_shards_and_in_float32(student, random, numel, world):
    """A shard may be shorter than the others, or empty: shard_bounds(numel, world) says how long each is."""
    whole = normal(numel, random).float()
    run = student.ring_all_gather.on_ranks([(whole[a:b].clone(), numel) for a, b in cut(numel, world)])
    for value in run.values:
        assert_close(value, whole, "what a rank returns", rtol=0, atol=0)


@exercise("ddp_step", points=4)
@few
@given(random=generators(), world=st.integers(2, 3), data=st.data())
def test_buckets_go_out_in_one_order_whatever_is_ready_first(student, random, world, data):
    """A tied weight is ready late, and not at the same place on all ranks. A bucket that is complete must wait for those
    before it, or the ranks' messages do not match."""
    order = [data.draw(st.permutations(range(len(SHAPES)))) for _ in range(world)]
    unused = [data.draw(st.sets(st.integers(0, len(SHAPES) - 1), max_size=2)) for _ in range(world)]
    problem = Problem(random, world, SHAPES, order, unused)
    assert_ddp_values(problem, ddp_steps(student.ddp_step, problem, buckets=[[4], [3, 2], [1], [0]], steps=2, lr=0.2), 0.2)


@exercise("memory_per_rank", points=4)
@given(stage=st.integers(0, 3))
def test_the_papers_example_comes_out(student, stage):
    """7.5 billion parameters on 64 ranks: 120, 31.4, 16.6 and 1.9 GB."""
    found = student.memory_per_rank(7_500_000_000, 64, stage)
    assert_close(sorted(found), ["gradients", "optimizer", "parameters"], "names, sorted")
    assert_close(sum(found.values()) / 1e9, [120.0, 31.40625, 16.640625, 1.875][stage], f"GB in stage {stage}", rtol=1e-9)


@exercise("zero1_step", points=3)
@settings(max_examples=1)
@given(random=generators(), world=st.integers(2, 4), numel=st.integers(2, 30))
def test_ten_sharded_steps_of_adamw_follow_one_process(student, random, world, numel):
    """Return the state that update returned, unchanged; count nothing twice."""
    start, grads = normal(numel, random), [[normal(numel, random) for _ in range(world)] for _ in range(10)]
    runs = zero1_steps(student.zero1_step, start, grads, "adamw")
    assert_like_one_process("adamw", start, grads, runs)
    for run in runs:
        for _, state in run.values:
            limit = 2 * -(-numel // world) * ITEM
            assert_that(nbytes(state) <= limit + 64, f"{nbytes(state)} bytes of state are kept; a shard needs {limit}.")


@exercise("zero2_step", points=3)
@few
@given(random=generators(), world=st.integers(2, 3), rule=st.sampled_from(["momentum", "adamw"]))
def test_each_rank_keeps_the_state_of_its_shard_of_each_layer(student, random, world, rule):
    """update must see your shard of the layer only, or the state is as long as the layer."""
    problem = Problem(random, world, [(12 * world,), (8 * world,), (8 * world,)])
    runs = zero2_steps(student.zero2_step, problem, rule, steps=4)
    assert_layers_like_one_process(problem, rule, runs)
    for _, state in runs[-1].values:
        limit = STATES[rule] * 28 * ITEM
        assert_that(0 < nbytes(state) <= 1.25 * limit, f"{nbytes(state)} bytes of state are kept; the shards need {limit}.")


@exercise("prefetch", points=3)
@few
@given(random=generators(), world=st.integers(2, 3), layers=st.integers(5, 8))
def test_messages_hide_behind_uses_there_and_back(student, random, world, layers):
    """With uses as long as gathers, all but the first gather cost nothing: one in flight during each use, none too early."""
    link = Cluster(latency=0.0, bandwidth=1e6)
    seconds = link.duration("all_gather", 8 * world * ITEM, world)
    order = there_and_back(layers)
    stack = Stack(random, world, [8 * world] * layers, seconds)
    run = student.prefetch.on_ranks(stack.args(order), link)
    assert_that(run.seconds <= (len(order) + 1.5) * seconds, f"{run.seconds / seconds:.1f} times the time of one gather, for {len(order)} uses.")
    held = max(run.held_peak(rank) for rank in range(world)) / (8 * world * ITEM)
    assert_that(held <= 3, f"At one moment {held:g} of {layers} layers are held in full.")
