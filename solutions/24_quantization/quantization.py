# %% [markdown]
# # 24 · Quantization
#
# A weight has 32 bits. How many does the answer need, and what has to be done so that fewer are enough?
#
# By the end you will have made this picture: the accuracy of a mobile-style network against the bits of its weights and
# activations, for three ways to come down to them: one scale for each tensor, one for each channel, and training
# that knows what will happen.
#
# | | |
# | --- | --- |
# | Time | about 6 hours |
# | You need | convolutions and linear layers, autograd, lab 11 |
# | Data | glyphs and pycode; they are on this machine, no network is needed |
# | A GPU adds | the last optional exercise, an integer matrix product in Triton, runs compiled |
#
# Before each experiment you are asked to **predict** its outcome. Write a line in the cell below the question, then
# run the experiment. A wrong prediction costs nothing and teaches the most. Code that would tell the outcome is
# folded: run it first, and then open it (a click on the three dots) and play with it.

# %% tags=["setup"]
import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor

from course import claims, data, lowbits, models, plots, timing, train
from course.check import check, setup, speed
from course.device import default_device
from course.kernels import tl, triton

setup("24_quantization")

# %% [markdown]
# ### Notation
#
# The notation is that of Jacob et al. 2018. A real number $r$ is stored as an integer, its *code* $q$:
#
# $$r = S\,(q - Z).$$
#
# The *scale* $S$ is the distance of two neighbouring numbers, the *zero-point* $Z$ is the code of the number zero. With
# $b$ bits (`bits`) the codes are $-2^{b-1}, \dots, 2^{b-1} - 1$, for eight bits $-128, \dots, 127$. All codes of this lab are
# kept as `torch.int8`, those of fewer bits too. A grid with $Z = 0$ is called *symmetric*, any other *affine*.
# $S$ is a float32 tensor and $Z$ an int32 tensor, with one number for the whole tensor or with shapes that broadcast
# against it.

# %% [markdown]
# ## The network
#
# It reads characters of 36 classes, in 18 fonts and distorted, and is built as networks for telephones are: an
# ordinary convolution, then *depthwise* ones (each channel filtered by itself) and *pointwise* ones (1 × 1) in turn, with
# BatchNorm after each. After the training each BatchNorm is folded into the convolution before it, since it is only
# a scale and a shift then. That network, `net`, is the one to be quantised. (About 15 seconds.)

# %% tags=["experiment"]
torch.set_num_threads(1)  # small tensors: a second thread would only get in the way
glyphs = data.glyphs(12_000, classes=36, distortion=0.5)
torch.manual_seed(0)
model = lowbits.MobileNet()
STEPS = 400
train.train(model, glyphs, steps=STEPS, lr=lambda step: 0.01 * max(0.02, 1 - step / STEPS))
net = lowbits.Folded(model)
accuracy = lambda network: train.accuracy(network, glyphs.test_x, glyphs.test_y)
print(f"{sum(w.numel() for w in net.weights):,} weights; accuracy {accuracy(net):.1%}")

# %% [markdown]
# ## 1 · `quantize_affine` and `dequantize`: there and back
#
# To quantise is to round to the grid, and to take the last code where the grid ends (*saturation*):
#
# $$q = \operatorname{clamp}\!\big(\operatorname{round}(r / S) + Z,\; -2^{b-1},\; 2^{b-1} - 1\big).$$
#
# Two details decide whether your codes are those of the hardware. A number just between two codes goes to the *even*
# one, before $Z$ is added. And clamp while the numbers are still floating-point: converted to int8 first, 130
# becomes −126.
#
# **Predict:** take three bits, $S = 0.25$ and $Z = -2$. Between which two numbers does an $r$ come back almost as it
# was, and how large can the error be there? And in a real weight tensor: if you take one bit away, by what factor does
# the error grow?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def quantize_affine(x: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor | int = 0, bits: int = 8) -> Int8[Tensor, "*shape"]:
    """The codes clamp(round(x / S) + Z) of x, as int8; halves are rounded to even (Jacob et al. 2018, equation 1; ONNX's
    QuantizeLinear). `scale` (float32, positive) and `zero_point` (int32) broadcast against x."""
    ### BEGIN SOLUTION
    end = 2 ** (bits - 1)
    return (torch.round(x / scale) + zero_point).clamp(-end, end - 1).to(torch.int8)
    ### END SOLUTION


# %%
check(quantize_affine)

# %% [markdown]
# The codes of a real weight, at four bits, with a scale that fits its largest number:

# %% tags=["experiment"]
weight = net.weights[6].detach()
codes = quantize_affine(weight, weight.abs().max() / 7, bits=4)
counts = [100 * (codes == q).float().mean().item() for q in range(-8, 8)]
fig, ax = plots.figure("Codes of pointwise 6, four bits", "code q", "share of the weights (%)", size=(6.8, 3.4),
                       alt=f"Share of the weights that have each code from -8 to 7, in per cent: {', '.join(f'{c:.1f}' for c in counts)}.")
ax.bar(range(-8, 8), counts, color=plots.PALETTE[0])
ax.set_xticks(range(-8, 8))
ax.grid(axis="x", visible=False)
plots.show(fig)

# %% [markdown]
# Weights are many small numbers and a few large ones. The codes around zero are crowded, those at the ends hardly used, and −8
# never.
#
# The way back is one line, with a trap in it: the difference of two int8 numbers needs nine bits.

# %%
def dequantize(q: Int8[Tensor, "*shape"], scale: Tensor, zero_point: Tensor | int = 0) -> Float[Tensor, "*shape"]:
    """The real numbers S * (q - Z) that the codes q stand for, as float32. The difference q - Z may not fit into int8."""
    ### BEGIN SOLUTION
    return scale * (q.to(torch.int32) - zero_point)
    ### END SOLUTION


# %%
check(dequantize)

# %% tags=["experiment"]
def noise_ratio(x, y):
    """Signal to noise in decibels: 10 log10 of the mean square of x over that of the error."""
    return 10 * math.log10(x.square().mean() / (y - x).square().mean())

r, S, Z, weight = torch.linspace(-1.6, 2.2, 1000), torch.tensor(0.25), torch.tensor(-2, dtype=torch.int32), net.weights[6].detach()
back = dequantize(quantize_affine(r, S, Z, bits=3), S, Z)
widths = range(2, 9)
decibels = []
for bits in widths:
    S = weight.abs().max() / (2 ** (bits - 1) - 1)
    decibels.append(noise_ratio(weight, dequantize(quantize_affine(weight, S, bits=bits), S)))

# %% tags=["experiment"]
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4), alt="Left: the number that comes back is a staircase of eight steps, "
    f"from {back.min():.2f} to {back.max():.2f}, and flat beyond; the error is a small saw-tooth in between and grows without "
    f"bound outside. Right: signal to noise of a weight tensor, from {decibels[0]:.0f} dB at 2 bits to {decibels[-1]:.0f} dB at 8.")
plots.lines({"what comes back": (r, back), "error": (r, back - r)}, ax=left, alt="", marks=False, title="Three bits",
            xlabel="the number r", ylabel="S (q − Z), and its error")
plots.lines({"weight of pointwise 6": decibels}, x=widths, ax=right, alt="", title="A real weight tensor", xlabel="bits",
            ylabel="signal to noise (dB)")
plots.show(fig)
print("decibels that each bit adds:", ", ".join(f"{b - a:.1f}" for a, b in zip(decibels, decibels[1:])))

# %% [markdown]
# From $S(-4 - Z) = -0.5$ to $S(3 - Z) = 1.25$ the error is at most half a step, 0.125; outside nothing bounds it. On the real tensor each bit
# halves the step, or a little more, since $2^{b-1} - 1$ codes become more than twice as many: from 3 to 7 is more than twice, from 63 to 127
# hardly. Half the step is half the error: its mean square falls to a quarter, which is 6 decibels.

# %% [markdown]
# ## 2 · `symmetric_scale` and `per_channel_scales`: one grid, or many
#
# Weights lie around zero, so a symmetric grid suits them: $Z = 0$, and no correction later. Its scale is as large as it
# must be for the largest number to get the last *positive* code:
#
# $$S = \frac{\max |r|}{2^{b-1} - 1}.$$
#
# (The code $-2^{b-1}$ is then never used. It has no positive counterpart, and to leave it out keeps $-r$ exactly
# opposite to $r$.) One scale for a whole weight is decided by its largest channel, however small the others are. A scale
# for each output channel costs 32 bits a channel, and next to nothing in the arithmetic: a channel's sum is multiplied
# by one number in the end anyway.

# %%
def symmetric_scale(x: Float[Tensor, "*shape"], bits: int = 8) -> Float[Tensor, ""]:
    """The scale of the symmetric grid on which the largest |x| has the code 2**(bits - 1) - 1; 1 for a tensor of zeros
    (Krishnamoorthi 2018, section 2.2)."""
    ### BEGIN SOLUTION
    largest = x.abs().max()
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    ### END SOLUTION


# %%
check(symmetric_scale)

# %% tags=["experiment"]
steps = {name: symmetric_scale(w.detach()).item() for name, w in zip(net.names, net.weights)}
plots.bars(steps, title="One step at 8 bits, layer by layer", xlabel="scale S", form="{:.4f}",
           alt=f"The scale of each layer's weight at 8 bits: {', '.join(f'{name} {s:.4f}' for name, s in steps.items())}.")

# %% [markdown]
# Each layer needs a step of its own. Does each channel, too?

# %%
def per_channel_scales(w: Float[Tensor, "*shape"], bits: int = 8, axis: int = 0) -> Float[Tensor, "*ones"]:
    """symmetric_scale of each channel of w, a channel being what has one index along `axis`. The shape is that of w with
    1 in place of every other dimension, so that it broadcasts: [o, i, kh, kw] gives [o, 1, 1, 1] (section 2.3)."""
    ### BEGIN SOLUTION
    others = [d for d in range(w.ndim) if d != axis]
    largest = w.abs().amax(others, keepdim=True)
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    ### END SOLUTION


# %%
check(per_channel_scales)

# %% [markdown]
# Two functions for all the experiments to come. `affine_grid` makes $S$ and $Z$ of a range in such a way that zero is a
# code exactly: padding and ReLU produce zeros by the thousand, and they must not become a small error each.

# %%
def affine_grid(low: float, high: float, bits: int = 8) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """S and Z of the grid of 2**bits codes from about `low` <= 0 to `high` >= 0, on which 0 is a code."""
    scale = torch.tensor(max(high - low, 1e-12) / (2**bits - 1))
    return scale, (torch.round(-low / scale) - 2 ** (bits - 1)).to(torch.int32)

def with_bits(net, bits, scales=per_channel_scales, ranges=None, input_bits=None):
    """A copy of the network whose weights have so few bits, and its inputs too where (low, high) are given for each layer."""
    copy = net.copy()
    for w in copy.weights:
        S = scales(w.detach(), bits)
        w.data = dequantize(quantize_affine(w.detach(), S, bits=bits), S)
    if ranges:
        grids = [affine_grid(low, high, input_bits or bits) for low, high in ranges]
        copy.on_input = lambda i, x: dequantize(quantize_affine(x, *grids[i], input_bits or bits), *grids[i])
    return copy

# %% [markdown]
# The picture shows what each channel of `net` needs. (About 5 seconds.) **Predict:** with one scale for each tensor, down to how many bits of the
# weights does the accuracy stay within a point of the original? And with one for each channel?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
channels = [w.detach().abs().flatten(1).amax(1) for w in net.weights]
fig, (left, right) = plots.figure(columns=2, size=(11, 4.4), alt="Left: the largest weight of each output channel, layer by layer; "
    "in each layer the channels differ by a factor of " + ", ".join(f"{c.max() / c.min():.0f}" for c in channels) + ". Right: "
    "accuracy against the bits of the weights, with one scale for each tensor and with one for each channel; the second falls later.")
for i, c in enumerate(channels):
    left.plot(c, [i] * len(c), "|", color=plots.PALETTE[0], markersize=13)
left.set(xscale="log", yticks=range(len(channels)), yticklabels=net.names, xlabel="largest |weight| of a channel")
left.set_title("What each channel needs", loc="left", **plots.TITLE)
left.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
left.minorticks_off()
left.invert_yaxis()
one_scale = lambda w, bits: symmetric_scale(w, bits)
ways = {"one scale for each tensor": one_scale, "one for each channel": per_channel_scales}
found = {name: [100 * accuracy(with_bits(net, bits, scales)) for bits in widths] for name, scales in ways.items()}
plots.lines(found, x=widths, ax=right, alt="", limits={"float32": 100 * accuracy(net)}, title="Only the weights are quantised",
            xlabel="bits of a weight", ylabel="test accuracy (%)")
plots.show(fig)
for name, row in found.items():
    print(f"{name}: points lost at {', '.join(f'{bits} bits {100 * accuracy(net) - a:.1f}' for bits, a in zip(widths, row))}")

# %% [markdown]
# In one layer the largest channel is several times as large as the smallest. With one scale for all, a channel that is four times smaller
# than the largest has two bits less. So the curve for each channel runs ahead by about a bit. At eight bits both lose nothing
# here. In larger networks of this kind, with hundreds of channels of which some hardly ever respond, folding produces much wider
# ranges, and one scale for each tensor was seen to fail at eight bits already (Nagel et al. 2019). Our small network shows the
# same weakness two or three bits lower.

# %% [markdown]
# ## 3 · `calibrate`: which range?
#
# Activations are not known before the network runs. So one lets it see some examples, and chooses a range
# $[\text{low}, \text{high}]$ for each layer's input. Three rules:
#
# - `"minmax"`: from the smallest number seen to the largest. Nothing is cut off, and one freak decides the step.
# - `"percentile"`: at either end leave out the share `tail` of the numbers.
# - `"mse"`: shrink the min–max range by the factor 0.01, 0.02, …, 1.00 that makes the mean square of
#   $\,\text{dequantize}(\text{quantize}(r)) - r\,$ least. Cutting off costs a few large errors, and wins a finer step for all.
#
# All of them include zero: where all numbers are positive, low is 0.
#
# **Predict:** keep the weights at eight bits for each channel, and give the activations eight, six or four. Which rule will be the
# best at eight bits, and which at four?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def calibrate(x: Float[Tensor, "*shape"], bits: int = 8, method: str = "minmax", tail: float = 0.001) -> tuple[float, float]:
    """The range (low, high), low <= 0 <= high, for numbers like those of x: "minmax", "percentile" (the share `tail` of x
    lies below low and as much above high), or "mse" (the best of f * minmax, f = 0.01 ... 1.00, on affine_grid).
    Raises ValueError for any other method."""
    ### BEGIN SOLUTION
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    if method == "minmax":
        return low, high
    if method == "percentile":
        ends = torch.quantile(x.flatten(), torch.tensor([tail, 1 - tail], dtype=x.dtype))
        return min(ends[0].item(), 0.0), max(ends[1].item(), 0.0)
    if method == "mse":
        def error(f: float) -> float:
            S, Z = affine_grid(f * low, f * high, bits)
            return (dequantize(quantize_affine(x, S, Z, bits), S, Z) - x).square().mean().item()
        best = min((f / 100 for f in range(1, 101)), key=error)
        return best * low, best * high
    raise ValueError(f"unknown method {method!r}")
    ### END SOLUTION


# %%
check(calibrate)

# %% [markdown]
# Each range comes from 256 training images, a sample of 5,000 numbers of each layer. (About 15 seconds.)

# %% tags=["experiment"]
seen = net.inputs(glyphs.train_x[:256])
pick = torch.Generator().manual_seed(0)
seen = [x.flatten()[torch.randint(x.numel(), (5000,), generator=pick)] for x in seen]  # a sample of each layer's inputs
rules = ("minmax", "percentile", "mse")
ranges = {(rule, bits): [calibrate(x, bits, rule) for x in seen] for rule in rules for bits in widths}
found = {rule: [100 * accuracy(with_bits(net, 8, ranges=ranges[rule, bits], input_bits=bits)) for bits in widths] for rule in rules}

# %% tags=["experiment"]
fig, (left, right) = plots.figure(columns=2, size=(11, 4.2), alt="Left: histogram of the numbers that enter layer 4, many small and "
    f"few large ones, with the upper ends at 3 bits: {', '.join(f'{rule} {ranges[rule, 3][4][1]:.1f}' for rule in rules)}. Right: accuracy against "
    f"the bits of the activations: {'; '.join(f'{rule} ' + ', '.join(f'{a:.0f}' for a in found[rule]) for rule in rules)}, from 2 bits to 8.")
left.hist(seen[4][seen[4] > 0], bins=60, color=plots.PALETTE[6], log=True)
for (rule, look), height in zip(plots.looks(rules).items(), (0.9, 0.75, 0.6)):
    end = ranges[rule, 3][4][1]
    left.axvline(end, color=look["color"], linewidth=1.8)
    left.annotate(rule, (end, height), xycoords=("data", "axes fraction"), xytext=(-4, 0), textcoords="offset points", ha="right",
                  color=look["color"], fontsize=9)
left.set(xlabel="input of layer 4 (zeros left out)", ylabel="how many of 5,000")
left.set_title("Where the rules cut, at 3 bits", loc="left", **plots.TITLE)
plots.lines(found, x=widths, ax=right, alt="", limits={"float32": 100 * accuracy(net)}, title="Weights at 8 bits",
            xlabel="bits of an activation", ylabel="test accuracy (%)")
plots.show(fig)

# %% [markdown]
# A handful of numbers far out decides the step of the min–max rule. At eight bits that does no harm: 256 codes are enough for everything. With
# few bits it is ruinous, and cutting off pays. From three bits up there is no clear winner between the other two over the seeds (full run: at four
# bits 89.6, 91.4 and 91.7%). At two bits `"mse"` wins clearly (5, 14 and 42%): its cut depends on the bits, which a percentile does not know.
#
# **Play.** The same numbers: move the end of the range, and the bits. The error has two parts, what is rounded and what is cut
# off. Where is their sum least at 8 bits, and where at 3?

# %% tags=["experiment"]
from course.sliders import Slider, show

def draw(bits, cut):
    x = seen[4]
    low, high = (cut * end for end in calibrate(x, bits, "minmax"))
    grid = affine_grid(low, high, bits)
    error, inside = (dequantize(quantize_affine(x, *grid, bits), *grid) - x).square() / len(x), (x >= low) & (x <= high)
    parts = {"rounded": error[inside].sum().item(), "cut off": error[~inside].sum().item()}
    fig, (left, right) = plots.figure(columns=2, size=(11, 3.6), alt=f"At {bits} bits, cut at {cut:.0%} of the largest number, the mean squared error is "
                                      f"{parts['rounded']:.2g} from rounding and {parts['cut off']:.2g} from cutting off.")
    left.hist(x[x > 0], bins=60, color=plots.PALETTE[6], log=True)
    left.axvline(high, color=plots.PALETTE[3], linewidth=2)
    left.set(xlabel="input of layer 4 (zeros left out)", ylabel="how many of 5,000")
    left.set_title(f"A step of {grid[0]:.3g}", loc="left", **plots.TITLE)
    plots.bars(parts, ax=right, alt="", title=f"Mean squared error {sum(parts.values()):.2g}", xlabel="its two parts", form="{:.2g}")
    plots.show(fig)

show(draw, bits=Slider(2, 8, start=4, label="bits"), cut=Slider(0.05, 1, start=0.6, step=0.05, label="cut at (share of the largest)"))

# %% [markdown]
# ## 4 · `int8_linear`: a layer without floating point
#
# So far we computed with rounded *float32* numbers. What makes a telephone faster is to compute with the codes. Put $r = S(q - Z)$
# into $y = x W^\top + b$, with a scale $S_w^{(o)}$ for each output channel $o$ and $Z_w = 0$:
#
# $$y_o = S_x S_w^{(o)} \Big( \underbrace{\textstyle\sum_k q_x^{(k)} q_w^{(o,k)} \;-\; Z_x \sum_k q_w^{(o,k)} \;+\; q_b^{(o)}}_{\text{integers, in int32}} \Big),
# \qquad q_y^{(o)} = \operatorname{clamp}\!\Big(\operatorname{round}\big(M_o \cdot \text{sum}_o\big) + Z_y\Big), \qquad M_o = \frac{S_x S_w^{(o)}}{S_y}.$$
#
# The bias is stored as int32 with the scale $S_x S_w^{(o)}$ and no zero-point, so that it is just added. The second step,
# back to eight bits, is called *requantisation*.
# (In torch a matrix product of int8 tensors overflows silently. `.to(torch.int32)` first; float32 is exact up to $2^{24}$
# only. float64 would be exact as well, but hardware for it is dearer than what we want to get rid of.)
#
# **Predict:** we turn a small MLP into integers, 784-128-36, with inputs that are the pixels' bytes. How many of 2000 test images will be
# classified differently? And how large are the sums: would int16 do?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def int8_linear(q_x: Int8[Tensor, "n k"], s_x: Float[Tensor, ""], z_x: Int[Tensor, ""], q_w: Int8[Tensor, "o k"], s_w: Float[Tensor, "o"],
                q_bias: Int[Tensor, "o"], s_y: Float[Tensor, ""], z_y: Int[Tensor, ""]) -> Int8[Tensor, "n o"]:
    """A linear layer from codes to codes (Jacob et al. 2018, section 2.3): exact integer sums, then requantised to eight
    bits, rounded half to even and saturated. q_bias is int32, with the scale s_x * s_w."""
    ### BEGIN SOLUTION
    sums = q_x.to(torch.int32) @ q_w.to(torch.int32).T  # [n, o]
    sums = sums - z_x * q_w.sum(1) + q_bias
    return (torch.round(sums * (s_x * s_w / s_y)) + z_y).clamp(-128, 127).to(torch.int8)
    ### END SOLUTION


# %%
check(int8_linear)

# %% [markdown]
# An MLP learns, its ranges are measured, and then no floating-point number is left but the scales. ReLU needs no
# operation at all: the hidden layer's range begins at 0, so that saturation does it. (About 5 seconds.)

# %% tags=["experiment"]
torch.manual_seed(0)
mlp = models.MLP((784, 128, 36)).requires_grad_(True)
train.train(mlp, glyphs, steps=400, lr=lambda step: 3e-3 * (1 - step / 400))
weights = [(linear.weight.detach(), linear.bias.detach()) for linear in mlp.linears]

def float_layers(x):
    """What comes into the first layer, into the second, and out of it."""
    hidden = F.relu(F.linear(x, *weights[0]))
    return x, hidden, F.linear(hidden, *weights[1])

grids = [affine_grid(*calibrate(x)) for x in float_layers(glyphs.train_x[:1000].flatten(1))]
stored = []
for (w, b), (S, Z) in zip(weights, grids):
    S_w = per_channel_scales(w)  # [o, 1]
    stored.append((quantize_affine(w, S_w), S_w[:, 0], torch.round(b / (S * S_w[:, 0])).to(torch.int32)))

# %% tags=["experiment"]
x, truth = glyphs.test_x.flatten(1), glyphs.test_y
codes = [quantize_affine(x, *grids[0])]
for (q_w, s_w, q_b), (s_x, z_x), (s_y, z_y) in zip(stored, grids, grids[1:]):
    codes.append(int8_linear(codes[-1], s_x, z_x, q_w, s_w, q_b, s_y, z_y))
floats, integers = float_layers(x)[-1].argmax(1), codes[-1].argmax(1)
print(f"accuracy: float32 {(floats == truth).float().mean():.1%}, int8 {(integers == truth).float().mean():.1%}; "
      f"{(floats != integers).sum()} of {len(x)} images are classified differently")
sums = {f"layer {i + 1}": (q.double() - grids[i][1]) @ stored[i][0].double().T + stored[i][2] for i, q in enumerate(codes[:2])}
share = ", ".join(f"{(s.abs() > 2**15).double().mean():.0%} in {name}" for name, s in sums.items())
edges = torch.linspace(*torch.cat([s.flatten() for s in sums.values()]).aminmax(), 121).numpy() / 1e6
fig, ax = plots.figure("The sums before requantisation", "sum (millions of units of S_x S_w)", "share of the sums", size=(7.6, 4),
                       alt=f"Histogram of the integer sums of both layers; beyond the range of int16 lie {share}.")
for (name, s), color in zip(sums.items(), plots.PALETTE):
    ax.hist(s.flatten() / 1e6, bins=edges, weights=[1 / s.numel()] * s.numel(), histtype="step", color=color, label=name, linewidth=1.6)
for end in (-2**15 / 1e6, 2**15 / 1e6):
    ax.axvline(end, color=plots.INK, linestyle=(0, (2, 2)))
ax.annotate("the range of int16", (0, 1.02), xycoords=("data", "axes fraction"), ha="center", color=plots.INK, fontsize=9)
ax.legend(frameon=False)
plots.show(fig)
print("beyond int16:", share)

# %% [markdown]
# A few percent of the images are classified differently, in both directions, and the accuracy hardly moves. A product of two codes needs 15 bits and
# a sign, and a sum of a thousand of them up to ten more: int16 would not do, nearly all sums of the first layer would overflow. This is why the hardware's
# instructions multiply bytes and add in
# 32 bits.

# %% [markdown]
# ## 5 · `dynamic_int8_linear`: the range of the moment
#
# Large models avoid calibration: they measure each row of the activations when it comes, and quantise it on its own symmetric grid.
# Then the integer product, then one multiplication by both scales:
#
# $$s_n = \frac{\max_k |x_{nk}|}{127}, \qquad q_x = \operatorname{round}(x / s_n), \qquad y_{no} = s_n\, S_w^{(o)} \sum_k q_x^{(n,k)} q_w^{(o,k)} + b_o.$$
#
# Here the speed comes from `torch._int_mm(a, b)`: int8 matrices [n, k] and [k, o] give their product [n, o] in int32. With
# few rows it is fastest when b is a transposed view, `q_w.t()`, of a weight that lies row by row. A row of zeros must not become NaN.
#
# **Predict:** your MLP once more, static as before and dynamic. Now make the images darker or brighter than those of the
# calibration. Which of the two suffers, and on which side?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def dynamic_int8_linear(x: Float[Tensor, "n k"], q_w: Int8[Tensor, "o k"], s_w: Float[Tensor, "o"],
                        bias: Float[Tensor, "o"] | None = None) -> Float[Tensor, "n o"]:
    """x @ (s_w * q_w).T + bias with each row of x quantised on its own symmetric grid, and an integer product (Dettmers
    et al. 2022, section 2.1, vector-wise). k is at least 2."""
    ### BEGIN SOLUTION
    s_x = (x.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)  # [n, 1]
    q_x = torch.round(x / s_x).to(torch.int8)
    y = torch._int_mm(q_x, q_w.t()) * s_x * s_w  # [n, o]
    return y if bias is None else y + bias
    ### END SOLUTION


# %%
check(dynamic_int8_linear)

# %% tags=["experiment"]
def static(x):
    q = quantize_affine(x, *grids[0])
    for (q_w, s_w, q_b), (s_x, z_x), (s_y, z_y) in zip(stored, grids, grids[1:]):
        q = int8_linear(q, s_x, z_x, q_w, s_w, q_b, s_y, z_y)
    return q

def dynamic(x):
    (q1, s1, _), (q2, s2, _) = stored
    return dynamic_int8_linear(F.relu(dynamic_int8_linear(x, q1, s1, weights[0][1])), q2, s2, weights[1][1])

brightness = [2.0**k for k in range(-5, 6)]
ways = {"float32": lambda x: float_layers(x)[-1], "static": static, "dynamic": dynamic}
right_share = {name: [100 * (way(f * x).argmax(1) == truth).float().mean().item() for f in brightness] for name, way in ways.items()}
fig, ax = plots.figure(size=(7.2, 4), alt="Accuracy against the brightness of the images, from 1/32 to 32. "
                       + "; ".join(f"{name}: {', '.join(f'{a:.0f}' for a in row)}" for name, row in right_share.items()) + ".")
plots.lines(right_share, x=brightness, ax=ax, alt="", logx=True, title="Calibrated at brightness 1", xlabel="images multiplied by",
            ylabel="test accuracy (%)")
ax.set_xticks(brightness[1::2], [f"{f:g}" if f >= 1 else f"1/{1 / f:.0f}" for f in brightness[1::2]])
ax.minorticks_off()
plots.show(fig)

# %% [markdown]
# A dynamic layer follows float32 at every brightness: multiply the images by a factor, and only the scales change. (That float32 itself fails in
# the dark is the biases' doing.) The static network loses on the bright side, where inputs and sums saturate; on the dark side it
# uses fewer and fewer of its codes, and is a few points worse. The price of the dynamic way is a pass over the activations for their maxima.

# %% [markdown]
# ## 6 · `fake_quantize`: training that knows
#
# Where rounding hurts, the network can learn to live with it: put the rounding into the forward pass, and train on. But the
# derivative of a staircase is zero almost everywhere, and nothing would be learned. The *straight-through estimator*
# (Bengio et al. 2013) takes the derivative of the staircase to be that of the line which it follows:
#
# $$y = S\,\big(\operatorname{clamp}(\operatorname{round}(r/S) + Z) - Z\big), \qquad \frac{\partial y}{\partial r} := \begin{cases} 1 & \text{where nothing was clamped,} \\ 0 & \text{where it was.}\end{cases}$$
#
# A trick to write it: `line + (stairs - line).detach()` has the value of the stairs and the gradient of the line. The gradient of the scale does
# not matter here.
#
# **Predict:** from the trained network, with per-channel weights *and* activations at 4, 3 and 2 bits: how much of the lost
# accuracy do 150 more steps with rounding in place bring back?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def fake_quantize(x: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor | int = 0, bits: int = 8) -> Float[Tensor, "*shape"]:
    """dequantize(quantize_affine(x)), in floating point, with the straight-through gradient for x: 1 where the code was
    not clamped, 0 where it was (Jacob et al. 2018, section 3). For x that get the last code at either end both are right."""
    ### BEGIN SOLUTION
    end = 2 ** (bits - 1)
    line = torch.minimum(torch.maximum(x, scale * (-end - zero_point)), scale * (end - 1 - zero_point))
    stairs = scale * ((torch.round(x / scale) + zero_point).clamp(-end, end - 1) - zero_point)
    return line + (stairs - line).detach()
    ### END SOLUTION


# %%
check(fake_quantize)

# %% [markdown]
# Three trainings of 150 steps, each from the trained network. (About 40 seconds.)

# %% tags=["experiment"]
def aware(net, images, seen, bits, steps=150, seed=0):
    """Train a copy on with rounding in place: a scale for each channel of the weights, calibrated grids for the inputs."""
    copy = net.copy()
    grids = [affine_grid(*calibrate(x, bits, "mse"), bits) for x in seen]
    copy.on_weight = lambda i, w: fake_quantize(w, per_channel_scales(w.detach(), bits), bits=bits)
    copy.on_input = lambda i, x: fake_quantize(x, *grids[i], bits)
    train.train(copy, images, steps=steps, lr=lambda step: 3e-3 * (1 - step / steps), seed=seed)
    return copy

# %% tags=["experiment"]
few = (2, 3, 4)
learned = {bits: 100 * accuracy(aware(net, glyphs, seen, bits)) for bits in few}
scaled = {name: [100 * accuracy(with_bits(net, bits, scales, ranges["mse", bits])) for bits in widths]
          for name, scales in {"one scale for each tensor": one_scale, "one for each channel": per_channel_scales}.items()}

# %% tags=["experiment"]
three = scaled | {"and trained on with rounding": (list(few), [learned[bits] for bits in few])}
plots.lines({name: row if isinstance(row, tuple) else (list(widths), row) for name, row in three.items()}, limits={"float32": 100 * accuracy(net)},
            title="Weights and activations, one seed", xlabel="bits of a weight and of an activation", ylabel="test accuracy (%)", size=(7.4, 4),
            alt=f"Accuracy against bits. {'; '.join(f'{name}: ' + ', '.join(f'{a:.0f}' for a in row) for name, row in scaled.items())}, from 2 bits "
                f"to 8; trained on with rounding in place: {', '.join(f'{learned[bits]:.0f} at {bits}' for bits in few)}.")

# %% [markdown]
# At four bits rounding in place brings back nearly everything, at three most of it, at two little: 150 steps are not enough there, or two bits are
# not (a symmetric grid of two bits has three codes, −1, 0 and 1). What you see is one seed. The full run has five, and a control: with three bits, rounding at
# once leaves 35%, 150 more steps *without* rounding and rounding then 27%, 150 steps with rounding 85%.

# %% [markdown]
# ### Question (10 points)
#
# The gradient of the straight-through estimator is not the gradient of anything. Write three to five sentences: why does training with it work
# all the same, what exactly changes in the network while it is trained (the weights? the grid?), and why can it not be replaced by
# training longer *before* the rounding?

# %% [markdown] tags=["written"] points=10 name="straight_through"
# The estimator is the gradient of a line that the stairs follow from a distance: on average over a step both rise alike, so it points to where the loss
# would fall if the weight moved by more than a step. The float32 weights collect many small changes until they cross to the next code; and since the
# scales are computed from the weights at each step, the grid moves too. The network finds weights at which the rounded, not the
# float32, loss is low. Training longer before the rounding cannot do that: it never sees the rounding, and over five seeds the network rounded
# afterwards is no better than before (27% at three bits instead of 35), while the same number of steps with rounding gives 85%.

# %% [markdown]
# ## 7 · `pack_int4` and `unpack_int4`: half a byte
#
# There is no four-bit number in memory: the smallest thing that has an address is a byte. Two codes $-8, \dots, 7$ have to
# share one, the first in the low four bits, the second in the high four:
#
# $$\text{byte}_i = (q_{2i} \,\&\, 15) \;|\; (q_{2i+1} \,\&\, 15) \ll 4.$$
#
# `q & 15` keeps the last four bits, in which −1 is 1111. On the way back the sign has to be brought back: four bits
# above 7 mean a number less by 16. What cannot be packed must not be packed wrongly: raise `ValueError`.

# %%
def pack_int4(q: Int8[Tensor, "*rows k"]) -> UInt8[Tensor, "*rows k/2"]:
    """Codes -8 ... 7 along the last dimension, two in a byte: number 2i in the low four bits of byte i, number 2i + 1 in
    the high four. Raises ValueError where k is odd or a code is out of range."""
    ### BEGIN SOLUTION
    if q.shape[-1] % 2 or bool(((q < -8) | (q > 7)).any()):
        raise ValueError("pack_int4 wants codes -8 ... 7, and an even number of them in a row")
    nibbles = (q & 15).to(torch.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    ### END SOLUTION


# %%
check(pack_int4)

# %% tags=["experiment"]
pairs = [(0, 0), (1, -1), (7, -8), (-3, 5)]
packed = pack_int4(torch.tensor(pairs, dtype=torch.int8))[:, 0].tolist()
fig, ax = plots.figure(f"{len(pairs)} bytes, two codes in each", "bit (the low four on the right)", "codes (2i, 2i + 1)", size=(6.4, 2.8),
                       alt="The bits of four bytes: " + "; ".join(f"{pair}: {byte:08b}" for pair, byte in zip(pairs, packed)) + ".")
for row, byte in enumerate(packed):
    for bit in range(8):
        value = byte >> bit & 1
        ax.barh(row, 0.94, left=-bit - 0.47, height=0.86, color=plots.PALETTE[0 if bit < 4 else 1], alpha=0.9 if value else 0.25)
        ax.text(-bit, row, value, ha="center", va="center", color="white" if value else plots.INK)
ax.set_yticks(range(len(pairs)), map(str, pairs))
ax.set_xticks(range(-7, 1), range(7, -1, -1))
ax.invert_yaxis()
ax.grid(visible=False)
plots.show(fig)

# %%
def unpack_int4(packed: UInt8[Tensor, "*rows m"]) -> Int8[Tensor, "*rows 2*m"]:
    """The codes -8 ... 7 that pack_int4 packed, as int8."""
    ### BEGIN SOLUTION
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)
    ### END SOLUTION


# %%
check(unpack_int4)

# %% [markdown]
# What it saves is counted, not timed: the bytes of a million weights with float16 scales for groups of 32, against
# float32.

# %%
speed(pack_int4)

# %% [markdown]
# Four bits are what large language models are often stored in, with a scale for each *group* of 16 to 128 neighbouring weights of a
# row. A small transformer that guesses the next byte of Python source shows what the groups are good for. (About 15 seconds.)
#
# **Predict:** with one scale for each tensor, from how many bits down does the loss rise? What do smaller groups gain, and what do they cost?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
text = data.pycode(1_000_000)
torch.manual_seed(0)
lm = models.Transformer(d=64, layers=2, length=64)
train.train(lm, text, steps=200, batch_size=32, lr=lambda step: 3e-3 * min(1, (step + 1) / 20) * (1 - step / 200))
windows = text.batch(64, 64, torch.Generator().manual_seed(0), "val")
loss = lambda model: train.evaluate(model, *windows, batch_size=64)[0]

def matrices(model):
    """The weights of all linear layers in the blocks, by name."""
    return {name: p for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2}

def stored_in(bits, group):
    """Codes and scales of every matrix; `group` neighbours in a row share a scale (None: the whole tensor does)."""
    rows = {name: w.detach().reshape(-1, group or w.numel()) for name, w in matrices(lm).items()}
    scales = {name: per_channel_scales(r, bits) for name, r in rows.items()}
    return {name: (quantize_affine(r, scales[name], bits=bits), scales[name]) for name, r in rows.items()}

# %% tags=["experiment"]
@torch.no_grad()
def loss_of(stored):
    """The validation loss with these codes in place of the weights."""
    model = copy.deepcopy(lm)
    for name, w in matrices(model).items():
        w.copy_(dequantize(*stored[name]).reshape(w.shape))
    return loss(model)

groups = (None, 64, 32, 16, 8)
price, losses = {}, {}
for bits in (4, 3, 2):
    kept = [stored_in(bits, group) for group in groups]
    price[bits] = [sum(q.numel() * bits + S.numel() * 16 for q, S in k.values()) / sum(q.numel() for q, _ in k.values()) for k in kept]
    losses[bits] = [max(loss_of(k) - loss(lm), 1e-4) for k in kept]
plots.lines({f"{bits}-bit codes": (price[bits], losses[bits]) for bits in price}, size=(7.6, 4), xlabel="bits a weight, float16 scales included", logy=True,
            title=f"Groups of a whole tensor, {', '.join(map(str, groups[1:]))} (from the left)", ylabel="rise of the loss (nats; 0.0001 or less)",
            alt="Rise of the validation loss over float32 against the bits a weight, scales included, for groups of a whole tensor, 64, 32, 16 and "
            "8. " + "; ".join(f"{bits}-bit codes: {', '.join(f'{p:.2f} bits {r:.4f}' for p, r in zip(price[bits], losses[bits]))}" for bits in price) + ".")

# %% [markdown]
# Four bits cost this model hardly anything, and three little, even with one scale for a whole tensor. At two bits the group decides. And the
# scales are not free: at a group of 16 they add a bit to every weight. Read the picture at the same number of bits: two bits with groups of 16
# are no better than three with one scale. (Larger models have larger outliers, and need the groups at four bits already.)
#
# And on disk? A file of the blocks' matrices, in four forms:

# %% tags=["experiment"]
from safetensors.torch import save

four = {name: (pack_int4(q), S.half()) for name, (q, S) in stored_in(4, 32).items()}
assert all(torch.equal(unpack_int4(p), stored_in(4, 32)[name][0]) for name, (p, _) in four.items())
flat = lambda stored: {f"{name}.{part}": t for name, pair in stored.items() for part, t in zip(("codes", "scales"), pair)}
forms = {"float32": {name: w.detach().clone() for name, w in matrices(lm).items()},
         "float16": {name: w.detach().half() for name, w in matrices(lm).items()},
         "int8, a scale for each row": flat({name: (quantize_affine(w.detach(), per_channel_scales(w.detach())), per_channel_scales(w.detach()))
                                             for name, w in matrices(lm).items()}),
         "int4, groups of 32": flat(four)}
size_on_disk = {name: len(save(tensors)) / 1000 for name, tensors in forms.items()}
plots.bars(size_on_disk, title="A file of 98,304 weights", xlabel="kilobytes (scales and names included)", form="{:,.1f}",
           alt=f"Size of the file in kilobytes: {', '.join(f'{name} {kb:.1f}' for name, kb in size_on_disk.items())}.")
print("; ".join(f"{name}: {size_on_disk['float32'] / kb:.2f} times smaller" for name, kb in list(size_on_disk.items())[1:]))

# %% [markdown]
# ## Optional · `learned_step_gradient`: let the scale learn too
#
# Why choose $S$ by a rule, if everything else is learned? The derivative of $y = S \operatorname{clamp}(\operatorname{round}(r/S))$ for $S$,
# with the straight-through estimator inside (Esser et al. 2020, equation 3), is
#
# $$\frac{\partial y}{\partial S} = \begin{cases} -2^{b-1} & \text{where } r/S \le -2^{b-1}, \\ 2^{b-1}-1 & \text{where } r/S \ge 2^{b-1}-1, \\ \operatorname{round}(r/S) - r/S & \text{elsewhere.}\end{cases}$$
#
# All elements share the scale, so their shares are summed, and the sum is divided by $\sqrt{n\,(2^{b-1}-1)}$ so that it moves about as far
# as a weight does ($n$ is the number of elements).
#
# **Predict:** two bits, a real weight, a scale that starts at the min–max rule. Does the learned scale grow or shrink?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def learned_step_gradient(x: Float[Tensor, "*shape"], scale: Float[Tensor, ""], grad_y: Float[Tensor, "*shape"],
                          bits: int = 8) -> Float[Tensor, ""]:
    """The gradient of the loss for the scale of a symmetric grid, given that for y: the sum over all elements of grad_y * dy/dS,
    divided by sqrt(n * (2**(bits - 1) - 1)) (Esser et al. 2020, section 2.1 and 2.2)."""
    ### BEGIN SOLUTION
    end = 2 ** (bits - 1)
    steps = x / scale
    slope = torch.where((steps > -end) & (steps < end - 1), torch.round(steps) - steps, steps.clamp(-end, end - 1))
    return (grad_y * slope).sum() / math.sqrt(x.numel() * (end - 1))
    ### END SOLUTION


# %%
check(learned_step_gradient)

# %% tags=["experiment"]
weight = net.weights[6].detach()
error = lambda S, bits: (dequantize(quantize_affine(weight, S, bits=bits), S) - weight).square().mean().item()
fig, panels = plots.figure(columns=2, size=(10.4, 4), alt="Mean squared error against the scale, for 2 and 3 bits, with the walk of the "
                           "learned scale on it: from the min-max rule on the right down into the valley, close to its lowest point.")
for ax, bits in zip(panels, (2, 3)):
    S = symmetric_scale(weight, bits)
    grid, walk = torch.linspace(0.1, 1.1, 200) * S, [S]
    for step in range(60):
        y = dequantize(quantize_affine(weight, S, bits=bits), S)
        S = S - 0.02 * learned_step_gradient(weight, S, y - weight, bits)
        walk.append(S)
    plots.lines({"error": (grid, [error(s, bits) for s in grid]), "the walk": (walk[::4], [error(s, bits) for s in walk[::4]])}, ax=ax, alt="",
                title=f"{bits} bits", xlabel="scale S", ylabel="mean squared error", logy=True)
plots.show(fig)

# %% [markdown]
# The scale shrinks, to a fraction of where it started, and stops close to the lowest point of the curve: it has found by itself that
# to cut the largest weights off is worth a finer step for all. It is the answer of `calibrate(method="mse")`, found by descent. In a network the
# loss of the task takes the place of the mean squared error, and every layer's scale learns at the same time as its weights.

# %% [markdown]
# ## Optional · `fold_then_quantize`: first fold, then round
#
# The network above was folded when you got it. Fold one yourself: $\gamma$, $\beta$, $\mu$, $\sigma^2$ are BatchNorm's numbers for each output
# channel, and
#
# $$w'_o = \frac{\gamma_o}{\sqrt{\sigma^2_o + \epsilon}}\, w_o, \qquad b'_o = \beta_o + \frac{\gamma_o}{\sqrt{\sigma^2_o + \epsilon}}\,(b_o - \mu_o).$$
#
# Only then are the weights quantised, with a scale for each channel. The bias stays a float here.
#
# **Predict:** does folding first make the rounding error of the weights larger or smaller (signal to noise of the folded
# weights)? With one scale for each tensor, and with one for each channel?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def fold_then_quantize(weight: Float[Tensor, "o i kh kw"], bias: Float[Tensor, "o"] | None, gamma: Float[Tensor, "o"], beta: Float[Tensor, "o"],
                       mean: Float[Tensor, "o"], var: Float[Tensor, "o"], eps: float = 1e-5, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution that follows with BatchNorm (in evaluation mode) as one: codes [o, i, kh, kw], scales [o, 1, 1, 1] and
    bias [o] (Jacob et al. 2018, section 3.2). A bias of None is zero."""
    ### BEGIN SOLUTION
    gain = gamma / torch.sqrt(var + eps)
    folded = weight * gain.view(-1, 1, 1, 1)
    scales = per_channel_scales(folded, bits)
    shift = beta + gain * ((0 if bias is None else bias) - mean)
    return quantize_affine(folded, scales, bits=bits), scales, shift
    ### END SOLUTION


# %%
check(fold_then_quantize)

# %% tags=["experiment"]
def ratio_after(w, gain, scales, fold_first, bits=4):
    """Signal to noise of the folded weight, rounded after folding or before."""
    w, gain = w.detach(), gain.detach().view(-1, 1, 1, 1)
    rounded = lambda t: dequantize(quantize_affine(t, scales(t, bits), bits=bits), scales(t, bits))
    return noise_ratio(w * gain, rounded(w * gain) if fold_first else rounded(w) * gain)

pairs = [(conv.weight, norm.weight / (norm.running_var + norm.eps).sqrt()) for conv, norm in zip(model.convs, model.norms)]
fig, panels = plots.figure(columns=2, size=(11.5, 4.6), alt="Signal to noise of each layer's weights at 4 bits, rounded before folding and after it: "
                           "with one scale for each tensor they differ, with one for each channel they do not.")
for ax, (name, scales) in zip(panels, {"One scale for each tensor": one_scale, "One for each channel": per_channel_scales}.items()):
    ratios = {when: {net.names[i]: ratio_after(w, g, scales, when == "folded, then rounded") for i, (w, g) in enumerate(pairs)}
              for when in ("rounded, then folded", "folded, then rounded")}
    plots.bars(ratios, ax=ax, title=name, xlabel="signal to noise of the weights (dB)", form="{:.1f}", alt="")
panels[1].get_legend().remove()  # the same as the other's
plots.show(fig)

# %% [markdown]
# With one scale for each tensor, folding first makes the rounding worse: BatchNorm's gains differ from channel to channel, and folding
# spreads the channels' ranges. With a scale for each channel it makes no difference at all: a gain multiplies the channel and its scale alike, and the
# codes stay the same. So why fold first? Because then nothing is left between the integer product and the requantisation.

# %% [markdown]
# ## Optional · `smooth_scales`: move the trouble where it is harmless
#
# In large language models a few channels of the activations are twenty to a hundred times larger than all others, in every token. A grid
# that reaches up to them has hardly a step left for the rest. Weights are tame. So divide channel $k$ of the activations by $s_k$ and
# multiply column $k$ of the next weight by it: the product is the same, and part of the trouble has moved (Xiao et al. 2023, equation 4):
#
# $$s_k = \frac{(\max |x_k|)^{\alpha}}{(\max |w_k|)^{1-\alpha}}, \qquad x W^\top = (x / s)\,(W s)^\top .$$
#
# $\alpha = 0$ looks at the weights only, $\alpha = 1$ moves all of the trouble. A small transformer has no such channels, so
# `lowbits.plant_outliers` plants them: it multiplies two channels of each LayerNorm, and divides the columns that read them. In float32
# nothing changes.
#
# **Predict:** from which factor on does int8 with a scale for each token suffer? And how much of it does $\alpha = 1/2$ repair?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def smooth_scales(x_max: Float[Tensor, "k"], w: Float[Tensor, "o k"], alpha: float = 0.5) -> Float[Tensor, "k"]:
    """SmoothQuant's factor for each input channel, from the largest |x| seen in it and the weight that reads it; 1 where
    either of the two maxima is zero."""
    ### BEGIN SOLUTION
    w_max = w.abs().amax(0)
    scales = x_max**alpha / w_max ** (1 - alpha)
    return torch.where((x_max > 0) & (w_max > 0), scales, 1.0)
    ### END SOLUTION


# %%
check(smooth_scales)

# %% tags=["experiment"]
def in_int8(model, alpha=None):
    """The loss with every linear layer of the blocks in int8, its inputs smoothed first if there is an alpha."""
    largest = lowbits.largest_inputs(model, text.batch(64, 64, torch.Generator().manual_seed(1))[0])  # of the training text

    def int8(name, layer):
        w = layer.weight.detach()
        s = torch.ones(w.shape[1]) if alpha is None else smooth_scales(largest[name], w, alpha)
        S = per_channel_scales(w * s)
        q = quantize_affine(w * s, S)
        return lambda x: dynamic_int8_linear(x / s, q, S[:, 0], layer.bias)
    return loss(lowbits.replace_linears(model, int8))

# %% [markdown]
# (About 5 seconds.)

# %% tags=["experiment"]
factors = (1, 3, 10, 30, 100, 300)
planted = {f: lowbits.plant_outliers(lm, f) for f in factors}
rise = {name: [max(in_int8(planted[f], alpha) - loss(lm), 1e-5) for f in factors] for name, alpha in {"as it is": None, "smoothed": 0.5}.items()}
first = lowbits.linears(planted[100])["blocks.0.qkv"].weight.detach()
x_max = lowbits.largest_inputs(planted[100], text.batch(64, 64, torch.Generator().manual_seed(1))[0])["blocks.0.qkv"]
w_max, s = first.abs().amax(0), smooth_scales(x_max, first)

# %% tags=["experiment"]
fig, (left, right) = plots.figure(columns=2, size=(11.5, 4.2), alt="Left: rise of the loss over float32 against the factor of the outliers, "
    + "; ".join(f"{name}: {', '.join(f'{v:.4f}' for v in row)}" for name, row in rise.items()) + f". Right: the largest input of each of 64 channels at "
    f"factor 100; two stand out, the largest is {x_max.max():.0f}; after smoothing none is above {(x_max / s).max():.1f}.")
plots.lines(rise, x=factors, ax=left, alt="", logx=True, logy=True, title="int8, by the size of two planted channels", xlabel="how many times larger",
            ylabel="rise of the loss (nats; 0.00001 or less)")
plots.lines({"as it is": x_max, "smoothed": x_max / s}, ax=right, alt="", marks=False, logy=True, title="Inputs of the first block, factor 100",
            xlabel="channel", ylabel="largest |x| of a channel")
plots.show(fig)

# %% [markdown]
# A grid for each token is robust: up to a factor of ten nothing is noticed. At 30 two channels of 64 cost some thousandths of a nat, at 100 some
# hundredths, at 300 some tenths. Smoothing takes all of it back: with α = 1/2 the smoothed network is the same at every factor, and its rise lies at the
# lower end of the figure. It is easy here, since what was planted is exactly what
# smoothing removes: the columns that read the large channels are small. In a real model they are not, and α is a compromise.

# %% [markdown]
# ## Optional · `triton_int8_matmul`: the product itself
#
# Who computes the integer product? On a GPU, a kernel in which each program makes one *tile* of the result, BM rows and BN columns: it
# walks along $k$ in steps of BK, loads a tile of each matrix, and adds their product to its sums. `tl.dot(a, b, out_dtype=tl.int32)` of two int8
# tiles runs on the tensor cores where there are some. The matrices need not be multiples of the tiles: a mask keeps what lies outside from
# being loaded (`other=0` puts zeros there) and stored. Without a GPU the kernel is interpreted: right, and slow.
#
# **Predict:** a program reads BM × BK and BK × BN numbers for BM × BN × BK multiply–adds. How do the bytes that are read in all change when
# BM and BN are doubled?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
@triton.jit
def int8_matmul_kernel(a_ptr, b_ptr, c_ptr, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """c = a @ b for int8 a [m, k] and b [k, n] and int32 c [m, n], each row after row; this program makes one tile of c."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]  # [BM, 1]
    column = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]  # [1, BN]
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    ### BEGIN SOLUTION
    for start in range(0, k, BK):
        across, down = start + tl.arange(0, BK)[None, :], start + tl.arange(0, BK)[:, None]
        a = tl.load(a_ptr + row * k + across, mask=(row < m) & (across < k), other=0)
        b = tl.load(b_ptr + down * n + column, mask=(down < k) & (column < n), other=0)
        sums += tl.dot(a, b, out_dtype=tl.int32)
    tl.store(c_ptr + row * n + column, sums, mask=(row < m) & (column < n))
    ### END SOLUTION


def triton_int8_matmul(a: Int8[Tensor, "m k"], b: Int8[Tensor, "k n"]) -> Int[Tensor, "m n"]:
    """a @ b in int32, by one launch of int8_matmul_kernel with a program for each tile of 64 by 64."""
    home, (m, k), n = a.device, a.shape, b.shape[1]
    a, b = (t.to(default_device()).contiguous() for t in (a, b))
    c = torch.empty(m, n, dtype=torch.int32, device=a.device)
    ### BEGIN SOLUTION
    int8_matmul_kernel[(triton.cdiv(m, 64), triton.cdiv(n, 64))](a, b, c, m, n, k, BM=64, BN=64, BK=64)
    ### END SOLUTION
    return c.to(home)


# %%
check(triton_int8_matmul)

# %% tags=["experiment"]
size, tiles = 4096, [16, 32, 64, 128, 256]
read = lambda tile, width: 2 * size**3 / tile * width / 1e9  # GB: every tile of c reads its rows of a and its columns of b
fig, ax = plots.figure(size=(7.2, 4), alt=f"Gigabytes read against the tile's side {tiles}: int8 {[round(read(t, 1), 2) for t in tiles]}, float32 "
                       "four times as many; to read each number once would be 0.03.")
plots.lines({"int8": [read(t, 1) for t in tiles], "float32": [read(t, 4) for t in tiles]}, x=tiles, ax=ax, alt="", logx=True, logy=True,
            limits={"int8, each number read once": 2 * size**2 / 1e9}, title=f"A product of {size} by {size} matrices", xlabel="BM = BN",
            ylabel="bytes read by all programs (GB)")
ax.set_xticks(tiles, tiles)
ax.minorticks_off()
plots.show(fig)
a, b = (torch.randint(-128, 128, (100, 100), dtype=torch.int8) for _ in range(2))
print("the same as torch:", torch.equal(triton_int8_matmul(a, b), a.int() @ b.int()))

# %% [markdown]
# A tile twice as wide reads half as much, until the registers are full. And a byte in place of four bytes makes a quarter of the
# traffic before any arithmetic is saved. The line of "each number once" would need one program with the whole matrices in its registers.

# %% [markdown]
# ## How fast?
#
# The graded measurement: a linear layer of 2048 by 2048, 256 rows at a time, in float32 against your `dynamic_int8_linear`, which
# has to quantise the rows as well. Where the processor has no instructions for 8-bit products (Intel's and AMD's are called VNNI and AMX)
# it is deferred. (About 10 seconds.)
#
# **Predict:** from which size on is int8 faster than float32? Faster than bfloat16? For one row, and for 256?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
speed(dynamic_int8_linear)

# %% [markdown]
# When does it pay, and where is the limit? The limit is the larger of two times: all bytes once at the speed of a copy, and the
# multiply–adds at the best rate that torch's integer product reaches on this machine. And since sixteen bits need no scales: bfloat16, with
# the rows converted there and back. (About 20 seconds.)

# %% tags=["experiment"]
def layer(rows, size):
    """Inputs and the weight in three forms."""
    x, w = torch.randn(rows, size), torch.randn(size, size)
    S = per_channel_scales(w)
    return x, w, quantize_affine(w, S), S[:, 0], w.bfloat16()

ways = {"float32": lambda x, w, q, S, half: F.linear(x, w), "int8": lambda x, w, q, S, half: dynamic_int8_linear(x, q, S),
        "bfloat16": lambda x, w, q, S, half: F.linear(x.bfloat16(), half).float()}
sizes = (256, 512, 1024, 2048)
peak, copying = timing.peak_flops("cpu", torch.int8), timing.memory_bandwidth("cpu")
times = {rows: {name: [1e3 * timing.compare(way, ways["float32"], lambda seed: layer(rows, size), seconds=0.3, device="cpu").candidate_seconds
                       for size in sizes] for name, way in ways.items()} for rows in (1, 256)}
for rows, table in times.items():
    table["limit of int8"] = [1e3 * max(2 * rows * size**2 / peak, (size**2 + 8 * rows * size) / copying) for size in sizes]

# %% tags=["experiment"]
fig, panels = plots.figure(columns=2, size=(11, 4.2), alt="Milliseconds against the layer's size. " + " ".join(
    f"{rows} rows: " + "; ".join(f"{name} {', '.join(f'{t:.3g}' for t in row)}" for name, row in table.items()) + "." for rows, table in times.items()))
for ax, (rows, table) in zip(panels, times.items()):
    plots.lines(table, x=sizes, ax=ax, alt="", logx=True, logy=True, title=f"{rows} row{'s' * (rows > 1)}, one thread",
                xlabel="inputs and outputs of the layer", ylabel="time (ms)")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
plots.show(fig)
for rows, table in times.items():
    print(f"{rows} row{'s' * (rows > 1)} of 2048: int8 {table['float32'][-1] / table['int8'][-1]:.1f} times as fast as float32, bfloat16 "
          f"{table['float32'][-1] / table['bfloat16'][-1]:.1f} times")

# %% [markdown]
# For 256 rows the integer product wins at every size, and more at larger ones; it stays a few times above the limit, because the rows have to be
# measured, divided, rounded and converted, and the sums turned into float32 again, each a pass over the memory. For one row there is little to
# compute: small layers lose to the number of operations that have to be started, large ones win because a quarter of the bytes has to be read.
#
# (It can even lie below its limit there, which is that of the memory: a weight of four megabytes stays in a large cache between two calls.)
#
# bfloat16 needs no scales and no measuring of rows. Where the processor has instructions for it (AVX512_BF16, AMX) it comes close to int8 or even
# overtakes it, above all in small layers; elsewhere it may gain next to nothing: measure before you choose. What int8 always saves is memory.

# %% [markdown]
# ## The claim
#
# Two overviews of training methods say: int8 makes a network four times smaller with little loss; quantisation-aware training rescues low
# widths; and float16 halves memory and doubles speed. You have seen one seed. The full run takes five, and a control: the same 150
# steps *without* rounding, and rounded afterwards.

# %% tags=["experiment"]
full = claims.full_run("24_quantization")
post, tuned = full["post"]["accuracy"], full["aware"]["accuracy"]
by_bits = {"a scale for each tensor": post["both"]["tensor"], "one for each channel": post["both"]["channel"],
           **{name: {b: v for b, v in tuned[key].items() if int(b) < 8} for name, key in (
               ("150 steps, then rounded", "trained on, then rounded"), ("150 steps with rounding", "trained on with rounding"))}}
curves = {name: ([int(b) for b in row], [100 * v[0] for v in row.values()]) for name, row in by_bits.items()}
bands = {name: tuple([100 * min(max(v[k], 0), 1) for v in row.values()] for k in (1, 2)) for name, row in by_bits.items()}
plots.lines(curves, bands=bands, size=(9.6, 4.4), title="Five seeds (band: 95%)", xlabel="bits of a weight and of an activation",
            ylabel="test accuracy (%)", limits={"float32": 100 * post["float32"][0]},
            alt="Accuracy against bits in the full run. " + "; ".join(
                f"{name}: {', '.join(f'{y:.0f} at {b}' for b, y in zip(*curve))}" for name, curve in curves.items()) + ".")

# %% tags=["experiment"]
eight = with_bits(net, 8, ranges=ranges["mse", 8])
smaller = sum(4 * w.numel() for w in net.weights) / sum(w.numel() + 4 * len(w) for w in net.weights)  # a float32 scale for each channel
claims.show("24-int8-small", measured=f"{accuracy(net):.1%} in float32, {accuracy(eight):.1%} in int8, {smaller:.2f} times smaller; the transformer's file is "
            f"{size_on_disk['float32'] / size_on_disk['int8, a scale for each row']:.2f} times smaller")
claims.show("24-qat-rescues", measured="; ".join(f"{bits} bits: {scaled['one for each channel'][bits - 2]:.0f}% rounded, {learned[bits]:.0f}% "
                                                 "trained on with rounding" for bits in few))
claims.show("24-fp16-double", measured=f"here bfloat16 is {times[256]['float32'][-1] / times[256]['bfloat16'][-1]:.1f} times as fast as float32, "
            f"int8 {times[256]['float32'][-1] / times[256]['int8'][-1]:.1f} times (256 rows of 2048)")

# %% [markdown]
# Eight bits cost nothing here, with one scale for each tensor or one for each channel: −0.06 points (95% interval −0.31 to 0.19) with
# the latter. Each step further down costs more than the one before, until little is
# left to lose. What does *not* help is more training without rounding: rounded afterwards it
# is no better than before (74.9% at four bits, 27.1% at three). With rounding the same 150 steps give 91.9 and 84.6%, and 18.6% at two bits, where
# float32 has 93.4%.
#
# The other two measurements of the full run: sixteen bits, and rounding a network that was taught by a larger one.

# %% tags=["experiment"]
sizes_run, faster = [], {name: [] for name in ("float16", "bfloat16", "int8")}
for shape, row in full["sixteen"]["faster"].items():
    if shape.startswith("256 x "):
        sizes_run.append(int(shape.split()[-1]))
        for name, found in row.items():
            faster[name].append(found)
taught = full["distilled"]["accuracy"]
curves = {name: ([int(b) for b in row["rounded"]], [100 * v[0] for v in row["rounded"].values()]) for name, row in taught.items()}
bands = {name: tuple([100 * v[k] for v in row["rounded"].values()] for k in (1, 2)) for name, row in taught.items()}
fig, (left, right) = plots.figure(columns=2, size=(11, 4.2), alt="Left: speed over float32 against the layer's size, 256 rows, full run. " + "; ".join(
    f"{name}: {', '.join(f'{v[0]:.2f}' for v in row)}" for name, row in faster.items()) + ". Right: accuracy against bits. " + "; ".join(
    f"{name}: {', '.join(f'{y:.0f} at {b}' for b, y in zip(*curve))}" for name, curve in curves.items()) + ".")
plots.lines({name: [v[0] for v in row] for name, row in faster.items()}, x=sizes_run, ax=left, alt="", logx=True, logy=True,
            bands={name: tuple([v[k] for v in row] for k in (1, 2)) for name, row in faster.items()}, limits={"float32": 1.0},
            title=f"256 rows, {full['sixteen']['device']}", xlabel="inputs and outputs of the layer", ylabel="times as fast as float32")
left.set_xticks(sizes_run, sizes_run)
left.minorticks_off()
plots.lines(curves, bands=bands, ax=right, alt="", title="A network of 3,392 weights, five seeds", xlabel="bits of a weight and of an activation",
            ylabel="test accuracy (%)", limits={"float32": 100 * taught["distilled"]["float32"][0]})
right.set_xticks((4, 6, 8))
plots.show(fig)

# %% [markdown]
# Half the memory is certain; twice the speed is a matter of instructions. On the processor of the full run bfloat16 is faster than float32 from
# 256 rows of 256 on, and float16, for which it has no arithmetic of its own, is several times *slower*: it is converted there and back. A GPU
# has units for both; on yours, measure.
#
# The small network was taught by one with ten times as many weights. Rounding it to eight bits costs nothing that can be measured (0.0 points,
# −0.4 to 0.5), whether it was taught by labels or by the larger network: the two savings multiply, 10 × 3.5. At six bits it loses one or two
# points, at four bits 25 to 31: a network with few weights has fewer to spare. (Its teacher did not help it much: 80.5% against 80.2%. Lab 23
# asks when a teacher does.)

# %% [markdown]
# ### Question (15 points)
#
# Are the claims right? Write five to eight sentences: how much smaller the network and the transformer's file really become and why it is not
# exactly four times; what eight bits cost; which low widths are rescued by training with rounding, and what the control says about the reason; and
# whether "faster" follows from "smaller". Use your numbers.

# %% [markdown] tags=["written"] points=15 name="claim"
# Eight bits cost nothing that can be measured: 93.3% in float32 and 93.4% in int8 in my run, −0.06 points (−0.31 to 0.19) over five seeds. The size
# falls by less than four: the transformer's file by 3.78, the convolutional network's weights by 3.55, because each channel has a float32
# scale of its own, and a depthwise channel has only nine weights to share it.
#
# Training with rounding rescues four bits (92% of images, after 78% without) and three bits (83 after 39), but not two (14 after 4). The control shows that
# it is not the additional training: 150 steps without rounding make the rounded network no better (27% at three bits over five seeds, where training
# with rounding gives 85%).
#
# Faster does not follow from smaller. My int8 layer was several times as fast as float32 with 256 rows of 2048, but with one row of 256 it was slower, since
# measuring and rounding the row costs more than is saved. It also needs instructions for bytes. bfloat16 gets half of the gain without any of this.

# %% [markdown]
# ## Going further
#
# - **The arithmetic.** Jacob et al. 2018, *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*; Krishnamoorthi
#   2018 and Nagel et al. 2021, two white papers that read like textbooks.
# - **Without training data.** Nagel et al. 2019 equalise the ranges of neighbouring layers, so that one scale for each tensor is enough; Nagel et al. 2020
#   (AdaRound) ask whether the *nearest* code is the best one. It is not.
# - **Learning with it.** Bengio et al. 2013 (the straight-through estimator); Esser et al. 2020 (learned steps); Hinton et al. 2015 for distilled
#   students, which are then rounded.
# - **Large language models.** Dettmers et al. 2022 (outlier features), Xiao et al. 2023 (SmoothQuant), Frantar et al. 2023 (GPTQ: rounding one column
#   after another and letting the rest make up for it), Lin et al. 2024 (AWQ).
# - **In production.** torchao and ONNX Runtime hold kernels like yours and the passes that insert them; llama.cpp's formats are groups of 32 with a float16
#   scale, as in your file.
#
# **Open ended.** All layers have the same number of bits here. Give each its own: spend a budget of, say, four bits a weight on average where it
# hurts most. How do you find out what hurts, without trying all combinations?
