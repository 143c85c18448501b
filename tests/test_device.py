"""Facts about the device card. GPUs are imitated: the card must be right for machines that the tests never meet."""

import dataclasses
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course import device

CARD = device.describe()


@pytest.fixture
def gpu(monkeypatch):
    def plug_in(name, capability, count=1):
        major, minor = capability
        properties = SimpleNamespace(name=name, major=major, minor=minor, total_memory=15 * 2**30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
        return device.describe()
    return plug_in


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_card_survives_json():
    loaded = json.loads(json.dumps(CARD.to_dict()))
    assert set(loaded) == {f.name for f in dataclasses.fields(device.DeviceCard)}
    assert loaded["torch"] == torch.__version__ and loaded["cores"] >= 1 and loaded["python"][0] == "3"


def test_a_t4_has_tensor_cores_for_fp16_only(gpu):
    card = gpu("Tesla T4", (7, 5))
    assert card.fp16_tensor_cores and not card.bf16_tensor_cores and not card.bf16
    assert "Tesla T4, 15 GiB, compute capability 7.5, tensor cores: fp16 only" in str(card)
    assert device.default_device().type == "cuda"


def test_an_a100_has_tensor_cores_for_bf16_too(gpu):
    card = gpu("NVIDIA A100-SXM4-40GB", (8, 0), count=4)
    assert card.bf16_tensor_cores and card.bf16 and card.gpus == 4
    assert "4 x NVIDIA A100" in str(card) and "tensor cores: bf16 and fp16" in str(card)
    assert device.slug(card) == "nvidia-a100-sxm4-40gb"


def test_a_gtx_1080_has_no_tensor_cores(gpu):
    card = gpu("GTX 1080", (6, 1))
    assert not card.fp16_tensor_cores and "tensor cores: none" in str(card)


def test_without_a_gpu_the_card_says_that_kernel_speed_is_deferred(no_gpu, monkeypatch):
    monkeypatch.setattr(device, "_version", lambda package: "3.8.0")
    card = device.describe()
    assert card.gpu is None and card.gpus == 0 and device.default_device().type == "cpu"
    for text in (str(card), card._repr_html_()):
        assert "No GPU: Triton kernels run in the interpreter, their speed is deferred." in text


def test_without_triton_the_card_says_where_to_go(no_gpu, monkeypatch):
    monkeypatch.setattr(device, "_version", lambda package: None)
    assert "Colab" in str(device.describe()) and "triton none" in str(device.describe())


def test_a_machine_without_proc_is_described_too(no_gpu, monkeypatch):
    monkeypatch.setattr(device, "_cpuinfo", lambda: {})
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.delattr("os.sysconf", raising=False)
    card = device.describe()
    assert card.cpu and card.cores >= 1 and card.ram is None and card.cpu_features == () and not card.bf16
    assert "memory unknown" in str(card)


def test_the_features_of_the_cpu_come_from_proc(no_gpu, monkeypatch):
    monkeypatch.setattr(device, "_cpuinfo", lambda: {"model name": "Xeon (R) X", "flags": "fpu amx_bf16 avx512_vnni"})
    card = device.describe()
    assert card.cpu_features == ("avx512_vnni", "amx_bf16") and card.bf16 and card.cpu == "Xeon (R) X"
    assert device.slug(card) == f"xeon-x-{card.cores}-cores"


def test_isolation_is_claimed_only_by_a_self_test(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/bwrap")
    assert device.describe().isolation == "isolated with bubblewrap, after a self-test"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert device.describe().isolation.startswith("not isolated")
    assert device.describe(isolation="isolated (self-test passed)").isolation == "isolated (self-test passed)"


@given(name=st.text())
def test_a_slug_is_a_file_name_everywhere(name):
    slug = device.slug(dataclasses.replace(CARD, gpu=name or "x"))
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)


@given(name=st.text())
def test_the_html_card_escapes_and_sets_no_colour(name):
    text = dataclasses.replace(CARD, cpu=f"<b>{name}")._repr_html_()
    assert "<b>" not in text
    style = " ".join(re.findall(r'style="([^"]*)"', text))
    assert "currentColor" in style and not re.search(r"#[0-9a-f]{3}|rgb|(?<!-)color:", style)


def test_describing_does_not_import_triton():
    code = "import sys; from course import device; device.describe(); print('triton.language' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
