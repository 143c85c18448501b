# %% [markdown]
# # 41 · ZeRO

# %% tags=["setup"]
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from course import claims, cluster, data, models, plots, ranks
from course.check import check, setup, speed
from course.cluster import Cluster, stream, taking
from course.comm import Communicator

setup("41_zero")
State = dict[str, Tensor | int | float]

# %%
def shard_bounds(numel: int, world: int) -> list[tuple[int, int]]:
    """Where the shard of each rank begins and ends, one (begin, end) for each of `world` ranks, in order.

    Shards are ceil(numel / world) long; the last ones are shorter, or empty, where the numbers run out.
    """
    ### BEGIN SOLUTION
    size = -(-numel // world)
    return [(min(rank * size, numel), min((rank + 1) * size, numel)) for rank in range(world)]
    ### END SOLUTION

# %%
check(shard_bounds)

# %%
def ring_reduce_scatter(comm: Communicator, tensor: Float[Tensor, "numel"]) -> Float[Tensor, "shard"]:
    """This rank's shard of the sum over all ranks, from send and receive only, in world - 1 steps round a ring."""
    ### BEGIN SOLUTION
    parts = [tensor[begin:end] for begin, end in shard_bounds(len(tensor), comm.world)]
    right, left = (comm.rank + 1) % comm.world, (comm.rank - 1) % comm.world
    for step in range(1, comm.world):
        out, into = (comm.rank - step) % comm.world, (comm.rank - step - 1) % comm.world
        sending = comm.send(parts[out], right)
        parts[into] = parts[into] + comm.recv(parts[into], left).wait()
        sending.wait()
    return parts[comm.rank]
    ### END SOLUTION

# %%
check(ring_reduce_scatter)

# %%
def ring_all_gather(comm: Communicator, shard: Float[Tensor, "shard"], numel: int) -> Float[Tensor, "numel"]:
    """All shards of a tensor of `numel` numbers, joined; each rank brings its own, cut by shard_bounds."""
    ### BEGIN SOLUTION
    parts = [shard.new_empty(end - begin) for begin, end in shard_bounds(numel, comm.world)]
    parts[comm.rank] = shard
    right, left = (comm.rank + 1) % comm.world, (comm.rank - 1) % comm.world
    for step in range(comm.world - 1):
        out, into = (comm.rank - step) % comm.world, (comm.rank - step - 1) % comm.world
        sending = comm.send(parts[out], right)
        parts[into] = comm.recv(parts[into], left).wait()
        sending.wait()
    return torch.cat(parts)
    ### END SOLUTION

# %%
check(ring_all_gather)

# %%
def ring_all_reduce(comm: Communicator, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over all ranks, on every rank; 2 * (world - 1) / world of the tensor's bytes are sent by each."""
    ### BEGIN SOLUTION
    shard = ring_reduce_scatter(comm, tensor.flatten())
    return ring_all_gather(comm, shard, tensor.numel()).view_as(tensor)
    ### END SOLUTION

# %%
check(ring_all_reduce)

# %%
def bucketize(sizes: list[int], limit: int) -> list[list[int]]:
    """Parameters' numbers in buckets, the last parameter first; a bucket is closed when the next would exceed `limit`.

    sizes: bytes of each gradient, in the order in which the forward pass uses the parameters. A gradient larger than
    `limit` has a bucket of its own.
    """
    ### BEGIN SOLUTION
    buckets, full = [], math.inf
    for i in reversed(range(len(sizes))):
        if full + sizes[i] > limit:
            buckets.append([])
            full = 0
        buckets[-1].append(i)
        full += sizes[i]
    return buckets
    ### END SOLUTION

# %%
check(bucketize)

# %%
def ddp_step(comm: Communicator, params: list[Tensor], backward: Callable, buckets: list[list[int]], state: State,
             lr: float = 0.1) -> tuple[list[Tensor], State]:
    """One step of SGD with the gradients' mean over all ranks (Li et al. 2020, PyTorch Distributed).

    backward(params, hook) runs the backward pass and calls hook(i, grad) as soon as the gradient of params[i] is ready:
    once a parameter, never for one that this rank has not used. Launch one all_reduce a bucket, in the buckets' order.
    state: empty before the first step, when everybody takes rank 0's parameters; return one that is not empty.
    """
    ### BEGIN SOLUTION
    if not state:
        params = [comm.broadcast(p).wait() for p in params]
    grads, handles = {}, []

    def launch(also_incomplete=False):
        while len(handles) < len(buckets) and (also_incomplete or all(i in grads for i in buckets[len(handles)])):
            bucket = buckets[len(handles)]
            handles.append(comm.all_reduce(torch.cat([grads.get(i, torch.zeros_like(params[i])).flatten() for i in bucket])))

    def hook(i, grad):
        grads[i] = grad
        launch()

    backward(params, hook)
    launch(also_incomplete=True)
    new = list(params)
    for bucket, handle in zip(buckets, handles):
        mean = handle.wait() / comm.world
        for i, part in zip(bucket, mean.split([params[i].numel() for i in bucket])):
            new[i] = params[i] - lr * part.view_as(params[i])
    return new, {"step": state.get("step", 0) + 1}
    ### END SOLUTION

# %%
check(ddp_step)

# %%
def memory_per_rank(params: int, world: int, stage: int) -> dict[str, float]:
    """Bytes a rank holds: {"parameters": ..., "gradients": ..., "optimizer": ...} (Rajbhandari et al. 2020, figure 1).

    Mixed-precision Adam: 16-bit parameters and gradients; the optimiser's 32-bit master copy, m and v. `stage` 0 is plain
    data parallelism, 1 shards the optimiser, 2 the gradients too, 3 the parameters too. Padding is left out of account.
    """
    ### BEGIN SOLUTION
    share = [1 if stage < first else 1 / world for first in (3, 2, 1)]
    return {name: size * params * part for name, size, part in zip(("parameters", "gradients", "optimizer"), (2, 2, 12), share)}
    ### END SOLUTION

# %%
check(memory_per_rank)

# %%
def update(rule: str, param: Tensor, grad: Tensor, state: State, lr: float) -> tuple[Tensor, State]:
    """One step of "sgd", "momentum" or "adamw", number by number: it may be given any part of a model."""
    if rule == "sgd":
        return param - lr * grad, {}
    if rule == "momentum":
        v = 0.9 * state.get("v", torch.zeros_like(param)) + grad
        return param - lr * v, {"v": v}
    t = state.get("t", 0) + 1
    m = 0.9 * state.get("m", torch.zeros_like(param)) + 0.1 * grad
    v = 0.999 * state.get("v", torch.zeros_like(param)) + 0.001 * grad**2
    step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return param - lr * (step + 0.01 * param), {"m": m, "v": v, "t": t}

def padded(tensor: Float[Tensor, "numel"], world: int) -> Float[Tensor, "padded"]:
    """With as many zeros behind it as make its length a multiple of `world`."""
    return F.pad(tensor, (0, -len(tensor) % world))

# %%
def zero1_step(comm: Communicator, param: Float[Tensor, "numel"], grad: Float[Tensor, "numel"], state: State,
               rule: str = "adamw", lr: float = 1e-3) -> tuple[Tensor, State]:
    """One step of update(rule, ...) with the mean gradient, the optimiser's state sharded (ZeRO stage 1).

    param: the whole model in one vector, the same on all ranks; grad: this rank's own gradient; state: what this rank
    keeps for its shard, empty before the first step. Returns the whole new parameters and the new state.
    """
    ### BEGIN SOLUTION
    mean = comm.reduce_scatter(padded(grad, comm.world)).wait() / comm.world
    own = padded(param, comm.world).chunk(comm.world)[comm.rank]
    own, state = update(rule, own, mean, state, lr)
    return comm.all_gather(own).wait()[:len(param)], state
    ### END SOLUTION

# %%
check(zero1_step)

# %%
def zero2_step(comm: Communicator, params: list[Float[Tensor, "numel"]], backward: Callable, state: dict[int, State],
               rule: str = "adamw", lr: float = 1e-3) -> tuple[list[Tensor], dict[int, State]]:
    """As zero1_step, with gradients sharded too (ZeRO stage 2): one vector a layer, and every rank has a shard of each.

    backward(params, hook) calls hook(i, grad) as soon as this rank's gradient of layer i is ready, in the same order on
    all ranks; send it on at once and keep only what comes back. state: one dict for each layer's shard, by its number.
    """
    ### BEGIN SOLUTION
    handles, new, new_state = {}, list(params), {}

    def hook(i, grad):
        handles[i] = comm.reduce_scatter(padded(grad, comm.world))

    backward(params, hook)
    for i, handle in handles.items():
        own = padded(params[i], comm.world).chunk(comm.world)[comm.rank]
        own, new_state[i] = update(rule, own, handle.wait() / comm.world, state.get(i, {}), lr)
        new[i] = comm.all_gather(own).wait()[:len(params[i])]
    return new, new_state
    ### END SOLUTION

# %%
check(zero2_step)

# %%
def prefetch(comm: Communicator, shards: list[Float[Tensor, "shard"]], sizes: list[int], order: list[int],
             use: Callable) -> list:
    """Call use(layer, weight) for each layer in `order`, and return what it returns, one result for each.

    shards[layer]: this rank's shard of the layer's padded vector; weight: all of it, sizes[layer] long. While a layer is
    used, the next one's all_gather is in flight; what has been used is let go.
    """
    ### BEGIN SOLUTION
    results, handle = [], comm.all_gather(shards[order[0]])
    for layer, following in zip(order, [*order[1:], None]):
        weight = handle.wait()
        if following is not None:
            handle = comm.all_gather(shards[following])
        results.append(use(layer, weight[:sizes[layer]]))
    return results
    ### END SOLUTION

# %%
check(prefetch)

# %%
def zero3_forward_backward(comm: Communicator, shards: list[Float[Tensor, "shard"]], sizes: list[int], x: Tensor,
                           forward: Callable, backward: Callable) -> tuple[Tensor, list[Tensor]]:
    """Loss of this rank's x, and this rank's shard of each layer's mean gradient (ZeRO stage 3).

    forward(i, weight, x) -> y, the last layer's y being the loss; backward(i, weight, x, grad_y) -> (grad_x, grad_weight),
    where grad_y is None for the last layer. Gather a layer before each use, and let it go after it.
    """
    ### BEGIN SOLUTION
    def whole(i):
        return comm.all_gather(shards[i]).wait()[:sizes[i]]

    inputs, grad, handles = [], None, {}
    for i in range(len(shards)):
        inputs.append(x)
        x = forward(i, whole(i), x)
    for i in reversed(range(len(shards))):
        grad, grad_weight = backward(i, whole(i), inputs[i], grad)
        handles[i] = comm.reduce_scatter(padded(grad_weight, comm.world))
    return x, [handles[i].wait() / comm.world for i in range(len(shards))]
    ### END SOLUTION

# %%
check(zero3_forward_backward)

# %%
speed(prefetch)

# %%
speed(ddp_step)
