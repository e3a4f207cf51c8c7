"""What once went wrong."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import numpy as np
import opt_einsum
import pytest
import torch
import torch.nn.functional as F

import convein
import reference
from convein import conv_einsum
from convein.dialects import POOLING
from convein.equation import Option
from convein.handlers import span


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("options", [{}, {"flip": True, "padding": "full"}, {"stride": 3}])
def test_complex_filters_are_not_conjugated_by_a_fast_fourier_transform(options: dict[str, Any]) -> None:
    x, w = randn(2, 4096, dtype=torch.complex128), randn(2, 1025, dtype=torch.complex128)
    assert "fft" in convein.compile("bi,bi->bi|i", x, w, **options).source
    padding = 1024 if options.get("padding") == "full" else 512
    filters = w.flip(1) if options.get("flip") else w
    rows = [
        F.conv1d(a[None, None], b[None, None], padding=padding, stride=options.get("stride", 1))[0, 0]
        for a, b in zip(x, filters, strict=True)
    ]
    torch.testing.assert_close(conv_einsum("bi,bi->bi|i", x, w, **options), torch.stack(rows))


def test_a_mode_padded_beyond_its_filter_beside_a_transposed_one() -> None:
    x, w = randn(1, 1, 6, 6, dtype=torch.float64), randn(1, 1, 3, 2, dtype=torch.float64)
    options: dict[str, Any] = {
        "transposed": {"h": True},
        "stride": {"h": 3},
        "dilation": {"w": 4},
        "padding": {"h": 1, "w": (7, 9)},
    }
    result = conv_einsum("bshw,tshw->bthw|hw", x, w, **options)
    rows = conv_einsum("bshw,tshv->bthvw|h", x, w, transposed=True, stride=3, padding=1)
    expected = sum(F.pad(rows[:, :, :, v], (7, 9)).narrow(-1, 4 * v, 18) for v in range(2))
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("expression", "shapes", "options"),
    [
        ("bhc,cab,ahb->bch|h", [(2, 7, 3), (3, 4, 2), (4, 2, 2)], {"flip": True, "padding": "valid"}),
        ("ha,hcb->hbac|h", [(7, 1), (3, 2, 2)], {"stride": 5, "dilation": 4, "flip": True, "transposed": True}),
        ("hcba,cbd,bhcd->bh|h", [(2, 2, 1, 2), (2, 1, 1), (1, 4, 2, 1)], {"flip": True, "stride": 5, "signal": 2}),
    ],
)
def test_weights_with_axes_of_size_one_in_single_precision(
    expression: str, shapes: list[tuple[int, ...]], options: dict[str, Any]
) -> None:
    # All but the first lie in memory with their axes reversed.
    exact = [randn(*shape[::-1], dtype=torch.float64).permute(*reversed(range(len(shape)))) for shape in shapes]
    exact[0] = exact[0].contiguous()
    results = []
    for dtype in (torch.float64, torch.float32):
        operands = [x.to(dtype).requires_grad_() for x in exact]
        result = conv_einsum(expression, *operands, optimize="left-to-right", **options)
        results.append([result, *torch.autograd.grad(result.square().sum(), operands)])
    for wanted, given in zip(*results, strict=True):
        torch.testing.assert_close(given.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_full_contraction_of_two_dtypes_under_autocast() -> None:
    a, b, c = randn(30, 4), randn(4, 5), randn(30, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = conv_einsum("ij,jk,ik->", a, b, c, optimize=[(0, 1), (0, 1)])
    torch.testing.assert_close(result.float(), torch.einsum("ij,jk,ik->", a, b, c), rtol=0.1, atol=1.0)


def test_large_composed_sizes_are_divided_exactly() -> None:
    large = 2**55 + 1
    result = conv_einsum("(a b),b->ab", torch.empty(3 * large, device="meta"), torch.empty(3, device="meta"))
    assert result.shape == (large, 3)


def test_an_array_as_an_option_is_refused() -> None:
    with pytest.raises(convein.OptionError, match="stride=array"):
        conv_einsum("bsh,tsh->bth|h", randn(2, 3, 8), randn(4, 3, 3), stride=np.array([1, 2]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: randn(2, 3).to_sparse(),
        lambda: randn(2, 3).to_sparse_csr(),
        lambda: torch.nested.nested_tensor([randn(3), randn(3)]),
        lambda: torch.nested.nested_tensor([randn(3), randn(2)], layout=torch.jagged),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_and_nested_tensors_are_refused(make: Any) -> None:
    with pytest.raises(convein.OperandError, match=r"operand 0 is a (sparse|nested) tensor"):
        conv_einsum("ij,jk->ik", make(), randn(3, 4))


def test_stages_can_be_copied_and_pickled() -> None:
    compiled = convein.compile("bsh,tsh->bth|h", (2, 3, 8), (4, 3, 3))
    for value in (compiled.network, compiled.plan, compiled.program):
        assert copy.deepcopy(value) == value
        assert pickle.loads(pickle.dumps(value)) == value
    x, w = randn(2, 3, 8), randn(4, 3, 3)
    assert torch.equal(copy.deepcopy(compiled)(x, w), compiled(x, w))


def test_a_program_for_integers_does_not_take_others() -> None:
    summed = convein.compile("ij->i", (2, 3), dtype=torch.int64)
    with pytest.raises(convein.OperandError, match=r"compiled for torch\.int64"):
        summed(torch.full((2, 3), 0.5))
    with pytest.raises(convein.OperandError, match=r"dtype torch\.int64"):
        convein.compile("ij->i", (2, 3))(torch.ones(2, 3, dtype=torch.int64))
    assert convein.compile("ij->i", (2, 3))(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_an_average_of_integers_is_refused_when_compiled_too() -> None:
    with pytest.raises(convein.OperandError, match=r"multiplies by 0\.5"):
        convein.compile("bh->bh|h[avg=2]", (2, 8), dtype=torch.int64, dialect=POOLING)


def test_a_compiled_expression_refuses_two_devices() -> None:
    compiled = convein.compile("ij,jk->ik", (2, 3), (3, 5))
    with pytest.raises(convein.OperandError, match="device meta"):
        compiled(randn(2, 3), torch.empty(3, 5, device="meta"))
    folded = convein.compile("ij,jk->ik", (2, 3), constants={1: randn(3, 5)})
    with pytest.raises(convein.OperandError, match="the constants are on cpu"):
        folded(torch.empty(2, 3, device="meta"))


@pytest.mark.parametrize(
    ("expression", "compiled_for", "shapes", "message"),
    [
        ("ij,jk->ik", [(None, None), (None, 5)], [(2, 3), (4, 5)], "dimension 0 of operand 1 has size 4"),
        ("ij,jk->ik", [(None, None), (4, 5)], [(2, 3), (4, 5)], "dimension 1 of operand 0 has size 3"),
        ("i,i->i", [(None,), (None,)], [(3,), (1,)], "free sizes do not broadcast"),
        ("ii->i", [(None, None)], [(3, 4)], "dimension 1 of operand 0 has size 4"),
        ("(a b),a,b->ab", [(None,), (None,), (None,)], [(7,), (2,), (3,)], "a=2, b=3"),
        ("bsh,tsh->bth|h", [(None, 3, 8), (4, None, 3)], [(2, 3, 8), (4, 2, 3)], "dimension 1 of operand 1"),
    ],
)
def test_free_sizes_must_fit_each_other(
    expression: str, compiled_for: list[Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    compiled = convein.compile(expression, *compiled_for)
    with pytest.raises(convein.ShapeError, match=message):
        compiled(*[randn(*shape) for shape in shapes])


def test_constants_that_do_not_fit() -> None:
    w = randn(3, 5)
    with pytest.raises(convein.OperandError, match=r"dtype=torch\.float64 was asked for"):
        convein.compile("ij,jk->ik", (2, 3), constants={1: w}, dtype=torch.float64)
    with pytest.raises(convein.OperandError, match="device=meta was asked for"):
        convein.compile("ij,jk->ik", (2, 3), constants={1: w}, device="meta")
    with pytest.raises(convein.OptionError, match="names an operand twice"):
        convein.compile("ij,jk->ik", (2, 3), constants={1: w, -2: w})
    with pytest.raises(convein.OptionError, match="constants=1"):
        convein.compile("ij,jk->ik", (2, 3), w, constants=1)  # type: ignore[arg-type]


def test_what_is_no_shape_dtype_or_device() -> None:
    with pytest.raises(convein.ShapeError, match="operand 0 is None"):
        convein.compile("ij,jk->ik", None, (3, 4))
    with pytest.raises(convein.OptionError, match='dtype="float32"'):
        convein.compile("ij->i", (2, 3), dtype="float32")  # type: ignore[arg-type]
    with pytest.raises(convein.OptionError, match='device="nonsense"'):
        convein.compile("ij->i", (2, 3), device="nonsense")


def test_tensors_among_shapes_keep_their_numbers() -> None:
    with pytest.raises(convein.OperandError, match=r"operand 1 has dtype .* and operand 2 has"):
        convein.compile("ij,jk,kl->il", (2, 3), randn(3, 4), randn(4, 5, dtype=torch.float64))


def test_a_compiled_expression_with_a_free_size_inside_torch_compile() -> None:
    x, w = randn(2, 3, 8), randn(4, 3, 3)
    compiled = convein.compile("bsh,tsh->bth|h", (None, 3, 8), w.shape)
    torch._dynamo.reset()
    traced = torch.compile(compiled, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        a = x[:1].expand(batch, -1, -1)
        torch.testing.assert_close(traced(a, w), compiled(a, w))


def test_objects_as_options_inside_torch_compile() -> None:
    optimizer, operands = opt_einsum.RandomGreedy(max_repeats=2), (randn(2, 3), randn(3, 4), randn(4, 5))
    subsampling = convein.Dialect(
        '%extend option: AVG EQUAL NUMBER -> subsample\nAVG: "avg"',
        {"subsample": lambda word, _, number: (Option("stride", 2 * int(number), span(word, number)),)},
    )

    def average(x: torch.Tensor, dialect: convein.Dialect) -> torch.Tensor:
        return conv_einsum("bsh->bsh|h[avg=2]", x, dialect=dialect)

    def chain(*operands: torch.Tensor) -> torch.Tensor:
        first = conv_einsum("ij,jk,kl->il", *operands, optimize=optimizer)
        return first + conv_einsum("ij,jk,kl->il", *operands, cost=lambda step: len(step.left))

    torch._dynamo.reset()
    x = randn(2, 3, 8)
    traced = torch.compile(average, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x, POOLING), F.avg_pool1d(x, 2))
    torch.testing.assert_close(traced(x, subsampling), x[..., ::4])
    result = torch.compile(chain, fullgraph=True, backend="aot_eager")(*operands)
    torch.testing.assert_close(result, 2 * torch.linalg.multi_dot(operands))


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex32"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning")
def test_dtypes_that_torch_cannot_compute_with_are_refused(dtype: str, device: str) -> None:
    kind = getattr(torch, dtype)
    x = torch.zeros(2, 3, dtype=kind, device=device)
    for expression in ("ij->i", "ij->ji"):
        with pytest.raises(convein.OperandError, match=f"operand 0 has dtype torch.{dtype}"):
            conv_einsum(expression, x)
        with pytest.raises(convein.OptionError, match=f"dtype=torch.{dtype}"):
            convein.compile(expression, (2, 3), dtype=kind)
    with pytest.raises(convein.OperandError, match="operand 0 has dtype torch"):
        convein.compile("ij,jk->ik", x, (3, 4))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16])
def test_small_dtypes_are_computed_with(dtype: torch.dtype) -> None:
    assert torch.equal(conv_einsum("ij,jk->ik", torch.eye(3).to(dtype), torch.eye(3).to(dtype)), torch.eye(3).to(dtype))


def test_a_warning_points_at_the_call() -> None:
    x, w = randn(3), randn(5)
    calls = (
        lambda: conv_einsum("i,i->i|i", x, w),
        lambda: convein.compile("i,i->i|i", x.shape, w.shape),
        lambda: convein.contract_path(x, [0], w, [0], [0], convolved=[0]),
    )
    for call in calls:
        with pytest.warns(convein.ConveinWarning, match="operand 1 is longer") as caught:
            call()
        assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, call.__code__.co_firstlineno)]


@pytest.mark.parametrize(
    ("expression", "shapes", "sizes", "given"),
    [
        ("(a b),b->ab", [(None,), (3,)], {}, [(12,), (3,)]),
        ("(a b),(b c),c->ac", [(None,), (None,), (4,)], {}, [(6,), (12,), (4,)]),
        ("(a b)->ba", [(None,)], {"b": 3}, [(15,)]),
    ],
)
def test_a_free_composed_dimension(expression: str, shapes: list[Any], sizes: dict[str, int], given: list[Any]) -> None:
    compiled = convein.compile(expression, *shapes, sizes=sizes)
    operands = [randn(*shape) for shape in given]
    torch.testing.assert_close(compiled(*operands), conv_einsum(expression, *operands, sizes=sizes))
    with pytest.raises(convein.ShapeError, match="dimension 0 of operand 0 has size 7, and the other dimensions"):
        compiled(randn(7), *operands[1:])


def test_free_composed_dimensions_that_nothing_splits() -> None:
    with pytest.raises(convein.ShapeError, match=r'operand 0 is free, (.|\n)*give all but one of them.*"b": '):
        convein.compile("(a b)->ab", (None,))
    with pytest.raises(convein.ShapeError, match=r'give it: sizes=\{"a": \.\.\.\}'):
        convein.compile("(a a)->a", (None,))


def test_a_free_mode_of_a_fixed_composed_dimension_is_fixed() -> None:
    x = randn(12)
    for compiled in (
        convein.compile("(a b),b->ab", (None,), constants={0: x}, sizes={"b": 3}),
        convein.compile("(a b),b->ab", (12,), (None,), sizes={"b": 3}),
    ):
        operands = [randn(size) for size in (12, 3, 4)]
        assert compiled(*operands[-len(compiled.positions) - 1 : -1]).shape == (4, 3)
        with pytest.raises(convein.ShapeError, match=r"operand 1 has size 4, and the other dimensions make it 3"):
            compiled(*[operands[j and 2] for j in compiled.positions])


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (lambda _: {}["a"], "the callable cost failed: KeyError: 'a'"),
        (lambda: 1, "the callable cost failed: TypeError"),
        (lambda _: 10**400, "the callable cost gave 10000"),
        (lambda _: 10**5000, "the callable cost gave <int object"),
    ],
)
def test_what_a_callable_cost_does_wrong(cost: Any, message: str) -> None:
    with pytest.raises(convein.PlanError) as caught:
        convein.contract_path("ij,jk,kl->il", (2, 3), (3, 4), (4, 5), cost=cost)
    assert str(caught.value).startswith(message)


def test_paths_made_of_arrays() -> None:
    shapes = [(2, 3), (3, 4), (4, 5)]
    for path in ([[1, 2], [0, 1]], np.array([[1, 2], [0, 1]]), [np.array([1, 2]), (0, 1)]):
        assert convein.contract_path("ij,jk,kl->il", *shapes, optimize=path)[0] == [(1, 2), (0, 1)]
    operands = [randn(*shape) for shape in shapes]
    path = np.array([[1, 2], [0, 1]])
    before = conv_einsum("ij,jk,kl->il", *operands, optimize=path)
    path[0] = 0, 1
    assert torch.allclose(conv_einsum("ij,jk,kl->il", *operands, optimize=path), before)
    path[0] = 7, 8
    with pytest.raises(convein.PlanError, match="position 7"):
        conv_einsum("ij,jk,kl->il", *operands, optimize=path)
    for wrong in (iter([(1, 2), (0, 1)]), b"optimal", np.array(3)):
        with pytest.raises(convein.PlanError, match="is neither a name, nor a path, nor an optimiser"):
            conv_einsum("ij,jk,kl->il", *operands, optimize=wrong)


@pytest.mark.parametrize("padding", [(0, 41), (41, 0), (20, 20), (7, 400)])
def test_a_signal_wrapped_many_times(padding: tuple[int, int]) -> None:
    x, w = randn(2, 5, dtype=torch.float64).requires_grad_(), randn(2, 3, dtype=torch.float64).requires_grad_()
    options: dict[str, Any] = {"padding": {"i": padding}, "padding_mode": "circular"}
    assert len(convein.compile("bi,bi->bi|i", x, w, **options).source) < 400
    indices = torch.arange(-padding[0], 5 + padding[1]).remainder(5)
    expected = F.conv1d(x[:, indices][None], w[:, None], groups=2)[0]
    result = conv_einsum("bi,bi->bi|i", x, w, **options)
    torch.testing.assert_close(result, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), [x, w]) for y in (result, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("expression", "count"), [("ij,jk->ik", 2), ("ij->ji", 1), ("ij->ij", 1)])
def test_what_is_done_with_a_constant_result_changes_no_other(expression: str, count: int) -> None:
    constants = [randn(3, 4), randn(4, 5)][:count]
    compiled = convein.compile(expression, constants=dict(enumerate(constants)))
    expected = torch.einsum(expression, *constants).clone()
    compiled().zero_()
    assert torch.equal(compiled(), expected)
    assert constants[0].any()


def test_checkpoints_inside_the_gradients_of_torch_func() -> None:
    x, y = randn(2, 3), randn(3, 4)
    compiled = convein.compile("ij,jk->", x, y, checkpoint=True)
    for call in (compiled, lambda x, y: conv_einsum("ij,jk->", x, y, checkpoint=True)):
        with pytest.raises(convein.OptionError, match="checkpoint= and memory_limit= cannot compute"):
            torch.func.grad(call)(x, y)
        assert torch.allclose(call(x, y), (x @ y).sum())


def test_compiled_expressions_and_dialects_can_be_saved() -> None:
    x, w = randn(2, 3, 8), randn(4, 3, 3)
    for options in ({}, {"checkpoint": True}, {"dialect": POOLING}):
        compiled = convein.compile("bsh,tsh->bth|h", x.shape, constants={1: w}, **options)
        file = io.BytesIO()
        torch.save(compiled, file)
        file.seek(0)
        for copied in (torch.load(file, weights_only=False), copy.deepcopy(compiled)):
            assert str(copied) == str(compiled)
            assert torch.equal(copied(x), compiled(x))
    dialect = pickle.loads(pickle.dumps(POOLING))
    assert torch.equal(conv_einsum("i->i|i[avg=2]", torch.arange(4.0), dialect=dialect), torch.tensor([0.5, 2.5]))


def test_options_that_equal_true_are_refused_after_true_too() -> None:
    x = randn(2, 3)
    for optimize in (False, True, 0, 1):
        if isinstance(optimize, bool):
            conv_einsum("ij->i", x, optimize=optimize)
        else:
            with pytest.raises(convein.PlanError, match=f"optimize={optimize}"):
                conv_einsum("ij->i", x, optimize=optimize)


@pytest.mark.parametrize(
    ("expression", "shapes", "options"),
    [
        (f"({' '.join(f'm{j}' for j in range(800))})->(m0)", [(7,)], {}),
        (",".join(["i"] * 1500) + "->i|i[signal=9999]", [(3,)] * 1500, {}),
        ("".join(f"(m{j})" for j in range(300)) + "->(m0)", [(1,) * 300], {"sizes": {"z" * 3000: 2}}),
        ("ij->i", [(2,) * 1000], {}),
        ("i,i,i->i", [(2,)] * 3, {"optimize": [(10**5000, 1)]}),
        ("i,i->i|i", [(2,)] * 2, {"stride": 10**5000}),
    ],
)
def test_messages_stay_short(expression: str, shapes: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(convein.ConveinError) as caught:
        convein.contract_path(expression, *shapes, **options)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_with_weights_that_are_not_contiguous(dtype: torch.dtype) -> None:
    """torch refuses them: "slow_conv2d: grad_weight must be contiguous"."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, dtype=dtype, generator=generator).requires_grad_()
    whole = torch.randn(4, 4, dtype=dtype, generator=generator).requires_grad_()
    for place in (lambda w: w[:2, :2].T, lambda w: w[::2, ::2], lambda w: w[:2, :2]):
        first = []
        for call in (convein.conv_einsum, reference.conv_einsum):
            value = call("ha,ha->h|h", x, place(whole), padding="full")
            gradients = torch.autograd.grad(value.square().sum(), (x, whole), create_graph=True)
            first.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, whole)))
        for ours, theirs in zip(*first, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_constants_folded_in_inference_mode_serve_in_training() -> None:
    x, *factors = (randn(*shape) for shape in ((2, 3), (3, 4), (4, 5)))
    with torch.inference_mode():
        made = convein.compile(
            "ij,jk,kl->il", x.shape, constants=dict(enumerate(factors, 1)), optimize=[(1, 2), (0, 1)]
        )
    x.requires_grad_()
    result = made(x)
    torch.testing.assert_close(result, x @ factors[0] @ factors[1])
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient, (factors[0] @ factors[1]).sum(1).expand(2, 3))


@pytest.mark.parametrize("spelling", [None, True, "AUTO", "Auto"])
def test_every_spelling_of_auto_is_the_same_plan(spelling: Any) -> None:
    """Also where several orders are lowered before one is chosen, and the best of them is not the planner's first."""
    cp, shapes = "bshw,rs,rh,rw,rt->bthw|hw", [(16, 8, 28, 28), (64, 8), (64, 3), (64, 3), (64, 64)]
    (wanted, ours), (path, info) = (convein.contract_path(cp, *shapes, optimize=o) for o in ("auto", spelling))
    assert (path, str(info)) == (wanted, str(ours))
    assert convein.compile(cp, *shapes, optimize=spelling).source == convein.compile(cp, *shapes).source


@pytest.mark.parametrize("dims", ["hw", "dhw"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("made", [1, 5])
def test_one_channel_last_with_a_stride_that_leaves_one_column(dims: str, stride: int, made: int) -> None:
    # oneDNN reads beyond the column, and beyond the tensor, if it is told that channels are last.
    expression = f"b{dims}s,ts{dims}->b{dims}t|{dims}"
    x = torch.randn(7, *[5] * (len(dims) - 1), 3, 1)
    filters = torch.randn(made, 1, *[2] * len(dims))
    options = {"padding": "valid", "stride": {"w": stride + 1}}
    expected = reference.conv_einsum(expression, x.double(), filters.double(), **options)
    images = (x, x.movedim(-1, 1).contiguous().movedim(1, -1))
    for image, weight in itertools.product(images, (filters, filters.movedim(1, -1).clone().movedim(-1, 1))):
        result = convein.conv_einsum(expression, image, weight, **options)
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
