"""Products of two tensors, summed and convolved along any modes, against sums that are written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import prod

import pytest
import torch
import torch.nn.functional as F
from convein.kernels import equation, offsets
from convein.kernels import pair as kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 3e-6, torch.float64: 1e-12}
MULTIPLIES = True
MODES = "abcdefgh"


@dataclass(frozen=True, slots=True)
class Case:
    """What to compute, of which sizes, and the order in which the modes of x and w lie in memory."""

    equation: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    convolved: str = ""
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    low: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    lying: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)

    @property
    def arguments(self) -> tuple[str, str, list[int], list[int], list[int], list[int]]:
        return (self.equation, self.convolved, *map(list, (self.stride, self.dilation, self.low, self.size)))

    def operands(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        tensors = []
        for sizes, order in zip((self.x, self.w), self.lying, strict=True):
            given = torch.randn(sizes, generator=generator, dtype=torch.float64)
            order = order or tuple(range(len(sizes)))
            back = [order.index(at) for at in range(len(sizes))]
            tensors.append(given.permute(order).contiguous().permute(back).to(device, dtype).requires_grad_())
        return tensors

    def layout(self) -> offsets.Layout:
        x, w = self.operands(torch.float16, torch.device("cpu"))
        return kernel._layout(x, w, *self.arguments)


def run(x: Tensor, w: Tensor, case: Case) -> Tensor:
    """The operator takes whatever is right; what would be slow is refused before it is called."""
    return torch.ops.convein.pair(x, w, *case.arguments)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def letters(most: int) -> list[str]:
        return [next(names) for _ in range(draw(st.integers(0, most)))]

    names = iter(MODES)
    batch, rows, columns, inner, convolved = (letters(most) for most in (1, 2, 1, 1, 2))
    groups = (rows + inner, columns + inner, rows + columns)
    terms = [draw(st.permutations(batch + group + convolved)) for group in groups]
    size = {mode: draw(st.integers(1, 4)) for mode in MODES}
    tap = {mode: draw(st.integers(1, 3)) if mode in convolved else size[mode] for mode in MODES}
    steps = st.sampled_from([1, 1, 2, 3, -1, -2])

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in convolved)

    lying = tuple(draw(st.none() | st.permutations(range(len(term))).map(tuple)) for term in terms[:2])
    return Case(
        f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(terms[2])}",
        tuple(size[mode] for mode in terms[0]), tuple(tap[mode] for mode in terms[1]), "".join(convolved),
        each(steps), each(steps), each(st.integers(-2, 3)), each(st.integers(1, 5)), lying,
    )  # fmt: skip


def written_out(x: Tensor, w: Tensor, case: Case) -> Tensor:
    X, W, out = equation.terms(case.equation)
    sizes = dict(zip(W, w.shape, strict=True)) | dict(zip(X, x.shape, strict=True))
    sizes |= dict(zip(case.convolved, case.size, strict=True))
    taps = dict(zip(W, w.shape, strict=True))
    y = torch.zeros([sizes[mode] for mode in out], dtype=torch.float64)
    modes = sorted(sizes)
    for entries in product(*(range(sizes[mode]) for mode in modes)):
        at = dict(zip(modes, entries, strict=True))
        for tap in product(*(range(taps[mode]) for mode in case.convolved)):
            place, meets = dict(at), dict(at) | dict(zip(case.convolved, tap, strict=True))
            for mode, u, s, d, lo in zip(case.convolved, tap, case.stride, case.dilation, case.low, strict=True):
                place[mode] = s * at[mode] + d * u - lo
            if all(0 <= place[mode] < x.shape[X.index(mode)] for mode in case.convolved):
                signal = x[tuple(place[mode] for mode in X)]
                y[tuple(at[mode] for mode in out)] += signal * w[tuple(meets[mode] for mode in W)]
    return y


def compare(case: Case, operands: list[Tensor], tolerance: float) -> None:
    exact = [x.detach().double().requires_grad_() for x in operands]
    y, expected = run(*operands, case), kernel.reference(*exact, *case.arguments)
    seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    to = torch.autograd.grad(y, operands, seed)
    of = torch.autograd.grad(expected, exact, seed.double())
    for one, other in zip((y, *to), (expected, *of), strict=True):
        atol = tolerance * float(other.detach().abs().max() + 1)
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=atol)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_reference_is_the_sum_written_out(case: Case) -> None:
    x, w = (x.detach() for x in case.operands(torch.float64, torch.device("cpu")))
    torch.testing.assert_close(kernel.reference(x, w, *case.arguments), written_out(x, w, case))


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float64, marks=pytest.mark.interpreted)], ids=str)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_values_and_gradients_are_those_of_the_reference(case: Case, dtype, device, guards) -> None:
    compare(case, [guards.around(x) for x in case.operands(dtype, device)], ROUNDING[dtype])


SAME = ("hw", (1, 1), (1, 1), (1, 1))
CASES = {
    "matrices, more than a tile each": Case("kbm,bkn->bmn", (17, 2, 19), (2, 17, 18)),
    "a long sum, split": Case("ak,kb->ba", (2, 75), (75, 3)),
    "pointwise, channels first": Case("bshw,ts->bthw", (2, 5, 3, 7), (6, 5)),
    "convolution": Case("bshw,tshw->bthw", (1, 3, 5, 7), (4, 3, 3, 3), *SAME, (5, 7), ((0, 2, 3, 1), None)),
    "convolution, batch of filters": Case("bghsw,hgtsw->gbthw", (1, 2, 5, 3, 6), (3, 2, 4, 3, 2), *SAME, (5, 6)),
    "depthwise, strides": Case("bshw,shw->bshw", (2, 5, 7, 8), (5, 3, 2), "hw", (2, 3), (1, 2), (1, 0), (4, 2)),
    "images in turns": Case("bshw,tshw->bthw", (5, 2, 4, 4), (3, 2, 3, 3), *SAME, (4, 4)),
    "three convolved modes": Case("adhw,dhw->adhw", (2, 3, 4, 3), (2, 3, 2), "dhw", *[(1,) * 3] * 3, (4, 4, 4)),
    "steps that share a factor": Case("ah,h->ah", (3, 23), (5,), "h", (6,), (4,), (3,), (5,)),
    "steps backward": Case("ah,bh->abh", (2, 9), (3, 4), "h", (-2,), (3,), (-5,), (6,)),
}


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.interpreted)], ids=str
)
@pytest.mark.parametrize("name", CASES)
def test_named_cases(name, dtype, device, guards) -> None:
    compare(CASES[name], [guards.around(x) for x in CASES[name].operands(dtype, device)], ROUNDING[dtype])


def test_a_convolution_is_that_of_torch(device, guards) -> None:
    case = CASES["convolution"]
    x, w = case.operands(torch.float16, device)
    y = kernel.reference(x.double(), w.double(), *case.arguments)
    torch.testing.assert_close(y, F.conv2d(x.double(), w.double(), padding=1))
    torch.testing.assert_close(run(x, w, case).double(), y, rtol=2e-3, atol=5e-3)


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 32))
def test_what_the_compiler_is_told_of_vectors_is_true(case: Case, wider: int) -> None:
    X, W, _ = equation.terms(case.equation)
    shared = next((mode for mode in X if mode not in case.convolved), None)
    sizes = [
        tuple(wider if mode == shared else size for mode, size in zip(term, given, strict=True))
        for term, given in ((X, case.x), (W, case.w))
    ]
    plan = replace(case, x=sizes[0], w=sizes[1]).layout()
    (xr, _), (xi, _) = (plan.hints("x")[name] for name in ("outer", "inner"))
    assert 1 in (xr, xi)
    vectors = kernel._vectors(plan, torch.device("cpu"))
    for at, tensor, name in ((1, "x", "outer"), (2, "x", "inner"), (4, "w", "outer"), (5, "w", "inner")):
        run, multiple = plan.hints(tensor)[name]
        groups = vectors[at].view(-1, run)
        assert (groups == groups[:, :1] + torch.arange(run)).all()
        assert (groups[:, 0] % multiple == 0).all()
    assert plan.rows.step("x") % plan.hints("x")["outer"][1] == 0
    assert all(plan.inner.step(tensor) % plan.hints(tensor)["inner"][1] == 0 for tensor in "xw")
    for at, tensor in ((0, "x"), (3, "w")):
        assert (vectors[at] % plan.batch.multiple(tensor, 1) == 0).all()
    for at, axis in ((6, plan.rows), (7, plan.inner)):
        groups = vectors[at].view(-1, axis.constancy(plan.tested))
        assert (groups == groups[:, :1]).all()


def test_what_is_read_by_vectors() -> None:
    last, first = Case("bhwgs,gtshw->bhwgt", (16, 5, 5, 4, 16), (4, 8, 16, 3, 3), *SAME, (5, 5)), (2, 4, 16, 8, 8)
    plan = last.layout()
    assert plan.order == (0, 1, 3, 4, 2)
    assert plan.tested == (0, 1)
    assert (plan.vector("x"), plan.vector("w")) == (16, 16)
    assert replace(last, low=(0, 0), size=(3, 3)).layout().tested == ()
    assert replace(last, x=(16, 5, 5, 4, 12), w=(4, 8, 12, 3, 3)).layout().vector("x") == 4
    pointwise = Case("bgshw,gts->bghwt", first, (4, 8, 16))
    assert pointwise.layout().hints("x") == {"outer": (16, 16), "inner": (1, 16)}
    assert Case("bgshw,gtshw->bghwt", first, (4, 8, 16, 3, 3), *SAME, (8, 8)).layout().vector("x") == 1


def test_what_needs_no_gradient_gets_none(device, guards) -> None:
    case = CASES["pointwise, channels first"]
    x, w = case.operands(torch.float16, device)
    y = run(x.detach(), w, case)
    assert torch.autograd.grad(y.sum(), [w])[0].shape == w.shape
    assert len(guards.buffers) == 2, "the gradient of x was computed"


def test_nothing_in(device, guards) -> None:
    case = CASES["convolution"]
    x, w = case.operands(torch.float16, device)
    assert run(x[:0], w, case).shape == (0, 4, 5, 7)
    assert run(x[:, :0], w[:, :0], case).eq(0).all()


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["depthwise, strides", "steps backward", "steps that share a factor"])
def test_derivatives_of_first_and_second_order(name, device) -> None:
    small = {"depthwise, strides": {"x": (1, 2, 3, 4), "w": (2, 2, 2), "size": (2, 1)}}
    case = replace(CASES[name], **small.get(name, {}))
    operands = case.operands(torch.float64, device)
    assert torch.autograd.gradcheck(lambda x, w: run(x, w, case), operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, w: run(x, w, case), operands, fast_mode=True)


@pytest.mark.parametrize("name", ["pointwise, channels first", "steps that share a factor"])
def test_torch_finds_the_operator_in_order(name, device) -> None:
    torch.library.opcheck(
        torch.ops.convein.pair, (*CASES[name].operands(torch.float32, device), *CASES[name].arguments)
    )


A, B = torch.zeros(2, 3), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("x", "w", "equation", "convolved", "reason"),
    [
        (A, B, "ab,bc", {}, "'ab,bc' is not two terms and a result"),
        (A, B, "ab->ba", {}, "'ab->ba' is not two terms and a result"),
        (A, B, "aa,ac->ac", {}, "a mode is twice in 'aa'"),
        (A, B, "ab,b->a", {}, r"x and w are \(2, 3\) and \(3, 4\), and their modes 'ab' and 'b'"),
        (A, B, "ab,bc->a", {}, "the mode c is in one term of 'ab,bc->a' only"),
        (A, B, "ab,bc->acd", {}, "the mode d is in one term of 'ab,bc->acd' only"),
        (A, B.t(), "ab,bc->ac", {}, "mode b is 3 in x and 4 in w"),
        (A, B, "ab,bc->ac", {"b": (1, 1, 0, 1)}, "the convolved mode b is not in all of 'ab,bc->ac'"),
        (A, B, "ab,bc->abc", {"b": (0, 1, 0, 1)}, "a stride or a dilation is 0"),
        (A, B, "ab,bc->abc", {"d": (1, 1, 0, 1)}, r"'d' with \[1\], \[1\], \[0\], \[1\] are not modes of"),
        (A, B.half(), "ab,bc->ac", {}, "the tensors are torch.float16 and torch.float32"),
        (A.int(), B.int(), "ab,bc->ac", {}, "there is no kernel for torch.int32"),
        (torch.zeros(1, 1).expand(2**16, 3), torch.zeros(1).expand(3, 2**15), "ab,bc->ac", {}, r"more than 2\*\*31"),
    ],
)
def test_what_does_not_fit_is_refused(x, w, equation, convolved, reason, device) -> None:
    with pytest.raises(ValueError, match=reason):
        kernel.pair(x.to(device), w.to(device), equation, convolved)


CUDA = torch.device("cuda")


@dataclass(frozen=True, slots=True)
class OnGpu:
    """What a planner knows of a tensor on a GPU, where there may be none."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CUDA

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def stride(self) -> tuple[int, ...]:
        return tuple(prod(self.shape[at + 1 :]) for at in range(self.ndim))


@pytest.mark.parametrize(
    ("x", "w", "arguments", "reason"),
    [
        (OnGpu((2, 16, 4, 4)), OnGpu((8, 16)), ("bshw,ts->bthw", "", [], [], [], []), None),
        (OnGpu((2, 16, 7, 7)), OnGpu((8, 16)), ("bshw,ts->bthw", "", [], [], [], []), "x could be read 2 bytes"),
        (OnGpu((2, 12)), OnGpu((64, 12)), ("ms,ns->mn", "", [], [], [], []), "x could be read 8 bytes"),
        (OnGpu((16, 16)), OnGpu((16, 12)), ("ms,sn->mn", "", [], [], [], []), "w would be copied"),
        (OnGpu((2, 16), torch.float64), OnGpu((8, 16), torch.float64), ("bs,ts->bt", "", [], [], [], []), "float64"),
        (OnGpu((2, 16), torch.float32), OnGpu((8, 16), torch.float32), ("bs,ts->bt", "", [], [], [], []), "rounded"),
    ],
)  # fmt: skip
def test_what_would_be_slow_on_a_gpu_is_refused(x, w, arguments, reason) -> None:
    found = kernel.refusal(x, w, *arguments)
    assert found is None if reason is None else reason in found
