# %% [markdown]
# # 34 · bf16 and divergence
#
# bfloat16 reaches as far as float32, so nothing overflows. What goes wrong with it all the same, why do large models diverge, and what
# really saves them?
#
# By the end you will have made this picture: a training run whose loss explodes, the thermometers inside the network that rise before it,
# the alarm that your own function gives, and the same run rolled back and saved.
#
# | | |
# | --- | --- |
# | Time | about 7 hours |
# | You need | binary numbers, softmax and attention, Adam; labs 11 and 12 |
# | Data | pycode; it is on this machine, no network is needed |
# | A GPU adds | tensor cores in "How fast?"; on a CPU that section needs one with instructions for bfloat16 |
#
# Two stories are told about 16 bits, and they are not the same story. In one, updates are *lost*: training goes on, and gets nowhere. In
# the other, training *diverges*. Keep them apart: for each you will measure what part the number format has in it.
#
# Before each experiment you are asked to **predict** its outcome. Write a line in the cell below the question, then run the experiment. A
# wrong prediction costs nothing and teaches the most. Code that would tell the outcome is folded: run it first, and then open it (a click
# on the three dots) and play with it.

# %% tags=["setup"]
import math

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Float32, Float64, Int64
from torch import Tensor

from course import claims, data, models, plots, precision, timing, train
from course.check import check, setup, speed
from course.device import default_device, describe

setup("34_bf16_divergence")
torch.set_num_threads(1)  # small tensors: a second thread would only get in the way

# %% [markdown]
# ## 1 · `decode_float`: what the bits mean
#
# A floating-point number is a sign bit $s$, then $E$ exponent bits that read as an integer $e$, then $M$ mantissa bits that read as an
# integer $m$. With the bias $b = 2^{E-1} - 1$ its value is (IEEE 754)
#
# $$(-1)^s \cdot 2^{e - b} \cdot \Big(1 + \frac{m}{2^M}\Big), \qquad\text{and if } e = 0 \text{:}\quad
# (-1)^s \cdot 2^{1 - b} \cdot \frac{m}{2^M}.$$
#
# The second kind are the *subnormal* numbers, zero among them. The largest $e$, all ones, is set apart: with $m = 0$ it is $\pm\infty$,
# with any other $m$ it is NaN. The 8-bit format E4M3 (Micikevicius et al. 2022) has no infinities: there only $m$ = all ones is NaN, and
# the other codes with this $e$ are ordinary numbers.
#
# | name | $E$ (`exponent_bits`) | $M$ (`mantissa_bits`) | infinities |
# | --- | --- | --- | --- |
# | fp16 | 5 | 10 | yes |
# | bf16 | 8 | 7 | yes |
# | tf32 | 8 | 10 | yes |
# | E5M2 | 5 | 2 | yes |
# | E4M3 | 4 | 3 | no |
#
# **Predict**, with the formula: what is fp16's largest value? (A source text of the course says 65535.) Which number comes after 256 in
# bf16? And the texts give bf16 8 bits of mantissa and tf32 19: what may they have counted?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
FORMATS = {"fp16": (5, 10, True), "bf16": (8, 7, True), "tf32": (8, 10, True), "E5M2": (5, 2, True), "E4M3": (4, 3, False)}

# %%
def decode_float(codes: Int64[Tensor, "*shape"], exponent_bits: int, mantissa_bits: int,
                 infinities: bool = True) -> Float64[Tensor, "*shape"]:
    """The values of bit patterns, as float64 (IEEE 754). A code's lowest bits are the mantissa, then come the exponent and the sign.

    With `infinities` False only the code with all exponent and mantissa bits set is NaN (E4M3)."""
    ### BEGIN SOLUTION
    bias, ones = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits - 1
    sign = 1 - 2.0 * (codes >> (exponent_bits + mantissa_bits))
    e, m = codes >> mantissa_bits & (2**exponent_bits - 1), codes & ones
    fraction = m.double() / 2**mantissa_bits
    value = torch.where(e > 0, torch.exp2((e - bias).double()) * (1 + fraction), 2.0 ** (1 - bias) * fraction)
    top = e == 2**exponent_bits - 1
    if infinities:
        value[top] = math.inf
        value[top & (m > 0)] = math.nan
    else:
        value[top & (m == ones)] = math.nan
    return sign * value
    ### END SOLUTION


# %%
check(decode_float)

# %% tags=["experiment"]
def finite(name):
    """All positive finite numbers of a format."""
    E, M, _ = FORMATS[name]
    values = decode_float(torch.arange(2 ** (E + M)), *FORMATS[name])
    return values[values.isfinite() & (values > 0)]

curves, facts = {}, {}
for name in FORMATS:
    numbers = finite(name)
    powers = numbers[:-1][torch.frexp(numbers[:-1])[0] == 0.5]  # 1, 2, 4, ..., 0.5, ...
    next_one = numbers[torch.searchsorted(numbers, powers) + 1]
    curves[name] = (powers, (next_one - powers) / powers)
    facts[name] = {"largest": numbers[-1].item(), "smallest": numbers[0].item(), "between 1 and 2": int(((numbers >= 1) & (numbers < 2)).sum()),
                  "after 256": numbers[numbers > 256].min().item()}
plots.lines(curves, logx=True, logy=True, marks=False, title="How far is the next number?", xlabel="a power of two that the format has",
            ylabel="distance to the next number / number", size=(8.4, 4),
            alt="For each format the relative distance to the next number: flat over the range of ordinary numbers, rising by a factor of two for each "
                "power of two among the subnormal ones. " + "; ".join(f"{name}: from {row['smallest']:.2g} to {row['largest']:.3g}, "
                f"{row['between 1 and 2']} numbers between 1 and 2" for name, row in facts.items()) + ".")
for name, row in facts.items():
    print(f"{name}: largest {row['largest']:.6g}, smallest {row['smallest']:.3g}, {row['between 1 and 2']} numbers from 1 up to 2, after 256 comes {row['after 256']:g}")

# %% [markdown]
# Two questions, two answers. *How far does it reach?* That is the exponent: bf16 and tf32 reach as far as float32. *How fine is it?* That
# is the mantissa: fp16 and tf32 are eight times finer than bf16. The line of a format rises on its left end, where the subnormal numbers
# are: those of fp16 begin at 6·10⁻⁵. Are there gradients that are so small? The next section looks.
#
# What your numbers say to the sentences of the texts:

# %% tags=["experiment"]
claims.show("slip-fp16-largest", measured=f"{facts['fp16']['largest']:g}")
claims.show("slip-bf16-bits", measured=f"{facts['bf16']['between 1 and 2']} numbers from 1 up to 2, that is {math.log2(facts['bf16']['between 1 and 2']):g} stored bits "
            "(8 with the hidden 1)")
claims.show("slip-tf32-bits", measured=f"{math.log2(facts['tf32']['between 1 and 2']):g} stored bits; with 8 of the exponent and the sign 19 bits in all")

# %% [markdown]
# ## 2 · `round_to_format`: to the nearest that there is
#
# From now on any format can be imitated in float32. Between two powers of two, $2^{e}$ and $2^{e+1}$, the numbers of a format lie evenly,
# at the distance $q = 2^{e-M}$ (its *quantum*). So rounding is
#
# $$x \to q \cdot \operatorname{round}(x / q), \qquad q = 2^{\max(e,\, 1 - b) - M}, \qquad e = \lfloor \log_2 |x| \rfloor,$$
#
# where a half goes to the even neighbour, as in `torch.round`. The maximum is there for the subnormal numbers, which all have the same
# distance. What is beyond the largest number *after* rounding becomes $\pm\infty$, or, in a format without infinities, the largest
# number. (Take $e$ from `torch.frexp`, which is exact; a logarithm is not, just below a power of two.)
#
# **Predict:** the relative error of rounding to bf16 is at most 2⁻⁸ = 0.4%. What is it for fp16, and over which range of numbers? Which
# of the two is nearer to the truth for a gradient of 10⁻⁷?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def round_to_format(x: Float32[Tensor, "*shape"], exponent_bits: int, mantissa_bits: int,
                    infinities: bool = True) -> Float32[Tensor, "*shape"]:
    """The number of the format that is nearest to each x, halves to even (IEEE 754), as float32.

    Too large: infinity, or the format's largest number if it has no infinities. NaN stays NaN."""
    ### BEGIN SOLUTION
    bias = 2 ** (exponent_bits - 1) - 1
    _, exponent = torch.frexp(x)  # |x| = 0.5..1 times 2**exponent
    quantum = torch.exp2((exponent - 1).clamp(min=1 - bias).double() - mantissa_bits)
    y = torch.round(x.double() / quantum) * quantum
    if infinities:
        largest = 2.0**bias * (2 - 2.0**-mantissa_bits)
        y = torch.where(y.abs() > largest, math.inf * y.sign(), y)
    else:  # one exponent more, but the last of its codes is NaN
        largest = 2.0 ** (bias + 1) * (2 - 2 * 2.0**-mantissa_bits)
        y = y.clamp(-largest, largest)
    return y.float()
    ### END SOLUTION


# %%
check(round_to_format)

# %% [markdown]
# **Play.** The numbers of a real training step, and a format of your own. A small transformer is trained on Python source for 300 steps
# (about 6 seconds); then the weights, the activations and the gradients of one step are rounded. What becomes zero, what infinite? Move
# the sliders: which is the cheapest format that loses next to no gradient?

# %%
text = data.pycode(1_000_000)  # Python's standard library, as bytes
BATCH = 8                      # texts of 32 bytes

# %% tags=["experiment"]
base = precision.Trainer(precision.Rounded(precision.transformer(0)), text, lr=2e-3, batch=BATCH)
base.run(0, 300)
START = base.checkpoint()      # weights, and what Adam remembers: several experiments go on from here
base.step(300)                 # one more step, for its activations and gradients
groups = {"weights": base.weights, "activations": torch.cat([x.flatten() for x in base.net.seen.values()]),
          "gradients": torch.cat([p.grad.flatten() for p in base.parameters])}
GRADIENT = groups["gradients"].clone()
groups = {name: x[x != 0].abs().clone() for name, x in groups.items()}
groups["activations"] = groups["activations"][::37]  # a sample
base.restore(START)

# %% tags=["experiment"]
from course.sliders import Slider, show

def draw(E, M):
    lost = {name: (100 * (round_to_format(x, E, M) == 0).float().mean().item(), 100 * round_to_format(x, E, M).isinf().float().mean().item())
            for name, x in groups.items()}
    edges = torch.linspace(-45, 20, 66)  # powers of two
    curves = {f"{name}: {lost[name][0]:.1f}% become 0": (2.0 ** (edges[:-1] + 0.5), 100 * torch.histc(x.log2(), 65, -45, 20) / len(x)) for name, x in groups.items()}
    fig, (left, right) = plots.figure(f"1 sign, {E} exponent and {M} mantissa bits", columns=2, size=(11, 4), alt=f"Left: how large weights, activations and "
        f"gradients are. With {E} exponent and {M} mantissa bits, become 0 and infinite (%): " + ", ".join(f"{n} {a:.1f} and {b:.1f}" for n, (a, b) in lost.items())
        + ". Right: the relative rounding error against the size of the number, small in the middle of the format's range and 1 below it.")
    plots.lines(curves, ax=left, alt="", logx=True, marks=False, title="What there is to round", xlabel="absolute value", ylabel="share per power of two (%)")
    left.legend(loc="upper left", fontsize=8, frameon=False, labelcolor=plots.INK)
    x = torch.logspace(-45, 20, 4000, base=2)
    error = (round_to_format(x, E, M) - x).abs() / x
    plots.lines({"": error.clamp(1e-7, 1)}, x=x, ax=right, alt="", logx=True, logy=True, marks=False, title="What rounding does to it",
                xlabel="absolute value", ylabel="relative error (1: all is lost)")
    plots.show(fig)

show(draw, E=Slider(2, 8, start=5, step=1, label="exponent bits"), M=Slider(1, 10, start=10, step=1, label="mantissa bits"))

# %% [markdown]
# Gradients lie lowest: half of them are below 0.0006 here and a fifth below 0.0001 (activations are spread still wider, but higher up). fp16
# (5 and 10) just reaches down to their lower end, 0.2% become zero. With one exponent bit less it is 1.4%, with two 21%. The mantissa has
# a part in it as well, since it sets the smallest subnormal number: at 5 exponent bits a small one, E5M2 loses 1.4%; at 4 a large
# one, E4M3 loses 64%. So the cheapest format that loses next to no gradient has 6 exponent bits and 1 bit of mantissa: 8 bits in all, and
# no more become zero than in fp16's 16. (What does not is rounded by up to a fifth.) And gradients become smaller as models, batches and
# training times grow. For them the exponent counts first: that is the whole reason for bf16.
#
# And one number is easily forgotten, Adam's $\varepsilon = 10^{-8}$:

# %% tags=["experiment"]
for name, fmt in FORMATS.items():
    print(f"1e-8 in {name}: {round_to_format(torch.tensor([1e-8]), *fmt).item():.3g}")

# %% [markdown]
# ## 3 · `swamped_sum`: when adding one changes nothing
#
# Above 256 the numbers of bf16 are 2 apart, so 256 + 1 rounds back to 256: the small term is *swamped*. Three ways to add up $x_1, \dots,
# x_n$ with every single result rounded to the same format:
#
# - **naive**: from the first to the last, into one accumulator;
# - **pairwise**: add up the first half and the second half, each in the same manner, and then the two results;
# - **Kahan** (1965): keep in $c$ what the last addition lost, and try to add it the next time:
#
# $$y = x_i - c, \qquad t = s + y, \qquad c = (t - s) - y, \qquad s = t.$$
#
# In exact arithmetic $c$ would always be zero.
#
# **Predict:** 4096 ones are added in bf16. What comes out of the three? (fp16: is it better, or worse?)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def swamped_sum(x: Float[Tensor, "n *rest"], method: str = "naive") -> Float[Tensor, "*rest"]:
    """The sum over the first dimension (n >= 1), every result rounded to x's own dtype: "naive" (left to right), "pairwise" or
    "kahan"."""
    ### BEGIN SOLUTION
    if method == "pairwise":
        half = len(x) // 2
        return x[0] if half == 0 else swamped_sum(x[:half], method) + swamped_sum(x[half:], method)
    s, c = x[0], torch.zeros_like(x[0])
    for term in x[1:]:
        y = term - c
        t = s + y
        if method == "kahan":
            c = (t - s) - y
        s = t
    return s
    ### END SOLUTION


# %%
check(swamped_sum)

# %% [markdown]
# The sum of $n$ ones, and the error for random terms. (About 4 seconds.)

# %% tags=["experiment"]
counts = [2**k for k in range(2, 13)]
totals = {f"{kind}": [swamped_sum(torch.ones(n, dtype=torch.bfloat16), kind).item() for n in counts] for kind in ("naive", "pairwise", "kahan")}
totals["naive, fp16"] = [swamped_sum(torch.ones(n, dtype=torch.float16)).item() for n in counts]
terms = 0.5 + torch.rand(4096, 16, generator=torch.Generator().manual_seed(0))  # [n, columns]
errors = {kind: [((swamped_sum(terms[:n].bfloat16(), kind).double() - terms[:n].bfloat16().double().sum(0)).abs() / terms[:n].double().sum(0)).mean().clamp(min=1e-5).item()
                 for n in counts] for kind in ("naive", "pairwise", "kahan")}
errors["torch.sum"] = [((terms[:n].bfloat16().sum(0).double() - terms[:n].bfloat16().double().sum(0)).abs() / terms[:n].double().sum(0)).mean().clamp(min=1e-5).item()
                       for n in counts]
fig, (left, right) = plots.figure(columns=2, size=(11, 4), alt="Left: the sums of 4096 ones are " + ", ".join(f"{name} {row[-1]:g}" for name, row in totals.items())
    + ". Right: mean relative error for 4096 random terms: " + ", ".join(f"{name} {row[-1]:.2g}" for name, row in errors.items()) + ".")
plots.lines(totals, x=counts, ax=left, alt="", logx=True, logy=True, title="The sum of n ones", xlabel="n", ylabel="sum")
plots.lines(errors, x=counts, ax=right, alt="", logx=True, logy=True, limits={"one rounding, at most": 2.0**-8}, title="Random terms, 0.5 to 1.5", xlabel="n",
            ylabel="mean relative error")
left.legend(loc="upper left", frameon=False, labelcolor=plots.INK)
plots.show(fig)

# %% [markdown]
# The naive sum of ones stops at 256 in bf16 (2048 in fp16): from there on each 1 is swamped. With random terms it lasts a little longer,
# because terms above half a distance are rounded up, until at 512 no term is large enough. The pairwise sum is wrong by a few roundings;
# Kahan's by about one, at four operations a term; torch.sum adds up in float32 and rounds once. The dotted line is what a single rounding
# costs at most.
#
# Where are there long sums in training? In every matrix product (hardware adds up in float32), in softmax and LayerNorm, in the mean of
# the loss, and in two places that are your own choice: gradients added up over many small batches, and *all-reduce*, the sum over many
# devices. Here a real gradient is added up over 256 batches that differ in noise:

# %% tags=["experiment"]
gradient = GRADIENT[GRADIENT != 0][::7]
parts = gradient + 0.5 * gradient.abs() * torch.randn(256, len(gradient), generator=torch.Generator().manual_seed(0))  # [batches, numbers]
true = parts.double().sum(0)
off = {kind: ((swamped_sum(parts.bfloat16(), kind).double() - true).norm() / true.norm()).item() for kind in ("naive", "pairwise", "kahan")}
off["float32, rounded once"] = ((parts.sum(0).bfloat16().double() - true).norm() / true.norm()).item()
plots.bars({name: 100 * x for name, x in off.items()}, title="A gradient, added up over 256 batches in bf16", xlabel="relative error of the sum (%)",
           alt=f"Relative error of the sum in per cent: {', '.join(f'{name} {100 * x:.2g}' for name, x in off.items())}.")

# %% [markdown]
# ## 4 · `bf16_update` and `stochastic_round`: the lost update
#
# The same happens at every training step, when an update is subtracted from a weight. A weight near 0.1 has neighbours at a distance of
# 0.0005 in bf16; an update of less than half of that is lost, however often it comes.

# %%
def bf16_update(weight: BFloat16[Tensor, "*shape"], update: Float32[Tensor, "*shape"]) -> tuple[BFloat16[Tensor, "*shape"], float]:
    """The new weight, weight - update computed in float32 and rounded once to bf16; and the share of the nonzero updates that
    changed nothing (0.0 if there is none)."""
    ### BEGIN SOLUTION
    new = (weight.float() - update).to(torch.bfloat16)
    moves = update != 0
    lost = (new == weight) & moves
    return new, (lost.sum() / moves.sum().clamp(min=1)).item()
    ### END SOLUTION


# %%
check(bf16_update)

# %% [markdown]
# **Predict:** Adam's updates are about as long as the learning rate. For the network trained above, at which learning rate is half of the
# updates lost? And how many at 10⁻⁵, a usual rate at the end of a training?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
m, v = START["m"] / (1 - 0.9**300), START["v"] / (1 - 0.999**300)
direction = m / (v.sqrt() + 1e-8)  # Adam's step is the learning rate times this
rates = torch.logspace(-7, -1.5, 12)
weight = START["weights"].bfloat16()
lost = [100 * bf16_update(weight, lr * direction)[1] for lr in rates.tolist()]
plots.lines({"": lost}, x=rates, logx=True, marks=True, title="Lost to rounding", xlabel="learning rate", ylabel="updates that change nothing (%)", size=(7.2, 3.8),
            alt="Share of Adam's updates that a bf16 weight swallows: " + ", ".join(f"{x:.0f}% at {lr:.1g}" for lr, x in zip(rates.tolist(), lost)) + ".")

# %% [markdown]
# One cure costs nothing but random numbers. Let $|x|$ lie between its bf16 neighbours, at the fraction $f$ of the way from the one nearer
# to zero to the other. Take the outer one with probability $f$:
#
# $$\text{outer neighbour if } u < f, \text{ else the inner one}, \qquad u \text{ uniform in } [0, 1).$$
#
# Each number is now rounded worse, but *on average* it is exact, and so is a sum of many updates. In float32's 32 bits, bf16 is the upper
# 16, and $f$ is what the lower 16 say, divided by 2¹⁶.

# %%
def stochastic_round(x: Float32[Tensor, "*shape"], u: Float32[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """x rounded to bf16: to the neighbour away from zero where u < f, else to the one towards zero. f, 0 <= f < 1, is x's place
    between them, u uniform in [0, 1). x is finite (Gupta et al. 2015)."""
    ### BEGIN SOLUTION
    bits = x.view(torch.int32)
    below = bits & 0xFFFF
    outwards = (u * 2**16 < below).int()
    return (bits - below + (outwards << 16)).view(torch.float32).to(torch.bfloat16)
    ### END SOLUTION


# %%
check(stochastic_round)

# %% [markdown]
# **Predict:** a weight at 1 is moved upwards 400 times by 0.0002. Where does it end when it is rounded to the nearest? Where with
# stochastic rounding: one weight, and the mean of 64?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def walk(steps=400, size=2e-4, seed=0):
    """64 weights that begin at 1 and are moved upwards by `size` at each step."""
    g, nearest, random = torch.Generator().manual_seed(seed), torch.ones(64).bfloat16(), torch.ones(64).bfloat16()
    path = {"nearest": [], "stochastic, one weight": [], "stochastic, mean of 64": []}
    for _ in range(steps):
        nearest, _ = bf16_update(nearest, torch.full((64,), -size))
        random = stochastic_round(random.float() + size, torch.rand(64, generator=g))
        for name, x in zip(path, (nearest[0], random[0], random.float().mean())):
            path[name].append(float(x))
    return path

path = walk()
plots.lines({**path, "exact": [1 + 2e-4 * k for k in range(1, 401)]}, marks=False, title="400 updates of 0.0002, beginning at 1", xlabel="step", ylabel="weight", size=(8.4, 3.8),
            alt=f"A weight that begins at 1 and should rise to 1.08. Rounded to the nearest it ends at {path['nearest'][-1]:.3f}; rounded at random one weight ends at "
                f"{path['stochastic, one weight'][-1]:.3f} and the mean of 64 at {path['stochastic, mean of 64'][-1]:.3f}.")

# %% [markdown]
# Rounded to the nearest, the weight never moves: each update is smaller than half a distance. Rounded at random a single weight wanders
# in jumps of whole distances, and the mean follows the exact line.

# %% [markdown]
# ## 5 · `master_weight_step`: sixteen bits more
#
# The usual cure (Micikevicius et al. 2018) is to keep, beside the bf16 weight that the network computes with, a *master weight* in
# float32 that collects the updates. The weight is the master rounded to bf16, made anew at each step. That is 2 + 4 bytes for every
# weight.
#
# It works with 2 + 2 as well: the upper 16 bits of the master *are* a bf16 number, so only the lower 16 need to be kept beside it. The
# weight is then the master cut off, not rounded, and cutting off always goes towards zero. How much that is you will see below. Both
# forms get all points of the tests. The points for the saved bytes, under "How fast?", go to the second.

# %%
def master_weight_step(weight: BFloat16[Tensor, "*shape"], update: Float32[Tensor, "*shape"],
                       state: dict[str, Tensor]) -> tuple[BFloat16[Tensor, "*shape"], dict[str, Tensor]]:
    """One step of weights whose float32 master loses nothing: master <- master - update, in float32. Returns the bf16 weight, one of
    the master's two neighbours in bf16, and the new state: what is needed beside the weight to go on. `state` is empty
    before the first step, where the master is the weight itself."""
    ### BEGIN SOLUTION
    low = state.get("low", torch.zeros_like(weight, dtype=torch.int16))
    bits = (weight.view(torch.int16).to(torch.int32) << 16) | (low.to(torch.int32) & 0xFFFF)
    bits = (bits.view(torch.float32) - update).view(torch.int32)
    low = (bits << 16) >> 16  # the lower half, with a sign
    return ((bits - (low & 0xFFFF)) >> 16).to(torch.int16).view(torch.bfloat16), {"low": low.to(torch.int16)}
    ### END SOLUTION


# %%
check(master_weight_step)

# %% [markdown]
# Now the first story: *late* in training, at a low learning rate. The network above goes on for 120 steps at a rate of 10⁻⁵. It computes
# in bf16 in all four runs, and rounds its weights for that; only the way in which they are stored differs. (About 15 seconds.)
#
# **Predict:** how much of the gain of float32 weights is left with bf16 weights? With stochastic rounding? With a master?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
dice = torch.Generator().manual_seed(0)
WAYS = {"float32": None,
        "bf16": lambda weight, update, state: (bf16_update(weight, update)[0], state),
        "bf16, stochastic": lambda weight, update, state: (stochastic_round(weight.float() - update, torch.rand(weight.shape, generator=dice)), state),
        "bf16 and a master": master_weight_step}


def go_on(way: str, start: dict, lr: float, steps: int = 120, every: int = 20, seed: int = 0) -> tuple[list[float], float]:
    """Go on from a checkpoint after batch 300 with the weights stored in one of WAYS: loss on held-out text every so many steps, and the
    share of lost updates."""
    net = precision.Rounded(precision.transformer(seed), torch.bfloat16)
    dice.manual_seed(seed)
    trainer = precision.Trainer(net, text, lr=lr, seed=seed, batch=BATCH, apply=WAYS[way])
    trainer.restore(start)
    losses = [trainer.evaluate()]
    for first in range(300, 300 + steps, every):
        losses.append(trainer.run(first, first + every).evaluate())
    return losses, sum(trainer.lost) / max(1, len(trainer.lost))

# %% tags=["experiment"]
late = {way: go_on(way, START, lr=1e-5) for way in WAYS}
begin = late["float32"][0][0]  # the others begin with rounded weights, a little worse or better
gains = {way: [1000 * (begin - x) for x in losses] for way, (losses, _) in late.items()}
plots.lines(gains, x=range(0, 121, 20), title="Going on at a learning rate of 0.00001", xlabel="further steps", ylabel="gain on held-out text (0.001 nats)",
            size=(8.4, 4), alt="Loss gained after 120 further steps, in thousandths of a nat: " + ", ".join(f"{way} {row[-1]:.1f}" for way, row in gains.items()) + ".")
print("updates after which the bf16 weight was the same:", ", ".join(f"{way} {share:.0%}" for way, (_, share) in late.items() if way != "float32"))
first, _ = master_weight_step(weight, 1e-5 * direction, {})
print(f"your master after its first update: {(first.abs() < weight.abs()).float().mean():.0%} of the weights are nearer to zero than before, the length of all "
      f"together has changed by {100 * (first.float().norm() / weight.float().norm() - 1):+.2f}%")

# %% [markdown]
# With bf16 weights training all but stands still, and the loss does not tell: it just looks flat, as if there were nothing more to learn.
# Both cures bring the whole gain back, although under them, too, nearly every single update leaves its weight as it is. What matters is
# that the small steps are collected, in a master or in the average over many weights and steps.
#
# A master that is cut off does better than float32 at first, and that is not its merit. At its first update every weight whose master came
# to lie a little nearer to zero falls by a whole distance of bf16: 44% of them did here, and all weights together became 0.16% shorter.
# That is a small *weight decay*, once, and at this point of this training it happens to help: 4.5 thousandths of a nat after 20 steps,
# against 2.3 with float32 weights. With a master that is rounded (not drawn) it is 1.9, and there is no jump. When two curves differ, look
# for all that differs between them.
#
# Nothing has diverged here. This is the quiet way in which sixteen bits harm a training.

# %% [markdown]
# ## 6 · `dynamic_loss_scale`: move the gradients to where fp16 is
#
# fp16 ends at 6·10⁻⁸ below and at 65504 above. Gradients are small, and many would become zero. So the loss is multiplied by a *scale*
# $S$ before the backward pass, which multiplies every gradient by it, and the gradients are divided by $S$ afterwards, in float32. Which
# $S$? As large as possible: let it grow until something overflows (as `torch.amp.GradScaler` does).
#
# - If any gradient is infinite or NaN, the step is *skipped*, $S$ is divided by `factor`, and the count of good steps starts again at 0.
# - Otherwise the step is good. After `interval` good steps in a row $S$ is multiplied by `factor`, and the count starts again.
#
# **Predict:** the transformer is trained for 60 steps entirely in fp16, once for each constant scale from 2⁻¹² to 2²⁴. For which scales
# does that go wrong, and how does it look on either side?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def dynamic_loss_scale(grads: list[Tensor], scale: float, good_steps: int, interval: int = 2000,
                       factor: float = 2.0) -> tuple[list[Tensor] | None, float, int]:
    """What to do with the fp16 gradients of a loss that was multiplied by `scale`: the true gradients in float32, or None to skip
    the step; the scale of the next step; the number of good steps in a row since the scale last changed."""
    ### BEGIN SOLUTION
    if not all(g.isfinite().all() for g in grads):
        return None, scale / factor, 0
    true = [g.float() / scale for g in grads]
    if good_steps + 1 >= interval:
        return true, scale * factor, 0
    return true, scale, good_steps + 1
    ### END SOLUTION


# %%
check(dynamic_loss_scale)

# %% [markdown]
# (About 12 seconds. The dynamic scale may grow after 4 good steps already, so that 60 steps show how it moves; usual are 2000.)

# %%
def in_fp16(scale, first: float, steps: int = 60) -> precision.Trainer:
    """The transformer trained with every result and every gradient in fp16, until the loss is NaN."""
    net = precision.Rounded(precision.transformer(0), torch.float16)
    return precision.Trainer(net, text, lr=2e-3, batch=BATCH, scale=scale, first_scale=first).run(0, steps, until=math.isnan)

constant = lambda grads, scale, good: ([g.float() / scale for g in grads], scale, good)
growing = lambda grads, scale, good: dynamic_loss_scale(grads, scale, good, interval=4)

# %% tags=["experiment"]
powers = list(range(-12, 25, 4))
runs = [in_fp16(constant, 2.0**k).losses for k in powers]
final = [sum(x[-10:]) / 10 for x in runs]
moving = {f"begins at 2^{k}": in_fp16(growing, 2.0**k) for k in (24, -12)}
fig, (left, right) = plots.figure(columns=2, size=(11, 4), alt="Left: loss after 60 steps in fp16 for constant scales: " + ", ".join(
    f"2^{k} {'not a number' if math.isnan(x) else format(x, '.2f')}" for k, x in zip(powers, final)) + ". Right: the dynamic scale against the step: " + "; ".join(
    f"{name}, ends at 2^{math.log2(t.scales[-1]):.0f} with a loss of {sum(t.losses[-10:]) / 10:.2f}" for name, t in moving.items()) + ".")
plots.lines({"": final}, x=powers, ax=left, alt="", title="A constant scale", xlabel="log2 of the scale", ylabel="loss after 60 steps (nats)")
for k, x in zip(powers, final):
    if math.isnan(x):
        left.annotate("NaN", (k, min(e for e in final if e == e)), ha="center", va="center", color=plots.INK)
left.set_xlim(powers[0] - 1, powers[-1] + 1)
plots.lines({name: [math.log2(x) for x in t.scales] for name, t in moving.items()}, ax=right, alt="", title="A dynamic scale (interval 4)", xlabel="step",
            ylabel="log2 of the scale")
plots.show(fig)
print("constant scales: NaN " + (", ".join(f"at 2^{k} in step {len(x) - 1}" for k, x in zip(powers, runs) if math.isnan(x[-1])) or "nowhere"))
print("dynamic ones: " + ", ".join(f"{name}: loss {sum(t.losses[-10:]) / 10:.3f}, {sum(a > b for a, b in zip(t.scales, t.scales[1:]))} steps skipped" for name, t in moving.items()))

# %% [markdown]
# Too small a scale is the soft failure: gradients become zero one after the other, and training slows down without a sound. Too large a
# scale is the hard one: the first overflow makes a NaN, and NaN never goes away. Between the two there is room for many powers of two,
# and the dynamic scale finds it from either side, from above at the price of skipped steps.
#
# It then stays near 2¹⁶, where the constant scale ended in NaN. That is no contradiction. At 2¹⁶ nearly every step goes well: in the
# constant run the first 35 did, until two numbers of one gradient overflowed, and this one step destroyed all weights. The dynamic scale
# skips that step. Each time it has been lucky for long enough it grows too large again, so it lives at the edge, and the interval says how
# often it looks over it. bf16, whose exponent is that of float32, needs none of this.

# %% [markdown]
# ## 7 · `stable_softmax_attention`: sixteen bits in, sixteen bits out, thirty-two between
#
# $$\text{attention}(Q, K, V) = \operatorname{softmax}\!\Big(\frac{Q K^\top}{\sqrt{d}} + \text{mask}\Big) V.$$
#
# Two things must not happen in 16 bits. A score near 100 has neighbours 0.5 away in bf16, and softmax turns a difference of 0.5 into a
# factor of 1.65. And the exponential of 100 is too large even for float32: subtract each row's maximum first, which does not change the
# result,
#
# $$\operatorname{softmax}(z)_j = \frac{e^{z_j - \max z}}{\sum_k e^{z_k - \max z}}.$$
#
# Hardware multiplies 16-bit numbers and adds up in 32 bits. Imitate that: convert what comes in to float32, compute (write the softmax
# yourself, with exp), and round once at the end.
#
# **Predict:** in bf16, from which size of the scores on is an attention whose scores are rounded wrong by 1%? And yours?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def stable_softmax_attention(q: Float[Tensor, "*batch t d"], k: Float[Tensor, "*batch t d"],
                             v: Float[Tensor, "*batch t d"]) -> Float[Tensor, "*batch t d"]:
    """Causal attention (each place sees itself and earlier ones), everything inside in float32, rounded once to q's dtype (Vaswani et
    al. 2017, equation 1)."""
    ### BEGIN SOLUTION
    q, k, v, dtype = q.float(), k.float(), v.float(), q.dtype
    t, d = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(d)  # [*batch, t, t]
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, -math.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return (weights @ v / weights.sum(-1, keepdim=True)).to(dtype)
    ### END SOLUTION


# %%
check(stable_softmax_attention)

# %% tags=["experiment"]
def rounded_attention(q, k, v):
    """Every result in bf16: scores, weights, output."""
    t = q.shape[-2]
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ v

g = torch.Generator().manual_seed(0)
q, k, v = torch.randn(3, 8, 64, 16, generator=g).double()  # [head, t, d]
sizes, wrong = [2.0**i for i in range(-1, 9)], {"scores in bf16": [], "stable": [], "inputs rounded, nothing else": []}
for size in sizes:
    big = (size * q / (q @ k.mT / 4).abs().max()).bfloat16(), k.bfloat16(), v.bfloat16()  # the largest score is about `size`
    exact = F.scaled_dot_product_attention(*(x.double() for x in big), is_causal=True)
    before = F.scaled_dot_product_attention(size * q / (q @ k.mT / 4).abs().max(), k, v, is_causal=True)
    for name, y, true in zip(wrong, (rounded_attention(*big), stable_softmax_attention(*big), exact), (exact, exact, before)):
        wrong[name].append(100 * ((y.double() - true).norm() / true.norm()).item())
plots.lines(wrong, x=sizes, logx=True, logy=True, limits={"one rounding, at most": 100 * 2.0**-8}, title="Attention with bf16 inputs",
           xlabel="largest score", ylabel="relative error (%)", size=(8.8, 4), alt="Relative error of attention, in per cent, from largest scores of 0.5 to 256: " + "; ".join(
                f"{name} {row[0]:.2g} to {row[-1]:.2g}" for name, row in wrong.items()) + ".")

# %% [markdown]
# With rounded scores the error grows with the scores, because their absolute error does: it reaches 1% at scores of about 128. (More might
# be feared of a factor of 1.65; but where scores are so large, one of them mostly has all the weight.) The stable form stays below one
# rounding whatever the size, so it never gets there. But look at the third curve: rounding $q$ and $k$ themselves to bf16, before any
# attention, does about as much harm, and no care inside can undo that.
#
# For this reason torch's kernels add up in float32 inside, whatever they return, and on a GPU *autocast* lets softmax and LayerNorm
# return float32 as well. A text says "tf32" here. That makes no sense: tf32 is a format in which matrix units read their factors, and
# softmax has none.

# %% tags=["experiment"]
with torch.autocast("cpu", dtype=torch.bfloat16):
    scores = torch.randn(4, 4).bfloat16()
    kinds = {"a matrix product": (torch.randn(4, 4) @ torch.randn(4, 4)).dtype, "softmax of bf16": scores.softmax(-1).dtype,
             "LayerNorm of bf16": F.layer_norm(scores, (4,)).dtype, "the loss": F.cross_entropy(scores, torch.arange(4)).dtype}
print("under autocast:", ", ".join(f"{name} {str(kind)[6:]}" for name, kind in kinds.items()))
claims.show("slip-softmax-tf32", measured=f"torch has {'a' if hasattr(torch, 'tfloat32') else 'no'} tensor type tf32; "
            f"under autocast softmax gives {str(kinds['softmax of bf16'])[6:]} here")

# %% [markdown]
# ## 8 · `thermometer` and `early_warning`: see it coming
#
# The second story: *divergence*. The authors of large models watch more than the loss: the largest number in each part of the network,
# and the norm of the gradient. Such a *thermometer* must cost next to nothing, so that it can stay on all the time, and it must not break
# when the patient does.

# %%
def thermometer(activations: dict[str, Tensor], grads: list[Tensor]) -> dict[str, float]:
    """For each name the largest absolute value, and under "gradient norm" the Euclidean norm of all gradients together, computed in
    float32 (0.0 if there are none). All are numbers of Python, no tensors. A NaN anywhere makes its reading NaN."""
    ### BEGIN SOLUTION
    readings = {name: x.abs().max().item() for name, x in activations.items()}
    squares = [g.float().square().sum().item() for g in grads]
    return readings | {"gradient norm": math.sqrt(sum(squares))}
    ### END SOLUTION


# %%
check(thermometer)

# %% [markdown]
# A run that is made to diverge: from step 60 on the learning rate grows by 5% at each step. All in float32, so that no number format can
# be blamed. Beside it a run that keeps its rate. We say that the loss *shows* the divergence when the mean of five losses is a whole nat
# above the best mean of twenty. (About 8 seconds.)
#
# **Predict:** which of these rises first, and how long before the loss: the attention scores, the residual, the logits, or the gradient
# norm?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def watch(activations, grads) -> dict[str, float]:
    """The readings of your thermometer, as the largest of all blocks."""
    return precision.overall(thermometer(activations, grads))


def climbing(dtype=None, keep=(), seed: int = 0, growth: float = 1.05, steps: int = 240, **settings) -> precision.Trainer:
    """Train with a rate that grows by the factor `growth` at each step from step 60 on, until the loss shows a divergence."""
    rate = lambda step: 2e-3 * min(1, (step + 1) / 20) * growth ** max(0, step - 60)
    net = precision.Rounded(precision.transformer(seed), dtype, keep)
    trainer = precision.Trainer(net, text, lr=rate, seed=seed, batch=BATCH, watch=watch, **settings)
    return trainer.run(0, steps, until=lambda loss: precision.shown(trainer.losses) is not None)

# %% tags=["experiment"]
healthy, diverging = climbing(growth=1.0, steps=160), climbing()
when = precision.shown(diverging.losses)
smooth = lambda x, n=5: (torch.arange(n - 1, len(x)), torch.tensor(x).unfold(0, n, 1).mean(1))  # each mean at its last step
turns = int(smooth(diverging.losses)[1].argmin()) + 4
readings = {name: torch.tensor([h[name] for h in diverging.heat]) for name in diverging.heat[0]}
risen = {name: x / x[50:60].mean() for name, x in readings.items()}
rises = lambda factor: {name: next((step for step in range(60, len(x)) if x[step] > factor), None) for name, x in risen.items()}
in_words = lambda numbers: ", ".join(f"{name} {'never' if x is None else x}" for name, x in numbers.items())
fig, (left, right) = plots.figure(columns=2, size=(11, 4), alt=f"Left: the loss of the run with a growing rate shows a divergence at step {when}; the other falls. "
    f"Right: four thermometers of that run, as multiples of their readings at steps 50 to 60. First above ten times that: {in_words(rises(10))}.")
plots.lines({"rate grows from step 60 on": smooth(diverging.losses), "rate is kept": smooth(healthy.losses)}, ax=left, alt="", marks=False,
            title="Loss, mean of five steps", xlabel="step", ylabel="training loss (nats)")
plots.lines(risen, ax=right, alt="", logy=True, marks=False, title="The thermometers of the run whose rate grows", xlabel="step", ylabel="reading / reading at step 55")
right.legend(loc="upper left", frameon=False, labelcolor=plots.INK, fontsize=9)
for ax in (left, right):
    ax.axvline(when, color=plots.INK, linestyle=(0, (2, 2)), linewidth=1.2)
right.annotate("the loss shows it", (when, risen["scores"].max().item()), xytext=(-6, 0), textcoords="offset points", ha="right", color=plots.INK, fontsize=9)
plots.show(fig)
print(f"the mean of five losses is lowest at step {turns}; the loss shows it at step {when}")
for factor in (5, 10, 100):
    print(f"first {factor} times as high, at step: {in_words(rises(factor))}")

# %% [markdown]
# Inside, the fire burns before any smoke comes out. Attention scores and then the residual are ten times as high before or just as the
# loss turns, where it still is that of the healthy run, and a hundred times soon after the two losses part (near step 125 here). The
# gradient norm, the one thermometer that everybody has, and the logits never become five times as high. How long the warning time is
# depends on when we say that the loss shows it: a whole nat is late. Whoever has the healthy run to compare with sees it 50 steps earlier.
#
# Now write the alarm. You have 32 recorded runs in `RUNS`, half of them diverging (some slower, some faster than the one above, with
# norms before or after the branches), half healthy. The grader has 32 others. A warning counts if it comes at least five steps before the
# loss shows the divergence, and an alarm in a healthy run is a false one. Wanted are 13 or more of the 16 diverging runs, and 1 false alarm
# at most. Look at the readings before you choose a rule:

# %% tags=["experiment"]
from safetensors.torch import load_file
from course.check import find_lab

recorded = load_file(find_lab("34_bf16_divergence") / "runs.safetensors")
NAMES = ("scores", "residual", "logits", "gradient norm")
RUNS = [({name: row[:end] for name, row in zip(NAMES, heat)}, shown if shown >= 0 else None)
        for heat, shown, end in zip(recorded["heat"], recorded["shown"].tolist(), recorded["steps"].tolist())]
fig, panels = plots.figure("32 recorded runs", columns=4, size=(12, 3.4), alt="The readings of four thermometers over the steps of 16 diverging and 16 healthy runs. In the scores and "
    "the residual the diverging runs leave the healthy ones by far, in the logits by less; in the gradient norm the two kinds overlap.")
for ax, name in zip(panels, NAMES):
    for k, (heat, when_shown) in enumerate(RUNS):
        ax.plot(heat[name], color=plots.PALETTE[0 if when_shown is None else 5], linewidth=0.9, alpha=0.7,
                label={0: "diverging", 1: "healthy"}.get(k) if name == "scores" else None)
    ax.set(yscale="log", xlabel="step")
    ax.set_title(name, loc="left", **plots.TITLE)
panels[0].set_ylabel("reading")
panels[0].legend(frameon=False, labelcolor=plots.INK, fontsize=9)
plots.show(fig)

# %%
def early_warning(heat: dict[str, Float32[Tensor, "steps"]]) -> int | None:
    """The first step at which the thermometers tell that this run will diverge, or None. `heat` holds the readings "scores",
    "residual", "logits" (largest of all blocks) and "gradient norm" of steps 0, 1, 2, ... Only steps up to the alarm may be used."""
    ### BEGIN SOLUTION
    alarms = (~(heat["scores"] <= 32)).nonzero()  # a NaN is an alarm, too
    return int(alarms[0]) if len(alarms) else None
    ### END SOLUTION


# %%
check(early_warning)

# %% tags=["experiment"]
ends = [(early_warning(heat), when_shown) for heat, when_shown in RUNS]
caught = sorted((shown - alarm, shown, alarm) for alarm, shown in ends if shown is not None and alarm is not None and alarm <= shown - 5)
false = sum(alarm is not None for alarm, shown in ends if shown is None)
def swept(name):
    """(false alarms, runs caught in time) of a threshold on one thermometer, for all thresholds."""
    points = []
    for limit in torch.logspace(-1, 4, 150).tolist():
        hits = [next(iter((heat[name] > limit).nonzero().flatten().tolist()), None) for heat, _ in RUNS]
        points.append((sum(h is not None for h, (_, shown) in zip(hits, RUNS) if shown is None),
                       sum(h is not None and h <= shown - 5 for h, (_, shown) in zip(hits, RUNS) if shown is not None)))
    return tuple(zip(*sorted(set(points))))

fig, (left, right) = plots.figure(columns=2, size=(11.6, 4.2), alt=f"Left: your alarm came in time in {len(caught)} diverging runs, "
    + (f"{caught[0][0]} to {caught[-1][0]} steps ahead" if caught else "") + f"; {false} false alarms. Right: runs caught against false alarms for all thresholds on one thermometer.")
for y, (ahead, shown, alarm) in enumerate(caught):
    left.plot([alarm, shown], [y, y], color=plots.PALETTE[0], linewidth=2.5)
    left.plot(alarm, y, "o", color=plots.PALETTE[5], markersize=5, label="alarm" if y == 0 else None)
    left.plot(shown, y, "|", color=plots.INK, markersize=9, markeredgewidth=2, label="the loss shows it" if y == 0 else None)
left.set_title(f"Your alarm: {len(caught)} of {sum(shown is not None for _, shown in ends)} in time, {false} false", loc="left", **plots.TITLE)
left.set(xlabel="step", ylabel="diverging run", yticks=[])
if caught:
    left.legend(frameon=False, labelcolor=plots.INK, fontsize=9)
plots.lines({name: swept(name) for name in NAMES}, ax=right, alt="", title="A threshold on one thermometer",
            xlabel="false alarms, of 16 healthy runs", ylabel="in time, of 16 diverging runs")
right.legend(loc="lower right", frameon=False, labelcolor=plots.INK, fontsize=9)
plots.show(fig)

# %% [markdown]
# The upper left corner is where an alarm should be ("in time" is five steps or more ahead in both panels). A simple threshold on the
# attention scores gets there, and one on the residual nearly; the logits warn of 13 runs without a false alarm. The gradient norm has to be
# paid for: 3 of 16 without a false alarm, 10 with one, 15 with three. What it shows of a divergence, healthy runs show too.

# %% [markdown]
# ## Is it the sixteen bits?
#
# The same run once more, in other formats: bf16 throughout; bf16 with scores, softmax, LayerNorm and residual in float32, the stabilisers
# that a text praises; and fp16. (About 15 seconds.)
#
# **Predict:** which of them diverges first, and which not at all?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
KEPT = ("scores", "softmax", "norm", "residual")
FORMATS_TRIED = {"float32": (None, ()), "bf16": (torch.bfloat16, ()), "bf16, stabilised": (torch.bfloat16, KEPT), "fp16": (torch.float16, ())}

# %% tags=["experiment"]
tried = {name: diverging if dtype is None else climbing(dtype, keep) for name, (dtype, keep) in FORMATS_TRIED.items()}
shown_at = {name: precision.shown(t.losses) for name, t in tried.items()}
plots.lines({name: smooth(t.losses) for name, t in tried.items()}, marks=False, size=(8.8, 4), title="The same growing rate in four formats", xlabel="step",
            ylabel="training loss, mean of five (nats)", alt=f"Loss against step. The loss shows the divergence at step: {shown_at}.")
print("the loss shows it at step:", ", ".join(f"{name} {step}" for name, step in shown_at.items()))

# %% [markdown]
# One seed says little: two runs that differ in a rounding soon differ in everything. Ten seeds are below, under "The claim". What sets fp16
# apart from the others is that its numbers end so early, at 65504. Plant larger numbers, as large models grow them by themselves: what goes
# into one attention of the trained network is multiplied by 200, and your thermometer finds the place where it overflows.

# %% tags=["experiment"]
def located(factor, dtype):
    """The largest reading of each segment of the trained network, in the order of computing, with numbers `factor` times as large going into block 1's attention."""
    model = precision.transformer(0)
    t = precision.Trainer(precision.Rounded(model, dtype), text, batch=BATCH)
    t.restore(START)
    with torch.no_grad():
        model.blocks[1].norm1.weight *= factor
        t.net(t.data(300)[0])
    return thermometer(t.net.seen, [])

cases = {"fp16": (1, torch.float16), "fp16, 200 times as large": (200, torch.float16), "bf16, 200 times as large": (200, torch.bfloat16)}
places = {label: located(*case) for label, case in cases.items()}
segments = [name for name in places["fp16"] if name.startswith(("block 0", "block 1", "block 2"))]
over = {label: next((name for name in read if not math.isfinite(read[name])), None) for label, read in places.items()}
fig, ax = plots.figure(size=(10, 4), alt="Largest absolute value in each segment of three blocks, in the order of computing. "
                       f"First segment that is not finite: {over}. The bf16 curve goes on beyond fp16's end.")
plots.lines({label: [read[name] if math.isfinite(read[name]) else math.nan for name in segments] for label, read in places.items()},
            ax=ax, alt="", logy=True, limits={"fp16 ends at 65504": 65504.0}, title="Largest number in each segment", xlabel="", ylabel="largest absolute value")
ax.set_xticks(range(len(segments)), segments, rotation=90, fontsize=7)
for label, name in over.items():
    if name in segments:  # nothing behind this place is a number any more
        last = segments[segments.index(name) - 1]
        ax.annotate("then inf and NaN", (segments.index(last), places[label][last]), xytext=(-4, 12), textcoords="offset points", ha="right", color=plots.INK, fontsize=9)
plots.show(fig)
for label, name in over.items():
    print(f"{label}: {'all finite' if name is None else 'first not finite in ' + name}")

# %% [markdown]
# So where do the stabilisers earn their keep? Plant a different kind of large number: add the same constant to all channels of the
# residual at the network's entrance. In exact arithmetic nothing changes, because every LayerNorm takes the mean away first. (About 10
# seconds.)
#
# **Predict:** the constants are 16 and 256, and the residual's own numbers are near 0.1 at first. Does bf16 suffer from both? Which
# stabilisers help: scores and softmax, or residual and LayerNorm?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def with_mean(offset, dtype, keep=(), steps=40):
    """Training loss, the mean of the last ten steps, with a constant added to all channels."""
    t = precision.Trainer(precision.Rounded(precision.transformer(0), dtype, keep), text, lr=2e-3, batch=BATCH)
    with torch.no_grad():
        t.net.model.places.weight += offset
    return sum(t.run(0, steps).losses[-10:]) / 10

offsets = (0, 16, 256)
settings = {"float32": (None, ()), "bf16": (torch.bfloat16, ()), "bf16, scores and softmax in float32": (torch.bfloat16, ("scores", "softmax")),
            "bf16, residual and LayerNorm in float32": (torch.bfloat16, ("residual", "norm"))}
means = {f"constant {offset}": {name: with_mean(offset, *setting) for name, setting in settings.items()} for offset in offsets}
plots.bars(means, title="40 steps with a constant in the residual", xlabel="training loss (nats)", form="{:.2f}", width=9,
           alt="Training loss after 40 steps. " + "; ".join(f"{group}: " + ", ".join(f"{name} {x:.2f}" for name, x in row.items()) for group, row in means.items()) + ".")

# %% [markdown]
# Here precision makes the whole difference, and the right two stabilisers undo all of it: next to 256 the numbers of bf16 are 2 apart, next
# to 16 still 0.125, and much of what the blocks have to say to each other is smaller. The other two do nothing for it. A stabiliser helps
# against the number that it was made for.

# %% tags=["experiment"]
claims.show("34-fp16-nan", measured="; ".join(f"{label}: {'all finite' if name is None else 'overflow in ' + name}" for label, name in over.items()))

# %% [markdown]
# ## How fast?
#
# Sixteen bits were not invented for the sake of memory alone: matrix units multiply them several times as fast. One more function, the
# one that *mixed precision* is made of. The parameters stay in float32, both factors of the product are rounded to bf16 on the way in,
# and the result comes back as float32:
#
# $$y = \text{float32}\big(\text{bf16}(x)\, \text{bf16}(W)^\top\big) + b.$$

# %%
def mixed_linear(x: Float32[Tensor, "n i"], weight: Float32[Tensor, "o i"], bias: Float32[Tensor, "o"] | None = None) -> Float32[Tensor, "n o"]:
    """x @ weight.T + bias with the product in bf16: what goes into it is rounded to bf16, what comes out is converted to float32,
    and the bias is added in float32."""
    ### BEGIN SOLUTION
    product = F.linear(x.to(torch.bfloat16), weight.to(torch.bfloat16)).float()
    return product if bias is None else product + bias
    ### END SOLUTION


# %%
check(mixed_linear)

# %% [markdown]
# A text says that mixed precision runs the backward pass in float32. Ask autograd: in which format do the gradients travel between two
# layers?

# %% tags=["experiment"]
seen = {}
x, w1, w2 = torch.randn(8, 16), torch.randn(16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
with torch.autocast("cpu", dtype=torch.bfloat16):
    hidden = F.linear(x, w1)
    hidden.register_hook(lambda grad: seen.update({"between the layers": str(grad.dtype)[6:]}))
    F.linear(hidden.relu(), w2).float().square().mean().backward()
seen["of the weights"] = str(w1.grad.dtype)[6:]
print("gradients:", ", ".join(f"{name} {kind}" for name, kind in seen.items()))
claims.show("slip-backward-fp32", measured=", ".join(f"{name} {kind}" for name, kind in seen.items()))

# %% [markdown]
# The graded measurement: a linear layer of 2048 by 2048 for 1024 rows, against float32, with all conversions counted. Where neither the
# processor nor a GPU has instructions for bf16, it is deferred. What can be gained depends on these: avx512_bf16 multiplies twice as many
# pairs with an instruction as float32 does, so about two can be had there. Wanted are 1.3 there, because whatever else the machine does takes
# a part of it. A matrix unit (AMX, or a GPU's tensor cores) can give several times that, and 2.5 are wanted of it. (About 10 seconds.)

# %%
speed(mixed_linear)

# %% [markdown]
# When does it pay, and how far is it from what this machine can do? (About 15 seconds, with the training steps below.)
#
# **Predict:** at which size does bf16 begin to gain? And a whole training step, which does more than multiply: does it gain as much?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
device = default_device()
sizes = (128, 256, 512, 1024) if device.type == "cpu" else (512, 1024, 2048, 4096)
pair = lambda n: lambda seed: (torch.randn(n, n, device=device), torch.randn(n, n, device=device) / n**0.5)
measured = {n: timing.compare(mixed_linear, F.linear, pair(n), seconds=0.5) for n in sizes}
halves = {n: timing.compare(lambda x, w: x @ w, lambda x, w: x.float() @ w.float(), lambda seed: tuple(t.bfloat16() for t in pair(n)(seed)), seconds=0.3) for n in sizes}
rates = {"float32": [2 * n**3 / r.baseline_seconds / 1e9 for n, r in measured.items()],
         "mixed_linear": [2 * n**3 / r.candidate_seconds / 1e9 for n, r in measured.items()],
         "bf16, no conversions": [2 * n**3 / r.candidate_seconds / 1e9 for n, r in halves.items()]}
peaks = {f"best of {str(dtype)[6:]}": timing.peak_flops(device, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)}
fig, ax = plots.figure(size=(9, 4.2), alt=f"Rates from n = {sizes[0]} to {sizes[-1]}, in billion operations a second: " + "; ".join(
    f"{name} {', '.join(f'{x:.3g}' for x in row)}" for name, row in rates.items()) + ". Limits: " + ", ".join(f"{name} {x:.3g}" for name, x in peaks.items()) + ".")
plots.lines(rates, x=sizes, logx=True, logy=True, limits=peaks, ax=ax, alt="", title=f"Matrix products on this {device.type}", xlabel="n, of n by n matrices",
            ylabel="billion operations a second")
ax.set_xticks(sizes, sizes)
ax.set_xticks([], minor=True)
ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, labelcolor=plots.INK, fontsize=9)
plots.show(fig)
print(", ".join(f"n = {n}: {r.ratio:.1f} times" for n, r in measured.items()), "as fast as float32, conversions included")

# %% tags=["experiment"]
def training_step(dtype=None, keep=(), d=192):
    """A step of a larger transformer, computed in the format itself and not imitated."""
    model = models.Transformer(d=d, layers=2, heads=4, length=64)
    trainer = precision.Trainer(precision.Rounded(model, dtype, keep, real=True), text, lr=1e-4, batch=16)
    return trainer.step

kinds = {"float32": training_step(), "bf16": training_step(torch.bfloat16), "bf16, stabilised": training_step(torch.bfloat16, KEPT)}
pairs = {"bf16 / float32": ("bf16", "float32"), "stabilised / bf16": ("bf16, stabilised", "bf16")}
ratios = {name: timing.compare(kinds[a], kinds[b], lambda seed: (seed,), seconds=2.5, device="cpu") for name, (a, b) in pairs.items()}
times = {name: 100 / r.ratio for name, r in ratios.items()}
plots.bars(times, intervals={name: (100 / r.high, 100 / r.low) for name, r in ratios.items()}, limits={"as long": 100.0}, form="{:.0f}%", width=8,
           title="A training step, on one thread of the CPU (thin lines: 95% intervals)", xlabel="time (%)",
           alt="Time of a training step in per cent: " + ", ".join(f"{name} {x:.0f}" for name, x in times.items()) + ".")

# %% [markdown]
# A step gains less than a product does: softmax, LayerNorm, the loss and the optimiser move bytes and multiply nothing, and the
# optimiser's bytes are float32 as before. The stabilisers cost what it costs to carry some tensors in four bytes instead of two; how much
# that is depends on the machine and on the model's width, because products grow faster with the width than all the rest.
#
# On Nvidia's GPUs since 2020 there is a third way, tf32: float32 tensors, whose factors the matrix unit reads with 10 bits of mantissa. A
# text says that PyTorch uses it without being asked.

# %% tags=["experiment"]
asked = torch.get_float32_matmul_precision()
print(f'precision of float32 matrix products: "{asked}"', "(no tf32)" if asked == "highest" else "(tf32 allowed)")
if device.type == "cuda" and describe().bf16_tensor_cores:
    torch.set_float32_matmul_precision("high")
    tf32 = timing.compare(F.linear, F.linear, pair(4096), seconds=0.5).candidate_seconds
    torch.set_float32_matmul_precision(asked)
    print(f"4096 by 4096: bf16 {measured[4096].ratio:.1f} times as fast as float32, tf32 {measured[4096].baseline_seconds / tf32:.1f} times")
claims.show("slip-tf32-default", measured=f'the setting of matrix products is "{asked}" here')

# %% [markdown]
# The other count is bytes. A bf16 weight with a float32 master beside it takes six; your `master_weight_step` is counted here, weight and
# state together. The limit is four: 32 bits are needed, and the weight can be 16 of them. (Adam's $m$ and $v$ take another eight.)

# %%
speed(master_weight_step)

# %% [markdown]
# ## The claim
#
# The full run: ten seeds of the growing rate, in eight settings. Each point is a run: the step at which its loss shows the divergence.

# %% tags=["experiment"]
full = claims.full_run("34_bf16_divergence")
growing = full["formats"]["growing"]
fig, ax = plots.figure("Ten seeds (single stabilisers: five)", "step at which the loss shows the divergence", size=(9, 4.2),
                       alt="Step at which the loss shows a divergence, by setting: " + "; ".join(
    f"{name} {sum(x is not None for x in row)} of {len(row)} runs, median {sorted(x or 240 for x in row)[len(row) // 2]}" for name, row in growing.items()) + ".")
for y, (name, row) in enumerate(growing.items()):
    seen_at = [x for x in row if x is not None]
    ax.plot(seen_at, [y] * len(seen_at), "o", color=plots.PALETTE[y % 4], alpha=0.75, markersize=6)
    ax.plot(sorted(x or 240 for x in row)[len(row) // 2], y, "|", color=plots.INK, markersize=18, markeredgewidth=2)
ax.set_yticks(range(len(growing)), [f"{name}: {sum(x is not None for x in row)} of {len(row)}" for name, row in growing.items()])
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
plots.show(fig)

# %% [markdown]
# Every run diverges, in every format, and within a few steps of each other (the short line is the median). bf16 throughout comes first on
# average, 4.6 steps before float32, but over ten seeds that may be chance (95% interval: 10 steps earlier to 0.8 later). With softmax
# alone in float32 the runs are bf16's runs, step by step: its result is rounded on its way into the next product. At constant high rates
# (0.01 and 0.03; five seeds) no format diverged within 150 steps, and none was better than the others.
#
# Now both stories together: how the weights are stored, late in training, and what saved the run whose rate grows.

# %% tags=["experiment"]
stored, rescues = full["late"]["late"], full["saved"]["rows"]
branches_run = [name for name in rescues[0] if name not in ("alarm", "back to")]
shares = {way: {lr: [100 * a / b for a, b in zip(by[way]["gain"], by["float32"]["gain"])] for lr, by in stored.items()} for way in WAYS if way != "float32"}
fig, (left, right) = plots.figure(columns=2, size=(12, 4), alt="Left: gain of 120 steps in per cent of that with float32 weights, mean of four seeds: " + "; ".join(
    f"{way} " + ", ".join(f"{sum(x) / len(x):.0f} at a rate of {lr}" for lr, x in row.items()) for way, row in shares.items())
    + ". Right: runs saved of ten: " + ", ".join(f"{name} {sum(r[name] is None for r in rescues)}" for name in branches_run) + ".")
for k, (way, row) in enumerate(shares.items()):
    for i, x in enumerate(row.values()):
        left.plot([i + 0.2 * (k - 1)] * len(x), x, plots.MARKS[k + 1], color=plots.PALETTE[k + 1], label=way if i == 0 else None, alpha=0.8)
left.axhline(100, color=plots.INK, linewidth=1.2, linestyle=(0, (2, 2)))
left.set_xticks(range(len(stored)), [f"rate {lr}" for lr in stored])
left.set_ylim(bottom=0)
left.set_ylabel("gain / gain with float32 weights (%)")
left.set_title("How weights are stored (a mark for each seed)", loc="left", **plots.TITLE)
left.legend(loc="lower left", frameon=False, labelcolor=plots.INK, fontsize=9)
plots.bars({name: sum(r[name] is None for r in rescues) for name in branches_run}, ax=right, alt="", title="Runs saved, of ten", xlabel="runs", form="{:.0f}")
plots.show(fig)
warned = [r for r in rescues if r["alarm"] is not None and r["nothing done"] is not None]
ahead = [r["nothing done"] - r["alarm"] for r in warned]
print(f"the alarm came {min(ahead)} to {max(ahead)} steps before the loss showed it, in {len(warned)} of {len(rescues)} runs")

# %% [markdown]
# Left: of the gain that float32 weights make, bf16 weights keep 96% at a rate of 10⁻³, 60% at 10⁻⁴ and 14% at 10⁻⁵; both cures keep it
# whole. (The master's 107% at 10⁻⁵ are the one-time decay of section 5: it is cut off.) So low precision takes the larger *share* the later
# it is. In nats it is the other way round: after the first 300 steps at 2·10⁻³ bf16 weights are 0.034 behind, at 10⁻⁵ they lose 0.007 more.
# Right: ten of ten runs diverge if nothing is done, none is saved by other batches alone, and all ten by the old rate, with other batches or
# with the same.

# %% tags=["experiment"]
claims.show("34-bf16-sums", measured="mean relative error of 4096 random terms: " + in_words({name: f"{row[-1]:.2%}" for name, row in errors.items()}))
claims.show("34-late-training", measured="gain of 120 steps at a rate of 0.00001, in 0.001 nats: " + in_words({way: f"{row[-1]:.1f}" for way, row in gains.items()}))
claims.show("34-stabilisers", measured=f"the loss shows the divergence at step: {in_words(shown_at)}; a stabilised step takes "
            f"{times['stabilised / bf16']:.0f}% of the time of a bf16 step")
claims.show("34-16bit-speed", measured=", ".join(f"{r.ratio:.1f} times at n = {n}" for n, r in measured.items()) + " (bf16 with conversions, against float32)")
claims.show("34-thermometers", measured=f"{len(caught)} of {sum(shown is not None for _, shown in ends)} recorded runs warned of in time"
            + (f", {caught[0][0]} to {caught[-1][0]} steps ahead" if caught else "") + f"; {false} false alarms")
claims.show("34-rollback", measured="see the optional exercise below")

# %% [markdown]
# ### Question 1 (15 points)
#
# "bf16 makes training diverge, and computing softmax, LayerNorm and residual in higher precision stabilises it at a cost of 2%." Write
# five to eight sentences. Keep the two stories apart: which of your experiments show lost updates, and which divergence? In which of them
# does the number format decide, and in which not? What do the stabilisers do, and what do they cost on your machine? Use your numbers.

# %% [markdown] tags=["written"] points=15 name="claim"
# The sentence mixes two stories. Lost updates: with bf16 weights, 97% of Adam's updates at a rate of 10⁻⁵ change nothing, and of the gain
# that float32 weights make in 120 steps (11.1 thousandths of a nat) 1.3 is left. With stochastic rounding it is 11.2, with a master
# weight 12.0 (more than in float32, because it is cut off at its first step, which shortens the weights by 0.16%), although the network
# computes in bf16 all the while. At a rate of 10⁻³ it is 36%, and 96% of the gain are left (full run).
# Training gets nowhere, but nothing diverges. Here the format decides, and the cure is in the update.
#
# Divergence: with a learning rate that grows, all ten runs diverge in float32, in bf16, with stabilisers and in fp16, and nearly at the
# same step (167 to 175 in float32, 151 to 174 in bf16, 164 to 175 stabilised). A step that is too long is too long in every format. fp16
# has one more way to die: it overflowed in the attention scores of the layer whose inputs I made 200 times as large, where bf16 passed.
#
# The stabilisers help against the number that they are made for: with a constant of 256 in the residual bf16 ends at a loss of 4.37 and
# float32 at 3.17; residual and LayerNorm in float32 bring back 3.17, scores and softmax nothing. A stabilised step takes 8% more time
# than a bf16 step here (the interval reaches from nothing to 20%), so I can neither confirm 2% nor exclude it.

# %% [markdown]
# ### Question 2 (10 points)
#
# "Thermometers warn before the loss does; rolling back and skipping the batches saved the run." Write three to five sentences: which
# thermometer warned and which did not, how early, and with how many false alarms? What in the rescue saved the run here, and which
# experiment shows that it was not something else? (If you have not written `rollback`, use the counts of the full run.)

# %% [markdown] tags=["written"] points=10 name="rescue"
# The attention scores warned first: in my run they were ten times as high as before at step 96, the residual at step 108, where the loss
# turned, and the loss showed the divergence at step 174 (a nat is a late sign); the gradient norm and the logits never were five times as high.
# With a threshold of 32 on the scores all 16 diverging recorded runs were warned of, 12 to 75 steps ahead, without a false alarm. So the
# first sentence holds here, with the reservation that these runs were made to diverge.
#
# Going back saved nothing by itself: with other batches but the same growing rate 0 of 10 runs were saved, with the old rate 10 of 10.
# These two branches differ in the rate alone, so it was the rate; and with the old rate and the same batches 10 of 10 were saved as well,
# so it was not the batches. Skipping them can only help where a batch is the cause.

# %% [markdown]
# ## Optional · `rollback`: go back, and take another way
#
# An alarm is worth what one does about it. Checkpoints are saved every so many steps; the trouble began some steps before the alarm (the
# *margin*), so the newest checkpoint is not the one to take. And the authors of large models go on with *other* batches than those around
# the alarm.

# %%
def rollback(checkpoints: dict[int, dict[str, Tensor]], alarm: int, margin: int = 20, skip: int = 10) -> tuple[dict[str, Tensor], int, int]:
    """Where to go on after an alarm: the state of the newest checkpoint of step alarm - margin or earlier (the oldest of all, if none is
    that early), its step, and the number of the first batch to train on then: alarm + skip. checkpoints[s] was saved before batch s."""
    ### BEGIN SOLUTION
    early = [step for step in checkpoints if step <= alarm - margin]
    step = max(early) if early else min(checkpoints)
    return checkpoints[step], step, alarm + skip
    ### END SOLUTION


# %%
check(rollback)

# %% [markdown]
# The whole rescue. A run is made to diverge as in section 8, with a checkpoint every 20 steps and your alarm switched on. At the alarm it
# branches: nothing is done; it goes back and skips the batches around the alarm (which is what a text says saved a large run); it goes
# back, skips, *and* returns to the old learning rate; it goes back to the old rate and takes the same batches again. (About 15 seconds.)
#
# **Predict:** which of the four are saved?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def rescue(seed: int = 0, end: int = 240, keep_losses: bool = False) -> dict:
    """The alarm, the step to which was rolled back, and when the loss showed a divergence (None: never) in each of four branches."""
    old = lambda step: 2e-3 * min(1, (step + 1) / 20)
    growing = lambda step: old(step) * 1.05 ** max(0, step - 60)
    run = precision.Trainer(precision.Rounded(precision.transformer(seed)), text, lr=growing, seed=seed, batch=BATCH, watch=watch)
    saved, alarm = {}, None
    while alarm is None and len(run.losses) < end:
        step = len(run.losses)
        if step % 20 == 0:
            saved[step] = run.checkpoint()
        run.step(step)
        alarm = early_warning({name: torch.tensor([h[name] for h in run.heat]) for name in run.heat[0]})
    result, losses = {"alarm": alarm}, {}
    if alarm is not None:
        here, past = run.checkpoint(), run.losses
        state, result["back to"], batch = rollback(saved, alarm)
        for branch, begin, first, number, rate in (("nothing done", here, alarm + 1, alarm + 1, growing), ("back, batches skipped", state, result["back to"], batch, growing),
                                                   ("back, skipped, old rate", state, result["back to"], batch, old),
                                                   ("back, same batches, old rate", state, result["back to"], result["back to"], old)):
            other = precision.Trainer(precision.Rounded(precision.transformer(seed)), text, seed=seed, batch=BATCH)
            other.restore(begin)
            other.losses = list(past[:first])
            for step in range(first, end):  # the rate follows the step, the batch its own number
                other.lr = rate(step)
                other.step(number + step - first)
                if precision.shown(other.losses) is not None:
                    break
            result[branch], losses[branch] = precision.shown(other.losses), other.losses
    return (result, losses) if keep_losses else result

# %% tags=["experiment"]
try:
    outcome, branches = rescue(keep_losses=True)
except NotImplementedError:
    print("This experiment needs your rollback, which is optional. Write it and run this cell again, or go on.")
else:
    alarm = outcome["alarm"]
    fig, ax = plots.figure(f"Alarm at step {alarm}, back to step {outcome['back to']}", "step", "training loss, mean of five (nats)", size=(9, 4.2),
                           alt=f"Alarm at step {alarm}, rolled back to step {outcome['back to']}. The loss shows a divergence at: " + ", ".join(
                               f"{name}: {outcome[name]}" for name in branches) + ".")
    plots.lines({name: smooth(losses) for name, losses in branches.items()}, ax=ax, alt="", marks=False, title=f"Alarm at step {alarm}, back to step {outcome['back to']}",
                xlabel="step", ylabel="training loss, mean of five (nats)")
    ax.axvline(alarm, color=plots.INK, linestyle=(0, (2, 2)), linewidth=1.2)
    plots.show(fig)
    print(", ".join(f"{name}: {'saved' if outcome[name] is None else f'diverges at step {outcome[name]}'}" for name in branches))

# %% [markdown]
# What was wrong is still wrong in the second branch: other batches, but the rate goes on growing. The last branch skips no batch, and is
# saved as well. Had a bad batch been the cause, it would have been the other way round. A rescue proves nothing about the cause unless
# there are branches that differ in one thing only: the second and the third differ in the rate, the last two in the batches.

# %% [markdown]
# ## Optional · `lamb_step`: a rate for every layer
#
# Adam's step has the same length whatever the weights are: a layer of small weights is shaken, one of large weights hardly moved. LAMB
# (You et al. 2020) gives every layer a step in proportion to its own length:
#
# $$r = \frac{\hat m}{\sqrt{\hat v} + \varepsilon} + \lambda\,\theta, \qquad \theta \leftarrow \theta - \eta\, \frac{\lVert\theta\rVert}{\lVert r\rVert}\, r.$$
#
# It was made for very large batches, and it is said to forgive learning rates. (About 15 seconds.)
#
# **Predict:** over which range of rates does each of the two train, by factors of four?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def lamb_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: dict, lr: float = 1e-3, beta1: float = 0.9,
              beta2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.01) -> tuple[Tensor, dict]:
    """One LAMB step (You et al. 2020, algorithm 2, with phi(z) = z and Adam's corrections): Adam's direction r plus
    weight_decay * param, scaled to the length of param. If either length is 0, the factor is 1. `state` holds m, v and t."""
    ### BEGIN SOLUTION
    t = state.get("t", 0) + 1
    m = beta1 * state.get("m", torch.zeros_like(param)) + (1 - beta1) * grad
    v = beta2 * state.get("v", torch.zeros_like(param)) + (1 - beta2) * grad**2
    r = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps) + weight_decay * param
    lengths = param.norm(), r.norm()
    ratio = lengths[0] / lengths[1] if min(lengths) > 0 else 1.0
    return param - lr * ratio * r, {"m": m, "v": v, "t": t}
    ### END SOLUTION


# %%
check(lamb_step)

# %% tags=["experiment"]
rates = (0.001, 0.004, 0.016, 0.064, 0.256)
def trained(optimizer, lr, steps=60):
    """Training loss, the mean of the last six of 60 steps; None if it is not finite."""
    loss = train.train(precision.transformer(0), text, optimizer=optimizer, steps=steps, batch_size=16, device="cpu", progress=False,
                       lr=lambda step: lr * min(1, (step + 1) / 10)).final_loss
    return loss if math.isfinite(loss) else None

try:
    compared = {"Adam": [trained(torch.optim.Adam, lr) for lr in rates], "LAMB": [trained(lamb_step, lr) for lr in rates]}
except NotImplementedError:
    print("This experiment needs your lamb_step, which is optional. Write it and run this cell again, or go on.")
else:
    good = lambda x: x is not None and x < 6  # an untrained network has 5.5
    plots.lines({name: [x if good(x) else math.nan for x in row] for name, row in compared.items()}, x=rates, logx=True, title="After 60 steps", xlabel="learning rate (largest)",
                ylabel="training loss (nats)", limits={"guessing": math.log(256)}, size=(8.4, 3.8), alt="Training loss by learning rate: " + "; ".join(f"{name} " + ", ".join(
                    f"{x:.2f} at {lr:g}" if good(x) else f"lost at {lr:g}" for lr, x in zip(rates, row)) for name, row in compared.items()) + ".")
    print("; ".join(f"{name}: best {min(filter(good, row)):.2f}" + "".join(f", lost at {lr:g}" for lr, x in zip(rates, row) if not good(x)) for name, row in compared.items()))

# %% [markdown]
# LAMB's rate means a *share* of each layer's length at each step, so it must be larger, and its best loss is as good as Adam's. But look at
# the width of the two curves before you call it more forgiving: in this small network with small batches Adam trains at every rate of this
# row, because its steps are bounded too, and LAMB is lost at the largest, a quarter of each layer's length at each step. LAMB was made for
# batches of tens of thousands, which this machine cannot show.

# %% [markdown]
# ## Optional · `length_curriculum`: short texts first
#
# Li, Zhang & He (2022) found that long sequences early in training go with large and volatile Adam moments, and begin with short texts:
#
# $$\text{length}(t) = \ell_{\min} + (\ell_{\max} - \ell_{\min}) \cdot \min(t / T, 1), \quad \text{rounded down to a multiple of 8.}$$
#
# **Predict:** 120 steps at a usual rate and at one ten times as large. Does the curriculum lower the largest attention score? And the
# loss? (About 8 seconds.)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def length_curriculum(step: int, warmup: int, longest: int, shortest: int = 8, multiple: int = 8) -> int:
    """Length of the texts at a step: it grows linearly from `shortest` at step 0 to `longest` at step `warmup`, rounded down to a multiple
    of `multiple`, and stays there (Li, Zhang & He 2022). `shortest` and `longest` are such multiples, and
    warmup >= 1."""
    ### BEGIN SOLUTION
    length = shortest + (longest - shortest) * min(step, warmup) // warmup
    return length // multiple * multiple
    ### END SOLUTION


# %%
check(length_curriculum)

# %% tags=["experiment"]
def with_lengths(lr, length=None, steps=120):
    """Held-out loss after the steps, the largest attention score of all steps, and the bytes read."""
    t = precision.Trainer(precision.Rounded(precision.transformer(0)), text, lr=lambda step: lr * min(1, (step + 1) / 20), batch=16, length=length, watch=watch).run(0, steps)
    read = sum(16 * (32 if length is None else length(step)) for step in range(steps))
    return {"held-out loss (nats)": t.evaluate(), "largest score": max(h["scores"] for h in t.heat), "thousand bytes read": read / 1000}

try:
    by_rate = {lr: {"full length": with_lengths(lr), "short texts first": with_lengths(lr, lambda step: length_curriculum(step, 80, 32))} for lr in (0.002, 0.02)}
except NotImplementedError:
    print("This experiment needs your length_curriculum, which is optional. Write it and run this cell again, or go on.")
else:
    fig, panels = plots.figure(columns=3, size=(12, 2.6), alt="; ".join(f"rate {lr:g}, {way}: " + ", ".join(f"{name} {x:.3g}" for name, x in row.items())
                                                                       for lr, rows in by_rate.items() for way, row in rows.items()) + ".")
    for ax, name in zip(panels, by_rate[0.02]["full length"]):
        plots.bars({way: {f"rate {lr:g}": by_rate[lr][way][name] for lr in by_rate} for way in ("full length", "short texts first")}, ax=ax, alt="", title=name, xlabel=name)
    for ax in panels[:-1]:
        ax.get_legend().remove()
    plots.show(fig)

# %% [markdown]
# At the usual rate there is nothing to gain, and the largest score even rises (from 6.8 to 10.7 here). At the high one the scores, the
# thermometer of section 8, stay lower, and a third of the bytes is saved; after as many steps the loss is a little worse, because the
# network has read less. One seed: a hint, not a proof.

# %% [markdown]
# ## Going further
#
# - **Formats.** Goldberg 1991, *What every computer scientist should know about floating-point arithmetic*; Higham 2002, *Accuracy and
#   stability of numerical algorithms*, chapter 4 on sums; Kalamkar et al. 2019 (bf16); Micikevicius et al. 2022 (fp8).
# - **Mixed precision.** Micikevicius et al. 2018 (master weights, loss scaling); Gupta et al. 2015 (stochastic rounding); Zamirai et al.
#   2020, *Revisiting bfloat16 training*: lost updates, stochastic rounding and Kahan sums.
# - **Divergence.** Chowdhery et al. 2022 (PaLM), section 5.1: spikes, rolling back, skipping batches; Zhang et al. 2022 (OPT) and its
#   public logbook; Dehghani et al. 2023 (ViT-22B) and Wortsman et al. 2024, *Small-scale proxies for large-scale instabilities*: growing
#   attention scores, and normalising queries and keys; Zhai et al. 2023 on the entropy of attention.
# - **Large batches and long texts.** You et al. 2020 (LAMB); Li, Zhang & He 2022 (sequence length warm-up).
# - **In production.** `torch.amp.autocast` and `torch.amp.GradScaler`; torchao's optimisers with bf16 stochastic rounding; the split
#   master of section 5 is in Intel's extension of PyTorch.
#
# **Open ended.** The authors of the papers above stop the growth of the attention scores by normalising queries and keys. Build that into
# the transformer, and repeat section 8. Do the scores still warn? Which thermometer does then?
