"""Values cross every boundary unchanged, and nothing but values does."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.protocol import CODES, decode_tensors, encode_tensors
from course.spec.student import Call, invoke
from course.spec.values import MAX_DEPTH, NotAValue, brief, clone, first_difference, pack, unpack, walk

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    t = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))), dtype=torch.float64) * 10
    t = t.to(draw(st.sampled_from(DTYPES)))
    return t.T if t.ndim == 2 and draw(st.booleans()) else t


values = st.recursive(
    st.one_of(tensors(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple),
                            st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=8)


@settings(deadline=None)
@given(values)
def test_a_value_comes_back_the_same_from_skeleton_and_bytes(value):
    skeleton, tensors = pack(value)
    back = unpack(skeleton, decode_tensors(encode_tensors(tensors)))
    assert first_difference(value, back, rtol=0, atol=0) is None
    assert type(back) is type(value)


@settings(deadline=None)
@given(values)
def test_a_clone_is_equal_and_shares_no_memory(value):
    copy = clone(value)
    assert first_difference(value, copy, rtol=0, atol=0) is None
    for (_, a), (_, b) in zip(walk(value), walk(copy)):
        if isinstance(a, torch.Tensor) and a.numel():
            assert a.data_ptr() != b.data_ptr()


class Disguised(torch.Tensor):
    pass


@pytest.mark.parametrize("thing", [object(), {1.5: 0}, [set()], Disguised(), lambda: 0, {"a": [print]}])
def test_other_objects_are_refused_with_their_place(thing):
    with pytest.raises(NotAValue):
        list(walk(thing))


def test_endless_nesting_is_refused_not_followed():
    loop = []
    loop.append(loop)
    with pytest.raises(NotAValue, match=str(MAX_DEPTH)):
        list(walk(loop))
    with pytest.raises(NotAValue):
        pack(loop)


@pytest.mark.parametrize("skeleton", [{"t": 1}, {"t": -1}, {"t": True}, {"x": []}, {"l": 3}, {"d": [["a"]]}, {"d": [[[], 1]]},
                                      {"l": [], "u": []}, [], {"f": 0}])
def test_a_skeleton_that_pack_cannot_have_made_is_refused(skeleton):
    with pytest.raises(NotAValue):
        unpack(skeleton, [torch.zeros(1)])


@pytest.mark.parametrize("expected, got, why", [
    (torch.zeros(2), torch.zeros(3), "shape"), (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "dtype"),
    (torch.zeros(2), [0, 0], "tensor"), ({"m": 1}, {"v": 1}, "keys"), ([1, 2], [1], "number of items"), ((1, 2), "ab", "type")])
def test_the_kind_of_difference_is_said(expected, got, why):
    assert why in first_difference(expected, got).why


def test_the_first_wrong_number_is_located():
    expected = [torch.zeros(2, 3), {"m": torch.zeros(2)}]
    got = [torch.zeros(2, 3), {"m": torch.tensor([0.0, 7.0])}]
    difference = first_difference(expected, got)
    assert (difference.where, difference.expected, difference.got) == ("[1]['m'][1]", "0", "7")


def test_nan_equals_nan_and_nothing_else():
    nan = torch.tensor([float("nan")])
    assert first_difference(nan, nan) is None
    assert first_difference(nan, torch.zeros(1)) is not None
    assert first_difference(torch.zeros(1), nan) is not None


@settings(deadline=None)
@given(values)
def test_a_brief_fits_on_a_line(value):
    assert "\n" not in brief(value).replace("\\n", "") and len(brief(value)) < 140


@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
def test_infinity_equals_itself_and_nothing_else(infinity):
    for wrap in (float, lambda x: torch.tensor([x])):
        assert first_difference(wrap(infinity), wrap(infinity)) is None
        assert first_difference(wrap(infinity), wrap(5.0)) is not None
        assert first_difference(wrap(5.0), wrap(infinity)) is not None
        assert first_difference(wrap(infinity), wrap(-infinity)) is not None


@pytest.mark.parametrize("dtype", CODES)
def test_every_dtype_that_travels_arrives_as_it_was(dtype):
    sent = torch.arange(6).view(2, 3).to(torch.float32).to(dtype).t().requires_grad_(dtype.is_floating_point)
    back, = decode_tensors(encode_tensors([sent]))
    assert back.dtype == dtype and torch.equal(back.view(torch.uint8), sent.detach().contiguous().view(torch.uint8))


@settings(deadline=None)
@given(values, values)
def test_arguments_count_as_left_alone_only_if_they_are(before, after):
    """What a call left alone is not sent back; what counts as that must have no difference from what was sent."""
    box = [before]
    outcome = invoke(lambda box: box.__setitem__(0, after), Call("f", (box,), {}))
    if first_difference(before, after, rtol=0, atol=0) is not None:
        assert outcome.args[0] is not box and first_difference(outcome.args[0], [after], rtol=0, atol=0) is None


def test_a_shape_is_a_tuple_of_numbers():
    shape = torch.ones(2, 3).shape
    assert list(walk({"shape": shape})) == [("['shape'][0]", 2), ("['shape'][1]", 3)]
    assert clone(shape) == (2, 3) and type(clone(shape)) is tuple
