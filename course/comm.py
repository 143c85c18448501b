"""What a rank holds in its hand: a communicator. The same student's function runs on three kinds of it.

    recorded    course.cluster: ranks are threads; every message is counted and, with a Cluster, takes simulated time
    judged      each rank in a sandbox of its own; the judge routes, counts and orders every message
    real        course.ranks: processes with torch.distributed (gloo, or NCCL on GPUs), also under torchrun

Every operation is *launched* and returns a handle at once; `handle.wait()` gives the result. What is launched and not
yet waited for travels while the rank computes.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor


class Handle:
    """An operation on its way. `wait()` gives its result, once; the handle keeps nothing after that."""

    def __init__(self, finish: Callable[[], Tensor | None]):
        self._finish = finish

    def wait(self) -> Tensor | None:
        if self._finish is None:
            raise RuntimeError("wait() was called twice on one handle; keep the tensor that the first call returned")
        finish, self._finish = self._finish, None
        return finish()


class Communicator:
    """One rank's end of all connections: it is number `rank` of `world`, counted from zero.

    All ranks must launch the same collectives in the same order. Nothing that is passed in is changed.
    """

    def __init__(self, post: Callable, rank: int, world: int):
        self.rank, self.world = rank, world
        self._post = post               # the way to who routes: post("launch", ...) and post("wait", ...)
        self._freed: list[int] = []     # what this rank has let go of since its last post: tickets of results, and -n for
        self._given = 0                 # the n-th tensor that a function among its arguments gave it, of so many

    def send(self, tensor: Tensor, to: int) -> Handle:
        """Send a tensor to one rank. wait() returns None when that rank has received it, not earlier."""
        return self._launch("send", tensor, to)

    def recv(self, like: Tensor, source: int) -> Handle:
        """Receive what `source` sends; `like` is any tensor of the same shape and dtype."""
        return self._launch("recv", torch.empty_like(like, device="meta"), source)

    def broadcast(self, tensor: Tensor, root: int = 0) -> Handle:
        """Everybody gets root's tensor; the others pass one of the same shape."""
        return self._launch("broadcast", tensor, root)

    def all_reduce(self, tensor: Tensor) -> Handle:
        """Everybody gets the sum over all ranks."""
        return self._launch("all_reduce", tensor)

    def all_gather(self, shard: Tensor) -> Handle:
        """Everybody gets all shards, joined in the order of the ranks. All shards have one shape."""
        return self._launch("all_gather", shard)

    def reduce_scatter(self, tensor: Tensor) -> Handle:
        """Rank r gets the r-th of `world` equal parts of the sum over all ranks. The first dimension must divide."""
        if tensor.shape[0] % self.world:
            raise ValueError(f"reduce_scatter cannot cut {tensor.shape[0]} rows into {self.world} equal parts; pad them first")
        return self._launch("reduce_scatter", tensor)

    def _launch(self, kind: str, tensor: Tensor, peer: int = -1) -> Handle:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{kind} wants a tensor, not a {type(tensor).__name__}")
        if kind == "recv":  # only the form of what is awaited travels
            ticket = self._post("launch", kind, [list(tensor.shape), str(tensor.dtype)], peer, self._take_freed())
        else:
            ticket = self._post("launch", kind, tensor.detach(), peer, self._take_freed())
        return Handle(lambda: self._wait(ticket))

    def _wait(self, ticket: int) -> Tensor | None:
        result = self._post("wait", ticket, self._take_freed())
        return None if result is None else self._watched(result, ticket)

    def _watched(self, tensor: Tensor, number: int) -> Tensor:
        own = tensor.clone()            # nobody else holds it, nor the memory below it: it dies when this rank lets go
        weakref.finalize(own, self._freed.append, number).atexit = False
        return own

    def _given_one(self, tensor: Tensor) -> Tensor:
        self._given += 1
        return self._watched(tensor, -self._given)

    def _take_freed(self) -> list[int]:
        freed, self._freed[:] = list(self._freed), []
        return freed


def with_hooks(ask: Callable, comm: Communicator) -> Callable:
    """`ask`, so that it can also be given a function as its last argument: that is called with each item of a stream.

    backward(params, hook) becomes hook(*ask(params)), hook(*ask()), ... until ask() returns None. So the hook runs
    here, while whoever is asked stands between any two of its calls, and hears when the rank lets go of an item's tensor.
    """
    def take(*args):
        item = ask(*args)
        return tuple(comm._given_one(x) if isinstance(x, Tensor) else x for x in item) if type(item) is tuple else item

    def call(*args):
        if not args or not callable(args[-1]) or isinstance(args[-1], Tensor):
            return take(*args)
        *args, hook = args
        item = take(*args)
        while item is not None:
            hook(*item)
            item = None         # else the last one would live until the next is here
            item = take()
    return call
