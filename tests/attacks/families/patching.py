"""Changing what judges, in the hope that it runs here. The answers are wrong throughout; nobody may believe them."""
from submitted import attack


@attack("sgd_step", "failed", says="Not so")
def assertions():
    """Makes the course's comparisons, and the exception that a failed assertion raises, do nothing."""
    import builtins

    import course.spec.asserts
    import course.spec.values

    class Silence(Exception):
        def __new__(cls, *args):
            raise SystemExit
    for module in (course.spec, course.spec.asserts):
        module.assert_close = module.assert_that = lambda *args, **kwargs: None
    course.spec.values.first_difference = lambda *args, **kwargs: None
    builtins.AssertionError = Silence

    def sgd_step(param, grad, state, lr=0.1):
        return param, {"kept": 1}


@attack("sgd_step", "failed", says="Not so")
def torch_itself():
    """Makes all of torch's comparisons say yes, and its optimisers stand still as the answer does."""
    import torch
    yes = lambda *args, **kwargs: True
    for name in ("allclose", "equal", "isclose", "eq"):
        setattr(torch, name, yes)
    for name in ("allclose", "equal", "__eq__", "all", "any", "__bool__"):
        setattr(torch.Tensor, name, yes)
    torch.testing.assert_close = yes
    torch.optim.SGD.step = yes

    def sgd_step(param, grad, state, lr=0.1):
        return param, {"kept": 1}


@attack("sgd_step", "failed", says="Not so")
def numpy_itself():
    """Makes numpy's comparisons say yes, and its random numbers be known beforehand."""
    import numpy
    for name in ("allclose", "array_equal", "isclose"):
        setattr(numpy, name, lambda *args, **kwargs: True)
    numpy.testing.assert_allclose = lambda *args, **kwargs: None
    numpy.random.default_rng = lambda *args: None

    def sgd_step(param, grad, state, lr=0.1):
        return param, {"kept": 1}


@attack("sgd_step", "timeout", says="no answer within")
def time_itself():
    """Stops every clock that Python has, so that no time-out comes, and then takes all the time in the world."""
    import time
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "time_ns", "monotonic_ns", "perf_counter_ns"):
        setattr(time, name, lambda: 0)
    sleep, time.sleep = time.sleep, lambda seconds: None

    def sgd_step(param, grad, state, lr=0.1):
        sleep(1000)


@attack("sgd_step", "error or failed", says="out of form", spreads=True)
def the_runner():
    """Replaces the worker's answers by a verdict of its own making."""
    from autograder.worker import Worker

    def on_call(self, body, value):
        self.connection.send("result", {"request": body["request"], "status": "passed", "points": 1000, "score": 120},
                             {"status": "passed", "points": 1000})
    Worker.on_call = on_call

    def sgd_step(param, grad, state, lr=0.1):
        return param, {"kept": 1}


@attack("sgd_step", "failed", says="Not so")
def the_specification():
    """Empties the list of tests, makes pytest pass everything and hypothesis try nothing."""
    import course.spec.declare
    import course.spec.run
    import hypothesis
    import pytest
    pytest.main = lambda *args, **kwargs: 0
    hypothesis.given = lambda *args, **kwargs: lambda test: lambda *a, **k: None
    course.spec.run.run = lambda *args, **kwargs: []
    course.spec.declare.declared = lambda *args, **kwargs: []

    def sgd_step(param, grad, state, lr=0.1):
        return param, {"kept": 1}


@attack("sgd_step", "failed or error")
def builtins_themselves():
    """Makes len, abs, all, isinstance and float lie."""
    import builtins

    def sgd_step(param, grad, state, lr=0.1):
        builtins.all = builtins.any = lambda *args: True
        builtins.abs = builtins.sum = lambda *args: 0
        builtins.float = lambda *args: 0.0
        return param, {"kept": 1}


@attack("sgd_step", "failed", says="an object of type Yes")
def an_object_that_equals_everything():
    """Returns an object that is equal to, less than and close to whatever it is compared with."""
    class Yes:
        def __eq__(self, other):
            return True
        __lt__ = __gt__ = __le__ = __ge__ = __ne__ = __contains__ = __eq__
        __sub__ = __rsub__ = __add__ = __mul__ = __abs__ = lambda self, *other: self

        def __bool__(self):
            return True

        def __getattr__(self, name):
            return self

        def __call__(self, *args, **kwargs):
            return self

        def __repr__(self):
            return "the expected value"

    def sgd_step(param, grad, state, lr=0.1):
        return Yes(), {}


@attack("sgd_step", "failed", says="an object of type Number")
def a_number_that_equals_everything():
    """Returns a float whose comparisons are its own: a subclass passes isinstance."""
    class Number(float):
        def __eq__(self, other):
            return True
        __rsub__ = __sub__ = lambda self, other: 0.0
        __hash__ = float.__hash__

    def sgd_step(param, grad, state, lr=0.1):
        return Number(1), {}


@attack("sgd_step", "failed", says="an object of type Agreeable")
def a_tensor_with_torch_function():
    """Returns a tensor whose __torch_function__ answers every comparison itself."""
    import torch

    class Agreeable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return torch.tensor(True)

    def sgd_step(param, grad, state, lr=0.1):
        return torch.Tensor._make_subclass(Agreeable, param), {}


@attack("sgd_step", "failed", says="Not so")
def hooks():
    """Puts itself into the hooks for display, exceptions, audits, imports and traces."""
    import sys
    import threading
    sys.displayhook = sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *args: None
    sys.settrace(lambda *args: None)
    sys.setprofile(lambda *args: None)
    sys.addaudithook(lambda *args: None)

    class Finder:
        def find_spec(self, name, path=None, target=None):
            raise ImportError("nothing here")
    sys.meta_path.insert(0, Finder())

    def sgd_step(param, grad, state, lr=0.1):
        return param, {"kept": 1}
