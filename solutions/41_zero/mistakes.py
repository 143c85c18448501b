"""Known wrong answers of lab 41. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from course.spec import mistake


def bounds(numel, world):
    size = -(-numel // world)
    return [(min(r * size, numel), min((r + 1) * size, numel)) for r in range(world)]


def padded(tensor, world):
    return F.pad(tensor, (0, -len(tensor) % world))


def own_shard(comm, tensor):
    return padded(tensor, comm.world).chunk(comm.world)[comm.rank]


def update(rule, param, grad, state, lr):
    if rule == "sgd":
        return param - lr * grad, {}
    if rule == "momentum":
        v = 0.9 * state.get("v", 0) + grad
        return param - lr * v, {"v": v}
    t = state.get("t", 0) + 1
    m = 0.9 * state.get("m", 0) + 0.1 * grad
    v = 0.999 * state.get("v", 0) + 0.001 * grad**2
    return param - lr * ((m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + 0.01 * param), {"m": m, "v": v, "t": t}


def sides(comm):
    return (comm.rank + 1) % comm.world, (comm.rank - 1) % comm.world


# ---------------------------------------------------------------- shard_bounds

@mistake("shard_bounds", caught_by="test_shards_cover_everything_once_and_in_order")
def rounded_down(numel, world):
    """You round numel / world down, so that the numbers left over belong to nobody: 10 numbers on 4 ranks are
    4 shards of 2, and two numbers are never trained. Round up."""
    size = numel // world
    return [(r * size, (r + 1) * size) for r in range(world)]


@mistake("shard_bounds", caught_by="test_shards_are_of_one_size_until_the_numbers_run_out")
def rest_to_the_last(numel, world):
    """You round down and give the rest to the last rank: it holds more than all the others, and the least memory that
    a device must have is set by the one that holds most. Round up, and let the last ranks have less."""
    size = numel // world
    return [(r * size, numel if r == world - 1 else (r + 1) * size) for r in range(world)]


@mistake("shard_bounds", caught_by="test_shards_are_of_one_size_until_the_numbers_run_out")
def differing_by_one(numel, world):
    """You share the rest out, one number more for each of the first ranks. That is fair, but a collective wants equal
    shards, and these cannot be made equal by zeros at the very end only. Make all of them ceil(numel / world) long."""
    size, rest = divmod(numel, world)
    starts = [r * size + min(r, rest) for r in range(world + 1)]
    return list(zip(starts, starts[1:]))


@mistake("shard_bounds", caught_by="test_shards_cover_everything_once_and_in_order")
def beyond_the_end(numel, world):
    """Your last shards go beyond numel, where there are no numbers. Cut begin and end off there: min(..., numel)."""
    size = -(-numel // world)
    return [(r * size, (r + 1) * size) for r in range(world)]


@mistake("shard_bounds", caught_by="test_shards_cover_everything_once_and_in_order")
def begin_and_length(numel, world):
    """You give begin and length. Give begin and end, so that tensor[begin:end] is the shard."""
    return [(begin, end - begin) for begin, end in bounds(numel, world)]


@mistake("shard_bounds", caught_by="test_shards_cover_everything_once_and_in_order")
def last_one_included(numel, world):
    """Your ends are the last numbers of the shards. As everywhere in Python, the end is the first that does not belong."""
    return [(begin, max(begin, end - 1)) for begin, end in bounds(numel, world)]


# ---------------------------------------------------------------- ring_reduce_scatter

@mistake("ring_reduce_scatter", caught_by="test_no_rank_sends_more_than_its_share_of_the_sum_needs")
def everybody_sends_everything(comm, tensor):
    """The sum is right, but every rank sends its whole tensor to every other: world times as many bytes as needed. Send
    single parts, and add on the way."""
    others = [r for r in range(comm.world) if r != comm.rank]
    sending = [comm.send(tensor, r) for r in others]
    whole = tensor + sum(comm.recv(tensor, r).wait() for r in others)
    for handle in sending:
        handle.wait()
    begin, end = bounds(len(tensor), comm.world)[comm.rank]
    return whole[begin:end]


@mistake("ring_reduce_scatter", caught_by="test_partial_sums_go_round_a_ring")
def straight_to_the_owner(comm, tensor):
    """Each part goes straight to the rank that owns it: no byte too many, but every rank talks to every other, and on
    most machines those messages would share the same few wires. Let partial sums travel from neighbour to neighbour."""
    parts = [tensor[a:b] for a, b in bounds(len(tensor), comm.world)]
    others = [r for r in range(comm.world) if r != comm.rank]
    sending = [comm.send(parts[r], r) for r in others]
    mine = parts[comm.rank] + sum(comm.recv(parts[comm.rank], r).wait() for r in others)
    for handle in sending:
        handle.wait()
    return mine


def _scatter(comm, tensor, add=True, steps=None, start=1, first_wait=False, forget=False):
    parts = [tensor[a:b] for a, b in bounds(len(tensor), comm.world)]
    right, left = sides(comm)
    for step in range(start, start + (comm.world - 1 if steps is None else steps)):
        out, into = (comm.rank - step) % comm.world, (comm.rank - step - 1) % comm.world
        sending = comm.send(parts[out], right)
        if first_wait:
            sending.wait()
        got = comm.recv(parts[into], left).wait()
        parts[into] = parts[into] + got if add else got
        if not first_wait and not forget:
            sending.wait()
    return parts


@mistake("ring_reduce_scatter", caught_by="test_each_rank_ends_with_its_shard_of_the_sum")
def received_but_not_added(comm, tensor):
    """What comes in replaces your part instead of being added to it: in the end each rank has one other rank's numbers.
    Add your own part before you pass it on."""
    return _scatter(comm, tensor, add=False)[comm.rank]


@mistake("ring_reduce_scatter", caught_by="test_each_rank_ends_with_its_shard_of_the_sum")
def mean_and_not_sum(comm, tensor):
    """You divide by the number of ranks. A reduce-scatter gives the sum; whoever wants the mean divides it later."""
    return _scatter(comm, tensor)[comm.rank] / comm.world


@mistake("ring_reduce_scatter", caught_by="test_each_rank_ends_with_its_shard_of_the_sum")
def one_step_too_few(comm, tensor):
    """A partial sum has to meet all ranks: world - 1 steps. You stop one step earlier, and one rank's numbers are missing."""
    return _scatter(comm, tensor, steps=max(0, comm.world - 2))[comm.rank]


@mistake("ring_reduce_scatter", caught_by="test_each_rank_ends_with_its_shard_of_the_sum")
def finished_part_of_the_neighbour(comm, tensor):
    """You begin by sending your own part, so that after world - 1 steps rank r holds the finished part r + 1. Begin with
    part r - 1: then the one that is finished at your place is your own."""
    return _scatter(comm, tensor, start=0)[(comm.rank + 1) % comm.world]


@mistake("ring_reduce_scatter", caught_by="test_each_rank_ends_with_its_shard_of_the_sum")
def waits_until_sent_before_receiving(comm, tensor):
    """Every rank waits until its message has been received, and only then begins to receive: all wait for each other,
    for ever. Launch the send, then receive, and wait for the send last."""
    return _scatter(comm, tensor, first_wait=True)[comm.rank]


@mistake("ring_reduce_scatter", caught_by="test_partial_sums_go_round_a_ring")
def sends_forgotten(comm, tensor):
    """You launch sends and never wait for them. A send that nobody waits for may never be finished, and then the neighbour
    waits for ever. Keep the handle, receive, and then wait for it."""
    return _scatter(comm, tensor, forget=True)[comm.rank]


@mistake("ring_reduce_scatter", caught_by="test_no_rank_sends_more_than_its_share_of_the_sum_needs")
def by_all_reduce(comm, tensor):
    """You call all_reduce, which sends twice as much, and build the lesson on its own result. Use send and recv only."""
    begin, end = bounds(len(tensor), comm.world)[comm.rank]
    return comm.all_reduce(tensor).wait()[begin:end]


# ---------------------------------------------------------------- ring_all_gather

def _gather(comm, shard, numel, steps=None, own_again=False, first_wait=False, forget=False):
    parts = [shard.new_zeros(b - a) for a, b in bounds(numel, comm.world)]
    parts[comm.rank] = shard
    right, left = sides(comm)
    for step in range(comm.world - 1 if steps is None else steps):
        out, into = (comm.rank - step) % comm.world, (comm.rank - step - 1) % comm.world
        sending = comm.send(parts[out], right)
        if first_wait:
            sending.wait()
        parts[into] = comm.recv(parts[into], left).wait()
        if not first_wait and not forget:
            sending.wait()
    return parts


@mistake("ring_all_gather", caught_by="test_each_rank_passes_on_one_shard_a_step_to_one_neighbour")
def gathers_sends_forgotten(comm, shard, numel):
    """You launch sends and never wait for them. A send that nobody waits for may never be finished, and then the neighbour
    waits for ever. Keep the handle, receive, and then wait for it."""
    return torch.cat(_gather(comm, shard, numel, forget=True))


@mistake("ring_all_gather", caught_by="test_each_rank_passes_on_one_shard_a_step_to_one_neighbour")
def own_shard_to_everybody(comm, shard, numel):
    """Your shard goes from you to every other rank. The bytes are as many, but not the wires: let each rank pass on to
    its neighbour what has just come in."""
    parts = [shard.new_zeros(b - a) for a, b in bounds(numel, comm.world)]
    others = [r for r in range(comm.world) if r != comm.rank]
    sending = [comm.send(shard, r) for r in others]
    for r in others:
        parts[r] = comm.recv(parts[r], r).wait()
    for handle in sending:
        handle.wait()
    parts[comm.rank] = shard
    return torch.cat(parts)


@mistake("ring_all_gather", caught_by="test_every_rank_ends_with_all_shards_in_order")
def joined_from_the_own_one_on(comm, shard, numel):
    """You join the shards beginning with your own, so that each rank has another order. Join them by their owners'
    numbers: 0, 1, 2, ..."""
    parts = _gather(comm, shard, numel)
    return torch.cat(parts[comm.rank:] + parts[:comm.rank])


@mistake("ring_all_gather", caught_by="test_every_rank_ends_with_all_shards_in_order")
def gather_one_step_too_short(comm, shard, numel):
    """One shard is missing: there are world - 1 others, and one arrives in each step."""
    return torch.cat(_gather(comm, shard, numel, steps=max(0, comm.world - 2)))


@mistake("ring_all_gather", caught_by="test_every_rank_ends_with_all_shards_in_order")
def gather_waits_until_sent(comm, shard, numel):
    """Every rank waits until its message has been received before it receives one: nobody ever does. Launch the send,
    receive, and wait for the send last."""
    return torch.cat(_gather(comm, shard, numel, first_wait=True))


@mistake("ring_all_gather", caught_by="test_every_rank_ends_with_all_shards_in_order")
def stored_one_place_off(comm, shard, numel):
    """You store what comes in as if your right neighbour had owned it. In step s = 0, 1, ... the shard of rank r - s - 1
    comes in."""
    parts = _gather(comm, shard, numel)
    own = parts.pop(comm.rank)
    parts.reverse()
    parts.insert(comm.rank, own)
    return torch.cat(parts)


@mistake("ring_all_gather", caught_by="test_each_rank_passes_on_one_shard_a_step_to_one_neighbour")
def by_the_built_in_gather(comm, shard, numel):
    """You call the communicator's own all_gather. Here it is to be built, from send and recv."""
    size = -(-numel // comm.world)
    parts = comm.all_gather(F.pad(shard, (0, size - len(shard)))).wait()
    return parts[:numel]


# ---------------------------------------------------------------- ring_all_reduce

def _all_reduce(comm, tensor):
    flat = tensor.flatten()
    return torch.cat(_gather(comm, _scatter(comm, flat)[comm.rank], len(flat)))


@mistake("ring_all_reduce", caught_by="test_every_rank_ends_with_the_sum_in_the_shape_of_its_tensor")
def flat_result(comm, tensor):
    """The numbers are right, but they come back in one row. Give them the shape of the tensor that came in."""
    return _all_reduce(comm, tensor)


@mistake("ring_all_reduce", caught_by="test_every_rank_ends_with_the_sum_in_the_shape_of_its_tensor")
def mean_over_the_ranks(comm, tensor):
    """You divide by the number of ranks. An all-reduce gives the sum; whoever wants the mean divides it later."""
    return _all_reduce(comm, tensor).view_as(tensor) / comm.world


@mistake("ring_all_reduce", caught_by="test_each_rank_sends_twice_its_share")
def whole_tensors_round_the_ring(comm, tensor):
    """Whole tensors go round the ring: world - 1 times the tensor's bytes, where 2 (world - 1) / world are enough. Scatter
    first; then gather."""
    right, left = sides(comm)
    passing, whole = tensor, tensor
    for _ in range(comm.world - 1):
        sending = comm.send(passing, right)
        passing = comm.recv(passing, left).wait()
        sending.wait()
        whole = whole + passing
    return whole


@mistake("ring_all_reduce", caught_by="test_every_rank_ends_with_the_sum_in_the_shape_of_its_tensor")
def scattered_only(comm, tensor):
    """Each rank has the sum at its own shard only, and its own numbers elsewhere: the all-gather is missing."""
    return torch.cat(_scatter(comm, tensor.flatten())).view_as(tensor)


@mistake("ring_all_reduce", caught_by="test_each_rank_sends_twice_its_share")
def by_the_built_in_all_reduce(comm, tensor):
    """You call the communicator's own all_reduce. Here it is to be built, from your two rings."""
    return comm.all_reduce(tensor).wait()


# ---------------------------------------------------------------- bucketize

def _buckets(sizes, limit, closed=lambda full, size, limit: full + size > limit, order=None):
    found, full = [[]], 0
    for i in order or reversed(range(len(sizes))):
        if found[-1] and closed(full, sizes[i], limit):
            found.append([])
            full = 0
        found[-1].append(i)
        full += sizes[i]
    return found


@mistake("bucketize", caught_by="test_buckets_hold_every_parameter_once_and_the_last_one_first")
def in_forward_order(sizes, limit):
    """Your first bucket holds the first parameters, whose gradients are ready last: nothing can be sent until backward
    has ended. Begin with the last parameter."""
    return _buckets(sizes, limit, order=list(range(len(sizes))))


@mistake("bucketize", caught_by="test_a_bucket_is_closed_when_the_next_gradient_would_not_fit")
def closed_when_full_already(sizes, limit):
    """You look at what is in the bucket, and not at what is to come: the last gradient put in makes it exceed the limit."""
    return _buckets(sizes, limit, lambda full, size, limit: full >= limit)


@mistake("bucketize", caught_by="test_a_bucket_is_closed_when_the_next_gradient_would_not_fit")
def never_quite_full(sizes, limit):
    """You close a bucket also when the next gradient would fill it exactly. Up to `limit` bytes are allowed: >, not >=."""
    return _buckets(sizes, limit, lambda full, size, limit: full + size >= limit)


@mistake("bucketize", caught_by="test_buckets_hold_every_parameter_once_and_the_last_one_first")
def last_bucket_lost(sizes, limit):
    """The bucket that is still open at the end is not returned: the gradients of the first layers are never sent."""
    return _buckets(sizes, limit)[:-1]


@mistake("bucketize", caught_by="test_a_bucket_is_closed_when_the_next_gradient_would_not_fit")
def one_bucket_each(sizes, limit):
    """Every gradient has a bucket of its own. Each message costs a latency, however small it is: fill the buckets."""
    return [[i] for i in reversed(range(len(sizes)))]


@mistake("bucketize", caught_by="test_a_bucket_is_closed_when_the_next_gradient_would_not_fit")
def everything_in_one_bucket(sizes, limit):
    """One bucket holds everything: it is complete only when backward has ended, so nothing can travel meanwhile."""
    return [list(reversed(range(len(sizes))))]


# ---------------------------------------------------------------- ddp_step

def _ddp(comm, params, backward, buckets, state, lr, *, broadcast=True, keep=True, overlap=True, wait=False, incomplete=True,
         in_order=True, divide=True, sign=-1, alone=False, ready=None, move_unused=True):
    ready = ready or (lambda grads, number, i: all(j in grads for j in buckets[number]))
    if broadcast and not state:
        params = [comm.broadcast(p).wait() for p in params]
    if alone:
        buckets = [[i] for bucket in buckets for i in bucket]
    grads, handles, done = {}, {}, {}

    def launch(last=None, all_of_them=False):
        for number, bucket in enumerate(buckets):
            if number not in handles and number not in done:
                if not (all_of_them and incomplete or ready(grads, number, last)):
                    if in_order:
                        return
                    continue
                flat = torch.cat([grads.get(i, torch.zeros_like(params[i])).flatten() for i in bucket])
                handles[number] = comm.all_reduce(flat)
                if wait:
                    done[number] = handles.pop(number).wait()

    def hook(i, grad):
        grads[i] = grad
        if overlap:
            launch(i)

    backward(params, hook)
    launch(all_of_them=True)
    new = list(params)
    for number, bucket in enumerate(buckets):
        if number in handles or number in done:
            mean = (done[number] if number in done else handles[number].wait()) / (comm.world if divide else 1)
            for i, part in zip(bucket, mean.split([params[i].numel() for i in bucket])):
                if move_unused or i in grads:
                    new[i] = params[i] + sign * lr * part.view_as(params[i])
    return new, {"step": state.get("step", 0) + 1} if keep else {}


@mistake("ddp_step", caught_by="test_all_ranks_take_the_step_of_the_whole_batch")
def sum_of_the_gradients(comm, params, backward, buckets, state, lr=0.1):
    """You use the sum of the gradients: with twice the ranks, steps are twice as long. Divide by comm.world."""
    return _ddp(comm, params, backward, buckets, state, lr, divide=False)


@mistake("ddp_step", caught_by="test_all_ranks_take_the_step_of_the_whole_batch")
def up_the_hill(comm, params, backward, buckets, state, lr=0.1):
    """You add lr times the gradient, and it points uphill. Subtract it."""
    return _ddp(comm, params, backward, buckets, state, lr, sign=1)


@mistake("ddp_step", caught_by="test_all_ranks_take_the_step_of_the_whole_batch")
def never_broadcast(comm, params, backward, buckets, state, lr=0.1):
    """Each rank starts from parameters of its own, and equal steps never make them equal. Before the first step, when the
    state is empty, everybody must take rank 0's."""
    return _ddp(comm, params, backward, buckets, state, lr, broadcast=False)


@mistake("ddp_step", caught_by="test_parameters_are_broadcast_once_and_not_at_every_step")
def broadcast_at_every_step(comm, params, backward, buckets, state, lr=0.1):
    """The parameters are broadcast at every step: either the state that you return is empty, or you do not look at the one
    that you were given. That doubles the messages for nothing. Return a state that is not empty, and broadcast only when
    you were given an empty one."""
    return _ddp(comm, params, backward, buckets, state, lr, keep=False)


@mistake("ddp_step", caught_by="test_buckets_travel_while_backward_still_runs")
def after_backward(comm, params, backward, buckets, state, lr=0.1):
    """The hook only collects; all messages leave after backward. The result is right, but the link idles while backward
    runs, and then you wait. Launch a bucket in the hook, as soon as its last gradient is there."""
    return _ddp(comm, params, backward, buckets, state, lr, overlap=False)


@mistake("ddp_step", caught_by="test_buckets_travel_while_backward_still_runs")
def waits_in_the_hook(comm, params, backward, buckets, state, lr=0.1):
    """The hook launches a bucket and waits for it at once: backward stands still until the message has arrived. Keep the
    handles, and wait for them after backward."""
    return _ddp(comm, params, backward, buckets, state, lr, wait=True)


@mistake("ddp_step", caught_by="test_an_unused_parameter_stops_nobody")
def incomplete_buckets_stay(comm, params, backward, buckets, state, lr=0.1):
    """A bucket with an unused parameter is never complete on this rank, and so is never sent, while others wait for it.
    After backward, send what is left, with zeros where a gradient is missing."""
    return _ddp(comm, params, backward, buckets, state, lr, incomplete=False)


@mistake("ddp_step", caught_by="test_an_unused_parameter_stops_nobody")
def unused_left_where_it_was(comm, params, backward, buckets, state, lr=0.1):
    """A parameter that this rank has not used stays where it was, while the others move it: from then on the ranks are not
    equal. Take the step with what came back, whether or not you had a gradient to give."""
    return _ddp(comm, params, backward, buckets, state, lr, move_unused=False)


@mistake("ddp_step", caught_by="test_all_ranks_take_the_step_of_the_whole_batch")
def launched_at_the_buckets_last_number(comm, params, backward, buckets, state, lr=0.1):
    """You launch a bucket when the gradient of its last parameter comes, but another one of the same bucket may come later:
    a tied weight does. Launch it when all of its gradients are there."""
    return _ddp(comm, params, backward, buckets, state, lr, ready=lambda grads, number, i: i == buckets[number][-1])


@mistake("ddp_step", caught_by="test_all_ranks_take_the_step_of_the_whole_batch")
def counted_and_not_looked_up(comm, params, backward, buckets, state, lr=0.1):
    """You launch a bucket when as many gradients have come as it and those before it hold; they need not be the same ones.
    Look whether each gradient of the bucket is there."""
    return _ddp(comm, params, backward, buckets, state, lr,
                ready=lambda grads, number, i: len(grads) >= sum(map(len, buckets[:number + 1])))


@mistake("ddp_step", caught_by="test_buckets_go_out_in_one_order_whatever_is_ready_first")
def whichever_is_complete(comm, params, backward, buckets, state, lr=0.1):
    """You send whichever bucket is complete first. That need not be the same one on all ranks, and then one rank's bucket
    is added to another bucket of another rank. Keep to the buckets' order: a complete one waits for those before it."""
    return _ddp(comm, params, backward, buckets, state, lr, in_order=False)


@mistake("ddp_step", caught_by="test_buckets_travel_while_backward_still_runs")
def one_message_a_parameter(comm, params, backward, buckets, state, lr=0.1):
    """Each gradient is sent by itself, and each message costs a latency. Join a bucket's gradients with torch.cat, and
    cut the result with split."""
    return _ddp(comm, params, backward, buckets, state, lr, alone=True)


# ---------------------------------------------------------------- memory_per_rank

def _memory(params, world, stages, sizes=(2.0, 2.0, 12.0)):
    return {name: size * params / (world if sharded else 1)
            for name, size, sharded in zip(("parameters", "gradients", "optimizer"), sizes, stages)}


@mistake("memory_per_rank", caught_by="test_stage_0_holds_sixteen_bytes_for_each_parameter")
def no_master_copy(params, world, stage):
    """You count m and v only. Mixed precision keeps a 32-bit copy of the parameters as well: 4 + 4 + 4 bytes."""
    return _memory(params, world, (stage >= 3, stage >= 2, stage >= 1), (2.0, 2.0, 8.0))


@mistake("memory_per_rank", caught_by="test_stage_0_holds_sixteen_bytes_for_each_parameter")
def everything_in_32_bits(params, world, stage):
    """You count 4 bytes for parameters and gradients. In mixed precision both have 16 bits; what has 32 is the optimiser's."""
    return _memory(params, world, (stage >= 3, stage >= 2, stage >= 1), (4.0, 4.0, 12.0))


@mistake("memory_per_rank", caught_by="test_each_stage_shards_one_thing_more")
def parameters_first(params, world, stage):
    """You shard the parameters first. The stages begin with the largest and the cheapest to shard: the optimiser's state,
    then gradients, then parameters."""
    return _memory(params, world, (stage >= 1, stage >= 2, stage >= 3))


@mistake("memory_per_rank", caught_by="test_each_stage_shards_one_thing_more")
def one_thing_a_stage(params, world, stage):
    """In your stage 2 only the gradients are sharded. Each stage keeps what the stages before it have done."""
    return _memory(params, world, (stage == 3, stage == 2, stage == 1))


@mistake("memory_per_rank", caught_by="test_each_stage_shards_one_thing_more")
def all_at_once(params, world, stage):
    """From stage 1 on you shard everything. Stage 1 shards the optimiser's state only, stage 2 also the gradients."""
    return _memory(params, world, (stage > 0, stage > 0, stage > 0))


@mistake("memory_per_rank", caught_by="test_stage_0_holds_sixteen_bytes_for_each_parameter")
def gigabytes(params, world, stage):
    """You return gigabytes. Return bytes; whoever draws them can divide."""
    return {name: size / 1e9 for name, size in _memory(params, world, (stage >= 3, stage >= 2, stage >= 1)).items()}


# ---------------------------------------------------------------- zero1_step

@mistake("zero1_step", caught_by="test_each_rank_keeps_the_state_of_its_shard_only")
def plain_optimiser(comm, param, grad, state, rule="adamw", lr=1e-3):
    """The step is right, but every rank updates everything and keeps the whole state: nothing is sharded, and no byte is
    saved. Update your own shard only, and gather the others' shards."""
    mean = comm.all_reduce(grad).wait() / comm.world
    return update(rule, param, mean, state, lr)


@mistake("zero1_step", caught_by="test_sharding_the_state_costs_no_more_messages_than_plain_data_parallelism")
def all_reduce_and_gather(comm, param, grad, state, rule="adamw", lr=1e-3):
    """The gradient is all-reduced, although you use one shard of it only: half as many bytes again as plain data
    parallelism sends. reduce_scatter gives just your shard, for half of the price."""
    mean = own_shard(comm, comm.all_reduce(grad).wait() / comm.world)
    own, state = update(rule, own_shard(comm, param), mean, state, lr)
    return comm.all_gather(own).wait()[:len(param)], state


def _zero1(comm, param, grad, state, rule, lr, divide=True, cut=True, remember=True, pad=True, own_only=False):
    whole = padded(grad, comm.world) if pad else grad
    mean = own_shard(comm, grad) if own_only else comm.reduce_scatter(whole).wait() / (comm.world if divide else 1)
    own, state = update(rule, own_shard(comm, param), mean, state if remember else {}, lr)
    gathered = comm.all_gather(own).wait()
    return gathered[:len(param)] if cut else gathered, state


@mistake("zero1_step", caught_by="test_sharded_steps_land_where_one_process_lands")
def shard_of_the_sum(comm, param, grad, state, rule="adamw", lr=1e-3):
    """reduce_scatter gives the sum over the ranks. Divide by comm.world: AdamW hardly notices, the others do."""
    return _zero1(comm, param, grad, state, rule, lr, divide=False)


@mistake("zero1_step", caught_by="test_sharded_steps_land_where_one_process_lands")
def padding_left_on(comm, param, grad, state, rule="adamw", lr=1e-3):
    """You return the padding too, so that the model grows by some zeros at each step. Cut the result to len(param)."""
    return _zero1(comm, param, grad, state, rule, lr, cut=False)


@mistake("zero1_step", caught_by="test_sharded_steps_land_where_one_process_lands")
def forgotten_state(comm, param, grad, state, rule="adamw", lr=1e-3):
    """You call update with an empty state, so that each step is the first one: no momentum, and t stays 1. Hand it the
    state that you were given."""
    return _zero1(comm, param, grad, state, rule, lr, remember=False)


@mistake("zero1_step", caught_by="test_sharded_steps_land_where_one_process_lands")
def rule_not_handed_on(comm, param, grad, state, rule="adamw", lr=1e-3):
    """You take AdamW's step whatever `rule` says. Hand it on: update(rule, ...)."""
    return _zero1(comm, param, grad, state, "adamw", lr)


@mistake("zero1_step", caught_by="test_sharded_steps_land_where_one_process_lands")
def never_padded(comm, param, grad, state, rule="adamw", lr=1e-3):
    """You reduce-scatter the gradient as it is, which works only when its length divides by the number of ranks. Pad it
    with zeros first: padded(grad, comm.world)."""
    return _zero1(comm, param, grad, state, rule, lr, pad=False)


@mistake("zero1_step", caught_by="test_sharded_steps_land_where_one_process_lands")
def own_gradient_only(comm, param, grad, state, rule="adamw", lr=1e-3):
    """Your shard is updated with your own gradient, and the other ranks' batches are never heard of. reduce_scatter brings
    the sum over all of them."""
    return _zero1(comm, param, grad, state, rule, lr, own_only=True)


# ---------------------------------------------------------------- zero2_step

def _zero2(comm, params, backward, state, rule, lr, *, late=False, wait=False, divide=True, cut=True, remember=True, all_reduce=False,
           whole=False, keep=False):
    grads, handles, new, new_state = {}, {}, list(params), {}

    def launch(i, grad):
        handle = comm.all_reduce(padded(grad, comm.world)) if all_reduce else comm.reduce_scatter(padded(grad, comm.world))
        handles[i] = handle.wait() if wait else handle
        if keep:
            grads[i] = grad

    backward(params, lambda i, grad: grads.update({i: grad}) if late else launch(i, grad))
    if late:
        for i, grad in grads.items():
            launch(i, grad)
    for i, handle in handles.items():
        mean = (handle if wait else handle.wait()) / (comm.world if divide else 1)
        own = own_shard(comm, params[i])
        if all_reduce:
            mean = mean.chunk(comm.world)[comm.rank]
        if whole:
            own, mean = padded(params[i], comm.world), comm.all_gather(mean).wait()
        own, new_state[i] = update(rule, own, mean, state.get(i, {}) if remember else {}, lr)
        new[i] = own if whole else comm.all_gather(own).wait()
        new[i] = new[i][:len(params[i])] if cut else new[i]
    return new, new_state


@mistake("zero2_step", caught_by="test_gradients_leave_while_backward_still_runs")
def collected_first(comm, params, backward, state, rule="adamw", lr=1e-3):
    """The hook keeps all gradients until backward has ended: for that moment each rank holds all of them, which stage 2 is
    there to avoid, and the link idles. Launch the reduce_scatter in the hook."""
    return _zero2(comm, params, backward, state, rule, lr, late=True)


@mistake("zero2_step", caught_by="test_gradients_leave_while_backward_still_runs")
def hook_that_waits(comm, params, backward, state, rule="adamw", lr=1e-3):
    """The hook waits for its reduce_scatter: backward stands still until the message has arrived. Keep the handle, and
    wait for it after backward."""
    return _zero2(comm, params, backward, state, rule, lr, wait=True)


@mistake("zero2_step", caught_by="test_no_more_than_the_gradients_on_their_way_are_held")
def gradients_kept(comm, params, backward, state, rule="adamw", lr=1e-3):
    """A list or dict of yours keeps each whole gradient after it was sent: at the end of backward every rank holds all of
    them, as in stage 1. Keep the handles only."""
    return _zero2(comm, params, backward, state, rule, lr, keep=True)


@mistake("zero2_step", caught_by="test_each_layer_takes_one_reduce_scatter_and_one_all_gather")
def all_reduced_layers(comm, params, backward, state, rule="adamw", lr=1e-3):
    """You all-reduce each gradient and cut your shard out: everybody has held the whole of it, and twice as much was sent.
    reduce_scatter brings your shard only."""
    return _zero2(comm, params, backward, state, rule, lr, all_reduce=True)


@mistake("zero2_step", caught_by="test_steps_with_sharded_gradients_land_where_one_process_lands")
def layers_of_the_sum(comm, params, backward, state, rule="adamw", lr=1e-3):
    """reduce_scatter gives the sum over the ranks. Divide by comm.world to have the mean."""
    return _zero2(comm, params, backward, state, rule, lr, divide=False)


@mistake("zero2_step", caught_by="test_steps_with_sharded_gradients_land_where_one_process_lands")
def layers_with_padding(comm, params, backward, state, rule="adamw", lr=1e-3):
    """The layers come back with their padding, longer than they were. Cut each to its own length."""
    return _zero2(comm, params, backward, state, rule, lr, cut=False)


@mistake("zero2_step", caught_by="test_steps_with_sharded_gradients_land_where_one_process_lands")
def layers_without_memory(comm, params, backward, state, rule="adamw", lr=1e-3):
    """update gets an empty state at every step. Hand it the layer's own: state.get(i, {})."""
    return _zero2(comm, params, backward, state, rule, lr, remember=False)


@mistake("zero2_step", caught_by="test_each_rank_keeps_the_state_of_its_shard_of_each_layer")
def gathered_gradients(comm, params, backward, state, rule="adamw", lr=1e-3):
    """You gather the mean gradients again and update whole layers: messages are as many, but every rank holds all
    gradients and the whole state. Update your shard of each layer, and gather parameters."""
    return _zero2(comm, params, backward, state, rule, lr, whole=True)


# ---------------------------------------------------------------- prefetch

@mistake("prefetch", caught_by="test_the_next_layer_travels_while_this_one_is_used")
def one_after_the_other(comm, shards, sizes, order, use):
    """Each layer is gathered when it is needed: the link idles while you compute, and you idle while it sends. Launch the
    next layer's all_gather before you use this one."""
    return [use(layer, comm.all_gather(shards[layer]).wait()[:sizes[layer]]) for layer in order]


@mistake("prefetch", caught_by="test_no_more_than_the_layer_in_use_and_the_next_are_held")
def everything_at_once(comm, shards, sizes, order, use):
    """All gathers are launched at the start: nothing is faster, but every rank has room for the whole model, and then
    nothing was saved by sharding it. Gather one layer ahead."""
    handles = [comm.all_gather(shards[layer]) for layer in order]
    return [use(layer, handle.wait()[:sizes[layer]]) for layer, handle in zip(order, handles)]


def _prefetch(comm, shards, sizes, order, use, keep=False, wait=False, cut=True):
    results, kept, handle = [], [], comm.all_gather(shards[order[0]])
    weight = handle.wait()
    for layer, following in zip(order, [*order[1:], None]):
        if following is not None:
            handle = comm.all_gather(shards[following])
            ahead = handle.wait() if wait else None
        results.append(use(layer, weight[:sizes[layer]] if cut else weight))
        if keep:
            kept.append(weight)
        if following is not None:
            weight = ahead if wait else handle.wait()
    return results


@mistake("prefetch", caught_by="test_no_more_than_the_layer_in_use_and_the_next_are_held")
def weights_kept(comm, shards, sizes, order, use):
    """You gather one layer ahead, but keep the layers that were used, in a list perhaps: in the end the whole model is
    held. Let the name of the old weight go; nothing else is needed to free it."""
    return _prefetch(comm, shards, sizes, order, use, keep=True)


@mistake("prefetch", caught_by="test_the_next_layer_travels_while_this_one_is_used")
def launched_and_waited_for(comm, shards, sizes, order, use):
    """You launch the next gather and wait for it on the same side of the use, both before it or both after it: then
    nothing travels meanwhile. Launch before the use, wait after it."""
    return _prefetch(comm, shards, sizes, order, use, wait=True)


@mistake("prefetch", caught_by="test_no_more_than_the_layer_in_use_and_the_next_are_held")
def one_gather_too_many(comm, shards, sizes, order, use):
    """After the last layer you gather the first one once more: nobody uses it, and it costs a message and the room for a
    layer. Launch nothing when there is no next one."""
    results, handle = [], comm.all_gather(shards[order[0]])
    for k, layer in enumerate(order):
        weight = handle.wait()
        handle = comm.all_gather(shards[order[(k + 1) % len(order)]])
        results.append(use(layer, weight[:sizes[layer]]))
    return results


@mistake("prefetch", caught_by="test_each_layer_is_used_in_order_and_whole")
def the_next_number_and_not_the_next_in_order(comm, shards, sizes, order, use):
    """You gather layer + 1 ahead. On the way back the next one is layer - 1: take order[k + 1]."""
    results, handle = [], comm.all_gather(shards[order[0]])
    for k, layer in enumerate(order):
        weight = handle.wait()
        if k + 1 < len(order):
            handle = comm.all_gather(shards[(layer + 1) % len(shards)])
        results.append(use(layer, weight[:sizes[layer]]))
    return results


@mistake("prefetch", caught_by="test_each_layer_is_used_in_order_and_whole")
def weights_with_padding(comm, shards, sizes, order, use):
    """The gathered vector still has its padding. Cut it to sizes[layer]."""
    return _prefetch(comm, shards, sizes, order, use, cut=False)


@mistake("prefetch", caught_by="test_each_layer_is_used_in_order_and_whole")
def last_layer_left_out(comm, shards, sizes, order, use):
    """The last layer of the order is gathered and never used: your loop ends where there is no next one to launch."""
    results, handle = [], comm.all_gather(shards[order[0]])
    for layer, following in zip(order, order[1:]):
        weight = handle.wait()
        handle = comm.all_gather(shards[following])
        results.append(use(layer, weight[:sizes[layer]]))
    return results


@mistake("prefetch", caught_by="test_each_layer_is_used_in_order_and_whole")
def results_not_collected(comm, shards, sizes, order, use):
    """You return only what the last use gave. Collect all results in a list, one for each entry of `order`."""
    return _prefetch(comm, shards, sizes, order, use)[-1]


# ---------------------------------------------------------------- zero3_forward_backward

def _zero3(comm, shards, sizes, x, forward, backward, *, keep=False, first=False, divide=True, all_reduce=False, outputs=False,
           backwards=False, own_only=False, list_gradients=False):
    kept = {i: comm.all_gather(s).wait() for i, s in enumerate(shards)} if first else {}

    def whole(i):
        weight = kept[i] if i in kept else comm.all_gather(shards[i]).wait()
        if keep:
            kept[i] = weight
        return weight[:sizes[i]]

    inputs, grad, grads, whole_gradients = [], None, {}, []
    for i in range(len(shards)):
        before = x
        x = forward(i, whole(i), x)
        inputs.append(x.expand_as(before) if outputs else before)
    for i in reversed(range(len(shards))):
        grad, grad_weight = backward(i, whole(i), inputs[i], grad)
        if list_gradients:
            whole_gradients.append(grad_weight)
        if own_only:
            grads[i] = own_shard(comm, grad_weight)
        elif all_reduce:
            grads[i] = comm.all_reduce(padded(grad_weight, comm.world)).wait().chunk(comm.world)[comm.rank] / comm.world
        else:
            grads[i] = comm.reduce_scatter(padded(grad_weight, comm.world)).wait() / (comm.world if divide else 1)
    return x, [grads[i] for i in (reversed(range(len(shards))) if backwards else range(len(shards)))]


@mistake("zero3_forward_backward", caught_by="test_layers_are_gathered_for_each_use_and_let_go_after_it")
def kept_for_backward(comm, shards, sizes, x, forward, backward):
    """You keep the layers that forward gathered for backward: after forward every rank holds the whole model. Let them go,
    and gather them again; that second round of messages is the price of stage 3."""
    return _zero3(comm, shards, sizes, x, forward, backward, keep=True)


@mistake("zero3_forward_backward", caught_by="test_layers_are_gathered_for_each_use_and_let_go_after_it")
def model_gathered_first(comm, shards, sizes, x, forward, backward):
    """The whole model is gathered before anything is computed: then it must fit on one device, which it does not. Gather
    each layer before its use."""
    return _zero3(comm, shards, sizes, x, forward, backward, first=True)


@mistake("zero3_forward_backward", caught_by="test_loss_and_shards_of_the_mean_gradient_are_those_of_one_process")
def sum_of_the_shards(comm, shards, sizes, x, forward, backward):
    """Your gradients are sums over the ranks. Divide by comm.world to have the mean."""
    return _zero3(comm, shards, sizes, x, forward, backward, divide=False)


@mistake("zero3_forward_backward", caught_by="test_layers_are_gathered_for_each_use_and_let_go_after_it")
def gradients_all_reduced(comm, shards, sizes, x, forward, backward):
    """You all-reduce grad_weight and cut your shard out of it. reduce_scatter brings the shard for half of the bytes."""
    return _zero3(comm, shards, sizes, x, forward, backward, all_reduce=True)


@mistake("zero3_forward_backward", caught_by="test_loss_and_shards_of_the_mean_gradient_are_those_of_one_process")
def outputs_for_inputs(comm, shards, sizes, x, forward, backward):
    """backward gets each layer's output as x. It wants what forward was given: store x before you overwrite it."""
    return _zero3(comm, shards, sizes, x, forward, backward, outputs=True)


@mistake("zero3_forward_backward", caught_by="test_loss_and_shards_of_the_mean_gradient_are_those_of_one_process")
def last_layer_first(comm, shards, sizes, x, forward, backward):
    """Your list of gradients is in the order of backward, last layer first. Return them in the order of the layers."""
    return _zero3(comm, shards, sizes, x, forward, backward, backwards=True)


@mistake("zero3_forward_backward", caught_by="test_loss_and_shards_of_the_mean_gradient_are_those_of_one_process")
def gradients_kept_at_home(comm, shards, sizes, x, forward, backward):
    """Each rank keeps the shard of its own gradient; the other ranks' batches are lost. reduce_scatter adds them up."""
    return _zero3(comm, shards, sizes, x, forward, backward, own_only=True)


@mistake("zero3_forward_backward", caught_by="test_layers_are_gathered_for_each_use_and_let_go_after_it")
def whole_gradients_listed(comm, shards, sizes, x, forward, backward):
    """You keep each layer's whole gradient after it was sent: at the end every rank holds as many numbers as the model has.
    Keep the handles only."""
    return _zero3(comm, shards, sizes, x, forward, backward, list_gradients=True)
