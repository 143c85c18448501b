"""Facts about the data sets: what is in them, that they repeat exactly, and what happens without a network."""

import http.server
import socket
import struct
import sysconfig
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course import data

FEW = settings(max_examples=20, deadline=None, database=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small work is as fast on one thread, and does not crawl when the other core is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(images):
    """Every image with its label, of both parts, as bytes."""
    x, y = torch.cat([images.train_x, images.test_x]), torch.cat([images.train_y, images.test_y])
    return sorted((int(label), image.numpy().tobytes()) for image, label in zip(x, y))


@pytest.mark.parametrize("load, n, size", [(data.digits, 1797, 8), (data.mnist5k, 5000, 28)])
def test_scanned_digits_have_ten_classes_and_values_from_zero_to_one(load, n, size):
    d = load()
    assert len(d.train_x) + len(d.test_x) == n and d.train_x.shape[1:] == (1, size, size)
    assert d.train_x.dtype == torch.float32 and d.train_y.dtype == torch.int64
    assert d.train_x.min() == 0 and d.train_x.max() == 1
    assert d.train_y.unique().tolist() == d.test_y.unique().tolist() == list(range(10)) and d.classes == 10


def test_mnist5k_has_five_hundred_of_each_digit():
    d = data.mnist5k()
    assert (torch.cat([d.train_y, d.test_y]).bincount() == 500).all()


def test_the_label_belongs_to_the_image():
    # The mean image of a class in one part is closer to the same class in the other part than to any other class.
    for d in (data.digits(), data.mnist5k(), data.glyphs(6000, classes=26, distortion=0.2)):
        means = [torch.stack([x[y == c].mean(0).flatten() for c in range(d.classes)])
                 for x, y in ((d.train_x, d.train_y), (d.test_x, d.test_y))]
        assert torch.cdist(*means).argmin(1).tolist() == list(range(d.classes)), d.name


def test_splitting_loses_and_doubles_no_image():
    from sklearn.datasets import load_digits
    found = load_digits()
    source = sorted((int(y), torch.tensor(x / 16, dtype=torch.float32).numpy().tobytes())
                    for x, y in zip(found.images, found.target))
    assert rows(data.digits()) == source


@pytest.mark.parametrize("load", [data.digits, data.mnist5k, lambda: data.glyphs(60), lambda: data.pycode(5000)])
def test_loading_twice_gives_equal_tensors_that_do_not_share_memory(load):
    first, second = load(), load()
    names = ("train", "val") if isinstance(first, data.Text) else ("train_x", "train_y", "test_x", "test_y")
    for name in names:
        a, b = getattr(first, name), getattr(second, name)
        assert torch.equal(a, b)
        a.zero_()
        assert b.any()
    assert all(getattr(load(), name).any() for name in names)


@FEW
@given(n=st.integers(6, 300), classes=st.integers(10, 62), distortion=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_glyphs_come_in_equal_shares_and_repeat_exactly(n, classes, distortion, seed):
    d = data.glyphs(n, classes, distortion, seed)
    assert len(d.test_x) == n // 6 and len(d.train_x) == n - n // 6 and d.train_x.shape[1:] == (1, 28, 28)
    x, y = torch.cat([d.train_x, d.test_x]), torch.cat([d.train_y, d.test_y])
    assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1 and x.flatten(1).amax(1).min() > 0.2
    counts = y.bincount(minlength=classes)
    assert len(counts) == classes and counts.max() - counts.min() <= 1
    assert rows(d) == rows(data.glyphs(n, classes, distortion, seed))
    assert rows(d) != rows(data.glyphs(n, classes, distortion, seed + 1))


def test_every_font_has_a_picture_of_its_own_for_each_character():
    # A character that a font lacks would be drawn as the same empty box every time.
    for font in data._bitmaps():
        assert len({glyph.numpy().tobytes() for glyph in font}) == len(data.GLYPHS) == 62
    edges = data._bitmaps()
    assert not any(e.any() for e in (edges[..., 0, :], edges[..., -1, :], edges[..., 0], edges[..., -1]))


def test_without_distortion_only_the_font_varies():
    d = data.glyphs(2000, distortion=0)
    assert len(set(rows(d))) <= 10 * len(data._bitmaps())


def test_more_distortion_is_harder():
    def nearest_mean(distortion):
        d = data.glyphs(4000, classes=26, distortion=distortion)
        means = torch.stack([d.train_x[d.train_y == c].mean(0).flatten() for c in range(26)])
        return (torch.cdist(d.test_x.flatten(1), means).argmin(1) == d.test_y).float().mean()
    easy, middle, hard = map(nearest_mean, (0.0, 0.5, 1.0))
    assert easy > middle + 0.1 > hard + 0.2


@pytest.mark.parametrize("wrong", [{"classes": 9}, {"classes": 63}, {"distortion": 1.1}, {"distortion": -0.1}, {"n": 5}])
def test_glyphs_refuse_what_they_cannot_draw(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        data.glyphs(**wrong)


@FEW
@given(size=st.integers(1, 200_000), more=st.integers(0, 200_000))
def test_a_shorter_text_is_the_beginning_of_a_longer_one(size, more):
    short, long = data.pycode(size), data.pycode(size + more)
    assert len(short.train) + len(short.val) <= size
    assert torch.equal(short.train, long.train[:len(short.train)]) and torch.equal(short.val, long.val[:len(short.val)])


def test_a_short_text_is_a_sample_of_the_whole_library():
    root = sysconfig.get_paths()["stdlib"]
    initials = {path.relative_to(root).parts[0][0].lower() for path in data._sources()[:100]}
    assert len(initials) > 12


def test_pycode_is_megabytes_of_python_with_a_tenth_held_out():
    text = data.pycode()
    assert text.train.dtype == torch.uint8 and len(text.train) > 5e6
    assert 0.05 < len(text.val) / len(text.train) < 0.15
    train, val = (bytes(part.numpy()) for part in (text.train, text.val))
    assert train.count(b"def ") > 10_000 and b"import " in val
    places = torch.randint(len(val) - 400, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    assert sum(val[i:i + 400] in train for i in places) <= 5  # a few files repeat a licence


@FEW
@given(batch=st.integers(1, 8), length=st.integers(1, 99), seed=st.integers(0, 1000))
def test_targets_are_the_inputs_one_byte_ahead(batch, length, seed):
    text = data.Text(torch.arange(100, dtype=torch.uint8), torch.arange(100, 201, dtype=torch.uint8), "counting")
    for split in ("train", "val"):
        x, y = text.batch(batch, length, torch.Generator().manual_seed(seed), split)
        assert x.shape == y.shape == (batch, length) and x.dtype == y.dtype == torch.int64
        assert torch.equal(y, x + 1) and (x >= 100).all() == (split == "val")


def test_every_window_of_a_text_can_be_drawn():
    text = data.Text(torch.arange(5, dtype=torch.uint8), torch.arange(5, dtype=torch.uint8), "counting")
    x, _ = text.batch(200, 2, torch.Generator().manual_seed(0))
    assert {tuple(w) for w in x.tolist()} == {(0, 1), (1, 2), (2, 3)}
    with pytest.raises(ValueError, match="do not fit"):
        text.batch(1, 5, torch.Generator())


def test_the_representation_shows_shapes():
    assert repr(data.digits()) == "digits: 10 classes, train_x [1437, 1, 8, 8], test_x [360, 1, 8, 8], float32 in 0..1"
    assert "900" in repr(data.pycode(1000))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINFAST_DATA", str(tmp_path))
    monkeypatch.setattr(data, "TIMEOUT", 0.3)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def all_requests_go_to(monkeypatch, port):
    monkeypatch.setattr("urllib.request._opener", None)  # it would remember the proxies of an earlier test
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("load", [data.fashion_mnist, data.cifar10])
def test_without_network_the_error_says_what_where_and_what_instead(load, empty_cache, monkeypatch, capfd):
    all_requests_go_to(monkeypatch, 9)  # nobody listens there
    with pytest.raises(data.DataUnavailable) as error:
        load()
    message = str(error.value)
    assert load.__name__ in message and str(empty_cache) in message and "http" in message
    assert "Offline, use data.glyphs(" in message and "TRAINFAST_DATA" in message
    assert capfd.readouterr().err == ""


def test_a_network_that_never_answers_is_given_up(empty_cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        all_requests_go_to(monkeypatch, silent.getsockname()[1])
        with pytest.raises(data.DataUnavailable, match="time|answer"):
            data.fashion_mnist()


def test_a_name_look_up_that_never_returns_is_given_up(empty_cache, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *request, **options: time.sleep(2))
    with pytest.raises(data.DataUnavailable, match="no answer in 0.3 s"):
        data.fashion_mnist()


def test_a_damaged_download_is_reported_and_writes_nothing_to_stderr(empty_cache, monkeypatch, capfd):
    class Junk(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"junk" if self.command == "GET" else b"")
        do_HEAD = do_GET
        log_message = lambda *words: None

    monkeypatch.setattr(data, "TIMEOUT", 5.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Junk) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        all_requests_go_to(monkeypatch, server.server_address[1])
        with pytest.raises(data.DataUnavailable, match="Offline, use"):
            data.fashion_mnist()
        server.shutdown()
    captured = capfd.readouterr()
    assert captured.err == "" and "Downloading fashion_mnist" in captured.out
    assert socket.getdefaulttimeout() is None


def test_what_is_in_the_cache_needs_no_network(empty_cache, monkeypatch):
    all_requests_go_to(monkeypatch, 9)
    folder = empty_cache / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 5), ("t10k", 3)):
        pixels = bytes((i % 256 for i in range(n * 784)))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, n, 28, 28) + pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + bytes(range(n)))
    d = data.fashion_mnist(n=4)
    assert d.train_x.shape == (4, 1, 28, 28) and d.test_x.shape == (3, 1, 28, 28)
    assert d.train_y.tolist() == [0, 1, 2, 3] and d.test_y.tolist() == [0, 1, 2]
    assert torch.equal(d.train_x[0, 0, 0], torch.arange(28) / 255)
