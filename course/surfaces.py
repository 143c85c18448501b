"""Surfaces of two variables on which optimizers race, and the race itself.

Points are tensors [..., 2]; everything is float64, so that a start at 1e-9 from the ridge stays there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Stepper = Callable | tuple[Callable, Mapping[str, Any]]  # a step function, alone or with its hyperparameters


@dataclass(frozen=True)
class Surface:
    """A smooth function of two variables with its first and second derivatives, possibly turned about the origin."""
    name: str
    formula: str  # LaTeX, without dollars
    f: Callable[[Tensor, Tensor], Tensor]  # value from x and y, in the surface's own axes
    df: Callable[[Tensor, Tensor], tuple]  # f_x, f_y
    d2f: Callable[[Tensor, Tensor], tuple]  # f_xx, f_xy, f_yy
    limits: tuple[tuple[float, float], tuple[float, float]]  # of a picture: (left, right), (bottom, top)
    own_minima: tuple[tuple[float, float], ...] = ()  # in its own axes; empty where the surface has no lowest point
    degrees: float = 0.0  # turned by this angle, counter-clockwise

    @property
    def rotation(self) -> Tensor:
        """[2, 2]: own axes -> coordinates."""
        a = math.radians(self.degrees)
        return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)

    def own(self, xy: Tensor | Sequence) -> Tensor:
        """The same points [..., 2] in the surface's own axes."""
        return torch.as_tensor(xy, dtype=torch.float64) @ self.rotation

    def outer(self, xy: Tensor | Sequence) -> Tensor:
        """Points [..., 2] given in the surface's own axes, in coordinates: the inverse of `own`."""
        return torch.as_tensor(xy, dtype=torch.float64) @ self.rotation.T

    @property
    def minima(self) -> Tensor:
        """[k, 2] in coordinates."""
        return self.outer(torch.tensor(self.own_minima, dtype=torch.float64).reshape(-1, 2))

    def value(self, xy: Tensor) -> Tensor:
        """[..., 2] -> [...]"""
        return self.f(*self.own(xy).unbind(-1))

    def grad(self, xy: Tensor) -> Tensor:
        """[..., 2] -> [..., 2]"""
        return torch.stack(self.df(*self.own(xy).unbind(-1)), -1) @ self.rotation.T

    def hessian(self, xy: Tensor) -> Tensor:
        """[..., 2] -> [..., 2, 2]"""
        x, y = self.own(xy).unbind(-1)
        xx, xy_, yy = (second + 0 * x for second in self.d2f(x, y))  # + 0 * x: constants take the shape of the points
        own = torch.stack([torch.stack([xx, xy_], -1), torch.stack([xy_, yy], -1)], -2)
        return self.rotation @ own @ self.rotation.T


def rotated(surface: Surface, degrees: float) -> Surface:
    """The same surface, turned counter-clockwise about the origin."""
    total = surface.degrees + degrees
    name = surface.name.partition(", turned")[0]
    return replace(surface, degrees=total, name=f"{name}, turned by {total:g}°" if total else name)


# A pass between two mountains: down along y, up along x. The origin is stationary and no minimum.
saddle = Surface("saddle", r"x^2 - y^2", lambda x, y: x**2 - y**2, lambda x, y: (2 * x, -2 * y),
                 lambda x, y: (2.0, 0.0, -2.0), limits=((-1.2, 1.2), (-1.2, 1.2)))

# The same pass, with a floor on either side: minima of height -1 at y = ±√2.
bounded_saddle = Surface("bounded saddle", r"x^2 - y^2 + \frac{1}{4} y^4", lambda x, y: x**2 - y**2 + y**4 / 4,
                         lambda x, y: (2 * x, y**3 - 2 * y), lambda x, y: (2.0, 0.0, 3 * y**2 - 2),
                         limits=((-1.5, 1.5), (-2.0, 2.0)), own_minima=((0.0, math.sqrt(2)), (0.0, -math.sqrt(2))))

# Rosenbrock's banana (1960), scaled so that step sizes around 0.1 are stable; condition number 258 at the minimum.
valley = Surface("curved valley", r"\frac{1}{20} (1 - x)^2 + \frac{1}{2} (y - x^2)^2",
                 lambda x, y: (1 - x)**2 / 20 + (y - x**2)**2 / 2,
                 lambda x, y: ((x - 1) / 10 - 2 * x * (y - x**2), y - x**2),
                 lambda x, y: (0.1 + 6 * x**2 - 2 * y, -2 * x, 1.0),
                 limits=((-2.0, 2.0), (-1.0, 3.0)), own_minima=((1.0, 1.0),))


def race(surface: Surface, steppers: Mapping[str, Stepper], start: Tensor | Sequence[float], steps: int,
         until: Callable[[Tensor], bool] | None = None) -> dict[str, Tensor]:
    """Let each step function walk from `start` [2]: the paths by name, [steps + 1, 2] float64, the start included.

    Many starts at once, [n, 2], give paths [steps + 1, n, 2], for step functions that work element by element.

    A stepper is `step(param, grad, state, **hyper) -> (param, state)`, alone or as (step, hyper); the state starts as {}.
    `until` ends a path early, at the first point [2] for which it is true. Paths may run to infinity or NaN.
    """
    paths = {}
    for name, stepper in steppers.items():
        step, hyper = stepper if isinstance(stepper, tuple) else (stepper, {})
        point, state = torch.as_tensor(start, dtype=torch.float64).clone(), {}
        path = [point]
        while len(path) <= steps and not (until and until(point)):
            point, state = step(point.clone(), surface.grad(point), state, **hyper)  # a clone: an in-place step harms nobody
            point = point.detach()
            path.append(point.clone())
        paths[name] = torch.stack(path)
    return paths


def first_step(path: Tensor, inside: Callable[[Tensor], Tensor]) -> int | None:
    """The first step whose point fulfils `inside` ([steps + 1, 2] -> [steps + 1] bool); None if there is none."""
    hits = inside(path).nonzero()
    return int(hits[0]) if len(hits) else None


def settled_step(path: Tensor, targets: Tensor, radius: float = 0.01) -> int | None:
    """The step from which the path stays within `radius` of one of the `targets` [k, 2] to its end; None if it never does."""
    near = torch.cdist(path, targets) <= radius  # [steps + 1, k]
    outside = [int(n.logical_not().nonzero().max()) if not n.all() else -1 for n in near.T]  # last step away from each
    best = min(outside, default=len(path))
    return best + 1 if best + 1 < len(path) else None
