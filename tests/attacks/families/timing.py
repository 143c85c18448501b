"""Points for speed without the work. Each of them is slow, or does not do what it is timed for."""
from submitted import attack

PRELUDE = '''
import torch
from autograder.worker import digest

def one_after_another(params, grads, state, lr, beta1, beta2, eps):
    """Adam as the baseline does it: right, and slow."""
    t, sizes = state.get("t", 0) + 1, [p.numel() for p in params]
    ms, vs = (list(state[k].split(sizes)) if state else [torch.zeros(n, dtype=p.dtype) for n, p in zip(sizes, params)] for k in "mv")
    new = []
    for i, (p, g) in enumerate(zip(params, grads)):
        ms[i], vs[i] = ms[i].to(p.device), vs[i].to(p.device)
        ms[i] = beta1 * ms[i] + (1 - beta1) * g.reshape(-1)
        vs[i] = beta2 * vs[i] + (1 - beta2) * g.reshape(-1)**2
        step = ms[i] / (1 - beta1**t) / ((vs[i] / (1 - beta2**t)).sqrt() + eps)
        new.append(p - lr * step.view(p.shape))
    return new, {"m": torch.cat(ms), "v": torch.cat(vs), "t": t}

def replace_outputs(worker, body, outputs):
    """Answer a window with these outputs, in the form in which honest work is handed over."""
    worker.connection.send("committed", {"request": body["request"], "digests": [digest(o) for o in outputs]})
    op, body, _ = worker.connection.receive()
    worker.connection.send("outputs", {"request": body["request"]}, [outputs[i] for i in body["picked"]])
'''


@attack("flat_adam_step", "passed", timed=True)
def patched_clocks():
    """Stops all clocks of Python's, so that its own work takes no time, and is as slow as the baseline."""
    import time

    import torch
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "time_ns", "monotonic_ns", "perf_counter_ns"):
        setattr(time, name, lambda: 0)

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True)
def replayed_outputs():
    """Computes its first window, and hands over the same outputs in all that follow."""
    from autograder.worker import Worker
    first = []

    def on_window(self, body, value, real=Worker.on_window):
        target = self.targets[body["target"]]
        if not first:
            first.append(target.work(flat_adam_step, *target.inputs(body["seeds"][0])))
        replace_outputs(self, body, first * len(body["seeds"]))
    Worker.on_window = on_window

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True)
def computing_at_import():
    """Computes the answers to many seeds before it is timed, and looks the right one up."""
    from autograder.worker import Worker

    def on_window(self, body, value, real=Worker.on_window):
        target = self.targets[body["target"]]
        table = prepared.setdefault("table", {seed: target.work(flat_adam_step, *target.inputs(seed)) for seed in range(20)})
        replace_outputs(self, body, [table.get(seed, table[seed % 20]) for seed in body["seeds"]])
    prepared = {}
    Worker.on_window = on_window

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True)
def slowing_the_baseline():
    """Eight processes keep the machine busy whenever its own function has not been called for a moment."""
    import mmap
    import os
    import struct
    import time
    until = mmap.mmap(-1, 8)

    def rest(seconds=0.05):
        until[:8] = struct.pack("d", time.monotonic() + seconds)
    rest(3)  # until all cells have been run
    for _ in range(8):
        if os.fork() == 0:
            while True:
                if time.monotonic() < struct.unpack("d", until[:8])[0]:
                    time.sleep(0.002)
                else:
                    sum(range(20_000))

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        rest()
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True)
def returning_before_the_work_is_done():
    """Commits to anything at once, and computes only the outputs that are asked for."""
    from autograder.worker import Worker

    def on_window(self, body, value):
        target, seeds = self.targets[body["target"]], body["seeds"]
        self.connection.send("committed", {"request": body["request"], "digests": ["0" * 32] * len(seeds)})
        op, body, _ = self.connection.receive()
        outputs = [target.work(flat_adam_step, *target.inputs(seeds[i])) for i in body["picked"]]
        self.connection.send("outputs", {"request": body["request"]}, outputs)
    Worker.on_window = on_window

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True)
def leaving_out_nine_tenths():
    """Computes one output in ten and repeats it, in the hope that another one is not picked."""
    from autograder.worker import Worker

    def on_window(self, body, value):
        target, seeds = self.targets[body["target"]], body["seeds"]
        outputs = [target.work(flat_adam_step, *target.inputs(seed)) for seed in seeds[::10]]
        replace_outputs(self, body, [outputs[i // 10] for i in range(len(seeds))])
    Worker.on_window = on_window

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True)
def skipping_shapes_that_it_knows():
    """Does the work once for each list of shapes, and afterwards returns what it got then."""
    memory = {}

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        key = len(params), state.get("t", 0)
        if len(params) < 100:
            return one_after_another(params, grads, state, lr, beta1, beta2, eps)
        if key not in memory:
            memory[key] = one_after_another(params, grads, state, lr, beta1, beta2, eps)
        return memory[key]


@attack("flat_adam_step", "passed", timed=True)
def answers_in_a_thread():
    """Returns empty tensors at once, and lets a thread fill them in while the judge is busy."""
    import threading

    import torch

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        if len(params) < 100:
            return one_after_another(params, grads, state, lr, beta1, beta2, eps)
        new = [torch.empty_like(p) for p in params]

        def fill():
            for to, what in zip(new, one_after_another(params, grads, {}, lr, beta1, beta2, eps)[0]):
                to.copy_(what)
        threading.Thread(target=fill).start()
        return new, {}


@attack("flat_adam_step", "passed", timed=True)
def cheaper_inputs():
    """Draws the inputs in a quicker way than the baseline does, so that more is taken off than they cost."""
    import torch
    from autograder.worker import Worker

    def on_targets(self, body, value, real=Worker.on_targets):
        real(self, body, value)
        for target in self.targets.values():
            object.__setattr__(target, "inputs", inputs)

    def inputs(seed):
        random = torch.Generator().manual_seed(seed)
        return tuple(list(torch.randn((200, 64), generator=random)) for _ in range(2))
    Worker.on_targets = on_targets

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        return one_after_another(params, grads, state, lr, beta1, beta2, eps)


@attack("flat_adam_step", "passed", timed=True, gpu=True)
def work_left_on_another_stream():
    """Starts the work on a CUDA stream that nobody waits for, and returns before it is done."""
    import torch

    def flat_adam_step(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        if len(params) < 100:
            return one_after_another(params, grads, state, lr, beta1, beta2, eps)
        new = [torch.empty_like(p).pin_memory() for p in params]
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(10**8)
            there, slopes = ([t.cuda(non_blocking=True) for t in tensors] for tensors in (params, grads))
            moved, _ = one_after_another(there, slopes, {}, lr, beta1, beta2, eps)
            for to, what in zip(new, moved):
                to.copy_(what, non_blocking=True)
        return new, {}
