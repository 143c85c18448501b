"""Student code as plain Python: IPython's own syntax becomes comments, and nothing else is touched."""
import pytest

from autograder.cellcode import definitions, functions, names, parse, to_python, unwritten


@pytest.mark.parametrize("source, python", [
    ("%matplotlib inline", "pass  # %matplotlib inline"),
    ("!pip install torch", "pass  # !pip install torch"),
    ("!!ls", "pass  # !!ls"),
    ("pip install torch", "pass  # pip install torch"),
    ("%timeit f()", "pass  # %timeit f()"),
    ("%time x = f()", "x = f()"),
    ("x = !ls", "x = []  # !ls"),
    ("x = %timeit -o f()", "x = None  # %timeit -o f()"),
    ("?torch.optim", "pass  # ?torch.optim"),
    ("torch.optim??", "pass  # torch.optim??"),
    ("if x:\n    !ls\ny = 1", "if x:\n    pass  # !ls\ny = 1"),
    ("!echo it's\ny = 1", "pass  # !echo it's\ny = 1"),
    ("!pip install a \\\n  b\ny = 1", "pass  # !pip install a \\\n#   b\ny = 1"),
    ("%%time\nx = 1", "pass  # %%time\nx = 1"),
    ("\n%%capture\n!ls\nx = 1", "\npass  # %%capture\npass  # !ls\nx = 1"),
    ("%%bash\nls\n# x", "# %%bash\n# ls\n# # x"),
    ("  x = 1\n  y = 2", "x = 1\ny = 2"),
    ("x = 1\r\n%pwd\ry = 2", "x = 1\npass  # %pwd\ny = 2"),
])
def test_ipythons_syntax_becomes_comments(source, python):
    assert to_python(source) == python


@pytest.mark.parametrize("source", [
    "a = '''\n%time\n!ls\n'''", 'a = """\\"""\n%time\n"""', "a = (b\n     % c)", "a = b \\\n  % c", "a = [\n'(',\n%c]".replace("%c", "1 % c"),
    "print('a?')  # why?\nb = 1", "x != 3", "a = {'%': 1, '!': 2}", "'it''s' % 3\nx = 1", "# it's (\nx = 1", "f'{a!r}'", "@decorated\ndef f(): ...",
    "a: int = 1 if b else '?'", "", "\n\n", "x = r'\\'\ny = 1", 'd = f"""{x}\n!no\n"""',
])
def test_python_stays_as_it_is(source):
    assert to_python(source) == source


@pytest.mark.parametrize("source", ['"\\"' * 200_000, "'''" + '\\"' * 200_000, "(" * 200_000, "\\\n" * 200_000, "x = 1\n" * 50_000, "a." * 200_000 + "?"])
def test_no_source_makes_it_slow(source):
    to_python(source)


@pytest.mark.parametrize("source", ["(" * 50_000, "not " * 50_000 + "1", "a" + ".b" * 100_000, "x" + "+x" * 100_000, "x = '\0'", "é = $", "elif"])
def test_no_source_makes_parsing_fail(source):
    assert parse(source) is None


def test_a_function_is_seen_through_a_syntax_error():
    assert functions("%%time\ndef f(x):\n    return x)\n\nasync def g (x): pass\n    def inner(): pass") == {"f", "g"}


def test_a_function_in_a_string_or_another_function_is_not_seen():
    assert functions("a = '''\ndef f(x): pass\n'''\ndef g():\n    def h(): pass") == {"g"}


def test_a_function_under_a_condition_is_seen():
    assert functions("if True:\n    def f(x): pass\nelse:\n    try:\n        def g(): pass\n    finally:\n        pass") == {"f", "g"}


def test_all_names_that_a_cell_binds():
    assert names("import a.b, c as d\nfrom e import f\ng, (h, i) = 1, (2, 3)\nj: int = 1\nclass K: pass\ndef l(): m = 1") == set("adfghijl") | {"K"}


STUB = 'def f(x):\n    """Doc."""\n    # YOUR CODE HERE\n    raise NotImplementedError()'


@pytest.mark.parametrize("source", [STUB, "", " \n", STUB.replace("Doc", "Mine"), "import a\n" + STUB, "def f(x): pass", "def f(x):\n    raise NotImplementedError", "def f(x):\n    ..."])
def test_what_counts_as_unwritten(source):
    assert unwritten(source, "f", STUB)


@pytest.mark.parametrize("source", ["def f(x): return x", "f = g", "def f(x:", "def f(x):\n    y = 1\n    raise NotImplementedError", "def g(x): pass"])
def test_what_counts_as_written(source):
    assert not unwritten(source, "f", STUB)


def test_what_a_student_added_to_a_released_cell():
    source = "import a, torch\nimport torch\n@deco\ndef helper():\n    return 1\nA = 3\nB = 4\nC = helper()\ndef f(x): pass\nprint(1)\nclass D: pass"
    assert definitions(source, "import torch\nA = 2", {"f"}) == "import a, torch\n@deco\ndef helper():\n    return 1\nB = 4\nclass D: pass"
