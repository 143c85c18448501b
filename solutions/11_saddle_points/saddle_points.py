# %% [markdown]
# # 11 · Saddle points
#
# Textbooks say that plain gradient descent stalls at a saddle point where AdaGrad and its relatives leave at
# once, and a well-known animation shows it. Is it so, why, and does it matter in a real network?
#
# By the end you will have made this picture with seven optimisers of your own: the race on a saddle, beside the
# race on the same saddle turned by 45°. Nothing else changes, and the order of the finish does.
#
# | | |
# | --- | --- |
# | Time | about 6 hours |
# | You need | gradients, eigenvalues of a symmetric matrix, the basics of PyTorch |
# | Data | digits and mnist5k; they are on this machine, no network is needed |
# | A GPU adds | nothing before "How fast?"; there it makes the same point more strongly |
#
# Before each experiment you are asked to **predict** its outcome. Write a line in the cell below the question,
# then run the experiment. A wrong prediction costs nothing and teaches the most. Code that would tell the outcome
# is folded: run it first, and then open it (a click on the three dots) and play with it.

# %% tags=["setup"]
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from course import claims, data, models, plots, surfaces, timing, train
from course.check import check, setup, speed

setup("11_saddle_points")
State = dict[str, Tensor | int | float]  # what an optimiser remembers; empty before the first step

# %% [markdown]
# ## The saddle
#
# $$f(x, y) = x^2 - y^2, \qquad \nabla f = (2x, -2y), \qquad H = \begin{pmatrix} 2 & 0 \\ 0 & -2 \end{pmatrix}.$$
#
# At the origin the gradient is zero, but it is not a minimum: the Hessian $H$ has an eigenvalue of each sign.
# Along $x$ the surface is a valley, along $y$ a hilltop. The line $y = 0$ is a *ridge*: a ball that starts
# exactly on it rolls to the origin and stops. We start at $(-1, 0.001)$, beside the ridge by a thousandth.

# %%
START = (-1.0, 1e-3)

# %% tags=["experiment"]
plots.surface_race(surfaces.saddle, {"start": torch.tensor([START])}, title="Down along x, down again along y",
                   alt="The surface x² − y², a pass between two mountains. The start is high up on it, at (-1, 0.001).")

# %% [markdown]
# ### Notation
#
# $\theta$ is a tensor of parameters (here the point $(x, y)$), $g$ the gradient there, $\eta$ the learning rate
# (`lr`), and $\theta \leftarrow \dots$ one step. Squares, roots and quotients of tensors are taken element by
# element. $\lambda$ is an eigenvalue of the Hessian: the curvature in one direction.
#
# Every optimiser is a function `step(param, grad, state, lr=...)` that returns the new parameter and the new
# state. It changes nothing that it was given. `state` is a dict, empty before the first step; what is not in it
# yet counts as zero.

# %% [markdown]
# ## 1 · SGD: follow the slope
#
# $$\theta \leftarrow \theta - \eta\, g.$$
#
# On the saddle one step does $x \leftarrow (1 - 2\eta)\,x$ and $y \leftarrow (1 + 2\eta)\,y$: the two coordinates
# know nothing of each other. We say that a method has *escaped* when $|y| > 0.5$.
#
# **Predict:** with $\eta = 0.01$, after about how many steps has SGD escaped from $y_0 = 10^{-3}$? And from
# $y_0 = 10^{-6}$, a thousand times closer to the ridge: a thousand times as many?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def sgd_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
             lr: float = 0.1) -> tuple[Tensor, State]:
    """One step of gradient descent. It remembers nothing: the new state is empty too."""
    ### BEGIN SOLUTION
    return param - lr * grad, {}
    ### END SOLUTION


# %%
check(sgd_step)

# %% tags=["experiment"]
far = lambda point: abs(point[1]) > 1
walks = {}
for y0 in (1e-1, 1e-3, 1e-6):
    paths = surfaces.race(surfaces.saddle, {"SGD": (sgd_step, {"lr": 0.01})}, (-1, y0), 800, until=far)
    walks[f"y₀ = {y0:g}"] = paths["SGD"]  # [steps + 1, 2]

fig, (left, right) = plots.figure(columns=2, size=(9.6, 3.8), alt="SGD from three distances to the ridge. On a "
    "logarithmic scale |y| grows along parallel lines. The height falls, stays near zero for long, and falls again.")
plots.lines({name: path[:, 1] for name, path in walks.items()}, ax=left, alt="", logy=True, xlabel="step",
            title="Leaving: a straight line ...", ylabel="|y|, distance to the ridge")
plots.lines({name: surfaces.saddle.value(path) for name, path in walks.items()}, ax=right, alt="", xlabel="step",
            title="... that looks like a plateau", ylabel="height")
plots.show(fig)

# %% [markdown]
# SGD is never stuck: $|y|$ grows by 2% at every step. Being a thousand times closer costs
# $\ln 1000 / \ln 1.02 = 349$ steps more, no matter where you are. But look at the right picture: for most of this
# time the height does not move. In training, that is a *plateau*, and it ends as suddenly as it does here.

# %% [markdown]
# ## 2 · Momentum: remember the direction
#
# Add up the past gradients, and let old ones fade:
#
# $$v \leftarrow \beta v + g, \qquad \theta \leftarrow \theta - \eta\, v.$$
#
# If the gradient stayed the same, $v$ would grow to $g / (1 - \beta)$: with $\beta = 0.9$, steps ten times as
# long.
#
# **Predict:** SGD needs 314 steps from our start at $\eta = 0.01$. Does momentum need a tenth of that, more, or
# less?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def momentum_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                  lr: float = 0.1, beta: float = 0.9) -> tuple[Tensor, State]:
    """One step of SGD with momentum (Polyak 1964): v = beta*v + grad; param - lr*v. `state` holds v."""
    ### BEGIN SOLUTION
    v = beta * state.get("v", torch.zeros_like(param)) + grad
    return param - lr * v, {"v": v}
    ### END SOLUTION


# %%
check(momentum_step)

# %% [markdown]
# The next cell is used all through the lab: it counts the steps until $|y| > 0.5$.

# %%
def steps_to_escape(step: Callable, degrees: float = 0, start=START, most: int = 2000, **hyper) -> int | None:
    """Steps until |y| > 0.5 on the saddle turned by `degrees`; None: not within `most`. `start` in the saddle's own axes."""
    surface = surfaces.rotated(surfaces.saddle, degrees)
    escaped = lambda point: abs(surface.own(point)[1]) > 0.5
    path = surfaces.race(surface, {"": (step, hyper)}, surface.outer(start), most, until=escaped)[""]
    return len(path) - 1 if escaped(path[-1]) else None

# %% tags=["experiment"]
runs = {"SGD, lr 0.01": (sgd_step, {"lr": 0.01}), "momentum, lr 0.01": (momentum_step, {"lr": 0.01}),
        "SGD, lr 0.1": (sgd_step, {"lr": 0.1})}
walks = surfaces.race(surfaces.saddle, runs, START, 400, until=lambda point: abs(point[1]) > 0.5)
counts = {name: steps_to_escape(step, **hyper) for name, (step, hyper) in runs.items()}
plots.lines({f"{name}: {counts[name]} steps": path[:, 1] for name, path in walks.items()}, logy=True, marks=False,
            title="Momentum needs time to gather speed", xlabel="step", ylabel="|y|, distance to the ridge",
            alt=f"Steps to escape: {counts}. Momentum lies between SGD at its rate and SGD at ten times its rate.")

# %% [markdown]
# Less than ten times faster: the velocity is an average over the last ten steps or so, and ten steps ago the
# gradient was smaller. The slower the escape, the closer momentum comes to its factor ten (try $\eta = 0.001$ in
# both).

# %% [markdown]
# ## 3 · Nesterov: look one step ahead
#
# Momentum uses the slope where it stands, although it knows where its velocity will carry it. Nesterov's form
# uses the slope ahead. Written for the gradient at hand, as torch does it:
#
# $$v \leftarrow \beta v + g, \qquad \theta \leftarrow \theta - \eta\,(g + \beta v).$$
#
# On the ridge this hardly matters. In the valley, where momentum shoots over the bottom and comes back, it does.
#
# **Predict:** at $\eta = 0.1$, momentum swings through $x = 0$ many times. Does looking ahead make the swings
# shorter, or only later?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def nesterov_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                  lr: float = 0.1, beta: float = 0.9) -> tuple[Tensor, State]:
    """One step of Nesterov momentum as torch writes it: v = beta*v + grad; param - lr*(grad + beta*v)."""
    ### BEGIN SOLUTION
    v = beta * state.get("v", torch.zeros_like(param)) + grad
    return param - lr * (grad + beta * v), {"v": v}
    ### END SOLUTION


# %%
check(nesterov_step)

# %% tags=["experiment"]
runs = {"SGD": (sgd_step, {"lr": 0.1}), "momentum": (momentum_step, {"lr": 0.1}),
        "Nesterov": (nesterov_step, {"lr": 0.1})}
walks = surfaces.race(surfaces.saddle, runs, (-1.0, 0.0), 60)
plots.lines({name: path[:, 0] for name, path in walks.items()}, marks=False, xlabel="step", ylabel="x",
            title="Across the valley: momentum swings, Nesterov brakes",
            alt="x against the step, in the valley. SGD creeps to 0; momentum swings around 0 for all 60 steps; "
                "Nesterov swings twice and is at rest after about 25 steps.")

# %% [markdown]
# **Play.** Your three functions on the saddle. Move a slider, and they run again. Which of the three is thrown out of
# the picture sideways, in $x$, and from which learning rate on? How does that depend on $\beta$?

# %% tags=["experiment"]
from course.sliders import Slider, show

def draw(lr, beta):
    runs = {"SGD": (sgd_step, {"lr": lr}), "momentum": (momentum_step, {"lr": lr, "beta": beta}),
            "Nesterov": (nesterov_step, {"lr": lr, "beta": beta})}
    walks = surfaces.race(surfaces.saddle, runs, START, 60)
    plots.contour_race(surfaces.saddle, walks, title=f"60 steps, learning rate {lr:.2g}, β = {beta:.2f}")

show(draw, lr=Slider(0.001, 1, start=0.05, log=True, label="learning rate"), beta=Slider(0, 0.99, start=0.9, step=0.01, label="β"))

# %% [markdown]
# ## 4 · AdaGrad: a rate for every coordinate
#
# From here on the methods do something new: they divide each coordinate of the gradient by a measure of its own
# size. AdaGrad takes the root of the sum of all squares so far,
#
# $$s \leftarrow s + g^2, \qquad \theta \leftarrow \theta - \eta\, \frac{g}{\sqrt{s} + \varepsilon}.$$
#
# The very first step is then $\pm\eta$ in every coordinate, however small the gradient. ($\varepsilon$ only
# guards against $0/0$.)
#
# **Predict:** at $\eta = 0.1$ SGD needs 38 steps more for every factor of a thousand that it starts closer to the
# ridge. And AdaGrad?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def adagrad_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                 lr: float = 0.1, eps: float = 1e-10) -> tuple[Tensor, State]:
    """One AdaGrad step (Duchi et al. 2011). `state` holds s, the sum of all squared gradients so far."""
    ### BEGIN SOLUTION
    s = state.get("s", torch.zeros_like(param)) + grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}
    ### END SOLUTION


# %%
check(adagrad_step)

# %% tags=["experiment"]
escaped = lambda point: abs(point[1]) > 0.5
fig, panels = plots.figure(columns=2, size=(9.6, 3.8), alt="SGD leaves later the closer it starts to the ridge. AdaGrad's "
    "first step takes it to |y| = 0.1 from all three starts; from there on its three curves are one.")
for ax, name, step in zip(panels, ("SGD", "AdaGrad"), (sgd_step, adagrad_step)):
    curves = {}
    for y0 in (1e-3, 1e-6, 1e-9):
        paths = surfaces.race(surfaces.saddle, {name: (step, {"lr": 0.1})}, (-1, y0), 40, until=escaped)
        curves[f"y₀ = {y0:g}"] = paths[name][:, 1]
    plots.lines(curves, ax=ax, alt="", logy=True, marks=False, title=f"{name}, lr 0.1", xlabel="step",
                ylabel="|y|, distance to the ridge")
    ax.set(ylim=(5e-10, 1), xlim=(-2, 41))
plots.show(fig)

# %% [markdown]
# One step, and the distance to the ridge is forgotten. So far the textbooks are right. (At $\eta = 0.01$ AdaGrad
# needs 322 steps, no fewer than SGD: its first step is $\eta$ long, and all later ones are shorter.)

# %% [markdown]
# ## 5 · RMSprop: forget
#
# AdaGrad's $s$ only grows, so its steps only shrink. RMSprop replaces the sum by a moving average, which forgets
# after about $1/(1-\beta)$ steps:
#
# $$s \leftarrow \beta s + (1-\beta)\, g^2, \qquad \theta \leftarrow \theta - \eta\, \frac{g}{\sqrt{s} + \varepsilon}.$$
#
# $s$ starts at zero, so the first average is too small.
#
# **Predict:** with $\beta = 0.99$, how long is the first step, in units of $\eta$? And when the gradient suddenly
# becomes ten times smaller, which method notices?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def rmsprop_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                 lr: float = 0.01, beta: float = 0.99, eps: float = 1e-8) -> tuple[Tensor, State]:
    """One RMSprop step (Hinton 2012). `state` holds s, the moving average of squared gradients, zero at first."""
    ### BEGIN SOLUTION
    s = beta * state.get("s", torch.zeros_like(param)) + (1 - beta) * grad**2
    return param - lr * grad / (s.sqrt() + eps), {"s": s}
    ### END SOLUTION


# %%
check(rmsprop_step)

# %% tags=["experiment"]
def step_lengths(step, grads, **hyper):
    """How far a single parameter moves at each step, for gradients given beforehand."""
    point, state, lengths = torch.zeros(1), {}, []
    for grad in grads:
        new, state = step(point, grad.view(1), state, lr=1.0, **hyper)
        lengths.append((new - point).abs().item())
    return torch.tensor(lengths)

grads = torch.cat([torch.ones(200), 0.1 * torch.ones(600)])
plots.lines({"AdaGrad": step_lengths(adagrad_step, grads), "RMSprop, β = 0.99": step_lengths(rmsprop_step, grads),
             "RMSprop, β = 0.9": step_lengths(rmsprop_step, grads, beta=0.9)}, logy=True, marks=False, xlabel="step",
            title="The gradient falls from 1 to 0.1 at step 200", ylabel="length of the step / learning rate",
            alt="AdaGrad's steps shrink all the time, and tenfold at step 200. RMSprop begins with steps of ten (β = 0.99) "
                "or three (β = 0.9) learning rates, falls to one, drops at step 200 and comes back to one.")

# %% [markdown]
# ## 6 · AdaDelta: which unit does a step have?
#
# Divide a gradient by its own size and the result has no unit, yet it is added to a parameter that has one.
# AdaDelta multiplies by the recent size of its own updates, which has the right unit, and hopes to need no
# learning rate:
#
# $$s \leftarrow \rho s + (1-\rho)\, g^2, \qquad \Delta = \frac{\sqrt{u + \varepsilon}}{\sqrt{s + \varepsilon}}\; g, \qquad
# \theta \leftarrow \theta - \eta\, \Delta, \qquad u \leftarrow \rho u + (1-\rho)\, \Delta^2.$$
#
# Here $\varepsilon$ stands *inside* both roots, and $\Delta$ uses the $u$ of the steps before. Zeiler's paper has
# $\eta = 1$.
#
# **Predict:** before the first step $u = 0$. What, then, decides how long AdaDelta's first steps are?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def adadelta_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State,
                  lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6) -> tuple[Tensor, State]:
    """One AdaDelta step (Zeiler 2012). `state` holds s and u, the moving averages of squared gradients and of
    squared updates (before the factor lr), both zero at first; eps is inside both square roots."""
    ### BEGIN SOLUTION
    s = rho * state.get("s", torch.zeros_like(param)) + (1 - rho) * grad**2
    u = state.get("u", torch.zeros_like(param))
    delta = (u + eps).sqrt() / (s + eps).sqrt() * grad
    return param - lr * delta, {"s": s, "u": rho * u + (1 - rho) * delta**2}
    ### END SOLUTION


# %%
check(adadelta_step)

# %% tags=["experiment"]
epsilons = [10.0**-k for k in range(2, 10)]
counts = {f"y₀ = {y0:g}": [steps_to_escape(adadelta_step, start=(-1, y0), lr=1.0, eps=eps) for eps in epsilons]
          for y0 in (1e-1, 1e-3, 1e-6)}
plots.lines(counts, x=epsilons, logx=True, logy=True, title="AdaDelta's hidden learning rate is ε",
            xlabel="ε (torch's default is 1e-6)", ylabel="steps to escape",
            alt="Steps that AdaDelta needs to escape against ε: about 10 at 1e-2, a hundred to a thousand at 1e-9.")

# %% [markdown]
# The first step is about $3\sqrt{\varepsilon}$ long where $g$ is large, and from there $u$ has to grow by itself.
# The learning rate has not gone, it has moved into a constant that was meant to guard against $0/0$.

# %% [markdown]
# ## 7 · Adam: remember both
#
# Adam keeps an average $m$ of the gradients, like momentum, and an average $v$ of their squares, like RMSprop.
# (This $v$ is the paper's letter and has nothing to do with momentum's.) At step $t = 1, 2, \dots$
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\, g^2, \qquad
# \hat m = \frac{m}{1-\beta_1^t}, \quad \hat v = \frac{v}{1-\beta_2^t}.$$
#
# The last two repair what starting at zero does to the averages. AdamW pulls the weights towards zero *beside*
# the gradient, so that this pull is not divided by anything; $w$ is `weight_decay`:
#
# $$\theta \leftarrow (1 - \eta w)\,\theta - \eta\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}.$$
#
# **Predict:** without the repair ($m$ for $\hat m$, $v$ for $\hat v$), is the first step too long or too short?
# By what factor?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def adam_step(param: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: State, lr: float = 1e-3,
              beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
              weight_decay: float = 0.0) -> tuple[Tensor, State]:
    """One AdamW step (Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019 for the decoupled decay).

    `state` holds m, v and the step count t. The decay multiplies the parameter by 1 - lr*weight_decay
    and never enters m or v. eps is added outside the square root of the corrected v.
    """
    ### BEGIN SOLUTION
    t = state.get("t", 0) + 1
    m = beta1 * state.get("m", torch.zeros_like(param)) + (1 - beta1) * grad
    v = beta2 * state.get("v", torch.zeros_like(param)) + (1 - beta2) * grad**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    decayed = param * (1 - lr * weight_decay)
    return decayed - lr * m_hat / (v_hat.sqrt() + eps), {"m": m, "v": v, "t": t}
    ### END SOLUTION


# %%
check(adam_step)

# %% tags=["experiment"]
steps = torch.arange(1, 2001)
adam = step_lengths(adam_step, torch.ones(2000))
unrepaired = (1 - 0.9**steps) / (1 - 0.999**steps).sqrt()  # the same with m and v as they are
plots.lines({"Adam": adam, "without the repair": unrepaired}, x=steps, logx=True, marks=False, xlabel="step",
            title="The gradient is 1 at every step", ylabel="length of the step / learning rate",
            alt="Step lengths for a constant gradient. Adam: always one learning rate. Without the repair: three at "
                "first, more than six after twelve steps, back to one after about 2000.")

# %% [markdown]
# Both averages start too small, but $v$ forgets a hundred times more slowly than $m$ and stays too small for
# longer: the unrepaired steps are too *long*, by 3.2 at first and by 6.6 at worst. By the way, $\hat v$ is often
# called a variance. It is not: the gradient in this picture never varies, and $\hat v = 1$. It is the mean
# *square*.

# %% [markdown]
# ## The race
#
# All seven, with *your* functions: from the same start, with the same learning rate 0.01; AdaDelta has its own
# default, 1.
#
# **Predict:** who leaves first, who last? Where on the picture is SGD after 120 steps?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
METHODS = {"SGD": sgd_step, "momentum": momentum_step, "Nesterov": nesterov_step, "AdaGrad": adagrad_step,
           "RMSprop": rmsprop_step, "AdaDelta": adadelta_step, "Adam": adam_step}
RUNS = {name: (step, {"lr": 1.0 if name == "AdaDelta" else 0.01}) for name, step in METHODS.items()}
walks = surfaces.race(surfaces.saddle, RUNS, START, 120)
plots.animate_race(surfaces.saddle, walks, title="The race: press play")

# %% tags=["experiment"]
plots.surface_race(surfaces.saddle, walks, title="The same race in three dimensions")

# %% [markdown]
# So the textbooks seem to be right about RMSprop, AdaDelta and Adam, and about SGD, which slides to the origin
# and waits. AdaGrad already disappoints. But notice *where* the fast ones leave: they never come near the saddle
# point. They walk off the ridge at the start, because a gradient of 0.002 in $y$ counts for as much as one of 2
# in $x$. For that, the ridge has to run along a coordinate axis. So turn it.

# %% [markdown]
# ## Turn the saddle
#
# The same surface, turned by 45°; the start turns with it. For anyone who walks on it, nothing has changed. The
# *coordinates* have changed: both components of the gradient now hold half of the steep slope and half of the
# tiny one.
#
# **Predict:** three of the seven walk exactly the same path as before, turned by 45°. Which, and why? What
# happens to the other four?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
turned = surfaces.rotated(surfaces.saddle, 45)
turned_walks = surfaces.race(turned, RUNS, turned.outer(START), 120)
fig, (left, right) = plots.figure(columns=2, size=(10, 4.4), alt="Two races on the saddle. Axes aligned: RMSprop, Adam "
    "and AdaDelta leave the ridge at the start. Turned by 45°: all seven follow the ridge down to the saddle point.")
plots.contour_race(surfaces.saddle, walks, ax=left, legend=False, title="Axes aligned, 120 steps")
plots.contour_race(turned, turned_walks, ax=right, title="Turned by 45°, 120 steps")
plots.show(fig)

# %% tags=["experiment"]
counts = {"axes aligned": {}, "turned by 45°": {}, "turned by 45°, from x₀ = 0": {}}
for name, (step, hyper) in RUNS.items():
    counts["axes aligned"][name] = steps_to_escape(step, **hyper)
    counts["turned by 45°"][name] = steps_to_escape(step, 45, most=10_000, **hyper)
    counts["turned by 45°, from x₀ = 0"][name] = steps_to_escape(step, 45, start=(0.0, 1e-3), **hyper)
plots.bars(counts, log=True, title="Turning the axes changes the winners", width=8, form="{:,.0f}",
           xlabel="steps to escape (lr 0.01; AdaDelta 1)", alt=f"Steps to escape: {counts}.")

# %% [markdown]
# Turned, momentum and Nesterov win, and AdaGrad is thirty times slower than plain SGD. Both components of the
# gradient are dominated by the steep slope in $x$, so both are divided by it, and the tiny slope stays tiny.
# RMSprop and Adam recover *after* they have reached the valley's floor, when they have forgotten the steep slope;
# AdaGrad never forgets. The third group is the cross-check: without the steep slope ($x_0 = 0$) there is nothing
# to hide behind, and turning does no harm.
#
# So the adaptive methods win because the saddle's axes happen to be the coordinate axes? That is the usual
# conclusion. Before you believe it, try more angles than one.
#
# **Predict:** sketch the steps to escape against the angle, from 0° to 90°, for RMSprop.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
angles = list(range(0, 91, 5))
curves = {}
for name in ("SGD", "momentum", "AdaGrad", "RMSprop", "Adam"):
    counts = [steps_to_escape(METHODS[name], angle, most=1500, lr=0.01) for angle in angles]
    curves[name] = [math.nan if count is None else count for count in counts]
plots.lines(curves, x=angles, logy=True, title="45° is the worst case, not the typical one",
            xlabel="the saddle is turned by (degrees)", ylabel="steps to escape (lr 0.01)",
            alt="Steps to escape against the angle. SGD and momentum are flat. RMSprop rises from 6 to 100 and Adam from "
                "44 to 280, both in a sharp peak at 45°; AdaGrad rises above 1500 between 25° and 65°.")

# %% [markdown]
# The loss is dramatic only close to 45°. At 30° RMSprop still needs 25 steps. But at 30° the two components of
# the gradient are as mixed as you like, so it cannot be that RMSprop "sees" the escape direction. What else
# pushes it off the ridge? Start a thousandth *below* the ridge instead of above.
#
# **Predict:** SGD and Adam start once above and once below the ridge of a saddle turned by 30°. To which side
# does each leave?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
turned = surfaces.rotated(surfaces.saddle, 30)
sides = {}
for name in ("SGD", "Adam"):
    for where, y0 in (("above", 1e-3), ("below", -1e-3)):
        paths = surfaces.race(turned, {name: RUNS[name]}, turned.outer((-1, y0)), 450)
        sides[f"{name}, {where} the ridge"] = paths[name]
plots.contour_race(turned, sides, title="Turned by 30°: SGD knows its side, Adam does not",
                   alt="Two SGD paths follow the ridge to the saddle point and leave to opposite sides. The two Adam "
                       "paths lie on each other: both leave at once, and to the same side.")

# %% [markdown]
# Adam's step is close to $\eta\,\mathrm{sign}(g)$, and that does not point down the slope: at 30° it points 15°
# away from the ridge, whichever side the ground falls to. It has not found the way out. It has failed to follow
# the ridge, and next to a ridge every mistake is a way out. Only at 45° (and at 0°, on the ridge itself) is the
# sign of the gradient exactly the direction of the ridge.
#
# Three reasons, then, for leaving early, and it is worth keeping them apart:
# 1. **Size does not count.** A small gradient makes as long a step as a large one, once a large one has been
#    forgotten.
# 2. **Each coordinate for itself.** If the escape direction is a coordinate, its tiny gradient is blown up at
#    once (0°).
# 3. **Wrong direction.** The step is not the gradient's direction, so it does not stay on a ridge (all angles but
#    45°).

# %% [markdown]
# ### A curved valley
#
# A saddle is not everything. Here is a valley with a bend, Rosenbrock's banana made milder: steep across, nearly
# flat along.
#
# **Predict:** which of the seven reach the star within 300 steps? Does it help to divide by the size of the
# gradient here?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
runs = {name: (step, {"lr": 1.0 if name == "AdaDelta" else 0.05}) for name, step in METHODS.items()}
plots.race(surfaces.valley, runs, (-1.2, 2.0), 300, title="Curved valley, 300 steps, lr 0.05")

# %% [markdown]
# Four of them arrive. Along the floor the gradient is small: momentum and Nesterov add up what there is of it,
# RMSprop and Adam do not care about its size. RMSprop keeps jumping about the star, because a small gradient does
# not shorten its steps either. SGD crawls, AdaGrad has slowed down for good, and AdaDelta has not yet got going.
# In a bend no direction stays an axis for long, and dividing by the size of the gradient helps all the same:
# reason 1.

# %% [markdown]
# ## 8 · `escape_steps`: predict the escape
#
# Enough watching. Near a saddle the loss along an eigenvector is $\tfrac12 \lambda y^2$ with $\lambda < 0$, the
# gradient is $\lambda y$, and the escape can be computed. With momentum, eliminate $v$ from two steps in a row:
#
# $$y_{k+1} = (1 + \beta - \eta\lambda)\, y_k - \beta\, y_{k-1}.$$
#
# Look for solutions $y_k = r^k$: a quadratic equation with two roots. The larger root is greater than 1 and
# grows, the smaller one dies out. At rest at the start, $v = 0$, so $y_0$ is the offset and
# $y_1 = (1 - \eta\lambda)\, y_0$: that says how much of $y_0$ belongs to the growing root. What remains is to ask
# when the growing part reaches the radius. With $\beta = 0$ the smaller root is 0, and you are back at SGD. On
# our saddle $\lambda = -2$ and the radius is 0.5.
#
# **Predict:** before you code it, use SGD's formula by hand: radius 0.5, $\lambda = -2$, $\eta = 0.01$,
# $y_0 = 10^{-3}$.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def escape_steps(curvature: float, lr: float, offset: float, radius: float, beta: float = 0.0) -> float:
    """Predicted number of steps until |y| reaches `radius`, from |y| = `offset` at rest, where the loss is
    curvature * y**2 / 2, under SGD (beta = 0) or momentum as in `momentum_step`.

    A real number: the true count is the next integer. math.inf if y never gets there (curvature >= 0 or offset = 0);
    0.0 if it is there already.
    """
    ### BEGIN SOLUTION
    if abs(offset) >= radius:
        return 0.0
    if curvature >= 0 or offset == 0:
        return math.inf
    # y[k+1] = (1 + beta - lr*curvature) y[k] - beta y[k-1]: the larger root grows, the smaller one dies out.
    trace = 1 + beta - lr * curvature
    root = math.sqrt(trace**2 - 4 * beta)
    grow, shrink = (trace + root) / 2, (trace - root) / 2
    first = 1 - lr * curvature  # y[1] / y[0]: the first step starts at rest
    amplitude = abs(offset) * (first - shrink) / (grow - shrink)
    return math.log(radius / amplitude) / math.log(grow)
    ### END SOLUTION


# %%
check(escape_steps)

# %% tags=["experiment"]
offsets = [10.0**-k for k in range(1, 13)]
fig, ax = plots.figure("Lines: predicted. Marks: counted (lr 0.1)", "y₀, offset from the ridge at the start",
    "steps to escape", size=(7.6, 4.2), alt="For SGD and momentum the counts lie on the predicted lines, straight "
    "against the logarithm of the offset. AdaGrad, RMSprop and Adam need the same few steps at any offset.")
for name, beta in (("SGD", 0.0), ("momentum", 0.9), ("AdaGrad", None), ("RMSprop", None), ("Adam", None)):
    look = plots.looks([name])[name] | {"linestyle": "none"}
    counted = [steps_to_escape(METHODS[name], start=(-1, y0), lr=0.1) for y0 in offsets]
    ax.plot(offsets, counted, label=name, markersize=5, **look)
    if beta is not None:
        ax.plot(offsets, [escape_steps(-2.0, 0.1, y0, 0.5, beta) for y0 in offsets], color=look["color"])
ax.set_xscale("log")
ax.legend(frameon=False)
plots.show(fig)

# %% [markdown]
# Lines are your prediction, marks the count. An offset of $10^{-12}$, far below what any initialisation gives,
# costs SGD at $\eta = 0.1$ some 150 steps. In exact arithmetic only a start exactly *on* the ridge is stuck for
# ever.

# %% [markdown]
# ## 9 · `most_negative_curvature`: is a real network at a saddle?
#
# A network with $n$ parameters has a Hessian of $n \times n$ numbers, too many to write down. But the *product*
# of the Hessian with a vector costs only about two gradients:
#
# $$H u = \nabla_\theta \big( \nabla f(\theta)^\top u \big).$$
#
# From such products alone the lowest eigenvalue can be found. Two ways:
# - **Shifted power iteration.** Multiply by $H$ again and again, and the eigenvalue largest in size wins. If that
#   is $\lambda_{\max} > 0$, repeat with $H - \lambda_{\max} I$: all its eigenvalues are negative, and the lowest
#   one wins. Simple, but slow where eigenvalues lie close together.
# - **Lanczos.** Keep all vectors $u, Hu, H^2u, \dots$, each made orthogonal to those before and of length 1:
#   columns $q_1, \dots, q_k$ of a matrix $Q$. Then $T = Q^\top H Q$ is a small $k \times k$ matrix whose extreme
#   eigenvalues come very near those of $H$, and $Q$ times its eigenvector is the eigenvector. The recommended
#   way. Orthogonalise twice: rounding errors grow otherwise. If nothing remains of the new vector, stop early.
#
# `hvp` is a function: you call it, and it gives $H$ times your vector. At most `max_calls` times.
#
# **Predict:** below you will look for the lowest of 3466 eigenvalues. How many products will Lanczos need:
# thousands, hundreds, tens?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def most_negative_curvature(hvp: Callable[[Tensor], Tensor], start: Float[Tensor, "n"],
                            max_calls: int = 60) -> tuple[Tensor, Tensor]:
    """The lowest eigenvalue of a symmetric matrix H [n, n] and a unit eigenvector [n], from products H @ x alone.

    `hvp(x)` gives H @ x and may be called at most `max_calls` times; `start` is a random vector [n].
    Lanczos iteration, or power iteration on a shifted H.
    """
    ### BEGIN SOLUTION
    basis, products = [], []
    q = start / start.norm()
    for _ in range(min(max_calls, len(start))):
        basis.append(q)
        products.append(hvp(q))
        rest = products[-1]
        for _ in range(2):  # twice: once leaves rounding errors that grow
            for b in basis:
                rest = rest - (b @ rest) * b
        if rest.norm() <= 1e-6 * products[-1].norm():
            break  # the basis holds everything that H can make of start
        q = rest / rest.norm()
    Q = torch.stack(basis)                              # [k, n]
    T = Q @ torch.stack(products).T                     # [k, k]: H seen from the basis
    values, vectors = torch.linalg.eigh((T + T.T) / 2)  # ascending
    return values[0], vectors[:, 0] @ Q
    ### END SOLUTION


# %%
check(most_negative_curvature)

# %% [markdown]
# Now a real one: 1437 scanned digits, a network 64-32-32-10 with tanh, small initial weights ($0.02$ times a
# normal number, biases 0), plain gradient descent with all the data at every step. Its 3466 parameters form *one*
# vector $\theta$.

# %% tags=["experiment"]
digits = data.digits()
net = models.MLP((64, 32, 32, 10), torch.tanh)
names, shapes = zip(*((name, p.shape) for name, p in net.named_parameters()))

def loss(theta):
    """Cross entropy on all training digits (nats), as a function of all parameters [3466]."""
    pieces = theta.split([s.numel() for s in shapes])
    values = {name: piece.view(s) for name, piece, s in zip(names, pieces, shapes)}
    logits = torch.func.functional_call(net, values, digits.train_x)  # [1437, 10]
    return torch.nn.functional.cross_entropy(logits, digits.train_y)

torch.manual_seed(0)
theta0 = torch.cat([0.02 * torch.randn(s.numel()) if len(s) == 2 else torch.zeros(s.numel()) for s in shapes])

# %% tags=["experiment"]
def gradient(theta):
    theta = theta.detach().requires_grad_()
    return torch.autograd.grad(loss(theta), theta)[0]

def hvp_at(theta):
    """The function u -> Hessian times u: the derivative of (gradient · u)."""
    theta = theta.detach().requires_grad_()
    slope = torch.autograd.grad(loss(theta), theta, create_graph=True)[0]
    return lambda u: torch.autograd.grad(slope, theta, u, retain_graph=True)[0]

torch.set_num_threads(1)  # from here on: small matrices, a second thread would only get in the way

# %% tags=["experiment"]
hvp, start, calls = hvp_at(theta0), torch.randn(len(theta0)), [2, 5, 10, 20, 40, 60]
found = [most_negative_curvature(hvp, start, k)[0].item() for k in calls]
plots.lines({"lowest eigenvalue found": found}, x=calls, title="Some tens of products do for 3466 eigenvalues",
            xlabel="products with the Hessian", ylabel="curvature", alt=f"Lowest eigenvalue {found} after {calls} products.")

# %% [markdown]
# Negative: the network starts where the surface bends downwards. How does that go on?

# %% [markdown]
# **Predict:** for some 300 steps the loss will stay at 2.30, the loss of guessing ($\ln 10$). Is that a place
# where the gradient is zero, a minimum, a saddle? What do you expect of the Hessian's lowest and highest
# eigenvalue there, and at the end of training?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% [markdown]
# This takes about 10 seconds: a thousand steps of gradient descent, and your function twice at every fiftieth,
# for the lowest eigenvalue of $H$ and of $-H$.

# %% tags=["experiment"]
theta, history = theta0, {"step": [], "loss": [], "lowest": [], "highest": []}
for step in range(1001):
    if step % 50 == 0:
        hvp, start = hvp_at(theta), torch.randn(len(theta))
        lowest, _ = most_negative_curvature(hvp, start, 40)
        highest, _ = most_negative_curvature(lambda u: -hvp(u), start, 40)
        for name, value in (("step", step), ("loss", loss(theta)), ("lowest", lowest), ("highest", -highest)):
            history[name].append(float(value))
    theta = theta - 0.1 * gradient(theta)

# %% tags=["experiment"]
fig, (left, right) = plots.figure(columns=2, size=(9.6, 3.8), alt="Left: the loss stays at 2.30 for about 350 steps, then "
    "falls. Right: on the plateau the lowest eigenvalue is nearly as large in size as the highest; later the highest "
    "is a hundred times larger.")
plots.lines({"loss": history["loss"]}, x=history["step"], ax=left, alt="", title="A plateau, then learning",
            xlabel="step of gradient descent, lr 0.1", ylabel="training loss (nats)", marks=False)
plots.lines({"highest": history["highest"], "lowest, without its minus sign": [-v for v in history["lowest"]]},
            x=history["step"], ax=right, alt="", logy=True, marks=False, title="The ends of the Hessian's spectrum",
            xlabel="step of gradient descent, lr 0.1", ylabel="size of the eigenvalue")
plots.show(fig)

# %% [markdown]
# On the plateau the surface bends down nearly as much as it bends up: a saddle region in the plain sense of the
# word. (Not exactly a saddle *point*: the gradient is about 0.01, small but not zero.) At the end the lowest
# eigenvalue is still negative, but more than a hundred times smaller than the highest: nearly a minimum, in a
# long flat valley.
#
# Does the network leave *along* the direction that you found? Stand on the plateau at step 200 and look around:
# along your eigenvector, along the gradient, and along a random direction.

# %% tags=["experiment"]
theta = theta0
for step in range(200):
    theta = theta - 0.1 * gradient(theta)
_, way_out = most_negative_curvature(hvp_at(theta), torch.randn(len(theta)))
slope, random = gradient(theta), torch.randn(len(theta))
slope, random = slope / slope.norm(), random / random.norm()
way_out = way_out * torch.sign(way_out @ slope)  # an eigenvector has no sign of its own: let both point uphill
far = torch.linspace(-2, 2, 41)
views = {name: [loss(theta + a * u).item() for a in far] for name, u in
         {"along the eigenvector": way_out, "along the gradient": slope, "a random direction": random}.items()}
plots.lines(views, x=far, marks=False, title="The view from the plateau, at step 200", ylabel="training loss (nats)",
            xlabel="distance along the direction", alt="The loss along three lines. Along the eigenvector and along "
            "the gradient it falls steeply to one side and rises to the other; along a random direction it is flat.")
print(f"cosine of gradient and eigenvector {way_out @ slope:.2f}, of two random directions about {len(theta)**-0.5:.2f}")

# %% [markdown]
# Eigenvector and gradient tell nearly the same story, and a random direction tells none: most of the 3466
# dimensions are flat. The curve is no clean parabola, because by step 200 the network is already sliding down. At
# step 0 the gradient has almost nothing of this direction. It *grows* into it, as $y$ does on the toy saddle.
#
# If that is the way out, a push along it should shorten the wait, and a push of the same length in a random
# direction should do little.
#
# **Predict:** the plateau lasts some 370 steps (until the loss is below 2.2). How long after a push of length 0.5
# at the start along the eigenvector found *there*?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
_, first_way_out = most_negative_curvature(hvp_at(theta0), torch.randn(len(theta0)))
curves = {}
for name, push in {"no push": 0 * random, "random push": random, "push along the eigenvector": first_way_out}.items():
    theta, curves[name] = theta0 + 0.5 * push, []
    for step in range(450):
        curves[name].append(loss(theta).item())
        theta = theta - 0.1 * gradient(theta)
plots.lines(curves, title="A push in the right direction", xlabel="step of gradient descent, lr 0.1", marks=False,
            ylabel="training loss (nats)", alt="A random push ends the plateau a little earlier; a push of the same "
            "length along the eigenvector ends it after about a hundred steps instead of 370.")

# %% [markdown]
# The eigenvector is the way out. On the network's plateau, waiting means what it means on the toy saddle: the
# small part of $\theta$ that lies along the escape direction has to grow from almost nothing.

# %% [markdown]
# ## Turn a real network
#
# On the toy saddle, turning the axes by 45° undid most of the adaptive methods' advantage. Turn the network in
# the same way: choose a random rotation $R$ of the 3466-dimensional space, and let Adam train
# $\theta' = R^\top \theta$ instead of $\theta$. It is the same network and the same loss; but now every
# coordinate is a mixture of all weights, and no direction of the surface is an axis any more. Plain gradient
# descent would not notice. A third run has no memory and no coordinates at all: plain gradient descent whose step
# is brought to a fixed length, $\theta \leftarrow \theta - \eta \sqrt{n}\, g / \lVert g \rVert$, about as long as
# Adam's.
#
# **Predict:** rank the three by the steps they need to leave the plateau: Adam, Adam in turned coordinates, the
# fixed length. (About 5 seconds.)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
n = len(theta0)
rotation = torch.linalg.qr(torch.randn(n, n))[0]  # [3466, 3466], takes about a second
fixed_length_step = lambda p, g, state, lr: (p - lr * n**0.5 * g / g.norm(), state)

def descend(step, lr, turn=None, steps=180):
    """The training loss at each step, in the network's own coordinates or in turned ones [n, n]."""
    point, state, losses = (theta0 if turn is None else turn.T @ theta0), {}, []
    for _ in range(steps):
        theta = point if turn is None else turn @ point
        slope = gradient(theta)
        losses.append(loss(theta).item())
        point, state = step(point, slope if turn is None else turn.T @ slope, state, lr=lr)
    return losses

# %% tags=["experiment"]
curves = {"SGD, lr 0.3": descend(sgd_step, 0.3), "Adam, lr 0.001": descend(adam_step, 1e-3),
          "Adam, turned": descend(adam_step, 1e-3, rotation), "fixed length, lr 0.001": descend(fixed_length_step, 1e-3)}
plots.lines(curves, title="This plateau does not care about the axes", xlabel="step", ylabel="training loss (nats)",
            marks=False, alt="Adam, Adam in turned coordinates and gradient descent with steps of fixed length leave the "
            "plateau at about step 25 and fall together; SGD at lr 0.3 leaves after 120 steps.")

# %% [markdown]
# That is the opposite of what the toy saddle showed. Is it luck, or the learning rate? The full run has five
# networks, five rotations and many learning rates:

# %% tags=["experiment"]
left_at = claims.full_run("11_saddle_points")["plateau"]["below 1"]  # method -> learning rate -> steps for each seed
curves, bands = {}, {}
for name in ("Adam", "Adam, turned", "RMSprop", "RMSprop, turned", "fixed length"):
    rates = [lr for lr, steps in left_at[name].items() if None not in steps]
    steps = torch.tensor([left_at[name][lr] for lr in rates]).float()  # [rates, seeds]
    curves[name] = ([float(lr) for lr in rates], steps.median(1).values)
    bands[name] = (steps.amin(1), steps.amax(1))
plots.lines(curves, bands=bands, logx=True, logy=True, title="Full run: 5 networks, median (band: all)",
            xlabel="learning rate", ylabel="steps until the loss is below 1", alt="Steps to leave the plateau against "
            "the learning rate: " + "; ".join(f"{name} {ys.tolist()} at {xs}" for name, (xs, ys) in curves.items()) + ".")

# %% [markdown]
# Not luck. At a rate of 0.001 Adam needs 112 steps, turned Adam 107, steps of fixed length 113. The axes begin to
# pay only when the steps are very long: at 0.1 Adam needs 8 and turned Adam 27. A single fixed length falls
# behind earlier, at 0.01 (38 steps; Adam 17, turned Adam 18). And plain gradient descent? At its best rate, 1, it
# needs 81, momentum 28.


# %% [markdown]
# ### Question (10 points)
#
# On the toy saddle a turn by 45° made AdaGrad about thirty times slower. On the network's plateau a random turn
# makes next to no difference to Adam, and steps of a fixed length do as well. Explain both with what is large and
# what is small in the gradient, in three or four sentences. (You have measured the two eigenvalues on the
# plateau, and the cosine between gradient and eigenvector.)

# %% [markdown] tags=["written"] points=10 name="axes"
# On the toy saddle the start has a steep slope of 2 in the stable direction and one of 0.002 in the escape
# direction. Aligned with the axes, each is divided by its own size; turned by 45°, both coordinates contain the
# steep slope, are divided by about the same number, and the small slope stays a thousand times smaller, in
# AdaGrad for ever because it never forgets the large one.
#
# On the network's plateau there is no steep stable slope: the highest eigenvalue (0.10) is hardly larger than the
# lowest (−0.06) in size, the whole gradient is tiny (0.01), and after some steps much of it points along the
# escape direction (cosine up to 0.8). What slows gradient descent is only that its step is proportional to this
# tiny gradient. Any method that makes its steps long regardless of the gradient's size removes that, in any
# coordinates, even with one common factor for all.

# %% [markdown]
# ### Is Adam less sensitive to its learning rate?
#
# An overview of training methods says so: Adam works over a wide range of learning rates, SGD does not. Train a
# small network on 4000 real MNIST digits with 13 learning rates each. As the *width* of a method we take the
# learning rates, in decades, whose test error is at most twice the method's best.
#
# **Predict:** how many decades for SGD, how many for Adam? And AdaGrad? (About 15 seconds.)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
mnist, rates = data.mnist5k(), [10 ** (k / 2) for k in range(-10, 3)]
errors = {name: [0.9] * len(rates) for name in ("SGD", "AdaGrad", "Adam")}  # guessing is wrong nine times in ten
for name in errors:
    for k, lr in enumerate(rates):
        torch.manual_seed(0)
        model = models.MLP((784, 128, 10))
        trained = train.train(model, mnist, optimizer=METHODS[name], lr=lr, epochs=3, progress=False)
        errors[name][k] = 1 - trained.final_accuracy

# %% tags=["experiment"]
full = claims.full_run("11_saddle_points")["sensitivity"]
long = {name: full["784-128-10"][name] for name in errors}
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4), alt="Test error against the learning rate for SGD, AdaGrad "
    "and Adam, your run and the full run. All curves are valleys; Adam's and AdaGrad's are wider than SGD's.")
words = {"xlabel": "learning rate", "ylabel": "test error (share)", "logx": True, "logy": True, "alt": ""}
plots.lines(errors, x=rates, ax=left, title="Yours: 3 epochs, 1 seed", **words)
plots.lines({name: row["error"] for name, row in long.items()}, x=full["rates"], ax=right, marks=False,
            bands={name: (row["low"], row["high"]) for name, row in long.items()},
            title="Full run: 5 epochs, 7 seeds (band: all)", **words)
plots.show(fig)
widths = {name: 0.5 * sum(e <= 2 * min(row) for e in row) for name, row in errors.items()}
claims.show("11-adam-less-sensitive", measured=", ".join(f"{name} {w:g} decades" for name, w in widths.items()))

# %% tags=["experiment"]
widest = {name: full["784-128-10"][name]["width"]["2"] for name in ("SGD", "momentum", "AdaGrad", "RMSprop", "Adam")}
plots.bars({name: w[0] for name, w in widest.items()}, intervals={name: tuple(w[1:]) for name, w in widest.items()},
           form="{:.2f}", title="Full run: how wide is the range of good learning rates?",
           xlabel="decades within twice the best error (line: 95% interval)",
           alt=f"Width in decades, mean and 95% interval: {widest}.")


# %% [markdown]
# In the full run SGD works over 1.3 decades of learning rates (95% interval 1.2 to 1.4) and Adam over 2.3 (2.1 to
# 2.6): wider by one decade, a factor of ten (0.7 to 1.3 decades). In a deeper network, 784-64-64-64-10, by 1.35
# decades (1.2 to 1.5). So far the text is right. Two remarks. AdaGrad and RMSprop are as wide as Adam in the
# first network (2.2 each): dividing by the size of the gradient does it, and Adam can claim only what it adds in
# the deeper one (0.5 decades more than AdaGrad). And *wider* is not *better*: at their best rates all five end
# within a percentage point of each other, 5.5 to 6.1% error. (Adam does get under way sooner: 60 steps to 90%
# accuracy, momentum 90, SGD 100, each at its best rate.)


# %% [markdown]
# ### Start with Adam, finish with SGD?
#
# Adam is quick at the start, SGD often ends better, so a late switch from one to the other should give both. To
# judge that one has to ask what else the switch does: it also changes the length of the steps. The fair opponent
# is Adam with a *lower learning rate* from the same moment on. Here is one quick run each; the full run has
# twelve seeds, two tasks (mnist5k, and `glyphs`: 62 kinds of printed characters), and learning rates chosen on
# held-back training data.
#
# **Predict:** best final accuracy: Adam to the end, momentum to the end, the switch, or Adam with a lower rate?
# (About 10 seconds.)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def run(*parts):
    """Train the same network through (step, lr, epochs), one part after the other; the joined history."""
    torch.manual_seed(1)
    model = models.MLP((784, 128, 10))
    done = [train.train(model, mnist, optimizer=step, lr=lr, epochs=epochs, eval_every=62, seed=k, progress=False)
            for k, (step, lr, epochs) in enumerate(parts)]
    return sum(done[1:], done[0])

# %% tags=["experiment"]
late = 9 * 62  # steps in nine epochs
switched = {"Adam": run((adam_step, 3e-3, 12)), "momentum": run((momentum_step, 0.2, 12)),
            "Adam, then momentum": run((adam_step, 3e-3, 9), (momentum_step, 0.05, 3)),
            "Adam, then lower rate": run((adam_step, lambda step: 3e-3 if step < late else 3e-4, 12))}
ends = ", ".join(f"{name} {1 - h.final_accuracy:.1%}" for name, h in switched.items())
plots.lines({name: (h.eval_steps, 100 * (1 - h.accuracy)) for name, h in switched.items()},
            title="A change after 9 of 12 epochs: one run each", xlabel="step", ylabel="test error (%)",
            alt=f"Test error against the step; at the end: {ends}.")
claims.show("11-switch-to-sgd", measured=f"final test error: {ends}")

# %% tags=["experiment"]
full = claims.full_run("11_saddle_points")["switch"]
arms = ["Adam, momentum from 75%", "Adam, SGD from 75%", "Adam, lower rate from 75%", "momentum alone",
        "momentum, lower rate from 75%"]
gains = {task: 100 * torch.tensor([full[task][arm]["minus Adam alone"] for arm in arms])
         for task in ("mnist5k", "glyphs62")}
fig, ax = plots.figure(f"Full run, {full['seeds']} seeds: better than Adam alone, by how much?",
    "gain in test accuracy over Adam alone (percentage points; line: 95% interval)", size=(8, 3.6),
    alt="; ".join(f"{arm}: {gains['mnist5k'][k, 0]:+.2f} and {gains['glyphs62'][k, 0]:+.2f}" for k, arm in enumerate(arms)))
for j, (task, gain) in enumerate(gains.items()):  # gain: [arms, (mean, low, high)]
    mean, low, high = gain.T
    ax.errorbar(mean, torch.arange(5) + 0.2 * j, xerr=torch.stack([mean - low, high - mean]), fmt=plots.MARKS[j],
                color=plots.PALETTE[j], capsize=3, label=task)
ax.axvline(0, color=plots.INK, linestyle=":")
ax.set_yticks(range(5), arms)
ax.invert_yaxis()
ax.legend(frameon=False)
plots.show(fig)

# %% [markdown]
# On mnist5k nothing differs. On the harder task the late switch is worth 1.9 points of accuracy over Adam alone
# (95% interval 1.5 to 2.4), which looks like a success, until you see what merely lowering Adam's rate at the
# same moment gives: 1.8. Seed by seed the switch gains 0.1 more than that (−0.05 to 0.3): nothing that this
# experiment can tell from zero. What helps is the shorter step, not the other method. And the best of all, by
# another two and a half points, is momentum from the start with a lower rate at the end.


# %% [markdown]
# ## 10 · `flat_adam_step`: all tensors at once
#
# Adam for one tensor is ten to fifteen small operations (count yours). A network has many tensors, and in a loop
# each of them pays for its own: Python calls torch, torch looks up the operation for this type and device,
# allocates the result, and only then adds a few numbers. This *dispatch* takes microseconds whatever the size. On
# a GPU each operation also costs a kernel launch.
#
# Since Adam treats every number alike, the borders between tensors mean nothing to it. Lay all parameters end to
# end in one buffer, all gradients in another, and take *one* step.
#
# What you still do once for each tensor now counts most: 200 tensors make 200 calls of it. `x.flatten()` is cheaper
# than `x.reshape(-1)`, and `x.view_as(p)` cheaper than `x.view(p.shape)`, because no list of sizes has to be read.
#
# **Predict:** 200 tensors of 64 numbers: how many times faster? And 200 tensors of 65,536 numbers?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %%
def flat_adam_step(params: list[Tensor], grads: list[Tensor], state: State, lr: float = 1e-3, beta1: float = 0.9,
                   beta2: float = 0.999, eps: float = 1e-8) -> tuple[list[Tensor], State]:
    """Adam for a list of tensors of any shapes, all in one buffer: the same result as `adam_step` on each tensor,
    with the arithmetic done once, on all numbers together. Returns the new parameters, in their shapes, and the
    state (m and v as flat buffers, and t). All tensors have one dtype and device.
    """
    ### BEGIN SOLUTION
    flat = torch.cat([p.flatten() for p in params])
    grad = torch.cat([g.flatten() for g in grads])
    flat, state = adam_step(flat, grad, state, lr, beta1, beta2, eps)
    pieces = flat.split([p.numel() for p in params])
    return [piece.view_as(p) for piece, p in zip(pieces, params)], state
    ### END SOLUTION


# %%
check(flat_adam_step)

# %% [markdown]
# Your function still joins and splits the parameters at each step. A class can do that once and for all: each
# parameter becomes a *view* into the buffer, a tensor that has a shape of its own but the buffer's memory. When
# the buffer moves, all have moved. (The training below it takes about 10 seconds.)

# %%
class FlatAdam:
    """Adam as an optimiser for torch modules: all parameters are views into one buffer, `self.flat`."""

    def __init__(self, params, lr: float = 1e-3):
        self.params, self.state, self.param_groups = list(params), {}, [{"lr": lr}]
        self.flat = torch.nn.utils.parameters_to_vector(self.params).detach()
        begin = 0
        for p in self.params:
            p.data = self.flat[begin:begin + p.numel()].view(p.shape)  # from now on a window onto the buffer
            begin += p.numel()

    @torch.no_grad()
    def step(self):
        grad = torch.nn.utils.parameters_to_vector([p.grad for p in self.params])
        moved, self.state = adam_step(self.flat, grad, self.state, lr=self.param_groups[0]["lr"])
        self.flat.copy_(moved)

# %% tags=["experiment"]
optimizers = {"adam_step on each tensor": adam_step, "FlatAdam": FlatAdam, "torch.optim.Adam": torch.optim.Adam}
curves = {}
for name, optimizer in optimizers.items():
    torch.manual_seed(0)
    deep = models.MLP([64] + [32] * 12 + [10], norm=torch.nn.LayerNorm)  # 50 tensors, most of them tiny
    trained = train.train(deep, digits, optimizer=optimizer, lr=2e-3, steps=500, progress=False)
    smooth = trained.losses.view(50, 10).mean(1)
    curves[f"{name}: {trained.seconds:.1f} s"] = (torch.linspace(0, trained.seconds, 50), smooth)
plots.lines(curves, marks=False, title="The same 500 steps, in less time", xlabel="seconds of training",
            ylabel="training loss (nats)", alt=f"Training loss against time; 500 steps took: {', '.join(curves)}.")

# %% [markdown]
# The runs take the same steps up to rounding, and rounding is soon magnified: the curves are alike, not equal.
# The whole training gains less than the step alone does. Forward and backward pass have a dispatch of their own,
# which no optimiser can save. (The baseline `torch.optim.Adam` loops over the tensors too on a CPU; on a GPU it
# would use its grouped form by itself.)

# %% [markdown]
# ## How fast?
#
# First the graded measurement: ten steps for 200 tensors of 64 numbers, against a loop over the tensors. (A few
# seconds.)

# %%
speed(flat_adam_step)

# %% [markdown]
# Why exactly this size? Let the tensors grow. The limit is the memory: one Adam step has to read parameter,
# gradient, $m$ and $v$, and write parameter, $m$ and $v$: seven numbers of four bytes each, at the rate at which
# this machine copies. All on one thread. (About 15 seconds.)

# %% tags=["experiment"]
import functools

@functools.cache
def tensors(size, count=200):
    many = lambda: [torch.rand(size) for _ in range(count)]
    states = [{"m": m, "v": v, "t": 5} for m, v in zip(many(), many())]
    return many(), many(), states, {"m": torch.rand(count * size), "v": torch.rand(count * size), "t": 5}

loop = lambda params, grads, states, whole: [adam_step(p, g, s) for p, g, s in zip(params, grads, states)]
flat = lambda params, grads, states, whole: flat_adam_step(params, grads, whole)

# %% tags=["experiment"]
sizes = [64, 256, 1024, 4096, 16384, 65536]
measured = [timing.compare(flat, loop, lambda seed: tensors(size), seconds=1.0, device="cpu") for size in sizes]
limit = [200 * size * 7 * 4 / timing.memory_bandwidth("cpu") for size in sizes]  # seconds
fig, (left, right) = plots.figure(columns=2, size=(10.4, 4), alt="Left: the flat step's advantage falls from "
    f"{measured[0].ratio:.0f} at 64 numbers a tensor to {measured[-1].ratio:.1f} at 65,536. Right: the loop's time is "
    "flat until thousands of numbers a tensor; the flat step's time grows with the size.")
plots.lines({"loop / flat": [r.ratio for r in measured]}, x=sizes, ax=left, alt="", logx=True, logy=True,
            bands={"loop / flat": ([r.low for r in measured], [r.high for r in measured])}, limits={"no gain": 1},
            title="The advantage melts (band: 95%)", xlabel="numbers in each of 200 tensors", ylabel="times faster")
plots.lines({"loop": [1e3 * r.baseline_seconds for r in measured], "flat": [1e3 * r.candidate_seconds for r in measured],
             "limit: move the bytes once": [1e3 * t for t in limit]}, x=sizes, ax=right, alt="", logx=True, logy=True,
            title="Where the time goes", xlabel="numbers in each of 200 tensors", ylabel="time of one step (ms)")
plots.show(fig)
per_operation = timing.duration(measured[0].baseline_seconds / (200 * 15))
print(f"loop, 64 numbers a tensor: {timing.duration(measured[0].baseline_seconds)}, about {per_operation} an operation")

# %% [markdown]
# On the left the loop's time does not depend on the size at all: it is made of dispatch. There the flat step wins
# by the number of calls that it saves, less what joining and splitting cost. On the right dispatch no longer
# matters, and the advantage is not just gone, it turns into a loss, for two reasons. The loop does its fifteen
# operations on one small tensor while that lies in the cache; the flat step drags tens of megabytes through the
# memory fifteen times. And each of its fifteen results is a new tensor, for which the operating system has to
# hand over fresh pages: on the machine of the full run that was 70% of the flat step's time at 65,536. Working in
# place would save the second.
#
# What repairs both is one pass over everything, with all operations done while a number is in a register: a
# *fused* kernel, close to the dotted line. On a GPU, whose launches cost more and whose memory is faster, the
# left part reaches much further to the right.


# %% [markdown]
# ## The claim
#
# The same overview says: on a saddle, SGD stalls, momentum and Nesterov escape late, and AdaGrad, RMSprop and
# AdaDelta leave at once. You have all the functions to check it. First the steps to escape at three common
# learning rates (for all seven, so AdaDelta too), from the same start, axes aligned and turned by 45°.

# %% tags=["experiment"]
found = {}
for name, step in METHODS.items():
    for lr in (0.01, 0.1, 1.0):
        for degrees in (0, 45):
            found[name, lr, degrees] = steps_to_escape(step, degrees, lr=lr, most=10_000)
spoken = "; ".join(f"{name}, lr {lr:g}, {degrees}°: {steps}" for (name, lr, degrees), steps in found.items())
fig, panels = plots.figure("Steps to escape, from (-1, 0.001)", columns=2, size=(10, 4.6), alt=f"Steps to escape. {spoken}.")
for lr, ax in zip((0.01, 0.1), panels):
    groups = {f"{degrees}°": {name: found[name, lr, degrees] for name in METHODS} for degrees in (0, 45)}
    plots.bars(groups, ax=ax, log=True, title=f"learning rate {lr}", xlabel="steps", alt="", form="{:,.0f}")
plots.show(fig)
print("at learning rate 1:", ", ".join(f"{name} {found[name, 1.0, 0]}" for name in METHODS), "(aligned)")

# %% [markdown]
# "Which learning rate escapes best?" is a poor question: a huge one leaves in one step and never comes back. So
# ask for more than leaving. The saddle $x^2 - y^2 + y^4/4$ has a floor, with a minimum on either side of the
# ridge. How many steps until a method is within 0.01 of a minimum *and stays there* until step 800, with the best
# of eight learning rates? (About 5 seconds.)
#
# **Predict:** the order of the seven.

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
def bounded_race(name, lr, degrees, most=800):
    """The step from which the method stays within 0.01 of a minimum, and its distance to the nearest one."""
    surface = surfaces.rotated(surfaces.bounded_saddle, degrees)
    path = surfaces.race(surface, {name: (METHODS[name], {"lr": lr})}, surface.outer(START), most)[name]
    settled = surfaces.settled_step(path, surface.minima, 0.01)
    return math.inf if settled is None else settled, torch.cdist(path, surface.minima).amin(1)

rates = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.6, 1.0)
settled = {f"{degrees}°": {name: min(bounded_race(name, lr, degrees)[0] for lr in rates) for name in METHODS}
           for degrees in (0, 45)}
plots.bars(settled, log=True, title="Within 0.01 of the minimum, and staying", missing="not by step 800", width=8,
           form="{:,.0f}", xlabel="steps, best of eight learning rates", alt=f"Steps to settle: {settled}.")

# %% [markdown]
# Why is RMSprop, the fastest to leave, among the last to settle? Watch it at a learning rate at which it leaves
# at once.

# %% tags=["experiment"]
rates = {"SGD": 0.3, "AdaGrad": 1.0, "RMSprop": 0.03, "Adam": 0.2}
distances = {name: bounded_race(name, lr, 0, 1000)[1].clamp(min=1e-6) for name, lr in rates.items()}
plots.lines(distances, logy=True, marks=False, limits={"settled": 0.01}, xlabel="step",
            title="RMSprop arrives, rests, and breaks out again", ylabel="distance to the nearest minimum",
            alt="Distance to the nearest minimum. SGD, AdaGrad and Adam fall below 0.01 and stay there. RMSprop is there "
                "after 50 steps, breaks out to 0.1 at step 360, and again and again.")

# %% [markdown]
# Near the minimum the gradient is small, and RMSprop forgets that it was ever large: $s$ shrinks, the effective
# rate $\eta / \sqrt{s}$ grows, until the step is too long for the curvature and throws it out. What helps it to
# leave a flat place also drives it from the flat place where it should stay. (AdaGrad, which never forgets, is
# safe from this; Adam is not, in a longer run. That is one reason to lower the learning rate in the end.)

# %% tags=["experiment"]
def counted(*names, lr=0.01):
    """The escapes counted above, in words."""
    turn = lambda degrees: ", ".join(f"{name} {found.get((name, lr, degrees))}" for name in names)
    return f"{turn(0)} steps; turned by 45°: {turn(45)} (lr {lr})"

claims.show("11-sgd-stalls", measured=counted("SGD"))
claims.show("11-momentum-late", measured=counted("momentum", "Nesterov"))
claims.show("11-adaptive-at-once", measured=counted("AdaGrad", "RMSprop", "AdaDelta", "Adam"))

# %% [markdown]
# ### Question (15 points)
#
# Is the claim right? Write five to eight sentences. Say for which methods it holds in your measurements and for
# which it does not; what the learning rate, the turn of the axes and the start have to do with it; and whether
# what matters on the toy saddle also matters on the plateau of the real network. Use your numbers.

# %% [markdown] tags=["written"] points=15 name="claim"
# In part. SGD does not stall, it is slow: 314 steps at a learning rate of 0.01, 35 at 0.1, and a start a thousand
# times closer to the ridge costs a constant more (349 or 38 steps), as the formula says. Momentum (65) and
# Nesterov (61) leave five times sooner than SGD and are the first of all when the saddle is turned by 45°. Of the
# adaptive three only RMSprop leaves at once at a rate of 0.01 (6 steps, because its first steps are ten learning
# rates long); AdaGrad needs 322 and AdaDelta 476, and AdaDelta 24 at its own default of 1. At 0.1 AdaGrad needs
# 6, so the answer depends on a number that means different things in different methods.
#
# Turned by 45° RMSprop needs 100, Adam 280, AdaDelta 7426 and AdaGrad 9171 steps: the advantage over momentum is
# gone. But 45° is the worst case (at 30° RMSprop needs 25), and without the steep slope ($x_0 = 0$) nothing is
# lost. If the method also has to arrive and stay, AdaGrad is best (6 steps at its best rate), then Nesterov and
# SGD (about 15); Adam and momentum need more than 80, and RMSprop breaks out again and again.
#
# On the plateau of the real network Adam does leave early, but not because of the axes: in turned coordinates,
# and with steps of a fixed length in place of all division by coordinates, it takes as many steps. There the
# whole gradient is small and no steep slope hides the way out.


# %% [markdown]
# ## Optional · Rare features
#
# The same overview says that adaptive methods suffer when gradients are sparse, and also that AdaGrad favours
# rare features. Both cannot be the whole truth. A real case: guess the next byte of Python source from the byte
# before it. The model is a table of 256 × 256 scores; a row gets a gradient only when its byte occurs, which for
# most bytes is seldom. Learning rates are the best of a coarse search for each method. (About 5 seconds. No
# points, and nothing to write.)
#
# **Predict:** which methods are good at the rare bytes?

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
text = data.pycode(1_000_000)
before, after, held = text.train[:-1].long(), text.train[1:].long(), text.val.long()
share = torch.bincount(before, minlength=256) / len(before)
group = torch.bucketize(share[held[:-1]], torch.tensor([1e-3, 1e-2]))  # 0: seldom, 1: now and then, 2: often

def learn_table(step, lr, steps=300, batch=512):
    table, state, g = torch.zeros(256, 256), {}, torch.Generator().manual_seed(0)
    for _ in range(steps):
        i = torch.randint(len(before), (batch,), generator=g)
        error = (table[before[i]].softmax(1) - torch.nn.functional.one_hot(after[i], 256)) / batch
        grad = torch.zeros(256, 256).index_add_(0, before[i], error)  # rows of absent bytes stay zero
        table, state = step(table, grad, state, lr=lr)
    return -table.log_softmax(1)[held[:-1], held[1:]]  # surprise at each held-out byte (nats)

# %% tags=["experiment"]
best = {"SGD": 30, "momentum": 10, "AdaGrad": 0.5, "RMSprop": 0.03, "Adam": 0.05}
kinds = ["below 0.1%", "0.1% to 1%", "above 1%"]
means = {}
for name, lr in best.items():
    surprise = learn_table(METHODS[name], lr)
    means[name] = {kind: surprise[group == k].mean().item() for k, kind in enumerate(kinds)}
plots.bars(means, width=8, title="How well is the next byte guessed, by the share of the byte before?", form="{:.2f}",
           xlabel="mean surprise (nats; untrained: 5.55)", alt=f"Mean surprise in nats by share of the byte before: {means}.")
rarest = ", ".join(f"{name} {row['below 0.1%']:.2f}" for name, row in means.items()) + " nats after rare bytes"
claims.show("11-sparse-gradients", measured=rarest)
claims.show("11-adagrad-rare", measured=rarest)

# %% [markdown]
# Both sentences are about the same fact. SGD has one rate for all rows, and the common bytes limit it: a rate
# that suits the rare rows makes the common ones explode. AdaGrad's sum grows only when a row is used, so a rare
# row keeps long steps. RMSprop and Adam do as well here: adaptive methods do not suffer from sparse gradients,
# they live on them.
#
# What might suffer is a method that *forgets*: if a row is silent for longer than its memory, $v$ has faded, and
# the first new gradient makes a step of several learning rates. Here even the rare bytes are not that rare.


# %% [markdown]
# ## Going further
#
# - **Saddles.** Dauphin et al. 2014, *Identifying and attacking the saddle point problem*, why high-dimensional
#   losses have more saddles than minima; Jin et al. 2017, *How to escape saddle points efficiently*: a little
#   noise is enough; Du et al. 2017: without noise gradient descent can take exponentially long when saddles come
#   in a row.
# - **The methods.** Polyak 1964; Nesterov 1983 and Sutskever et al. 2013; Duchi et al. 2011 (AdaGrad); Hinton
#   2012 (RMSprop, a lecture); Zeiler 2012 (AdaDelta); Kingma & Ba 2015 (Adam); Loshchilov & Hutter 2019 (AdamW);
#   Keskar & Socher 2017 (from Adam to SGD).
# - **Axes.** Adam's dependence on the coordinates in large models: Maes et al. 2024, *Understanding Adam requires
#   better rotation dependent assumptions*. Methods that choose better axes: Shampoo (Gupta et al. 2018), SOAP
#   (Vyas et al. 2024).
# - **In production.** `torch.optim.Adam(foreach=True)` hands a list of tensors to one call; `fused=True` computes
#   the whole step in one pass over the memory, which is the limit drawn above. Both leave the tensors where they
#   are. Lab 33 writes the fused one for the GPU.
#
# **Open ended.** Adam divides by a number for each coordinate, the fixed-length step by one number for all. Try
# what lies between: one number for each *tensor*, or for each row. Where on the plateau, and where later in
# training, does the finer division begin to pay?
