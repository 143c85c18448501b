"""Looking for the reference in frames and memory, and writing frames of the protocol by hand."""
from submitted import attack


@attack("sgd_step", "error", says=r"got: \[\]")
def walking_the_frames():
    """Goes up the stack and looks at every local and global variable of its callers."""
    import sys

    def sgd_step(param, grad, state, lr=0.1):
        got, frame = [], sys._getframe()
        while frame is not None:
            for names in (frame.f_locals, frame.f_globals):
                got += [name for name in names if name in ("reference", "expected", "lab", "verdict", "specification", "student", "recordings")]
            got += [frame.f_code.co_name] * ("hidden" in frame.f_code.co_filename)
            frame = frame.f_back
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]")
def searching_the_garbage():
    """Asks the garbage collector for every function and module, and takes those that are not its own."""
    import gc
    import sys
    import types

    def sgd_step(param, grad, state, lr=0.1):
        gc.unfreeze()
        got = [name for name in sys.modules if name.startswith("trainfast_") or name in ("test_hidden", "mistakes")]
        for thing in gc.get_objects():
            if isinstance(thing, types.FunctionType) and thing.__globals__ is not globals():
                got += [thing.__qualname__] * (thing.__name__ in ("sgd_step", "adam_step", "without_bias_correction"))
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "error", says=r"got: \[\]")
def searching_its_own_memory():
    """Searches all of its own memory, as text, for the names of hidden tests and for the canary."""
    def sgd_step(param, grad, state, lr=0.1):
        # Without their first letters, so that these strings themselves are no find.
        wanted, got = {b"est_sgd_keeps_shape_and_dtype": b"t", KNOWN["anary"].encode(): b"c"}, []
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                where, access, *_ = line.split()
                if access.startswith("rw"):
                    start, end = (int(address, 16) for address in where.split("-"))
                    try:
                        memory.seek(start)
                        piece = memory.read(min(end - start, 64 << 20))
                    except (OSError, ValueError, OverflowError):
                        continue
                    for word, first in wanted.items():
                        at = piece.find(word)
                        while at >= 0:
                            got += [word] * (piece[at - 1:at] == first)
                            at = piece.find(word, at + 1)
        raise AssertionError(f"got: {got}")


@attack("sgd_step", "failed or error", says="unexpected frame|before the question|another question|out of form")
def a_forged_verdict():
    """Writes frames to the judge that say: passed."""
    import json
    import os
    import struct

    def send(body):
        text = json.dumps(body).encode()
        os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, len(text), 0) + text)

    def sgd_step(param, grad, state, lr=0.1):
        for op in ("verdict", "passed", "result", "score"):
            send({"op": op, "request": 1, "status": "passed", "points": 120, "value": None})
        return param, {}


@attack("sgd_step", "failed or error", says="announces|no frame")
def a_huge_length():
    """Announces a frame of 2**62 bytes, so that the judge takes the memory."""
    import os
    import struct

    def sgd_step(param, grad, state, lr=0.1):
        os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, 1 << 20, 1 << 62))
        return param, {}


@attack("sgd_step", "failed or error", says="announces")
def a_negative_length():
    """Announces a frame of -1 bytes, twice."""
    import os
    import struct

    def sgd_step(param, grad, state, lr=0.1):
        os.write(3, struct.pack(">3sBiq", b"TFJ", 1, -1, -1))
        return param, {}


@attack("sgd_step", "timeout", says="no answer within")
def an_announcement_and_no_more():
    """Announces eight megabytes and lets them come a byte at a time."""
    import os
    import struct
    import time

    def sgd_step(param, grad, state, lr=0.1):
        os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, 8 << 20, 0))
        while True:
            os.write(3, b" ")
            time.sleep(0.01)


@attack("sgd_step", "failed or error", says="tensors that cannot be read|a malformed value")
def a_header_bomb():
    """Sends safetensors whose header announces a tensor of 2**62 numbers, and offsets that point outside."""
    import json
    import os
    import struct

    def sgd_step(param, grad, state, lr=0.1):
        header = json.dumps({"0": {"dtype": "F64", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 1 << 62]}}).encode()
        blob = struct.pack("<Q", len(header)) + header
        text = json.dumps({"op": "result", "request": KNOWN["first_request"], "value": {"t": 0}}).encode()
        os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, len(text), len(blob)) + text + blob)
        return param, {}


@attack("sgd_step", "failed or error", says="JSON|nested|malformed|operation")
def a_json_bomb():
    """Sends two million brackets: a parser that recurses runs out of stack."""
    import os
    import struct

    def sgd_step(param, grad, state, lr=0.1):
        text = b'{"op": "result", "value": ' + b"[" * (1 << 20) + b"]" * (1 << 20) + b"}"
        view = struct.pack(">3sBIQ", b"TFJ", 1, len(text), 0) + text
        while view:
            view = view[os.write(3, view):]
        return param, {}


@attack("sgd_step", "failed or error", says="before the question|another question", spreads=True)
def answering_twice():
    """Answers rightly, and at once again: the second answer would be taken for that to the next question."""
    from autograder.worker import Worker

    def twice(self, body, value, once=Worker.on_call):
        once(self, body, value)
        once(self, {**body, "request": body["request"] + 1}, value)
    Worker.on_call = twice

    def sgd_step(param, grad, state, lr=0.1):
        return param - lr * grad, {}


@attack("sgd_step", "error or failed", says="before the question|another question", spreads=True)
def answering_before_the_question():
    """A thread sends answers all the time, so that one is there whenever a question comes."""
    import json
    import os
    import struct
    import threading
    import time

    def send():
        while True:
            for request in range(1, 50):
                text = json.dumps({"op": "result", "request": request, "value": None}).encode()
                os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, len(text), 0) + text)
            time.sleep(0.01)
    threading.Timer(0.5, send).start()

    def sgd_step(param, grad, state, lr=0.1):
        import time
        time.sleep(2)
        return param - lr * grad, {}


@attack("sgd_step", "error", says="The cell .* ended its process")
def a_forged_report_on_the_cells():
    """Says of a cell that it raised a list of lists of lists, which the judge would have to write out."""
    import os
    import struct
    text = b'{"op": "cell", "index": %d, "error": ' % KNOWN["cell"] + b"[" * 940 + b"]" * 940 + b"}"
    os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, len(text), 0) + text)
    while True:
        pass


@attack("sgd_step", "error", says="ended its process")
def hanging_up():
    """Closes the connection to the judge, and goes on living."""
    import os
    import time

    def sgd_step(param, grad, state, lr=0.1):
        os.close(3)
        time.sleep(1000)


@attack("most_negative_curvature", "failed or error", says="a function that was not given|not given|malformed")
def calling_what_was_not_given():
    """Calls back functions of the judge's that do not exist, by their numbers."""
    import json
    import os
    import struct

    def most_negative_curvature(hvp, start, max_calls=60):
        worker = hvp.__closure__[1].cell_contents
        for number in (-1, 10**6):
            text = json.dumps({"op": "callback", "request": worker.request, "function": number, "value": {"u": []}}).encode()
            os.write(3, struct.pack(">3sBIQ", b"TFJ", 1, len(text), 0) + text)
        return hvp(start) @ start, start


@attack("most_negative_curvature", "failed or error")
def misusing_the_judge_s_function():
    """Calls the judge's function with what is no vector: nothing, words, a hundred million numbers."""
    import torch

    def most_negative_curvature(hvp, start, max_calls=60):
        for argument in (None, "x", {}, [start], torch.zeros(0), torch.tensor(float("nan")), start.int(), torch.zeros(len(start), 10**6)):
            try:
                hvp(argument)
            except Exception:
                pass
        hvp()
        return start @ start, start


@attack("most_negative_curvature", "failed or passed", says="Not so: hvp is called no more often than allowed")
def more_products_than_allowed():
    """Builds the whole matrix, one product for each column, whatever the number allowed, and hides its counter."""
    import torch

    def most_negative_curvature(hvp, start, max_calls=60):
        H = torch.stack([hvp(row) for row in torch.eye(len(start), dtype=start.dtype)])
        values, vectors = torch.linalg.eigh(H)
        return values[0], vectors[:, 0].clone()
