"""What the functions of this lab must do: the part that a student has too.

Closed forms in float64 and torch's autograd say what is right. Inputs are random; the probes at the end have fixed ones.
"""
from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from course import distil, timing, work
from course.spec import assert_close, assert_that, exercise, probe, speed
from course.spec.student import StudentError

# Every example costs calls, and a call in grading a millisecond or more.
some, few = settings(max_examples=10), settings(max_examples=5)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, 10.0])
weights = st.sampled_from([0.1, 0.5, 0.9, 1.0, 2.0])


@st.composite
def generators(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))


def normal(random: torch.Generator, *shape: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=random)


def shares(random: torch.Generator, n: int, classes: int) -> Tensor:
    """[n, classes] probabilities, some of them sharp."""
    return normal(random, n, classes, size=3.0).softmax(1)


@st.composite
def pairs(draw) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the small network and of the teacher [B, N], and labels [B]."""
    random, n, classes = draw(generators()), draw(st.integers(2, 6)), draw(st.integers(3, 9))
    labels = torch.randint(classes, (n,), generator=random)
    return normal(random, n, classes, size=3.0), normal(random, n, classes, size=3.0), labels


def divergence(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """KL(p || q) at temperature T, image by image: [B], in float64."""
    log_p, log_q = (F.log_softmax(logits.double() / T, 1) for logits in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def hard(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.double(), labels)


def assert_number(got, expected, what: str, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    """A Python number or a tensor of one element will do."""
    assert_that(isinstance(got, (int, float)) or isinstance(got, Tensor) and got.numel() == 1,
                f"{what} must be a single number, not "
                f"{f'a tensor of shape {list(got.shape)}' if isinstance(got, Tensor) else type(got).__name__}.")
    assert_close(float(got), float(expected), what, rtol=rtol, atol=atol)


def assert_tensor(got, expected: Tensor, what: str, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    """The shape counts, the number of bits does not."""
    if isinstance(got, Tensor) and got.is_floating_point():
        got = got.double()
    assert_close(got, expected.double(), what, rtol=rtol, atol=atol)


def scalar_gradients(function, *args) -> tuple:
    """The value of a loss, and its gradients for the tensors in `args`."""
    return function.vjp(*args, cotangent=torch.tensor(1.0))


def assert_gradient(got, expected, what: str) -> None:
    assert_that(got is not None, f"No gradient reaches {what}: something on the way was detached, or is not differentiable.")
    assert_tensor(got, expected, f"the gradient for {what}", rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- softmax_T

@exercise("softmax_T", points=5)
@some
@given(random=generators(), shape=st.sampled_from([(7,), (3, 5), (2, 3, 4)]), T=temperatures)
def test_the_answer_at_T_is_the_softmax_of_the_logits_over_T(student, random, shape, T):
    """Divide the logits by T first; then exponentials, divided by their sum over the last dimension."""
    logits = normal(random, *shape, size=5.0)
    assert_tensor(student.softmax_T(logits, T), (logits.double() / T).softmax(-1), "softmax_T")


@exercise("softmax_T", points=3)
@some
@given(random=generators(), T=st.sampled_from([1.0, 2.0, 4.0]))
def test_logits_of_any_size_give_probabilities(student, random, T):
    """exp(100) does not fit into float32. Subtract from each row its own largest logit first: it changes no quotient. And divide by T before
    the exponential: what became zero there stays zero."""
    rows = torch.tensor([[800.0], [0.0], [-800.0], [500.0]])
    logits = rows + torch.randint(-8, 9, (4, 6), generator=random)
    assert_tensor(student.softmax_T(logits, T), (logits.double() / T).softmax(-1), "softmax_T of large logits", rtol=1e-3)
    spread = 200 * torch.rand(3, 5, generator=random) * torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    assert_tensor(student.softmax_T(spread, 50 * T), (spread.double() / (50 * T)).softmax(-1), "softmax_T of logits that lie far apart, at a "
        "high T", rtol=1e-3)


@exercise("softmax_T", points=4)
@some
@given(random=generators(), T=temperatures)
def test_gradients_pass_through_the_softmax(student, random, T):
    """A network learns through it: use tensor operations only, without .detach(), .item() or torch.no_grad()."""
    logits, up = normal(random, 3, 5, size=3.0), normal(random, 3, 5)
    leaf = logits.double().requires_grad_(True)
    (expected,) = torch.autograd.grad(((leaf / T).softmax(-1) * up).sum(), leaf)
    assert_gradient(student.softmax_T.vjp(logits, T, cotangent=up)[1][0], expected, "the logits")


# ---------------------------------------------------------------- kd_loss

@exercise("kd_loss", points=8)
@some
@given(pair=pairs(), T=temperatures, alpha=weights, beta=weights)
def test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy(student, pair, T, alpha, beta):
    """Both networks' answers at temperature T for the soft part, times T**2; the plain cross entropy for the hard part; each summed over the
    classes and averaged over the batch."""
    z, v, labels = pair
    expected = alpha * T**2 * divergence(z, v, T).mean() + beta * hard(z, labels)
    assert_number(student.kd_loss(z, v, labels, T, alpha, beta), expected, "kd_loss")


@exercise("kd_loss", points=3)
@few
@given(pair=pairs(), T=temperatures)
def test_nothing_is_left_to_learn_where_both_networks_agree(student, pair, T):
    """The soft part is a divergence, log p - log q weighed with p: it is zero where p = q. A cross entropy is not."""
    z, _, labels = pair
    assert_number(student.kd_loss(z, z.clone(), labels, T, 1.0, 0.0), 0.0, "the soft loss of two networks that agree", atol=1e-4)


@exercise("kd_loss", points=3)
@few
@given(pair=pairs(), T=temperatures, beta=weights)
def test_the_hard_part_knows_neither_T_nor_the_teacher(student, pair, T, beta):
    """The labels are learnt at temperature 1, whatever T is; beta is the weight of this part."""
    z, v, labels = pair
    assert_number(student.kd_loss(z, v, labels, T, 0.0, beta), beta * hard(z, labels), "the loss with alpha = 0")


@exercise("kd_loss", points=3)
@few
@given(pair=pairs(), T=temperatures)
def test_logits_of_any_size_give_a_finite_loss(student, pair, T):
    """log(softmax) of a class that got probability 0 is minus infinity. log_softmax is finite."""
    z, v, labels = (t * 500 if t.is_floating_point() else t for t in pair)
    expected = T**2 * divergence(z, v, T).mean() + hard(z, labels)
    assert_number(student.kd_loss(z, v, labels, T, 1.0, 1.0), expected, "the loss of large logits", rtol=1e-3)


@exercise("kd_loss", points=3)
@some
@given(pair=pairs(), T=temperatures, alpha=weights, beta=weights)
def test_the_small_network_learns_from_both_parts(student, pair, T, alpha, beta):
    """The gradient must reach the small network's logits through the soft and through the hard part."""
    z, v, labels = pair
    leaf = z.double().requires_grad_(True)
    (expected,) = torch.autograd.grad(alpha * T**2 * divergence(leaf, v, T).mean() + beta * hard(leaf, labels), leaf)
    assert_gradient(scalar_gradients(student.kd_loss, z, v, labels, T, alpha, beta)[1][0], expected, "the small network's logits")


# ---------------------------------------------------------------- kd_gradient

@exercise("kd_gradient", points=5)
@some
@given(pair=pairs(), T=temperatures)
def test_the_closed_form_is_what_autograd_finds(student, pair, T):
    """The derivative of KL for z is (q - p) / T; the factor T**2 of the loss makes T (q - p) of it, the mean over the batch divides by B."""
    z, v, _ = pair
    leaf = z.double().requires_grad_(True)
    (expected,) = torch.autograd.grad(T**2 * divergence(leaf, v, T).mean(), leaf)
    assert_tensor(student.kd_gradient(z, v, T), expected, "the gradient for the small network's logits", rtol=1e-3)


@exercise("kd_gradient", points=1)
@few
@given(pair=pairs(), T=st.sampled_from([150.0, 300.0]))
def test_a_large_T_is_not_yet_infinite(student, pair, T):
    """The closed form holds for every finite T. The limit is for T = math.inf only."""
    z, v = pair[0].double().requires_grad_(True), pair[1].double()
    (expected,) = torch.autograd.grad(T**2 * divergence(z, v, T).mean(), z)
    assert_tensor(student.kd_gradient(z.detach(), v, T), expected, f"the gradient at T = {T:g}", rtol=1e-4, atol=1e-7)


@exercise("kd_gradient", points=4)
@some
@given(pair=pairs())
def test_at_infinite_T_the_logits_themselves_are_compared(student, pair):
    """For T = math.inf return the limit: take from each row of z and v its mean, subtract, divide by B and by N."""
    z, v, _ = pair
    centred = lambda t: t.double() - t.double().mean(1, keepdim=True)
    assert_tensor(student.kd_gradient(z, v, math.inf), (centred(z) - centred(v)) / z.numel(), "the gradient at T = inf")


# ---------------------------------------------------------------- pseudo_labels

@st.composite
def guesses(draw) -> tuple[Tensor, float]:
    """Logits of which some are sure and some are not, and a threshold that none of them just reaches."""
    random, classes = draw(generators()), draw(st.integers(3, 8))
    logits = normal(random, 8, classes, size=2.0) * torch.linspace(0.3, 2.5, 8)[:, None]
    sure = logits.double().softmax(1).amax(1).sort().values
    apart = [k for k in range(7) if sure[k + 1] - sure[k] > 1e-3]
    k = draw(st.sampled_from(apart))
    return logits, float(sure[k] + sure[k + 1]) / 2


def targets_and_keep(student, logits: Tensor, *args) -> tuple[Tensor, Tensor]:
    """What pseudo_labels returns, if it has the right form."""
    got = student.pseudo_labels(logits, *args)
    assert_that(type(got) in (tuple, list) and len(got) == 2 and all(isinstance(t, Tensor) for t in got),
                "pseudo_labels must return two tensors: targets and keep.")
    targets, keep = got
    assert_that(tuple(targets.shape) == tuple(logits.shape),
                f"targets must have a row of {logits.shape[1]} probabilities for each of the {len(logits)} images, kept or not; "
                f"their shape is {list(targets.shape)}.")
    assert_that(targets.is_floating_point(), f"targets must be floating-point numbers, not {targets.dtype}: they are probabilities.")
    assert_that(tuple(keep.shape) == (len(logits),) and keep.dtype == torch.bool,
                f"keep must be a bool for each of the {len(logits)} images; it is {keep.dtype} of shape {list(keep.shape)}.")
    return got


@exercise("pseudo_labels", points=4)
@some
@given(guess=guesses(), T=temperatures)
def test_kept_is_what_the_network_is_sure_of(student, guess, T):
    """keep is True where the largest probability, at temperature 1, is at least the threshold."""
    logits, threshold = guess
    expected = logits.double().softmax(1).amax(1) >= threshold
    assert_close(targets_and_keep(student, logits, threshold, True, T)[1], expected, "keep")
    entirely = torch.tensor([[300.0, 0.0, 0.0], [2.0, 1.0, 0.0]])    # a probability of exactly 1, and one below
    assert_close(targets_and_keep(student, entirely, 1.0, True, T)[1], torch.tensor([True, False]),
                 "keep of an image whose largest probability is exactly 1, and of another, with the threshold 1")


@exercise("pseudo_labels", points=3)
@some
@given(guess=guesses())
def test_a_hard_target_is_one_at_the_best_guess(student, guess):
    """hard=True: 1 at the class with the largest logit, 0 elsewhere, as floating-point numbers. Of equal ones any, but only one: argmax."""
    logits, threshold = guess
    expected = F.one_hot(logits.argmax(1), logits.shape[1])
    assert_tensor(targets_and_keep(student, logits, threshold, True)[0], expected, "hard targets")
    equal = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert_tensor(targets_and_keep(student, equal, threshold, True)[0].sum(1), torch.ones(2),
                  "the sum of each row of hard targets, where two or three logits are equal and the largest,")


@exercise("pseudo_labels", points=3)
@some
@given(guess=guesses(), T=temperatures)
def test_a_soft_target_is_the_answer_at_T(student, guess, T):
    """hard=False: softmax_T(logits, T). Only the targets know T."""
    logits, threshold = guess
    assert_tensor(targets_and_keep(student, logits, threshold, False, T)[0], (logits.double() / T).softmax(1), "soft targets")


# ---------------------------------------------------------------- mixed_loss

@st.composite
def mixtures(draw) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z, labels, z_u, targets, keep: a few images with labels, more without, some of which are kept."""
    random, classes, more = draw(generators()), draw(st.integers(3, 6)), draw(st.integers(4, 9))
    keep = torch.arange(more) % 3 != 1
    return (normal(random, 3, classes, size=2.0), torch.randint(classes, (3,), generator=random),
            normal(random, more, classes, size=2.0), shares(random, more, classes), keep)


def mixed(z: Tensor, labels: Tensor, z_u: Tensor, targets: Tensor, keep: Tensor, weight: float = 1.0) -> Tensor:
    each = -(targets.double() * z_u.double().log_softmax(1)).sum(1)
    return hard(z, labels) + weight * each[keep].sum() / len(keep)


@exercise("mixed_loss", points=4)
@some
@given(mixture=mixtures(), weight=weights)
def test_the_labelled_and_the_kept_images_teach_together(student, mixture, weight):
    """The cross entropy with the labels, plus weight times the cross entropy with the targets: summed over the images that are kept, divided by
    the number of all unlabelled ones."""
    assert_number(student.mixed_loss(*mixture, weight), mixed(*mixture, weight), "mixed_loss")


@exercise("mixed_loss", points=3)
@few
@given(mixture=mixtures())
def test_what_is_not_kept_teaches_nothing(student, mixture):
    """Multiply each unlabelled image's loss by keep, or pick the kept ones before you sum: the others must not move the network."""
    z, labels, z_u, targets, keep = mixture
    loss, gradients = scalar_gradients(student.mixed_loss, z, labels, z_u, targets, keep)
    assert_that(gradients[1] is not None, "No gradient reaches the logits of the unlabelled images.")
    assert_tensor(gradients[1][~keep], torch.zeros_like(z_u[~keep]), "the gradient for images that are not kept")
    assert_that(bool((gradients[1][keep] != 0).any()), "The images that are kept get no gradient either.")


@exercise("mixed_loss", points=2)
@few
@given(mixture=mixtures(), weight=weights)
def test_with_nothing_kept_only_the_labels_teach(student, mixture, weight):
    """Divide by the number of all unlabelled images. The number of those kept is zero at the start of many a training, and 0 / 0 is NaN."""
    z, labels, z_u, targets, keep = mixture
    assert_number(student.mixed_loss(z, labels, z_u, targets, torch.zeros_like(keep), weight), hard(z, labels),
        "the loss with nothing kept")


@exercise("mixed_loss", points=1)
@few
@given(mixture=mixtures())
def test_large_logits_of_either_batch_give_a_finite_loss(student, mixture):
    """log(softmax) of a class that got probability 0 is minus infinity. log_softmax is finite, and cross_entropy uses it."""
    z, labels, z_u, targets, keep = mixture
    large = (300 * z, labels, 300 * z_u, targets, keep)
    assert_number(student.mixed_loss(*large), mixed(*large), "the loss of large logits", rtol=1e-3)


# ---------------------------------------------------------------- feature_loss

@st.composite
def map_pairs(draw) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's maps [B, c, h, w] and [B, C, h, w], and a projection [C, c]."""
    random, (c, C) = draw(generators()), draw(st.sampled_from([(2, 3), (3, 5), (4, 4)]))
    B, h, w = draw(st.sampled_from([(2, 3, 3), (3, 2, 4), (1, 5, 2)]))
    return normal(random, B, c, h, w).relu(), normal(random, B, C, h, w).relu(), normal(random, C, c)


def projected(maps: Tensor, projection: Tensor) -> Tensor:
    return F.conv2d(maps.double(), projection.double()[:, :, None, None])


@exercise("feature_loss", points=5)
@some
@given(case=map_pairs())
def test_the_loss_is_the_mean_square_of_what_is_left_after_projecting(student, case):
    """At each place multiply the c channels by the matrix [C, c], subtract the teacher's C numbers, and take the mean of the squares over
    everything: batch, channels and places."""
    maps, wanted, projection = case
    expected = (projected(maps, projection) - wanted.double()).square().mean()
    assert_number(student.feature_loss(maps, wanted, projection), expected, "feature_loss")


@exercise("feature_loss", points=3)
@few
@given(case=map_pairs())
def test_maps_that_a_projection_turns_into_the_teachers_cost_nothing(student, case):
    """It is the student's map that is projected, from c channels to the teacher's C; the teacher's stays as it is."""
    maps, _, projection = case
    wanted = projected(maps, projection).float()
    assert_number(student.feature_loss(maps, wanted, projection), 0.0, "the loss of maps that fit", atol=1e-9)


@exercise("feature_loss", points=4)
@few
@given(case=map_pairs())
def test_the_projection_learns_with_the_network(student, case):
    """Both the student's map and the projection need gradients: the matrix is trained along and thrown away afterwards."""
    maps, wanted, projection = case
    leaves = [t.double().requires_grad_(True) for t in (maps, projection)]
    loss = (torch.einsum("Oc,bcij->bOij", leaves[1], leaves[0]) - wanted.double()).square().mean()
    expected = torch.autograd.grad(loss, leaves)
    got = scalar_gradients(student.feature_loss, maps, wanted, projection)[1]
    assert_gradient(got[0], expected[0], "the student's map")
    assert_gradient(got[2], expected[1], "the projection")


# ---------------------------------------------------------------- calibration_error

@st.composite
def answers(draw) -> tuple[Tensor, Tensor]:
    """Probabilities [n, N] of which none is as large as a bin's edge, and labels that are right about half of the time."""
    random, classes = draw(generators()), draw(st.integers(3, 6))
    probs = shares(random, 40, classes).double()
    best = probs.argmax(1)
    labels = torch.where(torch.rand(40, generator=random) < 0.6, best, torch.randint(classes, (40,), generator=random))
    return probs, labels


def error_by_bins(probs: Tensor, labels: Tensor, bins: int) -> float:
    sure, right = probs.amax(1), (probs.argmax(1) == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    error = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            error += inside.double().mean().item() * abs(right[inside].mean() - sure[inside].mean()).item()
    return error


@exercise("calibration_error", points=5)
@some
@given(answer=answers(), bins=st.sampled_from([5, 10, 15]))
def test_the_error_is_the_gap_of_each_bin_weighed_with_its_share(student, answer, bins):
    """Sort the images into bins by their largest probability. In each bin compare the share of right answers with the mean probability; add up
    the sizes of these gaps, each times the share of the images that the bin holds."""
    assert_number(student.calibration_error(*answer, bins), error_by_bins(*answer, bins), "calibration_error")


@exercise("calibration_error", points=3)
@few
@given(random=generators(), parts=st.sampled_from([4, 5]))
def test_who_is_right_as_often_as_sure_has_no_error(student, random, parts):
    """Of images with the answer 3/4, three in four should be right: then the gap is zero, in every bin."""
    sure = 1 - 1 / parts
    probs = torch.full((parts * 6, 3), (1 - sure) / 2, dtype=torch.float64)
    probs[:, 0] = sure
    labels = (torch.arange(len(probs)) % parts == 0).long()  # one in `parts` is wrong
    order = torch.randperm(len(probs), generator=random)
    assert_number(student.calibration_error(probs[order], labels[order], 7), 0.0, "the error of a calibrated network")


@exercise("calibration_error", points=2)
@few
@given(random=generators())
def test_who_is_always_sure_errs_as_often_as_wrong(student, random):
    """A probability of exactly 1 belongs to the last bin."""
    right = torch.rand(20, generator=random) < 0.7
    probs = F.one_hot(torch.zeros(20, dtype=torch.long), 3).double()
    assert_number(student.calibration_error(probs, (~right).long()), 1 - right.double().mean(),
        "the error of a network that is always sure")


@exercise("calibration_error", points=1)
@few
@given(random=generators())
def test_an_edge_belongs_to_the_bin_below_it(student, random):
    """The bins are (0, 1/M], (1/M, 2/M], ...: a probability of exactly 1/2 lies in the second of four bins, together with 3/8."""
    sure = torch.tensor([0.5, 0.375] * 4 + [0.75, 0.625] * 4, dtype=torch.float64)
    probs = torch.stack([sure, (1 - sure) / 2, (1 - sure) / 2], 1)[torch.randperm(16, generator=random)]
    labels = ((probs[:, 0] == 0.375) | (probs[:, 0] == 0.75)).long()     # in each bin one half is right
    assert_number(student.calibration_error(probs, labels, 4), error_by_bins(probs, labels, 4), "calibration_error of answers on the edges")


# ---------------------------------------------------------------- deployed_net

def trained(random: torch.Generator, channels: tuple[int, ...], classes: int = 5) -> distil.ConvNet:
    """A network with all its numbers random, running averages included, in evaluation mode."""
    net = distil.ConvNet(channels, classes)
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if t.is_floating_point():
                t.copy_(torch.randn(t.shape, generator=random) * (0.3 if "convs" in name else 1))
                if name.endswith("running_var"):
                    t.square_().add_(0.05)[0] = 1e-3  # so small that eps counts
    return net.eval()


def numbers(net: distil.ConvNet) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items() if t.is_floating_point()}


def assert_logits(got, net: distil.ConvNet, x: Tensor) -> None:
    with torch.no_grad():
        expected = net.double()(x.double())
    assert_tensor(got, expected, "the logits", rtol=1e-3, atol=1e-3)


@exercise("deployed_net", points=5)
@few
@given(random=generators(), n=st.integers(2, 5))
def test_logits_are_those_of_the_module_in_evaluation_mode(student, random, n):
    """Each layer: a convolution of stride 2, padded by half a kernel; (x - mean) / sqrt(var + 1e-5) times weight plus bias, with the running
    numbers; ReLU. Then the mean over the places, and the head."""
    net, x = trained(random, (3, 4, 5)), torch.rand(n, 1, 12, 12, generator=random)
    assert_logits(student.deployed_net(x, numbers(net)), net, x)


@exercise("deployed_net", points=3)
@few
@given(random=generators())
def test_an_answer_does_not_depend_on_the_other_images(student, random):
    """BatchNorm in evaluation mode uses the running mean and variance that it was trained with, never those of the batch."""
    net, x = trained(random, (2, 3, 4)), torch.rand(4, 1, 10, 10, generator=random)
    alone = student.deployed_net(x[:1], numbers(net))
    together = student.deployed_net(x, numbers(net))
    assert_that(isinstance(together, Tensor) and isinstance(alone, Tensor) and tuple(together.shape) == (4,
        5) and tuple(alone.shape) == (1, 5),
                "The logits must have a row for each image and a column for each class.")
    assert_tensor(together[:1], alone.double(), "the logits of an image among others (expected: those of the image alone)", rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- attention_map_loss, optional

def attention(maps: Tensor) -> Tensor:
    energy = maps.double().square().mean(1).flatten(1)
    return energy / energy.norm(dim=1, keepdim=True)


@exercise("attention_map_loss", points=0)
@some
@given(case=map_pairs())
def test_the_loss_compares_where_both_networks_look(student, case):
    """Squares, their mean over the channels, each image's map flattened and divided by its length; then the squared distance of the two, averaged
    over the batch."""
    maps, wanted, _ = case
    expected = (attention(maps + 0.1) - attention(wanted + 0.1)).square().sum(1).mean()
    assert_number(student.attention_map_loss(maps + 0.1, wanted + 0.1), expected, "attention_map_loss")


@exercise("attention_map_loss", points=0)
@few
@given(case=map_pairs(), factor=st.sampled_from([0.01, 3.0, 100.0]))
def test_the_strength_of_a_map_does_not_matter(student, case, factor):
    """Each image's map is divided by its own length, so that twice the activation looks at the same places."""
    maps, _, _ = case
    assert_number(student.attention_map_loss(maps + 0.1, factor * (maps + 0.1)), 0.0, "the loss of a map and its multiple", atol=1e-6)


# ---------------------------------------------------------------- ensemble_teacher, optional

@exercise("ensemble_teacher", points=0)
@some
@given(random=generators(), T=temperatures)
def test_the_arithmetic_ensemble_is_the_mean_of_the_answers(student, random, T):
    """First each teacher's softmax at T, then the mean over the teachers."""
    logits = normal(random, 3, 4, 5, size=4.0)
    assert_tensor(student.ensemble_teacher(logits, T), (logits.double() / T).softmax(-1).mean(0), "the ensemble's answer")


@exercise("ensemble_teacher", points=0)
@some
@given(random=generators(), T=temperatures)
def test_the_geometric_ensemble_is_the_softmax_of_the_mean_logits(student, random, T):
    """geometric=True: the geometric mean of the answers, made to add up to one again. It is the softmax of the mean of the logits."""
    logits = normal(random, 3, 4, 5, size=4.0)
    assert_tensor(student.ensemble_teacher(logits, T, True), (logits.double() / T).mean(0).softmax(-1), "the geometric ensemble's answer")


# ---------------------------------------------------------------- born_again, optional

class Learner:
    """A stand-in for a training: logits that depend on the targets and on how often it was asked."""

    def __init__(self, random: torch.Generator, classes: int):
        self.mix, self.asked = normal(random, classes, classes, size=2.0), []

    def fit(self, targets: Tensor) -> Tensor:
        assert_that(isinstance(targets, Tensor) and targets.is_floating_point() and targets.ndim == 2,
                    "fit wants targets as floating-point probabilities, a row for each image.")
        self.asked.append(targets.clone())
        return targets.to(self.mix.dtype) @ self.mix + len(self.asked)


def generations(student, random: torch.Generator, rounds: int, T: float) -> tuple[Learner, list, list]:
    """The learner, what born_again returned, and what it should have."""
    classes, labels = 4, torch.randint(4, (6,), generator=random)
    learner = Learner(random, classes)
    got = student.born_again(learner.fit, labels, classes, rounds, T)
    targets, expected = F.one_hot(labels, classes).double(), []
    for number in range(1, rounds + 1):
        expected.append(targets @ learner.mix.double() + number)
        targets = (expected[-1] / T).softmax(1)
    return learner, got, expected


@exercise("born_again", points=0)
@few
@given(random=generators(), rounds=st.integers(2, 4), T=temperatures)
def test_each_generation_learns_the_soft_answers_of_the_one_before(student, random, rounds, T):
    """The first one learns the labels, one-hot; every later one softmax_T(logits of the one before, T). Return the logits of all."""
    learner, got, expected = generations(student, random, rounds, T)
    assert_that(len(learner.asked) == rounds, f"fit was called {len(learner.asked)} times for {rounds} generations. A training is expensive: one "
        "call for each generation.")
    assert_that(type(got) in (tuple, list), "born_again must return a list with the logits of each generation.")
    assert_that(len(got) == rounds, f"born_again returned {len(got)} generations where {rounds} were asked for.")
    for number, (mine, theirs) in enumerate(zip(got, expected), start=1):
        assert_tensor(mine, theirs, f"the logits of generation {number}", atol=1e-4)


# ---------------------------------------------------------------- speed

HERE = Path(__file__).parent
BATCH, BATCHES = 256, 2


@functools.cache
def kept() -> dict:
    """The two networks and the images, read once."""
    images, labels = distil.fresh_images(HERE)
    teacher, small = distil.networks(HERE)
    return {"images": images, "labels": labels, "teacher": teacher, "small": small, "state": numbers(small)}


def image_batches(seed: int) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Two batches of 256 characters that no network was trained on, each a little darker than it was; and the small network's numbers."""
    random, all = torch.Generator().manual_seed(seed), kept()
    picks = [torch.randint(len(all["images"]), (BATCH,), generator=random) for _ in range(BATCHES)]
    light = [1 - 0.1 * torch.rand(BATCH, 1, 1, 1, generator=random) for _ in picks]
    return [all["images"][i] * factor for i, factor in zip(picks, light)], [all["labels"][i] for i in picks], all["state"]


@torch.no_grad()
def share_of_right_answers(function, images: list[Tensor], labels: list[Tensor], state: dict[str, Tensor]) -> Tensor:
    right = [(function(x, state).argmax(1) == y).double().mean() for x, y in zip(images, labels)]
    return torch.stack(right).mean()


def multiply_adds_at_peak() -> tuple[float, str]:
    counted = work.count(kept()["small"], kept()["images"][:BATCH]).multiply_adds * BATCHES
    return 2 * counted / timing.peak_flops("cpu"), f"{counted:,} multiply-adds of the small network, at the rate of the best matrix product here"


@speed("deployed_net", points=15, ratio=4.0, inputs=image_batches, work=share_of_right_answers, limit=multiply_adds_at_peak, rtol=0,
    atol=0.06)
def teacher(x, state):
    """Two batches of 256 images: the small network, as you deploy it, against the teacher's module."""
    return kept()["teacher"](x)


# ---------------------------------------------------------------- probes: fixed questions that tell mistakes apart

def waves(*shape: int, phase: float = 0.0, size: float = 1.0) -> Tensor:
    return size * torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase).reshape(shape)


Z, V, LABELS = waves(3, 4, size=3.0), waves(3, 4, phase=1.0, size=2.0) + 0.5, torch.tensor([1, 0, 3])
MAPS, WANTED, PROJECTION = waves(2, 2, 3, 3).abs(), waves(2, 3, 3, 3, phase=0.4).abs(), waves(3, 2, phase=0.9)


def plain(result):
    """As float64, so that a number of bits does not hide a mistake; lists for tuples."""
    if isinstance(result, Tensor):
        return result.double()
    return [plain(part) for part in result] if type(result) in (tuple, list) else result


def kind(result) -> str:
    return f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__


def outcome(call):
    """The result, or that there was none: for mistakes that end in an exception."""
    try:
        return plain(call())
    except StudentError as error:
        return "an argument was changed" if "changed its argument" in str(error) else "an exception"


@probe("softmax_T")
def answers_at_three_temperatures(student):
    return [plain(student.softmax_T(Z, T)) for T in (0.5, 1.0, 4.0)] + [plain(student.softmax_T(Z[:, :3].T.contiguous(), 2.0))]


@probe("softmax_T")
def large_and_unequal_rows(student):
    return [plain(student.softmax_T(torch.tensor([[9000.0, 9001.0], [-9000.0, -9002.0], [1.0, 2.0]]), 2.0)),
            plain(student.softmax_T(torch.tensor([[150.0, 0.0, -150.0]]), 100.0))]


@probe("softmax_T")
def gradient_of_the_answer(student):
    return student.softmax_T.vjp(Z, 2.0, cotangent=waves(3, 4, phase=2.0))[1]


@probe("kd_loss")
def losses(student):
    return [plain(student.kd_loss(Z, V, LABELS, T, a, b)) for T, a,
        b in ((1.0, 1.0, 0.0), (4.0, 1.0, 0.0), (4.0, 0.0, 1.0), (2.0, 0.9, 0.3), (0.5, 0.2, 1.0))]


@probe("kd_loss")
def losses_of_large_logits(student):
    return outcome(lambda: student.kd_loss(1000 * Z.float(), 1000 * V.float(), LABELS, 1.0, 1.0, 1.0))


@probe("kd_loss")
def gradient_of_the_loss(student):
    return plain(scalar_gradients(student.kd_loss, Z, V, LABELS, 2.0, 0.7, 0.4)[1][0])


@probe("kd_gradient")
def gradients_and_limit(student):
    return [outcome(lambda T=T: student.kd_gradient(Z, V, T)) for T in (0.5, 1.0, 4.0, 50.0, 300.0, math.inf)]


@probe("pseudo_labels")
def targets_of_fixed_logits(student):
    logits = waves(6, 4, size=2.0) * torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0, 3.0], dtype=torch.float64)[:, None]
    return [outcome(lambda c=c: student.pseudo_labels(logits, *c)) for c in ((0.6, True), (0.6, False, 4.0), (0.8, True, 3.0),
        (0.8, False))]


@probe("pseudo_labels")
def an_edge_and_equal_logits(student):
    edge = outcome(lambda: student.pseudo_labels(torch.tensor([[300.0, 0.0], [2.0, 1.0]]), 1.0, True)[1])
    equal = outcome(lambda: student.pseudo_labels(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), 0.2, True)[0])
    return edge, equal.sum(-1) if isinstance(equal, Tensor) else equal


@probe("pseudo_labels")
def kinds_of_targets(student):
    return [kind(t) for t in student.pseudo_labels(Z, 0.6, True)]


MIXTURE = (Z[:2], LABELS[:2], V, waves(3, 4, phase=3.0).softmax(1), torch.tensor([True, False, True]))


@probe("mixed_loss")
def mixed_losses(student):
    nothing = (*MIXTURE[:4], torch.zeros(3, dtype=torch.bool))
    return [outcome(lambda a=a: student.mixed_loss(*a)) for a in ((*MIXTURE, 1.0), (*MIXTURE, 0.5), nothing,
        (*MIXTURE[:4], torch.ones(3, dtype=torch.bool), 2.0))]


@probe("mixed_loss")
def mixed_losses_of_large_logits(student):
    z, labels, z_u, targets, keep = MIXTURE
    return outcome(lambda: student.mixed_loss(1000 * z.float(), labels, 1000 * z_u.float(), targets.float(), keep))


@probe("feature_loss")
def losses_of_maps(student):
    return [outcome(lambda a=a: student.feature_loss(*a)) for a in
            ((MAPS, WANTED, PROJECTION), (MAPS, MAPS + 1, PROJECTION[:2]), (MAPS[:1], WANTED[1:], PROJECTION))]


@probe("feature_loss")
def gradients_of_maps(student):
    return [None if g is None else plain(g) for g in scalar_gradients(student.feature_loss, MAPS, WANTED, PROJECTION)[1][::2]]


@probe("calibration_error")
def errors_of_fixed_answers(student):
    probs, labels = waves(16, 3, size=2.0).softmax(1), torch.arange(16) % 3
    return [outcome(lambda b=b: torch.as_tensor(student.calibration_error(probs, labels, b))) for b in (4, 10, 15)] + [
        outcome(lambda: torch.as_tensor(student.calibration_error(F.one_hot(labels, 3).double(), (labels + (labels == 2)) % 3)))]


@probe("calibration_error")
def errors_on_the_edges_and_of_the_modest(student):
    edges = torch.tensor([[0.5, 0.25, 0.25], [0.375, 0.3125, 0.3125], [0.75, 0.125, 0.125], [0.625, 0.1875, 0.1875]], dtype=torch.float64)
    return [outcome(lambda a=a: torch.as_tensor(student.calibration_error(*a))) for a in
            ((edges, torch.tensor([0, 1, 1, 0]), 4), (edges, torch.tensor([0, 0, 0, 0]), 4), (edges, torch.tensor([1, 0, 2, 1]), 4))]


@probe("deployed_net")
def logits_of_a_fixed_network(student):
    state = {}
    for k, (i, o, size) in enumerate(((1, 2, 5), (2, 3, 3), (3, 2, 3))):
        state |= {f"convs.{k}.weight": waves(o, i, size, size, phase=k).float(), f"norms.{k}.weight": 1 + 0.5 * waves(o, phase=k).float(),
                  f"norms.{k}.bias": 0.6 + waves(o, phase=1.0).float(), f"norms.{k}.running_mean": waves(o, phase=2.0).float(),
                  f"norms.{k}.running_var": (0.4 + waves(o, phase=3.0).float().abs()) * (torch.arange(o) > 0) + 1e-3}     # one so small that eps counts
    state |= {"head.weight": waves(3, 2).float(), "head.bias": -1 + waves(3, phase=2.5).float()}
    return [outcome(lambda x=x: student.deployed_net(x, state)) for x in (waves(3, 1, 9, 9).float().abs(),
        waves(1, 1, 9, 10).float().abs())]


@probe("attention_map_loss")
def losses_of_attention(student):
    return [plain(student.attention_map_loss(a, b)) for a, b in ((MAPS - 0.5, WANTED), (MAPS, 3 * MAPS), (MAPS[:1], WANTED[1:] - 0.3))]


@probe("attention_map_loss")
def gradient_of_attention(student):
    return [None if g is None else plain(g) for g in scalar_gradients(student.attention_map_loss, MAPS - 0.5, WANTED)[1][:1]]


@probe("ensemble_teacher")
def answers_of_three_teachers(student):
    logits = waves(3, 2, 4, size=3.0)
    return [outcome(lambda a=a: student.ensemble_teacher(logits, *a)) for a in ((1.0,), (4.0,), (1.0, True), (4.0, True))]


@probe("born_again")
def three_generations(student):
    def run(rounds, T):
        asked = []
        def fit(targets):
            asked.append(targets.double())
            return targets.double() @ waves(3, 3, size=2.0) + 0.1 * len(asked)
        return [plain(student.born_again(fit, torch.tensor([0, 2]), 3, rounds, T)), [t.reshape(-1) for t in asked]]
    return [outcome(lambda a=a: run(*a)) for a in ((3, 1.0), (2, 4.0))]
