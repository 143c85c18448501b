"""The lab's experiments with several seeds, and those that are too long for the notebook: python full_run.py [PART ...]

It runs the functions of the lab that lies beside it: the reference in the course's own repository, yours in a student's.
Without PART all of them run: `temperature` (T, alpha, the mean over classes, calibration), `sizes` (where the gain ends as data
grow), `unlabelled` (few labels and many images), `hints` (inner maps), `withheld` (a character never seen), `shrinking` (in rounds, or
at once), `generations` (born again), `teachers` (wrong ones, small ones) and `speed`. About twelve minutes of one core.
"""
import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from course import data, distil, models, timing, train, work
from course.full_run import interval, lab_functions, main

torch.set_num_threads(1)
LAB = lab_functions(__file__, r"def "
    r"(softmax_T|kd_loss|pseudo_labels|mixed_loss|feature_loss|calibration_error|deployed_net|learn|share_bias)\(")
learn = lambda *args, **options: LAB["learn"](*args, **options)
SEEDS = range(4)
glyphs = functools.cache(lambda: data.glyphs(12_000, classes=36, distortion=0.5))
pair = functools.cache(lambda: distil.networks(Path(__file__).parent))
NAMES = data.GLYPHS[:36]


@torch.no_grad()
def logits_of(net, x) -> torch.Tensor:
    return torch.cat([net(part) for part in x.split(500)])


@functools.cache
def world() -> tuple:
    """Training images, labels, and the teacher's logits for them."""
    return glyphs().train_x, glyphs().train_y, logits_of(pair()[0], glyphs().train_x)


def accuracy(net) -> float:
    return train.accuracy(net, glyphs().test_x, glyphs().test_y)


def calibration(net) -> float:
    return LAB["calibration_error"](logits_of(net, glyphs().test_x).softmax(1), glyphs().test_y)


def labels_only(y=None):
    x, own, _ = world()
    y = own if y is None else y
    return lambda net, i: F.cross_entropy(net(x[i]), y[i])


def taught(T: float = 4.0, alpha: float = 1.0, beta: float = 0.0, v=None):
    x, y, own = world()
    v = own if v is None else v
    return lambda net, i: LAB["kd_loss"](net(x[i]), v[i], y[i], T, alpha, beta)


def pool(n: int, seed: int) -> torch.Tensor:
    """n training images, others for each seed, as many of each class as possible."""
    x, y, _ = world()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(100 + seed))
    rank = torch.empty_like(y)
    for k in range(36):
        mine = order[y[order] == k]
        rank[mine] = torch.arange(len(mine))
    return order[rank[order].argsort(stable=True)][:n]


def summary(rows: dict[str, list[float]], base: str) -> dict:
    """Each row's interval, and that of what it gains over `base`, seed by seed: the same sample of images, the same first weights."""
    return {"accuracy": {name: interval(row) for name, row in rows.items()},
            f"minus {base}": {name: interval([a - b for a, b in zip(row, rows[base])]) for name, row in rows.items() if name != base}}


def temperature(n: int = 720) -> dict:
    mean_of_classes = taught(4.0, 0.9 / 36, 0.1)
    arms = {"labels": labels_only(), **{f"T = {T:g}": taught(T) for T in (1, 2, 4, 8, 16)},
            **{f"alpha = {a:g}": taught(4.0, a, 1 - a) for a in (0.5, 0.9)}, "mean over classes too, alpha = 0.9": mean_of_classes}
    found, errors = {}, {}
    for name, loss in arms.items():
        nets = [learn(loss, pool(n, seed), seed=seed) for seed in SEEDS]
        found[name], errors[name] = [accuracy(net) for net in nets], interval([calibration(net) for net in nets])
    return {"what": f"a small network learns {n} images in 300 steps from labels, from the teacher's answers at temperature T (alpha 1, "
        f"beta 0), or from both at "
                    f"T = 4 (beta = 1 - alpha): test accuracy and expected calibration error (15 bins) with 95% intervals over "
                    f"{len(SEEDS)} seeds and samples",
            **summary(found, "labels"), "calibration error": errors, "teacher": [accuracy(pair()[0]), calibration(pair()[0])]}


def sizes() -> dict:
    found: dict = {"labels": {}, "soft answers": {}, "soft minus labels": {}}
    for n in (180, 720, 2880, 10_000):
        rows = [[accuracy(learn(loss, pool(n, seed), steps=600, seed=seed)) for seed in SEEDS] for loss in (labels_only(), taught())]
        found["labels"][n], found["soft answers"][n] = map(interval, rows)
        found["soft minus labels"][n] = interval([b - a for a, b in zip(*rows)])
    return {"what": f"test accuracy of the small network by the number of training images; 600 steps, T = 4, alpha 1, beta 0; "
        f"{len(SEEDS)} seeds and samples",
            "accuracy": found}


def with_unlabelled(targets, keep, labelled):
    """The loss of a batch of labelled images and one of unlabelled ones, whose targets and flags are given for all images."""
    x, y, _ = world()
    others = torch.ones(len(y), dtype=torch.bool)
    others[labelled] = False
    others, random = others.nonzero()[:, 0], torch.Generator().manual_seed(0)

    def loss(net, i):
        j = others[torch.randint(len(others), (32,), generator=random)]
        z, z_u = net(torch.cat([x[i], x[j]])).split(32)
        return LAB["mixed_loss"](z, y[i], z_u, targets[j], keep[j])
    return loss


def unlabelled(n: int = 360) -> dict:
    x, y, v = world()
    rows: dict = {}
    for seed in SEEDS:
        mine = pool(n, seed)
        first = learn(labels_only(), mine, seed=seed)
        guesses = logits_of(first, x)
        arms = {"its own, hard, 0.9": LAB["pseudo_labels"](guesses, 0.9),
            "its own, soft, all": LAB["pseudo_labels"](guesses, 0.0, False), "the teacher's, hard": LAB["pseudo_labels"](v, 0.0),
                "the teacher's, soft": LAB["pseudo_labels"](v, 0.0, False, 1.0), "the true labels": (F.one_hot(y, 36).float(), y >= 0)}
        nets = {"labels only": first, **{name: learn(with_unlabelled(*a, mine), mine, seed=seed) for name, a in arms.items()}}
        for name, net in nets.items():
            rows.setdefault(name, []).append(accuracy(net))
    return {"what": f"{n} images with labels and the others without: test accuracy after 300 steps of 32 labelled and 32 unlabelled "
        f"images, by the answers used for the "
                    f"unlabelled ones; {len(SEEDS)} seeds and samples", **summary(rows, "labels only")}


def hints(n: int = 360) -> dict:
    x, y, v = world()
    teacher = pair()[0]
    with torch.no_grad():
        maps = torch.cat([teacher.maps(part)[1] for part in x.split(500)])

    def hinted(seed: int, weight: float, first: int):
        """`first` steps of the inner maps alone, then the answers; or both together, with a weight."""
        projection = torch.randn(80, 24, generator=torch.Generator().manual_seed(seed)).div_(5).requires_grad_()
        step = [0]

        def loss(net, i):
            step[0] += 1
            inner = LAB["feature_loss"](net.maps(x[i])[1], maps[i], projection) if step[0] <= first or weight else 0
            return inner if step[0] <= first else taught()(net, i) + weight * inner
        return learn(loss, pool(n, seed), seed=seed, extra=(projection,))
    arms = {"labels": lambda seed: learn(labels_only(), pool(n, seed), seed=seed),
        "answers": lambda seed: learn(taught(), pool(n, seed), seed=seed),
            "inner maps for 100 steps, then answers": lambda seed: hinted(seed, 0.0, 100),
            "both together": lambda seed: hinted(seed, 10.0, 0)}
    return {"what": f"{n} images, 300 steps: labels, the teacher's answers at T = 4, its second layer's maps first, or with a weight of "
        f"10 all the time; "
                    f"{len(SEEDS)} seeds and samples", **summary({name: [accuracy(make(seed)) for seed in SEEDS] for name,
                    make in arms.items()}, "answers")}


def withheld(characters: str = "3BK") -> dict:
    x, y, v = world()
    rows = {}
    for character in characters:
        k = NAMES.index(character)
        seen, mine = (y != k).nonzero()[:, 0], glyphs().test_y == k
        for seed in range(2):
            net = learn(taught(), seen, steps=600, seed=seed)
            bias = LAB["share_bias"](logits_of(net, x[:3600]), k, 1 / 36)
            z = logits_of(net, glyphs().test_x)
            row = [(z[mine].argmax(1) == k).double().mean().item(), accuracy(net)]
            z[:, k] += bias
            right = z.argmax(1) == glyphs().test_y
            rows.setdefault(character, []).append([*row, right[mine].double().mean().item(), right.double().mean().item(), bias])
    keys = ("recall", "accuracy", "recall, corrected", "accuracy, corrected", "bias")
    return {"what": "the small network learns the teacher's answers (T = 4) to the images of all classes but one, 600 steps, means of 2 "
        "seeds; the correction adds to that class's logit what "
                    "makes its mean probability 1/36 on 3,600 training images; recall: share of the withheld class's test images that "
                    "are recognised",
            "by character": {c: {key: round(torch.tensor(r).double().mean(0)[m].item(), 4) for m, key in enumerate(keys)} for c,
            r in rows.items()}}


CHAIN = (distil.LARGE, (24, 48, 80), distil.SMALL, (6, 12, 20))


def shrinking(n: int = 1440) -> dict:
    x, y, v = world()
    found: dict = {"labels": {}, "at once": {}, "in rounds": {}, "in rounds minus at once": {}}
    answers = {seed: v for seed in SEEDS}
    for channels in CHAIN[1:]:
        size = models.n_parameters(distil.ConvNet(channels))
        rows: dict = {"labels": [], "at once": [], "in rounds": []}
        for seed in SEEDS:
            for name, loss in (("labels", labels_only()), ("at once", taught()), ("in rounds", taught(v=answers[seed]))):
                net = learn(loss, pool(n, seed), channels=channels, seed=seed)
                rows[name].append(accuracy(net))
            answers[seed] = logits_of(net, x)  # the last of the three teaches the next round
        for name, row in rows.items():
            found[name][size] = interval(row)
        found["in rounds minus at once"][size] = interval([a - b for a, b in zip(rows["in rounds"], rows["at once"])])
    return {"what": f"networks of channels {CHAIN[1:]} learn {n} images in 300 steps: from labels, from the large teacher at once, or "
        f"each from the one before it; T = 4; "
                    f"test accuracy, {len(SEEDS)} seeds and samples",
            "teacher": {"parameters": models.n_parameters(pair()[0]), "accuracy": accuracy(pair()[0])}, "accuracy": found}


def generations(n: int = 720, rounds: int = 3) -> dict:
    x, _, _ = world()
    rows: list = []
    for seed in SEEDS:
        loss, row = labels_only(), []
        for k in range(rounds):
            net = learn(loss, pool(n, seed), seed=10 * seed + k)
            row.append(accuracy(net))
            loss = taught(T=1.0, v=logits_of(net, x))
        rows.append(row)
    return {"what": f"generations of the small network on {n} images, 300 steps each: the first learns the labels, each other the "
        f"answers of the one before at T = 1; "
                    f"test accuracy, {len(SEEDS)} seeds and samples", "accuracy": [interval(column) for column in zip(*rows)],
            "minus the first": [interval([a - b for a, b in zip(column, list(zip(*rows))[0])]) for column in list(zip(*rows))[1:]]}


def teachers(n: int = 2880) -> dict:
    """A teacher that learnt from partly wrong labels teaches a network that sees the same images."""
    x, y, _ = world()
    found: dict = {}
    for share in (0.0, 0.4):
        random = torch.Generator().manual_seed(7)
        wrong = torch.rand(len(y), generator=random) < share
        noisy = torch.where(wrong, torch.randint(36, y.shape, generator=random), y)
        rows: dict = {"teacher": [], "the same labels": [], "its soft answers": [], "its hard answers": []}
        for seed in SEEDS:
            mine = pool(n, seed)
            teacher = learn(labels_only(noisy), mine, channels=(24, 48, 80), seed=seed)
            v = logits_of(teacher, x)
            rows["teacher"].append(accuracy(teacher))
            for name, loss in (("the same labels", labels_only(noisy)), ("its soft answers", taught(v=v)),
                ("its hard answers", labels_only(v.argmax(1)))):
                rows[name].append(accuracy(learn(loss, mine, seed=50 + seed)))
        found[share] = summary(rows, "the same labels")
    return {"what": f"{n} images of which a share has a random label; a teacher of 24-48-80 channels learns them, and small networks "
        f"learn the same labels or its answers (T = 4); "
                    f"300 steps, {len(SEEDS)} seeds and samples; test accuracy", "by share": found}


def speed() -> dict:
    teacher, small = pair()
    state = small.state_dict()
    images = glyphs().test_x
    found = {}
    for batch in (1, 4, 16, 64, 256):
        draw = lambda seed: (images[torch.randint(len(images), (batch,), generator=torch.Generator().manual_seed(seed))],)
        with torch.no_grad():
            r = timing.compare(lambda x: LAB["deployed_net"](x, state), teacher, draw, seconds=4, device="cpu")
        found[batch] = {"ratio": [round(t, 3) for t in (r.ratio, r.low, r.high)], "teacher_ms": round(1e3 * r.baseline_seconds, 4),
                        "small_ms": round(1e3 * r.candidate_seconds, 4)}
    counted = {name: {"parameters": models.n_parameters(net), "multiply_adds": work.count(net, images[:1]).multiply_adds,
                      "bytes": 4 * models.n_parameters(net)} for name, net in (("teacher", teacher), ("small", small))}
    return {"what": "time of the teacher's module over that of deployed_net with the small network's numbers, one thread, 95% "
        "intervals", "ratios": found, "counted": counted,
            "accuracy": {"teacher": accuracy(teacher), "small": accuracy(small)}}


if __name__ == "__main__":
    main(__file__, temperature, sizes, unlabelled, hints, withheld, shrinking, generations, teachers, speed)
