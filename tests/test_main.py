"""The command line: what it prints, what it writes, and how it says what is wrong."""

from __future__ import annotations

import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

import convein
from convein.__main__ import main

FOUR = "'ijk,jl,lmq,njpq->ijknp|j' 4,7,9 10,5 5,4,2 6,8,9,2"
CONV = "'bshw,tshw->bthw|hw' 8,16,32,32 24,16,3,3"


def printed(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What a command line prints; it must succeed."""
    assert main(shlex.split(line)) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What a command line complains about; it must print nothing else."""
    assert main(shlex.split(line)) == 2
    out, complaint = capsys.readouterr()
    assert not out
    return complaint


def test_the_table_of_the_example_from_a_shell() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "convein", *shlex.split(FOUR)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0
    with pytest.warns(convein.ConveinWarning):
        _, info = convein.contract_path("ijk,jl,lmq,njpq->ijknp|j", (4, 7, 9), (10, 5), (5, 4, 2), (6, 8, 9, 2))
    assert run.stdout == f"{info}\n"
    assert "Complete contraction:  ijk,jl,lmq,njpq->ijknp|j" in run.stdout
    assert run.stderr.startswith("warning: ")
    assert run.stderr.endswith("say --signal first or --signal largest\n")
    assert run.stderr.count("\n") == 1


def test_an_error_from_a_shell_has_carets_and_no_traceback() -> None:
    command = [sys.executable, "-m", "convein", *shlex.split(CONV.replace("|hw", "|h"))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "mode w is 32 in operand 0 and 3 in operand 1\n\n"
        "    bshw,tshw->bthw|h\n"
        "       ^    ^\n\n"
        "to convolve along w, write it after the bar: |hw\n"
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-m", "convein", *shlex.split(CONV)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    exec(printed(capsys, f"{CONV} --stride 2 --source"), scope)
    x, w = torch.randn(8, 16, 32, 32), torch.randn(24, 16, 3, 3)
    program = scope["program"]
    assert callable(program)
    torch.testing.assert_close(program(x, w), convein.conv_einsum("bshw,tshw->bthw|hw", x, w, stride=2))


def test_the_picture_is_written_beside_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "layer.svg"
    assert printed(capsys, f"{CONV} --svg {file}") == printed(capsys, CONV)
    with_source = tmp_path / "source.svg"
    printed(capsys, f"{CONV} --source --svg {with_source}")
    assert ET.parse(file).getroot().tag.endswith("svg")
    assert with_source.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ("--stride 2", {"stride": 2}),
        ("--stride h=2,w=3", {"stride": {"h": 2, "w": 3}}),
        ("--stride ' h = 2 , w=3'", {"stride": {"h": 2, "w": 3}}),
        ("--dilation w=2", {"dilation": {"w": 2}}),
        ("--padding valid", {"padding": "valid"}),
        ("--padding 'h=(0,1),w=full'", {"padding": {"h": (0, 1), "w": "full"}}),
        ("--padding-mode circular --padding 1", {"padding_mode": "circular", "padding": 1}),
        ("--flip", {"flip": True}),
        ("--flip=h=true", {"flip": {"h": True}}),
        ("--signal largest", {"signal": "largest"}),
        ("--signal 0", {"signal": 0}),
        (
            "--transposed --stride 2 --padding 0 --output-padding=h=1",
            {"transposed": True, "stride": 2, "padding": 0, "output_padding": {"h": 1}},
        ),
        ("--grad", {"grad": True}),
        ("--grad=1", {"grad": [1]}),
        ("--grad=0,1", {"grad": [0, 1]}),
        ("--cost memory --optimize greedy", {"cost": "memory", "optimize": "greedy"}),
        ("--optimize '[(0, 1)]'", {"optimize": [(0, 1)]}),
        ("--memory-limit 4194304", {"memory_limit": 1 << 22}),
        ("--memory-limit 4MiB --grad", {"memory_limit": "4MiB", "grad": True}),
        ("--memory-limit '80%'", {"memory_limit": "80%"}),
        ("--checkpoint", {"checkpoint": True}),
        ("--checkpoint=1000 --grad=1", {"checkpoint": 1000, "grad": [1]}),
        ("--backend torch", {"backend": "torch"}),
        ("--accumulate float64", {"accumulate": torch.float64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_option_reaches_the_call(
    capsys: pytest.CaptureFixture[str], settings: str, options: dict[str, object]
) -> None:
    expression, *shapes = "bshw,tshw->bthw|hw", (8, 16, 32, 32), (24, 16, 3, 3)
    _, info = convein.contract_path(expression, *shapes, **options)
    assert printed(capsys, f"{CONV} {settings}") == f"{info}\n"
    assert printed(capsys, f"{settings} {CONV}") == f"{info}\n"
    compiled = convein.compile(expression, *shapes, **options)
    assert printed(capsys, f"{CONV} {settings} --source") == compiled.source.rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ("--device cuda", {"device": "cuda"}, "computed for an NVIDIA H200, float32"),
        ("--device cuda --dtype float16", {"device": "cuda", "dtype": torch.float16}, "NVIDIA H200, float16"),
        ("--dtype torch.float64", {"dtype": torch.float64}, "shipped: "),
    ],
)
def test_what_kind_of_operands_will_come(
    capsys: pytest.CaptureFixture[str], settings: str, options: dict[str, Any], words: str
) -> None:
    expression, *shapes = "bshw,rt,rs,rh,rw->bthw|hw", (8, 16, 32, 32), (4, 24), (4, 16), (4, 3), (4, 3)
    line = f"'{expression}' {' '.join(','.join(map(str, shape)) for shape in shapes)} {settings}"
    compiled = convein.compile(expression, *shapes, **options)
    table = printed(capsys, line)
    assert words in table
    assert f"\n\n{table}\nKernels\n" in compiled.explain()
    assert printed(capsys, f"{line} --source") == compiled.source.rstrip("\n") + "\n"


def test_what_fits_into_memory_changes_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    line = "'bi,ij,jk->bk' 4096,64 64,256 256,8 --optimize left-to-right --source"
    free, limited = printed(capsys, line), printed(capsys, f"{line} --memory-limit 1MiB")
    assert "for " in limited
    assert "for " not in free


def test_sizes_that_the_shapes_leave_open(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sizes=" in refused(capsys, "'b(g s)->bgs' 8,16")
    assert "reshape(8, 2, 8)" in printed(capsys, "'b(g s)->bgs' 8,16 --sizes g=2 --source")
    assert printed(capsys, "'b(g s)->bgs' 8,16 --sizes g=4") == printed(capsys, "'b(g s)->bgs' 8,16 --sizes s=4,g=4")


def test_options_may_stand_in_the_string(capsys: pytest.CaptureFixture[str]) -> None:
    inside = CONV.replace("|hw", "|h[stride=2,padding=(0,1)],w[flip]")
    outside = f"{CONV} --stride h=2 --padding 'h=(0,1)' --flip=w=true"
    assert printed(capsys, f"{inside} --source") == printed(capsys, f"{outside} --source")


@pytest.mark.parametrize("scalar", ["-", "''", "'()'", "'( )'"])
def test_scalars(capsys: pytest.CaptureFixture[str], scalar: str) -> None:
    assert "i,->i" in printed(capsys, f"'i,->i' 3 {scalar}")


@pytest.mark.parametrize("shape", ["4,7", "(4,7)", "(4, 7,)", "4,7,"])
def test_shapes_as_python_writes_them(capsys: pytest.CaptureFixture[str], shape: str) -> None:
    assert "ij->i" in printed(capsys, f"'ij->i' '{shape}'")


def test_a_free_size_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    fixed, free = (printed(capsys, f"'bshw,rs->brhw' {batch},16,3,4 5,16 --source") for batch in ("8", "None"))
    assert "reshape(8, " in fixed
    assert "8" not in free


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("'ij,jk->ik' 4x7 7,3", ['operand 0 has the shape "4x7"', "4,7,9"]),
        ("'ij,jk->ik' 4,7 7,h", ['operand 1 has the shape "7,h"']),
        ("'ij,jk->ik' 4,true 7,3", ['operand 0 has the shape "4,true"']),
        ("'ij,jk->ik' 4,7", ["ij,jk->ik", "1"]),
        ("'ij,jk->ik' 4,7 '(-7,3)'", ["-7"]),
        ("'ij,jk>ik' 4,7 7,3", ["ij,jk>ik", "^"]),
        (f"{CONV} --stride h=2,w", ["--stride h=2,w", "--stride h=2,w=1"]),
        (f"{CONV} --output-padding h=", ["--output-padding h="]),
        (f"{CONV} --padding 'h=(0,1)w=2'", ["--padding h=(0,1)w=2"]),
        (f"{CONV} --padding '(0,1)'", ["padding=(0, 1)"]),
        (f"{CONV} --stride x=2", ["x"]),
        (f"{CONV} --stride ''", ["stride"]),
        (f"{CONV} --padding SAME", ["SAME", "same"]),
        (f"{CONV} --cost flop", ["flop", "flops"]),
        (f"{CONV} --optimize optimum", ["optimum", "optimal"]),
        (f"{CONV} --optimize '[(0,'", ["[(0,"]),
        (f"{CONV} --grad=x", ["--grad=x", "--grad=0,2"]),
        (f"{CONV} --grad=2", ["2"]),
        (f"{CONV} --sizes 4", ["sizes=4"]),
        (f"{CONV} --memory-limit 1kB", ['memory_limit="1kB"', "too small"]),
        (f"{CONV} --memory-limit 2**30", ['memory_limit="2**30"', "2GiB"]),
        (f"{CONV} --checkpoint=much", ['checkpoint="much"', "2**30"]),
        (f"{CONV} --backend cuda", ['backend="cuda"', "triton"]),
        (f"{CONV} --device gpu", ['device="gpu"', "cuda"]),
        (f"{CONV} --dtype half32", ["--dtype half32", "--dtype float32"]),
        (f"{CONV} --dtype Tensor", ["--dtype Tensor"]),
        (f"{CONV} --dtype quint8", ["dtype=torch.quint8", "torch.float32"]),
        (f"{CONV} --accumulate int64", ["accumulate=torch.int64", "floating point"]),
        (f"{CONV} --svg /nowhere/layer.svg", ["/nowhere/layer.svg"]),
    ],
)
def test_what_is_wrong_is_said(capsys: pytest.CaptureFixture[str], line: str, words: list[str]) -> None:
    complaint = refused(capsys, line)
    assert "Traceback" not in complaint
    for word in words:
        assert word in complaint


@pytest.mark.parametrize("line", ["ij,jk- 4,7 7,3", "i j, j k - 4,7 7,3"])
def test_an_expression_without_quotes(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert "the expression stands in quotes" in refused(capsys, line)
    assert "quotes" not in refused(capsys, "'ij,jk->ik' None,3 4x7")


def test_batch_dimensions_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert "...ij,l...j->...il" in printed(capsys, "'...ij,...jk,kl->...il' 2,3,4,5 3,5,6 6,7")


def test_operands_left_out_of_the_table_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    chain = ",".join(f"({a}{a}{a}{a})({b}{b}{b}{b})" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    table = printed(capsys, f"'{chain}->(aaaa)(iiii)' {' '.join(['2,2'] * 8)}")
    assert " more->(aaaa)(iiii)" in table
    assert "..." not in table.split("scaling  kind")[1]


@pytest.mark.parametrize("line", ["", f"{CONV} --groups 2", f"{CONV} --stride", f"{CONV} -3,4"])
def test_usage(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(line))
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m convein expression [shape ...] [options]")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--version", f"convein {convein.__version__}\n"), ("--help", "4,7,9 10,5 5,4,2 6,8,9,2")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_the_examples_of_the_help_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("python -m")]
    assert len(lines) == 5
    for line in lines:
        command = line.removeprefix("python -m convein ").replace("layer.svg", str(tmp_path / "layer.svg"))
        assert printed(capsys, command)
    assert (tmp_path / "layer.svg").exists()
