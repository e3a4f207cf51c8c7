"""Random texts and mutations of valid ones: whatever a string holds, only a ConveinError may come out.

python tests/fuzz_text.py --cases 200000 --bind
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections import Counter
from collections.abc import Iterator

from convein.dialects import POOLING, REPEATED
from convein.errors import ConveinError
from convein.syntax import Dialect, merge_options, parse

VALID = (
    "ij,jk->ik",
    "...ij,...jk",
    "bshw,tshw->bthw|hw",
    "bshw,rt,rs,rh,rw->bthw|h[stride=2, padding=(0,1)], w[dilation=2, flip]",
    "b(s1 s2)hw,r(t1)(s1),r(t2)(s2),rhw->b(t1 t2)hw|h,(w)",
    "b(g s)hw,(g t)shw->b(g t)hw|h[padding_mode=circular,signal=0]w[transposed,stride=3,padding=0,output_padding=1]",
    "αβγ,γβ,,β->α",
    "(0)(1),(1)(2)->(0)(2)|(1)[padding=full,flip=true,signal=largest]",
    "bshw->bshw|h[avg=2], w[avg=3, stride=1]",
    "b(s#*3)hw,[r(t#)(s#)]*3,(r0)(a#*2)->b(t#*3)hw|hw",
    "[(r#-1)(s#)(r#)]*4->(s#*4)",
)
SIGNS = (
    *"abchwst(),->|[]=.# *0123_+\"'\n\t\0éש😀…→，\u200b\u0301\ud800",
    *("... -> (s1 s2) [stride=2] |hw avg=2 #*3 padding= same signal (((( )))) " + "9" * 30).split(" "),
    " " * 50,
)
DIALECTS: tuple[Dialect | None, ...] = (None, POOLING, REPEATED, POOLING + REPEATED)


def texts(seed: int) -> Iterator[str]:
    """Without end: bytes, heaps of signs, and valid texts with a few changes."""
    generator = random.Random(seed)
    while True:
        kind = generator.random()
        if kind < 0.15:
            code = generator.choice(["latin-1", "utf-8", "utf-16-le"])
            yield generator.randbytes(generator.randrange(40)).decode(
                code, "surrogateescape" if code == "utf-8" else "replace"
            )
        elif kind < 0.25:
            yield "".join(chr(generator.randrange(generator.choice([128, 0x110000]))) for _ in range(8))
        elif kind < 0.4:
            yield "".join(generator.choices(SIGNS, k=generator.randrange(1, 25)))
        else:
            yield mutated(generator.choice(VALID), generator)


def mutated(text: str, generator: random.Random) -> str:
    for _ in range(generator.randrange(1, 5)):
        start = generator.randrange(len(text) + 1)
        end = min(len(text), start + generator.choice([0, 0, 1, 1, 2, 5]))
        other = generator.choice(VALID)
        place = generator.randrange(len(other))
        chosen = generator.choice(["", generator.choice(SIGNS), text[start:end] * 2, other[place : place + 6]])
        text = text[:start] + chosen + text[end:]
    return text


def read(text: str, dialect: Dialect | None) -> bool:
    """Whether a text is an expression, which must then print as one that reads the same; else the error has a caret."""
    try:
        equation = merge_options(parse(text, dialect), {})
    except ConveinError as error:
        lines = str(error).splitlines()
    else:
        assert parse(str(equation), dialect) == equation, text
        return True
    assert any(line.strip(" ^") == "" and "^" in line for line in lines), text
    return False


def plan(text: str, dialect: Dialect | None, generator: random.Random) -> bool:
    """Whether a text plans with small random shapes, of the right rank where it is an expression."""
    import convein

    shapes: list[tuple[int, ...]]
    try:
        terms = [term for term in parse(text, dialect).inputs if term.constant is None]
    except ConveinError:
        shapes = [(2, 3)] * generator.randrange(4)
    else:
        if len(terms) > 8:
            return False
        size = generator.choice([1, 2, 3])
        shapes = [tuple(generator.choice([size, size, 4]) for _ in term.dimensions) for term in terms]
    try:
        convein.contract_path(text, *shapes, dialect=dialect)
    except ConveinError:
        return False
    return True


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    arguments.add_argument("--cases", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--bind", action="store_true", help="plan each text with random shapes, too")
    chosen = arguments.parse_args()
    from tqdm import tqdm

    warnings.simplefilter("ignore")
    generator = random.Random(chosen.seed)
    counts: Counter[str] = Counter()
    for _, text in zip(tqdm(range(chosen.cases), unit="text", mininterval=1), texts(chosen.seed), strict=False):
        dialect = generator.choice(DIALECTS)
        try:
            counts["expressions"] += read(text, dialect)
            if chosen.bind:
                counts["planned"] += plan(text, dialect, generator)
        except Exception:
            print(f"\nseed {chosen.seed}, text {text!r}, dialect {DIALECTS.index(dialect)}")
            raise
    print(f"{chosen.cases} texts, {counts['expressions']} of them expressions, no error but ConveinError")
    if chosen.bind:
        print(f"{counts['planned']} of them planned with random shapes")


if __name__ == "__main__":
    main()
