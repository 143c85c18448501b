# %% [markdown]
# # 21 · Pruning
#
# A trained network survives the loss of most of its weights. Which weights can go, how many, and does the network
# get faster without them?
#
# By the end you will have made two pictures: what a convolutional network loses against how many times fewer weights it has, for
# several ways to choose them; and the time that it really takes then, with zeros in their places, and with whole filters removed.
#
# | | |
# | --- | --- |
# | Time | about 5 hours |
# | You need | convolutions, BatchNorm, SGD with momentum, lab 11 |
# | Data | glyphs; they are on this machine, no network is needed |
# | A GPU adds | nothing: the network is small |
#
# Before each experiment you are asked to **predict** its outcome. Write a line in the cell below the question, then
# run the experiment. A wrong prediction costs nothing and teaches the most. Code that would tell the outcome is
# folded: run it first, and then open it (a click on the three dots) and play with it.

# %% tags=["setup"]
import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course import claims, plots, pruning, timing, train
from course.check import check, find_lab, setup, speed

setup("21_pruning")
State = dict[str, Tensor]  # what an optimiser remembers, or a network: its tensors by name

# %% [markdown]
# ### Notation
#
# $w$ is a weight, and $m$ its *mask*: 1 (`True`) if it stays, 0 (`False`) if it is pruned; the network computes with
# $w \cdot m$. The *sparsity* $s$ is the share that is pruned. $g = \partial L / \partial w$ is the gradient of
# the loss. A convolution's weight is $[o, i, 3, 3]$: $o$ *filters*, one for each output channel, that read $i$ input
# channels. A BatchNorm multiplies its channel by the *gain* $\gamma / \sqrt{\sigma^2 + \epsilon}$.

# %% [markdown]
# ## The network
#
# It reads digits and capital letters, 36 classes, in 18 fonts and distorted, at 14 × 14 pixels. Three convolutions
# of 32, 64 and 128 filters, each with BatchNorm and ReLU, with max-pooling between them; then the mean over all places and a
# linear layer, the *head*. `make_network.py`, which lies beside this notebook, trained it on 10,000 images by SGD.
# Surgery needs the network open, so here it is a dict of tensors, `dense`. (About 5 seconds, for the images.)

# %% tags=["experiment"]
torch.set_num_threads(1)  # small tensors: a second thread would only get in the way
timing.keep_memory()      # else the times below would be those of the system, which takes memory back and gives it anew
glyphs = pruning.glyphs()
quick = replace(glyphs, test_x=glyphs.test_x[:1000], test_y=glyphs.test_y[:1000])  # half of the test images
dense = pruning.network(find_lab("21_pruning"))
weights, LAYERS = list(pruning.weights(dense).values()), ("conv 1", "conv 2", "conv 3", "head")
accuracy = lambda state, gates=None: 100 * pruning.accuracy(state, quick.test_x, quick.test_y, gates)  # per cent
for name, w in zip(LAYERS, weights):
    print(f"{name:<7} {str(list(w.shape)):<16} {w.numel():>7,} weights, {w.abs().mean():.3f} in size on average")
told = lambda curves, form=".0f": "; ".join(f"{name}: {', '.join(f'{y:{form}}' for y in row)}" for name, row in curves.items())  # for who cannot see
print(f"{pruning.multiply_adds(dense):,} multiply-adds for an image; accuracy {accuracy(dense):.1f}%")

# %% [markdown]
# ## 1 · `magnitude_mask`: the small ones go
#
# The oldest criterion is still hard to beat: a weight near zero does little, so let those with the smallest $|w|$ go.
# Of $n$ weights exactly $k = \operatorname{round}(s\,n)$ are pruned. (To compare with a threshold is not the same: it takes all
# equal weights or none, and after a first pruning many weights are equal: they are zero.)
#
# **Predict:** each of the four weights loses the same share, and nothing is trained afterwards. Which share costs
# the first point of accuracy if the small weights go? And if random weights go, or the largest?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def magnitude_mask(weight: Float[Tensor, "*shape"], sparsity: float) -> Bool[Tensor, "*shape"]:
    """True where a weight stays. Of its n numbers exactly round(sparsity * n) are pruned, those with the smallest |w|
    (Han et al. 2015); which of equal ones is free."""
    ### BEGIN SOLUTION
    order = weight.abs().flatten().argsort()
    mask = torch.ones(len(order), dtype=torch.bool)
    mask[order[:round(sparsity * len(order))]] = False
    return mask.view(weight.shape)
    ### END SOLUTION


# %%
check(magnitude_mask)

# %% [markdown]
# (About 5 seconds.)

# %% tags=["experiment"]
shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
random = torch.Generator().manual_seed(0)
rules = {"smallest": lambda w, s: magnitude_mask(w, s), "random": lambda w, s: magnitude_mask(torch.rand(w.shape, generator=random), s),
         "largest": lambda w, s: ~magnitude_mask(w, 1 - s)}
found = {name: [accuracy(pruning.masked(dense, [rule(w, s) for w in weights])) for s in shares] for name, rule in rules.items()}
percent = [100 * s for s in shares]
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4), alt="Left: histogram of the weights of conv 2, most of them near zero; the pruned half is "
                                  f"a band around zero. Right: accuracy at a sparsity of {', '.join(f'{s:.0f}%' for s in percent)}. {told(found)}.")
middle, stays = weights[1].flatten(), magnitude_mask(weights[1], 0.5).flatten()
edge = (middle[~stays].abs().max() + middle[stays].abs().min()).item() / 2
bins = [edge / 4 * k for k in range(-math.ceil(4 * middle.abs().max().item() / edge), math.ceil(4 * middle.abs().max().item() / edge) + 1)]
left.hist([middle[stays], middle[~stays]], bins=bins, stacked=True, color=[plots.PALETTE[0], plots.PALETTE[6]], label=["stays", "pruned"])
left.set(xlabel="weight of conv 2", ylabel="how many")
left.set_title("Half of a layer", loc="left", **plots.TITLE)
left.legend(frameon=False)
plots.lines(found, x=percent, ax=right, alt="", title="The same share of each layer", xlabel="sparsity (%)", ylabel="test accuracy (%)")
plots.show(fig)

# %% [markdown]
# The small weights are the right ones: nearly a third of each layer can go for about a point, where random weights cost that
# much below a twentieth, and without the largest twentieth the network reads less than a fifth of the images. But soon after that the curve
# breaks off. Is it the whole network that breaks, or one layer?

# %% [markdown]
# ## 2 · `global_magnitude_masks`: which layer pays?
#
# Must every layer give the same share? conv 1 has 288 weights, conv 3 has 73,728. So put the weights of all layers into one
# order, and prune the smallest of all: then the layers share a *threshold*, not a share.
#
# **Predict:** at a sparsity of 70%, which layer loses most, and which least? Does it help?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def global_magnitude_masks(weights: list[Float[Tensor, "*shape"]], sparsity: float) -> list[Bool[Tensor, "*shape"]]:
    """A mask for each tensor. Of the n numbers of all tensors together exactly round(sparsity * n) are pruned, those with the
    smallest |w| of all; which of equal ones is free."""
    ### BEGIN SOLUTION
    together = magnitude_mask(torch.cat([w.flatten() for w in weights]), sparsity)
    parts = together.split([w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights)]
    ### END SOLUTION


# %%
check(global_magnitude_masks)

# %% tags=["experiment"]
one_order = [accuracy(pruning.masked(dense, global_magnitude_masks(weights, s))) for s in shares]
stay = {name: 100 * m.float().mean().item() for name, m in zip(LAYERS, global_magnitude_masks(weights, 0.7))}
both = {"one order for all": one_order, "the same share of each": found["smallest"]}
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4), alt="Left: what stays of each layer at a sparsity of 70% in one order: "
    f"{', '.join(f'{name} {share:.0f}%' for name, share in stay.items())}. Right: accuracy at {', '.join(f'{s:.0f}%' for s in percent)}. {told(both)}.")
plots.bars(stay, ax=left, alt="", title="One order: what stays at 70%", xlabel="share of the layer's weights (%)", form="{:.0f}")
plots.lines(both, x=percent, ax=right, alt="", title="Nothing is trained afterwards", xlabel="sparsity (%)", ylabel="test accuracy (%)")
plots.show(fig)
halves = [magnitude_mask(w, 0.5) for w in weights]
print(f"half of the weights of each layer pruned: accuracy {accuracy(pruning.masked(dense, halves)):.0f}%; "
      f"of each but conv 1: {accuracy(pruning.masked(dense, [torch.ones_like(halves[0]), *halves[1:]])):.0f}%")

# %% [markdown]
# With the same share of each layer it was above all conv 1 that broke, as the line below the figure says. Its weights are few, large,
# and used by everything that comes after them; in one order it loses hardly any. conv 3, with three quarters of all weights, loses
# most. So the share that can go for two points, and without any training, more than doubles. (One order is fair only as far as
# the sizes of different layers can be compared. Here it works, since a layer with many inputs starts with small weights, and mostly
# keeps them; it is not a law.)
#
# **Play.** Move the sparsity. On the left are the sizes of all weights, layer upon layer; those left of the line go (the smallest
# are all counted at 0.0001, the spike on the left). On the right each square is one 3 × 3 kernel of conv 2: how many of its nine
# weights are left? Do whole rows (filters) or columns (input channels) vanish? And at which sparsity does the network break?

# %% tags=["experiment"]
from course.sliders import Slider, show

sizes = [w.abs().flatten().clamp(min=1e-4).log10() for w in weights]

def draw(sparsity):
    masks = global_magnitude_masks(weights, sparsity)
    left_over = masks[1].flatten(2).sum(2)  # [64, 32], 0 ... 9
    right = accuracy(pruning.masked(dense, masks))
    empty = " and ".join(f"{int((~m.flatten(1).any(1)).sum())} of {len(m)} in conv {k}" for k, m in ((2, masks[1]), (3, masks[2])))
    gone = [size[~m.flatten()].max().item() for size, m in zip(sizes, masks) if not m.all()]
    threshold = 10 ** max(gone, default=-4)
    alt = (f"Left: histograms of the sizes of the weights, with the threshold at {threshold:.3f}. Right: map of the 64 by 32 kernels of conv 2: "
           f"{left_over.float().mean():.1f} of nine weights are left on average, and none in {(left_over == 0).float().mean():.0%} of the kernels. "
           f"Accuracy {right:.1f}%. Filters without a weight: {empty}.")
    fig, (left, kernels) = plots.figure(columns=2, size=(10.6, 4.8), alt=alt)
    left.hist(sizes, bins=60, stacked=True, color=plots.PALETTE[:4], label=LAYERS)
    left.axvline(math.log10(threshold), color=plots.INK, linewidth=2)
    left.set_xticks([-4, -3, -2, -1, 0], ["≤ 0.0001", "0.001", "0.01", "0.1", "1"])
    left.set(xlabel="|w|", ylabel="how many weights")
    left.set_title(f"{sparsity:.0%} pruned: accuracy {right:.1f}%", loc="left", **plots.TITLE)
    left.legend(frameon=False, loc="upper left")
    image = kernels.imshow(left_over, cmap="cividis", vmin=0, vmax=9, aspect="auto")
    fig.colorbar(image, label="weights left in a kernel")
    kernels.set(xlabel=f"input channel of conv 2\n(filters without a weight: {empty})", ylabel="filter of conv 2")
    kernels.set_title("What is left of conv 2", loc="left", **plots.TITLE)
    kernels.grid(visible=False)
    plots.show(fig)

show(draw, sparsity=Slider(0, 0.98, start=0.7, step=0.02, label="sparsity"))

# %% [markdown]
# What is left of conv 2 is scattered. Some of its filters keep more than others, but as long as the network reads anything, none of
# them vanishes, and no input channel either: there is nothing that could be cut out of its matrix. In conv 3 it is otherwise: from
# about 84% on a few filters have no weight left, and at 94% nearly a third (see below the map). But by then the network, as it is
# here, reads few images. Exercises 6 to 8 remove whole filters from the start.

# %% [markdown]
# ## 3 · `masked_step`: training on, with holes
#
# What pruning has broken, more training can mend: *finetuning*. But it must not bring the pruned weights back. One step of SGD
# with momentum $\beta$ (`momentum`), weight decay $\lambda$ and learning rate $\eta$ is
#
# $$v \leftarrow m \cdot \big(\beta v + g + \lambda w\big), \qquad w \leftarrow m \cdot (w - \eta\, v).$$
#
# Both need the mask: the weight, since one that was pruned just now still has its old value; and the velocity, since it would
# move the weight on, or wait in the state until the mask changes. As in lab 11 the state is a dict, empty before the first
# step. Nothing that the function is given may be changed, neither the tensors nor the state: return new ones.
#
# **Predict:** at a sparsity of 90% hardly an image is read correctly. How far do 100 steps bring the network back? (An epoch has
# 156 steps.) And with an *ordinary* step: how many of the pruned weights would still be zero after one step?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def masked_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State, mask: Bool[Tensor, "*shape"], lr: float = 0.1,
                momentum: float = 0.9, weight_decay: float = 0.0) -> tuple[Tensor, State]:
    """One step of torch.optim.SGD with momentum and weight decay for the weights whose mask is True: the new parameter and the
    new state. The others are zero afterwards, and so is their velocity: one that comes back later starts from zero, at rest."""
    ### BEGIN SOLUTION
    v = mask * (momentum * state.get("v", 0.0) + grad + weight_decay * param)
    return mask * (param - lr * v), {"v": v}
    ### END SOLUTION


# %%
check(masked_step)

# %% [markdown]
# `finetune` trains a copy on with your step; `masks_at(t, weights)` gives the masks before step $t$, or None: as before.

# %%
def finetune(state, masks_at, steps, every=None, lr=0.1, step=masked_step, **hyper):
    """The network after `steps` steps with a falling learning rate, and its history, evaluated every so many steps."""
    net = pruning.module(state)
    optimizer = pruning.optimizer(step, masks_at, **({"weight_decay": 5e-4} | hyper))
    history = train.train(net, quick, optimizer=optimizer, steps=steps, eval_every=every, lr=lambda t: lr * (1 - t / steps),
                          device="cpu", progress=False)
    return pruning.state_of(net), history

def from_the_start(masks):
    return lambda t, weights: masks if t == 0 else None

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
courses = {}
for s in (0, 0.8, 0.9, 0.95, 0.98):
    masks = global_magnitude_masks(weights, s)
    _, history = finetune(dense, from_the_start(masks), steps=100, every=20)
    courses["dense" if s == 0 else f"{s:.0%} pruned"] = [accuracy(pruning.masked(dense, masks)), *(100 * history.accuracy).tolist()]
plots.lines(courses, x=range(0, 101, 20), title="Pruned at once, then trained on", xlabel="step of finetuning", ylabel="test accuracy (%)",
            size=(7.6, 4), alt=f"Accuracy before the finetuning and after every 20 steps. {told(courses)}.")

masks = global_magnitude_masks(weights, 0.9)
anything_goes = lambda param, grad, state, mask, **hyper: masked_step(param, grad, state, torch.ones_like(mask), **hyper)
after, _ = finetune(pruning.masked(dense, masks), from_the_start(masks), steps=1, step=anything_goes)
still = sum((w[~m] == 0).sum() for w, m in zip(pruning.weights(after).values(), masks)) / sum((~m).sum() for m in masks)
print(f"after one step without the masks {still:.1%} of the pruned weights are still zero")

# %% [markdown]
# Twenty steps bring a network with a tenth of its weights from next to nothing to nine images in ten, and at 80% finetuning
# mends everything. At 95% the hundred steps are not enough, and at 98% there is hardly anything left to build on. The dense
# network, trained on in the same way, is the standard to compare with: whatever finetuning does to it has nothing to do with
# pruning.
#
# Without masks an ordinary step moves all pruned weights whose gradient is not zero, and the sparsity is gone at once.

# %% [markdown]
# ## 4 · `cubic_sparsity`: little by little
#
# Must all of it go at once? In *gradual* pruning the sparsity rises from $s_i$ to $s_f$ while the network trains from step $t_0$
# (`begin`) to $t_1$ (`end`), and every few steps the masks are chosen anew, from the weights as they are by then. Zhu and Gupta's
# curve prunes fast at first, while there is much to choose from, and slowly at last:
#
# $$s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^{3}, \qquad t_0 \le t \le t_1,$$
#
# $s_i$ before, and $s_f$ after that.
#
# **Predict:** the same 200 steps, the same 97% in the end: all pruned at step 0, or rising until step 120. Which is better in
# the end, and what does the accuracy look like on the way?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """The sparsity at `step`, a Python float: `initial` up to step `begin`, `final` from step `end` on, and between them the
    cubic curve (Zhu & Gupta 2017, equation 1)."""
    ### BEGIN SOLUTION
    t = min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * (1 - t) ** 3
    ### END SOLUTION


# %%
check(cubic_sparsity)

# %%
def gradually(final, end, every=5):
    """Masks for `finetune`: the sparsity rises to `final` until step `end`, with new masks every few steps."""
    choose = lambda t, weights: global_magnitude_masks(weights, cubic_sparsity(t, 0, end, final))
    return lambda t, weights: choose(t, weights) if t % every == 0 and t <= end else None

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
STEPS, FINAL, END = 200, 0.97, 120
ways = {"all at once": from_the_start(global_magnitude_masks(weights, FINAL)), "little by little": gradually(FINAL, END)}
rises = {"all at once": [FINAL] * (STEPS + 1), "little by little": [cubic_sparsity(t, 0, END, FINAL) for t in range(STEPS + 1)]}
histories = {name: finetune(dense, masks_at, STEPS, every=20)[1] for name, masks_at in ways.items()}

# %% tags=["experiment"]
ends = {name: 100 * h.accuracy for name, h in histories.items()}
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4), alt=f"Left: sparsity against the step, {FINAL:.0%} from the start, or rising steeply and "
                                  f"then ever more slowly until step {END}. Right: accuracy every 20 steps. {told(ends)}.")
plots.lines({name: [100 * s for s in row] for name, row in rises.items()}, ax=left, alt="", marks=False, title="Two ways to the same sparsity",
            xlabel="step", ylabel="sparsity (%)")
plots.lines(ends, x=range(20, STEPS + 1, 20), ax=right, alt="", title="What they lead to", xlabel="step",
            ylabel="test accuracy (%)")
plots.show(fig)

# %% [markdown]
# The same steps, the same number of weights, and a far better network. On the way it holds its accuracy until more than eight
# weights in ten are gone; then it falls too, deeply, since the last weights that go are dear. But it falls from a height, and
# what is left has been trained for the gaps around it. When the sparsity rests, it recovers quickly.

# %% [markdown]
# ## 5 · `storage_bytes`: what a zero saves
#
# A zero that is stored as a number saves nothing. Three ways to store $n$ places of which $k$ (`kept`) hold a number, with $b$
# bytes (`value_bytes`) for each:
#
# - `"dense"`: all $n$ numbers, zeros too;
# - `"bitmask"`: the $k$ numbers, and one bit for each of the $n$ places, eight to a byte (the last byte may be only partly
#   used);
# - `"index"`: the $k$ numbers, each with its place $0, \dots, n - 1$ as an integer of the fewest bytes that can name every
#   place: 1, 2, 4 or 8.
#
# **Predict:** for the 97,000 weights of our network in float32, at which sparsity does the bitmask become smaller than dense?
# And the index smaller than the bitmask? What changes if the numbers are int8?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def storage_bytes(n: int, kept: int, value_bytes: int = 4) -> dict[str, int]:
    """Bytes in each of three formats, {"dense": ..., "bitmask": ..., "index": ...}, for n places of which `kept` hold a number of
    `value_bytes` bytes."""
    ### BEGIN SOLUTION
    place = next(width for width in (1, 2, 4, 8) if n <= 256**width)
    return {"dense": n * value_bytes, "bitmask": kept * value_bytes + (n + 7) // 8, "index": kept * (value_bytes + place)}
    ### END SOLUTION


# %%
check(storage_bytes)

# %% tags=["experiment"]
n = sum(w.numel() for w in weights)
axis = [k / 200 for k in range(201)]
fig, panels = plots.figure(columns=2, size=(10.6, 4), alt=f"Kilobytes of {n:,} places against sparsity, in three formats, with numbers of four bytes "
                           "and of one. Dense is flat, bitmask and index fall; the index falls most steeply and is the last to be the smallest.")
for ax, width in zip(panels, (4, 1)):
    table = [storage_bytes(n, round((1 - s) * n), width) for s in axis]
    plots.lines({name: [row[name] / 1000 for row in table] for name in table[0]}, x=[100 * s for s in axis], ax=ax, alt="", marks=False, logy=True,
                title=f"{n:,} places, {width} byte{'s' * (width > 1)} a number", xlabel="sparsity (%)", ylabel="kilobytes")
    ax.set_ylim(10, 500)
    ax.set_yticks([10, 20, 50, 100, 200, 400], [10, 20, 50, 100, 200, 400])
    ax.minorticks_off()
    first = {name: next(gone for gone in range(n + 1) if (row := storage_bytes(n, n - gone, width))[name] == min(row.values())) / n
             for name in ("bitmask", "index")}
    print(f"{width} byte(s) a number: smallest is the bitmask from {first['bitmask']:.1%}, the index from {first['index']:.1%}")
plots.show(fig)
one_threshold = {s: [int(m.sum()) for m in global_magnitude_masks(weights, s)] for s in (0.75, 0.875, 0.9, 0.9375)}
for s, kept in one_threshold.items():
    each = [storage_bytes(w.numel(), k) for w, k in zip(weights, kept)]
    best = sum(min(row.values()) for row in each)
    print(f"{100 * s:g}% pruned: {best:,} bytes, {sum(row['dense'] for row in each) / best:.1f} times fewer than dense, each layer in its best "
          f"format ({', '.join(min(row, key=row.get) for row in each)})")

# %% [markdown]
# A bit for each place costs a 32nd of a float32, an eighth of an int8: the bitmask pays from 3.1% or 12.5% of zeros on. A place of
# our network takes four bytes, as 97,056 is more than 65,536: the index pays when the places of the kept numbers take less than
# a bit for every place, above 96.9%, however wide the numbers are. Each layer by itself can take the format that suits it. A
# network with a tenth of its weights is about eight times smaller, not ten.

# %% [markdown]
# ## 6 · `filter_importance`: a filter as a whole
#
# Zeros that lie here and there save memory, but a processor multiplies matrices, and a matrix with holes is as large as one
# without. What makes it smaller is to remove a whole filter. Which? Li et al. add up the sizes of its weights:
#
# $$I_o = |a_o| \sum_{i,x,y} |w_{o,i,x,y}|.$$
#
# Theirs is the sum alone, $a_o = 1$. But a BatchNorm stands after our convolutions, and what leaves it is the filter's output times
# the gain. So one might let $a_o$ be the gain.
#
# **Predict:** every layer loses the same share of its filters, and nothing is trained. A quarter of the filters, the least
# important ones by the sum alone, or with the gain, or random ones: how much accuracy is left?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def filter_importance(weight: Float[Tensor, "o *rest"], gain: Float[Tensor, "o"] | None = None) -> Float[Tensor, "o"]:
    """For each filter, the sum of the absolute values of its weights (Li et al. 2017, section 3.1), times the absolute value of its
    gain if there is one."""
    ### BEGIN SOLUTION
    sums = weight.abs().flatten(1).sum(1)
    return sums if gain is None else sums * gain.abs()
    ### END SOLUTION


# %%
check(filter_importance)

# %% [markdown]
# A *gate* for each filter multiplies its channel after the ReLU; a gate of 0 masks the filter. (About 5 seconds.)

# %% tags=["experiment"]
convs, gains = weights[:3], pruning.gains(dense)
kept_shares = (1.0, 0.95, 0.9, 0.8, 0.75, 0.6, 0.5)
same_share = lambda importance, share: [magnitude_mask(i, 1 - share).float() for i in importance]
by_sum, by_gain = [filter_importance(w) for w in convs], [filter_importance(w, a) for w, a in zip(convs, gains)]
random = torch.Generator().manual_seed(0)
draws = [[torch.rand(len(w), generator=random) for w in convs] for _ in range(3)]
chance = torch.tensor([[accuracy(dense, same_share(draw, share)) for share in kept_shares] for draw in draws])
filters = {"sum": [accuracy(dense, same_share(by_sum, share)) for share in kept_shares],
           "sum times gain": [accuracy(dense, same_share(by_gain, share)) for share in kept_shares], "random": chance.mean(0).tolist()}
gone = [100 * (1 - share) for share in kept_shares]
plots.lines(filters, x=gone, bands={"random": (chance.amin(0), chance.amax(0))}, title="Nothing is trained (band: three random choices)",
            xlabel="filters masked in each layer (%)", ylabel="test accuracy (%)",
            alt=f"Accuracy with {', '.join(f'{g:.0f}%' for g in gone)} of the filters masked. {told(filters)}.")

# %% [markdown]
# Up to a fifth the sum alone is no better than chance: a BatchNorm divides by whatever size comes in, so that a filter with half the
# weights does the same, and the size of its weights is meaningless. With the gain it means something, in this network; another one
# may answer otherwise, and three are compared below. But filters are dear: a quarter of them costs some fifteen points here,
# where 30% of the single weights of each layer cost about one (exercise 1).

# %% [markdown]
# ## 7 · `taylor_importance`: ask the loss
#
# Size is a guess at importance. The question itself is: by how much does the loss change if this weight becomes zero? To first
# order
#
# $$L(w) - L(0) \approx g \cdot w .$$
#
# A trained network has a mean gradient near zero, so the sign says little; but batch by batch the product is large where much
# hangs on the weight. So Molchanov et al. take its square, averaged over batches. Weights that go *together* (a filter, the set
# $S$) are summed first, since their changes may cancel:
#
# $$I_w = \operatorname{mean}_b \big(g_b\, w\big)^2, \qquad I_S = \operatorname{mean}_b \Big(\sum_{w \in S} g_b\, w\Big)^2 .$$
#
# One backward pass for each batch, and all weights have their importance. (The BatchNorms must be in evaluation mode. With the
# averages of the batch the loss does not change when a filter is scaled, so that the sum of $g\,w$ over a filter is zero, always.)
#
# **Predict:** we mask each of the 224 filters alone and measure the loss. Which guess comes nearer to the truth, the sum times
# gain or Taylor's? And if you prune *weights* by $I_w$ instead of by size, without training: better or worse?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def taylor_importance(weight: Float[Tensor, "o *rest"], grads: Float[Tensor, "b o *rest"], per_filter: bool = False) -> Tensor:
    """The mean over the b batches of (weight * gradient)**2 (Molchanov et al. 2019, equation 8), with the shape of `weight`; with
    `per_filter` the products are summed over each filter before they are squared, and the shape is [o]."""
    ### BEGIN SOLUTION
    change = weight * grads  # [b, o, ...]
    if per_filter:
        change = change.flatten(2).sum(2)
    return change.square().mean(0)
    ### END SOLUTION


# %%
check(taylor_importance)

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
grads = pruning.gradients(dense, glyphs.train_x[:2000], glyphs.train_y[:2000])  # of 20 batches, [20, *shape] for each weight
taylor = [taylor_importance(w, g, per_filter=True) for w, g in zip(convs, grads)]

@torch.no_grad()
def loss_without(layer, filter, x=glyphs.train_x[:300], y=glyphs.train_y[:300]):
    gates = [torch.ones(len(w)) for w in convs]
    if filter is not None:
        gates[layer][filter] = 0
    return F.cross_entropy(pruning.forward(dense, x, gates), y).item()

whole = loss_without(0, None)
change = [torch.tensor([abs(loss_without(k, o) - whole) for o in range(len(w))]) for k, w in enumerate(convs)]

# %% tags=["experiment"]
def rank_correlation(a, b):
    """Spearman's: 1 if a and b put things into the same order, 0 if the orders have nothing in common."""
    ranks = torch.stack([torch.cat(t).argsort().argsort().double() for t in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()

guesses = {"sum times gain": by_gain, "Taylor": [i.sqrt() for i in taylor]}
agree = {name: rank_correlation(guess, change) for name, guess in guesses.items()}
fig, panels = plots.figure(columns=2, size=(10.6, 4.2), alt="Change of the loss when one filter is masked, against its guessed importance, for 224 "
                           f"filters in three layers; {', '.join(f'{name}: rank correlation {r:.2f}' for name, r in agree.items())}.")
for ax, (name, guess) in zip(panels, guesses.items()):
    for (layer, look), i, c in zip(plots.looks(LAYERS[:3]).items(), guess, change):
        ax.plot(i, c.clamp(min=1e-6), linestyle="none", marker=look["marker"], color=look["color"], markersize=4, label=layer)
    ax.set(xscale="log", yscale="log", xlabel=f"importance by {name}", ylabel="change of the loss without it (nats)")
    ax.set_title(f"{name}: rank correlation {agree[name]:.2f}".replace("-", "−"), loc="left", **plots.TITLE)
    within = ", ".join(f"{rank_correlation([i], [c]):.2f}" for i, c in zip(guess, change))
    print(f"{name}: rank correlation within each of the three layers {within}")
panels[0].legend(frameon=False)
plots.show(fig)

# %% tags=["experiment"]
across = lambda importance, share: [m.float() for m in global_magnitude_masks(importance, 1 - share)]
filters |= {"Taylor, same share": [accuracy(dense, same_share(taylor, share)) for share in kept_shares],
            "Taylor, one order": [accuracy(dense, across(taylor, share)) for share in kept_shares]}
by_taylor = [taylor_importance(w, g) for w, g in zip(weights, grads)]
single = {"by size": one_order, "by Taylor": [accuracy(pruning.masked(dense, global_magnitude_masks(by_taylor, s))) for s in shares]}

# %% tags=["experiment"]
fig, (left, right) = plots.figure(columns=2, size=(11.6, 4), alt=f"Left: accuracy with {', '.join(f'{g:.0f}%' for g in gone)} of the filters masked. "
    f"{told(filters)}. Right: accuracy at a sparsity of {', '.join(f'{s:.0f}%' for s in percent)}. {told(single)}.")
words = {"ylabel": "test accuracy (%)", "alt": ""}
plots.lines(filters, x=gone, ax=left, title="Filters", xlabel="filters masked (%)", **words)
plots.lines(single, x=percent, ax=right, title="Single weights, one order for all", xlabel="sparsity (%)", **words)
plots.show(fig)

# %% [markdown]
# That is one network. The full run has trained three from different seeds, and masked the same share of each layer's filters, by four
# criteria.

# %% tags=["experiment"]
def dots(table, *, title, xlabel, alt, form="{:.1f}", limits=(None, None)):
    """A mark for each mean, a line for its 95% interval: {name: {row: (mean, low, high)}}."""
    rows = list(next(iter(table.values())))
    fig, ax = plots.figure(title, xlabel, alt=alt, size=(8.4, 1.1 + len(rows) * max(0.36, 0.22 * len(table))))
    for j, ((name, look), part) in enumerate(zip(plots.looks(table).items(), table.values())):
        for i, (mean, low, high) in enumerate(part.values()):
            y = i + 0.76 * ((j + 0.5) / len(table) - 0.5)
            ax.plot([low, high], [y, y], color=look["color"], linewidth=1.6)
            ax.plot(mean, y, color=look["color"], marker=look["marker"], linestyle="none", label=name if i == 0 else None)
            ax.annotate(form.format(mean), (min(high, limits[1] or high), y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    if limits != (None, None):
        ax.set_xlim(limits)
    ax.grid(axis="y", visible=False)
    if len(table) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1.08, 0.5), frameon=False)
    return fig, ax

# %% tags=["experiment"]
full = claims.full_run("21_pruning")
per_share = lambda rows: {name: {f"{100 * float(share):g}% of the filters": v for share, v in row.items()} for name, row in rows.items()}
spoken = lambda table: "; ".join(f"{name}: {', '.join(f'{row} {m:.1f} ({a:.1f} to {b:.1f})' for row, (m, a, b) in part.items())}" for name, part in table.items())
at_once = per_share(full["filters"]["at once"])
fig, _ = dots(at_once, title="Kept of each layer, nothing trained (three seeds; line: 95%, cut at 0 and 100)", xlabel="points of test accuracy lost",
              limits=(0, 100), alt=f"Points lost at once in the full run. {spoken(at_once)}.")
plots.show(fig)

# %% [markdown]
# Across layers the sum times gain is upside down: a filter of conv 3 has 576 weights, and a large sum, but there are 128 of them,
# and each matters least. Taylor's importance is measured in the loss, and can be compared across layers. *Within* a layer of this
# network the sum times gain orders the filters better than Taylor does (see the numbers above the first figure); that differs from
# network to network.
#
# So does the choice of filters, if every layer has to give the same share: over three seeds the intervals of the four criteria
# overlap widely, and even chance is not clearly worse. If the layers may give different shares, Taylor in one order is the best
# of all: a quarter of this network's filters for a few points, without any training.
#
# For *single* weights the surprise is on the right of the second figure: size does better than Taylor, once more than half of them go. Taylor's
# guess is about one weight alone, near the trained network; when most of them go together, the loss is no longer a straight
# line.

# %% [markdown]
# ### Question (10 points)
#
# Why is a filter with small weights not an unimportant filter? Write three to five sentences: what BatchNorm has to do with it,
# what the gain repairs and what it leaves out, and why the squares are taken batch by batch although the network is trained and
# its mean gradient is nearly zero. Use your figures.

# %% [markdown] tags=["written"] points=10 name="small_filters"
# BatchNorm divides each channel by the size of what the filter puts out, so a filter with half the weights does exactly the
# same; the sum of |w| then orders the filters by a number that has no effect, and it is no better than chance (77% with a
# tenth masked, random 91%). The gain γ/σ says how strongly the filter's output is passed on, so the product measures the
# size of what leaves the BatchNorm, and within a layer of this network it agrees with the truth (0.6 to 0.8). What it leaves out is
# what the next layers do with it: across layers it is upside down (rank correlation −0.5), because a large output in conv 3
# matters less than a small one in conv 1. Taylor asks the loss itself (0.7).
#
# At the minimum the mean gradient is nearly zero, so the mean of g·w is too, for important weights as well. But each batch
# pulls in its own direction, strongly where much depends on the weight; the square keeps these pulls from cancelling.

# %% [markdown]
# ## 8 · `prune_filters`: surgery
#
# To mask a filter, set $\gamma = \beta = 0$ in its BatchNorm: its channel is then zero. (To set its *weights* to zero is not
# enough: BatchNorm would turn them into the constant $\beta - \gamma \mu / \sigma$.) A channel of zeros adds nothing to what
# the next layer sums up. So all of it can be taken out, and the output stays the same:
#
# - the filter's row of `convs.k.weight`,
# - its four numbers in `norms.k`: `weight` ($\gamma$), `bias` ($\beta$), `running_mean` and `running_var`,
# - the input channel that it fed: a column of `convs.{k+1}.weight`, or of `head.weight` after the last convolution.
#
# What is left is an ordinary, smaller, dense network. `keep[k]` lists the filters that layer $k$ keeps.
#
# **Predict:** half of the filters of each layer go. What share of the weights is left, and what share of the multiply–adds? Of
# the time?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def prune_filters(state: State, keep: list[Int[Tensor, "kept"]]) -> State:
    """The small network, with the same names: of convolution k only the filters keep[k], in the order in which keep[k] lists them
    (Li et al. 2017, section 3). It computes what `state` computes with the other filters masked. `state` has
    convs.{k}.weight [o, i, 3, 3], norms.{k}.weight, .bias, .running_mean, .running_var [o] for each k,
    head.weight [classes, o of the last] and head.bias."""
    ### BEGIN SOLUTION
    small = dict(state)
    for k, stay in enumerate(keep):
        reader = f"convs.{k + 1}.weight" if k + 1 < len(keep) else "head.weight"
        small[reader] = small[reader][:, stay]
        for name in [f"convs.{k}.weight", *(f"norms.{k}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]:
            small[name] = small[name][stay]
    return small
    ### END SOLUTION


# %%
check(prune_filters)

# %% [markdown]
# The operation at five sizes, each followed by 100 steps of finetuning. (About 10 seconds.)

# %% tags=["experiment"]
rows_of = lambda gates: [gate.nonzero()[:, 0] for gate in gates]
small, half = {}, same_share(by_gain, 0.5)
difference = (pruning.forward(prune_filters(dense, rows_of(half)), quick.test_x) - pruning.forward(dense, quick.test_x, half)).abs().max()
print(f"largest difference of a logit between the small network and the masked one: {difference:.1e}")
for share in (1.0, 0.75, 0.5, 0.375, 0.25):
    cut = prune_filters(dense, rows_of(same_share(by_gain, share)))
    small[share] = cut, finetune(cut, from_the_start(None), 100)[0]
count = lambda state: sum(t.numel() for t in state.values())
work = [pruning.multiply_adds(cut) / 1e6 for cut, _ in small.values()]
curves = {"after the operation": [accuracy(cut) for cut, _ in small.values()], "and 100 steps": [accuracy(tuned) for _, tuned in small.values()]}
for share, m, (cut, _) in zip(small, work, small.values()):
    print(f"{share:.1%} of the filters: {count(cut) / count(dense):.1%} of the numbers, {m / work[0]:.1%} of the multiply-adds")
fig, ax = plots.figure(size=(7, 4), alt=f"Accuracy at {', '.join(f'{m:.2f}' for m in work)} million multiply-adds. {told(curves, '.1f')}.")
plots.lines(curves, x=work, ax=ax, alt="", logx=True, title="The same share of each layer, by sum times gain",
            xlabel="multiply–adds of an image (millions)", ylabel="test accuracy (%)")
ax.set_xticks(work, [f"{m:.2f}" for m in work])
ax.minorticks_off()
plots.show(fig)

# %% [markdown]
# The operation itself changes nothing: the logits of the masked and of the small network agree to the rounding of float32. Numbers
# and multiply–adds shrink with nearly the *square* of what is kept, since each layer loses outputs and inputs. What is lost by leaving
# out the filters, 100 steps bring back for the greater part: half of the filters, a quarter of the arithmetic, end within a few points
# of the dense network. The full run below has more steps, and seeds.

# %% [markdown]
# ## How fast?
#
# **Predict:** with a quarter of the multiply–adds left, how many times faster is the small network, with batches of 1, 32 and 256
# images? And the network with three quarters of its weights zero?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% [markdown]
# Two graded measurements. The multiply–adds are counted from the shapes of what your function returns; and batches of 256
# images are timed through the network with half of its filters removed, against the same filters masked. The logits are the
# same. (About 5 seconds.)

# %%
speed(prune_filters)

# %% [markdown]
# Masked filters are zeros in whole channels; pruned weights are zeros here and there. The next picture has both beside the small
# network, with batches of 1, 32 and 256 images. (About 15 seconds.)

# %% tags=["experiment"]
cut = prune_filters(dense, rows_of(half))
zeros = pruning.masked(dense, global_magnitude_masks(weights, 0.75))
masked = dense | {f"norms.{k}.{part}": dense[f"norms.{k}.{part}"] * half[k] for k in range(3) for part in ("weight", "bias")}
networks = {"half of the filters removed": cut, "half of the filters masked": masked, "75% of the weights zero": zeros}
ratios = {name: {batch: timing.compare(lambda x, net=net: pruning.forward(net, x), lambda x: pruning.forward(dense, x),
                                       lambda seed: (torch.rand(batch, 1, 14, 14),), seconds=1, device="cpu") for batch in (1, 32, 256)}
          for name, net in networks.items()}

def convolutions(net):
    """The three convolutions alone, on random images of the right sizes."""
    filters = list(pruning.weights(net).values())[:3]
    inputs = [torch.rand(256, w.shape[1], side, side) for w, side in zip(filters, (14, 7, 3))]
    return lambda: sum(F.conv2d(x, w, padding=1).flatten()[0] for x, w in zip(inputs, filters))

alone = timing.compare(convolutions(cut), convolutions(dense), lambda seed: (), seconds=1, device="cpu")

# %% tags=["experiment"]
times = {f"batch {batch}": {name: (r.ratio, r.low, r.high) for name in networks for r in [ratios[name][batch]]} for batch in (1, 32, 256)}
fewer = pruning.multiply_adds(dense) / pruning.multiply_adds(cut)
fig, ax = dots(times, title="Against the dense network (line: 95%)", xlabel=f"times as fast (dashed: {fewer:.1f} times fewer multiply–adds)", form="{:.2f}",
               alt=f"The small network has {fewer:.1f} times fewer multiply-adds. Times as fast as the dense network: {spoken(times)}.")
ax.axvline(fewer, color=plots.INK, linestyle=(0, (2, 2)))
ax.set_xlim(0, 1.05 * max(fewer, *(high for row in times.values() for _, _, high in row.values())))
plots.show(fig)
largest, best = ratios["half of the filters removed"][256], timing.peak_flops("cpu")
for name, net, took in (("dense", dense, largest.baseline_seconds), ("half of the filters", cut, largest.candidate_seconds)):
    print(f"256 images, {name}: {1e3 * took:.1f} ms; its multiply-adds alone would take {2e3 * 256 * pruning.multiply_adds(net) / best:.1f} ms "
          "at the best rate of a matrix product")
print(f"the three convolutions alone, 256 images: {alone.ratio:.2f} times as fast ({alone.low:.2f} to {alone.high:.2f})")

# %% [markdown]
# The small network gains much of what the count promises with large batches, but not all. BatchNorm, ReLU and pooling shrink
# with the filters, by two. The convolutions have a quarter of the multiply–adds, and still gain less than four (the last line below the
# figure): narrow ones come less near to the best rate, and conv 1, with its one input channel, shrinks only by two. With one
# image there is little to compute at all, and each operation costs something to start, however small it is.
#
# Zeros gain nothing where they are. Masked filters and scattered zeros are multiplied like all other numbers, and what differs
# from 1 is the noise of the measurement. To skip a single zero costs a processor more than to multiply it; lab 32 asks which
# patterns of zeros can be skipped.
#
# Both networks take longer than their limit, and the small one is further from its own: the limit is that of the product of two
# large matrices, and a convolution of few channels and small images is not one.
#
# (`timing.keep_memory`, in the cell that loads the network, matters here. Without it the C library gives a layer's result back to the system as soon
# as it is not needed any more, and gets the memory for the next one anew, page by page. That can take longer than the arithmetic,
# and the large network, whose results are larger, suffers more: the ratios would be those of the system. Leave the line out,
# restart, and see.)

# %% [markdown]
# ## The claim
#
# Overviews say: networks can be pruned to a fraction of their size with almost no loss; structured pruning makes them faster on
# ordinary, dense hardware; unstructured pruning by itself does not. How small is a fraction, if half a point is "almost no
# loss"?
#
# You have seen one network. The full run trains three, prunes each in several ways to a quarter, an eighth and a sixteenth of
# the weights, finetunes for 200 steps, and compares with the *dense* network trained on for as long; and it does the same for
# networks that read mnist5k, handwritten digits of ten classes. Here are its results beside a quick run of your own, with 100
# steps. (About 25 seconds.)
#
# **Predict:** how many times fewer weights for half a point: if every layer gives the same share, in one order, and little by
# little?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
mine = {}
control = accuracy(finetune(dense, from_the_start(None), 100)[0])
for factor in (4, 8, 16):
    s = 1 - 1 / factor
    for name, masks_at in {"size, one order": from_the_start(global_magnitude_masks(weights, s)), "little by little": gradually(s, 60)}.items():
        mine.setdefault(f"yours, 100 steps: {name}", {})[factor] = control - accuracy(finetune(dense, masks_at, 100)[0])

# %% tags=["experiment"]
methods = {name: row["loss"] for name, row in full["single"]["methods"].items()}
curves = {name: ([int(f) for f in row], [v[0] for v in row.values()]) for name, row in methods.items()} | {
    name: (list(row), list(row.values())) for name, row in mine.items()}
fig, ax = plots.figure(size=(9.4, 4.6), alt="Points of accuracy lost against how many times fewer weights are left. " + "; ".join(
    f"{name}: {', '.join(f'{y:.1f} at {x}' for x, y in zip(*curve))}" for name, curve in curves.items()) + ".")
plots.lines(curves, ax=ax, alt="", logx=True, limits={"half a point": 0.5},
            title="Lost against the dense network, trained on for as long (mean of three seeds; yours: one)", xlabel="times fewer weights",
            ylabel="points lost (logarithmic from 2 on)")
for line in [*ax.get_lines(), *ax.get_legend().legend_handles]:
    if str(line.get_label()).startswith("yours"):
        line.set(linewidth=3.5, markersize=9)
ax.set_yscale("symlog", linthresh=2)
ax.set_ylim(min(-0.2, 1.3 * min(min(row) for _, row in curves.values())), 50)
ax.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50], [0, 0.5, 1, 2, 5, 10, 20, 50])
ax.set_xticks([4, 8, 16], [4, 8, 16])
ax.minorticks_off()
plots.show(fig)

# %% tags=["experiment"]
half_a_point = {name: row["half a point"] for name, row in full["single"]["methods"].items()}
measured = {name: v for name, v in half_a_point.items() if v[0] >= 4}  # below 4 there is no measurement to interpolate from
plots.bars({name: v[0] if name in measured else None for name, v in half_a_point.items()}, missing="less than 4", form="{:.1f}",
           intervals={name: tuple(v[1:]) for name, v in measured.items()}, width=8.4,
           title="How many times fewer weights for half a point (line: 95%, three seeds)", xlabel="times fewer weights (16 or more count as 16)",
           alt="How many times fewer weights for half a point: " + "; ".join(
               f"{name} {f'{v[0]:.1f} ({v[1]:.1f} to {v[2]:.1f})' if name in measured else 'less than 4'}" for name, v in half_a_point.items()) + ".")
cost = per_share(full["filters"]["finetuned"])
fig, _ = dots(cost, title="Filters: points lost after 200 steps (mean of three seeds; line: 95%)", xlabel="points of test accuracy",
              alt=f"Points lost after finetuning. {spoken(cost)}.")
plots.show(fig)

# %% tags=["experiment"]
longer = full["filters"]["longer"]
print(f"half of the filters after 600 steps: {longer[0]:.1f} points lost ({longer[1]:.1f} to {longer[2]:.1f})")
for name, row in full["digits"]["methods"].items():
    print(f"mnist5k, {name}: " + ", ".join(f"{v[0]:.1f} points lost ({v[1]:.1f} to {v[2]:.1f}) with {f} times fewer weights" for f, v in row["loss"].items())
          + "; half a point at {:.1f} ({:.1f} to {:.1f})".format(*row["half a point"]))

# %% [markdown]
# How much smaller depends on how one chooses. With all weights in one order half a point buys about seven times fewer (the
# interval of three seeds is wide), with the same share of each layer less than four times, the least that was measured: conv 1 breaks.
# Taylor's importance is no better than size here. On mnist5k about eleven times fewer weights cost half a point, with an
# interval from 5 to 25. (Each seed's curve is interpolated, and then the mean is taken: it is not quite where the mean curve
# crosses the line.)
#
# Little by little gains nothing over at once up to sixteen times fewer, if both have the same 200 steps. In exercise 4, at 33
# times fewer, it gained much: it pays where pruning at once destroys the network. Twice the steps help as well (what they would do
# for pruning at once was not measured).
#
# Filters are dearer. Half of them are a quarter of the weights, and cost about a point, where the same number of single weights costs
# next to nothing; with three times the steps the small network comes within a point of the dense one. After the finetuning
# it matters little how the filters were chosen: with half of them kept chance is the worst on average, and the others' intervals overlap.

# %% [markdown]
# Does the small network need the trained weights, or only their masks? Frankle and Carbin set the weights that stay back to what
# they were before the training, and train again with the masks; Renda et al. go back to an early step (*rewinding*). Take the
# masks of the sixteenth that stays, and train for 300 steps: from the trained weights (at a learning rate that falls from 0.1), from
# those of step 100 or of step 0 of the 1200, or from new random ones (these three from 0.2). **Predict:** the order of the four.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
back = {name: v for name, v in full["rewinding"].items() if type(v) is list}
fig, _ = dots({"accuracy": back}, title="The same masks, 300 steps more (three seeds; line: 95%)", xlabel="test accuracy (%), from 85 on", limits=(85, 100),
              alt="Test accuracy in the full run: " + "; ".join(f"{name} {v[0]:.1f} ({v[1]:.1f} to {v[2]:.1f})" for name, v in back.items()) + ".")
plots.show(fig)

# %% [markdown]
# The weights of step 100 are as good a start as the trained ones (each at its own learning rate): what the other 1100 steps did
# for the network is in the masks.
# (In the course's run all three seeds end at 96.6%; that they agree so well is chance.)
# The weights of the start, with the same masks, end about two points below, and new ones far behind. So a mask fits the weights
# that it was made with, and those had found their direction early. That is what is left of the *lottery ticket* here: the
# masks alone are not enough.

# %% tags=["experiment"]
claims.show("21-shrink", measured="; ".join(
    f"{name.removeprefix('yours, 100 steps: ')}: {', '.join(f'{v:.1f} points at {f} times fewer' for f, v in row.items())}" for name, row in mine.items()))
claims.show("21-structured-faster", measured="half of the filters: " + ", ".join(
    f"{r.ratio:.1f} times as fast with {batch} image{'s' * (batch > 1)}" for batch, r in ratios["half of the filters removed"].items()))
claims.show("21-unstructured-not-faster", measured="75% of the weights zero: " + ", ".join(
    f"{r.ratio:.2f} times as fast with {batch} image{'s' * (batch > 1)}" for batch, r in ratios["75% of the weights zero"].items()))

# %% [markdown]
# ### Question (15 points)
#
# Are the claims right? Write five to eight sentences: how many times smaller your network became for half a point, by weights
# and in bytes, and what that depends on; what the same loss buys if whole filters go; whether your small network is as many
# times faster as it has fewer multiply–adds, and why not; and which of the two you would use on this machine. Use your numbers.

# %% [markdown] tags=["written"] points=15 name="claim"
# They hold, if one says what "small" means. With all weights in one order half a point buys 7.5 times fewer weights in the full run
# (4.7 to 11.9, three seeds), on mnist5k 11 (5 to 25), with the same share of each layer less than four times: the first convolution
# breaks. In bytes it is less, because the places have to be stored too: with an eighth of the weights the network is 6.4 times smaller. If whole
# filters go, half of them, a quarter of the weights, cost a point or more after 200 steps and 0.7 after 600, where as many
# single weights cost 0.1.
#
# The small network has 3.9 times fewer multiply–adds, and is not 3.9 times as fast. In the full run it was 1.9 times as fast with one
# image, since the start of each operation costs the same however small it is, and 2.6 times with 256, since BatchNorm, ReLU and pooling
# shrink only by two and narrow convolutions come less near to the best rate. Three quarters of the weights zero gave nothing at
# any size, because zeros are multiplied like other numbers. On this machine I would remove filters for speed, and single weights only
# to make the file smaller.


# %% [markdown]
# ## Optional · `sensitivity`: one layer at a time
#
# How much can each layer lose *alone*? Prune one of them, leave all others whole, measure, and put it back. It is the usual
# first look at a new network: it finds the layer that must be left alone.
#
# **Predict:** conv 1 you know. Which of the other three can lose most before the accuracy falls, and which least?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def sensitivity(accuracy: Callable[[list[Tensor]], float], weights: list[Float[Tensor, "*shape"]],
                sparsities: list[float]) -> Float[Tensor, "layers sparsities"]:
    """Entry [i, j]: what `accuracy` says of all weights (a list, in order) when only weight i is pruned, by magnitude_mask at
    sparsities[j]."""
    ### BEGIN SOLUTION
    table = torch.zeros(len(weights), len(sparsities))
    for i, weight in enumerate(weights):
        for j, sparsity in enumerate(sparsities):
            pruned = weight * magnitude_mask(weight, sparsity)
            table[i, j] = accuracy([*weights[:i], pruned, *weights[i + 1:]])
    return table
    ### END SOLUTION


# %%
check(sensitivity)

# %% tags=["experiment"]
levels = [0.2, 0.5, 0.7, 0.8, 0.9, 0.95]
of_weights = lambda given: accuracy(dense | dict(zip(pruning.weights(dense), given)))
table = sensitivity(of_weights, weights, levels)
by_layer = dict(zip(LAYERS, table))
plots.lines(by_layer, x=[100 * s for s in levels], title="One layer pruned, the others whole", xlabel="sparsity of the one layer (%)",
            ylabel="test accuracy (%)", alt=f"Accuracy at a sparsity of {', '.join(f'{s:.0%}' for s in levels)} of one layer. {told(by_layer)}.")

# %% [markdown]
# conv 1 hurts at once, as we saw, and conv 2 is the next. One threshold for all agrees with this picture for the convolutions: it
# took least from conv 1 and most from conv 3. But it left the head nearly whole, which could lose four fifths alone and hardly
# notice. An order by size is a good guess, not the best that is possible.

# %% [markdown]
# ## Optional · `soft_threshold`: weights that want to be zero
#
# Instead of choosing weights afterwards, let the training make zeros: add $\lambda \sum |w|$ to the loss. Its gradient,
# $\pm\lambda$, jumps at zero, and steps along it leap over zero for ever. The *proximal* step does better: after the ordinary
# step, every weight comes nearer to zero by $t = \eta \lambda$, and stops there:
#
# $$\operatorname{prox}(w) = \arg\min_x \tfrac12 (x - w)^2 + t\,|x| = \operatorname{sign}(w) \max(|w| - t, 0).$$
#
# **Predict:** 150 steps from the trained network, without λ and with two values of it. What share of the weights is exactly zero
# then? And if the networks are then pruned by size, how much more can go than without λ, before the accuracy falls?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def soft_threshold(w: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """Every number nearer to zero by t, those up to t exactly zero: the proximal step of t * |x| (Parikh & Boyd 2014, section 6.5.2)."""
    ### BEGIN SOLUTION
    return w.sign() * (w.abs() - t).clamp(min=0)
    ### END SOLUTION


# %%
check(soft_threshold)

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
def proximal_step(param, grad, state, mask, lr, strength, **hyper):
    """An ordinary step, and then the proximal one, for the weights alone: the vectors of BatchNorm and head are left as they are."""
    new, state = masked_step(param, grad, state, mask, lr=lr, **hyper)
    return (soft_threshold(new, lr * strength) if param.ndim > 1 else new), state

def after_training_with(strength):
    return finetune(dense, from_the_start(None), 150, step=proximal_step, strength=strength, weight_decay=0.0)[0]

trained_with = {f"λ = {strength:g}": after_training_with(strength) for strength in (0, 0.003, 0.01)}

# %% tags=["experiment"]
then_pruned, steps_of_s = {}, (0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
for name, state in trained_with.items():
    own = list(pruning.weights(state).values())
    then_pruned[name] = [accuracy(pruning.masked(state, global_magnitude_masks(own, s))) for s in steps_of_s]
    print(f"{name}: {100 * torch.cat([w.flatten() == 0 for w in own]).float().mean():.0f}% of the weights are exactly zero")
plots.lines(then_pruned, x=[100 * s for s in steps_of_s], title="150 steps, then pruned by size, and nothing more", xlabel="sparsity (%)",
            ylabel="test accuracy (%)", alt=f"Accuracy at a sparsity of {', '.join(f'{s:.0%}' for s in steps_of_s)}. {told(then_pruned)}.")

# %% [markdown]
# Fewer weights than hoped are exactly zero, and more λ does not make more of them: the gradients of single batches are larger than
# λ, and pull the weights off zero again. But what the network does not need has become small. Pruned by size, it keeps its
# accuracy to far higher sparsities than without λ, for some tenths of a point at the start. L1 does not choose well by itself; it
# makes the choice easy.

# %% [markdown]
# ## Optional · `hard_concrete_gate`: gates that learn
#
# Or count the open gates in the loss: $\lambda \sum_j [z_j \neq 0]$, an L0 norm, which has no gradient. Louizos et al. make the
# gate random, and train its probability. With noise $u \in (0, 1)$ and one parameter $\log\alpha$ for each gate:
#
# $$s = \operatorname{sigmoid}\!\Big(\frac{\log u - \log(1 - u) + \log\alpha}{\beta}\Big), \qquad z = \min\!\big(1, \max(0,\; s\,(\zeta - \gamma) + \gamma)\big).$$
#
# With $\gamma < 0$ and $\zeta > 1$ the interval is stretched beyond 0 … 1 and clamped, so that $z$ is *exactly* 0 or 1 often,
# and has a gradient in between. The chance to be open, and the gate used for evaluation, without noise:
#
# $$P(z \neq 0) = \operatorname{sigmoid}\!\Big(\log\alpha - \beta \log\frac{-\gamma}{\zeta}\Big), \qquad \hat z = \min\!\big(1, \max(0,\; \operatorname{sigmoid}(\log\alpha)(\zeta - \gamma) + \gamma)\big).$$
#
# (These γ and β are the paper's, and have nothing to do with BatchNorm's.)
#
# **Predict:** we train the 224 gates and nothing else, 150 steps. Do they find better filters than Taylor's guess, which needs
# no training?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def hard_concrete_gate(log_alpha: Float[Tensor, "n"], u: Float[Tensor, "n"], beta: float = 2 / 3, gamma: float = -0.1,
                       zeta: float = 1.1) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The sample z, the probability that z is not zero, and the gate for evaluation (Louizos et al. 2018, equations 10 to 13).
    Differentiable in log_alpha."""
    ### BEGIN SOLUTION
    stretched = lambda s: (s * (zeta - gamma) + gamma).clamp(0, 1)
    sample = stretched(torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta))
    probability = torch.sigmoid(log_alpha - beta * math.log(-gamma / zeta))
    return sample, probability, stretched(torch.sigmoid(log_alpha))
    ### END SOLUTION


# %%
check(hard_concrete_gate)

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
def learn_gates(cost, steps=150, batch=64):
    """Gates for each layer, after training them with `cost` nats for each gate that is open on average."""
    log_alpha, g = torch.full((224,), 2.0, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([log_alpha], lr=0.1)
    for _ in range(steps):
        i = torch.randint(len(glyphs.train_x), (batch,), generator=g)
        z, probability, _ = hard_concrete_gate(log_alpha, torch.rand(224, generator=g).clamp(1e-6, 1 - 1e-6))
        loss = F.cross_entropy(pruning.forward(dense, glyphs.train_x[i], z.split([32, 64, 128])), glyphs.train_y[i]) + cost * probability.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [(z > 0.5).float() for z in hard_concrete_gate(log_alpha.detach(), torch.full((224,), 0.5))[2].split([32, 64, 128])]

points = {"learned": [], "Taylor, one order": []}
for cost in (0.01, 0.03, 0.08):
    gates = learn_gates(cost)
    open_share = sum(float(z.sum()) for z in gates) / 224
    points["learned"].append((100 * (1 - open_share), accuracy(dense, gates)))
    points["Taylor, one order"].append((100 * (1 - open_share), accuracy(dense, across(taylor, open_share))))
    counts = [[int(z.sum()) for z in chosen] for chosen in (gates, across(taylor, open_share))]
    print(f"cost {cost}: open gates in the three layers {counts[0]}, Taylor's choice {counts[1]}")
curves = {name: tuple(zip(*rows)) for name, rows in points.items()}
plots.lines(curves, xlabel="filters masked (%)", ylabel="test accuracy (%)", title="The weights are not trained", alt="Accuracy by the filters masked. " + "; ".join(
    f"{name}: {', '.join(f'{a:.0f} at {s:.0f}%' for s, a in zip(*rows))}" for name, rows in curves.items()) + ".")

# %% [markdown]
# Taylor judges each filter as if all others stayed; the gates are trained together, and know of each other. The more filters go,
# the more that is worth: at half of them the learned gates keep most of the accuracy, and Taylor's choice little of it, although both
# spare conv 1 and take most from conv 3. The price is 150 steps of training, where Taylor needs 20 batches.

# %% [markdown]
# ## Going further
#
# - **Surveys.** Blalock et al. 2020, *What is the state of neural network pruning?*, found that papers hardly ever compare with
#   each other; Hoefler et al. 2021, *Sparsity in deep learning*, is the map of the field.
# - **Which.** LeCun et al. 1990 (optimal brain damage) and Hassibi & Stork 1993 use the Hessian: at a minimum the second order
#   is what counts. Molchanov et al. 2019 (Taylor); Li et al. 2017 (filters by their norm); Liu et al. 2017 (network slimming:
#   L1 on BatchNorm's γ); Louizos et al. 2018 (L0).
# - **When.** Han et al. 2015 (prune and retrain, again and again); Zhu & Gupta 2017; Frankle & Carbin 2019 (the lottery ticket)
#   and Renda et al. 2020 (rewinding); Lee et al. 2019 (SNIP: before training, by your `taylor_importance` at the first step);
#   Evci et al. 2020 (RigL: weights that come back, for which your `masked_step` is ready).
# - **Large language models.** Frantar & Alistarh 2023 (SparseGPT), Sun et al. 2024 (Wanda: size times the norm of the input, no
#   gradient at all).
# - **In production.** `torch.nn.utils.prune` holds masks as yours; Torch-Pruning (Fang et al. 2023) does the surgery for any
#   network, by following which tensors depend on which. GPUs multiply zeros faster only in the pattern 2:4, see lab 32.
#
# **Open ended.** Your filters were chosen one at a time, as if the others stayed. Two filters that do the same work are both
# dispensable, but not together. Can you find a set that is better than the best single ones, with no more than, say, ten times
# the work?
