"""Low-rank algebra against numpy's singular values of the matrices that it never builds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from limner.tools.low_rank import Product, product_of, shaped, side_by_side, singular_of_sum


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def products(outputs: int, columns: int, *ranks: int) -> list[Product]:
    return [Product(random(outputs, r, seed=i), random(r, columns, seed=50 + i)) for i, r in enumerate(ranks)]


def summed(them: list[Product]) -> np.ndarray:
    return sum(p.up.numpy() @ p.down.numpy() for p in them)  # type: ignore[return-value]


@pytest.mark.parametrize(("outputs", "columns", "ranks"), [(30, 50, (3, 4)), (50, 30, (8,)), (9, 20, (5, 6)), (12, 7, (3, 4))])
def test_singular_values_of_a_sum(outputs: int, columns: int, ranks: tuple[int, ...]) -> None:
    them = products(outputs, columns, *ranks)
    found = singular_of_sum(them)
    np.testing.assert_allclose(found.values, np.linalg.svd(summed(them), compute_uv=False)[: len(found.values)], rtol=1e-12)
    np.testing.assert_allclose(found.left * found.values @ found.right, summed(them), atol=1e-12)
    eye = np.eye(len(found.values))
    np.testing.assert_allclose(found.left.T @ found.left, eye, atol=1e-12)
    np.testing.assert_allclose(found.right @ found.right.T, eye, atol=1e-12)


def test_a_big_sum_is_not_built() -> None:
    """Two layers of a size of which the whole would be 80 GB."""
    them = [Product(torch.ones(100_000, 1), torch.ones(1, 200_000)), Product(torch.ones(100_000, 1), -torch.ones(1, 200_000))]
    assert float(singular_of_sum(them[:1]).values[0]) == pytest.approx(2e10**0.5, rel=1e-5)
    assert float(singular_of_sum(them).values[0]) < 1


def test_side_by_side_is_the_sum() -> None:
    them = products(10, 20, 3, 1, 4)
    whole = side_by_side(them)
    assert whole.rank == 8
    np.testing.assert_allclose(whole.whole(), summed(them), atol=1e-13)


def test_cut_is_the_nearest_and_its_factors_are_of_one_size() -> None:
    them = products(30, 20, 3, 3)
    values = np.linalg.svd(summed(them), compute_uv=False)
    cut = singular_of_sum(them).cut(4)
    assert np.linalg.norm(cut.whole().numpy() - summed(them)) == pytest.approx(np.linalg.norm(values[4:]), rel=1e-10)
    assert float(cut.up.norm()) == pytest.approx(float(cut.down.norm()), rel=1e-12)
    np.testing.assert_allclose(singular_of_sum(them).cut(6).whole(), summed(them), atol=1e-12)
    assert singular_of_sum(them).cut(100).rank == 6


def test_a_convolution_and_its_matrix() -> None:
    down, up = random(2, 3, 3, 3), random(5, 2, 1, 1, seed=1)
    x = random(1, 3, 8, 8, seed=2)
    two = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, down), up) * 0.5
    product = product_of(down, up, 0.5)
    weight = product.whole().view(5, 3, 3, 3)
    np.testing.assert_allclose(torch.nn.functional.conv2d(x, weight), two, atol=1e-12)
    again_down, again_up = shaped(product, (3, 3))
    assert again_down.shape == down.shape and again_up.shape == up.shape
    np.testing.assert_allclose(torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, again_down), again_up), two, atol=1e-12)
    assert [t.shape for t in shaped(product, ())] == [(2, 27), (5, 2)]
