# %% [markdown]
# # 23 · Distillation
#
# A large network answers "O, but it might be a 0"; the label says "O". What is in the first answer that is not in the
# second, and how much smaller can the network be that learns from it?
#
# By the end you will have made this picture: the accuracy of a small network against the number of its training
# images, once taught by labels and once by a teacher's soft answers, up to the place where the two can no longer be
# told apart.
#
# | | |
# | --- | --- |
# | Time | about 5 hours |
# | You need | softmax, cross entropy and its gradient, lab 11 |
# | Data | glyphs; they are on this machine, no network is needed |
# | A GPU adds | nothing: both networks are small |
#
# Before each experiment you are asked to **predict** its outcome. Write a line in the cell below the question, then
# run the experiment. A wrong prediction costs nothing and teaches the most. Code that would tell the outcome is
# folded: run it first, and then open it (a click on the three dots) and play with it.

# %% tags=["setup"]
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course import claims, data, distil, models, plots, timing, train, work
from course.check import check, find_lab, setup, speed

setup("23_distillation")

# %% [markdown]
# ### Notation
#
# The notation is that of Hinton, Vinyals & Dean 2015. For one image, $z_i$ are the logits of the network that learns and
# $v_i$ those of the teacher, one for each of $N$ classes. Their *soft answers* at the temperature $T$ are
#
# $$q_i = \frac{e^{z_i/T}}{\sum_j e^{z_j/T}}, \qquad p_i = \frac{e^{v_i/T}}{\sum_j e^{v_j/T}}.$$
#
# A *hard* answer is the label, or the class of the largest logit. There are $B$ images in a batch; tensors of logits are
# [B, N]. To keep "student" for you, the network that learns is called *the small network* here.

# %% [markdown]
# ## The two networks
#
# They read characters of 36 classes, digits and capital letters, in 18 fonts and distorted. Both are three
# convolutions of stride 2; the small one has less than a third of the channels. They were trained by
# `make_networks.py`, which lies beside this notebook: the teacher with the labels of the 10,000 training images,
# `deployed` with the teacher's answers to 40,000 other images, which nobody had to label (it is used from exercise 8 on).
# All other small networks you will train yourself.

# %% tags=["experiment"]
torch.set_num_threads(1)  # small tensors: a second thread would only get in the way
glyphs = data.glyphs(12_000, classes=36, distortion=0.5)
x, y = glyphs.train_x, glyphs.train_y  # [10000, 1, 28, 28], [10000]
teacher, deployed = distil.networks(find_lab("23_distillation"))
with torch.no_grad():
    v = torch.cat([teacher(part) for part in x.split(500)])  # the teacher's logits for every training image, [10000, 36]
accuracy = lambda net: 100 * train.accuracy(net, glyphs.test_x, glyphs.test_y)  # per cent
for name, net in (("teacher", teacher), ("small network, as deployed later", deployed)):
    print(f"{name}: {models.n_parameters(net):,} parameters, accuracy {accuracy(net):.1f}%")

# %% [markdown]
# ## 1 · `softmax_T`: the answer at a temperature
#
# A trained network is sure of itself: nearly all of its answer lies on one class, and the rest, which says what the
# image is *similar* to, is too small to learn from. Dividing the logits by a temperature $T > 1$ melts the answer and
# lets the small numbers be seen. As $e^{z/T}$ may be too large for a float, subtract each row's largest logit first;
# the quotient is the same:
#
# $$q_i = \frac{e^{(z_i - \max_k z_k)/T}}{\sum_j e^{(z_j - \max_k z_k)/T}} .$$
#
# **Predict:** the teacher looks at a slanted Z, and is right. Which class comes second? At which temperature is the
# share of this second class the largest, and how large is it then?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def softmax_T(logits: Float[Tensor, "*rows N"], T: float = 1.0) -> Float[Tensor, "*rows N"]:
    """The soft answers at temperature T: softmax of logits / T over the last dimension (Hinton et al. 2015, equation 1).
    Differentiable, and right for logits of any size."""
    ### BEGIN SOLUTION
    z = (logits - logits.amax(-1, keepdim=True)) / T
    e = z.exp()
    return e / e.sum(-1, keepdim=True)
    ### END SOLUTION


# %%
check(softmax_T)

# %% [markdown]
# **Play.** Move the temperature, and look at other images. At which $T$ can you see best what an image is similar to?

# %% tags=["experiment"]
from course.sliders import Slider, show

def draw_answer(T, image):
    p = softmax_T(v[image], T)
    best = p.argsort(descending=True)[:8].tolist()
    words = ", ".join(f"{data.GLYPHS[k]} {p[k]:.3f}" for k in best)
    fig, (left, right) = plots.figure(columns=2, size=(8.4, 3.4), alt=f"Training image {image}, a {data.GLYPHS[y[image]]}, and the "
                                      f"teacher's eight largest answers at temperature {T:.1f}: {words}.")
    left.imshow(x[image, 0], cmap="gray")
    left.set(xticks=[], yticks=[], xlabel="")
    left.set_title(f"Image {image}, labelled {data.GLYPHS[y[image]]}", loc="left", **plots.TITLE)
    plots.bars({data.GLYPHS[k]: p[k].item() for k in best}, ax=right, alt="", title=f"The teacher at T = {T:.1f}",
        xlabel="probability p", form="{:.3f}")
    plots.show(fig)

slanted = int(((y == data.GLYPHS.index("Z")) & (v.argmax(1) == y)).nonzero()[3])
show(draw_answer, T=Slider(0.5, 30, start=4, log=True, label="temperature T"), image=Slider(0, 9999, start=slanted, step=1, label="image"))

# %% tags=["experiment"]
temperatures = torch.logspace(-0.3, 2, 60)
p = softmax_T(v[:2000] / temperatures[:, None, None]).sort(-1, descending=True).values  # [60, 2000, 36]
curves = {"largest": p[..., 0].mean(1), "second": p[..., 1].mean(1), "all others": p[..., 2:].sum(-1).mean(1)}
at_z = softmax_T(v[slanted] / temperatures[:, None]).sort(-1, descending=True)  # the slanted Z, [60, 36]
top_z = at_z.values[:, 1].argmax()
highest = curves["second"].argmax()
plots.lines({name: (temperatures, c) for name, c in curves.items()}, marks=False, logx=True, xlabel="temperature T",
    ylabel="mean probability",
            title="The teacher's answers to 2,000 images", limits={"1/36, all equal": 1 / 36},
            alt=f"Mean probability of the largest class, the second and all others against T. The largest falls, all others rise; the second "
            f"rises to {curves['second'][highest]:.3f} at T = {temperatures[highest]:.1f} and falls again.")
print(f"the slanted Z: second is {data.GLYPHS[at_z.indices[top_z, 1]]}, and has most of the answer, {at_z.values[top_z, 1]:.3f}, at T = {temperatures[top_z]:.1f}")

# %% tags=["experiment"]
p4 = softmax_T(v, 4.0)
similar = torch.stack([p4[y == k].mean(0) for k in range(36)])  # [36, 36], row: the label, column: the mean answer
pairs = (similar + similar.T).triu(1)  # both ways
top = pairs.flatten().argsort(descending=True)[:10].tolist()
names = [f"{data.GLYPHS[k // 36]} and {data.GLYPHS[k % 36]}" for k in top]
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4.6), alt=f"Left: the teacher's mean answer at T = 4 to the images of each "
    f"class, with the "
    f"class itself left out; a few pairs stand out. Right: the ten most similar pairs, {', '.join(names)}.")
left.imshow(similar.fill_diagonal_(float("nan")), cmap="cividis")
left.set_xticks(range(36), data.GLYPHS[:36], fontsize=7)
left.set_yticks(range(36), data.GLYPHS[:36], fontsize=7)
left.set(xlabel="answer", ylabel="label")
left.grid(False)
left.set_title("What the teacher finds similar", loc="left", **plots.TITLE)
plots.bars({name: pairs.flatten()[k].item() / 2 for name, k in zip(names, top)}, ax=right, alt="", title="The ten most similar pairs",
           xlabel="mean probability of the other one, T = 4", form="{:.3f}")
plots.show(fig)

# %% [markdown]
# 0 and O, 1 and I, 5 and S, C and G: the teacher was told that all 36 classes are different, and nothing of how
# different. It found by itself which ones share strokes, and says so in the small numbers of each answer. A label is
# silent about that: it treats a wrong G and a wrong W for a C alike. This is what Hinton calls *dark knowledge*, and
# it is different for each image: a slanted Z says something else than an upright one.
#
# For the slanted Z of the picture the second class is L, and its share is largest near $T = 5$, where it is no more than
# 0.08. At lower temperatures the Z takes it all; at higher ones all the others get as much, in the end 1/36 each.

# %% [markdown]
# ## 2 · `kd_loss`: learn from both
#
# The small network should answer as the teacher does, at the same temperature, and be right. The first is a
# Kullback–Leibler divergence, the second a cross entropy with the label $y$:
#
# $$L = \frac1B \sum_{\text{images}} \Big( \alpha\, T^2 \sum_i p_i \,(\ln p_i - \ln q_i) \;-\; \beta \ln q^{(T=1)}_y \Big).$$
#
# The factor $T^2$ makes up for the gradient of the divergence, which shrinks like $1/T^2$: with it $\alpha$ keeps its
# meaning when $T$ changes. (You will see why in the next exercise.) The sum goes over the classes, the mean over the
# images only. Use log-softmax: the logarithm of a probability that became zero is minus infinity.
#
# **Predict:** 720 labelled images, twenty of each class. How much better, in points of accuracy, is the small network
# if the teacher's answers to *the same 720 images* are known? Is a higher temperature better?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def kd_loss(student_logits: Float[Tensor, "B N"], teacher_logits: Float[Tensor, "B N"], labels: Int[Tensor, "B"],
            T: float = 4.0, alpha: float = 0.9, beta: float = 0.1) -> Float[Tensor, ""]:
    """alpha * T**2 * KL(p || q) at temperature T, plus beta * cross entropy with the labels at temperature 1; means over the batch
    (Hinton et al. 2015, section 2). Finite for logits of any size."""
    ### BEGIN SOLUTION
    log_p = (teacher_logits / T).log_softmax(1)
    log_q = (student_logits / T).log_softmax(1)
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return alpha * T**2 * soft + beta * F.cross_entropy(student_logits, labels)
    ### END SOLUTION


# %%
check(kd_loss)

# %% [markdown]
# The next cell trains all the small networks of this lab.

# %%
def learn(loss: Callable, pool: Tensor, steps: int = 300, channels=distil.SMALL, seed: int = 0, extra: tuple = ()) -> distil.ConvNet:
    """A fresh network, trained by Adam: at each step `i` are the numbers of 32 images drawn from `pool`, and loss(net, i) is made less.
    `extra`: tensors that learn along."""
    torch.manual_seed(seed)
    net, random = distil.ConvNet(channels).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*net.parameters(), *extra])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * max(0.02, 1 - step / steps)
        now = loss(net, pool[torch.randint(len(pool), (32,), generator=random)])
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
    return net.eval()

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
few = torch.arange(720)  # the classes come in random order, about twenty of each
taught = {"labels": learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), few)}
for T in (1.0, 4.0, 16.0):
    taught[f"T = {T:g}"] = learn(lambda net, i: kd_loss(net(x[i]), v[i], y[i], T, 1.0, 0.0), few)
found = {name: accuracy(net) for name, net in taught.items()}

# %% tags=["experiment"]
by_temperature = claims.full_run("23_distillation")["temperature"]
marks = (1, 2, 4, 8, 16)
words = {"T = 4": "T = 4, soft only", "T = 8": "T = 8, soft only", "alpha = 0.5": "T = 4, α = 0.5", "alpha = 0.9": "T = 4, α = 0.9",
         "mean over classes too, alpha = 0.9": "the same, mean over classes too"}
gains = {word: [100 * g for g in by_temperature["minus labels"][name]] for name, word in words.items()}
gained = lambda rows: "; ".join(f"{name} {100 * g:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" for name, (g, low, high) in rows.items())
fig, (left, right) = plots.figure(columns=2, size=(11, 4.2), alt=f"Left: test accuracy by temperature, yours: "
    f"{', '.join(f'{name} {a:.1f}%' for name, a in found.items())}; full run, means: "
    f"{', '.join(f'{name} {100 * a[0]:.1f}%' for name, a in by_temperature['accuracy'].items() if 'alpha' not in name)}. Right: points gained over "
    f"labels alone: "
    f"{', '.join(f'{name} {g[0]:.1f}' for name, g in gains.items())}.")
band = [[100 * by_temperature["accuracy"][f"T = {T}"][k] for T in marks] for k in range(3)]
plots.lines({"full run (band: 95%)": (marks, band[0]), "yours": ((1, 4, 16), [found[f"T = {T}"] for T in (1, 4, 16)])}, ax=left, alt="",
    logx=True,
            bands={"full run (band: 95%)": (band[1], band[2])}, limits={"labels, full run": 100 * by_temperature["accuracy"]["labels"][0]},
            title="Taught by soft answers alone", xlabel="temperature T", ylabel="test accuracy (%)")
left.set_xticks(marks, [str(T) for T in marks])
left.minorticks_off()
plots.bars({name: g[0] for name, g in gains.items()}, ax=right, alt="", title="Gain over labels, full run (95%)",
    xlabel="points gained over labels alone",
           intervals={name: g[1:] for name, g in gains.items()}, form="{:.1f}")
plots.show(fig)
print(f"labels alone, yours: {found['labels']:.1f}%; points that T = 1 gains, full run: {gained({'': by_temperature['minus labels']['T = 1']})}")

# %% [markdown]
# Same images, same number of steps, same network: in the full run the soft answers at $T = 8$ are worth 12.9 points
# more than the labels (95% interval 11.0 to 14.8, the same images and first weights compared). That is the best of the
# five temperatures; at 16 it is 8.5. At $T = 1$ they are worth nothing that could be measured over four seeds (your own
# one may differ by a point or two): on its own training images the teacher is so sure that its answer is the label.
# What helps is in the small numbers.
#
# $\alpha$ matters little here: the labels of a teacher that is right on its training images add nothing to its
# answers. But a slip in the mean does matter: `F.kl_div` with its default, `reduction="mean"`, divides by the classes
# too, and torch warns of it. With $\alpha = 0.9$ and 36 classes the soft part then counts a 36th of what was meant,
# and 4 of 10 points are lost. One of the course's source texts does so in its code (and swaps the two weights that
# its prose gives).

# %% [markdown]
# ## 3 · `kd_gradient`: what the small network feels
#
# The derivative of the soft part has a simple form (Hinton et al. 2015, equation 2). With the factor $T^2$, and the
# mean over the batch,
#
# $$\frac{\partial}{\partial z_i}\; \frac{T^2}{B}\, \mathrm{KL}(p \,\|\, q) = \frac{T}{B}\,(q_i - p_i).$$
#
# When $T$ is large compared with all logits, $e^{z/T} \approx 1 + z/T$, and what remains is the difference of the
# logits themselves, each less its mean over the classes (equation 4):
#
# $$\frac{T}{B}\,(q_i - p_i) \;\longrightarrow\; \frac{(z_i - \bar z) - (v_i - \bar v)}{B\,N} \qquad (T \to \infty).$$
#
# So at high temperature distillation is *logit matching*: least squares between the logits. At low temperature it
# ignores the logits of all classes that are far behind.
#
# **Predict:** at $T = 4$, is the gradient closer to that of the labels, or to that of logit matching? And without the
# factor $T^2$, how much shorter would it be at $T = 16$ than at $T = 1$?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def kd_gradient(student_logits: Float[Tensor, "B N"], teacher_logits: Float[Tensor, "B N"], T: float) -> Float[Tensor, "B N"]:
    """The gradient of T**2 * KL(p || q), averaged over the batch, for the small network's logits: T (q - p) / B. For T = math.inf its limit,
    the difference of the logits, each less its row's mean, divided by B N (Hinton et al. 2015, equations 2 to 4)."""
    ### BEGIN SOLUTION
    z, v = student_logits, teacher_logits
    if T == math.inf:
        return ((z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))) / z.numel()
    return T * (softmax_T(z, T) - softmax_T(v, T)) / len(z)
    ### END SOLUTION


# %%
check(kd_gradient)

# %% tags=["experiment"]
with torch.no_grad():
    z = taught["labels"](x[5000:5512])  # images that it has not been trained on
there, answer = v[5000:5512], F.one_hot(y[5000:5512], 36)
cosine = lambda a, b: F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
limit, hard_gradient = kd_gradient(z, there, math.inf), (softmax_T(z) - answer) / len(z)
above_one = torch.logspace(0, 3, 50).tolist()
grads = [kd_gradient(z, there, T) for T in above_one]
shrunk = (kd_gradient(z, there, 16.0).norm() / 16**2 / kd_gradient(z, there, 1.0).norm()).item()
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4), alt="Left: the cosine of the soft gradient with that of the labels falls "
    "as T grows, and with that of logit "
    f"matching rises to 1; at T = 4 they are {cosine(kd_gradient(z, there, 4.0), hard_gradient):.2f} and "
    f"{cosine(kd_gradient(z, there, 4.0), limit):.2f}. "
    "Right: the length of the gradient; without the factor T squared it falls by orders of magnitude.")
plots.lines({"gradient of the labels": [cosine(g, hard_gradient) for g in grads], "logit matching": [cosine(g, limit) for g in grads]},
    x=above_one, ax=left,
            alt="", logx=True, marks=False, title="Which way does it point?", xlabel="temperature T", ylabel="cosine with ...")
plots.lines({"with T²": [g.norm() for g in grads], "without": [g.norm() / T**2 for g, T in zip(grads, above_one)]}, x=above_one,
    ax=right, alt="", logx=True,
            logy=True, marks=False, limits={"labels": hard_gradient.norm().item()}, title="How long is it?", xlabel="temperature T",
            ylabel="length of the gradient")
plots.show(fig)
print(f"at T = 4: cosine with the labels' gradient {cosine(kd_gradient(z, there, 4.0), hard_gradient):.2f}, with logit matching "
    f"{cosine(kd_gradient(z, there, 4.0), limit):.2f}; without T² the gradient at T = 16 is {1 / shrunk:.0f} times shorter than at T = 1")

# %% [markdown]
# At low temperature the soft gradient points almost where the label's does: a teacher that is nearly always right and
# sure *is* a label. As $T$ grows it turns to the other extreme, in which each of the 36 logits has the same say,
# those of the hopeless classes too. In between lies a choice, how far down the list of unlikely classes to listen,
# and that is what the temperature chooses. On the right: with $T^2$ the gradient keeps about the same length from
# some temperature on. Without it there would be nothing left of the soft part beside the labels.

# %% [markdown]
# ## What the label does not say: a character never seen
#
# Take all images of one class away. From the others the small network learns the teacher's answers, all 36 numbers of
# them. It never sees the character, but is told how similar other characters are to it. (Hinton et al. 2015, section
# 3, withheld the digit 3.)
#
# In all its training that class never got the largest answer, and it may be given too little or too much. So we allow
# ourselves one number, a bias that is added to that class's logit. To choose it we look at no label and at no test
# image; we only know that each class is one in 36.

# %%
def share_bias(logits: Tensor, k: int, share: float) -> float:
    """The number to add to the logit of class k so that its mean probability becomes `share`."""
    low, high = -50.0, 50.0
    for _ in range(50):
        middle = (low + high) / 2
        moved = logits + middle * F.one_hot(torch.tensor(k), logits.shape[1])
        low, high = (middle, high) if moved.softmax(1)[:, k].mean() < share else (low, middle)
    return middle

# %% [markdown]
# **Predict:** of the test images of a B, how many does a network recognise that has never seen a B? And with that bias?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% [markdown]
# (About 10 seconds.)

# %% tags=["experiment"]
withheld = data.GLYPHS.index("B")  # another one: change it here
never_b = (y != withheld).nonzero()[:, 0]
without_b = learn(lambda net, i: kd_loss(net(x[i]), v[i], y[i], 4.0, 1.0, 0.0), never_b, steps=600)
with torch.no_grad():
    z_test, z_other = without_b(glyphs.test_x), without_b(x[:3600])  # the second for the bias: images without labels
bias_b = share_bias(z_other, withheld, 1 / 36)
recall = lambda bias: 100 * ((z_test + bias * F.one_hot(torch.tensor(withheld), 36)).argmax(1) == withheld)[glyphs.test_y == withheld].float().mean().item()
right_at = lambda bias: 100 * ((z_test + bias * F.one_hot(torch.tensor(withheld), 36)).argmax(1) == glyphs.test_y).float().mean().item()
grid = torch.linspace(-3, 12, 61).tolist()
plots.lines({f"images of {data.GLYPHS[withheld]} recognised": [recall(t) for t in grid], "accuracy, all 36 classes": [right_at(t) for t in grid],
             "without test data": ([bias_b, bias_b], [0, 100])}, x=grid, marks=False, title=f"It has never seen a {data.GLYPHS[withheld]}",
             xlabel=f"number added to the logit of {data.GLYPHS[withheld]}",
            ylabel="of the test images (%)", alt=f"Share of the images of {data.GLYPHS[withheld]} that are recognised: {recall(0):.0f}% as the "
            f"network is, {recall(bias_b):.0f}% with the bias of "
            f"{bias_b:.1f} that was found without test data; the accuracy on all classes is {right_at(0):.1f}% and {right_at(bias_b):.1f}%. A larger "
            f"bias recognises more of the class and spoils the others.")

# %% [markdown]
# From what the teacher said about other characters ("this 8 is a little like a B, and so is this P") it recognises
# some images of one that it has never seen; how many, depends on the character and the seed: 18% for B, 1% for 3 and
# 47% for K in the full run (two seeds). With the bias it is most of them: 77%, 73% and 98%. What was missing was
# mostly the courage, not the knowledge. Hard labels of the other classes could not have taught any of it.
#
# The bias was found from the answers to 3,600 training images, labels unseen, B among them, and from the knowledge
# that each class is one in 36. To choose the best point of the curve itself would be to choose with test data.

# %% [markdown]
# ## 4 · `pseudo_labels`: a teacher's answer in place of a label
#
# Labels are expensive, images are not. Let a network that was trained on a few labels answer for images that have
# none, and believe it where it is sure: keep an image if the largest probability, at temperature 1, is at least the
# *threshold* $\tau$,
#
# $$\text{keep} = \big[\max_i p_i \ge \tau\big].$$
#
# The target is either *hard*, 1 at the best guess (Lee 2013; Sohn et al. 2020), or *soft*, the whole answer at
# temperature $T$.
#
# **Predict:** a small network trained on 360 labels is right for about a third of the test images. Of those for which
# it says "I am at least 90% sure", what share is right? And how many are they?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def pseudo_labels(logits: Float[Tensor, "B N"], threshold: float = 0.9, hard: bool = True,
                  T: float = 1.0) -> tuple[Float[Tensor, "B N"], Bool[Tensor, "B"]]:
    """(targets, keep). targets: a row of probabilities for each image, kept or not: one-hot at the best guess if `hard`, else softmax_T(logits, T).
    keep: where the largest probability at temperature 1 is at least the threshold (Sohn et al. 2020, equation 4)."""
    ### BEGIN SOLUTION
    p = softmax_T(logits)
    keep = p.amax(1) >= threshold
    targets = F.one_hot(p.argmax(1), p.shape[1]).to(p.dtype) if hard else softmax_T(logits, T)
    return targets, keep
    ### END SOLUTION


# %%
check(pseudo_labels)

# %% [markdown]
# (About 5 seconds.)

# %% tags=["experiment"]
labelled, unlabelled = torch.arange(360), torch.arange(360, len(x))
first = learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), labelled)
with torch.no_grad():
    own_logits = torch.cat([first(part) for part in x.split(500)])
thresholds = [0.0, *(k / 100 for k in range(20, 99, 2)), 0.99, 0.995, 0.999]
curves = {"kept": [], "right among the kept": []}
for threshold in thresholds:
    targets, keep = pseudo_labels(own_logits[unlabelled], threshold)
    good = targets.argmax(1) == y[unlabelled]
    curves["kept"].append(100 * keep.float().mean().item())
    curves["right among the kept"].append(100 * good[keep].float().mean().item() if keep.sum() >= 20 else math.nan)  # fewer say nothing
at = thresholds.index(0.9)
plots.lines(curves, x=thresholds, marks=False, title="A network of 360 labels looks at 9,640 other images", xlabel="threshold τ",
    ylabel="share of the images (%)",
            alt=f"Against the threshold: the share of images kept falls, the share of right guesses among them rises. At "
            f"{thresholds[at]:.2f}, {curves['kept'][at]:.0f}% "
                f"are kept, and {curves['right among the kept'][at]:.0f}% of these are right.")
print(f"at τ = 0.9: {curves['kept'][at]:.1f}% of the images are kept, {curves['right among the kept'][at]:.0f}% of these are right")

# %% [markdown]
# Which of its surest guesses are wrong?

# %% tags=["experiment"]
targets, keep = pseudo_labels(own_logits[unlabelled], 0.9)
certainty = softmax_T(own_logits[unlabelled]).amax(1)
wrong = (keep & (targets.argmax(1) != y[unlabelled])).nonzero()[:, 0]
worst = wrong[certainty[wrong].argsort(descending=True)][:10].tolist()
said = [f"{data.GLYPHS[targets[m].argmax()]}, {100 * certainty[m]:.1f}%, labelled {data.GLYPHS[y[unlabelled[m]]]}" for m in worst]
if worst:
    fig, panels = plots.figure("Sure, and wrong", columns=max(2, len(worst)), size=(11, 1.9),
        alt=f"The surest wrong guesses: {'; '.join(said)}.")
    for ax, m in zip(panels, worst):
        ax.imshow(x[unlabelled[m], 0], cmap="gray")
        ax.set(xticks=[], yticks=[], xlabel=f"{data.GLYPHS[targets[m].argmax()]}, not {data.GLYPHS[y[unlabelled[m]]]}")
    plots.show(fig)
else:
    print("None of the guesses above 90% is wrong.")

# %% [markdown]
# The network becomes better with the threshold, but slowly: of the guesses that it calls 90% sure, far fewer than 90%
# are right. In 300 steps of 32 it has seen each of its 360 images 27 times, has learnt them by heart, and is too sure of
# new ones. And what it keeps is no fair sample:
# whole classes may be missing. Many of the wrong guesses above are between characters that look alike; learnt as labels,
# they will be made again, with more certainty.

# %% [markdown]
# ## 5 · `mixed_loss`: labelled and unlabelled images together
#
# Each step takes a batch of images with labels $y$ and a batch of $B_u$ images without, with their targets $t$ and
# the flags of those that are kept:
#
# $$L = \mathrm{CE}(z, y) \;-\; \frac{\text{weight}}{B_u} \sum_{\text{kept}} \sum_i t_i \ln q_i ,$$
#
# where $q$ is the answer to the unlabelled image at temperature 1. Divide by *all* $B_u$ images, not by those kept: a
# network that is sure of only one image in a batch should not listen to that one as to a whole batch; and if it is
# sure of none, there is no $0/0$.
#
# **Predict:** 360 images with labels and 9,640 without. Order these by accuracy: labels only; the network's own
# pseudo-labels; the large teacher's answers to the unlabelled images.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def mixed_loss(z: Float[Tensor, "B N"], labels: Int[Tensor, "B"], z_u: Float[Tensor, "B_u N"], targets: Float[Tensor, "B_u N"],
               keep: Bool[Tensor, "B_u"], weight: float = 1.0) -> Float[Tensor, ""]:
    """Cross entropy of the labelled images, plus weight times that of the unlabelled ones with their targets: the sum over those that are
    kept, divided by B_u (Sohn et al. 2020, equations 3 and 4)."""
    ### BEGIN SOLUTION
    each = -(targets * z_u.log_softmax(1)).sum(1)
    return F.cross_entropy(z, labels) + weight * (each * keep).mean()
    ### END SOLUTION


# %%
check(mixed_loss)

# %% [markdown]
# (About 15 seconds.)

# %% tags=["experiment"]
def with_unlabelled(targets, keep):
    """The loss of a batch of labelled images and one of unlabelled ones; targets and flags are for all 10,000 images."""
    random = torch.Generator().manual_seed(1)
    def loss(net, i):
        j = unlabelled[torch.randint(len(unlabelled), (32,), generator=random)]
        z, z_u = net(torch.cat([x[i], x[j]])).split(32)
        return mixed_loss(z, y[i], z_u, targets[j], keep[j])
    return loss

with_360 = {"labels only": accuracy(first),
        "its own, hard, 0.9": accuracy(learn(with_unlabelled(*pseudo_labels(own_logits, 0.9)), labelled)),
        "the teacher's, hard": accuracy(learn(with_unlabelled(*pseudo_labels(v, 0.0)), labelled)),
        "the teacher's, soft": accuracy(learn(with_unlabelled(*pseudo_labels(v, 0.0, hard=False)), labelled))}
in_full_run = claims.full_run("23_distillation")["unlabelled"]["accuracy"]
fig, (left, right) = plots.figure(columns=2, size=(11.6, 3.6),
    alt=f"Test accuracy with 360 labels. Yours: {', '.join(f'{name} {a:.1f}%' for name, a in with_360.items())}. Full run: "
                                  f"{', '.join(f'{name} {100 * a[0]:.1f}%' for name, a in in_full_run.items())}.")
plots.bars(with_360, ax=left, alt="", title="Yours, one seed", xlabel="test accuracy (%)", form="{:.1f}")
plots.bars({name: 100 * a for name, (a, *_) in in_full_run.items()}, ax=right, alt="", title="Full run (95% intervals)",
    xlabel="test accuracy (%)", form="{:.1f}",
           intervals={name: [100 * e for e in a[1:]] for name, a in in_full_run.items()})
plots.show(fig)
print("points gained over labels only, full run:", gained(claims.full_run("23_distillation")["unlabelled"]["minus labels only"]))

# %% [markdown]
# The teacher's answers are worth as much as 9,640 true labels: in the full run all three lower bars are the same
# within their intervals. The network's own pseudo-labels give little (the full run finds 2.4 points for the hard
# ones, with an interval that contains zero, and 4.3, from 2.1 to 6.6, for soft ones without a threshold): they cannot
# say what it does not know. Methods that live on pseudo-labels, such as FixMatch, add what is missing here: strong
# distortions of the images, under which the answer must stay the same.
#
# On so many images soft and hard answers of the teacher are equally good. (Here the temperature is 1, at which they are
# nearly the same.)

# %% [markdown]
# ## 6 · `feature_loss`: listen to the middle
#
# The teacher has more to say than its last layer. Its inner maps have $C$ channels, the small network's only $c$; so
# a matrix $W$ of $C \times c$ numbers, a 1 × 1 convolution, is learnt along, and is thrown away afterwards (Romero et
# al. 2015, equation 3, with the mean in place of half the sum):
#
# $$L_{\text{hint}} = \operatorname{mean}\big( (W a - A)^2 \big), \qquad a: [B, c, h, w], \quad A: [B, C, h, w],$$
#
# where $W$ multiplies the channels at each place, and the mean goes over images, channels and places.
#
# **Predict:** 360 images. Does it help to learn the teacher's second layer first, and then its answers? More than
# learning the answers all the time?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def feature_loss(student_map: Float[Tensor, "B c h w"], teacher_map: Float[Tensor, "B C h w"],
    projection: Float[Tensor, "C c"]) -> Float[Tensor, ""]:
    """The mean square of projection times student_map, over the channels at each place, less teacher_map (FitNets, Romero et al. 2015).
    Differentiable for the student's map and for the projection."""
    ### BEGIN SOLUTION
    projected = torch.einsum("Cc,bchw->bChw", projection, student_map)
    return (projected - teacher_map).square().mean()
    ### END SOLUTION


# %%
check(feature_loss)

# %% [markdown]
# (About 10 seconds.)

# %% tags=["experiment"]
with torch.no_grad():
    inner = torch.cat([teacher.maps(part)[1] for part in x[labelled].split(180)])  # [360, 80, 7, 7]
W = torch.randn(80, 24, generator=torch.Generator().manual_seed(0)).div_(5).requires_grad_()
heard = []

def hint_then_answers(net, i, first=100):
    """100 steps of the second layer's map alone, then the answers."""
    hint = feature_loss(net.maps(x[i])[1], inner[i], W)
    heard.append(hint.item())
    return hint if len(heard) <= first else kd_loss(net(x[i]), v[i], y[i], 4.0, 1.0, 0.0)

hinted = accuracy(learn(hint_then_answers, labelled, extra=(W,)))
answered = accuracy(learn(lambda net, i: kd_loss(net(x[i]), v[i], y[i], 4.0, 1.0, 0.0), labelled))
with_hints = claims.full_run("23_distillation")["hints"]["accuracy"]
fig, (left, right) = plots.figure(columns=2, size=(11.6, 3.6), alt=f"Left: the hint's loss falls while it is trained, from "
    f"{heard[0]:.2f} to {heard[99]:.2f}, and is {heard[-1]:.2f} in the end. Right: "
    f"accuracy in the full run: {', '.join(f'{name} {100 * a[0]:.1f}%' for name, a in with_hints.items())}; yours: answers {answered:.1f}%, "
    f"hint first {hinted:.1f}%.")
plots.lines({"hint": heard}, ax=left, alt="", marks=False, title="The second layer's map: 100 steps, then the answers", xlabel="step",
    ylabel="feature_loss of the batch")
plots.bars({name: 100 * a for name, (a, *_) in with_hints.items()}, ax=right, alt="", title="Full run, 360 images (95% intervals)",
    xlabel="test accuracy (%)", form="{:.1f}",
           intervals={name: [100 * e for e in a[1:]] for name, a in with_hints.items()})
plots.show(fig)
print(f"yours: answers all the time {answered:.1f}%, hint first {hinted:.1f}%")

# %% [markdown]
# It does not help here. In the full run the answers alone reach 48.7%, the inner map for 100 of the 300 steps and
# then the answers 40.5%, both together 48.4%. The hint is learnt, the curve falls, but it costs steps that the
# answers could have used. FitNets were made for another case: students thinner *and deeper* than their teacher, which
# could hardly be trained from the end alone. This small network has three layers, and the answers reach them all.

# %% [markdown]
# ## 7 · `calibration_error`: does 90% mean 90%?
#
# A network is *calibrated* if of all answers given with 90% certainty nine in ten are right. Sort the $n$ images by
# their largest probability into $M$ bins of equal width, $((m-1)/M,\, m/M]$, and compare in each bin $m$ the share of
# right answers with the mean probability (Guo et al. 2017, equation 3):
#
# $$\mathrm{ECE} = \sum_{m=1}^{M} \frac{n_m}{n}\, \big|\, \text{share right}_m - \text{mean probability}_m \big| .$$
#
# **Predict:** of two small networks trained on the same 720 images, one with labels and one with the teacher's
# answers at $T = 4$, which one knows better how good it is? Neither has ever seen its test images; one of them has
# never seen a label.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def calibration_error(probs: Float[Tensor, "n N"], labels: Int[Tensor, "n"], bins: int = 15) -> float:
    """The expected calibration error: the size of the gap between the share of right answers and the mean of the largest probabilities, in each of
    `bins` equal bins from 0 to 1, weighed with the share of the images in it; an edge belongs to the bin below it (Guo et al. 2017)."""
    ### BEGIN SOLUTION
    sure, best = probs.max(1)
    bin = (sure * bins).ceil().long() - 1  # (m - 1) / M < sure <= m / M
    gap = torch.zeros(bins, dtype=probs.dtype).index_add(0, bin, (best == labels).to(probs.dtype) - sure)
    return gap.abs().sum().item() / len(labels)
    ### END SOLUTION


# %%
check(calibration_error)

# %% tags=["experiment"]
@torch.no_grad()
def test_logits(net):
    return torch.cat([net(part) for part in glyphs.test_x.split(500)])

asked = {name: test_logits(net) for name, net in (("teacher", teacher), ("720 labels", taught["labels"]), ("360 labels", first),
    ("720 soft answers, T = 4", taught["T = 4"]))}
errors = {name: 100 * calibration_error(softmax_T(z), glyphs.test_y) for name, z in asked.items()}
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4.2), alt=f"Left: share of right answers against the certainty, in ten bins. "
    f"Right: calibration error: {', '.join(f'{name} {e:.1f} points' for name, e in errors.items())}.")
shown = {}
for name, z in asked.items():
    certain, best = softmax_T(z).max(1)
    tenth = (certain * 10).ceil().long() - 1
    full = [m for m in range(10) if (tenth == m).sum() >= 10]  # fewer say nothing
    shown[name] = ([100 * certain[tenth == m].mean() for m in full], [100 * (best == glyphs.test_y)[tenth == m].float().mean() for m in full])
plots.lines({**shown, "calibrated": ([0, 100], [0, 100])}, ax=left, alt="", title="How sure, and how often right?",
    xlabel="mean of the largest probability in a bin (%)", ylabel="right answers in the bin (%)")
left.legend(loc="upper left", fontsize=8)
plots.bars(errors, ax=right, alt="", title="Calibration error, 15 bins", xlabel="points", form="{:.1f}")
plots.show(fig)

# %% [markdown]
# One seed says which way it goes. The full run has four, and more temperatures:

# %% tags=["experiment"]
calibration = {name: [100 * e for e in row] for name, row in claims.full_run("23_distillation")["temperature"]["calibration error"].items()
    if name == "labels" or name.startswith("T = ")}
plots.bars({name: e[0] for name, e in calibration.items()}, intervals={name: e[1:] for name, e in calibration.items()}, form="{:.1f}",
    title="Full run: calibration error after 720 images (95% intervals)", xlabel="points",
    alt=f"Calibration error: {', '.join(f'{name} {e[0]:.1f} ({e[1]:.1f} to {e[2]:.1f})' for name, e in calibration.items())}.")

# %% [markdown]
# The network that learnt from 720 labels knows quite well how good it is (3.2 points in the full run). That is not a
# virtue of labels: with 360, learnt by heart in the same 300 steps, it is far too sure. And the network that learnt
# the teacher's answers at $T = 4$ is better than both, and too sure as well (12 points).
#
# Why? The next thought would be that it has copied the certainty of a teacher that is right 98 times in 100. The
# second picture contradicts: at $T = 1$, where the teacher's certainty itself is learnt, the error is 3.7 points, as
# with labels; it comes with $T = 2$ (13.1) and is smaller again at 8 and 16 (8.4 and 8.2). So much is known. Those
# networks were asked at a temperature $T$ in training, where the teacher is less sure, and are read at 1, where nothing
# told them how sure to be; that may be the reason, but this lab has not tested it. That soft targets calibrate is often
# said; here they do not.
#
# The teacher errs in the other direction at the middle of the scale, where it has few images. One number can repair
# much: read the answers at another temperature (Guo et al. 2017). (It would have to be chosen on images that are used
# for nothing else. Here you play with the test images, to see what is possible.)
#
# **Play.** At which temperature is each network calibrated best?

# %% tags=["experiment"]
def draw_errors(T):
    at_T = {name: 100 * calibration_error(softmax_T(z, T), glyphs.test_y) for name, z in asked.items()}
    plots.bars(at_T, title=f"Calibration error when all answers are read at T = {T:.2f}", xlabel="points", form="{:.1f}",
               alt=f"Calibration error at temperature {T:.2f}: {', '.join(f'{name} {e:.1f} points' for name, e in at_T.items())}.")

show(draw_errors, T=Slider(0.3, 3, start=1, step=0.05, label="temperature T"))

# %% [markdown]
# ### Question (10 points)
#
# What is in a teacher's soft answer that the label does not have? Write three to five sentences. Name at least two of
# your measurements that show it. And what does learning at a high temperature do to the certainty of a network, and
# which measurement tells whether it was copied from the teacher?

# %% [markdown] tags=["written"] points=10 name="soft"
# It has the similarities between classes, for each image: the teacher gives 0 and O, or C and G, to each other,
# although every label told it that they are different. That is worth points where there are few images: with 720 of
# them I measured 60% at T = 4 against 50% with labels, and nothing at T = 1, where the small numbers are too small to
# be heard. And it can carry a whole class: a network that had never seen a B recognised some of them from what the
# teacher had said about other characters, and most of them after a bias that was found without test data. A network
# that has learnt at T = 4 is too sure of itself, 12 points of calibration error against 3.2 with labels (full run).
# It cannot have copied that from the teacher: at T = 1, where the teacher's own certainty is learnt, it is 3.7.

# %% [markdown]
# ## 8 · `deployed_net`: the small network at work
#
# What was it all for? A network that answers faster. Write its forward pass as you would deploy it: a function of
# images and of a dict with the trained numbers, named as in `deployed.state_dict()`. For $k = 0, 1, \dots$ there are
#
# - `convs.k.weight` [o, i, size, size], a convolution of stride 2, padded by size // 2, without a bias;
# - `norms.k.weight` $\gamma$, `norms.k.bias` $\beta$, `norms.k.running_mean` $\mu$, `norms.k.running_var` $\sigma^2$
#   of BatchNorm, all [o];
#
# and in the end `head.weight` and `head.bias`. Each layer computes $\operatorname{ReLU}\big(\gamma\,(u -
# \mu)/\sqrt{\sigma^2 + 10^{-5}} + \beta\big)$ of its convolution's output $u$. The norm is a factor and a shift for
# each channel, so it can be *folded* into weight and bias of the convolution, and then costs nothing for the images.
# (The folding itself takes some operations on small tensors. Inside of the function it is done at every call, and with
# one to four images it may cost more than it saves: in practice one folds once, and keeps the result. With 256 images
# it pays anyway.) Wanted is four times the teacher's speed, with 256 images at a time.
# After the last layer comes the mean over the places, then the linear head.
#
# **Predict:** the small network has a tenth of the teacher's multiply-adds. How many times faster is it, on one core,
# with 256 images at a time? With one?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def deployed_net(x: Float[Tensor, "B 1 h w"], state: dict[str, Tensor]) -> Float[Tensor, "B N"]:
    """The logits of the network with these numbers, BatchNorm in evaluation mode (with its running averages, eps = 1e-5). There are as many layers
    as there are "convs.k.weight" in the state."""
    ### BEGIN SOLUTION
    k = 0
    while f"convs.{k}.weight" in state:
        weight = state[f"convs.{k}.weight"]
        gain = state[f"norms.{k}.weight"] / (state[f"norms.{k}.running_var"] + 1e-5).sqrt()
        shift = state[f"norms.{k}.bias"] - gain * state[f"norms.{k}.running_mean"]
        x = F.conv2d(x, weight * gain.view(-1, 1, 1, 1), shift, stride=2, padding=weight.shape[-1] // 2).relu_()
        k += 1
    return F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])
    ### END SOLUTION


# %%
check(deployed_net)

# %% tags=["experiment"]
counted = {name: work.count(net, x[:1]) for name, net in (("teacher", teacher), ("small", deployed))}
of_both = {"parameters": [models.n_parameters(net) for net in (teacher, deployed)],
    "bytes in float32": [4 * models.n_parameters(net) for net in (teacher, deployed)],
         "multiply-adds an image": [counted[name].multiply_adds for name in counted]}
plots.bars({"teacher": {name: pair[0] for name, pair in of_both.items()},
    "small network": {name: pair[1] for name, pair in of_both.items()}}, log=True, form="{:,.0f}",
           title="What is counted", xlabel="number (logarithmic scale)", alt="; ".join(f"{name}: teacher {large:,}, small network "
           f"{little:,}" for name, (large, little) in of_both.items()) + ".")
for name, (large, little) in of_both.items():
    print(f"{name}: {large / little:.1f} times fewer")
state = {name: t for name, t in deployed.state_dict().items() if t.is_floating_point()}
same = (deployed_net(glyphs.test_x, state) - torch.cat([deployed(part) for part in glyphs.test_x.split(500)])).abs().max()
print(f"largest difference to the module's logits: {same:.1e}; accuracy: teacher {accuracy(teacher):.1f}%, small network "
    f"{accuracy(deployed):.1f}%")

# %% [markdown]
# Everything that can be counted is about ten times less. Whether time is saved as well has to be measured.

# %% [markdown]
# ## How fast?
#
# First the graded measurement: two batches of 256 images that neither network was trained on. Your function with the
# small network's numbers, against the teacher. The answers must be about as good as the teacher's. (A few seconds.)

# %%
speed(deployed_net)

# %% [markdown]
# And with other numbers of images at a time? The limit is the small network's multiply-adds at the rate of this
# machine's best matrix product. (About 10 seconds.)

# %% tags=["experiment"]
batches, measured = (1, 4, 16, 64, 256), {}
for batch in batches:
    some = lambda seed: (glyphs.test_x[torch.randint(2000, (batch,), generator=torch.Generator().manual_seed(seed))],)
    with torch.no_grad():
        measured[batch] = timing.compare(lambda images: deployed_net(images, state), teacher, some, seconds=1.5, device="cpu")
peak = [2 * counted["small"].multiply_adds / timing.peak_flops("cpu") for _ in batches]
speeds = claims.full_run("23_distillation")["speed"]["ratios"]

# %% tags=["experiment"]
ratios = [measured[n].ratio for n in batches]
fig, (left, right) = plots.figure(columns=2, size=(10.8, 4.2), alt=f"Left: the small network is {ratios[0]:.1f} times faster with one "
    f"image and {ratios[-1]:.1f} times with 256. Right: time for an "
    "image falls with the batch for both networks, and the small one stays far above the limit of its multiply-adds.")
plots.lines({"yours": ratios, "full run": [speeds[str(n)]["ratio"][0] for n in batches]}, x=batches, ax=left, alt="", logx=True,
            bands={"yours": ([measured[n].low for n in batches], [measured[n].high for n in batches])},
            limits={"multiply-adds": counted["teacher"].multiply_adds / counted["small"].multiply_adds, "graded, at 256": 4},
            title="Teacher's time / small network's (band: 95%)",
            xlabel="images at a time", ylabel="times faster")
plots.lines({"teacher": [1e6 * measured[n].baseline_seconds / n for n in batches],
    "small network": [1e6 * measured[n].candidate_seconds / n for n in batches],
             "limit: its multiply-adds": [1e6 * t for t in peak]}, x=batches, ax=right, alt="", logx=True, logy=True,
             title="Time for an image", xlabel="images at a time", ylabel="microseconds")
plots.show(fig)

# %% [markdown]
# With one image little is won: both networks start the same number of operations, and starting them is most of the
# work. (A function that folds at every call starts more. Fold before, and measure again.) The advantage comes with the batch. It does not simply become the ratio of the multiply-adds: the right
# picture shows how far above its own limit the small network stays; the teacher's limit lies nine and a half times
# higher than that. The ratio changes from one measurement to the next when the machine is busy, which is why the
# graded one is repeated and has an interval.

# %% [markdown]
# ## The claim
#
# The texts say that soft labels carry more information than hard ones, that rounds of distillation make a model
# several times smaller, and that quantising the small network afterwards saves once more. First: how much data does
# it take until the labels say as much? (About 30 seconds.)
#
# **Predict:** from how many images on does the teacher no longer help?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
ways = {"labels": lambda net, i: F.cross_entropy(net(x[i]), y[i]), "soft answers": lambda net,
    i: kd_loss(net(x[i]), v[i], y[i], 4.0, 1.0, 0.0)}
pools = {360: torch.arange(360), 10_000: torch.arange(len(x))}
by_images = {name: [accuracy(learn(loss, pool, steps=600)) for pool in pools.values()] for name, loss in ways.items()}
by_size = claims.full_run("23_distillation")["sizes"]["accuracy"]
curves, bands = {}, {}
for name in ("labels", "soft answers"):
    row = by_size[name]
    n = [int(k) for k in row]
    curves[f"{name}, full run"] = (n, [100 * a[0] for a in row.values()])
    bands[f"{name}, full run"] = ([100 * a[1] for a in row.values()], [100 * a[2] for a in row.values()])
spoken = "; ".join(f"{name}: " + ", ".join(f"{a:.1f}% with {n:,}" for n, a in zip(*c)) for name, c in curves.items())
told_own = "; ".join(f"{n:,} images: labels {a:.1f}%, soft answers {b:.1f}%" for n, a, b in zip(pools, *by_images.values()))
fig, ax = plots.figure(alt=f"Test accuracy against the number of training images. {spoken}. Yours, {told_own}.", size=(8, 4.4))
plots.lines(curves, bands=bands, ax=ax, alt="", logx=True, limits={"teacher": accuracy(teacher)},
            title="Labels, or a teacher's soft answers (band: 95% of the mean of 4 seeds)", xlabel="training images", ylabel="test accuracy (%)")
for (name, row), color in zip(by_images.items(), plots.PALETTE):
    ax.plot(list(pools), row, "*", color=color, markersize=14, label=f"{name}, yours")
ax.legend(loc="lower right")
plots.show(fig)
print("points that soft answers gain over labels, full run:", gained(by_size["soft minus labels"]))

# %% [markdown]
# With few images a soft answer is worth many labels: in the full run 720 images with soft answers reach what labels reach
# with two or three times as many. Then the curves approach each other, and with all 10,000 images the
# interval of the difference contains zero (1.9 points, from −0.4 to 4.1). Where labels are plentiful the teacher's
# similarities can be found in the data themselves.
#
# Two things this picture does not say. The teacher has learnt from all 10,000 labels: with 720 images the small
# network hears, through the soft answers, of 9,280 others. And all runs are short, 600 steps: neither way is at its
# end. (The deployed network, with 10,000 steps and 40,000 images *without* labels, is within a point of the teacher.)

# %% [markdown]
# Next, smaller and smaller networks. Each one learns from labels, from the large teacher at once, or, in rounds, from
# the network just before it in the row.
#
# **Predict:** is it better to come down in rounds?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
shrinking = claims.full_run("23_distillation")["shrinking"]
rows = {name: shrinking["accuracy"][name] for name in ("labels", "at once", "in rounds")}
points = {name: ([int(size) for size in row], [100 * a[0] for a in row.values()]) for name, row in rows.items()}
bands = {name: ([100 * a[1] for a in row.values()], [100 * a[2] for a in row.values()]) for name, row in rows.items()}
spoken = "; ".join(f"{name}: " + ", ".join(f"{a:.1f}% with {n:,}" for n, a in zip(*c)) for name, c in points.items())
fig, ax = plots.figure(alt=f"Test accuracy against the number of parameters. {spoken}.", size=(7.4, 4))
plots.lines(points, bands=bands, ax=ax, alt="", logx=True, limits={"large teacher": 100 * shrinking["teacher"]["accuracy"]},
            title="Full run: 1,440 images (band: 95% of the mean of 4 seeds)", xlabel="parameters of the network that learns", ylabel="test accuracy (%)")
ax.set_xticks(points["labels"][0], [f"{n:,}" for n in points["labels"][0]])
ax.minorticks_off()
plots.show(fig)
print("points that rounds gain over being taught at once:", gained(shrinking["accuracy"]["in rounds minus at once"]))

# %% [markdown]
# A teacher is better than labels at each size, in its own way: the gain is largest where the network that learns is
# large enough to follow. But coming down in rounds does not help here. In the second round it costs 3 points, which
# could be chance (−9.3 to 2.9), in the third 6 points, which is not (−10.1 to −2.4): each network passes on its own
# mistakes, and the next one adds more. The best teacher of the smallest network is the best network. (An assistant in
# between helped where teacher and student are much further apart, Mirzadeh et al. 2020.) "Several times smaller" is
# true of distillation in one round as well.

# %% [markdown]
# And a teacher that is wrong? Here some of the labels were replaced by random ones. A larger network learnt them, and
# small networks learn the same labels, or that network's soft or hard answers, on the same images.
#
# **Predict:** can the small network be better than its teacher?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
by_share = {share: row["accuracy"] for share, row in claims.full_run("23_distillation")["teachers"]["by share"].items()}
spoken = "; ".join(f"{float(share):.0%} wrong: " + ", ".join(f"{name} {100 * a[0]:.1f}%" for name, a in row.items()) for share,
    row in by_share.items())
plots.bars({f"{float(share):.0%} of the labels wrong": {name: 100 * a[0] for name, a in row.items()} for share, row in by_share.items()},
    width=8.6, form="{:.1f}",
           title="Full run: 2,880 images, accuracy on clean test images", xlabel="test accuracy (%)",
           alt=f"Test accuracy by the share of wrong labels. {spoken}.")
for share, row in claims.full_run("23_distillation")["teachers"]["by share"].items():
    print(f"{float(share):.0%} wrong, points gained over the same labels: {gained(row['minus the same labels'])}")

# %% [markdown]
# No: not here. This teacher has seen no more than its pupils: the same 2,880 images, in a short training, and is right for three
# quarters of the test images. With clean labels its answers *cost* 6 points (1.6 to 10.5): where it is wrong, the
# label was right. With 40% of the labels wrong the differences are small, and their intervals contain zero: the
# teacher has averaged over the wrong labels, but it is not right often enough to be worth listening to. A soft answer
# is worth as much as the teacher knows beyond the labels at hand. The large teacher of this lab knows much more: it
# has learnt from 10,000 labels for a long time.

# %% [markdown]
# Last, bits. Lab 24 distils a mobile-style network of a tenth of its teacher's weights, and then rounds its weights
# and activations. From its full run:

# %% tags=["experiment"]
try:
    in_bits = claims.full_run("24_quantization")["distilled"]
except (FileNotFoundError, KeyError):  # this notebook may lie alone
    in_bits = None
    print("The full run of lab 24 is not on this machine; get it with the course to see this picture.")
if in_bits:
    held = {"teacher, 32 bits": 4 * in_bits["weights"]["teacher"],
        **{f"distilled, {bits} bits": in_bits["weights"]["student"] * bits / 8 for bits in (32, 8, 6, 4)}}
    made = in_bits["accuracy"]["distilled"]
    reached = {"teacher, 32 bits": 100 * in_bits["teacher"], "distilled, 32 bits": 100 * made["float32"][0],
        **{f"distilled, {b} bits": 100 * made["rounded"][str(b)][0] for b in (8, 6, 4)}}
    fig, (left, right) = plots.figure(columns=2, size=(11.4, 3.4), alt="; ".join(f"{name}: {held[name] / 1000:.1f} kB, "
        f"{reached[name]:.1f}%" for name in held) + ".")
    plots.bars({name: b / 1000 for name, b in held.items()}, ax=left, log=True, alt="", title="Weights, without scales",
        xlabel="kilobytes (logarithmic scale)", form="{:,.1f}")
    plots.bars(reached, ax=right, alt="", title="Full run of lab 24", xlabel="test accuracy (%)", form="{:.1f}")
    plots.show(fig)

# %% [markdown]
# Ten times fewer weights, and then four times fewer bits: the factors multiply, and eight bits cost nothing
# measurable on top. In this sense it compounds. But look at the first step: in that short training the small network
# lost far more than the bits took away later, and, having all 10,000 labelled images, was no better with the teacher
# than without (80.5% and 80.2%). At four bits the small network falls apart; a larger one has more to spare (lab 24).

# %% tags=["experiment"]
claims.show("23-soft-labels", measured=told_own)
claims.show("23-rounds", measured=f"the deployed network: {models.n_parameters(teacher) / models.n_parameters(deployed):.1f} times "
    f"smaller than the teacher, {accuracy(teacher):.1f}% to {accuracy(deployed):.1f}%, at once")
claims.show("23-compounds")

# %% [markdown]
# ### Question (15 points)
#
# Are the claims right? Write five to eight sentences: when a soft answer says more than a label, and when it does
# not; whether rounds helped here; and what "several times smaller at no loss" leaves out. Use your numbers, and say
# which of them come from one seed.

# %% [markdown] tags=["written"] points=15 name="claim"
# Soft answers say more than labels when the teacher knows more than the labels at hand. In my run of 600 steps with
# 360 images they were worth about 30 points (one seed); in the full run 13 points with 180 images, 17 with 720 (13 to
# 20.5, four seeds), 4 with 2,880. With all 10,000 nothing can be measured any more: 1.9 points, and the interval
# contains zero. They also said nothing at T = 1. A teacher that had seen no more than its pupil cost 6 points. So the
# first claim holds in part, and part of the gain is simply the teacher's larger data.
#
# One round made the network 9.7 times smaller for 0.8 points, but it took 40,000 images and 10,000 steps; the claim
# leaves that out. Rounds did not help: through a network in between the smallest one lost 6 points against being
# taught at once. Rounding to 8 bits afterwards cost nothing in lab 24, so the factors of size multiply; the losses
# add up as well, and at 4 bits there was little left. Nor does size tell the time: that depends on how many images
# come at once.


# %% [markdown]
# ## Optional · `attention_map_loss`: look where the teacher looks
#
# Instead of imitating each of the teacher's channels, imitate only *where* in the image it responds. The attention
# map of a layer is the mean square over its channels; flattened, and divided by its length, it has no scale
# (Zagoruyko & Komodakis 2017, equation 2, here with the distance squared):
#
# $$m(A) = \operatorname{flatten}\Big(\tfrac1C \sum_c A_c^2\Big), \qquad
# L_{\text{att}} = \frac1B \sum_{\text{images}} \Big\| \frac{m(a)}{\|m(a)\|} - \frac{m(A)}{\|m(A)\|} \Big\|^2 .$$
#
# There is no matrix to learn, and the number of channels may differ.
#
# **Predict:** is a small network that has learnt from labels alone already looking at the same places?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def attention_map_loss(student_map: Float[Tensor, "B c h w"], teacher_map: Float[Tensor, "B C h w"]) -> Float[Tensor, ""]:
    """The squared distance of the two networks' attention maps, averaged over the batch. A map: the mean square over the channels, flattened,
    divided by its Euclidean length (Zagoruyko & Komodakis 2017)."""
    ### BEGIN SOLUTION
    maps = [m.square().mean(1).flatten(1) for m in (student_map, teacher_map)]
    a, b = (m / m.norm(dim=1, keepdim=True) for m in maps)
    return (a - b).square().sum(1).mean()
    ### END SOLUTION


# %%
check(attention_map_loss)

# %% tags=["experiment"]
with torch.no_grad():
    seen = {name: net.maps(glyphs.test_x[:500])[1] for name, net in (("teacher", teacher), ("labels", taught["labels"]),
        ("soft answers", taught["T = 4"]), ("untrained", distil.ConvNet().eval()))}
distance = {name: float(attention_map_loss(m, seen["teacher"])) for name, m in seen.items() if name != "teacher"}
pictures = [("image", glyphs.test_x[7, 0]), *((name, m[7].square().mean(0)) for name, m in seen.items())]
fig, panels = plots.figure("Where does the second layer respond?", columns=5, size=(11, 2.6),
    alt="A test image, and where the second layers of the teacher and of three small networks respond to "
                           f"it. Mean attention_map_loss to the teacher over 500 images: "
                           f"{', '.join(f'{name} {d:.3f}' for name, d in distance.items())}.")
for ax, (name, picture) in zip(panels, pictures):
    ax.imshow(picture, cmap="cividis" if name != "image" else "gray")
    ax.set(xticks=[], yticks=[], xlabel=name + (f": {distance[name]:.3f}" if name in distance else ""))
plots.show(fig)

# %% [markdown]
# The number under a picture is the mean loss over 500 images. An untrained network already responds where there is
# ink, so that a good part of "looking at the same places" is no achievement. Training brings the small networks a
# little nearer to the teacher; neither was asked to look where it looks. Add `attention_map_loss` to the loss of
# exercise 6, with a weight, and see whether that is worth more than the hint.

# %% [markdown]
# ## Optional · `ensemble_teacher`: many teachers, one voice
#
# Several networks are nearly always better than one, and several times as slow. Distillation keeps the first and
# drops the second. The ensemble's soft answer is the arithmetic mean of its members' answers, or their geometric
# mean, made to add up to one (Hinton et al. 2015, section 1). The second is the softmax of the mean logits.
#
# **Predict:** three small networks, each trained with labels on the same 720 images. How much better is their
# ensemble than one of them? And a single small network that learns the ensemble's answers?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def ensemble_teacher(logits: Float[Tensor, "M B N"], T: float = 1.0, geometric: bool = False) -> Float[Tensor, "B N"]:
    """The soft answer of M teachers at temperature T: the mean of their softmax_T, or with `geometric` their geometric mean, made to add up to one
    (Hinton et al. 2015)."""
    ### BEGIN SOLUTION
    return softmax_T(logits.mean(0), T) if geometric else softmax_T(logits, T).mean(0)
    ### END SOLUTION


# %%
check(ensemble_teacher)

# %% [markdown]
# (About 10 seconds.)

# %% tags=["experiment"]
members = [taught["labels"], *(learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), few, seed=s) for s in (1, 2))]
logits = lambda images: torch.stack([torch.cat([net(part) for part in images.split(500)]) for net in members])
with torch.no_grad():
    of_all, tested = ensemble_teacher(logits(x), 4.0), logits(glyphs.test_x)
right_share = lambda p: 100 * (p.argmax(1) == glyphs.test_y).float().mean().item()
together = {"arithmetic": right_share(ensemble_teacher(tested, 1.0)), "geometric": right_share(ensemble_teacher(tested, 1.0, True))}
taught_by_all = lambda net, i: -(16 * of_all[i] * (net(x[i]) / 4).log_softmax(1)).sum(1).mean()  # T = 4, and T squared
pupils = {"its pupil, 720 images": learn(taught_by_all, few, seed=9),
          "its pupil, 10,000 unlabelled": learn(taught_by_all, torch.arange(len(x)), seed=9)}
values = {**{f"member {s + 1}": accuracy(net) for s, net in enumerate(members)},
          **{f"ensemble, {kind} mean": a for kind, a in together.items()}, **{name: accuracy(net) for name, net in pupils.items()}}
plots.bars(values, title="Small networks and 720 labels", xlabel="test accuracy (%)", form="{:.1f}",
           alt=f"Test accuracy: {', '.join(f'{name} {a:.1f}%' for name, a in values.items())}.")

# %% [markdown]
# The ensemble is some points better than each of its members, which err in different places. Its pupils did not keep
# that gain in our run (one seed): 45% from the 720 images and as much from 10,000 without labels, where the ensemble
# has 55 to 56%. Its answers are spread over many classes, for it is right only half of the time, and 300 steps are
# short. Give a pupil four times as many steps: how much of the ensemble can it learn?

# %% [markdown]
# ## Optional · `born_again`: a teacher of one's own size
#
# Train a network with labels. Train a second one, of the same size, with the first one's soft answers; a third with
# the second's; and so on (Furlanello et al. 2018). Nobody in this chain is larger than the others or has seen more.
#
# The function does not train by itself: it is given `fit(targets)`, which trains a fresh network on probabilities [n,
# N] and returns its logits [n, N] for the same images.
#
# **Predict:** is the second generation better than the first? The third than the second?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def born_again(fit: Callable[[Tensor], Tensor], labels: Int[Tensor, "n"], classes: int, rounds: int = 3, T: float = 1.0) -> list[Tensor]:
    """The logits [n, classes] of each generation. The first learns the one-hot labels (float), each later one softmax_T(logits, T) of the one
    before. `fit` is called once a generation (Furlanello et al. 2018)."""
    ### BEGIN SOLUTION
    targets, generations = F.one_hot(labels, classes).float(), []
    for _ in range(rounds):
        generations.append(fit(targets))
        targets = softmax_T(generations[-1], T)
    return generations
    ### END SOLUTION


# %%
check(born_again)

# %% [markdown]
# (About 10 seconds.)

# %% tags=["experiment"]
line = []
def fit(targets):
    line.append(learn(lambda net, i: -(targets[i] * net(x[i]).log_softmax(1)).sum(1).mean(), few, seed=len(line)))
    with torch.no_grad():
        return torch.cat([line[-1](part) for part in x.split(500)])

born_again(fit, y, 36, rounds=3)
in_line = claims.full_run("23_distillation")["generations"]["accuracy"]
of_line = [accuracy(net) for net in line]
spoken = f"Test accuracy by generation: yours {', '.join(f'{a:.1f}%' for a in of_line)}; full run {', '.join(f'{100 * a[0]:.1f}%' for a in in_line)}."
fig, ax = plots.figure(alt=spoken, size=(6.8, 3.8))
plots.lines({"yours, one seed": (range(1, len(of_line) + 1), of_line),
    "full run (band: 95%)": (range(1, len(in_line) + 1), [100 * a[0] for a in in_line])},
            bands={"full run (band: 95%)": ([100 * a[1] for a in in_line], [100 * a[2] for a in in_line])}, ax=ax, alt="",
            title="720 images, one generation teaches the next", xlabel="generation", ylabel="test accuracy (%)")
ax.set_xticks(range(1, len(in_line) + 1))
plots.show(fig)
later = claims.full_run("23_distillation")["generations"]["minus the first"]
print("points gained over the first, full run:", gained({f"generation {k}": row for k, row in enumerate(later, 2)}))

# %% [markdown]
# In the full run each generation is a little worse than the one before: the second lies 1.3 points below the first
# (0.4 to 2.1), the third 2.1 points (−0.3 to 4.5). Furlanello and colleagues found the second generation better, with
# networks large enough to learn their images by heart and many epochs. Here the first generation is right for half of
# the test images, and a teacher of that kind hands on what it does not know. (`fit` trains at $T = 1$; try another
# temperature, with `born_again`'s `T` and in `fit`.)


# %% [markdown]
# ## Going further
#
# - **Where it comes from.** Buciluă, Caruana & Niculescu-Mizil 2006, *Model compression*; Ba & Caruana 2014, *Do deep
#   nets really need to be deep?* (logit matching); Hinton, Vinyals & Dean 2015, *Distilling the knowledge in a neural
#   network*.
# - **Inner layers.** Romero et al. 2015 (FitNets); Zagoruyko & Komodakis 2017 (attention maps).
# - **Without labels.** Lee 2013 (pseudo-labels); Sohn et al. 2020 (FixMatch: a threshold, and strong distortions);
#   Xie et al. 2020 (Noisy Student: a student larger than its teacher).
# - **Rounds.** Furlanello et al. 2018 (born-again networks); Mirzadeh et al. 2020 (an assistant between a large
#   teacher and a small student).
# - **Why it works, and when.** Müller, Kornblith & Hinton 2019 (label smoothing makes worse teachers); Beyer et al.
#   2022, *A good teacher is patient and consistent*: many more epochs than anyone had tried; Guo et al. 2017
#   (calibration, and one temperature that repairs it).
# - **In production.** Sanh et al. 2019 (DistilBERT); small language models are distilled from the token probabilities
#   of large ones, of which often only the largest few are kept: why is that enough?
#
# **Open ended.** Distillation needs images and no labels. Must they be images of characters? Let the teacher answer
# for noise, for mixtures of two characters, for images of `data.mnist5k()`. How much of the teacher can be learnt
# from images that show nothing it knows?
