"""train_zero.py under torchrun: two agents, as on two hosts, that know each other by an address and a port only."""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "solutions" / "41_zero" / "train_zero.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def agent(number: int, nodes: int, port: int, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--node_rank={number}", "--master_addr=127.0.0.1",
         f"--master_port={port}", "--nproc_per_node=1", str(SCRIPT), *options], env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alive(pid: int) -> bool:
    """Zombies, which nobody has looked at yet, do not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def workers(agent: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


@pytest.fixture
def agents():
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        for pid in [*workers(process), process.pid] if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("stage", [2, 3])
def test_two_agents_train_what_one_process_trains(agents, tmp_path, stage):
    steps = "8"
    alone = agent(0, 1, free_port(), "--stage=2", "--steps", steps, "--out", str(tmp_path / "alone"))
    agents.append(alone)
    assert alone.wait(150) == 0, alone.stdout.read()
    port = free_port()
    agents += [agent(number, 2, port, f"--stage={stage}", "--steps", steps, "--out", str(tmp_path / "two")) for number in range(2)]
    for process in agents[1:]:
        assert process.wait(150) == 0, process.stdout.read()
    one, two = (torch.load(tmp_path / name) for name in ("alone", "two"))
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-4, atol=1e-4)
    assert two["losses"][-1] < two["losses"][0] - 0.5
    assert two["held"]["optimizer"] <= 0.51 * one["held"]["optimizer"]
    with pytest.raises(ConnectionRefusedError):     # nothing listens there any more
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_when_one_host_dies_the_other_ends_with_an_error(agents):
    port = free_port()
    agents += [agent(number, 2, port, "--stage=2", "--steps", "100000") for number in range(2)]
    end = time.monotonic() + 90
    while time.monotonic() < end and not all(map(workers, agents)):
        time.sleep(0.3)
    mine, theirs = map(workers, agents)
    time.sleep(8)   # the training has begun, or is about to
    for pid in [agents[1].pid, *theirs]:
        os.kill(pid, signal.SIGKILL)
    assert agents[0].wait(100) != 0
    assert mine and not any(map(alive, mine + theirs))
