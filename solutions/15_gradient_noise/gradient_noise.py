# %% [markdown]
# # 15 · Gradient noise

# %% tags=["setup"]
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course import batches, claims, plots, timing
from course.check import check, setup, speed

setup("15_gradient_noise")
State = dict[str, float]  # what an estimator remembers; empty before the first step

# %%
def per_example_gradients(x: Float[Tensor, "n d"], y: Int[Tensor, "n"], w1: Float[Tensor, "d h"], b1: Float[Tensor, "h"],
                          w2: Float[Tensor, "h c"], b2: Float[Tensor, "c"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of each example's own cross entropy, for the network relu(x @ w1 + b1) @ w2 + b2, without autograd
    and without a loop over the examples. Shapes: [n, d, h], [n, h], [n, h, c], [n, c]."""
    ### BEGIN SOLUTION
    a = x @ w1 + b1                                                     # [n, h]
    h = a.relu()
    delta2 = (h @ w2 + b2).softmax(1) - torch.eye(len(b2), dtype=x.dtype)[y]  # [n, c]
    delta1 = delta2 @ w2.T * (a > 0)                                    # [n, h]
    return x[:, :, None] * delta1[:, None], delta1, h[:, :, None] * delta2[:, None], delta2
    ### END SOLUTION


# %%
check(per_example_gradients)

# %%
def per_example_gradients_func(params: list[Tensor], x: Float[Tensor, "n d"], y: Int[Tensor, "n"]) -> list[Tensor]:
    """The same for a ReLU network of any depth, params = [w1, b1, w2, b2, ...]: one tensor [n, *p.shape] for each
    parameter p. Let torch.func do the work."""
    ### BEGIN SOLUTION
    def loss(params, x, y):  # one example: x [d], y []
        for i in range(0, len(params), 2):
            x = (x.relu() if i else x) @ params[i] + params[i + 1]
        return torch.nn.functional.cross_entropy(x, y)
    return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
    ### END SOLUTION


# %%
check(per_example_gradients_func)

# %%
def noise_scale_simple(grads: Float[Tensor, "n p"]) -> tuple[float, float, float]:
    """B_simple from the gradients of n examples (McCandlish et al. 2018, eq. 2.9), and its two parts without bias:
    (noise scale, estimate of |G|^2, estimate of tr(Sigma)). If the estimate of |G|^2 is not above zero, the noise
    hides the gradient: the noise scale is math.inf."""
    ### BEGIN SOLUTION
    n, mean = len(grads), grads.mean(0)
    trace = ((grads - mean).square().sum() / (n - 1)).item()
    squared = mean.square().sum().item() - trace / n
    return (trace / squared if squared > 0 else math.inf), squared, trace
    ### END SOLUTION


# %%
check(noise_scale_simple)

# %%
def noise_scale_two_batches(worker_grads: Float[Tensor, "w p"], batch: int, state: State,
                            decay: float = 0.9) -> tuple[float, State]:
    """B_simple from the mean gradients of w workers, each over its own `batch` examples (McCandlish et al. 2018,
    appendix A.1), and the new state. `state` holds the moving averages of both parts, weight `decay` on the old;
    both start at zero. math.inf where the average for |G|^2 is not above zero."""
    ### BEGIN SOLUTION
    big_batch = len(worker_grads) * batch
    small = worker_grads.square().sum(1).mean().item()   # mean squared length at `batch` examples
    big = worker_grads.mean(0).square().sum().item()     # squared length at all of them
    squared = (big_batch * big - batch * small) / (big_batch - batch)
    trace = (small - big) / (1 / batch - 1 / big_batch)
    squared = decay * state.get("squared", 0.0) + (1 - decay) * squared
    trace = decay * state.get("trace", 0.0) + (1 - decay) * trace
    return (trace / squared if squared > 0 else math.inf), {"squared": squared, "trace": trace}
    ### END SOLUTION


# %%
check(noise_scale_two_batches)

# %%
def noise_scale_full(grads: Float[Tensor, "n p"], hvp: Callable[[Tensor], Tensor]) -> float:
    """B_noise = tr(H Sigma) / (G^T H G) from the gradients of n examples (McCandlish et al. 2018, eq. 2.8), both parts
    without bias. `hvp(v)` gives H @ v for one vector v [p]; at most n + 1 calls. math.inf where G^T H G is not
    above zero."""
    ### BEGIN SOLUTION
    n, mean = len(grads), grads.mean(0)
    trace = sum((g - mean) @ hvp(g - mean) for g in grads).item() / (n - 1)
    curvature = (mean @ hvp(mean)).item() - trace / n
    return trace / curvature if curvature > 0 else math.inf
    ### END SOLUTION


# %%
check(noise_scale_full)

# %%
def optimal_learning_rate(batch: int, grad: Float[Tensor, "p"], hvp: Callable[[Tensor], Tensor],
                          noise_scale: float) -> float:
    """The learning rate that lowers the loss most, on average, in one step with a batch of this size (McCandlish et
    al. 2018, eq. 2.6): eps_max / (1 + noise_scale / batch). `grad` is the true gradient G, `hvp(v)` gives H @ v.
    math.inf where G^T H G is not above zero."""
    ### BEGIN SOLUTION
    curvature = (grad @ hvp(grad)).item()
    if curvature <= 0:
        return math.inf
    return grad.square().sum().item() / curvature / (1 + noise_scale / batch)
    ### END SOLUTION


# %%
check(optimal_learning_rate)

# %%
def steps_and_examples(batch: float | Tensor, s_min: float, e_min: float) -> tuple[float | Tensor, float | Tensor]:
    """Steps S and examples E = batch * S that a training run needs (McCandlish et al. 2018, eq. 2.11), where `s_min` is
    the least number of steps (huge batches) and `e_min` the least number of examples (tiny batches).
    `batch` is a number, or a tensor of batch sizes."""
    ### BEGIN SOLUTION
    steps = s_min + e_min / batch
    return steps, steps * batch
    ### END SOLUTION


# %%
check(steps_and_examples)

# %%
def fit_critical_batch(batches: Float[Tensor, "n"], steps: Float[Tensor, "n"]) -> tuple[float, float, float, float]:
    """S_min, B_crit and a 95% interval (low, high) for B_crit, from the steps that n runs needed at these batch sizes;
    steps may be inf (a run that never arrived): leave it out. Minimise the sum of |log steps - log fitted steps| over
    S_min and B_crit; search B_crit on a logarithmic grid, from a tenth of the smallest batch to ten times the
    largest, to 2% or finer. The interval comes from a bootstrap: draw n runs with replacement, fit again, 200 times."""
    ### BEGIN SOLUTION
    arrived = steps.isfinite()
    batches, logs = batches[arrived].double(), steps[arrived].double().log()
    ends = torch.stack([batches.min() / 10, batches.max() * 10]).log()
    grid = torch.linspace(*ends.tolist(), 500, dtype=torch.float64).exp()
    votes = logs - torch.log1p(grid[:, None] / batches)  # [grid, n]: what each run says log S_min is

    def best(rows):  # [repeats, n] -> the grid's best place for each repeat
        chosen = votes[:, rows]                          # [grid, repeats, n]
        return (chosen - chosen.median(-1, keepdim=True).values).abs().sum(-1).argmin(0)

    n = len(logs)
    place = best(torch.arange(n)[None])[0]
    again = grid[best(torch.randint(n, (200, n)))]
    low, high = again.quantile(0.025).item(), again.quantile(0.975).item()
    return votes[place].median().exp().item(), grid[place].item(), low, high
    ### END SOLUTION


# %%
check(fit_critical_batch)

# %%
def adaptive_batch_schedule(noise_scale: float, price: float, batch: int, lr_max: float, smallest: int = 1,
                            largest: int = 4096) -> tuple[int, float]:
    """The next batch size and its learning rate. A step costs as much as `price` examples, so the best batch is
    sqrt(price * noise_scale) (McCandlish et al. 2018, appendix D); but it at most doubles or halves the present `batch`
    in one step, stays within `smallest` and `largest`, and is a whole number. The learning rate follows it:
    lr_max / (1 + noise_scale / new batch). `noise_scale` is positive and finite."""
    ### BEGIN SOLUTION
    wanted = min(max(math.sqrt(price * noise_scale), batch / 2), 2 * batch)
    new = min(max(round(wanted), smallest), largest)
    return new, lr_max / (1 + noise_scale / new)
    ### END SOLUTION


# %%
check(adaptive_batch_schedule)

# %%
speed(per_example_gradients)
