import re

import pytest

from r1parallel.parallel.compiling import compiling
from r1parallel.parallel.launch.world import CompileOnlyWorld, World


def test_rank_0_says_what_is_compiled_before_and_how_long_it_took_after(capsys):
    with compiling("the training graph", World(0, 2)):
        assert capsys.readouterr().err == "compiling the training graph …"
    assert re.fullmatch(r" \d+\.\d s\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "world", [World(1, 2), CompileOnlyWorld(0, 2, "strategy.ckpt")], ids=["rank 1", "compile-only"]
)
def test_others_say_nothing(capsys, world):
    with compiling("the training graph", world):
        pass
    assert capsys.readouterr().err == ""


def test_a_failure_ends_the_line(capsys):
    with pytest.raises(RuntimeError), compiling("the optimizer", World()):
        raise RuntimeError
    assert capsys.readouterr().err.endswith(" s\n")
