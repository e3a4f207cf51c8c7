"""Pictures: well-formed, complete, the same every time, and quick."""

from __future__ import annotations

import random
import re
import time
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convein
from convein.binding import bind
from convein.dialects import POOLING
from convein.drawing import Svg, draw_both, draw_network, draw_plan
from convein.drawing.layout import arrange
from convein.drawing.sketch import sketched
from convein.drawing.svg import Box, columns, number, shortened
from convein.drawing.tree import contraction_tree
from convein.network import Network
from convein.planner import Plan, plan
from convein.syntax import parse

SVG = "{http://www.w3.org/2000/svg}"
CP = ("bshw,rt,rs,rh,rw->bthw|h[stride=2,padding=1],w[flip]", (8, 16, 32, 32), (5, 24), (5, 16), (5, 3), (5, 3))
FOUR = ("ijk,jl,lmq,njpq->ijknp|j[signal=first]", (4, 7, 9), (10, 5), (5, 4, 2), (6, 8, 9, 2))
TRAIN = ("ap,pbq,qcr,rds,set,tf->abcdef", (2, 3), *[(3, 2, 3)] * 4, (3, 2))
RESHAPED = ("b(s1 s2)hw,r(t1)(s1),r(t2)(s2),rhw->b(t1 t2)hw|hw", (2, 12, 8, 8), (5, 2, 3), (5, 3, 4), (5, 3, 3))
EXPRESSIONS = {
    "CP layer": CP,
    "four operands": FOUR,
    "tensor train": TRAIN,
    "reshaped layer": RESHAPED,
    "one operand": ("iijk->ik", (3, 3, 4, 5)),
    "one strided operand": ("ij->ij|i[stride=2]", (8, 3)),
    "scalar result": ("ij,jk,ki->", (4, 5), (5, 6), (6, 4)),
    "scalars": (",->", (), ()),
    "one scalar": ("->", ()),
    "parts": ("ij,jk,lm,q->ikl", (4, 5), (5, 6), (6, 4), (7,)),
    "parallel lines": ("abcd,abcd,de->e", (2, 3, 4, 5), (2, 3, 4, 5), (5, 6)),
    "batch dimensions": ("...ij,...jk->...ik", (2, 3, 4, 5), (3, 5, 6)),
    "broadcasting": ("ij,ij->ij", (1, 3), (2, 1)),
    "summed convolved mode": ("bi,i->b|i", (2, 8), (3,)),
    "empty": ("ij,jk->ik", (0, 3), (3, 2)),
    "nothing but padding": ("i,i,i->i|i[padding=(9,0),stride=12]", (3,), (2,), (2,)),
    "letters": ("αש,ש批->α批", (4, 5), (5, 3)),
    "convolutions of one mode": ("i,i,i,i->i|i[flip,padding=full]", (8,), (3,), (3,), (5,)),
}


def network(text: str, *shapes: tuple[int | None, ...], **options: object) -> Network:
    return bind(parse(text), shapes, **options)


def regular(count: int, seed: int, degree: int = 3) -> Network:
    """A network of operands that share modes at random, some of them with a leg."""
    source = random.Random(seed)
    terms: list[list[str]] = [[] for _ in range(count)]
    for edge in range(count * degree // 2):
        ends = (edge, edge + 1) if edge < count - 1 else source.sample(range(count), 2)
        for end in ends:
            terms[end].append(f"(m{edge})")
    for end in range(0, count, 4):
        terms[end].append(f"(o{end})")
    text = ",".join(map("".join, terms)) + "->" + "".join(f"(o{end})" for end in range(0, count, 4))
    return network(text, *((2,) * len(term) for term in terms))


def shuffled(of: Network, seed: int) -> Plan:
    """A plan in a random order."""
    source = random.Random(seed)
    return plan(of, optimize=[tuple(source.sample(range(left), 2)) for left in range(len(of.operands), 1, -1)])


def texts(svg: str) -> list[str]:
    """What can be read in a picture; parsing it shows that it is well-formed."""
    return [mark.text or "" for mark in ET.fromstring(svg).iter(SVG + "text")]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_operand_and_every_mode_is_in_the_diagram(name: str) -> None:
    bound = network(*EXPRESSIONS[name])
    lines = texts(draw_network(bound))
    for position, operand in enumerate(bound.operands):
        term = str(bound.equation.inputs[position])
        assert f"x{position} {term}".rstrip() in lines
        assert "×".join(map(str, operand.shape)) in lines or operand.shape == ()
    for mode, carriers in bound.carriers.items():
        convolution = bound.convolutions.get(mode)
        if convolution is None:
            assert f"{mode}={bound.sizes[mode]}" in lines
        else:
            wanted = [convolution.operand_size(j) for j in range(len(bound.operands)) if carriers >> j & 1]
            wanted += [convolution.length] * (mode in bound.output)
            for size in wanted:
                assert lines.count(f"{mode}={size}") >= wanted.count(size)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_value_of_the_plan_is_in_the_tree(name: str) -> None:
    planned = plan(network(*EXPRESSIONS[name]))
    lines = texts(draw_plan(planned))
    for position in range(len(planned.network.operands)):
        assert sum(line.split()[0] == f"x{position}" for line in lines if line) == 1
    for place, step in enumerate(planned.steps):
        assert f"{place + 1}. {step.kind}" in lines
        assert f"{number(step.macs)} mult." in lines
    assert sum(line.endswith("mult.") for line in lines) == len(planned.steps)
    assert not [line for line in lines if re.search(r"-\d", line)]
    assert sum(line.startswith("* ") for line in lines) == sum(
        bool(planned.network.join(step.left_set, step.right_set)) for step in planned.steps
    )


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_picture_is_the_same_every_time(name: str) -> None:
    first, second = (draw_both(plan(network(*EXPRESSIONS[name]))) for _ in range(2))
    assert first == second


def test_the_example_of_four_operands() -> None:
    drawn = sketched(network(*FOUR))
    assert [node.name.split()[0] for node in drawn.nodes] == ["x0", "x1", "x2", "x3", "j"]
    spokes = [line for line in drawn.lines if line.is_convolved]
    assert [(line.start, line.end, line.text, line.is_signal) for line in spokes] == [
        (0, 4, "j=7", True),
        (1, 4, "j=10", False),
        (3, 4, "j=8", False),
    ]
    assert [(line.start, line.end, line.text) for line in drawn.lines if not line.is_convolved] == [
        (1, 2, "l=5"),
        (2, 3, "q=2"),
    ]
    assert [(leg.node, leg.text, leg.is_kept) for leg in drawn.legs] == [
        (0, "i=4", True),
        (4, "j=7", True),
        (0, "k=9", True),
        (2, "m=4", False),
        (3, "n=6", True),
        (3, "p=9", True),
    ]


def test_modes_of_several_operands_meet_in_a_dot() -> None:
    drawn = sketched(network("ar,br,cr,bs,cs,bd->dsa", (2, 3), (4, 3), (5, 3), (4, 6), (5, 6), (4, 7)))
    dots = [number for number, node in enumerate(drawn.nodes) if node.position is None]
    joined = {drawn.nodes[dot].name: [line.start for line in drawn.lines if line.end == dot] for dot in dots}
    assert joined == {"r": [0, 1, 2], "b": [1, 3, 5], "s": [3, 4]}
    assert [drawn.nodes[dot].lines for dot in dots] == [("r=3",), ("b=4",), ()]  # a leg says s=6
    assert [leg.text for leg in drawn.legs if leg.node in dots] == ["s=6"]


def test_options_that_are_not_the_default_stand_beside_their_mode() -> None:
    text = "ab,ab->ab|a[stride=3,padding=(0,2)],b[transposed,dilation=2,padding_mode=circular]"
    lines = texts(draw_network(network(text, (9, 8), (3, 3))))
    for option in ("stride=3", "padding=(0, 2)", "transposed", "dilation=2", "padding_mode=circular"):
        assert lines.count(option) == 1
    assert not [line for line in texts(draw_network(network("a,a->a|a", (9,), (3,)))) if "padding" in line]


def test_constants_and_operands_without_gradients_have_their_colours() -> None:
    planned = plan(network(*RESHAPED), needs_grad=0b1000, constants=0b0110)
    svg = draw_both(planned)
    assert {"operand", "needs no gradient", "constant"} <= set(texts(svg))
    fills = re.findall(r'<rect [^>]*rx="9" fill="(#\w+)"', svg)
    assert len(set(fills)) >= 4
    assert "needs no gradient" not in texts(draw_both(plan(network(*RESHAPED))))
    pooled = bind(parse("bchw->bchw|h[avg=2],w[avg=3]", POOLING), [(2, 3, 8, 9)])
    assert "2, all 0.5" in texts(draw_network(pooled))
    assert "constant" in texts(draw_network(pooled))


def test_folded_steps_say_so_and_others_say_what_training_costs() -> None:
    chain = network("ij,jk,kl,lm->im", (30, 40), (40, 50), (50, 6), (6, 4))
    lines = texts(draw_plan(plan(chain, constants=0b1110, needs_grad=0b0001)))
    assert lines.count("computed once") == 2
    assert lines.count("backward 4,800") == 1


def test_free_sizes_have_a_question_mark() -> None:
    lines = texts(draw_network(network("bs,st->bt", (None, 3), (3, 4), free_hint=8)))
    assert "b=?8" in lines
    assert "t=4" in lines


def test_lines_are_as_wide_as_their_steps_are_costly() -> None:
    svg = draw_plan(plan(network(*FOUR)))
    widths = {float(width) for width in re.findall(r'<path d="[^"]* C[^"]*"[^>]*stroke-width="([\d.]+)"', svg)}
    assert len(widths) == 3
    assert max(widths) == 7
    assert min(widths) == 1.5


def test_names_are_escaped() -> None:
    svg = draw_network(network("ij,jk->ik", (2, 3), (3, 4)))
    assert "ij,jk-&gt;ik" in svg
    assert "ij,jk->ik" in texts(svg)


def test_long_texts_are_cut_and_stay_readable_under_the_pointer() -> None:
    names = [f"(mode{letter * 12})" for letter in "abcde"]
    svg = draw_network(network("".join(names) + "->" + names[0], (2, 3, 4, 5, 6)))
    titles = [mark.text or "" for mark in ET.fromstring(svg).iter(SVG + "title")]
    assert any("".join(names) in title for title in titles)
    assert max(map(len, texts(svg))) <= 96


def test_boxes_do_not_overlap() -> None:
    for bound in (*(network(*expression) for expression in EXPRESSIONS.values()), regular(40, 5)):
        svg = draw_both(shuffled(bound, 0))
        shapes = re.findall(r'<rect x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)" rx="9"', svg)
        boxes = [
            Box(complex(x + width / 2, y + height / 2), width, height)
            for x, y, width, height in (map(float, shape) for shape in shapes)
        ]
        in_diagram = svg[: svg.index("<g transform")].count('rx="9"')
        for group in (boxes[:in_diagram], boxes[in_diagram:]):
            for place, box in enumerate(group):
                assert not any(box.overlap(other) for other in group[:place]), bound.equation


def test_a_train_is_a_straight_line() -> None:
    drawn = sketched(network(*TRAIN))
    boxes = arrange([(50.0, 40.0)] * len(drawn.nodes), {(line.start, line.end): 50.0 for line in drawn.lines})
    assert [round(box.center.imag, 1) for box in boxes] == [round(boxes[0].center.imag, 1)] * 6
    places = [box.center.real for box in boxes]
    assert places == sorted(places)


def test_a_chain_of_steps_is_a_trunk() -> None:
    chain = regular(40, 1)
    trunk = plan(chain, optimize=[(0, 1), *((0, left - 1) for left in range(39, 1, -1))])
    assert contraction_tree(trunk).box.width < 800


@pytest.mark.parametrize("seed", range(3))
def test_forty_operands_take_less_than_a_second(seed: int) -> None:
    planned = shuffled(regular(40, seed), seed)
    draw_both(plan(network(*CP)))  # what is imported at first use
    start = time.process_time()
    svg = draw_both(planned)
    assert time.process_time() - start < 1.0
    lines = texts(svg)
    assert sum(line.startswith("x") for line in lines) == 80
    assert {f"m{edge}=2" for edge in range(60)} <= set(lines)


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4, unique=True), min_size=1, max_size=6), st.data())
def test_any_network_can_be_drawn(terms: list[list[str]], data: st.DataObject) -> None:
    modes = sorted({mode for term in terms for mode in term})
    output = data.draw(st.lists(st.sampled_from(modes), unique=True)) if modes else []
    convolved = data.draw(st.lists(st.sampled_from(modes), unique=True, max_size=2)) if modes else []
    bar = "|" + "".join(convolved) if convolved else ""
    text = ",".join(map("".join, terms)) + "->" + "".join(output) + bar
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", convein.ConveinWarning)
        bound = network(text, *((3,) * len(term) for term in terms))
    lines = texts(draw_both(plan(bound)))
    assert {f"{mode}=3" for mode in bound.carriers} <= set(lines)


def test_an_expression_draws_itself(tmp_path: Path) -> None:
    layer = convein.compile("bs,st->bt", (2, 3), constants={1: torch.ones(3, 4)})
    picture = layer.draw(tmp_path / "layer.svg")
    assert (tmp_path / "layer.svg").read_text(encoding="utf-8") == picture
    assert layer.draw(str(tmp_path / "again.svg")) == picture
    assert layer._repr_svg_() == picture
    assert isinstance(picture, Svg)
    assert picture._repr_svg_() == picture
    assert "constant" in texts(picture)


def test_pictures_can_stand_in_one_page_and_on_any_background() -> None:
    svg = draw_both(plan(network(*CP)))
    assert not re.search(r"<style|<defs|\sid=|\sclass=", svg)
    background = next(ET.fromstring(svg).iter(SVG + "rect"))
    assert background.get("fill") == "#ffffff"
    view = (ET.fromstring(svg).get("viewBox") or "").split()
    assert [background.get(name) for name in ("x", "y", "width", "height")] == view


def test_words_and_numbers_fit() -> None:
    assert (number(99_999), number(123_456), number(3 * 10**400)) == ("99,999", "1.23e5", "3.00e400")
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 9) == "abcd…hijk"
    assert columns("批e\u0301") == 3
    assert columns(shortened("批" * 30, 20)) <= 20
