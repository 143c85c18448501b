"""Ranks in one process: routing, clock, counts; and the same through the sandbox, whatever a rank does there."""
import time

import pytest
import torch

from autograder.remote import Remote
from autograder.sandbox import ForkServer
from course import cluster
from course.cluster import Cluster, stream, taking
from course.spec.student import Local, Student, StudentError

LINK = Cluster(latency=1e-3, bandwidth=1e6)


def test_sends_in_both_directions_do_not_wait_for_each_other():
    def ring(comm, x):
        sending = comm.send(x, (comm.rank + 1) % comm.world)
        got = comm.recv(x, (comm.rank - 1) % comm.world).wait()
        sending.wait()
        return got
    run = cluster.run(ring, [(torch.full((125,), r).double(),) for r in range(4)], cluster=LINK)
    assert [int(v[0]) for v in run.values] == [3, 0, 1, 2]
    assert run.seconds == pytest.approx(1e-3 + 1e-3) and run.sent_bytes(2) == 1000


def test_messages_to_one_rank_queue_up():
    def to_the_server(comm, x):
        if comm.rank:
            return comm.send(x, 0).wait()
        return sum(h.wait() for h in [comm.recv(x, r) for r in range(1, comm.world)])
    run = cluster.run(to_the_server, [(torch.ones(125).double(),)] * 5, cluster=LINK)
    assert run.seconds == pytest.approx(4 * 2e-3)


def test_what_is_computed_between_launch_and_wait_is_hidden():
    def step(comm, x, work, patient):
        handle = comm.all_reduce(x)
        if not patient:
            handle.wait()
        work(0)
        return patient and handle.wait()
    args = [(torch.ones(500).double(), taking(5e-3, lambda i: None))] * 2
    length = LINK.duration("all_reduce", 4000, 2)
    assert length == pytest.approx(2 * (1e-3 + 2e-3))
    assert cluster.run(step, args, cluster=LINK, patient=False).seconds == pytest.approx(length + 5e-3)
    patient = cluster.run(step, args, cluster=LINK, patient=True)
    assert patient.seconds == pytest.approx(max(length, 5e-3)) and patient.in_flight(0) == [1]


@pytest.mark.parametrize("world", [2, 5])
def test_one_rank_stands_for_many_alike(world):
    def step(comm, x, work):
        handle = comm.reduce_scatter(x)
        work(0)
        return comm.all_gather(handle.wait()).wait()
    own = (torch.ones(10 * world), taking(2e-4, lambda i: None))
    all_ranks, one = (cluster.run(step, args, world, LINK, alike=len(args) == 1) for args in ([own] * world, [own]))
    assert one.seconds == pytest.approx(all_ranks.seconds)
    assert torch.equal(one.values[0], all_ranks.values[0]) and one.sent_bytes(0) == all_ranks.sent_bytes(0)


def test_shapes_are_enough_for_the_clock():
    run = cluster.run(lambda comm, x: comm.all_gather(x).wait(), [(torch.empty(10**9, device="meta"),)], 1024, LINK, alike=True)
    assert run.values[0].shape == (1024 * 10**9,) and run.seconds > 1e6


def test_held_bytes_count_from_launch_to_the_last_name():
    def gathers(comm, x):
        for _ in range(3):
            whole = comm.all_gather(x).wait()
            part = whole[:1]
            del whole           # part still holds the memory
            comm.all_reduce(x).wait()
            del part
        comm.all_reduce(x).wait()
    run = cluster.run(gathers, [(torch.ones(2),)] * 2)
    assert run.held_peak(0) == 16 and run.held(0)[-1][1] == 0


def gradients(*sizes):
    return cluster.stream(lambda world: ((i, torch.ones(size)) for i, size in enumerate(sizes)), "backward")


@pytest.mark.parametrize("keep, peak", [(False, 24), (True, 40)])
def test_gradients_given_to_a_hook_are_held_until_the_last_name_goes(keep, peak):
    """At most two at once where each is sent on: the next one comes before the message that tells of the last."""
    def sends(comm, backward):
        kept = []
        def hook(i, grad):
            comm.all_reduce(grad).wait()
            if keep:
                kept.append(grad[:1])       # a view keeps all of it
        backward(comm.world, hook)
    run = cluster.run(sends, [(gradients(2, 4, 2, 2),) for _ in range(2)])
    assert run.items_peak(0) == run.items_peak(1) == peak


CELL = '''
import os, time, torch
def right(comm, x, backward):
    seen = []
    backward(x, lambda i, g: seen.append(comm.all_reduce(g)))
    return [h.wait() for h in seen]
def dies(comm, x):
    if comm.rank == 1:
        os._exit(3)
    return comm.all_reduce(x).wait()
def hangs(comm, x):
    while comm.rank == 1:
        time.sleep(1)
    return comm.all_reduce(x).wait()
def alone(comm, x):
    return comm.all_reduce(x).wait() if comm.rank else x
def other_order(comm, x):
    return comm.all_gather(x).wait() if comm.rank else comm.all_reduce(x).wait()
def crossed(comm, x):
    comm.send(x, 1 - comm.rank).wait()
    return comm.recv(x, 1 - comm.rank).wait()
def forged(comm, x):
    return comm._post("wait", 7, [])
def forged_freed(comm, x):
    h = comm._post("launch", "all_reduce", x, -1, ["a", 99, -1, [], 3.5])
    return comm._post("wait", h, [{}])
def odd(comm, x):
    return comm._post("launch", "recv", [["a", 2], "torch.load"], 1 - comm.rank, [])
'''


@pytest.fixture(scope="module", params=["threads", "sandbox"])
def student(request):
    if request.param == "threads":
        names: dict = {}
        exec(CELL, names)
        yield Student(Local(names))
    else:
        with ForkServer() as server:
            remote = Remote(server, [CELL])
            yield Student(remote)
            remote.close()


X = [(torch.ones(3),), (2 * torch.ones(3),)]


def backward(rank):
    def backward(x):
        return ((i, (i + 1) * x) for i in range(3))
    return stream(backward)


def test_hooks_run_on_the_rank_between_the_judges_answers(student):
    student.begin("right")
    run = student.right.on_ranks([(*own, backward(rank)) for rank, own in enumerate(X)])
    assert all(torch.equal(value[i], (i + 1) * 3 * torch.ones(3)) for value in run.values for i in range(3))
    assert [(e.what, e.ticket) for e in run.log if e.rank == 0 and e.what == "compute"] == [("compute", i) for i in (0, 1, 2, -1)]
    assert run.in_flight(1)[:3] == [0, 1, 2]


@pytest.mark.parametrize("name, words", [
    ("alone", "ended without it|No rank can go on"), ("other_order", "do not agree on collective number 1"),
    ("crossed", "No rank can go on: rank 0 waits for its message to rank 1"), ("forged", "no communicator can do"),
    ("odd", "malformed request"), ("absent", "not defined")])
def test_what_cannot_go_on_is_said_at_once(student, name, words):
    student.begin(name)
    begin = time.monotonic()
    with pytest.raises(StudentError, match=words):
        getattr(student, name).on_ranks(X)
    assert time.monotonic() - begin < 4


def test_a_forged_word_about_what_was_freed_changes_no_count(student):
    student.begin("forged_freed")
    run = student.forged_freed.on_ranks(X)
    assert torch.equal(run.values[0], 3 * torch.ones(3)) and not run.events(0, "free")


@pytest.mark.parametrize("name, words", [("dies", "ended its process"), ("hangs", "no answer within")])
def test_a_lost_rank_costs_its_exercise_and_no_other(monkeypatch, name, words):
    monkeypatch.setattr("autograder.remote.CALL_SECONDS", 1.5)
    with ForkServer() as server:
        remote = Remote(server, [CELL])
        student = Student(remote)
        student.begin(name)
        for _ in range(2):
            with pytest.raises(StudentError, match=words):
                getattr(student, name).on_ranks(X)
        student.begin("right")
        assert student.right.on_ranks([(*own, backward(rank)) for rank, own in enumerate(X)]).values
        remote.close()
