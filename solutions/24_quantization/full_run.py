"""The long measurements of lab 24, with seeds: `python full_run.py [PART ...]` writes full_run.json beside this file.

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run: `post` (rounding a trained network), `aware` (training on with rounding in place, and the
control without), `distilled` (a distilled student, rounded), `text` (a transformer), and `sixteen` (speed and bytes of
float16, bfloat16 and int8). Between half an hour and an hour of one core; each part is written when it is done.
"""
import copy
import functools

import torch
import torch.nn.functional as F

from course import data, lowbits, models, timing, train
from course.full_run import interval, lab_functions, main

torch.set_num_threads(1)
LAB = lab_functions(__file__, r"def (quantize_affine|dequantize|symmetric_scale|per_channel_scales|affine_grid|calibrate|dynamic_int8_linear"
                              r"|fake_quantize|aware|smooth_scales)\(")
SEEDS = 5
WIDTHS = range(2, 9)
RULES = ("minmax", "percentile", "mse")
SCALES = {"tensor": lambda w, bits: LAB["symmetric_scale"](w, bits), "channel": LAB["per_channel_scales"]}


def summary(rows: list[dict]) -> dict:
    """Mean and interval over the seeds of every number in dicts that are nested alike."""
    first = rows[0]
    return {key: summary([row[key] for row in rows]) if isinstance(value, dict) else interval([row[key] for row in rows])
            for key, value in first.items()}


# --- the convolutional network ---------------------------------------------------------------------------------------

glyphs = functools.cache(lambda: data.glyphs(12_000, classes=36, distortion=0.5))


def accuracy(net) -> float:
    return train.accuracy(net, glyphs().test_x, glyphs().test_y)


@functools.cache
def network(seed: int) -> lowbits.Folded:
    """The lab's network, trained as in the lab."""
    torch.manual_seed(seed)
    model = lowbits.MobileNet()
    train.train(model, glyphs(), steps=400, lr=lambda step: 0.01 * max(0.02, 1 - step / 400), seed=seed, progress=False)
    return lowbits.Folded(model)


def samples(net, seed: int) -> list:
    """20,000 of the numbers that come into each layer, from 256 training images."""
    g = torch.Generator().manual_seed(seed)
    return [x.flatten()[torch.randint(x.numel(), (20_000,), generator=g)] for x in net.inputs(glyphs().train_x[:256])]


def ranges(seen: list, bits: int, rule: str) -> list:
    return [LAB["calibrate"](x, bits, rule) for x in seen]


def rounded(net, seen: list) -> dict:
    """Accuracy with weights alone, with weights and activations (mse), and with activations alone by each rule (weights at 8 bits)."""
    with_bits = LAB["with_bits"]
    return {"float32": accuracy(net),
            "weights": {name: {b: accuracy(with_bits(net, b, scales)) for b in WIDTHS} for name, scales in SCALES.items()},
            "both": {name: {b: accuracy(with_bits(net, b, scales, ranges(seen, b, "mse"))) for b in WIDTHS}
                     for name, scales in SCALES.items()},
            "activations": {rule: {b: accuracy(with_bits(net, 8, ranges=ranges(seen, b, rule), input_bits=b)) for b in WIDTHS}
                            for rule in RULES}}


def post() -> dict:
    nets = [network(seed) for seed in range(SEEDS)]
    rows = [rounded(net, samples(net, seed)) for seed, net in enumerate(nets)]
    w = nets[0].weights
    held = {"float32": sum(4 * p.numel() for p in w), "int8": sum(p.numel() + 4 * len(p) for p in w)}
    return {"what": f"test accuracy of the lab's MobileNet on glyphs (36 classes), 400 steps, {SEEDS} seeds, mean and 95% interval: weights "
                    "alone; weights and activations, ranges by least squares; activations alone by three rules, weights at 8 bits. "
                    "bytes: weights and a float32 scale for each channel", "accuracy": summary(rows),
            "minus float32": summary([{name: {b: row["both"][name][b] - row["float32"] for b in WIDTHS} for name in SCALES} for row in rows]),
            "bytes": held}


def aware(widths: tuple = (2, 3, 4, 8), steps: int = 150) -> dict:
    rows = []
    for seed in range(SEEDS):
        net = network(seed)
        longer = net.copy()
        train.train(longer, glyphs(), steps=steps, lr=lambda step: 3e-3 * (1 - step / steps), seed=seed, progress=False)
        seen, seen_longer = samples(net, seed), samples(longer, seed)
        rows.append({"float32": accuracy(net), "float32, trained on": accuracy(longer),
                     "rounded": {b: accuracy(LAB["with_bits"](net, b, ranges=ranges(seen, b, "mse"))) for b in widths},
                     "trained on, then rounded": {b: accuracy(LAB["with_bits"](longer, b, ranges=ranges(seen_longer, b, "mse"))) for b in widths},
                     "trained on with rounding": {b: accuracy(LAB["aware"](net, glyphs(), seen, b, steps, seed)) for b in widths}})
    gain = [{b: row["trained on with rounding"][b] - row["trained on, then rounded"][b] for b in widths} for row in rows]
    return {"what": f"the networks of `post`, weights (a scale for each channel) and activations rounded: at once; after {steps} more steps "
                    "without rounding; after as many with it (straight-through estimator). Test accuracy", "accuracy": summary(rows),
            "with rounding minus without": summary(gain)}


# --- distilled, then rounded -----------------------------------------------------------------------------------------

def distil(student, teacher_logits, seed: int, steps: int = 400, temperature: float = 3.0, soft: float = 0.9):
    """Train a small MobileNet with hard labels and, where there are a teacher's logits, soft ones."""
    images, g = glyphs(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters())
    student.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * max(0.02, 1 - step / steps)
        i = torch.randint(len(images.train_x), (64,), generator=g)
        z = student(images.train_x[i])
        loss = F.cross_entropy(z, images.train_y[i])
        if teacher_logits is not None:
            target = (teacher_logits[i] / temperature).softmax(1)
            kl = F.kl_div((z / temperature).log_softmax(1), target, reduction="batchmean") * temperature**2
            loss = soft * kl + (1 - soft) * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


def distilled() -> dict:
    torch.manual_seed(0)
    teacher = lowbits.MobileNet((32, 64, 128, 128))
    train.train(teacher, glyphs(), steps=400, lr=lambda step: 0.01 * max(0.02, 1 - step / 400), seed=0, progress=False)
    teacher.eval()
    with torch.no_grad():
        logits = torch.cat([teacher(x) for x in glyphs().train_x.split(500)])
    rows = []
    for seed in range(SEEDS):
        row = {}
        for name, labels in (("hard labels", None), ("distilled", logits)):
            torch.manual_seed(seed)
            net = lowbits.Folded(distil(lowbits.MobileNet((8, 16, 32, 32)), labels, seed))
            seen = samples(net, seed)
            made = {b: accuracy(LAB["with_bits"](net, b, ranges=ranges(seen, b, "mse"))) for b in (8, 6, 4)}
            row[name] = {"float32": accuracy(net), "rounded": made, "loss of accuracy": {b: accuracy(net) - a for b, a in made.items()}}
        rows.append(row)
    size = lambda net: sum(w.numel() for w in lowbits.Folded(net).weights)
    return {"what": f"a MobileNet of 8-16-32-32 channels learns from hard labels, or also from a teacher of 32-64-128-128 (temperature 3, "
                    f"weight 0.9), 400 steps, {SEEDS} seeds; then weights and activations are rounded", "teacher": round(accuracy(teacher), 5),
            "weights": {"teacher": size(teacher), "student": size(lowbits.MobileNet((8, 16, 32, 32)))}, "accuracy": summary(rows)}


# --- the transformer -------------------------------------------------------------------------------------------------

def loss_in_int8(model, text, alpha=None) -> float:
    """Validation loss with every linear layer of the blocks in int8, a scale for each token and each row of the weight."""
    largest = lowbits.largest_inputs(model, text.batch(64, 64, torch.Generator().manual_seed(1))[0])  # of the training text

    def int8(name, layer):
        w = layer.weight.detach()
        s = torch.ones(w.shape[1]) if alpha is None else LAB["smooth_scales"](largest[name], w, alpha)
        S = LAB["per_channel_scales"](w * s)
        q = LAB["quantize_affine"](w * s, S)
        return lambda x: LAB["dynamic_int8_linear"](x / s, q, S[:, 0], layer.bias)
    return validation_loss(lowbits.replace_linears(model, int8), text)


def validation_loss(model, text) -> float:
    return train.evaluate(model, *text.batch(64, 64, torch.Generator().manual_seed(0), "val"), batch_size=64)[0]


def loss_in_groups(model, text, bits: int, group: int | None) -> float:
    """Validation loss with the blocks' matrices at few bits, a scale for each `group` neighbours in a row, or for the tensor."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name.startswith("blocks") and w.ndim == 2:
                rows = w.reshape(-1, group or w.numel())
                S = LAB["per_channel_scales"](rows, bits)
                w.copy_(LAB["dequantize"](LAB["quantize_affine"](rows, S, bits=bits), S).reshape(w.shape))
    return validation_loss(model, text)


def text(seeds: int = 3) -> dict:
    source, rows = data.pycode(1_000_000), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        lm = models.Transformer(d=64, layers=2, length=64)
        train.train(lm, source, steps=300, batch_size=32, lr=lambda step: 3e-3 * min(1, (step + 1) / 20) * (1 - step / 300), seed=seed, progress=False)
        base = validation_loss(lm, source)
        planted = {f: lowbits.plant_outliers(lm, f) for f in (1, 10, 30, 100, 300)}
        rows.append({"float32": base,
                     "int8 minus float32": {f: loss_in_int8(m, source) - base for f, m in planted.items()},
                     "smoothed minus float32": {f: loss_in_int8(m, source, 0.5) - base for f, m in planted.items()},
                     "weights alone minus float32": {f"{bits} bits, {group or 'tensor'}": loss_in_groups(lm, source, bits, group) - base
                                                     for bits in (8, 4, 3) for group in (None, 64, 32, 16)}})
    return {"what": f"validation loss (nats) of a transformer (2 layers, d = 64) on pycode, 300 steps, {seeds} seeds. int8: all linear layers of "
                    "the blocks, a scale for each token and each row; by the factor of the planted outliers, plain and smoothed with alpha 0.5. "
                    "weights alone: by bits and size of the group that shares a scale", "loss": summary(rows)}


# --- speed and bytes -------------------------------------------------------------------------------------------------

def sixteen() -> dict:
    def layer(rows: int, size: int):
        def make(seed: int) -> tuple:
            x, w = torch.randn(rows, size), torch.randn(size, size)
            S = LAB["per_channel_scales"](w)
            return x, w, LAB["quantize_affine"](w, S), S[:, 0], w.half(), w.bfloat16()
        return make

    float32 = lambda x, w, q, S, half, brain: F.linear(x, w)
    ways = {"float16": lambda x, w, q, S, half, brain: F.linear(x.half(), half).float(),
            "bfloat16": lambda x, w, q, S, half, brain: F.linear(x.bfloat16(), brain).float(),
            "int8": lambda x, w, q, S, half, brain: LAB["dynamic_int8_linear"](x, q, S)}
    faster = {}
    for rows in (1, 256):
        for size in (256, 512, 1024, 2048):
            for name, way in ways.items():
                r = timing.compare(way, float32, layer(rows, size), seconds=2, device="cpu")
                faster.setdefault(f"{rows} x {size}", {})[name] = [round(v, 3) for v in (r.ratio, r.low, r.high)]
    return {"what": "a square linear layer on one thread: how many times faster than float32, inputs converted there and back; 95% interval",
            "faster": faster, "bytes of a number": {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}}


if __name__ == "__main__":
    main(__file__, post, aware, distilled, text, sixteen)
