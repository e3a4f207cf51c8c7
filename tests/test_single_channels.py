"""Images of one channel, which are channels of one image where they are many."""

from typing import Any

import pytest
import torch

import convein
import reference

IMAGES = "bhw,hw->bhw|hw"
# An expression, the shape of the images and that of the filter, and options.
CASES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    (IMAGES, (20, 31, 29), (3, 3), {}),
    (IMAGES, (20, 31, 29), (5, 2), {"padding": "valid", "flip": True}),
    (IMAGES, (20, 31, 29), (4, 3), {"stride": 2}),
    (IMAGES, (20, 31, 29), (3, 4), {"dilation": 2, "padding_mode": "circular"}),
    (IMAGES, (20, 29, 31), (3, 2), {"stride": 2, "transposed": True}),
    (IMAGES, (90, 1, 200), (1, 11), {}),
    ("xbhw,hw->bxhw|hw", (4, 5, 31, 29), (3, 3), {}),
    ("hwb,hw->bhw|hw", (31, 29, 20), (3, 3), {}),
    ("bl,l->bl|l", (30, 600), (7,), {}),
    ("bdhw,dhw->bdhw|dhw", (20, 9, 10, 11), (3, 3, 3), {}),
    ("bhdw,dw->bhdw|dw", (20, 9, 10, 11), (3, 3), {}),
)


def program(expression: str, image: tuple[int, ...], filters: tuple[int, ...], options: dict[str, Any]) -> str:
    return convein.compile(expression, torch.empty(image), torch.empty(filters), **options).source


def leaves(*shapes: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Operands, and the same in float64."""
    operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return operands, [operand.detach().double().requires_grad_() for operand in operands]


@pytest.mark.parametrize(("expression", "image", "filters", "options"), CASES)
def test_they_are_convolved_as_written_with_gradients(
    expression: str, image: tuple[int, ...], filters: tuple[int, ...], options: dict[str, Any]
) -> None:
    assert "groups=" in program(expression, image, filters, options)
    operands, exact = leaves(image, filters)
    result = convein.conv_einsum(expression, *operands, **options)
    wanted = reference.conv_einsum(expression, *exact, **options)
    gradient = torch.randn_like(wanted)
    found = torch.autograd.grad(result, operands, gradient.float())
    for one, other in zip((result, *found), (wanted, *torch.autograd.grad(wanted, exact, gradient)), strict=True):
        assert (one.double() - other).abs().max() < 1e-5 * other.abs().max()


def test_images_that_come_first_stay_first_in_memory() -> None:
    # A gradient that has its images elsewhere in memory would be copied.
    x = torch.randn(32, 64, 32, 32).to(memory_format=torch.channels_last)
    factors = [torch.randn(64), torch.randn(3, 3), torch.randn(64)]
    expression = convein.compile("bshw,s,hw,t->bthw|hw", x, *factors)
    assert "groups=32" in expression.source
    strides = expression(x, *factors).stride()
    assert strides[0] == max(strides)


@pytest.mark.parametrize(
    ("image", "filters"),
    [((1, 200, 200), (3, 3)), ((4, 31, 29), (3, 3)), ((20, 31, 29), (13, 3))],
)
def test_one_image_few_entries_and_long_filters_stay_as_they_are(
    image: tuple[int, ...], filters: tuple[int, ...]
) -> None:
    assert "groups=" not in program(IMAGES, image, filters, {})


def test_second_derivatives() -> None:
    operands, exact = leaves((17, 31, 33), (3, 2))
    expression = convein.compile(IMAGES, *operands)
    assert "groups=" in expression.source

    def penalty(result: torch.Tensor, given: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(result.square().mean(), given, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), given)

    wanted = penalty(reference.conv_einsum(IMAGES, *exact), exact)
    for one, other in zip(penalty(expression(*operands), operands), wanted, strict=True):
        assert (one.double() - other).abs().max() < 1e-4 * other.abs().max()


def test_any_number_of_images_in_one_graph() -> None:
    torch._dynamo.reset()
    weight = torch.randn(3, 3)
    graph = torch.compile(
        lambda x: convein.conv_einsum(IMAGES, x, weight), fullgraph=True, dynamic=True, backend="eager"
    )
    for count in (20, 21, 33):
        x = torch.randn(count, 31, 29)
        torch.testing.assert_close(graph(x), convein.conv_einsum(IMAGES, x, weight))
