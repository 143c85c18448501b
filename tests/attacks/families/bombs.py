"""Using up what is shared: processes, memory, disk, output, file descriptors, the judge's patience."""
from submitted import attack


@attack("sgd_step", "timeout or error", says="no answer within|ended its process")
def fork_bomb():
    """Starts processes that start processes."""
    import os

    def sgd_step(param, grad, state, lr=0.1):
        while True:
            try:
                os.fork()
            except OSError:
                pass


@attack("sgd_step", "error", says=r"stopped at \d+ threads")
def thread_bomb():
    """Starts threads until the system refuses."""
    import threading

    def sgd_step(param, grad, state, lr=0.1):
        done, count = threading.Event(), 0
        try:
            while count < 5000:
                threading.Thread(target=done.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            done.set()
            raise AssertionError(f"stopped at {count} threads") from None
        done.set()


@attack("sgd_step", "error or timeout", says="MemoryError|alloc|ended its process|no answer within")
def memory_bomb():
    """Asks for a quarter of a gigabyte, again and again."""
    def sgd_step(param, grad, state, lr=0.1):
        kept = []
        while len(kept) < 1000:
            kept.append(bytearray(256 << 20))


@attack("sgd_step", "error", says="No space left|File too large")
def disk_bomb():
    """Fills its scratch space, in files of many megabytes."""
    import os

    def sgd_step(param, grad, state, lr=0.1):
        block = bytes(32 << 20)
        for number in range(200):
            for folder in (os.getcwd(), "/dev/shm"):
                with open(f"{folder}/left_by_a_submission_{number}", "wb") as file:
                    file.write(block)


@attack("sgd_step", "passed")
def output_bomb():
    """Answers rightly, and prints a gigabyte on the way, to stdout and stderr and past Python to both."""
    import os
    import sys
    text = "x" * (1 << 20)
    for _ in range(256):
        print(text)
        print(text, file=sys.stderr)
        os.write(1, text.encode())
        os.write(2, text.encode())

    def sgd_step(param, grad, state, lr=0.1):
        print(text)
        return param - lr * grad, {}


@attack("sgd_step", "passed")
def descriptors():
    """Answers rightly, and holds every file descriptor that it can get."""
    import os
    kept = []
    try:
        while True:
            kept.append(os.dup(0))
    except OSError:
        pass

    def sgd_step(param, grad, state, lr=0.1):
        return param - lr * grad, {}


@attack("sgd_step", "failed or error or timeout", says="MiB in one value|no answer within|MemoryError|alloc|ended its process")
def a_result_of_gigabytes():
    """Returns two gigabytes of zeros, which take no memory here and would there."""
    import torch

    def sgd_step(param, grad, state, lr=0.1):
        return torch.zeros(1).expand(1 << 29), {}


@attack("sgd_step", "failed or error", says="nested more than")
def a_state_without_a_bottom():
    """Returns a state nested a thousand deep, and one that holds itself."""
    def sgd_step(param, grad, state, lr=0.1):
        new = {}
        for _ in range(1000):
            new = {"state": new}
        new["state"]["state"] = new
        return param - lr * grad, new


@attack("sgd_step", "failed or passed", says="the new state")
def a_state_of_a_thousand_things():
    """Returns a state with a thousand entries and long names: a message must not repeat them."""
    def sgd_step(param, grad, state, lr=0.1):
        return param - lr * grad, {f"{number:>40}": [number] for number in range(1_000)}
