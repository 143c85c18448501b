"""Ranks as processes: results, and every way in which one can fail. No process may be left."""
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from course import ranks


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = children()
    yield
    assert children() <= before


def everything(comm):
    x = torch.arange(4.0) + 10 * comm.rank
    right, left = (comm.rank + 1) % comm.world, (comm.rank - 1) % comm.world
    sending = comm.send(x, right)
    received = comm.recv(x, left).wait()
    sending.wait()
    return {"received": received, "all_reduce": comm.all_reduce(x).wait(), "all_gather": comm.all_gather(x).wait(),
            "reduce_scatter": comm.reduce_scatter(x).wait(), "broadcast": comm.broadcast(x, 1).wait(), "own": x}


def test_real_ranks_and_simulated_ones_give_the_same():
    from course import cluster
    real, simulated = ranks.run(everything, world=2), cluster.run(everything, [(), ()]).values
    for one, other in zip(real, simulated):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_functions_without_a_name_and_arguments_are_carried():
    factor = 3
    assert ranks.run(lambda comm, x: factor * x + comm.rank, world=3, args=(2,)) == [6, 7, 8]


def test_a_rank_that_raises_is_named_with_its_line():
    def fails(comm):
        if comm.rank == 1:
            raise ValueError("a bad day")
        return comm.all_reduce(torch.ones(1)).wait()
    with pytest.raises(ranks.RankError, match=r"(?s)Rank 1 of 2 raised ValueError: a bad day.*in fails"):
        ranks.run(fails, timeout=20)


def test_a_rank_that_is_killed_is_named():
    def dies(comm):
        if comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return comm.all_reduce(torch.ones(1)).wait()
    begin = time.monotonic()
    with pytest.raises(ranks.RankError, match="Rank 1 of 2 was killed by signal SIGKILL"):
        ranks.run(dies, timeout=30)
    assert time.monotonic() - begin < 15


def test_a_rank_that_leaves_without_a_result_is_named():
    with pytest.raises(ranks.RankError, match="Rank 0 of 2 ended with exit code 3"):
        ranks.run(lambda comm: os._exit(3) if comm.rank == 0 else comm.recv(torch.ones(1), 0).wait(), timeout=30)


def test_a_rank_that_hangs_is_named_with_the_place_where_it_stands():
    def waits_for_ever(comm):
        while comm.rank == 0:
            time.sleep(0.1)
    with pytest.raises(ranks.RankError, match=r"(?s)After 3 s there is no result.*rank 0:.*in waits_for_ever"):
        ranks.run(waits_for_ever, timeout=3)


def test_ranks_die_with_their_parent(tmp_path):
    code = ("import os, time, sys; from course import ranks\n"
            "def f(comm):\n open(sys.argv[1] + f'/{comm.rank}', 'w').write(str(os.getpid())); time.sleep(60)\n"
            "ranks.run(f, world=2)")
    import subprocess
    import sys
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    end = time.monotonic() + 40
    while time.monotonic() < end and not all((tmp_path / str(r)).exists() and (tmp_path / str(r)).read_text() for r in (0, 1)):
        time.sleep(0.1)
    pids = [int((tmp_path / str(r)).read_text()) for r in (0, 1)]
    parent.kill()
    parent.wait()
    time.sleep(0.5)
    assert not any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in pids)
