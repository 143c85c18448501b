"""Frames between judge and judged: whatever arrives, the judge gets a value or a clear error, in time and in bounds."""
import json
import socket
import struct
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.protocol import HEADER, MAGIC, MAX_JSON, VERSION, Closed, Connection, Deadline, ProtocolError, encode_tensors
from course.spec.values import NotAValue


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    yield Connection(a), Connection(b)
    a.close(), b.close()


def frame(text: bytes, blob: bytes = b"", *, version=VERSION, magic=MAGIC, text_length=None, blob_length=None) -> bytes:
    return HEADER.pack(magic, version, len(text) if text_length is None else text_length,
                       len(blob) if blob_length is None else blob_length) + text + blob


def test_a_frame_arrives_as_it_was_sent(pair):
    a, b = pair
    value = ([torch.arange(6.0).view(2, 3).T, torch.tensor(1, dtype=torch.int8)], {"t": 3, "s": "x"}, None)
    threading.Thread(target=lambda: a.send("call", {"request": 4}, value)).start()
    op, body, got = b.receive(deadline=time.monotonic() + 5)
    assert (op, body) == ("call", {"request": 4})
    assert torch.equal(got[0][0], value[0][0]) and got[0][1].dtype == torch.int8 and got[1:] == value[1:]


def test_a_large_frame_arrives_in_pieces(pair):
    a, b = pair
    big = torch.randn(3_000_000)
    threading.Thread(target=lambda: a.send("result", {}, big)).start()
    assert torch.equal(b.receive(deadline=time.monotonic() + 20)[2], big)


@pytest.mark.parametrize("data", [
    frame(b"{}", magic=b"XXX"), frame(b"{}", version=VERSION + 1), frame(b"not json"), frame(b"[]"), frame(b"{}"),
    frame(b'{"op": 3}'), frame(b'{"op": "x", "value": {"t": 0}}'), frame(b'{"op": "x", "value": {"t": 0}}', b"garbage!"),
    frame(b'{"op": "x", "value": {"f": 0}}'), frame(b"[" * 100_000), frame(json.dumps({"op": "x", "value": {"l": [[]]}}).encode()),
    frame(b"{}", text_length=MAX_JSON + 1), frame(b"{}", blob_length=1 << 60),
    frame(b'{"op": "x", "value": {"t": 0}}', struct.pack("<Q", 1 << 62) + b"{}")])
def test_a_malformed_frame_is_a_protocol_error(pair, data):
    a, b = pair
    a.sock.sendall(data)
    with pytest.raises(ProtocolError):
        b.receive(deadline=time.monotonic() + 2)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_raise(data):
    a, b = socket.socketpair()
    with a, b:
        a.sendall(data)
        a.close()
        with pytest.raises(ProtocolError):
            Connection(b).receive(deadline=time.monotonic() + 2)


def test_an_announcement_alone_costs_no_memory(pair):
    a, b = pair
    a.sock.sendall(frame(b'{"op": "x"}', blob_length=1 << 29))
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Deadline):
        b.receive(deadline=time.monotonic() + 0.2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_silence_ends_at_the_deadline(pair):
    start = time.monotonic()
    with pytest.raises(Deadline):
        pair[1].receive(deadline=start + 0.2)
    assert time.monotonic() - start < 2


def test_a_slow_drip_ends_at_the_deadline_too(pair):
    a, b = pair
    stop = threading.Event()

    def drip():
        while not stop.wait(0.02):
            a.sock.send(b"T")
    thread = threading.Thread(target=drip)
    a.sock.sendall(frame(b"x" * 10_000)[:HEADER.size])
    thread.start()
    start = time.monotonic()
    with pytest.raises(Deadline):
        b.receive(deadline=start + 0.3)
    stop.set()
    thread.join()
    assert time.monotonic() - start < 2


def test_a_reader_that_never_reads_does_not_hold_the_sender(pair):
    with pytest.raises(Deadline):
        pair[0].send("call", {}, torch.zeros(5_000_000), deadline=time.monotonic() + 0.3)


def test_a_closed_end_is_noticed(pair):
    pair[0].sock.close()
    with pytest.raises(Closed):
        pair[1].receive(deadline=time.monotonic() + 1)


def test_an_unasked_frame_is_noticed_before_the_next_question(pair):
    a, b = pair
    assert b.idle()
    a.sock.sendall(b"x")
    assert not b.idle()


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64, device="meta")])
def test_a_tensor_that_cannot_travel_is_named(tensor):
    with pytest.raises(NotAValue):
        encode_tensors([tensor])


def test_a_deadline_may_be_put_off_while_it_is_waited_for(pair):
    a, b = pair
    ends = iter([0.1, 0.3] + [0.6] * 99)
    start = time.monotonic()
    threading.Timer(0.4, lambda: a.send("late")).start()
    assert b.receive(deadline=lambda: start + next(ends))[0] == "late"
    ends = iter([0.6, 0.7] + [0.7] * 99)
    with pytest.raises(Deadline):
        b.receive(deadline=lambda: start + next(ends))


def test_what_has_come_in_time_is_read_by_a_judge_who_comes_late(pair):
    a, b = pair
    a.send("early", {}, torch.ones(1000))
    assert b.receive(deadline=time.monotonic() - 1)[0] == "early"
