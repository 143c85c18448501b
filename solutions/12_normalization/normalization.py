# %% [markdown]
# # 12 · Normalization
#
# BatchNorm made deep networks trainable. Why does it fall apart when the batch holds two examples, and what do
# transformers do instead?
#
# By the end you will have made this picture with normalisers of your own: the test error against the batch size,
# for BatchNorm, LayerNorm, GroupNorm and none; first for a network where the failure is plain, then for one where
# it hides.
#
# | | |
# | --- | --- |
# | Time | about 6 hours |
# | You need | mean and variance, the chain rule, lab 11 for the training loop |
# | Data | mnist5k (real digits) and pycode (Python source); both are on this machine |
# | A GPU adds | the speed of your Triton kernel; without one it is interpreted, and only its result is judged |
#
# Before each experiment you are asked to **predict** its outcome. Write a line in the cell below the question,
# then run the experiment. A wrong prediction costs nothing and teaches the most. Code that would tell the outcome
# is folded: run it first, and then open it (a click on the three dots) and play with it.

# %% tags=["setup"]
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course import claims, data, models, plots, timing, train, work
from course.check import check, setup, speed
from course.device import default_device
from course.kernels import tl, triton

setup("12_normalization")

# %% [markdown]
# ### Notation
#
# A normaliser takes some numbers of $x$, moves them to mean 0 and variance 1, and lets the network choose another
# scale $\gamma$ (`weight`) and shift $\beta$ (`bias`):
#
# $$\mu = \tfrac1m \sum_i x_i, \qquad \sigma^2 = \tfrac1m \sum_i (x_i - \mu)^2, \qquad
# \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \qquad y_i = \gamma\, \hat x_i + \beta.$$
#
# All of them do this. They differ in *which* $m$ numbers share one $\mu$ and one $\sigma$. For $x$ of shape
# `[n, c, *places]` ($n$ examples, $c$ channels, and in an image the places, height × width):
#
# | | numbers that share $\mu$ and $\sigma$ | $m$ |
# | --- | --- | --- |
# | BatchNorm | one channel, all examples and places | $n$ × places |
# | LayerNorm (in an image) | one example, all channels and places | $c$ × places |
# | InstanceNorm | one example, one channel, all places | places |
# | GroupNorm | one example, a group of channels, all places | $c$ / groups × places |
#
# $\gamma$ and $\beta$ have one number for each channel in all four. The gradient of the loss with respect to $y$
# is written `dy`. No function changes what it was given.
#
# The experiments train with your forward functions, so autograd must find its way through them: through the mean and
# the variance as well, which depend on $x$. And torch has most of these functions already. Compare yours with them as
# often as you like, but write them with sums, means and products; a check looks at numbers and cannot always tell.

# %% [markdown]
# ## 1 · `batch_norm`: keep the signal in range
#
# While training, BatchNorm takes $\mu$ and $\sigma^2$ from the batch, one of each for every channel. A prediction
# must not depend on who else is in the batch, so in evaluation it uses *running* statistics instead, averages
# collected during training:
#
# $$\mu_\text{run} \leftarrow (1 - a)\, \mu_\text{run} + a\, \mu, \qquad
# \sigma^2_\text{run} \leftarrow (1 - a)\, \sigma^2_\text{run} + a\, \tfrac{m}{m-1}\, \sigma^2,$$
#
# with $a$ = `momentum`. Look at the factor $\tfrac{m}{m-1}$: the batch is normalised by the variance it has, the
# *biased* one; but as an estimate of the variance of all data that is too small on average, and what is collected
# is the *unbiased* one. If a channel has a single number ($m = 1$), there is no variance to speak of: raise a
# `ValueError`, as torch does.
#
# **Predict:** a network has 30 layers, and each multiplies the size of its signal by 0.8 or by 1.25. How large is
# the signal after the last layer? And with BatchNorm in every layer?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def batch_norm(x: Float[Tensor, "n c *places"], weight: Float[Tensor, "c"], bias: Float[Tensor, "c"],
               running: dict[str, Tensor], training: bool, momentum: float = 0.1,
               eps: float = 1e-5) -> tuple[Float[Tensor, "n c *places"], dict[str, Tensor]]:
    """BatchNorm (Ioffe & Szegedy 2015, algorithm 1): y, and the new running statistics.

    `running` holds "mean" and "var", both [c]. In training: normalise with the batch's mean and biased variance,
    and move the running values by `momentum` towards the batch's mean and unbiased variance; a single number in a
    channel raises ValueError. In evaluation: normalise with the running values and return them as they are.
    """
    ### BEGIN SOLUTION
    axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    mean, var = running["mean"], running["var"]
    if training:
        m = x.numel() // x.shape[1]
        if m == 1:
            raise ValueError("one number in a channel has no variance")
        mean = x.mean(axes)
        var = (x - mean.view(shape)).square().mean(axes)
        running = {"mean": (1 - momentum) * running["mean"] + momentum * mean,
                   "var": (1 - momentum) * running["var"] + momentum * var * m / (m - 1)}
    x_hat = (x - mean.view(shape)) / (var + eps).sqrt().view(shape)  # [n, c, *places]
    return x_hat * weight.view(shape) + bias.view(shape), running
    ### END SOLUTION


# %%
check(batch_norm)

# %% tags=["experiment"]
mnist = data.mnist5k()

def signal_sizes(gain, norm, layers=30, width=128):
    """The signal's standard deviation after each layer of a random ReLU network; `gain` 1 would keep its size."""
    torch.manual_seed(0)
    x, sizes = mnist.train_x[:256].flatten(1), []
    for _ in range(layers):
        w = gain * (2 / x.shape[1]) ** 0.5 * torch.randn(width, x.shape[1])  # He et al. 2015, times the gain
        x = x @ w.T
        if norm:
            start = {"mean": torch.zeros(width), "var": torch.ones(width)}
            x, _ = batch_norm(x, torch.ones(width), torch.zeros(width), start, True)
        sizes.append(x.std().item())
        x = F.relu(x)
    return sizes

# %% tags=["experiment"]
curves = {f"gain {gain}": signal_sizes(gain, False) for gain in (0.8, 1.0, 1.25)}
curves["gain 0.8, BatchNorm"] = signal_sizes(0.8, True)
plots.lines(curves, x=range(1, 31), marks=False, logy=True, title="A little too small, thirty times in a row",
            xlabel="layer", ylabel="standard deviation of the signal",
            alt="Size of the signal against the layer. With gains 0.8 and 1.25 it falls and rises along straight lines on "
                "a logarithmic scale, by a factor of several hundred each; with BatchNorm it stays at 1.")

# %% [markdown]
# $0.8^{30}$ is a thousandth and $1.25^{30}$ nearly a thousand: gradients shrink and grow as fast, and no learning
# rate suits all layers. One can choose the first weights so carefully that the gain is 1 (He et al. 2015), but nobody
# keeps it there during training. BatchNorm does, at every step.

# %% [markdown]
# ## 2 · `batch_norm_backward`: what the gradient loses
#
# In a batch every $\hat x_j$ depends on every $x_i$, through $\mu$ and $\sigma$. Push all of that through the
# chain rule and it becomes short. For one channel, with sums over its $m$ numbers:
#
# $$\frac{\partial L}{\partial \beta} = \sum_j \frac{\partial L}{\partial y_j}, \qquad
# \frac{\partial L}{\partial \gamma} = \sum_j \frac{\partial L}{\partial y_j}\, \hat x_j, \qquad
# \frac{\partial L}{\partial x_i} = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}} \Big( \frac{\partial L}{\partial y_i}
# - \frac1m \frac{\partial L}{\partial \beta} - \frac{\hat x_i}{m} \frac{\partial L}{\partial \gamma} \Big).$$
#
# The two terms that are taken away are the mean of `dy` and its part along $\hat x$. So the gradient can no longer
# push all numbers of a channel up together, nor stretch them: that would change nothing, BatchNorm takes both back.
#
# Write the formula. (The check tells it from what `torch.autograd.grad` returns: a formula can itself be differentiated.)
#
# **Predict:** multiply the weights before a BatchNorm by ten. What happens to the output, and what to the gradient
# of these weights?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def batch_norm_backward(dy: Float[Tensor, "n c *places"], x: Float[Tensor, "n c *places"], weight: Float[Tensor, "c"],
                        eps: float = 1e-5) -> tuple[Float[Tensor, "n c *places"], Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Gradients of BatchNorm in training with respect to x, weight and bias (Ioffe & Szegedy 2015, section 3), by hand:
    operations on tensors, no autograd, no detach, no no_grad. Mean and variance are computed from x again."""
    ### BEGIN SOLUTION
    axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    m = x.numel() // x.shape[1]
    center = x - x.mean(axes, keepdim=True)
    scale = (center.square().mean(axes, keepdim=True) + eps).rsqrt()  # [1, c, 1...]
    x_hat = center * scale
    dbias, dweight = dy.sum(axes), (dy * x_hat).sum(axes)
    dx = weight.view(shape) * scale * (dy - dbias.view(shape) / m - x_hat * dweight.view(shape) / m)
    return dx, dweight, dbias
    ### END SOLUTION


# %%
check(batch_norm_backward)

# %% tags=["experiment"]
torch.manual_seed(0)
x, w, dy = mnist.train_x[:64].flatten(1), torch.randn(128, 784) / 28, torch.randn(64, 128)

def gradient_length(scale, norm):
    """Length of the gradient of the weights [128, 784], all multiplied by `scale`, for the same dy."""
    z = x @ (scale * w).T  # [64, 128]
    dz = batch_norm_backward(dy, z, torch.ones(128))[0] if norm else dy
    return (dz.T @ x).norm().item()

scales = [2.0**k for k in range(-3, 7)]
plots.lines({"with BatchNorm": [gradient_length(k, True) for k in scales],
             "without": [gradient_length(k, False) for k in scales]}, x=scales, logx=True, logy=True,
            title="Large weights get small gradients", xlabel="factor on the weights", ylabel="length of their gradient",
            alt="Length of the gradient against the factor on the weights. Without BatchNorm it does not depend on it; "
                "with BatchNorm it falls along a straight line, by half for every doubling.")

# %% [markdown]
# The output is the same, so the gradient must be a tenth: a step of a fixed length changes large weights by less,
# relatively. And since the scale changes nothing, the gradient stands at a right angle to the weights, so every step
# makes them *longer*. Both together are a brake: a learning rate that is too large makes the weights grow, and grown
# weights have small gradients.
#
# ### Higher learning rates?
#
# The overview says that BatchNorm permits them. Six layers, plain SGD, one epoch at each of seven learning rates. And to
# see what the brake has to do with it, once more without it: after each step the weights before each BatchNorm are
# brought back to the length that they began with. (About 15 seconds.)
#
# **Predict:** by what factor is the largest learning rate that works larger with BatchNorm than without? And what is
# left of this factor without the brake?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
class BatchNorm(nn.Module):
    """Your batch_norm as a layer; it keeps the running statistics."""

    def __init__(self, c: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        self.running = {"mean": torch.zeros(c), "var": torch.ones(c)}

    def forward(self, x: Tensor) -> Tensor:
        y, running = batch_norm(x, self.weight, self.bias, self.running, self.training)
        self.running = {name: value.detach() for name, value in running.items()}
        return y


def he_mlp(widths: tuple, norm: Callable[[int], nn.Module] | None, seed: int = 0) -> models.MLP:
    """An MLP whose first weights keep the signal's size (He et al. 2015)."""
    torch.manual_seed(seed)
    model = models.MLP(widths, norm=norm)
    for linear in model.linears:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
    return model

# %%
LOOKS = plots.looks(["none", "BatchNorm", "LayerNorm", "GroupNorm", "BatchNorm, no brake"])


def norm_curves(ax, x: list, curves: dict, title: str, xlabel: str, ticks: list = (), legend: bool = True) -> None:
    """Test errors in percent for each normaliser, always in its own colour. A curve is [points], or [points, 3] with the
    ends of 95% intervals, drawn as thin lines; the curves stand a little side by side, so that these can be told apart."""
    for k, (name, curve) in enumerate(curves.items()):
        mean, low, high = 100 * torch.as_tensor(curve).view(len(x), -1).expand(-1, 3 if torch.as_tensor(curve).ndim == 1 else -1).T
        ax.errorbar([v * 1.04 ** (k - 2) for v in x], mean, yerr=torch.stack([mean - low.clamp(min=0.1), high.clamp(max=100) - mean]),
                    label=name, markersize=4.5, capsize=2, elinewidth=1, **LOOKS[name])
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="test error (%)", ylim=(3, 100))
    ax.set_title(title, loc="left", **plots.TITLE)
    ax.set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    if ticks:
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, labelcolor=plots.INK, fontsize=9)

# %% tags=["experiment"]
torch.set_num_threads(1)  # from here on: small matrices, a second thread would only get in the way

def one_epoch(norm, lr, brake=True):
    """Test error after an epoch of SGD; and how long each step was, beside the second layer's weights."""
    model, steps = he_mlp((784, *[128] * 5, 10), norm), []
    hidden = [linear.weight for linear in model.linears[:-1]]
    lengths, optimizer = [w.norm().item() for w in hidden], torch.optim.SGD(model.parameters(), lr=lr)
    for part in torch.randperm(4000, generator=torch.Generator().manual_seed(0)).split(64):
        loss = F.cross_entropy(model(mnist.train_x[part]), mnist.train_y[part])
        optimizer.zero_grad()
        loss.backward()
        steps.append((lr * hidden[1].grad.norm() / hidden[1].norm()).item())
        optimizer.step()
        with torch.no_grad():
            for w, length in zip(hidden, lengths if not brake else []):
                w.mul_(length / w.norm())
    return 1 - train.accuracy(model, mnist.test_x, mnist.test_y), steps

# %% tags=["experiment"]
rates = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
ways = {"none": (None, True), "BatchNorm": (BatchNorm, True), "BatchNorm, no brake": (BatchNorm, False)}
epochs = {name: {lr: one_epoch(norm, lr, brake) for lr in rates} for name, (norm, brake) in ways.items()}
errors = {name: [error for error, _ in row.values()] for name, row in epochs.items()}

# %% tags=["experiment"]
full = claims.full_run("12_normalization")
means = {name: full["rates"][name]["error"] for name in ("none", "BatchNorm", "LayerNorm", "GroupNorm")} | {"BatchNorm, no brake": full["brake"]["error"]}
fig, (left, right) = plots.figure(columns=2, size=(10.8, 4), alt=f"Test error against the learning rate. Your run, at {rates}: "
    f"{ {name: [round(e, 2) for e in row] for name, row in errors.items()} }. Full run, at {full['rates']['rates']}: "
    f"{ {name: [round(e[0], 2) for e in row] for name, row in means.items()} }.")
norm_curves(left, rates, errors, "Yours: 1 epoch, 1 seed", "learning rate", legend=False)
norm_curves(right, full["rates"]["rates"], means, "Full run: 2 epochs, 5 seeds (line: 95% interval)", "learning rate")
plots.show(fig)

# %% tags=["experiment"]
shown = {"none, rate 0.3": ("none", 0.3), "none, rate 1": ("none", 1.0), "BatchNorm, rate 3": ("BatchNorm", 3.0), "BatchNorm, rate 10": ("BatchNorm", 10.0)}
steps = {name: [s if s < 100 else math.nan for s in epochs[norm][lr][1][:20]] for name, (norm, lr) in shown.items()}
fig, ax = plots.figure(size=(7.4, 3.8), alt="Length of each of the first 20 steps over the length of the weights that it changes; "
    f"at the first six: { {name: [f'{s:.2g}' for s in row[:6]] for name, row in steps.items()} }; nan: over 100.")
plots.lines(steps, x=range(1, 21), ax=ax, alt="", logy=True, title="How long is a step?", xlabel="step (a curve that ends: over 100)",
            ylabel="step / second layer's weights (lengths)")
ax.set_xticks([1, 5, 10, 15, 20])
plots.show(fig)
largest = {name: max((lr for lr, e in zip(rates, row) if e < 0.3), default=0) for name, row in errors.items()}
claims.show("12-batchnorm-higher-rates", measured="largest rate with an error below 30%: " + "; ".join(f"{name} {lr:g}" for name, lr in largest.items()))

# %% [markdown]
# In the full run the network trains, with an error below 30%, up to a rate of 0.3 without normalisation (in one of the five
# seeds only up to 0.1), and up to 3 with BatchNorm in all five: ten times as far. Its best error is 6.8% (95% interval 5.2
# to 8.3), at 0.3; without it 11.9%, at 0.1, where the seeds differ so much that the interval reaches from 5.3 to 18.5.
#
# And the brake? With the brake taken away BatchNorm still trains up to 3 in all five seeds; the error there is 15.7% (8.6 to
# 22.8) and was 10.4% (7.8 to 13.1) with it. It may help at the edge, but the factor of ten does not come from it. The
# second picture shows more. Without a norm a step that is too long makes the signal larger, the larger signal makes the
# gradient larger, and the next step is longer still, until no number is finite. With BatchNorm the first steps may be as
# long as a good part of the weights, and the next ones come out shorter: whatever has become of the weights, the
# signal has size 1 after each layer. Even a rate of 10 explodes nothing, it only learns nothing.
#
# But look at LayerNorm and GroupNorm: they keep the signal's size as well, and train up to 0.3, no further than none at
# all. So this cannot be the whole story either. BatchNorm keeps the mean and the size of each *unit* over the data;
# with LayerNorm one unit can grow at the cost of the others. (That this is the reason is a guess: nothing here tests it.)

# %% [markdown]
# ### Question (10 points)
#
# Why does BatchNorm permit higher learning rates? Answer in three to five sentences, with what you have measured in
# this section: the length of the gradient, the length of the steps, and what became of it all without the brake.

# %% [markdown] tags=["written"] points=10 name="rates"
# BatchNorm's output does not change when the weights before it are multiplied by a number, so their gradient is divided by
# it: in the first picture ten times the weights have a tenth of the gradient. That is a brake, because each step also makes the
# weights longer. But it is not why: with the weights kept at their length BatchNorm still trains up to a rate of 3 in the
# full run, where none trains up to 0.3. The lengths of the steps show more. Without a norm, at rate 1, each of the first steps is longer
# than the one before it, from 4% of the weights to more than a hundred times their length; with BatchNorm, at rate 3, the first two are
# about half as long as the weights, and then they become short by themselves, because the signal keeps its size. (LayerNorm
# keeps the signal's size too, and did not get further than none; so something that only BatchNorm does, for each unit, must be
# part of it.)

# %% [markdown]
# ## 3 · `layer_norm`: each example for itself
#
# Take $\mu$ and $\sigma$ over the $d$ numbers of *one* place instead, and nothing depends on the batch any more.
# There is nothing to collect either: training and evaluation are the same function.
#
# Two traps of numbers. The variance can also be written $\overline{x^2} - \mu^2$: one pass over the data instead of
# two. But it subtracts two numbers that may be large and nearly equal, and little is left that is true. And in half
# precision a sum of squares overflows or loses its last digits: compute in float32, and only give the result in the
# type of $x$.
#
# **Predict:** numbers with standard deviation 1 around a mean of 3000, in float32, which keeps seven digits. How
# many digits of the variance does the short formula keep?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def layer_norm(x: Float[Tensor, "*places d"], weight: Float[Tensor, "d"], bias: Float[Tensor, "d"],
               eps: float = 1e-5) -> Float[Tensor, "*places d"]:
    """LayerNorm over the last dimension (Ba et al. 2016), each place for itself, with the biased variance.

    Accurate also where the mean is much larger than the spread. float16 and bfloat16 are computed in float32, other
    types as they are; the result has the dtype of x.
    """
    ### BEGIN SOLUTION
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    center = h - h.mean(-1, keepdim=True)
    x_hat = center * (center.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x_hat * weight + bias).to(x.dtype)
    ### END SOLUTION


# %%
check(layer_norm)

# %% tags=["experiment"]
def short_layer_norm(x, eps=1e-5):
    """The same with the short formula for the variance."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0) + eps).sqrt()

torch.manual_seed(0)
offsets, deviates = [10.0**k for k in range(7)], torch.randn(64, 256)
wrong = {"yours": [], "short formula": []}
for offset in offsets:
    x = deviates + offset
    right = F.layer_norm(x.double(), (256,))  # of the same numbers, in float64
    for name, y in (("yours", layer_norm(x, torch.ones(256), torch.zeros(256))), ("short formula", short_layer_norm(x))):
        wrong[name].append((y - right).abs().max().item())
plots.lines(wrong, x=offsets, logx=True, logy=True, limits={"as large as y": 1}, xlabel="mean of x (its spread is 1)",
            ylabel="largest error of y", title="float32: the short formula runs out of digits",
            alt=f"Largest error of y against the mean of x, {offsets}: {wrong}.")

# %% [markdown]
# Every factor of ten in the mean costs your version one digit, because $x$ itself has only seven; that cannot be
# helped. It costs the short formula *two*: the squares have seven digits as well, and the variance is what is left
# when two of them are subtracted. At a mean of some thousands nothing is left. (Kernels that want a single pass use
# Welford's update, which keeps a running mean and never squares anything large.)

# %% [markdown]
# ## 4 · `layer_norm_backward`: the same formula, turned by 90°
#
# Now the sums over $m$ run along the last dimension, for each place; those for $\gamma$ and $\beta$ still run over
# everything else. Here $\gamma$ differs *inside* a sum, so it comes first: with
# $g = \frac{\partial L}{\partial y} \odot \gamma$,
#
# $$\frac{\partial L}{\partial x} = \frac{1}{\sqrt{\sigma^2 + \varepsilon}} \Big( g - \overline{g}
# - \hat x\; \overline{g \odot \hat x} \Big),$$
#
# where the bars are means over the $d$ numbers of one place.
#
# **Predict:** if you write LayerNorm with torch's operations, autograd keeps tensors for the backward pass. How
# many of the size of $x$? And how many does your own backward function need?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def layer_norm_backward(dy: Float[Tensor, "*places d"], x: Float[Tensor, "*places d"], weight: Float[Tensor, "d"],
                        eps: float = 1e-5) -> tuple[Float[Tensor, "*places d"], Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Gradients of LayerNorm with respect to x, weight and bias, by hand: operations on tensors, no autograd, no detach,
    no no_grad. `places` are none, one or several dimensions. Mean and variance are computed from x again."""
    ### BEGIN SOLUTION
    center = x - x.mean(-1, keepdim=True)
    scale = (center.square().mean(-1, keepdim=True) + eps).rsqrt()  # [*places, 1]
    x_hat, g = center * scale, dy * weight
    dx = scale * (g - g.mean(-1, keepdim=True) - x_hat * (g * x_hat).mean(-1, keepdim=True))
    d = x.shape[-1]
    return dx, (dy * x_hat).reshape(-1, d).sum(0), dy.reshape(-1, d).sum(0)
    ### END SOLUTION


# %%
check(layer_norm_backward)

# %% tags=["experiment"]
class ByHand(torch.autograd.Function):
    """Your two functions as one operation: autograd keeps x and weight, and nothing else."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return layer_norm(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        return layer_norm_backward(dy, *ctx.saved_tensors)

def bytes_kept(function, *inputs):
    """Bytes of all tensors that autograd keeps for the backward pass of `function`, each once."""
    kept = {}
    def keep(tensor):
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = function(*inputs)  # held until the end, so that no memory is used twice
    return sum(kept.values())

# %% tags=["experiment"]
inputs = [torch.randn(512, 1024, requires_grad=True), torch.ones(1024, requires_grad=True), torch.zeros(1024, requires_grad=True)]
ways = {"layer_norm, by autograd": layer_norm, "F.layer_norm": lambda x, w, b: F.layer_norm(x, (1024,), w, b), "your two functions": ByHand.apply}
kept = {name: bytes_kept(way, *inputs) / inputs[0].nbytes for name, way in ways.items()}
plots.bars(kept, title="What is kept until the backward pass", xlabel="bytes, in units of the size of x", form="{:.2f}",
           alt=f"Bytes kept for the backward pass in units of x: {kept}.")

# %% [markdown]
# Autograd knows nothing of LayerNorm: it differentiates one operation after the other, and each keeps what *it*
# needs. The formula needs $x$ alone; mean and variance are computed again, which costs arithmetic and saves memory.
# (torch's own function also keeps one mean and one $1/\sigma$ for each row.) In a transformer with two LayerNorms a
# block, this is one of the larger parts of the memory.

# %% [markdown]
# ## 5 · `group_norm`: between the two
#
# Each example for itself again, but the channels in groups: channels $0$ to $c/G - 1$ share one $\mu$ and one
# $\sigma$ over all their places, then the next $c/G$, and so on. With $G = 1$ group this is LayerNorm over a whole
# example, with $G = c$ it is InstanceNorm.
#
# **Predict:** a network with two hidden layers is trained with batches of 2, 4, 8 and 32 examples: without
# normalisation, and with Batch-, Layer- and GroupNorm. Rank the four at batch size 2.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def group_norm(x: Float[Tensor, "n c *places"], groups: int, weight: Float[Tensor, "c"], bias: Float[Tensor, "c"],
               eps: float = 1e-5) -> Float[Tensor, "n c *places"]:
    """GroupNorm (Wu & He 2018): mean and biased variance over each example's `groups` groups of neighbouring
    channels with all their places; weight and bias for each channel. `groups` divides c."""
    ### BEGIN SOLUTION
    h = x.reshape(x.shape[0], groups, -1)  # [n, groups, c / groups * places]
    center = h - h.mean(-1, keepdim=True)
    x_hat = center * (center.square().mean(-1, keepdim=True) + eps).rsqrt()
    shape = [1, -1] + [1] * (x.ndim - 2)
    return x_hat.view_as(x) * weight.view(shape) + bias.view(shape)
    ### END SOLUTION


# %%
check(group_norm)

# %%
class LayerNorm(nn.Module):
    """Your layer_norm as a layer, over the last dimension."""

    def __init__(self, d: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)


class GroupNorm(nn.Module):
    """Your group_norm as a layer."""

    def __init__(self, c: int, groups: int = 8):
        super().__init__()
        self.groups, self.weight, self.bias = groups, nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.groups, self.weight, self.bias)


NORMS = {"none": None, "BatchNorm": BatchNorm, "LayerNorm": LayerNorm, "GroupNorm": GroupNorm}


def ticks_at(ax, places: list[int]) -> None:
    """On a logarithmic axis: these numbers, and no others."""
    ax.set_xticks(places, [str(place) for place in places])
    ax.minorticks_off()

# %% [markdown]
# One epoch of plain SGD on 2000 digits, at one learning rate. (About 20 seconds.)

# %% tags=["experiment"]
part = data.Images(mnist.train_x[:2000], mnist.train_y[:2000], mnist.test_x, mnist.test_y, 10, "2000 digits")
batches, by_batch = [2, 4, 8, 32], {name: [] for name in NORMS}
for name, norm in NORMS.items():
    for batch in batches:
        torch.manual_seed(0)
        model = models.MLP((784, 128, 128, 10), norm=norm)
        done = train.train(model, part, optimizer=torch.optim.SGD, lr=0.03, batch_size=batch, epochs=1, progress=False)
        by_batch[name].append(1 - done.final_accuracy)
fig, ax = plots.figure(alt=f"Test error at batch sizes {batches}: {by_batch}.", size=(7.6, 3.8))
norm_curves(ax, batches, by_batch, "One epoch, one seed, one learning rate", "examples in a batch", batches)
plots.show(fig)

# %% [markdown]
# With 8 or 32 examples BatchNorm is ahead; with two it is by far the last. LayerNorm and GroupNorm do not mind. (Where an error
# grows with the batch, it is for another reason: in one epoch larger batches take fewer steps.) Why
# two, of all sizes?
#
# **Predict:** take one channel, and normalise a batch of two numbers in it: 0.1 and 0.2, or 1 and 100. What comes
# out?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
torch.manual_seed(0)
units = models.MLP((784, 128, 10)).linears[0](mnist.train_x.flatten(1)).detach()  # [4000, 128]: all hidden units' sums
z = units[:, :1]  # one hidden unit's
fig, panels = plots.figure(columns=3, size=(10.4, 3.6), alt="What BatchNorm makes of one hidden unit's sums. In batches of two "
    "nearly all become +1 or -1, whatever went in; in batches of eight a cloud along a line; in batches of 128 nearly a line.")
for ax, batch in zip(panels, (2, 8, 128)):
    start = {"mean": torch.zeros(1), "var": torch.ones(1)}
    y = torch.cat([batch_norm(some, torch.ones(1), torch.zeros(1), start, True)[0] for some in z[:1920].split(batch)])
    ax.plot(z[:1920, 0], y[:, 0], ".", color=plots.PALETTE[0], markersize=3, alpha=0.4)
    ax.set_title(f"batches of {batch}", loc="left", **plots.TITLE)
    ax.set_xlabel("x, the sum that went in")
panels[0].set_ylabel("normalised x")
plots.show(fig)

# %% [markdown]
# Two numbers, whatever they are, have their mean in the middle and their standard deviation at half their distance: one
# becomes $+1$ and the other $-1$. (Only where they nearly agree does $\varepsilon$ show.) Of each sum the network
# learns a single bit: was it larger than that of another example, drawn at random? And in evaluation, with the running
# statistics, it is suddenly shown sizes, which it has never seen in training.
#
# Does a convolutional network suffer as much? There a channel has many places in each image.
#
# **Predict:** how large must the batch of the MLP be, for its variances to be as reliable as those of a convnet at
# batch size 2?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
torch.manual_seed(0)
net, sums = models.ConvNet((8, 16, 32)), {"MLP, 1 place": z}
for k, conv in enumerate(net.convs):
    places = (28 // 2**k) ** 2
    conv.register_forward_hook(lambda conv, x, y, name=f"convnet, {places} places": sums.__setitem__(name, y))
with torch.no_grad():
    net.eval()(mnist.train_x[:1024])

def variance_spread(x, batch):
    """How much the variances of batches differ: their standard deviation over their mean, averaged over channels."""
    x = x[:1024].flatten(2) if x.ndim > 2 else x[:1024].unsqueeze(2)  # [1024, c, places]
    variances = torch.stack([part.var((0, 2)) for part in x.split(batch)])  # [batches, c]
    return (variances.std(0) / variances.mean(0).clamp(min=1e-9)).mean().item()

# %% tags=["experiment"]
batches = [2, 4, 8, 16, 32, 64, 128]
spreads = {name: [variance_spread(x, batch) for batch in batches] for name, x in sums.items()}
fig, ax = plots.figure(alt=f"Relative spread of the variance over batches of {batches}: {spreads}.", size=(7.6, 3.8))
plots.lines(spreads, x=batches, ax=ax, alt="", logx=True, logy=True, title="How unreliable is a batch's variance?",
            xlabel="examples in a batch", ylabel="spread of the variance (share)")
ticks_at(ax, batches)
plots.show(fig)

# %% [markdown]
# At batch size 2 the variances that the convnet uses are about as reliable as the MLP's with 64 to 128 examples. What
# counts is not the number of examples but that of the numbers in a channel, examples × places. And not even that: 784
# places help no more than 49, because neighbours in an image are alike. They are not 784 independent numbers.
#
# **Play.** Each point below is one batch: its mean and its variance, in one hidden unit of the MLP and in one channel of
# the convnet's first layer. BatchNorm takes each of these points for the truth, which is the cross. Move the sliders. From
# which batch size on does the MLP's cloud look like the convnet's at 2? Is it the same for every channel?

# %% tags=["experiment"]
from course.sliders import Slider, show

def draw(batch, channel):
    found = {}
    for name, x in (("MLP, 1 place", units), ("convnet, 784 places", sums["convnet, 784 places"])):
        x = x[:1024, channel].reshape(1024, -1)  # [1024, places]
        parts = x[:1024 // batch * batch].reshape(-1, batch * x.shape[1])  # [batches, numbers]
        found[name] = (parts.mean(1) - x.mean()) / x.std(), parts.var(1) / x.var()
    fig, panels = plots.figure(columns=2, size=(9.6, 3.8), alt=f"Mean and variance of each batch of {batch} examples, relative to those of "
        f"all: clouds around the truth. Standard deviation of the variances: { {name: round(v.std().item(), 2) for name, (_, v) in found.items()} }.")
    for ax, (name, (means, variances)) in zip(panels, found.items()):
        ax.plot(means, variances, ".", color=plots.PALETTE[0], markersize=4, alpha=0.4)
        ax.plot(0, 1, "+", color=plots.PALETTE[5], markersize=16, markeredgewidth=2.5)
        ax.set(xlim=(-2, 2), ylim=(-0.1, 4), xlabel="mean of the batch (standard deviations)")
        ax.set_title(f"{name}, batches of {batch}", loc="left", **plots.TITLE)
    panels[0].set_ylabel("variance of the batch / variance of all")
    plots.show(fig)

show(draw, batch=Slider(2, 128, start=2, step=1, label="examples in a batch"), channel=Slider(0, 7, start=0, step=1, label="channel"))

# %% [markdown]
# ### And in a recurrent network?
#
# The overview also says that BatchNorm gets worse there. A recurrent network takes the same step again and again,
# $h_t = \tanh(\text{norm}(W x_t + U h_{t-1} + b))$, here for each row of an image, from the top to the bottom. LayerNorm
# fits as it is. For BatchNorm there are two ways: *one* set of running values for all steps, though $h$ is nothing at the
# first step and much at the last; or a set *for each step* (Cooijmans et al. 2017), which lasts as long as all sequences
# begin alike. In the right panel they do not: 0 to 7 empty rows come before the digit.
#
# The full run has batches of 16, with which BatchNorm is the best of all in the MLP.
#
# **Predict:** rank the four, with one length and with different lengths.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
full = claims.full_run("12_normalization")["recurrent"]["error"]
fig, panels = plots.figure(columns=2, size=(10.4, 3), alt="Test error of a recurrent network, mean and 95% interval of 5 seeds: " + "; ".join(
    f"{name}, {length}: " + ", ".join(f"{100 * e:.1f}" for e in row[length]["error"]) for name, row in full.items() for length in row) + " percent.")
for ax, length in zip(panels, ("one length", "different lengths")):
    found = {name: [100 * e for e in row[length]["error"]] for name, row in full.items()}
    plots.bars({name: e[0] for name, e in found.items()}, intervals={name: tuple(e[1:]) for name, e in found.items()}, ax=ax, alt="",
               title=f"Full run, {length}: 5 seeds (line: 95%)", xlabel="test error (%)", form="{:.1f}")
    ax.set_xlim(0, 100)
panels[1].set_yticklabels([])
plots.show(fig)

# %% [markdown]
# With one length BatchNorm has an error of 24% (95% interval 18 to 29), and 25% (17 to 33) with a set for each step; LayerNorm
# has 13.1% (10.5 to 15.6), and none at all 12.4%. With different lengths BatchNorm has 36% (33 to 39) and 39% (34 to 44),
# LayerNorm 14.5% (11.6 to 17.5). So the claim holds here, at a batch size that suits BatchNorm elsewhere. A set for each step
# does not repair it, not even where all have one length; so running values that belong to other steps are not all that is
# wrong. Left is the batch itself: fourteen times in a row the state of each example is moved by who else is in the
# batch. (That is a guess; larger batches would test it.) And this small network does not need any norm.

# %% [markdown]
# ## 6 · `fold_batch_norm`: nothing to do
#
# In evaluation $\mu$ and $\sigma$ are constants, so BatchNorm is a multiplication and an addition for each channel.
# The convolution before it already multiplies and adds for each channel. Two such steps are one:
#
# $$\gamma\, \frac{(W * x + b) - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta = W' * x + b'.$$
#
# Find $W'$ and $b'$. (The convolution is written $*$; it is linear, and its output channel $o$ uses $W_o$ and
# $b_o$ only.)
#
# **Predict:** which share of a convolutional network's multiply-adds does folding save? And which share of the
# numbers that go to the memory and back?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def fold_batch_norm(conv_weight: Float[Tensor, "c i *kernel"], conv_bias: Float[Tensor, "c"] | None,
                    weight: Float[Tensor, "c"], bias: Float[Tensor, "c"], mean: Float[Tensor, "c"],
                    var: Float[Tensor, "c"], eps: float = 1e-5) -> tuple[Float[Tensor, "c i *kernel"], Float[Tensor, "c"]]:
    """Weight and bias of the one convolution (or linear layer) that does what the given one and the BatchNorm after
    it do in evaluation, where `mean` and `var` are the running statistics. conv_bias None means zero."""
    ### BEGIN SOLUTION
    scale = weight * (var + eps).rsqrt()  # [c]
    shift = -mean if conv_bias is None else conv_bias - mean
    return conv_weight * scale.view(-1, *[1] * (conv_weight.ndim - 1)), bias + shift * scale
    ### END SOLUTION


# %%
check(fold_batch_norm)

# %% tags=["experiment"]
torch.manual_seed(0)
apart = models.ConvNet((8, 16, 32))
print(train.train(apart, part, lr=1e-2, batch_size=32, epochs=2, progress=False))
together = models.ConvNet((8, 16, 32), norm=False)  # the same without norms, and with biases
for conv, norm, new in zip(apart.convs, apart.norms, together.convs):
    w, b = fold_batch_norm(conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    new.weight.data, new.bias.data = w, b
together.head = apart.head
apart.eval(), together.eval()
with torch.no_grad():
    difference = (apart(mnist.test_x) - together(mnist.test_x)).abs().max().item()
print(f"accuracy folded {train.accuracy(together, mnist.test_x, mnist.test_y):.1%}, largest difference of a logit {difference:.1e}")

# %% tags=["experiment"]
with torch.no_grad():
    before, after = (work.count(network, mnist.test_x[:64]) for network in (apart, together))
left_over = {what: 100 * getattr(after, field) / getattr(before, field) for what, field in
             (("multiply-adds", "multiply_adds"), ("bytes moved", "bytes"), ("operations", "operations"))}
plots.bars(left_over, title="What is left after folding", xlabel="percent of what it was", form="{:.0f}%", limits={"before": 100},
           alt=f"Work of the folded network in percent of the work before: {left_over}.")

# %% [markdown]
# Not one multiply-add less is counted, because only those of convolutions and matrix products are: BatchNorm's own, one
# for each number, are few beside the $9\,c_\text{in}$ of the convolution that made the number. What folding saves is the
# *way*: each number came from the memory and went back once more, only to be scaled and shifted.

# %% [markdown]
# ## 7 · `block_pre_ln`: where the norm sits
#
# A transformer adds to a *residual stream*: $x + \text{branch}(x)$, once for attention and once for the MLP. The
# first transformer (Vaswani et al. 2017) normalised the *sum*, now called post-norm:
#
# $$x \leftarrow \text{LN}_1(x + \text{attention}(x)), \qquad x \leftarrow \text{LN}_2(x + \text{mlp}(x)).$$
#
# Its successors normalise what goes *into* the branch, and never touch the stream itself. That is pre-norm, and it
# is what you write here:
#
# $$x \leftarrow x + \text{attention}(\text{LN}_1(x)), \qquad x \leftarrow x + \text{mlp}(\text{LN}_2(x)).$$
#
# All four functions are given. **Predict:** at initialisation, through 32 such blocks: how does the size of the
# stream change with depth under pre-norm, and how under post-norm?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def block_pre_ln(x: Float[Tensor, "n t d"], attention: Callable[[Tensor], Tensor], mlp: Callable[[Tensor], Tensor],
                 norm1: Callable[[Tensor], Tensor], norm2: Callable[[Tensor], Tensor]) -> Float[Tensor, "n t d"]:
    """One pre-norm transformer block (Xiong et al. 2020): the first branch is attention with norm1, the second the
    MLP with norm2. Each of the four functions takes and gives [n, t, d], and is called once."""
    ### BEGIN SOLUTION
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))
    ### END SOLUTION


# %%
check(block_pre_ln)

# %%
class PreBlock(models.Block):
    """A transformer layer wired by your function."""

    def forward(self, x: Tensor) -> Tensor:
        return block_pre_ln(x, self.attention, self.mlp, self.norm1, self.norm2)


def transformer(norm: str, layers: int, d: int = 32, seed: int = 0) -> models.Transformer:
    """The course's small transformer; with norm "pre" its blocks are wired by your function."""
    torch.manual_seed(seed)
    model = models.Transformer(d=d, layers=layers, heads=d // 16, length=32, norm=norm)
    for block in model.blocks:
        if norm == "pre":
            block.__class__ = PreBlock
    return model

# %% tags=["experiment"]
text = data.pycode(2_000_000)

def next_byte_loss(model, generator, batch=8):
    x, y = text.batch(batch, model.length, generator)
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

def at_the_start(norm, layers):
    """The stream's size after each block, and the length of the gradient of each block's last weights."""
    model, sizes = transformer(norm, layers), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, x, y: sizes.append(y.detach().square().mean().sqrt().item()))
    next_byte_loss(model, torch.Generator().manual_seed(0)).backward()
    return sizes, [block.down.weight.grad.norm().item() for block in model.blocks]

# %% tags=["experiment"]
found = {f"{norm}, {layers} layers": at_the_start(norm, layers) for norm in ("pre", "post") for layers in (4, 32)}
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4), alt="At initialisation. Left: the stream of the pre-norm network grows "
    "slowly with depth; post-norm's has size 1 after each block. Right: the gradient's length is nearly the same in all "
    "layers, and much smaller with post-norm.")
for ax, k, title, ylabel in ((left, 0, "Size of the stream", "root mean square"), (right, 1, "Gradient of `down`", "length of the gradient")):
    plots.lines({name: (range(1, len(pair[k]) + 1), pair[k]) for name, pair in found.items()}, ax=ax, alt="", logy=True,
                marks=False, title=title, xlabel="block", ylabel=ylabel)
plots.show(fig)

# %% [markdown]
# Depth hardly matters, to either. This transformer begins like GPT-2, with small weights that are smaller still where a
# branch writes into the stream, by $1/\sqrt{2 \cdot \text{layers}}$: the sum of all branches stays small whatever their
# number. What differs is the size. Pre-norm's stream begins as small as the embedding, 0.03; post-norm has brought it
# to 1, and the same small branches weigh 35 times less in it, so their weights get gradients about 35 times smaller.
#
# The textbook's picture, gradients that shrink or grow from block to block, belongs to larger first weights. Try it:
# `nn.init.xavier_uniform_` on all matrices of the blocks.
#
# ### Which of them train without warm-up?
#
# Twelve layers, Adam at a rate of 0.003, at once or after a *warm-up*: the rate grows from zero over the first 100
# steps. Three runs: pre-norm at once, post-norm at once, post-norm after a warm-up. (About 20 seconds.)
#
# **Predict:** which of the three fail?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def learn(model, lr, steps, watch=lambda: None, seed=0):
    """Losses of `steps` steps of Adam; `lr` is a function of the step."""
    generator, optimizer, losses = torch.Generator().manual_seed(seed), torch.optim.Adam(model.parameters(), fused=True), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step)
        loss = next_byte_loss(model, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        watch()
    return torch.tensor(losses)

curves = {}
for norm, warm in (("pre", 1), ("post", 1), ("post", 100)):
    losses = learn(transformer(norm, 12), lambda step: 3e-3 * min(1, (step + 1) / warm), 200)
    curves[f"{norm}, {'warm-up' if warm > 1 else 'at once'}"] = (range(10, 201, 10), losses.view(-1, 10).mean(1))
share = torch.bincount(text.train.long(), minlength=256) / len(text.train)
unigram = -(share * share.clamp(min=1e-9).log()).sum().item()

# %% tags=["experiment"]
full = claims.full_run("12_normalization")["depth"]
arms = {"pre, at once": "pre, lr 0.003, warm-up 0", "pre, warm-up": "pre, lr 0.003, warm-up 100",
        "post, at once": "post, lr 0.003, warm-up 0", "post, warm-up": "post, lr 0.003, warm-up 100"}
rows = {name: torch.tensor([full["loss"][arm][layers]["each"] for layers in ("4", "12", "24")]) for name, arm in arms.items()}
ends = {name: round(losses[-3:].mean().item(), 2) for name, (_, losses) in curves.items()}
fig, (left, right) = plots.figure(columns=2, size=(10.8, 4.2), alt=f"Left: training loss of three runs, at the end {ends}; guessing by frequency alone has "
    f"{unigram:.2f}. Right: the full run's loss at 4, 12 and 24 layers: { {name: [round(v, 2) for v in row.mean(1).tolist()] for name, row in rows.items()} }.")
plots.lines(curves, ax=left, alt="", marks=False, limits={"byte frequencies": unigram}, title="Yours: 12 layers, 1 seed",
            xlabel="step", ylabel="training loss (nats)")
plots.lines({name: row.mean(1) for name, row in rows.items()}, x=[4, 12, 24], ax=right, alt="", limits={"byte frequencies": unigram},
            bands={name: (row.amin(1), row.amax(1)) for name, row in rows.items()}, title="Full run: 240 steps, 3 seeds (band: all)",
            xlabel="layers", ylabel="training loss at the end (nats)")
plots.show(fig)

# %% [markdown]
# The line marked "byte frequencies" is the loss of a model that knows how frequent each byte is, and nothing else. In the full run all
# four arms are alike with 4 layers. With 12, post-norm at once stays on that line in all three seeds, and a warm-up
# rescues one of them; with 24 layers it rescues none. Pre-norm leaves it in every run with a warm-up, and without
# one in five of six (one of the three with 24 layers is still there). At a rate of 0.001 post-norm trains too with 24 layers, to 2.76 where pre-norm reaches 2.62. So depth and the learning rate
# count together: post-norm is not unable, it needs smaller steps the deeper it is.
#
# Nothing becomes infinite in these runs, and no gradient vanished at the start. The first large steps make the branches
# large, and in post-norm every one of 24 norms then shrinks what came before: the way back to the early layers is lost.
# Pre-norm's stream always has a straight way through.
#
# ### LayerNorm after the embedding
#
# The account of training a 100-billion-parameter model says that one more LayerNorm, right after the embedding, made
# collapses rarer. Provoke one: train a pre-norm transformer for 70 steps, then multiply the learning rate by ten.
# (About 15 seconds.) One pair of runs says little, so the full run has eight: the same seed with and without.
#
# **Predict:** which of the two has the larger activations before the jump, and which has the lower loss after it?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def jump(first, seed=1):
    """Losses, and the largest activation after any block, of a run whose rate jumps at step 70."""
    model, largest, peaks = transformer("pre", 6, d=64, seed=seed), [0.0], []
    model.first = first  # between the embedding and the first block
    model.blocks[0].register_forward_pre_hook(lambda block, args: (model.first(args[0]),))
    for block in model.blocks:
        block.register_forward_hook(lambda block, x, y: largest.append(y.detach().abs().max().item()))
    def watch():
        peaks.append(max(largest))
        largest.clear()
    return learn(model, lambda step: 2e-3 * min(1, (step + 1) / 30) * (10 if step >= 70 else 1), 160, watch, seed), peaks

jumps = {"plain": jump(nn.Identity()), "LayerNorm after the embedding": jump(LayerNorm(64))}

# %% tags=["experiment"]
at = {name: [f"{peaks[k]:.0f}" for k in (0, 69, 159)] for name, (_, peaks) in jumps.items()}
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4), alt="One seed. Left: training loss of both runs; the learning rate jumps at step 70. "
    f"Right: the largest activation, at the first step, before the jump and at the end: {at}.")
plots.lines({name: (range(5, 161, 5), losses.view(-1, 5).mean(1)) for name, (losses, _) in jumps.items()}, ax=left, alt="",
            marks=False, title="Yours, 1 seed: the rate jumps at step 70", xlabel="step", ylabel="training loss (nats)")
plots.lines({name: peaks for name, (_, peaks) in jumps.items()}, ax=right, alt="", marks=False, logy=True,
            title="The largest activation", xlabel="step", ylabel="largest number after any block")
plots.show(fig)

# %% tags=["experiment"]
arms = claims.full_run("12_normalization")["embedding"]["arms"]
pairs = {name: arms[name]["minus plain"] for name in ("LayerNorm after the embedding", "embedding times 35")}
fig, ax = plots.figure(xlabel="loss 90 steps after the jump, minus that of the plain run (nats)", size=(8.4, 2.6),
                       alt=f"Differences of the loss after the jump for eight seeds, and their mean with its 95% interval: {pairs}.")
for y, pair in enumerate(pairs.values()):
    ax.plot(pair["each"], [y] * 8, "o", color=plots.PALETTE[y], markersize=6, alpha=0.6)
    mean, low, high = pair["mean"]
    ax.errorbar(mean, y + 0.25, xerr=[[mean - low], [high - mean]], fmt="D", color=plots.PALETTE[y], capsize=4)
    ax.annotate(f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", (1.01, y + 0.25), xycoords=("axes fraction", "data"), va="center", fontsize=9)
ax.axvline(0, color=plots.INK, linewidth=1)
ax.set_yticks([0, 1], pairs)
ax.set_ylim(1.6, -0.4)
ax.set_title("Full run: 8 pairs of runs (diamond: mean, 95% interval)", loc="left", **plots.TITLE)
plots.show(fig)
after = ", ".join(f"{name} {losses[-20:].mean():.2f}" for name, (losses, _) in jumps.items())
claims.show("12-embedding-layernorm", measured=f"loss after a tenfold jump of the rate, one seed: {after}")

# %% [markdown]
# The embedding begins at 0.03, and LayerNorm makes it 1: before the jump the largest activation is several times as
# large with it. After the jump it grows about tenfold or more in both. And does LayerNorm help? In the full run no seed
# collapses for good, with or without. Five of eight seeds end lower with it by 0.02 nats or more, the first of them by 0.40,
# and another ends 0.23 higher: each of these two alone would have told a story. The mean is 0.06 lower, and its 95% interval
# reaches from 0.21 lower to 0.08 higher: not to be told from zero. The second row is the embedding multiplied by 35, a constant, which gives
# it the same size without any norm. It *is* better, in all eight seeds, by 0.19 nats (0.07 to 0.31). So here it is the
# embedding's size that counts, and LayerNorm is one way to change it. What it does at 100 billion parameters, where runs
# really do collapse, cannot be seen from here.

# %% [markdown]
# ### Optional · `block_post_ln`: the first transformer's way
#
# The other order, from the formula above. (No points.)
#
# **Predict:** a block with torch's ordinary first weights, not GPT-2's small ones, is applied forty times: how does
# the size of the stream change with pre-norm, and how with post-norm?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def block_post_ln(x: Float[Tensor, "n t d"], attention: Callable[[Tensor], Tensor], mlp: Callable[[Tensor], Tensor],
                  norm1: Callable[[Tensor], Tensor], norm2: Callable[[Tensor], Tensor]) -> Float[Tensor, "n t d"]:
    """One post-norm transformer block (Vaswani et al. 2017): norm1 of the sum with attention, then norm2 of the sum
    with the MLP. Each of the four functions takes and gives [n, t, d], and is called once."""
    ### BEGIN SOLUTION
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))
    ### END SOLUTION


# %%
check(block_post_ln)

# %% tags=["experiment"]
torch.manual_seed(0)
block, streams = models.Block(32, 2, "post").requires_grad_(False), {"pre": torch.randn(4, 32, 32)}
streams["post"], sizes = streams["pre"], {"pre": [], "post": []}
for _ in range(40):
    for name, wiring in (("pre", block_pre_ln), ("post", block_post_ln)):
        streams[name] = wiring(streams[name], block.attention, block.mlp, block.norm1, block.norm2)
        sizes[name].append(streams[name].square().mean().sqrt().item())
plots.lines(sizes, marks=False, title="The same block, forty times in a row", xlabel="block", ylabel="size of the stream (rms)",
            alt="Size of the stream against the block: it grows steadily with pre-norm and stays at 1 with post-norm.")

# %% [markdown]
# Every block adds a branch of about the same size. Post-norm brings the sum back to size 1 each time, and thereby
# shrinks all that was there before; pre-norm lets the stream grow, and never touches it.

# %% [markdown]
# ## 8 · `triton_layer_norm`: one pass over the memory
#
# Written with torch's operations, LayerNorm reads and writes the whole tensor again and again: once for the mean,
# once for the difference, once for the square, and so on. A GPU's arithmetic waits for its memory all this time. A
# *kernel* of your own reads a row once, does everything while the row is in registers, and writes the result once.
#
# In Triton you write what *one program* does; many run at the same time. Here program number `row` normalises row
# `row` of x [n, d]. `tl.arange(0, BLOCK)` gives the numbers 0 to BLOCK - 1 at once; BLOCK is a power of two, so
# some of them lie beyond $d$, and a *mask* keeps those out of every load, every store, **and every sum**. Useful:
# `tl.load(pointer + i, mask=..., other=0.0)`, `.to(tl.float32)`, `tl.sum(x, axis=0)`, `tl.where`, `tl.rsqrt`,
# `tl.store(pointer + i, y, mask=...)`. (The result is converted to the type of the memory when it is stored.)
#
# Without a GPU the kernel is *interpreted*: the same result, slowly. With one it is compiled for it, and `x` is
# moved there and back. Nobody checks your addresses: a kernel that writes beyond the tensor may end the whole
# notebook's process. Save first, and do not forget the mask.

# %%
@triton.jit
def layer_norm_kernel(x_ptr, weight_ptr, bias_ptr, y_ptr, d, eps, BLOCK: tl.constexpr):
    """y[row] = layer_norm(x[row]) for one row of d numbers, d <= BLOCK; the arithmetic in float32."""
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < d
    ### BEGIN SOLUTION
    x = tl.load(x_ptr + row * d + i, mask=inside, other=0.0).to(tl.float32)
    center = tl.where(inside, x - tl.sum(x, axis=0) / d, 0.0)
    scale = tl.rsqrt(tl.sum(center * center, axis=0) / d + eps)
    weight = tl.load(weight_ptr + i, mask=inside).to(tl.float32)
    bias = tl.load(bias_ptr + i, mask=inside).to(tl.float32)
    tl.store(y_ptr + row * d + i, center * scale * weight + bias, mask=inside)
    ### END SOLUTION


def triton_layer_norm(x: Float[Tensor, "n d"], weight: Float[Tensor, "d"], bias: Float[Tensor, "d"],
                      eps: float = 1e-5) -> Float[Tensor, "n d"]:
    """The same as layer_norm(x, weight, bias, eps), by one launch of layer_norm_kernel with n programs."""
    home, (n, d) = x.device, x.shape
    x, weight, bias = (t.to(default_device()).contiguous() for t in (x, weight, bias))
    y = torch.empty_like(x)
    ### BEGIN SOLUTION
    layer_norm_kernel[(n,)](x, weight, bias, y, d, eps, BLOCK=triton.next_power_of_2(d))
    ### END SOLUTION
    return y.to(home)


# %%
check(triton_layer_norm)

# %% tags=["experiment"]
x, one, zero = torch.randn(1024, 1024), torch.ones(1024), torch.zeros(1024)
moved = {"layer_norm, your operations": work.count(layer_norm, x, one, zero).bytes / x.nbytes,
         "F.layer_norm": work.count(F.layer_norm, x, (1024,), one, zero).bytes / x.nbytes,
         "your kernel": 2.0}  # by its construction: each number is read once and written once
plots.bars(moved, title="Bytes that go to the memory and back", xlabel="in units of the size of x", form="{:.1f}",
           alt=f"Bytes moved by three ways to compute LayerNorm, in units of the size of x: {moved}.")

# %% [markdown]
# A GPU's memory sets the time of such functions, so this picture is a prediction of speed: the next section times
# it. On a CPU, small tensors stay in the cache, and the same count says less.

# %% [markdown]
# ## How fast?
#
# First the graded measurement of folding: a deep, narrow network of 24 linear layers answers one question at a time, as
# in a control loop, against the same network with torch's own BatchNorm after each layer. (About 5 seconds.)

# %%
speed(fold_batch_norm)

# %% [markdown]
# One question is little arithmetic, so most of the time goes into *starting* operations, of which folding leaves out one
# in three.
#
# Then your kernel, against LayerNorm written with operations. Without a GPU this is deferred: it counts in neither
# your points nor the maximum. (With a GPU, some seconds.)

# %%
speed(triton_layer_norm)

# %% [markdown]
# And for convolutions, when does folding pay? **Predict:** more for one small image, or for a batch of large ones? (About
# 10 seconds.)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def convolutions(images, side, channels):
    """Six 3x3 convolutions, each with its BatchNorm's numbers, the same folded, and images."""
    layers = [(torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5, torch.zeros(channels), torch.ones(channels),
               torch.randn(channels), torch.randn(channels), torch.rand(channels) + 0.5) for _ in range(6)]
    return layers, [fold_batch_norm(*layer) for layer in layers], torch.randn(images, channels, side, side)

@torch.no_grad()
def separate(layers, folded, x):
    for w, b, weight, bias, mean, var in layers:
        x = F.relu_(F.batch_norm(F.conv2d(x, w, b, padding=1), mean, var, weight, bias, False))
    return x

@torch.no_grad()
def fused(layers, folded, x):
    for w, b in folded:
        x = F.relu_(F.conv2d(x, w, b, padding=1))
    return x

# %% tags=["experiment"]
sizes = {"1 x 8x8": (1, 8, 8), "1 x 28x28": (1, 28, 8), "32 x 28x28": (32, 28, 8)}
measured = {name: timing.compare(fused, separate, lambda seed: convolutions(*size), seconds=1.5, device="cpu") for name, size in sizes.items()}
limit = {name: max(2 * 6 * 9 * c**2 * n * side**2 / timing.peak_flops("cpu"), 4 * 2 * 6 * n * c * side**2 / timing.memory_bandwidth("cpu"))
         for name, (n, side, c) in sizes.items()}  # seconds: the multiply-adds, or the bytes, whichever takes longer
times = {"BatchNorm apart": {name: 1e3 * r.baseline_seconds for name, r in measured.items()},
         "folded": {name: 1e3 * r.candidate_seconds for name, r in measured.items()}, "limit": {name: 1e3 * t for name, t in limit.items()}}
plots.bars(times, log=True, title="Six layers of 8 channels, one thread", xlabel="milliseconds", width=8, form="{:.2g}",
           alt=f"Milliseconds for six layers: {times}.")
print("; ".join(f"{name}: folded is {r.ratio:.2f} times as fast ({r.low:.2f} to {r.high:.2f})" for name, r in measured.items()))

# %% [markdown]
# For one small image most of the time goes into *starting* operations, far above the limit, and folding leaves out one
# of three in each layer. In a batch of larger images the arithmetic of the convolution takes over, of which folding
# saves nothing, and the pass that it does save finds its numbers in the cache. So on a CPU convolutions gain some tens of
# percent; a factor of two or so is left to layers that are next to no work, as in the graded measurement. The gain that production counts on comes later: a convolution with nothing behind it can be quantised as
# one piece (lab 24).
#
# And LayerNorm: how near to the memory's limit? Counted is what has to be moved, each number once in and once out. (About
# 10 seconds.)

# %% tags=["experiment"]
gpu = default_device().type == "cuda"
widths, ways = [256, 1024, 4096, 16384], {"layer_norm, your operations": layer_norm, "F.layer_norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b)}
if gpu:
    ways["your kernel"] = triton_layer_norm
rows = lambda d: 2 ** (26 if gpu else 21) // d
make = lambda d: (torch.randn(rows(d), d, device=default_device()), *torch.randn(2, d, device=default_device()))
seconds = {name: [timing.compare(way, ways["F.layer_norm"], lambda seed: make(d), seconds=0.3).candidate_seconds for d in widths]
           for name, way in ways.items()}
speeds = {name: [2 * 4 * rows(d) * d / t / 1e9 for d, t in zip(widths, row)] for name, row in seconds.items()}
plots.lines(speeds, x=widths, logx=True, limits={"a copy": timing.memory_bandwidth() / 1e9}, xlabel="numbers in a row",
            ylabel="useful bytes (GB/s)", title=f"LayerNorm against the memory ({'GPU' if gpu else 'CPU'})",
            alt=f"Gigabytes per second at row lengths {widths}: {speeds}; a plain copy reaches the limit.")

# %% [markdown]
# You have counted why: written with operations, LayerNorm moves twelve times the size of $x$, where two would do, and
# reaches only a small part of the line. Where rows fit into the cache, a fused function on a CPU can even rise above the
# line, which is the speed of the *memory*. On a GPU, with a tensor larger than its caches, it cannot; there a good
# kernel reaches 80% of a copy or more.

# %% [markdown]
# ## The claim
#
# An overview of training methods says that BatchNorm gets worse when batches are small, and that GroupNorm does not. You have seen one seed at one learning rate. The full run takes the best of several
# rates, several seeds, an MLP and a convolutional network.

# %% tags=["experiment"]
full = claims.full_run("12_normalization")
found = {task: {name: {int(batch): row["error"] for batch, row in rows.items()} for name, rows in full[task]["error"].items()} for task in ("mlp", "convnet")}
words = {task: "; ".join(f"{name} " + ", ".join(f"{100 * e[0]:.1f} at {batch}" for batch, e in row.items()) for name, row in found[task].items()) for task in found}
fig, panels = plots.figure(columns=2, size=(11, 4.4), alt="Test error in percent against the batch size in the full run, best of several learning rates, mean "
    f"of 5 seeds. MLP: {words['mlp']}. Convnet: {words['convnet']}.")
for ax, task, title in zip(panels, found, ("MLP", "Convnet")):
    sizes = list(found[task]["none"])
    norm_curves(ax, sizes, {name: list(row.values()) for name, row in found[task].items()}, f"{title}: 5 seeds (line: 95% interval)", "examples in a batch", sizes, legend=ax is panels[1])
plots.show(fig)

# %% tags=["experiment"]
yours = lambda name: f"{name}: {by_batch[name][0]:.1%} at batch 2, {by_batch[name][-1]:.1%} at 32"
claims.show("12-batchnorm-small-batches", measured=yours("BatchNorm"))
claims.show("12-groupnorm-small-batches", measured=yours("GroupNorm"))
claims.show("12-batchnorm-recurrent")
claims.show("12-pre-layernorm-stable", measured=", ".join(f"{name} {losses[-3:].mean():.2f}" for name, (_, losses) in curves.items()) + " nats")

# %% [markdown]
# In the MLP it is as the text says: 33% error (95% interval 30 to 36) at batch size 2, 9.8 at 4, and 6.7 at 64, where
# BatchNorm is the best of all. GroupNorm and LayerNorm make 8 to 9% at every size. Nor is it a matter of the learning rate: at a
# third and a tenth of the best rate the 33% become 34 and 36. In the convolutional network nothing of the kind is to be
# seen: BatchNorm has 7.2% at batch size 2 (6.0 to 8.5), and none of the others has less at any size. That all are worse
# at 64, and none at all the most, has another reason: two epochs have few steps there.

# %% [markdown]
# ### Question (15 points)
#
# Is the claim about small batches right? Write five to eight sentences: what you measured at batch size 2, why the
# MLP and the convolutional network differ so much, and whether *batch size* is the right name for what matters. Say
# what GroupNorm, LayerNorm and none at all do there. Use your numbers.

# %% [markdown] tags=["written"] points=15 name="claim"
# For the MLP the claim is right, and plain: BatchNorm has 33% error at batch size 2 (95% interval 30 to 36) and 6.7% at 64,
# GroupNorm 8.0 and 8.8%, LayerNorm 7.8 and 9.0%. A lower learning rate does not repair it. The reason is that two
# numbers are normalised to +1 and −1 whatever they are: the network is trained on signs, against a random partner, and is then
# tested with the running statistics on sizes that it has never seen. With four numbers most of this is gone (9.8%).
#
# For the convolutional network the claim is wrong as it stands: 7.2% at batch size 2, 7.4% at 8, less than GroupNorm (9.4 and
# 9.1%) and LayerNorm (10.9 and 10.4%). Its channels have 9 to 196 numbers in each image, so a batch of two still has 18 to 392; in
# a convnet for 28x28 images I measured that the variances of two images are as reliable as the MLP's with 64 to 128. What
# matters is therefore not the batch size but how many *independent* numbers share one mean and one variance. Without any normaliser the MLP does not mind a batch of two (8.4%), and
# the convnet has 13.5%, more than with any of the three.

# %% [markdown]
# ## Optional · `rms_norm`: is the mean needed?
#
# RMSNorm (Zhang & Sennrich 2019) leaves the mean where it is and only divides by the root mean square. It has no
# bias. LLaMA and most language models since use it:
#
# $$y = \gamma \odot \frac{x}{\sqrt{\overline{x^2} + \varepsilon}}.$$
#
# (No points. The experiment trains a small transformer for a few seconds.)
#
# **Predict:** which share of the mean square do the means have that LayerNorm subtracts in a transformer?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def rms_norm(x: Float[Tensor, "*places d"], weight: Float[Tensor, "d"], eps: float = 1e-5) -> Float[Tensor, "*places d"]:
    """RMSNorm over the last dimension (Zhang & Sennrich 2019). float16 and bfloat16 are computed in float32, other types
    as they are; the result has the dtype of x."""
    ### BEGIN SOLUTION
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)
    ### END SOLUTION


# %%
check(rms_norm)

# %% tags=["experiment"]
model = transformer("pre", 6, d=64)
learn(model, lambda step: 2e-3, 100)
shares = []
for block in model.blocks:
    for norm in (block.norm1, block.norm2):
        norm.register_forward_hook(lambda norm, x, y: shares.append((x[0].mean(-1).square().mean() / x[0].square().mean()).item()))
with torch.no_grad():
    next_byte_loss(model, torch.Generator().manual_seed(1))
plots.lines({"share": [100 * s for s in shares]}, x=range(1, 13), title="What LayerNorm subtracts and RMSNorm does not",
            xlabel="LayerNorm, from the first to the last", ylabel="square of the mean / mean square (%)",
            alt=f"Share of the mean in the mean square at each of 12 LayerNorms of a trained transformer: {shares}.")

# %% [markdown]
# In this small network the mean makes up less than a hundredth of the mean square everywhere: LayerNorm has next to
# nothing to subtract. RMSNorm saves that pass, and the bias with it. (Whether this holds in a large and long-trained
# model is an empirical question; that models trained with RMSNorm are as good is an empirical answer.)

# %% [markdown]
# ## Optional · `sync_batch_norm_statistics`: one batch on many devices
#
# In data-parallel training each device sees a part of the batch, and its BatchNorm only that part: 64 examples on
# 32 devices are batches of two. *Synchronised* BatchNorm sends each device's mean, variance and count to all, and
# combines them exactly:
#
# $$\mu = \frac{\sum_r n_r \mu_r}{\sum_r n_r}, \qquad
# \sigma^2 = \frac{\sum_r n_r \big( \sigma_r^2 + (\mu_r - \mu)^2 \big)}{\sum_r n_r}.$$
#
# The second term is what a plain average of the variances forgets: the devices' means differ. (No points.)
#
# **Predict:** 64 examples on 32 devices: how much of the true variance does the plain average find?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def sync_batch_norm_statistics(means: Float[Tensor, "r c"], variances: Float[Tensor, "r c"],
                               counts: Float[Tensor, "r"]) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Mean and biased variance [c] of all examples together, from the means and biased variances of r devices with
    `counts` examples each (Chan et al. 1979). Accurate also where the means are large."""
    ### BEGIN SOLUTION
    share = (counts / counts.sum()).unsqueeze(1)  # [r, 1]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)
    ### END SOLUTION


# %%
check(sync_batch_norm_statistics)

# %% tags=["experiment"]
devices = [1, 2, 4, 8, 16, 32]
sums, truth = z[:1024], z[:1024].var(0, correction=0)
wrong = {"average of the variances": [], "synchronised": []}
for r in devices:  # 64 examples on r devices, sixteen times
    parts = sums.view(16, r, 64 // r, 1)
    means, variances = parts.mean(2), parts.var(2, correction=0)  # [16, r, 1]
    whole = sums.view(16, 64, 1).var(1, correction=0)  # [16, 1]
    combined = torch.stack([sync_batch_norm_statistics(m, v, torch.full((r,), 64.0 / r))[1] for m, v in zip(means, variances)])
    wrong["average of the variances"].append((variances.mean(1) / whole).mean().item())
    wrong["synchronised"].append((combined / whole).mean().item())
fig, ax = plots.figure(alt=f"Variance found over the true one for {devices} devices: {wrong}.")
plots.lines(wrong, x=devices, ax=ax, alt="", logx=True, title="The variance of 64 examples on many devices", xlabel="devices",
            ylabel="variance found / true variance")
ticks_at(ax, devices)
plots.show(fig)

# %% [markdown]
# With two examples on each of 32 devices, the average of the variances is about half of the truth: each device sees
# how its two examples differ from each other, and not how they differ from all others. Three numbers a channel
# (mean, variance, count) from each device repair it exactly. `torch.nn.SyncBatchNorm` does this, in the forward and
# in the backward pass.


# %% [markdown]
# ## Going further
#
# - **Papers.** Ioffe & Szegedy 2015 (BatchNorm); Ba, Kiros & Hinton 2016 (LayerNorm); Wu & He 2018 (GroupNorm);
#   Zhang & Sennrich 2019 (RMSNorm); Xiong et al. 2020, *On layer normalization in the transformer architecture*
#   (pre- and post-norm); Cooijmans et al. 2017 (BatchNorm in recurrent networks). Why BatchNorm works is still
#   argued about: Santurkar et al. 2018 say that it is not what its title says; van Laarhoven 2017 and Arora et al.
#   2019 explain the learning rates by the growing weights.
# - **In production.** `torch.nn.LayerNorm` and `RMSNorm` are fused kernels; `torch.ao.quantization.fuse_modules` folds
#   BatchNorm; Apex and Liger have kernels like yours with the backward pass. Lab 33 writes more of them.
# - **Without.** He et al.'s networks can be trained without any normaliser if the branches start at zero (Zhang et
#   al. 2019, *Fixup*) or the gradients are clipped by unit (Brock et al. 2021).
#
# **Open ended.** At batch size two BatchNorm knows only the sign of a difference. *Ghost* statistics take mean and
# variance from the last few batches instead, although the weights have moved meanwhile (Batch Renormalization, Ioffe
# 2017, is one way). How far back can you look before it hurts? Measure it on the MLP of this lab.
