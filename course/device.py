"""What this machine is, and what that means for the labs."""

from __future__ import annotations

import functools
import html
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

# Instructions that make 8- and 16-bit matrix products fast on a CPU; the names are those of /proc/cpuinfo.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True, repr=False)
class DeviceCard:
    """One machine. Sizes in bytes; what does not exist or cannot be known is None."""
    python: str
    torch: str
    triton: str | None
    system: str
    cpu: str
    cores: int  # those this process may use
    cpu_features: tuple[str, ...]
    ram: int | None
    gpu: str | None  # the first one
    gpus: int
    gpu_memory: int | None
    compute_capability: tuple[int, int] | None
    bf16: bool  # the GPU (without one: the CPU) computes in bfloat16 itself, instead of through float32
    bf16_tensor_cores: bool  # from compute capability 8.0; a T4 (7.5) has them for float16 only
    fp16_tensor_cores: bool  # from 7.0
    isolation: str

    @property
    def triton_note(self) -> str:
        """One sentence: how Triton kernels run here, and whether their speed can be judged."""
        if self.triton is None:
            return "Triton is not installed (it exists for Linux only): use WSL or Colab for the kernel labs."
        if self.gpu is None:
            return "No GPU: Triton kernels run in the interpreter, their speed is deferred."
        return "Triton kernels are compiled for the GPU, and their speed is measured."

    def rows(self) -> list[tuple[str, str]]:
        """The card as (label, text) pairs."""
        gpu = "none"
        if self.gpu is not None:
            major, minor = self.compute_capability or (0, 0)
            types = "bf16 and fp16" if self.bf16_tensor_cores else "fp16 only" if self.fp16_tensor_cores else "none"
            gpu = (f"{f'{self.gpus} x ' if self.gpus > 1 else ''}{self.gpu}, {_size(self.gpu_memory)}, "
                   f"compute capability {major}.{minor}, tensor cores: {types}")
        features = f", {' '.join(self.cpu_features)}" if self.cpu_features else ""
        return [("Software", f"Python {self.python}, torch {self.torch}, triton {self.triton or 'none'}"),
                ("System", self.system),
                ("CPU", f"{self.cpu}, {self.cores} cores, {_size(self.ram)}{features}"),
                ("GPU", gpu), ("Triton", self.triton_note), ("Grading here", self.isolation)]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{label:<12} {text}" for label, text in self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # Only opacity and currentColor, so that the card suits a dark and a light theme alike.
        cell = "padding:1px 14px 1px 0; text-align:left; vertical-align:top; border:none; background:none"
        rows = "".join(f'<tr style="background:none"><th scope="row" style="{cell}; font-weight:normal; opacity:.65">'
                       f'{label}</th><td style="{cell}">{html.escape(text)}</td></tr>' for label, text in self.rows())
        return ('<table style="border:none; border-left:3px solid currentColor; margin:0; padding-left:10px; '
                f'border-collapse:separate; font-size:90%">{rows}</table>')


def describe(isolation: str | None = None) -> DeviceCard:
    """Look at this machine. `isolation` is the outcome of a self-test of the sandbox, where one was made."""
    capability = properties = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = (properties.major, properties.minor)
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    if isolation is None:
        isolation = ("isolated with bubblewrap, after a self-test" if shutil.which("bwrap")
                     else "not isolated: bubblewrap is not installed")
    return DeviceCard(
        python=platform.python_version(), torch=torch.__version__, triton=_version("triton"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(info), cores=_cores(), cpu_features=tuple(f for f in CPU_FEATURES if f in flags), ram=_ram(),
        gpu=properties.name if properties else None,
        gpus=torch.cuda.device_count() if properties else 0,
        gpu_memory=properties.total_memory if properties else None,
        compute_capability=capability,
        bf16=capability >= (8, 0) if capability else bool({"avx512_bf16", "amx_bf16", "bf16"} & flags),
        bf16_tensor_cores=capability is not None and capability >= (8, 0),
        fp16_tensor_cores=capability is not None and capability >= (7, 0),
        isolation=isolation)


def default_device() -> torch.device:
    """The first CUDA GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_triton() -> None:
    """Without a CUDA GPU Triton shall interpret kernels. It decides that at its first import: call this before.

    (torch's optimizers import Triton too.)
    """
    # Ask the driver's library, not the runtime: a process that has woken CUDA cannot fork others that use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def slug(card: DeviceCard | None = None) -> str:
    """A short name of the machine for file names: lower-case letters, digits and single hyphens."""
    card = card or describe()
    name = card.gpu or f"{card.cpu} {card.cores} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm|c)\)", " ", name.lower())).strip("-") or "unknown"


def _version(package: str) -> str | None:
    # Not by import: Triton decides at its first import whether it interprets, and that choice is not ours.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def _cpu_name(info: dict[str, str]) -> str:
    if name := info.get("model name"):
        return name
    if platform.system() == "Darwin":
        try:
            return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True,
                                  timeout=5).stdout.strip() or platform.machine()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine() or "unknown CPU"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _size(n: int | None) -> str:
    return "memory unknown" if n is None else f"{n / 2**30:.0f} GiB"
