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
import copy
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
# **Predict:** multiply the weights before a BatchNorm by ten. What happens to the output, and what to the gradient
# of these weights?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def batch_norm_backward(dy: Float[Tensor, "n c *places"], x: Float[Tensor, "n c *places"], weight: Float[Tensor, "c"],
                        eps: float = 1e-5) -> tuple[Float[Tensor, "n c *places"], Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Gradients of BatchNorm in training with respect to x, weight and bias (Ioffe & Szegedy 2015, section 3),
    by hand: no autograd. Mean and variance are computed from x again."""
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

    Accurate also where the mean is much larger than the spread. float16 and bfloat16 are computed in float32; the
    result has the dtype of x.
    """
    ### BEGIN SOLUTION
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    center = h - h.mean(-1, keepdim=True)
    x_hat = center * (center.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x_hat * weight + bias).to(x.dtype)
    ### END SOLUTION


# %%
check(layer_norm)

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
    """Gradients of LayerNorm with respect to x, weight and bias, by hand: no autograd. Mean and variance are
    computed from x again."""
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

# %% [markdown]
# ### Optional · `block_post_ln`: the first transformer's way
#
# The other order, from the formula above. (No points.)

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
# moved there and back.

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

# %% [markdown]
# ## How fast?

# %%
speed(fold_batch_norm)

# %%
speed(triton_layer_norm)

# %% [markdown]
# ## Optional · `rms_norm`: is the mean needed?
#
# RMSNorm (Zhang & Sennrich 2019) leaves the mean where it is and only divides by the root mean square. It has no
# bias. LLaMA and most language models since use it:
#
# $$y = \gamma \odot \frac{x}{\sqrt{\overline{x^2} + \varepsilon}}.$$
#
# (No points.)

# %%
def rms_norm(x: Float[Tensor, "*places d"], weight: Float[Tensor, "d"], eps: float = 1e-5) -> Float[Tensor, "*places d"]:
    """RMSNorm over the last dimension (Zhang & Sennrich 2019). float16 and bfloat16 are computed in float32; the
    result has the dtype of x."""
    ### BEGIN SOLUTION
    h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (h * (h.square().mean(-1, keepdim=True) + eps).rsqrt() * weight).to(x.dtype)
    ### END SOLUTION


# %%
check(rms_norm)

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
