"""Known wrong answers of lab 23. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from course.spec import mistake

# ---------------------------------------------------------------- softmax_T


@mistake("softmax_T", caught_by="test_the_answer_at_T_is_the_softmax_of_the_logits_over_T")
def without_temperature(logits, T=1.0):
    """T makes no difference to your answer. If you divide by T after the exponential, it cancels with the T of the sum: divide the logits
    before it."""
    return logits.softmax(-1)


@mistake("softmax_T", caught_by="test_the_answer_at_T_is_the_softmax_of_the_logits_over_T")
def logits_times_T(logits, T=1.0):
    """You multiply the logits by T. That makes the answer sharper as T grows. Divide: a high temperature melts the differences."""
    return (logits * T).softmax(-1)


@mistake("softmax_T", caught_by="test_the_answer_at_T_is_the_softmax_of_the_logits_over_T")
def probabilities_over_T(logits, T=1.0):
    """You divide the probabilities by T: they no longer add up to one, and their order of magnitude is all that has changed. Divide the logits
    by T, before the exponential."""
    return logits.softmax(-1) / T


@mistake("softmax_T", caught_by="test_the_answer_at_T_is_the_softmax_of_the_logits_over_T")
def over_the_first_dimension(logits, T=1.0):
    """You normalise over the first dimension, so that each class adds up to one over the images. The classes are the last dimension: sum over
    dim=-1."""
    return (logits / T).softmax(0)


@mistake("softmax_T", caught_by="test_logits_of_any_size_give_probabilities")
def overflowing(logits, T=1.0):
    """Right for small logits, but exp of a large one is infinite, of a very negative one zero, and the quotient NaN. Subtract each row's own
    largest logit before the exponential: the factor cancels."""
    e = (logits / T).exp()
    return e / e.sum(-1, keepdim=True)


@mistake("softmax_T", caught_by="test_logits_of_any_size_give_probabilities")
def one_maximum_for_all(logits, T=1.0):
    """You subtract one maximum of the whole tensor. In a row whose logits are all far below it every exponential is zero, and 0 / 0 is NaN.
    Each row needs its own: amax(-1, keepdim=True)."""
    z = logits / T
    e = (z - z.max()).exp()
    return e / e.sum(-1, keepdim=True)


@mistake("softmax_T", caught_by="test_logits_of_any_size_give_probabilities")
def power_of_the_softmax(logits, T=1.0):
    """You take the softmax at T = 1 and raise it to the power 1/T. In exact numbers that is the same; but a probability that was too small for
    float32 is zero before the power, and stays zero at every T. Divide the logits by T first."""
    p = logits.softmax(-1) ** (1 / T)
    return p / p.sum(-1, keepdim=True)


@mistake("softmax_T", caught_by="test_gradients_pass_through_the_softmax")
def without_gradient(logits, T=1.0):
    """The numbers are right, but no gradient passes: .detach(), .data or torch.no_grad() cuts the network off. Use plain tensor operations."""
    return (logits / T).softmax(-1).detach()


# ---------------------------------------------------------------- kd_loss

def _kd(student_logits, teacher_logits, T):
    """KL(p || q) of each image."""
    return F.kl_div((student_logits / T).log_softmax(-1), (teacher_logits / T).log_softmax(-1), reduction="none", log_target=True).sum(-1)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def mean_over_the_classes_too(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """Your soft part is divided by the number of classes as well: that is what kl_div does with its default, reduction="mean". With 36 classes
    the teacher's voice becomes 36 times weaker. Sum over the classes, and take the mean over the images: reduction="batchmean"."""
    return alpha * T**2 * _kd(student_logits, teacher_logits, T).mean() / student_logits.shape[-1] + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def without_T_squared(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """The factor T**2 is missing. The gradient of the soft part shrinks like 1/T**2, so that at T = 4 the labels would count sixteen times as
    much as you think."""
    return alpha * _kd(student_logits, teacher_logits, T).mean() + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def T_once(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """You multiply the soft part by T. Both the teacher's and the small network's logits are divided by T, and each division takes a factor T from
    the gradient: multiply by T**2."""
    return alpha * T * _kd(student_logits, teacher_logits, T).mean() + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def divergence_turned_round(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """You compute KL(q || p), weighed with the small network's probabilities. Distillation weighs with the teacher's: KL(p || q), which in torch is
    kl_div(log q, p): the network that learns comes first, as logarithm."""
    return alpha * T**2 * _kd(teacher_logits, student_logits, T).mean() + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def weights_swapped(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """You have swapped the weights: alpha belongs to the soft part, the teacher, and beta to the labels. (In one of the course's texts the code
    swaps what its prose says.)"""
    return beta * T**2 * _kd(student_logits, teacher_logits, T).mean() + alpha * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_hard_part_knows_neither_T_nor_the_teacher")
def labels_at_temperature_T(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """You divide the logits by T for the labels as well. The network will be used at temperature 1, and that is where it should match the labels:
    cross_entropy(student_logits, labels)."""
    return alpha * T**2 * _kd(student_logits, teacher_logits, T).mean() + beta * F.cross_entropy(student_logits / T, labels)


@mistake("kd_loss", caught_by="test_nothing_is_left_to_learn_where_both_networks_agree")
def cross_entropy_for_the_divergence(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """Your soft part is the cross entropy, -sum p log q. Its gradient is right, but its value is too large by the teacher's own entropy: it does not
    become zero when both agree. The divergence is sum p (log p - log q)."""
    p = (teacher_logits / T).softmax(-1)
    soft = -(p * (student_logits / T).log_softmax(-1)).sum(-1).mean()
    return alpha * T**2 * soft + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def teacher_at_temperature_one(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """Only the small network's logits are divided by T, the teacher's are not. Both answers must be at the same temperature, or the two can never
    agree."""
    p, log_q = teacher_logits.log_softmax(-1), (student_logits / T).log_softmax(-1)
    return alpha * T**2 * (p.exp() * (p - log_q)).sum(-1).mean() + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_loss_is_alpha_T2_KL_plus_beta_cross_entropy")
def sum_over_the_batch(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """Your soft part is summed over the images, while the hard part is their mean: the larger the batch, the louder the teacher. Take the mean
    over the images in both."""
    return alpha * T**2 * _kd(student_logits, teacher_logits, T).sum() + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_logits_of_any_size_give_a_finite_loss")
def log_of_softmax(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """You take the logarithm of a softmax. Where a probability is too small for float32 it is zero, its logarithm minus infinity, and the loss
    infinite or NaN. log_softmax computes the same and stays finite."""
    p, q = (teacher_logits / T).softmax(-1), (student_logits / T).softmax(-1)
    return alpha * T**2 * (p * (p.log() - q.log())).sum(-1).mean() + beta * F.cross_entropy(student_logits, labels)


@mistake("kd_loss", caught_by="test_the_small_network_learns_from_both_parts")
def soft_part_cut_off(student_logits, teacher_logits, labels, T=4.0, alpha=0.9, beta=0.1):
    """The value is right, but the soft part gives no gradient: the small network's logits are detached in it, so that it learns from the labels
    alone. Detach nothing (the teacher's logits, if anything)."""
    return alpha * T**2 * _kd(student_logits, teacher_logits, T).mean().detach() + beta * F.cross_entropy(student_logits, labels)


# ---------------------------------------------------------------- kd_gradient

def _limit(z, v):
    return ((z - z.mean(-1, keepdim=True)) - (v - v.mean(-1, keepdim=True))) / z.numel()


def _difference(z, v, T):
    return (z / T).softmax(-1) - (v / T).softmax(-1)


@mistake("kd_gradient", caught_by="test_the_closed_form_is_what_autograd_finds")
def as_without_T_squared(student_logits, teacher_logits, T):
    """You return (q - p) / T / B, the gradient of the divergence alone. The loss has the factor T**2, and so has its gradient: T (q - p) / B."""
    if T == math.inf:
        return _limit(student_logits, teacher_logits)
    return _difference(student_logits, teacher_logits, T) / T / len(student_logits)


@mistake("kd_gradient", caught_by="test_the_closed_form_is_what_autograd_finds")
def p_minus_q(student_logits, teacher_logits, T):
    """The sign is wrong: you return the way down. The gradient points uphill: where the small network says more than the teacher, q > p, it is
    positive."""
    if T == math.inf:
        return -_limit(student_logits, teacher_logits)
    return -T * _difference(student_logits, teacher_logits, T) / len(student_logits)


@mistake("kd_gradient", caught_by="test_the_closed_form_is_what_autograd_finds")
def not_divided_by_the_batch(student_logits, teacher_logits, T):
    """You return the gradient of each image's own loss. The loss is the mean over B images: divide by B."""
    if T == math.inf:
        return _limit(student_logits, teacher_logits) * len(student_logits)
    return T * _difference(student_logits, teacher_logits, T)


@mistake("kd_gradient", caught_by="test_the_closed_form_is_what_autograd_finds")
def divided_by_the_classes_too(student_logits, teacher_logits, T):
    """You divide by the number of classes at every T. The N appears only in the limit, because each probability there is close to 1/N."""
    if T == math.inf:
        return _limit(student_logits, teacher_logits)
    return T * _difference(student_logits, teacher_logits, T) / student_logits.numel()


@mistake("kd_gradient", caught_by="test_the_closed_form_is_what_autograd_finds")
def answers_at_temperature_one(student_logits, teacher_logits, T):
    """Your p and q are answers at temperature 1. In T (q - p) / B both are at temperature T."""
    if T == math.inf:
        return _limit(student_logits, teacher_logits)
    return T * _difference(student_logits, teacher_logits, 1.0) / len(student_logits)


@mistake("kd_gradient", caught_by="test_at_infinite_T_the_logits_themselves_are_compared")
def means_left_in(student_logits, teacher_logits, T):
    """In the limit you compare the logits as they are. A number added to all logits of an image changes no answer, so it must not count: take
    each row's mean away from z and from v."""
    if T == math.inf:
        return (student_logits - teacher_logits) / student_logits.numel()
    return T * _difference(student_logits, teacher_logits, T) / len(student_logits)


@mistake("kd_gradient", caught_by="test_at_infinite_T_the_logits_themselves_are_compared")
def no_limit(student_logits, teacher_logits, T):
    """For T = math.inf you get NaN: infinity times zero. The product has a limit all the same; return it in this case."""
    return T * _difference(student_logits, teacher_logits, T) / len(student_logits)


@mistake("kd_gradient", caught_by="test_at_infinite_T_the_logits_themselves_are_compared")
def limit_without_the_classes(student_logits, teacher_logits, T):
    """Your limit is N times too large. For large T a probability is about (1 + z/T) / N: the N stays when the T has gone."""
    if T == math.inf:
        return _limit(student_logits, teacher_logits) * student_logits.shape[-1]
    return T * _difference(student_logits, teacher_logits, T) / len(student_logits)


@mistake("kd_gradient", caught_by="test_a_large_T_is_not_yet_infinite")
def limit_too_early(student_logits, teacher_logits, T):
    """At large T you return the limit, which is only nearly right there. T (q - p) / B holds for every finite T; take the limit for T = math.inf."""
    if T > 100:
        return _limit(student_logits, teacher_logits)
    return T * _difference(student_logits, teacher_logits, T) / len(student_logits)


# ---------------------------------------------------------------- pseudo_labels

def _one_hot(logits):
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


def _targets(logits, hard, T):
    return _one_hot(logits) if hard else (logits / T).softmax(-1)


@mistake("pseudo_labels", caught_by="test_kept_is_what_the_network_is_sure_of")
def sure_at_temperature_T(logits, threshold=0.9, hard=True, T=1.0):
    """You compare the answer at temperature T with the threshold. A high T makes every network look unsure, and nearly nothing is kept. How sure it
    is, it says at temperature 1; T is for the soft targets."""
    return _targets(logits, hard, T), (logits / T).softmax(-1).amax(-1) >= threshold


@mistake("pseudo_labels", caught_by="test_kept_is_what_the_network_is_sure_of")
def logits_against_the_threshold(logits, threshold=0.9, hard=True, T=1.0):
    """You compare the largest logit with the threshold. Logits have no fixed scale, and almost any is above 0.9: take the softmax first."""
    return _targets(logits, hard, T), logits.amax(-1) >= threshold


@mistake("pseudo_labels", caught_by="test_kept_is_what_the_network_is_sure_of")
def the_unsure_are_kept(logits, threshold=0.9, hard=True, T=1.0):
    """You keep the images below the threshold, those about which the network knows least."""
    return _targets(logits, hard, T), logits.softmax(-1).amax(-1) < threshold


@mistake("pseudo_labels", caught_by="test_kept_is_what_the_network_is_sure_of")
def only_the_kept_are_returned(logits, threshold=0.9, hard=True, T=1.0):
    """You return targets for the kept images only. The caller could not tell which images they belong to: return a row for every image, and
    keep says which ones count."""
    keep = logits.softmax(-1).amax(-1) >= threshold
    return _targets(logits, hard, T)[keep], keep


@mistake("pseudo_labels", caught_by="test_a_hard_target_is_one_at_the_best_guess")
def always_soft(logits, threshold=0.9, hard=True, T=1.0):
    """Your targets are soft also where hard=True was asked for. A hard target is 1 at the best guess and 0 elsewhere."""
    return _targets(logits, False, T), logits.softmax(-1).amax(-1) >= threshold


@mistake("pseudo_labels", caught_by="test_a_hard_target_is_one_at_the_best_guess")
def numbers_of_classes(logits, threshold=0.9, hard=True, T=1.0):
    """Your hard targets are the numbers of the classes. Soft ones have a row of probabilities for each image, and hard ones should have the same
    form: torch.nn.functional.one_hot, as floating-point numbers."""
    keep = logits.softmax(-1).amax(-1) >= threshold
    return (logits.argmax(-1) if hard else _targets(logits, False, T)), keep


@mistake("pseudo_labels", caught_by="test_a_soft_target_is_the_answer_at_T")
def always_hard(logits, threshold=0.9, hard=True, T=1.0):
    """Your targets are hard also where hard=False was asked for: then return the whole answer, softmax_T(logits, T)."""
    return _one_hot(logits), logits.softmax(-1).amax(-1) >= threshold


@mistake("pseudo_labels", caught_by="test_a_soft_target_is_the_answer_at_T")
def soft_at_temperature_one(logits, threshold=0.9, hard=True, T=1.0):
    """Your soft targets are at temperature 1 whatever T is. Return softmax_T(logits, T)."""
    return _targets(logits, hard, 1.0), logits.softmax(-1).amax(-1) >= threshold


@mistake("pseudo_labels", caught_by="test_kept_is_what_the_network_is_sure_of")
def only_above_the_threshold(logits, threshold=0.9, hard=True, T=1.0):
    """You keep what lies above the threshold. What just reaches it is kept too: >=. (With a threshold of 1 you would keep nothing.)"""
    return _targets(logits, hard, T), logits.softmax(-1).amax(-1) > threshold


@mistake("pseudo_labels", caught_by="test_a_hard_target_is_one_at_the_best_guess")
def ones_at_all_the_largest(logits, threshold=0.9, hard=True, T=1.0):
    """Where two classes are equally likely your hard target has two ones, and its row adds up to 2. Take one of them: argmax."""
    p = logits.softmax(-1)
    return ((p == p.amax(-1, keepdim=True)).to(p.dtype) if hard else _targets(logits, hard, T)), p.amax(-1) >= threshold


# ---------------------------------------------------------------- mixed_loss

def _each(z_u, targets):
    return -(targets * z_u.log_softmax(-1)).sum(-1)


@mistake("mixed_loss", caught_by="test_the_labelled_and_the_kept_images_teach_together")
def mean_over_the_kept(z, labels, z_u, targets, keep, weight=1.0):
    """You divide by the number of images kept. At the start of a training that may be one, which then counts as much as a whole batch, or none, and
    0 / 0 is NaN. Divide by the number of all unlabelled images."""
    return F.cross_entropy(z, labels) + weight * (_each(z_u, targets) * keep).sum() / keep.sum()


@mistake("mixed_loss", caught_by="test_the_labelled_and_the_kept_images_teach_together")
def mean_over_the_kept_or_one(z, labels, z_u, targets, keep, weight=1.0):
    """You divide by the number of images kept, with a guard against zero. There is no NaN then, but the one image that a network is sure of counts
    as much as a whole batch. Divide by the number of all unlabelled images."""
    return F.cross_entropy(z, labels) + weight * (_each(z_u, targets) * keep).sum() / keep.sum().clamp(min=1)


@mistake("mixed_loss", caught_by="test_large_logits_of_either_batch_give_a_finite_loss")
def logarithm_of_a_softmax(z, labels, z_u, targets, keep, weight=1.0):
    """You take the logarithm of a softmax. Where a probability is too small for float32 it is zero, its logarithm minus infinity, and the loss
    infinite or NaN. log_softmax computes the same and stays finite."""
    each = -(targets * z_u.softmax(-1).log()).sum(-1)
    return F.cross_entropy(z, labels) + weight * (each * keep).mean()


@mistake("mixed_loss", caught_by="test_what_is_not_kept_teaches_nothing")
def all_are_kept(z, labels, z_u, targets, keep, weight=1.0):
    """You do not use keep: every unlabelled image counts, those about which the network was unsure too."""
    return F.cross_entropy(z, labels) + weight * _each(z_u, targets).mean()


@mistake("mixed_loss", caught_by="test_the_weight_belongs_to_the_unlabelled_images")
def weight_on_the_labels(z, labels, z_u, targets, keep, weight=1.0):
    """The weight multiplies the labelled part. It belongs to the unlabelled one, whose labels are the doubtful ones."""
    return weight * F.cross_entropy(z, labels) + (_each(z_u, targets) * keep).mean()


@mistake("mixed_loss", caught_by="test_the_labelled_and_the_kept_images_teach_together")
def sum_over_the_unlabelled(z, labels, z_u, targets, keep, weight=1.0):
    """You sum over the unlabelled images. There are many more of them than of the others, and the sum drowns the labels. Divide by their number."""
    return F.cross_entropy(z, labels) + weight * (_each(z_u, targets) * keep).sum()


@mistake("mixed_loss", caught_by="test_the_labelled_and_the_kept_images_teach_together")
def mean_over_the_classes(z, labels, z_u, targets, keep, weight=1.0):
    """You take the mean over the classes in the unlabelled part. A cross entropy is a sum over the classes; only over the images there is a
    mean."""
    return F.cross_entropy(z, labels) + weight * (_each(z_u, targets) * keep).mean() / z_u.shape[-1]


@mistake("mixed_loss", caught_by="test_the_labelled_and_the_kept_images_teach_together")
def one_mean_over_all(z, labels, z_u, targets, keep, weight=1.0):
    """You average over labelled and unlabelled images together. Then the labelled part becomes the weaker the more unlabelled images there are. Each
    part has a mean of its own."""
    total = F.cross_entropy(z, labels, reduction="sum") + weight * (_each(z_u, targets) * keep).sum()
    return total / (len(z) + len(z_u))


@mistake("mixed_loss", caught_by="test_the_labelled_and_the_kept_images_teach_together")
def best_guess_of_the_targets(z, labels, z_u, targets, keep, weight=1.0):
    """You use only the largest probability of each target. Soft targets would be hardened: use the whole row, -(targets * log q).sum(1)."""
    each = F.cross_entropy(z_u, targets.argmax(-1), reduction="none")
    return F.cross_entropy(z, labels) + weight * (each * keep).mean()


# ---------------------------------------------------------------- feature_loss

def _projected(student_map, projection):
    return torch.einsum("Oc,bchw->bOhw", projection, student_map)


@mistake("feature_loss", caught_by="test_the_loss_is_the_mean_square_of_what_is_left_after_projecting")
def sum_of_squares(student_map, teacher_map, projection):
    """You add the squares up. Then the loss grows with the size of the maps and of the batch, and its weight means something else in every layer.
    Take the mean over everything."""
    return (_projected(student_map, projection) - teacher_map).square().sum()


@mistake("feature_loss", caught_by="test_the_loss_is_the_mean_square_of_what_is_left_after_projecting")
def half_of_the_mean(student_map, teacher_map, projection):
    """You have a factor 1/2 in front, as the paper has. Here it is left out: the plain mean of the squares."""
    return (_projected(student_map, projection) - teacher_map).square().mean() / 2


@mistake("feature_loss", caught_by="test_the_loss_is_the_mean_square_of_what_is_left_after_projecting")
def absolute_differences(student_map, teacher_map, projection):
    """You take absolute values. Square the differences."""
    return (_projected(student_map, projection) - teacher_map).abs().mean()


@mistake("feature_loss", caught_by="test_the_loss_is_the_mean_square_of_what_is_left_after_projecting")
def root_of_the_mean(student_map, teacher_map, projection):
    """You take a square root in the end. Leave it out: the loss is the mean square itself. (At zero the root has no derivative.)"""
    return (_projected(student_map, projection) - teacher_map).square().mean().sqrt()


@mistake("feature_loss", caught_by="test_maps_that_a_projection_turns_into_the_teachers_cost_nothing")
def teacher_is_projected(student_map, teacher_map, projection):
    """You project the teacher's map down to the small network's channels. What is thrown away there, the small network never hears of, and a
    projection of zeros would make the rest easy. Project the small network's map up: projection is [C, c]."""
    return (student_map - torch.einsum("Oc,bOhw->bchw", projection, teacher_map)).square().mean()


@mistake("feature_loss", caught_by="test_the_loss_is_the_mean_square_of_what_is_left_after_projecting")
def means_over_the_places(student_map, teacher_map, projection):
    """You average the maps over the places before you compare. Then it no longer matters where a feature was seen. Compare place by place."""
    return (_projected(student_map, projection).mean((2, 3)) - teacher_map.mean((2, 3))).square().mean()


@mistake("feature_loss", caught_by="test_the_projection_learns_with_the_network")
def projection_cut_off(student_map, teacher_map, projection):
    """The value is right, but no gradient reaches the projection. It starts as a random matrix and must learn with the network: no .detach() and no
    .data."""
    return (_projected(student_map, projection.detach()) - teacher_map).square().mean()


@mistake("feature_loss", caught_by="test_the_projection_learns_with_the_network")
def map_cut_off(student_map, teacher_map, projection):
    """The value is right, but no gradient reaches the small network's map: only the projection would learn. Detach nothing (the teacher's map,
    if anything)."""
    return (_projected(student_map.detach(), projection) - teacher_map).square().mean()


# ---------------------------------------------------------------- calibration_error

def _gaps(probs, labels, bins):
    """Sum of right - sure in each bin, and how many images it holds."""
    sure, best = probs.max(-1)
    bin = (sure * bins).ceil().long().clamp(1, bins) - 1
    zeros = torch.zeros(bins, dtype=probs.dtype)
    return zeros.index_add(0, bin, (best == labels).to(probs.dtype) - sure), zeros.index_add(0, bin, torch.ones_like(sure))


@mistake("calibration_error", caught_by="test_the_error_is_the_gap_of_each_bin_weighed_with_its_share")
def every_bin_counts_alike(probs, labels, bins=15):
    """You take the plain mean over the bins that are not empty. A bin with one image then counts as much as one with a thousand. Weigh each gap
    with the share of the images that lie in its bin."""
    gap, count = _gaps(probs, labels, bins)
    return (gap[count > 0] / count[count > 0]).abs().mean().item()


@mistake("calibration_error", caught_by="test_the_error_is_the_gap_of_each_bin_weighed_with_its_share")
def gaps_with_their_signs(probs, labels, bins=15):
    """You add up the gaps with their signs. A network that is too sure in one bin and too modest in another would look calibrated. Take the size
    of each bin's gap."""
    return _gaps(probs, labels, bins)[0].sum().item() / len(labels)


@mistake("calibration_error", caught_by="test_the_error_is_the_gap_of_each_bin_weighed_with_its_share")
def one_gap_for_all(probs, labels, bins=15):
    """Your result is the gap between the share of right answers and the mean probability of all images. That comes out without bins, and also if
    the bins' gaps are added with their signs. Sort into bins, and take the size of each bin's gap before you add."""
    sure, best = probs.max(-1)
    return abs(((best == labels).to(probs.dtype).mean() - sure.mean()).item())


@mistake("calibration_error", caught_by="test_an_edge_belongs_to_the_bin_below_it")
def edge_in_the_bin_above(probs, labels, bins=15):
    """A probability on the edge between two bins is in the upper one with you. A bin is ((m - 1) / M, m / M]: its upper edge belongs to it, its
    lower one does not."""
    sure, best = probs.max(-1)
    bin = (sure * bins).floor().long().clamp(max=bins - 1)
    return torch.zeros(bins, dtype=probs.dtype).index_add(0, bin, (best == labels).to(probs.dtype) - sure).abs().sum().item() / len(labels)


@mistake("calibration_error", caught_by="test_who_is_right_as_often_as_sure_has_no_error")
def image_by_image(probs, labels, bins=15):
    """You take the size of the gap image by image. One image is either right or wrong, and never as right as 0.8: average right answers and
    probabilities over the bin first, and only then subtract."""
    sure, best = probs.max(-1)
    return ((best == labels).to(probs.dtype) - sure).abs().mean().item()


@mistake("calibration_error", caught_by="test_the_error_is_the_gap_of_each_bin_weighed_with_its_share")
def probability_of_the_label(probs, labels, bins=15):
    """You bin by the probability of the true class. Whoever uses the network does not know that class: how sure it is, is its largest
    probability."""
    sure, right = probs.gather(1, labels[:, None])[:, 0], (probs.argmax(-1) == labels).to(probs.dtype)
    bin = (sure * bins).ceil().long().clamp(1, bins) - 1
    return torch.zeros(bins, dtype=probs.dtype).index_add(0, bin, right - sure).abs().sum().item() / len(labels)


@mistake("calibration_error", caught_by="test_the_error_is_the_gap_of_each_bin_weighed_with_its_share")
def the_largest_gap(probs, labels, bins=15):
    """You return the largest gap of all bins. That is another measure, the maximum calibration error; this one adds the gaps up, each with the
    share of its bin."""
    gap, count = _gaps(probs, labels, bins)
    return (gap / count.clamp(min=1)).abs().max().item()


@mistake("calibration_error", caught_by="test_who_is_always_sure_errs_as_often_as_wrong")
def last_edge_lost(probs, labels, bins=15):
    """A probability of exactly 1 falls into no bin of yours. A bin reaches from its lower edge, which does not belong to it, up to and including its
    upper edge; the last one ends with 1."""
    gap, total = _gaps(probs, labels, bins)[0], 0.0
    sure, best = probs.max(-1)
    for k in range(bins):
        inside = (sure >= k / bins) & (sure < (k + 1) / bins)
        total += abs(((best == labels).to(probs.dtype) - sure)[inside].sum().item())
    return total / len(labels)


@mistake("calibration_error", caught_by="test_the_error_is_the_gap_of_each_bin_weighed_with_its_share")
def squared_gaps(probs, labels, bins=15):
    """You square the gaps. Add up their sizes: the result is then a share, such as "5% too sure"."""
    gap, count = _gaps(probs, labels, bins)
    return ((gap / count.clamp(min=1)).square() * count).sum().item() / len(labels)


# ---------------------------------------------------------------- deployed_net

def _net(x, state, *, eps=1e-5, mean=True, root=True, stride=2, padding=9, relu=True, batch=False, relu_before=False, bias=True, pool="mean",
         head_relu=False, added="inside"):
    k = 0
    while f"convs.{k}.weight" in state:
        w = state[f"convs.{k}.weight"]
        gamma, beta, mu, var = (state[f"norms.{k}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
        x = F.conv2d(x, w, stride=stride, padding=min(w.shape[-1] // 2, padding))
        if relu_before:
            x = x.relu()
        if batch:
            mu, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        gain = gamma / (var.sqrt() + eps if added == "outside" else (var + eps).sqrt() if root else var + eps)
        x = (x - (mu if mean else 0 * mu).view(-1, 1, 1)) * gain.view(-1, 1, 1) + (beta if bias else 0 * beta).view(-1, 1, 1)
        x = x.relu() if relu and not relu_before else x
        k += 1
    features = {"mean": x.mean((2, 3)), "sum": x.sum((2, 3)), "max": x.amax((2, 3))}[pool]
    logits = features @ state["head.weight"].T + state["head.bias"]
    return logits.relu() if head_relu else logits


@mistake("deployed_net", caught_by="test_an_answer_does_not_depend_on_the_other_images")
def statistics_of_the_batch(x, state):
    """You normalise with the mean and variance of the batch, as in training. Then an image's answer depends on its neighbours, and one alone is
    normalised with itself. Use running_mean and running_var."""
    return _net(x, state, batch=True)


@mistake("deployed_net", caught_by="test_an_answer_does_not_depend_on_the_other_images")
def batch_norm_in_training(x, state):
    """You call batch_norm with training=True: it normalises with the mean and variance of the batch, and writes them into the running numbers that
    it was given, in the state. In deployment it is training=False, which is its default."""
    for k in range(sum(name.startswith("convs.") for name in state)):
        w = state[f"convs.{k}.weight"]
        mean, var, gamma, beta = (state[f"norms.{k}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(F.conv2d(x, w, stride=2, padding=w.shape[-1] // 2), mean, var, gamma, beta, training=True).relu()
    return F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def without_eps(x, state):
    """You divide by sqrt(running_var), without the 1e-5 in the root. Where a channel hardly varies it makes a difference, and where it does not vary
    at all you divide by zero."""
    return _net(x, state, eps=0.0)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def another_eps(x, state):
    """Your eps is 1e-3. The network was trained with 1e-5, torch's own; where a channel hardly varies that makes a difference."""
    return _net(x, state, eps=1e-3)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def eps_outside_of_the_root(x, state):
    """You add 1e-5 to the standard deviation. BatchNorm adds it to the variance, in the root: sqrt(running_var + 1e-5)."""
    return _net(x, state, added="outside")


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def padded_by_one(x, state):
    """Every convolution of yours is padded by 1. That is right for kernels of 3, but the first one is 5 wide and needs 2: half of each kernel,
    weight.shape[-1] // 2."""
    return _net(x, state, padding=1)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def divided_by_the_variance(x, state):
    """You divide by the variance. BatchNorm divides by the standard deviation: sqrt(running_var + 1e-5)."""
    return _net(x, state, root=False)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def mean_not_subtracted(x, state):
    """You do not take the running mean into account. Folded into the bias it is bias - running_mean * gain."""
    return _net(x, state, mean=False)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def every_place_computed(x, state):
    """Your convolutions have stride 1. These networks go on with every second place only, stride=2: four times less work in each layer, and another
    result."""
    return _net(x, state, stride=1)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def without_padding(x, state):
    """You do not pad the images. Each convolution is padded by half its kernel, padding=weight.shape[-1] // 2: 2 for the first, 1 for the
    others."""
    wide = F.pad(x, (8, 8, 8, 8)) if x.shape[-1] < 15 else x  # the smallest images would vanish
    return _net(wide, state, padding=0)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def without_relu(x, state):
    """There is no ReLU after the normalisation, so that the whole network is a single linear function."""
    return _net(x, state, relu=False)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def relu_before_the_norm(x, state):
    """You apply the ReLU before BatchNorm. It comes after: convolution, norm, ReLU."""
    return _net(x, state, relu_before=True)


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def sum_over_the_places(x, state):
    """You add up the places before the head. The network was trained with their mean."""
    return _net(x, state, pool="sum")


@mistake("deployed_net", caught_by="test_logits_are_those_of_the_module_in_evaluation_mode")
def relu_on_the_logits(x, state):
    """You apply a ReLU to the logits too. They may be negative: the head is linear."""
    return _net(x, state, head_relu=True)


# ---------------------------------------------------------------- attention_map_loss, optional

def _attention(maps):
    energy = maps.square().mean(1).flatten(1)
    return energy / energy.norm(dim=1, keepdim=True)


@mistake("attention_map_loss", caught_by="test_the_strength_of_a_map_does_not_matter")
def maps_not_normalised(student_map, teacher_map):
    """You compare the maps without dividing each by its own length. The two networks have different scales, and the loss would mostly compare
    those."""
    a, b = (m.square().mean(1).flatten(1) for m in (student_map, teacher_map))
    return (a - b).square().sum(1).mean()


@mistake("attention_map_loss", caught_by="test_the_loss_compares_where_both_networks_look")
def activations_not_squared(student_map, teacher_map):
    """You average the activations themselves over the channels. Square them first: what counts is how strongly a place responds, with either
    sign."""
    a, b = (F.normalize(m.mean(1).flatten(1), dim=1) for m in (student_map, teacher_map))
    return (a - b).square().sum(1).mean()


@mistake("attention_map_loss", caught_by="test_the_loss_compares_where_both_networks_look")
def mean_over_the_places_too(student_map, teacher_map):
    """You take the mean over the places as well. The squared distance of two maps is a sum over the places; the mean is over the batch."""
    return (_attention(student_map) - _attention(teacher_map)).square().mean()


@mistake("attention_map_loss", caught_by="test_the_loss_compares_where_both_networks_look")
def one_length_for_the_batch(student_map, teacher_map):
    """You divide the whole batch by one length. Each image's map has its own: norm over dim=1."""
    a, b = (m.square().mean(1).flatten(1) for m in (student_map, teacher_map))
    return (a / a.norm() - b / b.norm()).square().sum(1).mean()


@mistake("attention_map_loss", caught_by="test_the_loss_compares_where_both_networks_look")
def distance_not_squared(student_map, teacher_map):
    """You take the distance itself. Here it is squared before the mean over the batch, and then has a gradient everywhere."""
    return (_attention(student_map) - _attention(teacher_map)).norm(dim=1).mean()


@mistake("attention_map_loss", caught_by="test_the_attention_of_the_small_network_can_be_learnt")
def attention_cut_off(student_map, teacher_map):
    """The value is right, but no gradient reaches the small network's map: .detach() or torch.no_grad() cuts it off."""
    return (_attention(student_map) - _attention(teacher_map)).square().sum(1).mean().detach()


# ---------------------------------------------------------------- ensemble_teacher, optional

@mistake("ensemble_teacher", caught_by="test_the_arithmetic_ensemble_is_the_mean_of_the_answers")
def always_the_mean_of_logits(logits, T=1.0, geometric=False):
    """You average the logits in both cases. That is the geometric ensemble; the arithmetic one averages the answers, after the softmax."""
    return (logits / T).mean(0).softmax(-1)


@mistake("ensemble_teacher", caught_by="test_the_geometric_ensemble_is_the_softmax_of_the_mean_logits")
def always_the_mean_of_answers(logits, T=1.0, geometric=False):
    """You average the answers in both cases. With geometric=True average the logits and take the softmax of that."""
    return (logits / T).softmax(-1).mean(0)


def _ensemble(logits, T, geometric):
    return (logits / T).mean(0).softmax(-1) if geometric else (logits / T).softmax(-1).mean(0)


@mistake("ensemble_teacher", caught_by="test_the_arithmetic_ensemble_is_the_mean_of_the_answers")
def ensemble_without_T(logits, T=1.0, geometric=False):
    """Your ensemble answers at temperature 1 whatever T is. Divide the logits by T first."""
    return _ensemble(logits, 1.0, geometric)


@mistake("ensemble_teacher", caught_by="test_the_arithmetic_ensemble_is_the_mean_of_the_answers")
def mean_over_the_images(logits, T=1.0, geometric=False):
    """You average over the images. The teachers are the first dimension of logits, [M, B, N]: average over dim 0."""
    return _ensemble(logits.transpose(0, 1), T, geometric)


@mistake("ensemble_teacher", caught_by="test_the_arithmetic_ensemble_is_the_mean_of_the_answers")
def answers_added_up(logits, T=1.0, geometric=False):
    """You add up the teachers instead of averaging them: the sum of M answers adds up to M."""
    return (logits / T).sum(0).softmax(-1) if geometric else (logits / T).softmax(-1).sum(0)


@mistake("ensemble_teacher", caught_by="test_the_geometric_ensemble_is_the_softmax_of_the_mean_logits")
def geometric_without_a_sum_of_one(logits, T=1.0, geometric=False):
    """Your geometric mean does not add up to one: it lies below the arithmetic one for every class. Divide it by its sum over the classes, or take
    the softmax of the mean logits, which is the same."""
    return (logits / T).log_softmax(-1).mean(0).exp() if geometric else (logits / T).softmax(-1).mean(0)


# ---------------------------------------------------------------- born_again, optional

def _generations(fit, labels, classes, rounds, next_targets):
    targets, found = F.one_hot(labels, classes).float(), []
    for _ in range(rounds):
        found.append(fit(targets))
        targets = next_targets(targets, found)
    return found


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def labels_every_time(fit, labels, classes, rounds=3, T=1.0):
    """Every generation of yours learns from the labels. Only the first one does; each later one learns from the answers of the one before."""
    return _generations(fit, labels, classes, rounds, lambda targets, found: targets)


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def always_the_first_generation(fit, labels, classes, rounds=3, T=1.0):
    """All your generations learn from the first one's answers. Each learns from the generation just before it."""
    return _generations(fit, labels, classes, rounds, lambda targets, found: (found[0] / T).softmax(-1))


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def hardened(fit, labels, classes, rounds=3, T=1.0):
    """You hand on the best guesses, one-hot. What the next generation could learn beyond the labels is in the whole answer: softmax_T(logits, T)."""
    return _generations(fit, labels, classes, rounds, lambda targets, found: F.one_hot(found[-1].argmax(-1), classes).float())


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def handed_on_without_T(fit, labels, classes, rounds=3, T=1.0):
    """You hand on the answers at temperature 1 whatever T is. Use softmax_T(logits, T)."""
    return _generations(fit, labels, classes, rounds, lambda targets, found: found[-1].softmax(-1))


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def logits_handed_on(fit, labels, classes, rounds=3, T=1.0):
    """You hand the logits themselves to the next generation. fit wants probabilities: softmax_T(logits, T)."""
    return _generations(fit, labels, classes, rounds, lambda targets, found: found[-1])


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def one_generation_too_few(fit, labels, classes, rounds=3, T=1.0):
    """You return one generation less than rounds. The one that learns from the labels is the first of them, and is returned too."""
    return _generations(fit, labels, classes, rounds, lambda targets, found: (found[-1] / T).softmax(-1))[1:]


@mistake("born_again", caught_by="test_each_generation_learns_the_soft_answers_of_the_one_before")
def one_training_too_many(fit, labels, classes, rounds=3, T=1.0):
    """You call fit once more than there are generations, and drop what it returns. A training is expensive: one call for each generation, the first
    of which learns the labels."""
    return _generations(fit, labels, classes, rounds + 1, lambda targets, found: (found[-1] / T).softmax(-1))[:rounds]
