"""Matrices of low rank: the exact singular values of a sum of products without building it, and products cut to a rank.

A weight of a layer is taken as a matrix (outputs, columns): of a convolution the columns are inputs times kernel, and the
product of a 1x1 convolution after a kxk one is the product of their matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """The matrix up @ down: up (outputs, r), down (r, columns)."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return len(self.down)

    def whole(self) -> Tensor:
        return self.up @ self.down


@dataclass(frozen=True)
class Singular:
    """A matrix as left @ diag(values) @ right, the values falling: left (outputs, n), right (n, columns)."""

    left: Tensor
    values: Tensor
    right: Tensor

    def cut(self, rank: int) -> Product:
        """The nearest product of this rank or less, in Frobenius' norm (Eckart and Young, 1936). Each factor gets the root of
        the values, so that both are of one size; values that are zero are kept, so that the rank is as asked."""
        rank = min(rank, len(self.values))
        root = self.values[:rank].sqrt()
        return Product(self.left[:, :rank] * root, root[:, None] * self.right[:rank])


def side_by_side(products: Sequence[Product]) -> Product:
    """The sum of products as one, exactly: the ranks add up."""
    return Product(torch.cat([p.up for p in products], 1), torch.cat([p.down for p in products]))


def singular(matrix: Tensor) -> Singular:
    """Of a whole matrix, thin: n = min(outputs, columns)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return Singular(left, values, right)


def singular_roughly(matrix: Tensor, rank: int, seed: int = 0) -> Singular:
    """The `rank` largest of a large matrix, by random projection with power iterations (arXiv:0909.4061, algorithms 4.4 and
    5.1). What it finds is the matrix projected on a space, so that its squares are exactly what it keeps of the matrix's."""
    wanted = min(rank + max(16, rank // 2), *matrix.shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        left, values, right = torch.svd_lowrank(matrix, q=wanted, niter=4)
    return Singular(left[:, :rank], values[:rank], right.T[:rank])


def singular_of_sum(products: Sequence[Product]) -> Singular:
    """Of a sum of products. Where the ranks together are below both sides the sum is never built, which saves memory:
    with up = Q R and down' = Q' R' it is Q (R R'') Q'', and the matrix in the middle is as small as the ranks.
    """
    one = side_by_side(products)
    if one.rank >= min(len(one.up), one.down.shape[1]):
        return singular(one.whole())
    (left, inner), (right, other) = torch.linalg.qr(one.up), torch.linalg.qr(one.down.T)
    middle = singular(inner @ other.T)
    return Singular(left @ middle.left, middle.values, middle.right @ right.T)


def shaped(product: Product, kernel: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(down, up) as a LoRA's file has them: of a convolution (`kernel` not empty) down is a convolution with its kernel, up
    one with 1x1."""
    if not kernel:
        return product.down.contiguous(), product.up.contiguous()
    return product.down.unflatten(1, (-1, *kernel)).contiguous(), product.up[(..., *[None] * len(kernel))].contiguous()


def product_of(down: Tensor, up: Tensor, scale: float = 1.0) -> Product:
    """The product that a LoRA's matrices in a file stand for, with its scale in `up`."""
    return Product(up.flatten(1) * scale, down.flatten(1))
