"""What the functions of this lab must do: the part that only the grader has."""
from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from course import data, distil
from course.spec import assert_that, exercise
from course.spec.load import import_file

visible = import_file(Path(__file__).with_name("test_visible.py"))
some, few, generators, temperatures, weights = visible.some, visible.few, visible.generators, visible.temperatures, visible.weights
pairs, mixtures, map_pairs, guesses, answers = visible.pairs, visible.mixtures, visible.map_pairs, visible.guesses, visible.answers
divergence, hard, scalar_gradients = visible.divergence, visible.hard, visible.scalar_gradients
assert_number, assert_tensor, assert_gradient = visible.assert_number, visible.assert_tensor, visible.assert_gradient


# ---------------------------------------------------------------- kd_loss

@exercise("kd_loss", points=4)
@some
@given(pair=pairs(), T=temperatures)
def test_neither_copies_of_the_batch_nor_impossible_classes_change_the_loss(student, pair, T):
    """The mean goes over the images, and the classes are summed. With reduction="mean", kl_div divides by the number of classes too: use
    "batchmean"."""
    z, v, labels = pair
    expected = T**2 * divergence(z, v, T).mean()
    impossible = torch.full((len(z), 3), -200.0 * T)
    larger = [torch.cat([logits, impossible], 1).repeat(2, 1) for logits in (z, v)]
    assert_number(student.kd_loss(*larger, labels.repeat(2), T, 1.0, 0.0), expected, "the soft loss of twice the batch with three "
        "classes more")


# ---------------------------------------------------------------- kd_gradient

@exercise("kd_gradient", points=4)
@few
@given(pair=pairs())
def test_large_T_comes_close_to_the_limit(student, pair):
    """With the factor T**2 in the loss the gradient goes neither to zero nor to infinity as T grows: T (q - p) / B."""
    z, v, _ = (t.double() if t.is_floating_point() else t for t in pair)
    centred = lambda t: t - t.mean(1, keepdim=True)
    expected = (centred(z) - centred(v)) / z.numel()
    assert_tensor(student.kd_gradient(z, v, 1e4), expected, "the gradient at T = 10000", rtol=1e-2, atol=1e-3)


@exercise("kd_gradient", points=4)
@few
@given(pair=pairs(), T=st.sampled_from([1.0, 4.0, math.inf]), shift=st.floats(-20, 20))
def test_a_number_added_to_all_logits_of_an_image_changes_nothing(student, pair, T, shift):
    """A softmax does not see it, and in the limit the mean of each row is taken away, from the teacher's too."""
    z, v, _ = (t.double() if t.is_floating_point() else t for t in pair)
    expected = student.kd_gradient(z, v, T)
    shifts = shift * torch.linspace(-1, 1, len(z)).double()[:, None]
    assert_tensor(student.kd_gradient(z + 3 * shifts, v + shifts, T), expected, "the gradient after a shift", atol=1e-6)
    assert_that(bool((expected != 0).any()), "The gradient is zero, although the two networks differ.")


# ---------------------------------------------------------------- pseudo_labels

@exercise("pseudo_labels", points=2)
@few
@given(guess=guesses(), is_hard=st.booleans())
def test_a_threshold_of_zero_keeps_all_and_one_above_one_nothing(student, guess, is_hard):
    """Each image keeps its row of targets; only `keep` says whether it counts."""
    logits, _ = guess
    for threshold, expected in ((0.0, True), (1.01, False)):
        keep = visible.targets_and_keep(student, logits, threshold, is_hard, 2.0)[1]
        assert_that(bool((keep == expected).all()), f"With a threshold of {threshold:g}, {int(keep.sum())} of {len(keep)} images are "
            f"kept.")


@exercise("pseudo_labels", points=2)
@few
@given(guess=guesses(), is_hard=st.booleans())
def test_a_number_added_to_all_logits_changes_no_pseudo_label(student, guess, is_hard):
    """The threshold is for probabilities, not for logits."""
    logits, threshold = guess
    targets, keep = visible.targets_and_keep(student, logits, threshold, is_hard, 2.0)
    moved, still = visible.targets_and_keep(student, logits - 7, threshold, is_hard, 2.0)
    assert_that(bool((keep == still).all()), "Adding a number to all logits changed which images are kept.")
    assert_tensor(moved, targets, "the targets after a shift of the logits")


# ---------------------------------------------------------------- mixed_loss

@exercise("mixed_loss", points=2)
@few
@given(mixture=mixtures(), first=weights, second=weights)
def test_the_weight_belongs_to_the_unlabelled_images(student, mixture, first, second):
    """The labelled part has the weight 1, whatever the other's is."""
    parts = [float(student.mixed_loss(*mixture, weight)) for weight in (first, second)]
    each = visible.mixed(*mixture, 1.0) - hard(*mixture[:2])
    assert_number(parts[0] - parts[1], (first - second) * each, "the difference that the weight makes", atol=1e-5)


@exercise("mixed_loss", points=2)
@few
@given(mixture=mixtures(), weight=weights)
def test_gradients_reach_both_batches(student, mixture, weight):
    """The network learns from the labelled images and from the kept ones: both need gradients."""
    z, labels, z_u, targets, keep = mixture
    leaves = [t.double().requires_grad_(True) for t in (z, z_u)]
    expected = torch.autograd.grad(visible.mixed(leaves[0], labels, leaves[1], targets, keep, weight), leaves)
    got = scalar_gradients(student.mixed_loss, z, labels, z_u, targets, keep, weight)[1]
    assert_gradient(got[0], expected[0], "the labelled images' logits")
    assert_gradient(got[1], expected[1], "the unlabelled images' logits")


# ---------------------------------------------------------------- calibration_error

@exercise("calibration_error", points=3)
@few
@given(answer=answers(), bins=st.sampled_from([1, 2, 50]))
def test_few_bins_and_empty_bins_are_no_problem(student, answer, bins):
    """With one bin the error is the gap of the two means; with fifty most bins are empty, and an empty bin adds nothing."""
    got = student.calibration_error(*answer, bins)
    assert_number(got, visible.error_by_bins(*answer, bins), f"calibration_error with {bins} bins")


# ---------------------------------------------------------------- deployed_net

@exercise("deployed_net", points=2)
@few
@given(random=generators(), channels=st.sampled_from([(4,), (3, 2), (2, 3, 2, 4)]))
def test_the_numbers_say_how_many_layers_there_are(student, random, channels):
    """Go on while there is a "convs.0.weight", "convs.1.weight", ... in the state; the kernel's size is in the weight's shape."""
    net, x = visible.trained(random, channels, 3), torch.rand(2, 1, 16, 11, generator=random)
    visible.assert_logits(student.deployed_net(x, visible.numbers(net)), net, x)


@functools.cache
def other_characters():
    return data.glyphs(2400, classes=36, distortion=0.5, seed=2)


@exercise("deployed_net", points=2)
def test_the_small_network_loses_at_most_one_point(student):
    """With the trained numbers of the small network its accuracy on unseen characters is the module's, within a point of the teacher's."""
    characters, folder = other_characters(), Path(__file__).parent
    teacher, small = distil.networks(folder)
    accuracy = lambda logits: 100 * (logits.argmax(1) == characters.train_y).double().mean().item()
    with torch.no_grad():
        best = accuracy(teacher(characters.train_x))
    got = accuracy(student.deployed_net(characters.train_x, visible.numbers(small)))
    assert_that(got >= best - 1, f"The teacher answers {best:.1f}% right, the deployed network {got:.1f}%.")


# ---------------------------------------------------------------- attention_map_loss, born_again (optional)

@exercise("attention_map_loss", points=0)
@few
@given(case=map_pairs())
def test_the_attention_of_the_small_network_can_be_learnt(student, case):
    """The gradient must reach the student's map."""
    maps, wanted, _ = case
    leaf = (maps + 0.1).double().requires_grad_(True)
    loss = (visible.attention(leaf) - visible.attention(wanted + 0.1)).square().sum(1).mean()
    (expected,) = torch.autograd.grad(loss, leaf)
    assert_gradient(scalar_gradients(student.attention_map_loss, maps + 0.1, wanted + 0.1)[1][0], expected, "the student's map")


@exercise("born_again", points=0)
@few
@given(random=generators(), rounds=st.integers(1, 3))
def test_every_generation_is_trained_once(student, random, rounds):
    """One call of fit for each generation, the first with one-hot labels. A training is expensive."""
    learner, _, _ = visible.generations(student, random, rounds, 2.0)
    assert_that(len(learner.asked) == rounds, f"fit was called {len(learner.asked)} times for {rounds} generations.")
    first = learner.asked[0]
    assert_that(bool(((first == 0) | (first == 1)).all()) and bool((first.sum(1) == 1).all()),
        "The first generation's targets are not one-hot.")
