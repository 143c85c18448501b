# %% [markdown]
# # 23 · Distillation
#
# A large network answers "O, but it might be a 0"; the label says "O". What is in the first answer that is not in the
# second, and how much smaller can the network be that learns from it?
#
# By the end you will have made this picture: the accuracy of a small network against the number of its training
# images, once taught by labels and once by a teacher's soft answers, and the place where the two curves meet.
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
# They read characters of 36 classes, digits and capital letters, in 18 fonts and distorted. Both are three convolutions of
# stride 2; the small one has less than a third of the channels. They were trained on the 10,000 training images
# by `make_networks.py`, which lies beside this notebook: the teacher with labels, `deployed` from the teacher's answers
# (it is used in "How fast?" only). All other small networks you will train yourself.

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
# A trained network is sure of itself: nearly all of its answer lies on one class, and the rest, which says what the image
# is *similar* to, is too small to learn from. Dividing the logits by a temperature $T > 1$ melts the answer and lets the small
# numbers be seen. As $e^{z/T}$ may be too large for a float, subtract each row's largest logit first; the quotient is the
# same:
#
# $$q_i = \frac{e^{(z_i - \max_k z_k)/T}}{\sum_j e^{(z_j - \max_k z_k)/T}} .$$
#
# **Predict:** the teacher looks at a slanted Z, and is right. Which class comes second? And at which
# temperature does the second class get a tenth of the answer: about 2, 5 or 20?

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

def draw(T, image):
    p = softmax_T(v[image], T)
    best = p.argsort(descending=True)[:8].tolist()
    words = ", ".join(f"{data.GLYPHS[k]} {p[k]:.3f}" for k in best)
    fig, (left, right) = plots.figure(columns=2, size=(8.4, 3.4), alt=f"Training image {image}, a {data.GLYPHS[y[image]]}, and the teacher's "
                                      f"eight largest answers at temperature {T:.1f}: {words}.")
    left.imshow(x[image, 0], cmap="gray")
    left.set(xticks=[], yticks=[], xlabel="")
    left.set_title(f"Image {image}, labelled {data.GLYPHS[y[image]]}", loc="left", **plots.TITLE)
    plots.bars({data.GLYPHS[k]: p[k].item() for k in best}, ax=right, alt="", title=f"The teacher at T = {T:.1f}", xlabel="probability p", form="{:.3f}")
    plots.show(fig)

slanted = int(((y == data.GLYPHS.index("Z")) & (v.argmax(1) == y)).nonzero()[3])
show(draw, T=Slider(0.5, 30, start=4, log=True, label="temperature T"), image=Slider(0, 9999, start=slanted, step=1, label="image"))

# %% tags=["experiment"]
temperatures = torch.logspace(-0.3, 2, 60)
p = softmax_T(v[:2000] / temperatures[:, None, None]).sort(-1, descending=True).values  # [60, 2000, 36]
curves = {"largest": p[..., 0].mean(1), "second": p[..., 1].mean(1), "all others": p[..., 2:].sum(-1).mean(1)}
tenth = next((T.item() for T, s in zip(temperatures, curves["second"]) if s > 0.1), math.nan)
plots.lines({name: (temperatures, c) for name, c in curves.items()}, marks=False, logx=True, xlabel="temperature T", ylabel="mean probability",
            title="The teacher's answers to 2,000 images", limits={"1/36, all equal": 1 / 36},
            alt=f"Mean probability of the largest class, the second and all others against T. The largest falls, the others rise; the second one has a "
                f"tenth of the answer from T = {tenth:.1f} on.")

# %% tags=["experiment"]
p4 = softmax_T(v, 4.0)
similar = torch.stack([p4[y == k].mean(0) for k in range(36)])  # [36, 36], row: the label, column: the mean answer
pairs = (similar + similar.T).triu(1)  # both ways
top = pairs.flatten().argsort(descending=True)[:10].tolist()
names = [f"{data.GLYPHS[k // 36]} and {data.GLYPHS[k % 36]}" for k in top]
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4.6), alt=f"Left: the teacher's mean answer at T = 4 to the images of each class, with the "
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
# TEXT

# %% [markdown]
# ## 2 · `kd_loss`: learn from both
#
# The small network should answer as the teacher does, at the same temperature, and be right. The first is a Kullback–Leibler
# divergence, the second a cross entropy with the label $y$:
#
# $$L = \frac1B \sum_{\text{images}} \Big( \alpha\, T^2 \sum_i p_i \,(\ln p_i - \ln q_i) \;-\; \beta \ln q^{(T=1)}_y \Big).$$
#
# The factor $T^2$ makes up for the gradient of the divergence, which shrinks like $1/T^2$: with it $\alpha$ keeps its meaning when
# $T$ changes. (You will see why in the next exercise.) The sum goes over the classes, the mean over the images only. Use log-softmax:
# the logarithm of a probability that became zero is minus infinity.
#
# **Predict:** 720 labelled images, twenty of each class. How much better, in points of accuracy, is the small network if the teacher's
# answers to *the same 720 images* are known? Is a higher temperature better?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def kd_loss(student_logits: Float[Tensor, "B N"], teacher_logits: Float[Tensor, "B N"], labels: Int[Tensor, "B"],
            T: float = 4.0, alpha: float = 0.9, beta: float = 0.1) -> Float[Tensor, ""]:
    """alpha * T**2 * KL(p || q) at temperature T, plus beta * cross entropy with the labels at temperature 1; means over the batch
    (Hinton et al. 2015, section 2). Finite for logits of any size."""
    ### BEGIN SOLUTION
    log_p = (teacher_logits / T).log_softmax(-1)
    log_q = (student_logits / T).log_softmax(-1)
    soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
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
# (About 20 seconds.)

# %% tags=["experiment"]
few = torch.arange(720)  # the classes come in random order, about twenty of each
taught = {"labels": learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), few)}
for T in (1.0, 2.0, 4.0, 8.0, 16.0):
    taught[f"T = {T:g}"] = learn(lambda net, i: kd_loss(net(x[i]), v[i], y[i], T, 1.0, 0.0), few)
found = {name: accuracy(net) for name, net in taught.items()}

# %% tags=["experiment"]
ran = claims.full_run("23_distillation")["temperature"]
rows = {name: 100 * a for name, (a, *_) in ran["accuracy"].items()}
marks = (1, 2, 4, 8, 16)
fig, (left, right) = plots.figure(columns=2, size=(11, 4.2), alt=f"Test accuracy of small networks taught by 720 images. Yours: {', '.join(f'{name} {a:.1f}%' for name, a in found.items())}. "
    f"Full run, means of several seeds: {', '.join(f'{name} {a:.1f}%' for name, a in rows.items())}.")
band = [[100 * ran["accuracy"][f"T = {T}"][k] for T in marks] for k in range(3)]
plots.lines({"full run, soft answers": (marks, band[0]), "yours": (marks[:5], [found[f"T = {T}"] for T in marks[:5]])}, ax=left, alt="", logx=True,
            bands={"full run, soft answers": (band[1], band[2])}, limits={"labels, yours": found["labels"], "labels, full run": rows["labels"]},
            title="Taught by soft answers alone", xlabel="temperature T", ylabel="test accuracy (%)")
both = {name: a for name, a in rows.items() if "alpha" in name}
plots.bars({"labels only (alpha = 0)": rows["labels"], **both, "soft only (alpha = 1)": rows["T = 4"]}, ax=right, alt="", title="Both parts at T = 4, full run", xlabel="test accuracy (%)",
           intervals={name: [100 * e for e in ran["accuracy"][name][1:]] for name in both}, form="{:.1f}")
plots.show(fig)


# %% [markdown]
# TEXT

# %% [markdown]
# ## 3 · `kd_gradient`: what the small network feels
#
# The derivative of the soft part has a simple form (Hinton et al. 2015, equation 2). With the factor $T^2$, and the mean over the batch,
#
# $$\frac{\partial}{\partial z_i}\; \frac{T^2}{B}\, \mathrm{KL}(p \,\|\, q) = \frac{T}{B}\,(q_i - p_i).$$
#
# When $T$ is large compared with all logits, $e^{z/T} \approx 1 + z/T$, and what remains is the difference of the logits themselves, each
# less its mean over the classes (equation 4):
#
# $$\frac{T}{B}\,(q_i - p_i) \;\longrightarrow\; \frac{(z_i - \bar z) - (v_i - \bar v)}{B\,N} \qquad (T \to \infty).$$
#
# So at high temperature distillation is *logit matching*: least squares between the logits. At low temperature it ignores the logits of all
# classes that are far behind.
#
# **Predict:** at $T = 4$, is the gradient closer to that of the labels, or to that of logit matching? And without the factor $T^2$, how
# much shorter would it be at $T = 16$ than at $T = 1$?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def kd_gradient(student_logits: Float[Tensor, "B N"], teacher_logits: Float[Tensor, "B N"], T: float) -> Float[Tensor, "B N"]:
    """The gradient of T**2 * KL(p || q), averaged over the batch, for the small network's logits: T (q - p) / B. For T = math.inf its limit,
    the difference of the logits, each less its row's mean, divided by B N (Hinton et al. 2015, equations 2 to 4)."""
    ### BEGIN SOLUTION
    z, v = student_logits, teacher_logits
    if T == math.inf:
        return ((z - z.mean(-1, keepdim=True)) - (v - v.mean(-1, keepdim=True))) / z.numel()
    return T * (softmax_T(z, T) - softmax_T(v, T)) / len(z)
    ### END SOLUTION


# %%
check(kd_gradient)

# %% tags=["experiment"]
net = taught["labels"]
with torch.no_grad():
    z = net(x[5000:5512])  # images that it has not been trained on
there, answer = v[5000:5512], F.one_hot(y[5000:5512], 36)
cosine = lambda a, b: F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
limit, hard_gradient = kd_gradient(z, there, math.inf), (softmax_T(z) - answer) / len(z)
temperatures = torch.logspace(-0.5, 3, 50).tolist()
grads = [kd_gradient(z, there, T) for T in temperatures]
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4), alt="Left: the cosine of the soft gradient with that of the labels falls as T grows, and with that of logit "
    f"matching rises to 1; at T = 4 they are {cosine(kd_gradient(z, there, 4.0), hard_gradient):.2f} and {cosine(kd_gradient(z, there, 4.0), limit):.2f}. "
    "Right: the length of the gradient; without the factor T squared it falls by orders of magnitude.")
plots.lines({"gradient of the labels": [cosine(g, hard_gradient) for g in grads], "logit matching": [cosine(g, limit) for g in grads]}, x=temperatures, ax=left,
            alt="", logx=True, marks=False, title="Which way does it point?", xlabel="temperature T", ylabel="cosine with ...")
plots.lines({"with T²": [g.norm() for g in grads], "without": [g.norm() / T**2 for g, T in zip(grads, temperatures)]}, x=temperatures, ax=right, alt="", logx=True,
            logy=True, marks=False, limits={"labels": hard_gradient.norm().item()}, title="How long is it?", xlabel="temperature T", ylabel="length of the gradient")
plots.show(fig)

# %% [markdown]
# TEXT

# %% [markdown]
# ## What the label does not say: a character never seen
#
# Take all images of one class away. From the others the small network learns the teacher's answers, all 36 numbers of them. It never sees the character, but is told
# how similar other characters are to it. (Hinton et al. 2015, section 3, withheld the digit 3.)
#
# Such a network is shy of that class: in all its training the class never got the largest answer. A number added to that class's logit repairs that. To
# choose this number we look at no label and at no test image; we only know that each class is one in 36.

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
# **Predict:** of the test images of a B, how many does a network recognise that has never seen a B? And when the bias is repaired?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% [markdown]
# (About 10 seconds.)

# %% tags=["experiment"]
k = data.GLYPHS.index("B")  # another one: change it here
never_b = (y != k).nonzero()[:, 0]
net = learn(lambda net, i: kd_loss(net(x[i]), v[i], y[i], 4.0, 1.0, 0.0), never_b, steps=900)
with torch.no_grad():
    z_test, z_other = net(glyphs.test_x), net(x[:3600])  # the second for the bias: images without labels
b = share_bias(z_other, k, 1 / 36)
recall = lambda bias: 100 * ((z_test + bias * F.one_hot(torch.tensor(k), 36)).argmax(1) == k)[glyphs.test_y == k].float().mean().item()
right = lambda bias: 100 * ((z_test + bias * F.one_hot(torch.tensor(k), 36)).argmax(1) == glyphs.test_y).float().mean().item()
grid = torch.linspace(-3, 12, 61).tolist()
plots.lines({f"images of {data.GLYPHS[k]} recognised": [recall(t) for t in grid], "accuracy, all 36 classes": [right(t) for t in grid],
             "without test data": ([b, b], [0, 100])}, x=grid, marks=False, title=f"It has never seen a {data.GLYPHS[k]}", xlabel=f"number added to the logit of {data.GLYPHS[k]}",
            ylabel="of the test images (%)", alt=f"Share of the images of {data.GLYPHS[k]} that are recognised: {recall(0):.0f}% as the network is, {recall(b):.0f}% with the bias of "
            f"{b:.1f} that was found without test data; the accuracy on all classes is {right(0):.1f}% and {right(b):.1f}%. A larger bias recognises more of the class and spoils the others.")

# %% [markdown]
# TEXT

# %% [markdown]
# ## 4 · `pseudo_labels`: a teacher's answer in place of a label
#
# Labels are expensive, images are not. Let a network that was trained on a few labels answer for images that have none, and
# believe it where it is sure: keep an image if the largest probability, at temperature 1, is at least the *threshold* $\tau$,
#
# $$\text{keep} = \big[\max_i p_i \ge \tau\big].$$
#
# The target is either *hard*, 1 at the best guess (Lee 2013; Sohn et al. 2020), or *soft*, the whole answer at temperature $T$.
#
# **Predict:** a small network trained on 360 labels is right for about half of the test images. Of those for which it says "I am at least 90%
# sure", what share is right? And how many are they?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def pseudo_labels(logits: Float[Tensor, "B N"], threshold: float = 0.9, hard: bool = True,
                  T: float = 1.0) -> tuple[Float[Tensor, "B N"], Bool[Tensor, "B"]]:
    """(targets, keep). targets: a row of probabilities for each image, kept or not: one-hot at the best guess if `hard`, else softmax_T(logits, T).
    keep: where the largest probability at temperature 1 is at least the threshold (Sohn et al. 2020, equation 4)."""
    ### BEGIN SOLUTION
    p = softmax_T(logits)
    keep = p.amax(-1) >= threshold
    targets = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype) if hard else softmax_T(logits, T)
    return targets, keep
    ### END SOLUTION


# %%
check(pseudo_labels)

# %% tags=["experiment"]
labelled, unlabelled = torch.arange(360), torch.arange(360, len(x))
first = learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), labelled)
with torch.no_grad():
    own = torch.cat([first(part) for part in x.split(500)])
sure = softmax_T(own[unlabelled]).amax(1)
thresholds = [0.0, *torch.linspace(0.2, 0.98, 27).tolist(), 0.99, 0.995, 0.999]
curves = {"kept": [], "right among the kept": []}
for threshold in thresholds:
    targets, keep = pseudo_labels(own[unlabelled], threshold)
    good = targets.argmax(1) == y[unlabelled]
    curves["kept"].append(100 * keep.float().mean().item())
    curves["right among the kept"].append(100 * good[keep].float().mean().item() if keep.any() else math.nan)
at = min(range(len(thresholds)), key=lambda m: abs(thresholds[m] - 0.9))
plots.lines(curves, x=thresholds, marks=False, title="A network of 360 labels looks at 9,640 other images", xlabel="threshold τ", ylabel="share of the images (%)",
            alt=f"Against the threshold: the share of images kept falls, the share of right guesses among them rises. At {thresholds[at]:.2f}, {curves['kept'][at]:.0f}% "
                f"are kept, and {curves['right among the kept'][at]:.0f}% of these are right.")

# %% [markdown]
# Which of its surest guesses are wrong?

# %% tags=["experiment"]
targets, keep = pseudo_labels(own[unlabelled], 0.9)
wrong = (keep & (targets.argmax(1) != y[unlabelled])).nonzero()[:, 0]
worst = wrong[sure[wrong].argsort(descending=True)][:10].tolist()
said = [f"{data.GLYPHS[targets[m].argmax()]}, {100 * sure[m]:.1f}%, labelled {data.GLYPHS[y[unlabelled[m]]]}" for m in worst]
if worst:
    fig, panels = plots.figure("Sure, and wrong", columns=max(2, len(worst)), size=(11, 1.9), alt=f"The surest wrong guesses: {'; '.join(said)}.")
    for ax, m in zip(panels, worst):
        ax.imshow(x[unlabelled[m], 0], cmap="gray")
        ax.set(xticks=[], yticks=[], xlabel=f"{data.GLYPHS[targets[m].argmax()]}, not {data.GLYPHS[y[unlabelled[m]]]}")
    plots.show(fig)
else:
    print("None of the guesses above 90% is wrong.")

# %% [markdown]
# TEXT

# %% [markdown]
# ## 5 · `mixed_loss`: labelled and unlabelled images together
#
# Each step takes a batch of images with labels $y$ and a batch of $B_u$ images without, with their targets $t$ and the flags of those that are
# kept:
#
# $$L = \mathrm{CE}(z, y) \;-\; \frac{\text{weight}}{B_u} \sum_{\text{kept}} \sum_i t_i \ln q_i ,$$
#
# where $q$ is the answer to the unlabelled image at temperature 1. Divide by *all* $B_u$ images, not by those kept: a network that is sure of
# only one image in a batch should not listen to that one as to a whole batch; and if it is sure of none, there is no $0/0$.
#
# **Predict:** 360 images with labels and 9,640 without. Order these by accuracy: labels only; the network's own pseudo-labels;
# the large teacher's answers to the unlabelled images.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def mixed_loss(z: Float[Tensor, "B N"], labels: Int[Tensor, "B"], z_u: Float[Tensor, "B_u N"], targets: Float[Tensor, "B_u N"],
               keep: Bool[Tensor, "B_u"], weight: float = 1.0) -> Float[Tensor, ""]:
    """Cross entropy of the labelled images, plus weight times that of the unlabelled ones with their targets: the sum over those that are
    kept, divided by B_u (Sohn et al. 2020, equations 3 and 4)."""
    ### BEGIN SOLUTION
    each = -(targets * z_u.log_softmax(-1)).sum(-1)
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

mine = {"labels only": accuracy(first),
        "its own, hard, 0.9": accuracy(learn(with_unlabelled(*pseudo_labels(own, 0.9)), labelled)),
        "the teacher's, hard": accuracy(learn(with_unlabelled(*pseudo_labels(v, 0.0)), labelled)),
        "the teacher's, soft": accuracy(learn(with_unlabelled(*pseudo_labels(v, 0.0, hard=False)), labelled))}
ran = claims.full_run("23_distillation")["unlabelled"]["accuracy"]
fig, (left, right) = plots.figure(columns=2, size=(11.6, 3.6), alt=f"Test accuracy with 360 labels. Yours: {', '.join(f'{name} {a:.1f}%' for name, a in mine.items())}. Full run: "
                                  f"{', '.join(f'{name} {100 * a[0]:.1f}%' for name, a in ran.items())}.")
plots.bars(mine, ax=left, alt="", title="Yours, one seed", xlabel="test accuracy (%)", form="{:.1f}")
plots.bars({name: 100 * a for name, (a, *_) in ran.items()}, ax=right, alt="", title="Full run (95% intervals)", xlabel="test accuracy (%)", form="{:.1f}",
           intervals={name: [100 * e for e in a[1:]] for name, a in ran.items()})
plots.show(fig)

# %% [markdown]
# TEXT

# %% [markdown]
# ## 6 · `feature_loss`: listen to the middle
#
# The teacher has more to say than its last layer. Its inner maps have $C$ channels, the small network's only $c$; so a matrix $W$
# of $C \times c$ numbers, a 1 × 1 convolution, is learnt along, and is thrown away afterwards (Romero et al. 2015, equation 3, with the mean in place of
# half the sum):
#
# $$L_{\text{hint}} = \operatorname{mean}\big( (W a - A)^2 \big), \qquad a: [B, c, h, w], \quad A: [B, C, h, w],$$
#
# where $W$ multiplies the channels at each place, and the mean goes over images, channels and places.
#
# **Predict:** 360 images. Does it help to learn the teacher's second layer first, and then its answers? More than learning the answers all the time?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def feature_loss(student_map: Float[Tensor, "B c h w"], teacher_map: Float[Tensor, "B C h w"], projection: Float[Tensor, "C c"]) -> Float[Tensor, ""]:
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
ran = claims.full_run("23_distillation")["hints"]["accuracy"]
fig, (left, right) = plots.figure(columns=2, size=(11.6, 3.6), alt=f"Left: the hint's loss falls while it is trained, from {heard[0]:.2f} to {heard[99]:.2f}, and is {heard[-1]:.2f} in the end. Right: "
    f"accuracy in the full run: {', '.join(f'{name} {100 * a[0]:.1f}%' for name, a in ran.items())}; yours: answers {answered:.1f}%, hint first {hinted:.1f}%.")
plots.lines({"hint": heard}, ax=left, alt="", marks=False, title="The second layer's map: 100 steps, then the answers", xlabel="step", ylabel="feature_loss of the batch")
plots.bars({name: 100 * a for name, (a, *_) in ran.items()}, ax=right, alt="", title="Full run, 360 images (95% intervals)", xlabel="test accuracy (%)", form="{:.1f}",
           intervals={name: [100 * e for e in a[1:]] for name, a in ran.items()})
plots.show(fig)
print(f"yours: answers all the time {answered:.1f}%, hint first {hinted:.1f}%")

# %% [markdown]
# TEXT

# %% [markdown]
# ## 7 · `calibration_error`: does 90% mean 90%?
#
# A network is *calibrated* if of all answers given with 90% certainty nine in ten are right. Sort the $n$ images by their largest probability into $M$
# bins of equal width, $((m-1)/M,\, m/M]$, and compare in each bin $m$ the share of right answers with the mean probability
# (Guo et al. 2017, equation 3):
#
# $$\mathrm{ECE} = \sum_{m=1}^{M} \frac{n_m}{n}\, \big|\, \text{share right}_m - \text{mean probability}_m \big| .$$
#
# **Predict:** of two small networks trained on the same 720 images, one with labels and one with the teacher's answers at $T = 4$, which one knows better how
# good it is? Neither has ever seen its test images; one of them has never seen a label.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def calibration_error(probs: Float[Tensor, "n N"], labels: Int[Tensor, "n"], bins: int = 15) -> float:
    """The expected calibration error: the size of the gap between the share of right answers and the mean of the largest probabilities, in each of
    `bins` equal bins from 0 to 1, weighed with the share of the images in it (Guo et al. 2017)."""
    ### BEGIN SOLUTION
    sure, best = probs.max(-1)
    bin = ((sure * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=probs.dtype).index_add(0, bin, (best == labels).to(probs.dtype) - sure)
    return gap.abs().sum().item() / len(labels)
    ### END SOLUTION


# %%
check(calibration_error)

# %% tags=["experiment"]
@torch.no_grad()
def answers(net):
    return softmax_T(torch.cat([net(part) for part in glyphs.test_x.split(500)]))

asked = {"teacher": teacher, "labels": taught["labels"], "soft answers, T = 4": taught["T = 4"]}
errors = {name: 100 * calibration_error(answers(net), glyphs.test_y) for name, net in asked.items()}
fig, (left, right) = plots.figure(columns=2, size=(10.6, 4.2), alt=f"Left: share of right answers against the certainty, in ten bins. Right: calibration error: "
                                  f"{', '.join(f'{name} {e:.1f} points' for name, e in errors.items())}.")
curves = {}
for name, net in asked.items():
    sure, best = answers(net).max(1)
    bin = (sure * 10).long().clamp(max=9)
    full = [m for m in range(10) if (bin == m).sum() >= 10]  # fewer say nothing
    curves[name] = ([100 * sure[bin == m].mean() for m in full], [100 * (best == glyphs.test_y)[bin == m].float().mean() for m in full])
plots.lines({**curves, "calibrated": ([0, 100], [0, 100])}, ax=left, alt="", title="How sure, and how often right?", xlabel="mean of the largest probability in a bin (%)",
            ylabel="right answers in the bin (%)")
left.legend(loc="upper left")
plots.bars(errors, ax=right, alt="", title="Calibration error, 15 bins", xlabel="points", form="{:.1f}")
plots.show(fig)

# %% [markdown]
# TEXT

# %% tags=["experiment"]
def draw(T):
    found = {name: 100 * calibration_error(softmax_T(torch.log(answers(net)), T), glyphs.test_y) for name, net in asked.items()}
    plots.bars(found, title=f"Calibration error when all answers are read at T = {T:.2f}", xlabel="points", form="{:.1f}",
               alt=f"Calibration error at temperature {T:.2f}: {', '.join(f'{name} {e:.1f} points' for name, e in found.items())}.")

show(draw, T=Slider(0.3, 3, start=1, step=0.05, label="temperature T"))

# %% [markdown]
# ## 8 · `deployed_net`: the small network at work
#
# What was it all for? A network that answers faster. Write its forward pass as you would deploy it: a function of images and of a dict
# with the trained numbers, named as in `deployed.state_dict()`. For $k = 0, 1, \dots$ there are
#
# - `convs.k.weight` [o, i, size, size], a convolution of stride 2, padded by size // 2, without a bias;
# - `norms.k.weight` $\gamma$, `norms.k.bias` $\beta$, `norms.k.running_mean` $\mu$, `norms.k.running_var` $\sigma^2$ of BatchNorm, all [o];
#
# and in the end `head.weight` and `head.bias`. Each layer computes $\operatorname{ReLU}\big(\gamma\,(u - \mu)/\sqrt{\sigma^2 + 10^{-5}} + \beta\big)$ of
# its convolution's output $u$. The norm is a factor and a shift for each channel, so it can be *folded* into weight and bias of the convolution, and
# then costs nothing for the images. After the last layer comes the mean over the places, then the linear head.
#
# **Predict:** the small network has a tenth of the teacher's multiply-adds. How many times faster is it, on one core, with 256 images at a time? With one?

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
sizes = {"parameters": [models.n_parameters(net) for net in (teacher, deployed)], "bytes in float32": [4 * models.n_parameters(net) for net in (teacher, deployed)],
         "multiply-adds an image": [counted[name].multiply_adds for name in counted]}
plots.bars({"teacher": {name: pair[0] for name, pair in sizes.items()}, "small network": {name: pair[1] for name, pair in sizes.items()}}, log=True, form="{:,.0f}",
           title="What is counted", xlabel="number (logarithmic scale)", alt="; ".join(f"{name}: teacher {a:,}, small network {b:,}" for name, (a, b) in sizes.items()) + ".")
for name, (a, b) in sizes.items():
    print(f"{name}: {a / b:.1f} times fewer")
state = {name: t for name, t in deployed.state_dict().items() if t.is_floating_point()}
same = (deployed_net(glyphs.test_x, state) - torch.cat([deployed(part) for part in glyphs.test_x.split(500)])).abs().max()
print(f"largest difference to the module's logits: {same:.1e}; accuracy: teacher {accuracy(teacher):.1f}%, small network {accuracy(deployed):.1f}%")

# %% [markdown]
# TEXT

# %% [markdown]
# ## How fast?
#
# First the graded measurement: two batches of 256 images that neither network was trained on. Your function with the small network's
# numbers, against the teacher. The answers must be about as good as the teacher's. (A few seconds.)

# %%
speed(deployed_net)

# %% [markdown]
# And with other numbers of images at a time? The limit is the small network's multiply-adds at the rate of this machine's best matrix product. (About 10 seconds.)

# %% tags=["experiment"]
batches, measured = (1, 4, 16, 64, 256), {}
for batch in batches:
    some = lambda seed: (glyphs.test_x[torch.randint(2000, (batch,), generator=torch.Generator().manual_seed(seed))],)
    with torch.no_grad():
        measured[batch] = timing.compare(lambda images: deployed_net(images, state), teacher, some, seconds=1.5, device="cpu")
peak = [2 * counted["small"].multiply_adds / timing.peak_flops("cpu") for _ in batches]
ran = claims.full_run("23_distillation")["speed"]["ratios"]

# %% tags=["experiment"]
ratios = [measured[n].ratio for n in batches]
fig, (left, right) = plots.figure(columns=2, size=(10.8, 4.2), alt=f"Left: the small network is {ratios[0]:.1f} times faster with one image and {ratios[-1]:.1f} times with 256. Right: time for an "
    "image falls with the batch for both networks, and the small one stays far above the limit of its multiply-adds.")
plots.lines({"yours": ratios, "full run": [ran[str(n)]["ratio"][0] for n in batches]}, x=batches, ax=left, alt="", logx=True,
            bands={"yours": ([measured[n].low for n in batches], [measured[n].high for n in batches])},
            limits={"multiply-adds": counted["teacher"].multiply_adds / counted["small"].multiply_adds, "graded, at 256": 4}, title="Teacher's time / small network's (band: 95%)",
            xlabel="images at a time", ylabel="times faster")
plots.lines({"teacher": [1e6 * measured[n].baseline_seconds / n for n in batches], "small network": [1e6 * measured[n].candidate_seconds / n for n in batches],
             "limit: its multiply-adds": [1e6 * t for t in peak]}, x=batches, ax=right, alt="", logx=True, logy=True, title="Time for an image", xlabel="images at a time", ylabel="microseconds")
plots.show(fig)

# %% [markdown]
# TEXT

# %% [markdown]
# ## The claim
#
# The texts say that soft labels carry more information than hard ones, that rounds of distillation make a model several times smaller, and that quantising the
# small network afterwards saves once more. First: how much data does it take until the labels say as much? (About 15 seconds.)
#
# **Predict:** from how many images on does the teacher no longer help?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
all_images = torch.arange(len(x))
mine = {"labels": [accuracy(first), found["labels"], accuracy(learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), all_images, steps=600))],
        "soft answers": [answered, found["T = 4"], accuracy(learn(lambda net, i: kd_loss(net(x[i]), v[i], y[i], 4.0, 1.0, 0.0), all_images, steps=600))]}
ran = claims.full_run("23_distillation")["sizes"]["accuracy"]
curves, bands = {}, {}
for name in ("labels", "soft answers"):
    row = ran[name]
    n = [int(k) for k in row]
    curves[f"{name}, full run"] = (n, [100 * a[0] for a in row.values()])
    bands[f"{name}, full run"] = ([100 * a[1] for a in row.values()], [100 * a[2] for a in row.values()])
for name, row in mine.items():
    curves[f"{name}, yours"] = ((360, 720, 10_000), row)
plots.lines(curves, bands=bands, logx=True, limits={"teacher": accuracy(teacher)}, title="Labels, or a teacher's soft answers (band: 95%)", xlabel="training images", size=(8, 4.4),
            ylabel="test accuracy (%)", alt="Test accuracy against the number of training images. " + "; ".join(f"{name}: " + ", ".join(f"{a:.1f}% with {n:,}" for n, a in zip(*c)) for name, c in curves.items()) + ".")

# %% [markdown]
# TEXT

# %% [markdown]
# Next, smaller and smaller networks. Each one learns from labels, from the large teacher at once, or, in rounds, from the network just before it in the row.
#
# **Predict:** is it better to come down in rounds?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
ran = claims.full_run("23_distillation")["shrinking"]
rows = {name: ran["accuracy"][name] for name in ("labels", "at once", "in rounds")}
points = {name: ([int(size) for size in row], [100 * a[0] for a in row.values()]) for name, row in rows.items()}
bands = {name: ([100 * a[1] for a in row.values()], [100 * a[2] for a in row.values()]) for name, row in rows.items()}
plots.lines(points, bands=bands, logx=True, limits={f"teacher, {ran['teacher']['parameters']:,}": 100 * ran["teacher"]["accuracy"]}, title="Full run: 1,440 images (band: 95%)",
            xlabel="parameters of the network that learns", ylabel="test accuracy (%)",
            alt="Test accuracy against the number of parameters. " + "; ".join(f"{name}: " + ", ".join(f"{a:.1f}% with {n:,}" for n, a in zip(*c)) for name, c in points.items()) + ".")

# %% [markdown]
# TEXT

# %% [markdown]
# And a teacher that is wrong? Here some of the labels were replaced by random ones. A larger network learnt them, and small networks learn the same labels, or that network's
# soft or hard answers, on the same images.
#
# **Predict:** can the small network be better than its teacher?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
ran = {share: row["accuracy"] for share, row in claims.full_run("23_distillation")["teachers"]["by share"].items()}
spoken = "; ".join(f"{float(share):.0%} wrong: " + ", ".join(f"{name} {100 * a[0]:.1f}%" for name, a in row.items()) for share, row in ran.items())
plots.bars({f"{float(share):.0%} of the labels wrong": {name: 100 * a[0] for name, a in row.items()} for share, row in ran.items()}, width=8.6, form="{:.1f}",
           title="Full run: 2,880 images, accuracy on clean test images", xlabel="test accuracy (%)", alt=f"Test accuracy by the share of wrong labels. {spoken}.")

# %% [markdown]
# TEXT

# %% [markdown]
# Last, bits. Lab 24 distils a mobile-style network of a tenth of its teacher's weights, and then rounds its weights and activations. From its full run:

# %% tags=["experiment"]
try:
    ran = claims.full_run("24_quantization")["distilled"]
except (FileNotFoundError, KeyError):  # this notebook may lie alone
    ran = None
    print("The full run of lab 24 is not on this machine; get it with the course to see this picture.")
if ran:
    sizes = {"teacher, 32 bits": 4 * ran["weights"]["teacher"], **{f"distilled, {bits} bits": ran["weights"]["student"] * bits / 8 for bits in (32, 8, 6, 4)}}
    made = ran["accuracy"]["distilled"]
    reached = {"teacher, 32 bits": 100 * ran["teacher"], "distilled, 32 bits": 100 * made["float32"][0], **{f"distilled, {b} bits": 100 * made["rounded"][str(b)][0] for b in (8, 6, 4)}}
    fig, (left, right) = plots.figure(columns=2, size=(11.4, 3.4), alt="; ".join(f"{name}: {sizes[name] / 1000:.1f} kB, {reached[name]:.1f}%" for name in sizes) + ".")
    plots.bars({name: b / 1000 for name, b in sizes.items()}, ax=left, log=True, alt="", title="Weights, without scales", xlabel="kilobytes (logarithmic scale)", form="{:,.1f}")
    plots.bars(reached, ax=right, alt="", title="Full run of lab 24", xlabel="test accuracy (%)", form="{:.1f}")
    plots.show(fig)

# %% [markdown]
# TEXT

# %% tags=["experiment"]
claims.show("23-soft-labels", measured=f"360 images: labels {accuracy(first):.1f}%, soft answers {answered:.1f}%; 720: {found['labels']:.1f}% and {found['T = 4']:.1f}%; all 10,000: "
            f"{mine['labels'][2]:.1f}% and {mine['soft answers'][2]:.1f}%" if "soft answers" in mine else None)
claims.show("23-rounds", measured=f"the deployed network: {models.n_parameters(teacher) / models.n_parameters(deployed):.1f} times smaller than the teacher, {accuracy(teacher):.1f}% to {accuracy(deployed):.1f}%, at once")
claims.show("23-compounds")

# %% [markdown]
# ### Question (15 points)
#
# Are the claims right? Write five to eight sentences: when a soft answer says more than a label, and when it does not; whether rounds helped here; and what "several times smaller at no loss"
# leaves out. Use your numbers, and say which of them come from one seed.

# %% [markdown] tags=["written"] points=15 name="claim"
# TEXT


# %% [markdown]
# ## Optional · `attention_map_loss`: look where the teacher looks
#
# Instead of imitating each of the teacher's channels, imitate only *where* in the image it responds. The attention map of a layer is the
# mean square over its channels; flattened, and divided by its length, it has no scale (Zagoruyko & Komodakis 2017, equation 2, here
# with the distance squared):
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
    seen = {name: net.maps(glyphs.test_x[:500])[1] for name, net in (("teacher", teacher), ("labels", taught["labels"]), ("soft answers", taught["T = 4"]), ("untrained", distil.ConvNet().eval()))}
distance = {name: float(attention_map_loss(m, seen["teacher"])) for name, m in seen.items() if name != "teacher"}
pictures = [("image", glyphs.test_x[7, 0]), *((name, m[7].square().mean(0)) for name, m in seen.items())]
fig, panels = plots.figure("Where does the second layer respond?", columns=5, size=(11, 2.6), alt="A test image, and where the second layers of the teacher and of three small networks respond to "
                           f"it. Mean attention_map_loss to the teacher over 500 images: {', '.join(f'{name} {d:.3f}' for name, d in distance.items())}.")
for ax, (name, picture) in zip(panels, pictures):
    ax.imshow(picture, cmap="cividis" if name != "image" else "gray")
    ax.set(xticks=[], yticks=[], xlabel=name + (f": {distance[name]:.3f}" if name in distance else ""))
plots.show(fig)

# %% [markdown]
# TEXT

# %% [markdown]
# ## Optional · `ensemble_teacher`: many teachers, one voice
#
# Several networks are nearly always better than one, and several times as slow. Distillation keeps the first and drops the second. The
# ensemble's soft answer is the arithmetic mean of its members' answers, or their geometric mean, made to add up to one (Hinton et al. 2015, section
# 1). The second is the softmax of the mean logits.
#
# **Predict:** three small networks, each trained with labels on the same 720 images. How much better is their ensemble than one of them? And a single
# small network that learns the ensemble's answers?

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
members = [learn(lambda net, i: F.cross_entropy(net(x[i]), y[i]), few, seed=s) for s in range(3)]
logits = lambda images: torch.stack([torch.cat([net(part) for part in images.split(500)]) for net in members])
with torch.no_grad():
    of_all, tested = ensemble_teacher(logits(x), 1.0), logits(glyphs.test_x)
together = {kind: 100 * (ensemble_teacher(tested, 1.0, kind == "geometric").argmax(1) == glyphs.test_y).float().mean().item() for kind in ("arithmetic", "geometric")}
pupil = learn(lambda net, i: -(of_all[i] * net(x[i]).log_softmax(1)).sum(1).mean(), few, seed=9)
values = {**{f"member {s + 1}": accuracy(net) for s, net in enumerate(members)}, **{f"ensemble, {kind} mean": a for kind, a in together.items()}, "one that learnt from it": accuracy(pupil)}
plots.bars(values, title="720 images, nothing larger than the small network", xlabel="test accuracy (%)", form="{:.1f}",
           alt=f"Test accuracy: {', '.join(f'{name} {a:.1f}%' for name, a in values.items())}.")

# %% [markdown]
# TEXT

# %% [markdown]
# ## Optional · `born_again`: a teacher of one's own size
#
# Train a network with labels. Train a second one, of the same size, with the first one's soft answers; a third with the second's; and so on
# (Furlanello et al. 2018). Nobody in this chain is larger than the others or has seen more.
#
# The function does not train by itself: it is given `fit(targets)`, which trains a fresh network on probabilities [n, N] and returns its logits [n, N] for the
# same images.
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
ran = claims.full_run("23_distillation")["generations"]["accuracy"]
mine = [accuracy(net) for net in line]
plots.lines({"yours, one seed": (range(1, len(mine) + 1), mine), "full run (band: 95%)": (range(1, len(ran) + 1), [100 * a[0] for a in ran])},
            bands={"full run (band: 95%)": ([100 * a[1] for a in ran], [100 * a[2] for a in ran])}, title="720 images, one generation teaches the next", xlabel="generation",
            ylabel="test accuracy (%)", alt=f"Test accuracy by generation: yours {', '.join(f'{a:.1f}%' for a in mine)}; full run {', '.join(f'{100 * a[0]:.1f}%' for a in ran)}.")

# %% [markdown]
# TEXT


# %% [markdown]
# ## Going further
#
# TEXT
