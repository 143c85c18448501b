"""No attacks: unusual submissions that are right, and must not suffer from what was built against the others."""
from submitted import honest


@honest("sgd_step")
def warnings_and_errors_on_stderr():
    """Warns, logs and writes to stderr at every call."""
    import logging
    import sys
    import warnings

    def sgd_step(param, grad, state, lr=0.1):
        warnings.warn("this will change", DeprecationWarning, stacklevel=2)
        logging.getLogger().error("a message")
        print("to stderr", file=sys.stderr)
        return param - lr * grad, {}


@honest("sgd_step")
def prints():
    """Prints what it does, as one does while one looks for a mistake."""
    def sgd_step(param, grad, state, lr=0.1):
        print("param", param, "grad", grad, "state", state, flush=True)
        display(param)
        return param - lr * grad, {}


@honest("sgd_step")
def progress_bars():
    """Draws a progress bar, in a loop that it does not need."""
    import sys
    import time

    from IPython.display import clear_output

    def sgd_step(param, grad, state, lr=0.1):
        for percent in range(0, 101, 25):
            sys.stdout.write(f"\r{'#' * (percent // 5):<20} {percent}%")
            sys.stdout.flush()
            time.sleep(0.001)
        clear_output(wait=True)
        return param - lr * grad, {}


@honest("sgd_step")
def helpers_and_classes():
    """Its function is an object with a __call__, built by helpers, and the helpers come from a data class."""
    from dataclasses import dataclass
    from functools import partial

    @dataclass
    class Step:
        sign: int

        def __call__(self, param, grad, state, lr=0.1):
            return move(param, grad, self.sign * lr), {}

    def move(param, grad, much):
        return param + much * grad
    sgd_step = partial(Step(-1).__call__)


@honest("momentum_step")
def renamed_variables():
    """Calls everything by other names than the lab does, inside and in the state."""
    import torch as t

    def momentum_step(theta, g, memory, lr=0.1, beta=0.9):
        velocity = memory["velocity"] if "velocity" in memory else t.zeros_like(theta)
        velocity = velocity * beta + g
        return theta - velocity * lr, {"velocity": velocity, "calls": memory.get("calls", 0) + 1}


@honest("sgd_step")
def slow_but_right():
    """Loops over single numbers and sleeps a little."""
    import time

    import torch

    def sgd_step(param, grad, state, lr=0.1):
        time.sleep(0.01)
        numbers = [p - lr * g for p, g in zip(param.flatten().tolist(), grad.flatten().tolist())]
        return torch.tensor(numbers, dtype=param.dtype).reshape(param.shape), {}


@honest("escape_steps")
def another_algorithm():
    """Counts the steps of a simulation, where the reference has a formula."""
    def escape_steps(curvature, lr, offset, radius, beta=0.0):
        if abs(offset) >= radius:
            return 0
        if curvature >= 0 or offset == 0:
            return float("inf")
        y, v, count = offset, 0.0, 0
        while abs(y) < radius:
            v = beta * v + curvature * y
            y, count = y - lr * v, count + 1
        return count


@honest("sgd_step")
def another_default_dtype():
    """Computes in double precision by default, from its first cell on."""
    import torch
    torch.set_default_dtype(torch.float64)

    def sgd_step(param, grad, state, lr=0.1):
        return param - (torch.tensor(lr) * grad).to(param.dtype), {}


@honest("sgd_step")
def seeds():
    """Sets every seed, at the start and again in each call."""
    import random

    import numpy
    import torch

    def seed_everything():
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
    seed_everything()

    def sgd_step(param, grad, state, lr=0.1):
        seed_everything()
        return param - lr * grad, {}


@honest("momentum_step")
def in_place_on_its_own_copy():
    """Works in place, on copies."""
    import torch

    def momentum_step(param, grad, state, lr=0.1, beta=0.9):
        v = state["v"].clone() if state else torch.zeros_like(param)
        v.mul_(beta).add_(grad)
        return param.clone().add_(v, alpha=-lr), {"v": v}


@honest("momentum_step")
def out_of_place():
    """Builds new tensors for everything, and returns its input in the state where it is right."""
    def momentum_step(param, grad, state, lr=0.1, beta=0.9):
        v = beta * state["v"] + grad if state else grad
        return param - lr * v, dict(v=v, grad=grad)


@honest("sgd_step")
def threads_processes_and_files():
    """Uses what a program may use: a thread, a process, a temporary file, its own loopback."""
    import os
    import socket
    import tempfile
    import threading

    import torch

    def sgd_step(param, grad, state, lr=0.1):
        new = []
        worker = threading.Thread(target=lambda: new.append(param - lr * grad))
        worker.start()
        worker.join()
        with tempfile.NamedTemporaryFile() as file:
            torch.save(new[0], file.name)
            new = torch.load(file.name)
        return new, {}
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"hello")
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@honest("sgd_step")
def gradients_are_on():
    """Returns a tensor that carries a graph, and a parameter instead of a tensor."""
    import torch

    def sgd_step(param, grad, state, lr=0.1):
        return torch.nn.Parameter((param.clone().requires_grad_() - lr * grad)), {}


@honest("sgd_step")
def pictures_and_magics():
    """Draws a figure, and changes how tensors are printed."""
    import matplotlib.pyplot as plt
    import torch
    torch.set_printoptions(precision=2, sci_mode=False)
    plt.plot([1, 2, 3])
    plt.show()

    def sgd_step(param, grad, state, lr=0.1):
        return param - lr * grad, {}


@honest("flat_adam_step", timed=True)
def a_clock_of_its_own():
    """Measures its own time, and caches what depends on the shapes alone: the work is done, and quickly."""
    import time
    from functools import lru_cache

    import torch
    spent = []

    @lru_cache
    def sizes(shapes):
        return [torch.Size(shape).numel() for shape in shapes]

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        start = time.perf_counter()
        flat, grad = (torch.cat([t.reshape(-1) for t in tensors]) for tensors in (params, grads))
        t = state.get("t", 0) + 1
        m = torch.lerp(state.get("m", torch.zeros_like(flat)), grad, 1 - beta1)
        v = torch.lerp(state.get("v", torch.zeros_like(flat)), grad * grad, 1 - beta2)
        flat = flat - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        pieces = flat.split(sizes(tuple(tuple(p.shape) for p in params)))
        spent.append(time.perf_counter() - start)
        return [piece.view(p.shape) for piece, p in zip(pieces, params)], {"m": m, "v": v, "t": t}
