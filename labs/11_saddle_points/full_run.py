"""The long measurements of lab 11, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run, one after the other: `escape` and `settle` (the toy saddles), `sensitivity` and
`faster` (learning rates), `switch` (Adam, then SGD), `plateau` (Hessian and turned network), `rare` and `moments`, and
`flat` (speed). About an hour on two cores that others use as well.
"""
import functools
import math
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from course import data, models, surfaces, timing, train
from course.full_run import interval, lab_functions, main

LAB = lab_functions(__file__, r"def ((sgd|momentum|nesterov|adagrad|rmsprop|adadelta|adam|flat_adam)_step"
                              r"|most_negative_curvature)\(")
METHODS = {"SGD": LAB["sgd_step"], "momentum": LAB["momentum_step"], "Nesterov": LAB["nesterov_step"],
           "AdaGrad": LAB["adagrad_step"], "RMSprop": LAB["rmsprop_step"], "AdaDelta": LAB["adadelta_step"],
           "Adam": LAB["adam_step"]}


def each(function, jobs: list) -> list:
    """function(*job) for each job, on all cores, one thread each."""
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, *zip(*jobs), chunksize=1))


# --- the toy saddles -------------------------------------------------------------------------------------------------

def escape_count(name: str, lr: float, degrees: float, offset: float, x: float = -1.0, most: int = 20_000) -> int | None:
    """Steps until |y| > 0.5 in the saddle's own axes; None: not within `most`."""
    surface = surfaces.rotated(surfaces.saddle, degrees)
    path = surfaces.race(surface, {name: (METHODS[name], {"lr": lr})}, surface.outer((x, offset)), most,
                         until=lambda p: not abs(surface.own(p)[1]) <= 0.5)[name]
    return len(path) - 1 if len(path) <= most else None


def escape() -> dict:
    settings = [(lr, degrees, offset, x) for x in (-1.0, 0.0) for offset in (1e-3, 1e-6) for lr in (0.001, 0.01, 0.1)
                for degrees in (0, 45)]
    jobs = [(name, *setting) for setting in settings for name in METHODS]
    counts = each(escape_count, jobs)
    table = {}
    for (name, lr, degrees, offset, x), count in zip(jobs, counts):
        table.setdefault(f"x0={x:g} y0={offset:g} lr={lr:g} turned={degrees}", {})[name] = count
    g = torch.Generator().manual_seed(0)
    angles = (90 * torch.rand(60, generator=g)).tolist()
    offsets = (10 ** (-6 + 5 * torch.rand(60, generator=g)) * (1 - 2 * torch.randint(2, (60,), generator=g))).tolist()
    jobs = [(name, lr, angle, offset) for name in METHODS for lr in (0.01, 0.1) + (1.0,) * (name == "AdaDelta")
            for angle, offset in zip(angles, offsets)]
    any_turn: dict = {}
    for (name, lr, *_), count in zip(jobs, each(escape_count, jobs)):
        any_turn.setdefault(f"{name} lr={lr:g}", []).append(math.inf if count is None else count)
    finite = lambda v: None if math.isinf(v) else int(v)
    any_turn = {name: [finite(v) for v in np.quantile(counts, [0.5, 0.1, 0.9], method="higher")]
                for name, counts in any_turn.items()}
    return {"what": "steps until |y| > 0.5 on x^2 - y^2, null: not within 20,000; x0, y0 in the saddle's own axes",
            "steps": table, "any turn": any_turn,
            "any turn is": "median, 10% and 90% over 60 random turns (0 to 90 degrees) and offsets (1e-6 to 0.1, both sides)"}


def settle_counts(name: str, lr: float, degrees: float, starts: torch.Tensor, steps: int = 3000) -> tuple:
    """For each start [n, 2]: the step that first comes within 0.01 of a minimum, and the step from which it stays there."""
    surface = surfaces.rotated(surfaces.bounded_saddle, degrees)
    path = surfaces.race(surface, {name: (METHODS[name], {"lr": lr})}, surface.outer(starts), steps)[name]
    near = (torch.cdist(path, surface.minima) <= 0.01).any(-1)  # [steps + 1, n]
    first = torch.where(near.any(0), near.float().argmax(0).double(), math.inf)
    last_away = torch.where(near, -1, torch.arange(steps + 1)[:, None]).amax(0)
    # To settle in the last third proves little.
    stays = torch.where(last_away < 2 * steps // 3, last_away + 1.0, math.inf)
    return first, stays


def settle() -> dict:
    g = torch.Generator().manual_seed(0)
    starts = torch.stack([-1.5 + torch.rand(41, generator=g, dtype=torch.float64),
                          10 ** (-4 + 3 * torch.rand(41, generator=g, dtype=torch.float64))], 1)
    starts = torch.cat([torch.tensor([[-1.0, 1e-3]], dtype=torch.float64), starts])
    rates = [round(10 ** (k / 8), 6) for k in range(-24, 9)]
    jobs = [(name, lr, degrees, starts) for name in METHODS for degrees in (0, 45) for lr in rates]
    counts = iter(each(settle_counts, jobs))
    table = {}
    for name in METHODS:
        for degrees in (0, 45):
            both = [next(counts) for _ in rates]
            row = {}
            for what, k in (("reaches", 0), ("stays", 1)):
                found = torch.stack([b[k] for b in both]).numpy()  # [rates, starts]
                medians = np.quantile(found[:, 1:], 0.5, axis=1, method="higher")
                best, alone = int(medians.argmin()), int(found[:, 0].argmin())
                spread = np.quantile(found[best, 1:], [0.1, 0.9], method="higher")
                finite = lambda v: None if math.isinf(v) else int(v)
                row[what] = {"median": finite(medians[best]), "spread": [finite(s) for s in spread], "lr": rates[best],
                             "by_lr": [finite(m) for m in medians],
                             "from_start": finite(found[alone, 0]), "lr_from_start": rates[alone]}
            table[f"{name} turned={degrees}"] = row
    return {"what": "steps to within 0.01 of a minimum of x^2 - y^2 + y^4/4, best of 33 learning rates; median and 10-90% "
                    "spread over 41 starts (x0 -1.5..-0.5, y0 1e-4..1e-1), and from (-1, 1e-3) alone",
            "rates": rates, "steps": table}


# --- learning rates --------------------------------------------------------------------------------------------------

def trained(task: str, widths: tuple, name: str, lr: float, epochs: float, seed: int) -> float:
    """Test accuracy after a run of the lab's own step function."""
    torch.manual_seed(seed)
    model = models.MLP(widths)
    images = getattr(data, task)()
    return train.train(model, images, optimizer=METHODS[name], lr=lr, epochs=epochs, seed=seed, progress=False).final_accuracy


def width(rates, errors, factor: float) -> float:
    """Decades of learning rates around the best whose error is at most `factor` times the best; linear between points."""
    log, errors = np.log10(rates), np.log(np.asarray(errors))
    best, limit = int(errors.argmin()), errors.min() + math.log(factor)
    ends = []
    for direction in (-1, 1):
        k = best
        while 0 <= k + direction < len(log) and errors[k + direction] <= limit:
            k += direction
        if 0 <= k + direction < len(log):
            share = (limit - errors[k]) / (errors[k + direction] - errors[k])
            ends.append(log[k] + share * (log[k + direction] - log[k]))
        else:
            ends.append(log[k])  # the curve goes on outside: a lower bound
    return float(ends[1] - ends[0])


def sensitivity(seeds: int = 7, epochs: int = 5) -> dict:
    rates = [round(10 ** (k / 4), 7) for k in range(-20, 5)]
    nets = {"784-128-10": (784, 128, 10), "784-64-64-64-10": (784, 64, 64, 64, 10)}
    names = ["SGD", "momentum", "AdaGrad", "RMSprop", "Adam"]
    jobs = [("mnist5k", widths, name, lr, epochs, seed) for widths in nets.values() for name in names
            for seed in range(seeds) for lr in rates]
    accuracies = iter(each(trained, jobs))
    result = {"what": f"test error on mnist5k after {epochs} epochs, batch 64, {seeds} seeds; width: decades of learning rates "
                      "whose error is at most 1.5, 2 or 3 times the best, mean and 95% interval over seeds", "rates": rates}
    for net in nets:
        result[net], widths = {}, {}
        for name in names:
            errors = np.array([[1 - next(accuracies) for _ in rates] for _ in range(seeds)])  # [seeds, rates]
            widths[name] = {f: np.array([width(rates, e, f) for e in errors]) for f in (1.5, 2, 3)}
            result[net][name] = {
                "error": [round(float(e), 4) for e in errors.mean(0)],
                "low": [round(float(e), 4) for e in errors.min(0)], "high": [round(float(e), 4) for e in errors.max(0)],
                "best": interval(errors.min(1)), "best_lr": rates[int(errors.mean(0).argmin())],
                "width": {str(f): interval(w) for f, w in widths[name].items()}}
        result[net]["Adam minus SGD"] = {str(f): interval(widths["Adam"][f] - widths["SGD"][f]) for f in (1.5, 2, 3)}
        result[net]["Adam minus AdaGrad"] = {str(f): interval(widths["Adam"][f] - widths["AdaGrad"][f]) for f in (1.5, 2, 3)}
    return result


def first_reach(name: str, lr: float, seed: int, steps: int = 500, every: int = 10) -> list:
    """Steps until the test accuracy on mnist5k is first 90% and 94%; math.inf: not within `steps`."""
    torch.manual_seed(seed)
    history = train.train(models.MLP((784, 128, 10)), data.mnist5k(), optimizer=METHODS[name], lr=lr, steps=steps,
                          eval_every=every, seed=seed, progress=False)
    return [next((int(k) for k, a in zip(history.eval_steps, history.accuracy) if a >= level), math.inf) for level in (0.90, 0.94)]


def faster(seeds: int = 7) -> dict:
    grids = {"SGD": (0.2, 0.3, 0.5, 0.7, 1.0, 1.5), "momentum": (0.03, 0.05, 0.1, 0.15, 0.2, 0.3),
             "Adam": (0.001, 0.002, 0.003, 0.005, 0.01, 0.02)}
    jobs = [(name, lr, seed) for name, rates in grids.items() for lr in rates for seed in range(seeds)]
    found: dict = {}
    for (name, lr, _), steps in zip(jobs, each(first_reach, jobs)):
        found.setdefault(name, {}).setdefault(lr, []).append(steps)
    result: dict = {"what": f"steps of 64 images until a test accuracy on mnist5k, best learning rate by the median of {seeds} seeds: "
                            "median, least, most (null: not within 500)"}
    for k, level in enumerate(("90%", "94%")):
        result[level] = {}
        for name, by_rate in found.items():
            lr = min(by_rate, key=lambda rate: np.median([s[k] for s in by_rate[rate]]))
            values = sorted(s[k] for s in by_rate[lr])
            result[level][name] = {"lr": lr, "steps": [None if math.isinf(v) else int(v) for v in
                                                       (values[len(values) // 2], values[0], values[-1])]}
    return result


# --- Adam first, SGD later -------------------------------------------------------------------------------------------

TASKS = {"mnist5k": (data.mnist5k, (784, 128, 10), 12),
         "glyphs62": (functools.cache(lambda: data.glyphs(12_000, 62, 0.5)), (784, 128, 62), 10)}


def schedule(task: str, phases: tuple, seed: int, tuning: bool) -> float:
    """Accuracy after training through `phases`, (name, learning rate, share of the epochs) each.

    On the test set; when tuning, on a quarter of the training set that was kept back.
    """
    load, widths, epochs = TASKS[task]
    images = load()
    if tuning:
        cut = len(images.train_x) * 3 // 4
        x, y = images.train_x, images.train_y
        images = data.Images(x[:cut], y[:cut], x[cut:], y[cut:], images.classes, images.name)
    torch.manual_seed(seed)
    model = models.MLP(widths)
    for k, (name, lr, share) in enumerate(phases):
        if k == 0 or name != phases[k - 1][0]:
            optimizer = Remembering(METHODS[name])
        history = train.train(model, images, optimizer=optimizer.on, lr=lr, epochs=share * epochs, seed=1000 * k + seed,
                              progress=False)
    return history.final_accuracy


class Remembering:
    """The lab's step function as an optimizer that keeps its memory from one call of `train` to the next."""

    def __init__(self, step):
        self.function, self.states, self.param_groups = step, None, [{"lr": None}]

    def on(self, parameters):
        self.parameters = list(parameters)
        self.states = self.states or [{} for _ in self.parameters]
        return self

    @torch.no_grad()
    def step(self) -> None:
        for i, p in enumerate(self.parameters):
            new, self.states[i] = self.function(p.detach(), p.grad, self.states[i], lr=self.param_groups[0]["lr"])
            p.copy_(new)


def switch(seeds: int = 12, tuning_seeds: int = 2) -> dict:
    grids = {"Adam": (1e-3, 3e-3, 5e-3), "momentum": (0.05, 0.1, 0.2, 0.3), "SGD": (0.2, 0.5, 1.0, 1.5)}
    after = {"momentum": (0.005, 0.02, 0.05, 0.1), "SGD": (0.05, 0.2, 0.5, 1.0)}
    result: dict = {"what": "final test accuracy of an MLP 784-128-classes, batch 64, mnist5k 12 epochs, glyphs62 10 epochs, "
                            f"{seeds} seeds: mean and 95% interval, and the difference to Adam alone, seed by seed; all learning "
                            f"rates chosen with {tuning_seeds} other seeds on held-back training data", "seeds": seeds}
    for task in TASKS:
        def best(options: list) -> tuple:
            found = each(schedule, [(task, phases, 10_000 + s, True) for phases in options for s in range(tuning_seeds)])
            return options[int(np.array(found).reshape(len(options), -1).mean(1).argmax())]

        arms = {}
        for name, rates in grids.items():
            arms[f"{name} alone"] = best([((name, lr, 1.0),) for lr in rates])
        adam, heavy = arms["Adam alone"][0][1], arms["momentum alone"][0][1]
        for at in (0.5, 0.75):
            for name in ("momentum", "SGD"):
                arms[f"Adam, {name} from {at:.0%}"] = best([(("Adam", adam, at), (name, lr, 1 - at)) for lr in after[name]])
        # What only lowers the rate at the same moment: does the switch do more than that?
        arms["Adam, lower rate from 75%"] = best([(("Adam", adam, 0.75), ("Adam", adam * f, 0.25)) for f in (0.03, 0.1, 0.3)])
        arms["momentum, lower rate from 75%"] = best([(("momentum", heavy, 0.75), ("momentum", heavy * f, 0.25))
                                                      for f in (0.03, 0.1, 0.3)])
        found = iter(each(schedule, [(task, phases, seed, False) for phases in arms.values() for seed in range(seeds)]))
        accuracy = {name: np.array([next(found) for _ in range(seeds)]) for name in arms}
        result[task] = {name: {"phases": arms[name], "accuracy": interval(a),
                               "minus Adam alone": interval(a - accuracy["Adam alone"]) if name != "Adam alone" else [0, 0, 0]}
                        for name, a in accuracy.items()}
        lower = accuracy["Adam, lower rate from 75%"]
        result[task]["switch to momentum minus lower rate, both from 75%"] = interval(accuracy["Adam, momentum from 75%"] - lower)
        result[task]["switch to SGD minus lower rate, both from 75%"] = interval(accuracy["Adam, SGD from 75%"] - lower)
    return result


# --- the plateau of a real network -----------------------------------------------------------------------------------

WIDTHS = (64, 32, 32, 10)


class Plateau:
    """tanh 64-32-32-10 on all of digits at once, as a function of one vector of parameters."""

    def __init__(self, seed: int, std: float = 0.02):
        images = data.digits()
        self.x, self.y = images.train_x.flatten(1), images.train_y
        self.shapes = [s for i, o in zip(WIDTHS, WIDTHS[1:]) for s in ((o, i), (o,))]
        self.sizes = [math.prod(s) for s in self.shapes]
        g = torch.Generator().manual_seed(seed)
        self.start = torch.cat([(std if len(s) == 2 else 0.0) * torch.randn(math.prod(s), generator=g) for s in self.shapes])

    def loss(self, theta: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2, w3, b3 = (p.view(s) for p, s in zip(theta.split(self.sizes), self.shapes))
        return F.cross_entropy(torch.tanh(torch.tanh(self.x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3, self.y)

    def grad(self, theta: torch.Tensor) -> tuple[float, torch.Tensor]:
        theta = theta.detach().requires_grad_()
        loss = self.loss(theta)
        return loss.item(), torch.autograd.grad(loss, theta)[0]

    def hvp(self, theta: torch.Tensor):
        theta = theta.detach().requires_grad_()
        grad = torch.autograd.grad(self.loss(theta), theta, create_graph=True)[0]
        return lambda v: torch.autograd.grad(grad, theta, v, retain_graph=True)[0]


def curvatures(seed: int, lr: float = 0.1, steps: int = 1200, every: int = 50) -> dict:
    """Plain gradient descent, and the ends of the Hessian's spectrum on its way."""
    net, rows, theta = Plateau(seed), [], None
    theta = net.start
    for step in range(steps + 1):
        loss, grad = net.grad(theta)
        if step % every == 0:
            start = torch.randn(len(theta), generator=torch.Generator().manual_seed(step))
            hvp = net.hvp(theta)
            low, v = LAB["most_negative_curvature"](hvp, start)
            high, _ = LAB["most_negative_curvature"](lambda x: -hvp(x), start)
            rows.append([step, round(loss, 4), float(f"{grad.norm():.3e}"), float(f"{low:.4e}"), float(f"{-high:.4e}"),
                         round(float(abs(v @ grad) / grad.norm()), 3), round(float(1 / (v**4).sum()), 1)])
        theta = theta - lr * grad
    return dict(zip(("step", "loss", "gradient", "lowest", "highest", "cosine", "participation"), map(list, zip(*rows))))


def leaving(seed: int, name: str, lr: float, turned: bool, most: int = 800) -> list:
    """Steps until the loss is below 2.2, 1.0 and 0.5; `turned`: in coordinates turned by a random rotation."""
    net = Plateau(seed)
    rotation = torch.eye(len(net.start))
    if turned:
        rotation = torch.linalg.qr(torch.randn(*rotation.shape, generator=torch.Generator().manual_seed(100 + seed)))[0]
    step = METHODS.get(name, lambda p, g, s, lr: (p - lr * g / g.norm() * len(g) ** 0.5, s))  # else: normalised gradient
    point, state, hits = rotation.T @ net.start, {}, {}
    for k in range(most + 1):
        loss, grad = net.grad(rotation @ point if turned else point)
        hits |= {limit: k for limit in (2.2, 1.0, 0.5) if loss < limit and limit not in hits}
        if len(hits) == 3 or not math.isfinite(loss):
            break
        point, state = step(point, rotation.T @ grad if turned else grad, state, lr=lr)
    return [hits.get(limit) for limit in (2.2, 1.0, 0.5)]


def plateau(seeds: int = 5) -> dict:
    grids = {"SGD": (0.1, 0.3, 1.0, 2.0, 3.0), "momentum": (0.03, 0.1, 0.3, 0.5, 1.0), "AdaGrad": (0.003, 0.01, 0.03, 0.1),
             "RMSprop": (3e-4, 1e-3, 3e-3, 1e-2), "Adam": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
             "fixed length": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
    jobs = [(seed, name, lr, turned) for name, rates in grids.items() for lr in rates
            for turned in ((False, True) if name in ("AdaGrad", "RMSprop", "Adam") else (False,)) for seed in range(seeds)]
    below: dict = {"2.2": {}, "1": {}, "0.5": {}}
    for (seed, name, lr, turned), hits in zip(jobs, each(leaving, jobs)):
        for table, steps in zip(below.values(), hits):
            table.setdefault(name + ", turned" * turned, {}).setdefault(f"{lr:g}", []).append(steps)
    paths = each(curvatures, [(seed,) for seed in range(seeds)])
    return {"what": "tanh 64-32-32-10 on digits, full batch, start 0.02 * normal, biases 0: the Hessian's lowest and highest eigenvalue "
                    "along gradient descent at lr 0.1; steps until the training loss is below 2.2, 1 and 0.5, by method, learning rate "
                    "and seed (null: not within 800); turned: in coordinates turned by a random rotation",
            "paths": paths, **{f"below {limit}": table for limit, table in below.items()}}


# --- rare features, and what v is ------------------------------------------------------------------------------------

def rare_surprise(name: str, lr: float, seed: int) -> list[float]:
    """Next byte from the byte before: mean surprise (nats) on held-out text after bytes of all, rare, middling, common share."""
    text = data.pycode(1_000_000)
    before, after, held = text.train[:-1].long(), text.train[1:].long(), text.val.long()
    group = torch.bucketize((torch.bincount(before, minlength=256) / len(before))[held[:-1]], torch.tensor([1e-3, 1e-2]))
    table, state, g = torch.zeros(256, 256), {}, torch.Generator().manual_seed(seed)
    for _ in range(300):
        i = torch.randint(len(before), (512,), generator=g)
        error = (table[before[i]].softmax(1) - F.one_hot(after[i], 256)) / 512
        table, state = METHODS[name](table, torch.zeros(256, 256).index_add_(0, before[i], error), state, lr=lr)
    surprise = -table.log_softmax(1)[held[:-1], held[1:]]
    return [surprise.mean().item(), *(surprise[group == k].mean().item() for k in range(3))]


def rare(seeds: int = 5) -> dict:
    grids = {"SGD": (10, 20, 30, 50), "momentum": (2, 5, 10, 20), "AdaGrad": (0.2, 0.5, 1.0), "RMSprop": (0.01, 0.02, 0.03, 0.05),
             "Adam": (0.02, 0.03, 0.05, 0.1)}
    jobs = [(name, lr, seed) for name, rates in grids.items() for lr in rates for seed in range(seeds)]
    found: dict = {}
    for (name, lr, _), values in zip(jobs, each(rare_surprise, jobs)):
        found.setdefault(name, {}).setdefault(lr, []).append(values)
    result = {}
    for name, by_rate in found.items():
        lr = min(by_rate, key=lambda rate: np.mean(by_rate[rate], axis=0)[0])
        kinds = zip(("all", "rare", "middling", "common"), np.transpose(by_rate[lr]))
        result[name] = {"lr": lr, **{kind: interval(values) for kind, values in kinds}}
    return {"what": "mean surprise (nats) of the next byte of Python source, 300 steps of 512 pairs, best overall learning rate, "
                    f"{seeds} seeds; rare: after bytes below 0.1% of the text, common: above 1%", "surprise": result}


def moments() -> dict:
    g, state = torch.Generator().manual_seed(0), {}
    for _ in range(10_000):
        _, state = LAB["adam_step"](torch.zeros(1000), 1 + 0.5 * torch.randn(1000, generator=g), state)
    return {"what": "Adam's corrected v after 10,000 gradients of mean 1 and variance 0.25, mean and 95% interval over 1000 coordinates",
            "v": interval((state["v"] / (1 - 0.999 ** state["t"])).numpy())}


# --- speed -----------------------------------------------------------------------------------------------------------

def flat() -> dict:
    torch.set_num_threads(1)  # what costs is to start an operation; threads that wait for each other would hide it

    def make_inputs(elements: int, tensors: int = 200):
        def tensor_lists(seed: int) -> tuple:
            g = torch.Generator().manual_seed(seed)
            params, grads = ([torch.randn(elements, generator=g) for _ in range(tensors)] for _ in range(2))
            states = [{"m": torch.zeros(elements), "v": torch.ones(elements), "t": 5} for _ in range(tensors)]
            return params, grads, states, {"m": torch.zeros(tensors * elements), "v": torch.ones(tensors * elements), "t": 5}
        return tensor_lists

    loop = lambda params, grads, states, _: [LAB["adam_step"](p, g, s) for p, g, s in zip(params, grads, states)]
    one = lambda params, grads, _, state: LAB["flat_adam_step"](params, grads, state)
    ratios = {}
    for elements in (64, 256, 1024, 4096, 16384, 65536):
        r = timing.compare(one, loop, make_inputs(elements), seconds=10, device="cpu")
        ratios[elements] = {"ratio": round(r.ratio, 3), "interval": [round(r.low, 3), round(r.high, 3)],
                            "flat_ms": round(1e3 * r.candidate_seconds, 4), "loop_ms": round(1e3 * r.baseline_seconds, 4)}
    return {"what": "200 tensors, one thread: time of adam_step on each over flat_adam_step, 95% interval", "ratios": ratios,
            "bandwidth": timing.memory_bandwidth("cpu")}


if __name__ == "__main__":
    main(__file__, escape, settle, sensitivity, faster, switch, plateau, rare, moments, flat)
