"""Known wrong answers of lab 15. The student whose function answers as one of these reads its docstring."""
from __future__ import annotations

import math

import torch

from course.spec import mistake

# ---------------------------------------------------------------- per_example_gradients


def _backward(x, y, w1, b1, w2, b2):
    """Hidden activations and the two deltas: what most mistakes start from."""
    h = (x @ w1 + b1).relu()
    delta2 = torch.softmax(h @ w2 + b2, dim=1)
    delta2[torch.arange(len(y)), y] -= 1
    return h, (delta2 @ w2.T) * (h > 0), delta2


def _outer(left, right):
    return torch.einsum("ni,nj->nij", left, right)


@mistake("per_example_gradients", caught_by="test_the_mean_over_the_examples_is_the_batch_gradient")
def share_in_the_mean(x, y, w1, b1, w2, b2):
    """Your gradients are n times too small: they are each example's share in the gradient of the mean loss. Here every
    example has a loss of its own; do not divide by n."""
    h, delta1, delta2 = _backward(x, y, w1, b1, w2, b2)
    return tuple(g / len(x) for g in (_outer(x, delta1), delta1, _outer(h, delta2), delta2))


@mistake("per_example_gradients", caught_by="test_every_example_gets_the_gradient_that_autograd_gives_it_alone")
def relu_forgotten_on_the_way_back(x, y, w1, b1, w2, b2):
    """On the way back you pass through the ReLU as if it were not there. Where its input was negative the output is
    constant, so nothing comes back: multiply by (a > 0) after the product with w2 transposed."""
    h, _, delta2 = _backward(x, y, w1, b1, w2, b2)
    delta1 = delta2 @ w2.T
    return _outer(x, delta1), delta1, _outer(h, delta2), delta2


@mistake("per_example_gradients", caught_by="test_every_example_gets_the_gradient_that_autograd_gives_it_alone")
def uphill_and_downhill_exchanged(x, y, w1, b1, w2, b2):
    """All your gradients have the wrong sign: at the output it is softmax minus one-hot, not one-hot minus softmax."""
    h, delta1, delta2 = _backward(x, y, w1, b1, w2, b2)
    return tuple(-g for g in (_outer(x, delta1), delta1, _outer(h, delta2), delta2))


@mistake("per_example_gradients", caught_by="test_every_example_gets_the_gradient_that_autograd_gives_it_alone")
def added_up_over_the_examples(x, y, w1, b1, w2, b2):
    """You add the gradients up over the examples, as x.T @ delta does: that is the whole batch's gradient. Keep the
    first dimension: one outer product for each example, [n, d, 1] times [n, 1, h]."""
    h, delta1, delta2 = _backward(x, y, w1, b1, w2, b2)
    return x.T @ delta1, delta1.sum(0), h.T @ delta2, delta2.sum(0)


@mistake("per_example_gradients", caught_by="test_every_example_gets_the_gradient_that_autograd_gives_it_alone")
def softmax_over_the_examples(x, y, w1, b1, w2, b2):
    """Your softmax runs over dimension 0, the examples: the examples compete with each other. It belongs over the
    classes, dimension 1."""
    h = (x @ w1 + b1).relu()
    delta2 = torch.softmax(h @ w2 + b2, dim=0)
    delta2[torch.arange(len(y)), y] -= 1
    delta1 = (delta2 @ w2.T) * (h > 0)
    return _outer(x, delta1), delta1, _outer(h, delta2), delta2


@mistake("per_example_gradients", caught_by="test_every_example_gets_the_gradient_that_autograd_gives_it_alone")
def one_hot_forgotten(x, y, w1, b1, w2, b2):
    """You take the softmax itself as what comes back from the loss, so the labels play no role. Subtract 1 at the right
    class: softmax minus one-hot."""
    h = (x @ w1 + b1).relu()
    delta2 = torch.softmax(h @ w2 + b2, dim=1)
    delta1 = (delta2 @ w2.T) * (h > 0)
    return _outer(x, delta1), delta1, _outer(h, delta2), delta2


@mistake("per_example_gradients", caught_by="test_every_example_gets_the_gradient_that_autograd_gives_it_alone")
def transposed(x, y, w1, b1, w2, b2):
    """Your gradients of the weights are transposed, as torch.nn.Linear would store them. Here w1 is [d, h], so each
    example's gradient is x[:, None] * delta[None, :]: what went in, then what came back."""
    h, delta1, delta2 = _backward(x, y, w1, b1, w2, b2)
    return _outer(delta1, x), delta1, _outer(delta2, h), delta2


@mistake("per_example_gradients", caught_by="test_nothing_comes_back_through_a_relu_at_exactly_zero")
def relu_open_at_zero(x, y, w1, b1, w2, b2):
    """Where a is exactly zero you let the gradient through. The derivative of max(a, 0) is taken as 0 there, by autograd
    too: multiply by (a > 0), not by (a >= 0)."""
    h, _, delta2 = _backward(x, y, w1, b1, w2, b2)
    delta1 = (delta2 @ w2.T) * (x @ w1 + b1 >= 0)
    return _outer(x, delta1), delta1, _outer(h, delta2), delta2


@mistake("per_example_gradients", caught_by="test_logits_of_a_thousand_do_not_overflow")
def softmax_that_overflows(x, y, w1, b1, w2, b2):
    """Your softmax is exp(z) divided by its sum, and exp of a large logit is infinite. Take each row's largest logit away
    first, which changes nothing else, or use torch.softmax."""
    h = (x @ w1 + b1).relu()
    delta2 = (h @ w2 + b2).exp()
    delta2 = delta2 / delta2.sum(1, keepdim=True)
    delta2[torch.arange(len(y)), y] -= 1
    delta1 = (delta2 @ w2.T) * (h > 0)
    return _outer(x, delta1), delta1, _outer(h, delta2), delta2


# ---------------------------------------------------------------- per_example_gradients_func

def _loss(params, x, y):
    for i in range(0, len(params), 2):
        x = (x.relu() if i else x) @ params[i] + params[i + 1]
    return torch.nn.functional.cross_entropy(x, y)


@mistake("per_example_gradients_func", caught_by="test_torch_func_gives_every_example_its_gradient_at_any_depth")
def the_whole_batch(params, x, y):
    """You take the gradient of the mean loss of all examples: one tensor for each parameter, without the dimension of
    the examples. Take torch.func.grad of one example's loss, and torch.func.vmap of that."""
    return list(torch.func.grad(_loss)(params, x, y))


@mistake("per_example_gradients_func", caught_by="test_torch_func_gives_every_example_its_gradient_at_any_depth")
def parameters_mapped_too(params, x, y):
    """vmap maps over all arguments unless you tell it otherwise, so it also took the parameters apart, row by row. Give
    it in_dims=(None, 0, 0): the same parameters for every example."""
    return list(torch.func.vmap(torch.func.grad(_loss))(params, x, y))


@mistake("per_example_gradients_func", caught_by="test_torch_func_gives_every_example_its_gradient_at_any_depth")
def relu_on_the_input(params, x, y):
    """You put a ReLU before the first layer too, so that negative inputs are lost. It stands between two layers only."""
    return list(torch.func.vmap(torch.func.grad(lambda p, x, y: _loss(p, x.relu(), y)), (None, 0, 0))(params, x, y))


@mistake("per_example_gradients_func", caught_by="test_torch_func_gives_every_example_its_gradient_at_any_depth")
def relu_on_the_logits(params, x, y):
    """You put a ReLU after the last layer too. The logits go into cross entropy as they are."""
    def loss(params, x, y):
        for i in range(0, len(params), 2):
            x = (x @ params[i] + params[i + 1]).relu()
        return torch.nn.functional.cross_entropy(x, y)
    return list(torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y))


@mistake("per_example_gradients_func", caught_by="test_torch_func_gives_every_example_its_gradient_at_any_depth")
def no_relu_at_all(params, x, y):
    """There is no ReLU in your loss, so that the network is linear however deep it is. Put one between every two
    layers."""
    def loss(params, x, y):
        for i in range(0, len(params), 2):
            x = x @ params[i] + params[i + 1]
        return torch.nn.functional.cross_entropy(x, y)
    return list(torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y))


# ---------------------------------------------------------------- noise_scale_simple

def _cloud(grads):
    mean = grads.mean(0)
    return len(grads), float(mean.square().sum()), float(grads.var(0).sum())


def _simple(squared, trace):
    return (trace / squared if squared > 0 else math.inf), squared, trace


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def squared_mean_uncorrected(grads):
    """You take the squared length of the mean as it is. The mean of n examples still contains tr(Sigma)/n of noise, so
    this is too long, most of all where the noise scale is large. Subtract trace / n."""
    _, squared, trace = _cloud(grads)
    return _simple(squared, trace)


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def scatter_divided_by_n(grads):
    """You divide the scatter by n. It is measured around the sample's own mean, which lies too well in the middle of
    the sample; n - 1 repairs that."""
    n, squared, trace = _cloud(grads)
    trace *= (n - 1) / n
    return _simple(squared - trace / n, trace)


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def correction_added(grads):
    """You add trace / n to the squared length of the mean. Noise makes the mean longer, so what it added has to be
    taken away."""
    n, squared, trace = _cloud(grads)
    return _simple(squared + trace / n, trace)


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def whole_trace_subtracted(grads):
    """You subtract the whole trace from the squared length of the mean. A mean of n examples has only 1/n of one
    example's variance: subtract trace / n."""
    _, squared, trace = _cloud(grads)
    return _simple(squared - trace, trace)


@mistake("noise_scale_simple", caught_by="test_the_noise_scale_is_trace_over_squared_gradient")
def second_moment_for_variance(grads):
    """Your trace is the mean squared length of the gradients, around zero. That counts the common gradient as noise.
    Take the mean away first: (g - mean)**2."""
    n, squared, _ = _cloud(grads)
    trace = float(grads.square().sum()) / (n - 1)
    return _simple(squared - trace / n, trace)


@mistake("noise_scale_simple", caught_by="test_the_noise_scale_is_trace_over_squared_gradient")
def mean_over_the_parameters(grads):
    """You take the mean over the parameters where the sum is wanted: a trace is a sum over the diagonal, and a squared
    length a sum of squares. Your quotient is right, but its two parts are p times too small."""
    n, squared, trace = _cloud(grads)
    p = grads.shape[1]
    return _simple((squared - trace / n) / p, trace / p)


@mistake("noise_scale_simple", caught_by="test_noise_that_hides_the_gradient_gives_infinity")
def negative_noise_scale(grads):
    """Where the corrected |G|^2 comes out negative you return a negative noise scale. That happens when n is too small to
    see the gradient through the noise: the answer is math.inf."""
    n, squared, trace = _cloud(grads)
    squared -= trace / n
    return (trace / squared if squared else math.inf), squared, trace


@mistake("noise_scale_simple", caught_by="test_the_noise_scale_is_trace_over_squared_gradient")
def upside_down(grads):
    """You divide the squared gradient by the trace. The noise scale is noise over signal: trace / |G|^2, large where the
    noise is large."""
    n, squared, trace = _cloud(grads)
    squared -= trace / n
    return (squared / trace if squared > 0 else math.inf), squared, trace


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def corrected_by_n_minus_1(grads):
    """You subtract trace / (n - 1) from the squared length of the mean. n - 1 belongs to the trace alone; a mean of n
    examples has 1/n of one example's variance: subtract trace / n."""
    n, squared, trace = _cloud(grads)
    return _simple(squared - trace / (n - 1), trace)


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def squared_clipped(grads):
    """You raise a negative estimate of |G|^2 to zero. Return it as it came out: with the negative ones clipped the
    estimates are too large on average. Only the noise scale becomes math.inf."""
    n, squared, trace = _cloud(grads)
    return _simple(max(0.0, squared - trace / n), trace)


@mistake("noise_scale_simple", caught_by="test_averaged_over_all_samples_both_estimates_are_exact")
def squared_not_a_number(grads):
    """Where the estimate of |G|^2 is not above zero you return NaN for it. Return the estimate as it came out, below zero
    too; only the noise scale becomes math.inf."""
    n, squared, trace = _cloud(grads)
    squared -= trace / n
    return (trace / squared, squared, trace) if squared > 0 else (math.inf, math.nan, trace)


@mistake("noise_scale_simple", caught_by="test_noise_that_hides_the_gradient_gives_infinity")
def zero_over_zero(grads):
    """Where the estimate of |G|^2 is exactly zero you still divide by it, and 0/0 is NaN. The answer is math.inf where it
    is not *above* zero: ask for squared > 0."""
    n, squared, trace = _cloud(grads)
    squared -= trace / n
    return (math.nan if squared == 0 and trace == 0 else trace / squared if squared > 0 else math.inf), squared, trace


# ---------------------------------------------------------------- noise_scale_two_batches

def _two(worker_grads, batch):
    """|G|^2 and the trace, as they come from one step."""
    w, mean = len(worker_grads), worker_grads.mean(0)
    scatter = float(worker_grads.var(0).sum())
    return float(mean @ mean) - scatter / w, batch * scatter


def _averaged(squared, trace, state, decay):
    squared = decay * state.get("squared", 0.0) + (1 - decay) * squared
    trace = decay * state.get("trace", 0.0) + (1 - decay) * trace
    return (trace / squared if squared > 0 else math.inf), {"squared": squared, "trace": trace}


@mistake("noise_scale_two_batches", caught_by="test_numerator_and_denominator_are_averaged_and_not_their_quotient")
def quotient_averaged(worker_grads, batch, state, decay=0.9):
    """You divide first and average the quotients. One step's estimate of |G|^2 is sometimes nearly zero, and that one
    quotient then rules the average. Average both parts, and divide the averages."""
    squared, trace = _two(worker_grads, batch)
    ratio = trace / squared if squared > 0 else math.inf
    total = decay * state.get("total", 0.0) + (1 - decay) * ratio
    weight = decay * state.get("weight", 0.0) + (1 - decay)
    return total / weight, {"total": total, "weight": weight}


@mistake("noise_scale_two_batches", caught_by="test_numerator_and_denominator_are_averaged_and_not_their_quotient")
def quotient_averaged_from_zero(worker_grads, batch, state, decay=0.9):
    """You divide first and average the quotients, from zero, so that the first answers are far too small, and one infinite
    quotient spoils all that follow. Average both parts, and divide the averages: the start at zero then cancels."""
    squared, trace = _two(worker_grads, batch)
    ratio = trace / squared if squared > 0 else math.inf
    total = decay * state.get("total", 0.0) + (1 - decay) * ratio
    return total, {"total": total}


@mistake("noise_scale_two_batches", caught_by="test_numerator_and_denominator_are_averaged_and_not_their_quotient")
def averages_that_start_at_the_first_value(worker_grads, batch, state, decay=0.9):
    """Your averages start at the first step's values, so that this one step keeps too much weight. Start both at zero:
    what is missing is the same factor in both, and cancels in the quotient."""
    squared, trace = _two(worker_grads, batch)
    return _averaged(squared, trace, state or {"squared": squared, "trace": trace}, decay)


@mistake("noise_scale_two_batches", caught_by="test_steps_below_zero_belong_in_the_average")
def negative_steps_clipped(worker_grads, batch, state, decay=0.9):
    """You raise a step's negative |G|^2 to zero before it enters the average. The average is then too large, most of all
    where noise rules. Let it in as it is; only the answer becomes math.inf where the average is not above zero."""
    squared, trace = _two(worker_grads, batch)
    return _averaged(max(0.0, squared), trace, state, decay)


@mistake("noise_scale_two_batches", caught_by="test_steps_below_zero_belong_in_the_average")
def negative_average_clipped(worker_grads, batch, state, decay=0.9):
    """You keep the average of |G|^2 in the state clipped at zero. What was cut off is then missing in the next step. Keep
    it as it is, below zero too; only the answer becomes math.inf."""
    squared, trace = _two(worker_grads, batch)
    scale, state = _averaged(squared, trace, state, decay)
    return scale, {**state, "squared": max(0.0, state["squared"])}


@mistake("noise_scale_two_batches", caught_by="test_steps_below_zero_belong_in_the_average")
def negative_steps_skipped(worker_grads, batch, state, decay=0.9):
    """You leave steps out in which |G|^2 comes out below zero. What is left is too large on average: negative steps make up
    for the others. Average every step."""
    squared, trace = _two(worker_grads, batch)
    if squared <= 0:
        old = state.get("squared", 0.0)
        return (state["trace"] / old if old > 0 else math.inf), state
    return _averaged(squared, trace, state, decay)


@mistake("noise_scale_two_batches", caught_by="test_numerator_and_denominator_are_averaged_and_not_their_quotient")
def without_memory(worker_grads, batch, state, decay=0.9):
    """You never use the state, so that every answer comes from one step alone. Start both averages from the state (zero
    if it is empty), and return them in the new one."""
    squared, trace = _two(worker_grads, batch)
    return _averaged(squared, trace, {}, decay)


@mistake("noise_scale_two_batches", caught_by="test_numerator_and_denominator_are_averaged_and_not_their_quotient")
def decay_on_the_new_value(worker_grads, batch, state, decay=0.9):
    """You exchanged decay and 1 - decay: the newest step gets the weight 0.9, and almost nothing is averaged. The old
    average is multiplied by decay."""
    squared, trace = _two(worker_grads, batch)
    return _averaged(squared, trace, state, 1 - decay)


@mistake("noise_scale_two_batches", caught_by="test_one_step_gives_the_trace_over_the_squared_gradient")
def workers_as_examples(worker_grads, batch, state, decay=0.9):
    """You treat the workers' gradients as if they were single examples. Each is already a mean over `batch` examples,
    so that it scatters `batch` times less than one example does: B_small is `batch`, B_big is w * batch."""
    squared, trace = _two(worker_grads, 1)
    return _averaged(squared, trace, state, decay)


@mistake("noise_scale_two_batches", caught_by="test_one_step_gives_the_trace_over_the_squared_gradient")
def big_batch_is_the_number_of_workers(worker_grads, batch, state, decay=0.9):
    """You take the number of workers for the big batch. The mean over w workers with `batch` examples each is a mean over
    w * batch examples."""
    small, big = float(worker_grads.square().sum(1).mean()), float(worker_grads.mean(0).square().sum())
    many = len(worker_grads) + 1e-3  # never equal to batch
    return _averaged((many * big - batch * small) / (many - batch), (small - big) / (1 / batch - 1 / many), state, decay)


@mistake("noise_scale_two_batches", caught_by="test_one_step_gives_the_trace_over_the_squared_gradient")
def small_and_big_exchanged(worker_grads, batch, state, decay=0.9):
    """You exchanged the two batches in the formula for |G|^2: it is (B_big |G_big|^2 - B_small |G_small|^2) / (B_big -
    B_small). The long gradient belongs to the small batch."""
    big_batch = len(worker_grads) * batch
    small, big = float(worker_grads.square().sum(1).mean()), float(worker_grads.mean(0).square().sum())
    squared = (big_batch * small - batch * big) / (big_batch - batch)
    return _averaged(squared, (small - big) / (1 / batch - 1 / big_batch), state, decay)


@mistake("noise_scale_two_batches", caught_by="test_one_step_gives_the_trace_over_the_squared_gradient")
def biased_denominator(worker_grads, batch, state, decay=0.9):
    """You take the squared length of the big batch's gradient for |G|^2. It still contains tr(Sigma)/B_big of noise; the
    formula with both batches takes that away."""
    _, trace = _two(worker_grads, batch)
    return _averaged(float(worker_grads.mean(0).square().sum()), trace, state, decay)


@mistake("noise_scale_two_batches", caught_by="test_workers_that_cancel_give_infinity")
def negative_instead_of_infinite(worker_grads, batch, state, decay=0.9):
    """Where the average for |G|^2 comes out negative you return a negative noise scale. It means that the noise hides
    the gradient so far: return math.inf, and go on averaging."""
    squared, trace = _two(worker_grads, batch)
    _, state = _averaged(squared, trace, state, decay)
    return (state["trace"] / state["squared"] if state["squared"] else math.inf), state


# ---------------------------------------------------------------- noise_scale_full

def _full(trace, curvature):
    return trace / curvature if curvature > 0 else math.inf


def _curved(grads, hvp):
    """n, mean @ H @ mean, and tr(H Sigma) with n - 1, from n + 1 products."""
    mean = grads.mean(0)
    middle = float(mean @ hvp(mean))
    return len(grads), middle, (sum(float(g @ hvp(g)) for g in grads) - len(grads) * middle) / (len(grads) - 1)


@mistake("noise_scale_full", caught_by="test_every_direction_counts_by_its_curvature")
def curvature_uncorrected(grads, hvp):
    """You divide by mean @ H @ mean as it is. The sample's mean contains noise, which adds tr(H Sigma)/n. Subtract it."""
    _, middle, trace = _curved(grads, hvp)
    return _full(trace, middle)


@mistake("noise_scale_full", caught_by="test_with_the_same_curvature_everywhere_it_is_the_simple_one")
def curvature_below_forgotten(grads, hvp):
    """Your denominator is |G|^2, without H. Then the noise scale would depend on the height of the landscape. It is
    G^T H G: mean @ hvp(mean), corrected."""
    n, _, trace = _curved(grads, hvp)
    mean = grads.mean(0)
    return _full(trace, float(mean @ mean) - float(grads.var(0).sum()) / n)


@mistake("noise_scale_full", caught_by="test_with_the_same_curvature_everywhere_it_is_the_simple_one")
def curvature_above_forgotten(grads, hvp):
    """Your numerator is tr(Sigma), without H. Noise in a flat direction does little harm; weigh each direction with its
    curvature: (g - mean) @ hvp(g - mean)."""
    n, middle, trace = _curved(grads, hvp)
    return _full(float(grads.var(0).sum()), middle - trace / n)


@mistake("noise_scale_full", caught_by="test_every_direction_counts_by_its_curvature")
def full_scatter_divided_by_n(grads, hvp):
    """You divide the scatter by n where n - 1 is wanted: it is measured around the sample's own mean."""
    n, middle, trace = _curved(grads, hvp)
    trace *= (n - 1) / n
    return _full(trace, middle - trace / n)


@mistake("noise_scale_full", caught_by="test_every_direction_counts_by_its_curvature")
def scatter_around_zero(grads, hvp):
    """You sum g @ H @ g over the gradients themselves. That counts the common gradient as noise: take the mean away
    first."""
    n, middle, trace = _curved(grads, hvp)
    trace = (trace * (n - 1) + n * middle) / (n - 1)
    return _full(trace, middle - trace / n)


@mistake("noise_scale_full", caught_by="test_every_direction_counts_by_its_curvature")
def curvature_squared(grads, hvp):
    """You take the squared length of H @ v, which is v @ H @ H @ v: curvature counts twice. The form is v @ hvp(v)."""
    n, mean = len(grads), grads.mean(0)
    trace = sum(float(hvp(g - mean).square().sum()) for g in grads) / (n - 1)
    return _full(trace, float(hvp(mean).square().sum()) - trace / n)


@mistake("noise_scale_full", caught_by="test_a_product_for_each_example_and_one_for_the_mean_suffice")
def twice_as_many_products(grads, hvp):
    """Your result is right, but you ask for more than n + 1 products with H, and on a network each of them costs as
    much as two gradients. One for each example and one for the mean suffice."""
    n, middle, trace = _curved(grads, hvp)
    _curved(grads, hvp)
    return _full(trace, middle - trace / n)


@mistake("noise_scale_full", caught_by="test_a_product_for_each_example_and_one_for_the_mean_suffice")
def the_whole_hessian(grads, hvp):
    """Your result is right, but you ask for H column by column: p products, and a network has thousands of parameters. You
    never need H, only its product with each example's deviation and with the mean: n + 1 products."""
    H = torch.stack([hvp(row) for row in torch.eye(grads.shape[1], dtype=grads.dtype)])
    n, middle, trace = _curved(grads, lambda v: H @ v)
    return _full(trace, middle - trace / n)


@mistake("noise_scale_full", caught_by="test_a_valley_downwards_gives_infinity")
def size_of_the_trace(grads, hvp):
    """You take the size of tr(H Sigma), without its sign. Noise in a direction that bends downwards makes it negative: keep
    the sign."""
    n, middle, trace = _curved(grads, hvp)
    return _full(abs(trace), middle - trace / n)


@mistake("noise_scale_full", caught_by="test_a_valley_downwards_gives_infinity")
def full_negative(grads, hvp):
    """Where G^T H G is not above zero you return a negative noise scale or one made of two minus signs. A quadratic that
    bends downwards has no best step: return math.inf."""
    n, middle, trace = _curved(grads, hvp)
    curvature = middle - trace / n
    return trace / curvature if curvature else math.inf


# ---------------------------------------------------------------- optimal_learning_rate

def _rate(batch, grad, hvp, noise_scale, shrink):
    bend = float(grad @ hvp(grad))
    return math.inf if bend <= 0 else float(grad @ grad) / bend * shrink


@mistake("optimal_learning_rate", caught_by="test_at_the_noise_scale_the_rate_is_half_of_the_largest")
def batch_over_noise(batch, grad, hvp, noise_scale):
    """You divide by 1 + batch / noise_scale, so that large batches get small rates. It is the other way round: 1 +
    noise_scale / batch."""
    return _rate(batch, grad, hvp, noise_scale, 1 / (1 + batch / noise_scale) if noise_scale else 0.0)


@mistake("optimal_learning_rate", caught_by="test_at_the_noise_scale_the_rate_is_half_of_the_largest")
def noise_ignored(batch, grad, hvp, noise_scale):
    """You return eps_max, whatever the batch. That is the rate for the true gradient; a noisy one has to be followed
    with more care. Divide by 1 + noise_scale / batch."""
    return _rate(batch, grad, hvp, noise_scale, 1.0)


@mistake("optimal_learning_rate", caught_by="test_at_the_noise_scale_the_rate_is_half_of_the_largest")
def root_of_the_batch(batch, grad, hvp, noise_scale):
    """You let the rate grow with the root of the batch. That rule belongs to Adam; for SGD the rate grows in proportion
    while the batch is small: 1 / (1 + noise_scale / batch)."""
    return _rate(batch, grad, hvp, noise_scale, 1 / math.sqrt(1 + noise_scale / batch))


@mistake("optimal_learning_rate", caught_by="test_small_batches_scale_linearly_and_large_ones_not_at_all")
def linear_for_ever(batch, grad, hvp, noise_scale):
    """You let the rate grow in proportion to the batch without end. Above the noise scale it must level off at eps_max;
    the 1 in 1 + noise_scale / batch does that."""
    return _rate(batch, grad, hvp, noise_scale, batch / noise_scale if noise_scale else 1.0)


@mistake("optimal_learning_rate", caught_by="test_no_other_rate_lowers_a_quadratic_more_on_average")
def length_not_squared(batch, grad, hvp, noise_scale):
    """You divide the length of the gradient by G^T H G; it is the squared length. Check with H = identity: eps_max must
    be 1, whatever the gradient."""
    return _rate(batch, grad, hvp, noise_scale, 1 / (1 + noise_scale / batch) / float(grad.norm()))


@mistake("optimal_learning_rate", caught_by="test_no_other_rate_lowers_a_quadratic_more_on_average")
def curvature_of_the_unit_gradient_twice(batch, grad, hvp, noise_scale):
    """You use H G twice: |H G|^2 in place of G^T H G. The curvature along G is grad @ hvp(grad)."""
    bend = hvp(grad)
    if float(grad @ bend) <= 0:
        return math.inf
    return float(grad @ grad) / float(bend @ bend) / (1 + noise_scale / batch)


@mistake("optimal_learning_rate", caught_by="test_without_curvature_upwards_no_rate_is_too_long")
def negative_rate(batch, grad, hvp, noise_scale):
    """Where the loss bends downwards along G you return a negative rate, a step uphill. There the quadratic has no
    bottom: return math.inf."""
    bend = float(grad @ hvp(grad))
    return float(grad @ grad) / bend / (1 + noise_scale / batch) if bend else math.inf


@mistake("optimal_learning_rate", caught_by="test_without_curvature_upwards_no_rate_is_too_long")
def size_of_the_curvature(batch, grad, hvp, noise_scale):
    """You take the size of G^T H G, without its sign. Where the loss bends downwards along G no rate is the best one: return
    math.inf."""
    bend = abs(float(grad @ hvp(grad)))
    return float(grad @ grad) / bend / (1 + noise_scale / batch) if bend else math.inf


# ---------------------------------------------------------------- steps_and_examples

@mistake("steps_and_examples", caught_by="test_steps_and_examples_lie_on_the_hyperbola")
def hyperbola_upside_down(batch, s_min, e_min):
    """Your steps grow with the batch: you have 1 + batch / B_crit. Steps fall with the batch: 1 + B_crit / batch."""
    steps = s_min * (1 + batch * s_min / e_min)
    return steps, steps * batch


@mistake("steps_and_examples", caught_by="test_steps_and_examples_lie_on_the_hyperbola")
def critical_batch_upside_down(batch, s_min, e_min):
    """You take S_min / E_min for the critical batch size. Examples over steps is a batch: E_min / S_min."""
    steps = s_min * (1 + s_min / e_min / batch)
    return steps, steps * batch


@mistake("steps_and_examples", caught_by="test_at_the_critical_batch_both_are_twice_their_least")
def the_larger_of_the_two(batch, s_min, e_min):
    """You take the larger of the two limits, S_min and E_min / batch. The true curve has no corner: the two are added,
    so that at the critical batch size both costs are twice their least."""
    steps = torch.maximum(torch.as_tensor(e_min / batch), torch.as_tensor(float(s_min), dtype=torch.float64).float())
    steps = steps.double() if isinstance(batch, torch.Tensor) else float(max(s_min, e_min / batch))
    return steps, steps * batch


@mistake("steps_and_examples", caught_by="test_at_the_critical_batch_both_are_twice_their_least")
def never_fewer_than_everything(batch, s_min, e_min):
    """You leave S_min out: steps = E_min / batch falls without end, as if a batch could be useful however large. Add
    S_min."""
    steps = e_min / batch
    return steps, steps * batch


@mistake("steps_and_examples", caught_by="test_steps_and_examples_lie_on_the_hyperbola")
def examples_from_the_other_limit(batch, s_min, e_min):
    """Your steps are right. The examples are the batch times these steps, and not batch times S_min: most of the
    examples are missing when the batch is small."""
    return s_min + e_min / batch, s_min * batch


# ---------------------------------------------------------------- fit_critical_batch

def _fit(batches, steps, power, middle, keep_lost=False, interval=True):
    """The fit with deviations to `power` around `middle`, and a bootstrap."""
    arrived = torch.ones_like(steps, dtype=torch.bool) if keep_lost else steps.isfinite()
    batches, steps = batches[arrived].double(), steps[arrived].double()
    ends = math.log(batches.min() / 10), math.log(batches.max() * 10)
    sizes = torch.exp(torch.linspace(*ends, 400, dtype=torch.float64))
    level = steps.log() - (1 + sizes[:, None] / batches).log()

    def place(rows):
        part = level[:, rows]
        return ((part - middle(part)).abs() ** power).sum(-1).argmin(0)
    rows = torch.arange(len(steps))[None]
    k = place(rows)[0]
    drawn = torch.randint(len(steps), (150, len(steps)), generator=torch.Generator().manual_seed(0)) if interval else rows
    spread = sizes[place(drawn)]
    return float(middle(level[k][None]).exp()), float(sizes[k]), spread


def _median(values):
    return values.median(-1, keepdim=True).values


def _mean(values):
    return values.mean(-1, keepdim=True)


def _ends(spread):
    return float(spread.quantile(0.025)), float(spread.quantile(0.975))


@mistake("fit_critical_batch", caught_by="test_some_runs_that_went_wrong_do_not_move_the_fit")
def squares_of_logarithms(batches, steps):
    """You minimise squares. In logarithms that is much better than without, but a run that went wrong still pulls the
    fit towards it. Sum the absolute deviations; around their median, not their mean."""
    s_min, size, spread = _fit(batches, steps, 2, _mean)
    return s_min, size, *_ends(spread)


@mistake("fit_critical_batch", caught_by="test_some_runs_that_went_wrong_do_not_move_the_fit")
def straight_line(batches, steps):
    """You fit the straight line steps = S_min + E_min / batch by least squares. The smallest batches need the most steps
    and have the largest errors, so they alone decide. Fit logarithms: an error of 10% then counts the same
    everywhere."""
    arrived = steps.isfinite()
    b, s = batches[arrived].double(), steps[arrived].double()
    sizes = []
    for k in range(60):
        rows = torch.arange(len(b)) if k == 0 else torch.randint(len(b), (len(b),), generator=torch.Generator().manual_seed(k))
        line = torch.stack([torch.ones(len(rows), dtype=torch.float64), 1 / b[rows]], dim=1)
        s_min, e_min = torch.linalg.lstsq(line, s[rows]).solution.clamp(min=1e-3).tolist()
        sizes.append(e_min / s_min)
        first = first if k else (s_min, e_min / s_min)
    return *first, *_ends(torch.tensor(sizes[1:]))


@mistake("fit_critical_batch", caught_by="test_some_runs_that_went_wrong_do_not_move_the_fit")
def deviations_from_the_mean(batches, steps):
    """You sum absolute deviations, but around the mean. What makes them least is the median, and a run that went wrong
    moves the mean: log S_min is the median of log steps - log(1 + B_crit / batch)."""
    s_min, size, spread = _fit(batches, steps, 1, _mean)
    return s_min, size, *_ends(spread)


@mistake("fit_critical_batch", caught_by="test_a_run_that_never_arrived_is_left_out")
def lost_runs_kept(batches, steps):
    """You keep the runs whose steps are inf. With them every sum is infinite, and the first place on the grid wins.
    Leave them out before you take logarithms."""
    s_min, size, spread = _fit(batches, steps, 1, _median, keep_lost=True)
    return s_min, size, *_ends(spread)


@mistake("fit_critical_batch", caught_by="test_the_interval_is_as_wide_as_a_bootstrap_makes_it")
def interval_without_width(batches, steps):
    """Your interval has no width: every fit is the same. Perhaps your draws are without replacement: torch.randperm brings
    all n runs, in another order. torch.randint(n, (n,)) draws with it, so that some runs come twice and some not."""
    s_min, size, _ = _fit(batches, steps, 1, _median, interval=False)
    return s_min, size, size, size


@mistake("fit_critical_batch", caught_by="test_the_interval_is_as_wide_as_a_bootstrap_makes_it")
def ends_exchanged(batches, steps):
    """You return the upper end of the interval before the lower one. The order is S_min, B_crit, low, high."""
    s_min, size, spread = _fit(batches, steps, 1, _median)
    return s_min, size, *_ends(spread)[::-1]


@mistake("fit_critical_batch", caught_by="test_points_on_the_hyperbola_give_its_two_numbers_back")
def logarithm_of_s_min(batches, steps):
    """Your first result is log S_min. Take the exponential: S_min is a number of steps."""
    s_min, size, spread = _fit(batches, steps, 1, _median)
    return math.log(s_min), size, *_ends(spread)


@mistake("fit_critical_batch", caught_by="test_points_on_the_hyperbola_give_its_two_numbers_back")
def e_min_for_b_crit(batches, steps):
    """You return E_min, the least number of examples, in place of B_crit. Divide it by S_min."""
    s_min, size, spread = _fit(batches, steps, 1, _median)
    return s_min, s_min * size, *_ends(s_min * spread)


# ---------------------------------------------------------------- adaptive_batch_schedule

def _limited(wanted, batch, smallest, largest):
    wanted = max(batch / 2, min(2 * batch, wanted))
    return max(smallest, min(largest, round(wanted)))


@mistake("adaptive_batch_schedule", caught_by="test_the_batch_is_the_root_of_price_times_noise_scale")
def batch_at_the_noise_scale(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You set the batch to the noise scale, whatever a step costs. That is right only where a step costs as much as
    `noise_scale` examples. Dear steps want larger batches, cheap ones smaller: sqrt(price * noise_scale)."""
    new = _limited(noise_scale, batch, smallest, largest)
    return new, lr_max / (1 + noise_scale / new)


@mistake("adaptive_batch_schedule", caught_by="test_the_batch_is_the_root_of_price_times_noise_scale")
def root_forgotten(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You multiply price and noise scale and take no root. The product is a batch squared: take the root."""
    new = _limited(price * noise_scale, batch, smallest, largest)
    return new, lr_max / (1 + noise_scale / new)


@mistake("adaptive_batch_schedule", caught_by="test_one_step_at_most_doubles_or_halves_the_batch")
def without_brake(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You jump to the best batch at once. A single estimate can be ten times too high, and the next step would cost ten
    times as much: stay within half and twice the present batch."""
    new = max(smallest, min(largest, round(math.sqrt(price * noise_scale))))
    return new, lr_max / (1 + noise_scale / new)


@mistake("adaptive_batch_schedule", caught_by="test_the_rate_belongs_to_the_new_batch")
def rate_of_the_old_batch(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """Your learning rate belongs to the batch before. The next step has the new one: lr_max / (1 + noise_scale / new)."""
    new = _limited(math.sqrt(price * noise_scale), batch, smallest, largest)
    return new, lr_max / (1 + noise_scale / batch)


@mistake("adaptive_batch_schedule", caught_by="test_the_rate_belongs_to_the_new_batch")
def rate_of_the_wish(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You compute the learning rate from the batch that would be best, before the limits. The next step has the limited
    one; give it its own rate, or the noise carries it away."""
    wanted = math.sqrt(price * noise_scale)
    return _limited(wanted, batch, smallest, largest), lr_max / (1 + noise_scale / wanted)


@mistake("adaptive_batch_schedule", caught_by="test_the_rate_belongs_to_the_new_batch")
def rate_left_alone(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You return lr_max for every batch. A small batch cannot bear it: divide by 1 + noise_scale / new batch."""
    return _limited(math.sqrt(price * noise_scale), batch, smallest, largest), lr_max


@mistake("adaptive_batch_schedule", caught_by="test_the_schedule_costs_less_than_the_best_fixed_batch")
def batch_never_changes(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """Your batch stays what it was. That is a fixed batch, which the schedule has to beat: move it towards
    sqrt(price * noise_scale) at every step."""
    return max(smallest, min(largest, batch)), lr_max / (1 + noise_scale / batch)


@mistake("adaptive_batch_schedule", caught_by="test_the_limits_hold_even_against_the_brake")
def limits_before_the_brake(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You apply smallest and largest first and the brake last, so that half or twice the present batch can break the
    limits, which may be all that fits into the memory. Apply the limits last."""
    wanted = max(smallest, min(largest, math.sqrt(price * noise_scale)))
    new = max(1, round(max(batch / 2, min(2 * batch, wanted))))
    return new, lr_max / (1 + noise_scale / new)


@mistake("adaptive_batch_schedule", caught_by="test_the_limits_hold_even_against_the_brake")
def limits_of_its_own(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You hold the batch between 1 and 4096, whatever `smallest` and `largest` are. These are only their defaults."""
    new = _limited(math.sqrt(price * noise_scale), batch, 1, 4096)
    return new, lr_max / (1 + noise_scale / new)


@mistake("adaptive_batch_schedule", caught_by="test_the_limits_hold_even_against_the_brake")
def smallest_ignored(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You do not use `smallest`: the batch can fall below it."""
    new = _limited(math.sqrt(price * noise_scale), batch, 1, largest)
    return new, lr_max / (1 + noise_scale / new)


@mistake("adaptive_batch_schedule", caught_by="test_the_limits_hold_even_against_the_brake")
def largest_ignored(noise_scale, price, batch, lr_max, smallest=1, largest=4096):
    """You do not use `largest`: the batch can grow beyond it, which may be all that fits into the memory."""
    new = _limited(math.sqrt(price * noise_scale), batch, smallest, 10**9)
    return new, lr_max / (1 + noise_scale / new)
