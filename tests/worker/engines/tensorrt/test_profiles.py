"""Optimisation profiles as they are written, and how they meet a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.tensorrt.plan import Plan, Profile, ShapeRange, Tensor, choose_profile
from worker.engines.tensorrt.profiles import ProfileRefused, batch_size, fewest_rows, fit_profiles, parse_profiles

IMAGE = Tensor("image", "FP32", (-1, 3, -1, 8))
LOGITS = Tensor("logits", "FP32", (-1, 10))
FIXED = Tensor("fixed", "FP32", (3, 4))
sizes = st.integers(1, 9)


def test_three_shapes_are_the_smallest_the_best_and_the_largest() -> None:
    (profile,) = parse_profiles(["image:1x3x4x8,8x3x4x8,32x3x16x8"])
    assert profile == {"image": ShapeRange((1, 3, 4, 8), (8, 3, 4, 8), (32, 3, 16, 8))}


def test_one_shape_stands_for_all_three() -> None:
    (profile,) = parse_profiles(["image:4X3x4x8"])
    assert profile == {"image": ShapeRange((4, 3, 4, 8), (4, 3, 4, 8), (4, 3, 4, 8))}


def test_names_may_hold_colons() -> None:
    (profile,) = parse_profiles(["serving:input:0:1x2"])
    assert list(profile) == ["serving:input:0"]


def test_an_input_that_is_named_again_starts_a_further_profile_and_one_named_once_is_in_all() -> None:
    first, second = parse_profiles(["a:1x2", "b:1", "a:5x2"])
    assert (first["a"].maximum, second["a"].maximum) == ((1, 2), (5, 2))
    assert first["b"] == second["b"]


def test_no_profiles_are_none() -> None:
    assert parse_profiles([]) == ()


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["1x3"], "names no input"),
        ([":1x3"], "names no input"),
        (["x:1xtwo"], "'1xtwo' is no shape"),
        (["x:1x-2"], "is no shape"),
        (["x:"], "is no shape"),
        (["x:1x²"], "is no shape"),
        (["x:1x2,2x2"], "has 2 shapes"),
        (["x:1x2,2x2,3x2,4x2"], "has 4 shapes"),
        (["x:1x2,2x2,3"], "shapes of 2, 2, 1 dimensions"),
        (["x:4x2,2x2,8x2"], "has to rise"),
        (["x:1x2,9x2,8x2"], "has to rise"),
        (["x:1", "x:2", "x:3", "y:1", "y:2"], "'y' is in 2 of 3 profiles"),
        (["x:1"] * 65, "65 profiles are given; 64 are taken"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_sentence(texts: list[str], sentence: str) -> None:
    with pytest.raises(ProfileRefused, match=sentence):
        parse_profiles(texts)


@given(st.lists(st.tuples(sizes, sizes, sizes).map(sorted), min_size=1, max_size=4))
def test_a_profile_reads_back_as_it_was_written(dimensions: list[list[int]]) -> None:
    shapes = list(zip(*dimensions, strict=True))
    text = ",".join("x".join(str(size) for size in shape) for shape in shapes)
    (profile,) = parse_profiles([f"x:{text}"])
    wanted = profile["x"]
    assert (wanted.minimum, wanted.optimum, wanted.maximum) == tuple(tuple(shape) for shape in shapes)
    assert wanted.holds(wanted.minimum)
    assert wanted.holds(wanted.optimum)
    assert wanted.holds(wanted.maximum)


def test_inputs_of_a_fixed_shape_need_no_profile() -> None:
    (profile,) = fit_profiles([FIXED], [])
    assert profile["fixed"].minimum == profile["fixed"].maximum == (3, 4)


def test_where_only_batches_vary_their_largest_size_is_enough() -> None:
    (profile,) = fit_profiles([Tensor("x", "FP32", (-1, 5))], [], 16)
    assert profile["x"] == ShapeRange((1, 5), (16, 5), (16, 5))


@pytest.mark.parametrize(
    ("texts", "largest", "sentence"),
    [
        ([], 0, r"no profile; give --profile 'image:1x3x1x8,8x3x8x8,32x3x32x8'"),
        ([], 16, "variable shape"),
        (["other:1x3x4x8"], 0, r"no input 'other'; its inputs are 'image' \[-1, 3, -1, 8\]"),
        (["image:1x3x4"], 0, r"has 3 dimensions; the model's has \[-1, 3, -1, 8\]"),
        (["image:1x4x4x8"], 0, r"shape \[1, 4, 4, 8\]; the model takes \[-1, 3, -1, 8\]"),
    ],
)
def test_a_profile_that_does_not_fit_the_network_is_refused(texts: list[str], largest: int, sentence: str) -> None:
    with pytest.raises(ProfileRefused, match=sentence):
        fit_profiles([IMAGE], parse_profiles(texts), largest)


def test_rows_are_counted_where_every_input_and_output_begins_with_them() -> None:
    profiles = parse_profiles(["image:2x3x4x8,4x3x4x8,8x3x4x8", "image:4x3x4x8,4x3x4x8,16x3x4x8"])
    assert batch_size([IMAGE], [LOGITS], profiles) == 16
    assert fewest_rows([IMAGE], profiles) == 2
    assert batch_size([IMAGE], [FIXED], profiles) == 0
    assert batch_size([IMAGE, FIXED], [LOGITS], profiles) == 0
    assert batch_size([], [LOGITS], profiles) == 0


shape_ranges = st.tuples(st.tuples(sizes, sizes), st.tuples(sizes, sizes)).map(
    lambda pair: ShapeRange(
        tuple(min(a, b) for a, b in zip(*pair, strict=True)),
        pair[0],
        tuple(max(a, b) for a, b in zip(*pair, strict=True)),
    )
)


@given(st.lists(shape_ranges, min_size=1, max_size=5), st.tuples(sizes, sizes))
def test_a_profile_is_found_exactly_when_one_takes_the_shape_and_none_narrower_does(
    ranges: list[ShapeRange], shape: tuple[int, int]
) -> None:
    profiles = tuple(Profile(index, {"x": wanted}) for index, wanted in enumerate(ranges))
    tensor = Tensor("x", "FP32", (-1, -1))
    found = choose_profile(Plan((tensor,), (), profiles, 0, 0), {"x": shape})
    taking = [profile for profile in profiles if profile.holds({"x": shape})]
    assert (found in taking) if taking else found is None

    def shapes(profile: Profile) -> int:
        low, high = profile.ranges["x"].minimum, profile.ranges["x"].maximum
        return (high[0] - low[0] + 1) * (high[1] - low[1] + 1)

    assert found is None or shapes(found) == min(shapes(profile) for profile in taking)
