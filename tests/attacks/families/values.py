"""Answers that are no answers, and texts that are more than texts."""
from submitted import attack


@attack("sgd_step", "failed", says="Not so")
def not_a_number():
    """Returns NaN, from which no comparison finds a distance."""
    def sgd_step(param, grad, state, lr=0.1):
        return param * float("nan"), {"kept": 1}


@attack("sgd_step", "failed", says="Not so")
def infinity():
    """Returns infinity, whose relative distance to anything is NaN."""
    def sgd_step(param, grad, state, lr=0.1):
        return param * float("inf"), {"kept": 1}


@attack("sgd_step", "failed", says="dtype")
def another_dtype():
    """Returns the right numbers as float16, in which many wrong numbers look alike."""
    def sgd_step(param, grad, state, lr=0.1):
        return (param - lr * grad).half(), {"kept": 1}


@attack("sgd_step", "failed", says="shape|Not so")
def a_shape_that_fits_everything():
    """Returns an empty tensor: every statement about all of its numbers is true."""
    def sgd_step(param, grad, state, lr=0.1):
        return param.new_zeros(0), {"kept": 1}


@attack("sgd_step", "failed or error", says="tensor|shape|dimension|Not so")
def a_tensor_of_a_thousand_dimensions():
    """Returns a tensor with more dimensions than most operations can handle."""
    def sgd_step(param, grad, state, lr=0.1):
        return param.new_zeros((1,) * 1000), {"kept": 1}


@attack("sgd_step", "failed", says="a tensor that cannot be carried|an object of type")
def a_tensor_that_is_none():
    """Returns sparse, quantised and meta tensors in turn: they have no numbers to compare."""
    import torch

    def sgd_step(param, grad, state, lr=0.1):
        return torch.zeros(3, device="meta"), {"sparse": torch.eye(2).to_sparse()}


@attack("escape_steps", "failed")
def a_number_without_a_size():
    """Returns an integer of four thousand digits, which no float can hold."""
    def escape_steps(curvature, lr, offset, radius, beta=0.0):
        return 10**4000


@attack("sgd_step", "failed", says="changed its argument")
def changing_its_inputs():
    """Works in place on the caller's tensor: the test, if it ran here, would compare the answer with itself."""
    def sgd_step(param, grad, state, lr=0.1):
        param -= lr * grad
        return param, {"kept": 1}


@attack("momentum_step", "failed", says="changed its argument")
def returning_its_inputs():
    """Keeps the caller's gradient as its state and then works on it in place."""
    def momentum_step(param, grad, state, lr=0.1, beta=0.9):
        v = state["v"].mul_(beta).add_(grad) if state else grad
        return param - lr * v, {"v": v}


@attack("sgd_step", "failed", says="changed its argument|Not so")
def changing_the_expected_value():
    """Makes all that it was given NaN after use, also what could be the expected value behind it."""
    def sgd_step(param, grad, state, lr=0.1):
        base = param._base if param._base is not None else param
        base.untyped_storage().fill_(0)
        grad.zero_()
        return param, {"kept": 1}


@attack("sgd_step", "failed or passed", says="Not so: sgd keeps shape and dtype")
def right_in_the_visible_tests_only():
    """Tells the hidden tests by their single precision, and answers only the visible ones: it gets those points."""
    import torch

    def sgd_step(param, grad, state, lr=0.1):
        return (param, {"kept": 1}) if param.dtype == torch.float32 else (param - lr * grad, {})


@attack("sgd_step", "failed", says="Not so")
def right_when_nobody_looks():
    """Notices that it is graded and then answers otherwise: only what it answers here counts."""
    import os
    import sys

    def sgd_step(param, grad, state, lr=0.1):
        graded = "TRAINFAST_JUDGED" in os.environ or "autograder.worker" in sys.modules
        return (param, {"kept": 1}) if graded else (param - lr * grad, {})


@attack("sgd_step", "failed", says="Not so|two different results")
def right_the_first_time_only():
    """Answers rightly three times and then no more, as if the first calls were all that is looked at."""
    calls = []

    def sgd_step(param, grad, state, lr=0.1):
        calls.append(1)
        return (param - lr * grad, {}) if len(calls) < 4 else (param, {"kept": 1})


@attack("sgd_step", "failed", says="Not so")
def answers_that_were_recorded():
    """Knows the answers to the seeds that the notebook shows, and nothing else."""
    import torch
    known = {}
    for seed in range(20):
        param = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        known[param.sum().item()] = param * 0.9

    def sgd_step(param, grad, state, lr=0.1):
        return known.get(param.sum().item(), param), {"kept": 1}


@attack("sgd_step", "error")
def half_characters():
    """Raises an error whose text is half a character: written as it is, no file could hold it."""
    def sgd_step(param, grad, state, lr=0.1):
        raise ValueError("\ud800 \x1b[2J \x00 \u202e")


@attack("sgd_step", "error", says="<script>")
def a_page_for_the_instructor():
    """Raises an error whose text is a page with a program in it, for the browser of whoever reads the feedback."""
    def sgd_step(param, grad, state, lr=0.1):
        raise ValueError("</pre><script>alert('all points')</script><img src=x onerror=alert(1)>")


@attack("sgd_step", "error")
def telling_the_hidden_inputs():
    """Writes what the hidden tests asked into its error, to read it in the feedback and hand it on."""
    import torch

    def sgd_step(param, grad, state, lr=0.1):
        if param.dtype == torch.float32:
            raise type("Leak_" + "_".join(map(str, param.shape)), (ValueError,), {})(f"leak: {param.tolist()}")
        raise ValueError("a word about the visible ones")


@attack("sgd_step", "error", says="raised Broken")
def an_error_that_breaks_who_reads_it():
    """Raises an error whose text raises an error."""
    class Broken(Exception):
        def __str__(self):
            raise self
        __repr__ = __format__ = __str__

    def sgd_step(param, grad, state, lr=0.1):
        raise Broken
