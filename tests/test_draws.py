"""Random signs."""

import torch

from advtrain.draws import signs


def test_signs_are_fair_and_repeat_under_one_generator():
    like = torch.zeros(100, 400, dtype=torch.float64)
    found = signs(like, torch.Generator().manual_seed(0))
    assert found.dtype == like.dtype and torch.equal(found.abs(), torch.ones_like(like))
    assert abs(found.mean()) < 0.02  # four standard errors
    neighbours = (found[:, 1:] * found[:, :-1]).mean()
    assert abs(neighbours) < 0.02
    assert torch.equal(found, signs(like, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, signs(like, torch.Generator().manual_seed(1)))


def test_the_global_generator_serves_where_none_is_given():
    like = torch.zeros(50)
    torch.manual_seed(3)
    first = signs(like)
    torch.manual_seed(3)
    assert torch.equal(first, signs(like))


def test_any_shape_and_dtype_is_filled():
    for shape in ((0, 3), (1,), (3, 5, 7)):
        found = signs(torch.zeros(shape, dtype=torch.bfloat16), torch.Generator().manual_seed(0))
        assert found.shape == shape and found.dtype == torch.bfloat16
        assert bool((found.abs() == 1).all())
