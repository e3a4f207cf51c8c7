"""Plain contractions of three operands, whose three orders are lowered before one is taken."""

import pytest
import torch

import convein

LETTERS = "ijkr"


def program(expression: str, *shapes: tuple[int, ...], grad: bool) -> convein.Expression:
    operands = [torch.empty(shape, requires_grad=grad) for shape in shapes]
    return convein.compile(expression, *operands)


@pytest.mark.parametrize("order", ["ijk", "ikj", "jik", "jki", "kij", "kji"])
def test_a_result_with_gradients_lies_as_it_is_written(order: str) -> None:
    # Of all orders, which take as many multiplications: a contiguous gradient fits a contiguous result.
    shapes = [(64, 16)] * 3
    expression = program(f"ir,jr,kr->{order}", *shapes, grad=True)
    operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
    result = expression(*operands)
    assert result.is_contiguous()
    torch.testing.assert_close(result, torch.einsum(f"ir,jr,kr->{order}", *operands))


def test_what_is_hardly_cheaper_leaves_the_order_of_the_search() -> None:
    expression = program("...ij,...jk,kl->...il", (2, 3, 4, 5), (3, 5, 6), (6, 7), grad=False)
    searched = convein.contract_path("...ij,...jk,kl->...il", (2, 3, 4, 5), (3, 5, 6), (6, 7), optimize="optimal")
    assert expression.plan.ssa_path[0] == (1, 2)
    assert searched[0][0] == (1, 2)


@pytest.mark.parametrize("equation", ["ar,br->abr", "ars,brs->abrs", "ar,br->rab", "r,br->br", "ra,rb->rab"])
def test_products_that_keep_what_both_have(equation: str) -> None:
    sizes = dict(zip("abrs", (3, 4, 5, 2), strict=True))
    operands = [torch.randn([sizes[m] for m in term]) for term in equation.split("->", maxsplit=1)[0].split(",")]
    torch.testing.assert_close(convein.conv_einsum(equation, *operands), torch.einsum(equation, *operands))
