"""One training loop for every lab, for torch's optimizers and for the step functions that students write."""

from __future__ import annotations

import html
import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.data import Images, Text
from course.device import default_device

Step = Callable[..., tuple[Tensor, dict[str, Any]]]  # step(param, grad, state, **hyper) -> (param, state)


@dataclass(frozen=True, eq=False)
class History:
    """What happened in one training run."""
    losses: Tensor  # [steps] training loss of each step's batch
    eval_steps: Tensor  # [evals] int64: how many steps were done at each evaluation
    eval_losses: Tensor  # [evals] on the test (text: validation) part
    accuracy: Tensor  # [evals] 0..1
    eval_seconds: Tensor  # [evals] seconds of training until each evaluation
    seconds: float  # training alone, without evaluations
    interrupted: bool = False  # stopped by the user before its end

    @property
    def final_accuracy(self) -> float:
        """At the last evaluation; NaN if there was none."""
        return float(self.accuracy[-1]) if len(self.accuracy) else math.nan

    @property
    def best_accuracy(self) -> float:
        return float(self.accuracy.max()) if len(self.accuracy) else math.nan

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the steps: one batch alone says little."""
        return float(self.losses[-max(1, len(self.losses) // 10):].mean()) if len(self.losses) else math.nan

    @property
    def diverged(self) -> bool:
        """Some loss was infinite or not a number."""
        return not bool(self.losses.isfinite().all())

    @property
    def final(self) -> dict[str, float]:
        return {"loss": self.final_loss, "accuracy": self.final_accuracy, "steps": len(self.losses), "seconds": self.seconds}

    def __add__(self, later: History) -> History:
        """This run, continued by `later`: for a switch of optimizer in the middle."""
        return History(torch.cat([self.losses, later.losses]),
                       torch.cat([self.eval_steps, later.eval_steps + len(self.losses)]),
                       torch.cat([self.eval_losses, later.eval_losses]), torch.cat([self.accuracy, later.accuracy]),
                       torch.cat([self.eval_seconds, later.eval_seconds + self.seconds]),
                       self.seconds + later.seconds, self.interrupted or later.interrupted)

    def __repr__(self) -> str:
        return (f"{len(self.losses)} steps in {self.seconds:.1f} s, loss {self.final_loss:.3f}, "
                f"accuracy {self.final_accuracy:.1%}{', interrupted' if self.interrupted else ''}")


def train(model: nn.Module, data: Images | Text, *, optimizer: Callable = torch.optim.Adam, batch_size: int = 64,
          steps: int | None = None, epochs: float | None = None, lr: float | Callable[[int], float] | None = None,
          eval_every: int | None = None, seed: int = 0, device: torch.device | str | None = None,
          progress: bool = True) -> History:
    """Train `model` in place with cross entropy, and return its History.

    optimizer   a torch optimizer's class or factory (parameters -> optimizer), or a step function
                `step(param, grad, state, **hyper) -> (param, state)` that returns new values and starts from state {};
                give other hyperparameters with functools.partial
    steps, epochs  how long: one of the two
    lr          a number, or a function of the step (0, 1, ...) that gives one; None: the optimizer's own default
    eval_every  steps between evaluations; there is always one at the end
    seed        of the order of the examples and of whatever is random inside the model; its first weights are yours
    Ctrl-C (in a notebook: the stop button) ends the run early and keeps the history so far.
    """
    if (steps is None) == (epochs is None):
        raise ValueError("say how long to train: either steps=... or epochs=...")
    size = len(data.train_x) if isinstance(data, Images) else len(data.train) // _length(model)
    batch_size = min(batch_size, size)
    total = steps if steps is not None else max(1, round(epochs * size / batch_size))
    device = torch.device(device or default_device())
    model.to(device).train()
    data = data.to(device)
    stepper = _Functional(model, optimizer) if _is_step(optimizer) else _Torch(model, optimizer)
    losses, evals, paused = [], [], 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), \
            _Bar(total, f"{type(model).__name__} on {data.name}", progress) as bar:
        torch.manual_seed(seed)
        batches = _batches(data, batch_size, seed, model)
        interrupted, start = False, time.perf_counter()
        try:
            for i in range(total):
                x, y = next(batches)
                loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())  # of [n, classes] and [n]
                model.zero_grad(set_to_none=True)
                loss.backward()
                stepper.step(lr(i) if callable(lr) else lr)
                losses.append(loss.detach())  # stays on the device: reading it would wait for the GPU
                if i + 1 == total or (eval_every and (i + 1) % eval_every == 0):
                    _wait(device)
                    now = time.perf_counter()
                    evals.append((i + 1, *_evaluate(model, data), now - start - paused))
                    paused += time.perf_counter() - now
                bar.update(i + 1, losses, evals)
        except KeyboardInterrupt:
            interrupted = True
        seconds = time.perf_counter() - start - paused
        done, eval_losses, accuracies, at = zip(*evals) if evals else ((), (), (), ())
        history = History(torch.stack(losses).float().cpu() if losses else torch.empty(0),
                          torch.tensor(done, dtype=torch.int64), torch.tensor(eval_losses), torch.tensor(accuracies),
                          torch.tensor(at), seconds, interrupted)
        bar.close(repr(history))
    return history


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share 0..1 of right answers: x [n, ...], y [n], or tokens [n, t] for both. Leaves the model's mode as it was."""
    return evaluate(model, x, y)[1]


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 1024) -> tuple[float, float]:
    """Mean cross entropy (nats) and accuracy (0..1), in evaluation mode and without gradients."""
    mode, device = model.training, next(model.parameters()).device
    model.eval()
    loss = right = 0.0
    try:
        with torch.no_grad():
            for x_part, y_part in zip(x.split(batch_size), y.split(batch_size)):
                logits, target = model(x_part.to(device)).flatten(0, -2), y_part.to(device).flatten()
                loss += F.cross_entropy(logits.float(), target, reduction="sum").item()
                right += (logits.argmax(-1) == target).sum().item()
    finally:
        model.train(mode)
    return loss / y.numel(), right / y.numel()


def _length(model: nn.Module) -> int:
    if not hasattr(model, "length"):
        raise TypeError(f"{type(model).__name__} has no `length`, so it cannot be trained on text; use a Transformer")
    return model.length


def _batches(data: Images | Text, batch_size: int, seed: int, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same order on every device
    while isinstance(data, Text):
        yield data.batch(batch_size, _length(model), generator)
    while True:
        order = torch.randperm(len(data.train_x), generator=generator).to(data.train_x.device)
        for part in order[:len(order) // batch_size * batch_size].split(batch_size):
            yield data.train_x[part], data.train_y[part]


def _evaluate(model: nn.Module, data: Images | Text) -> tuple[float, float]:
    if isinstance(data, Images):
        return evaluate(model, data.test_x, data.test_y)
    x, y = data.batch(64, _length(model), torch.Generator().manual_seed(0), "val")  # the same windows every time
    return evaluate(model, x, y, batch_size=64)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_step(optimizer: Callable) -> bool:
    """A step needs param, grad and state; a factory of an optimizer needs the parameters only."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(optimizer).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) >= 3


class _Torch:
    def __init__(self, model: nn.Module, factory: Callable):
        self.optimizer = factory(model.parameters())

    def step(self, lr: float | None) -> None:
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.optimizer.step()


class _Functional:
    def __init__(self, model: nn.Module, step: Step):
        self.parameters, self.function = list(model.parameters()), step
        self.states: list[dict[str, Any]] = [{} for _ in self.parameters]

    @torch.no_grad()
    def step(self, lr: float | None) -> None:
        hyper = {} if lr is None else {"lr": lr}
        for i, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            answer = self.function(p.detach(), p.grad, self.states[i], **hyper)
            if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
                name = getattr(self.function, "__name__", "the step function")
                raise TypeError(f"{name} must return (new parameter, new state), not {type(answer).__name__}")
            p.copy_(answer[0])
            self.states[i] = answer[1]


class _Bar:
    """A progress bar in a notebook or a terminal; silent elsewhere and in grading. Never writes to stderr."""

    def __init__(self, total: int, title: str, wanted: bool):
        self.total, self.title, self.last = total, title, 0.0
        self.handle, self.terminal = None, False
        if not wanted or os.environ.get("NBGRADER_EXECUTION"):
            return
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and getattr(shell, "kernel", None) is not None:
            from IPython.display import DisplayHandle
            self.handle = DisplayHandle()
            self.handle.display({"text/plain": title}, raw=True)
        else:
            self.terminal = sys.stdout.isatty()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.terminal:
            print()

    def update(self, step: int, losses: list[Tensor], evals: list[tuple]) -> None:
        if not (self.handle or self.terminal) or time.perf_counter() - self.last < 0.2:
            return
        text = f"step {step:,} of {self.total:,}, loss {losses[-1].item():.3f}"
        if evals:
            text += f", accuracy {evals[-1][2]:.1%}"
        self.last = time.perf_counter()
        self._show(text, step)

    def close(self, text: str) -> None:
        self._show(text, None)

    def _show(self, text: str, step: int | None) -> None:
        if self.handle:
            bar = f'<progress max="{self.total}" value="{step}" style="width:16em"></progress> ' if step else ""
            self.handle.update({"text/plain": f"{self.title}: {text}",
                                "text/html": f"<div>{bar}{html.escape(self.title)}: {text}</div>"}, raw=True)
        elif self.terminal:
            done = "#" * round(30 * (step or self.total) / self.total)
            print(f"\r\x1b[K{self.title}: {f'[{done:<30}] ' if step else ''}{text}", end="", flush=True)
