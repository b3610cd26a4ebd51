"""MindSpore lays out every shipped run as the table does, with its fused operators and in its type.

R1_ALL_CONFIGS=1 compiles the first and the last stage of every model of every shipped run, at full depth. It takes
hours on two cores; `-k qwen2_5_7b-grpo` and the like choose.
"""

import json
import os
from dataclasses import replace

import pytest
from helpers.tiny_runs import REPOSITORY, run_script

from r1parallel.config.loading.load import load_config
from r1parallel.config.model import load_model_config
from r1parallel.parallel.layout.describe import first_ranks
from r1parallel.parallel.layout.from_config import layout_before_run

TOOL = "tools/make_strategy.py"
CONFIGS = REPOSITORY / "model_configs"
MODELS = {"grpo": ("actor", "ref", "generate"), "sft": ("actor",)}
ALL = [
    pytest.param(path.parent.name, path.stem, model, id=f"{path.parent.name}-{path.stem}-{model}")
    for path in sorted(CONFIGS.glob("*/*.yaml"))
    for model in MODELS.get(path.stem, ())
]
SECTIONS = {"grpo": ["rl_config", "ref_config", "reward_config", "generate_config"], "sft": ["sft_config"]}
LIMIT_S = 6 * 3600


def check(folder, shipped, kind, model, *flags) -> int:
    """Ask MindSpore about the first rank of the first and of the last stage; the exit status."""
    file = CONFIGS / shipped / f"{kind}.yaml"
    config = load_config(file, {}, [*SECTIONS[kind], "actor_config", "context", "monitor_config"])
    ranks = first_ranks(layout_before_run(config, model, None))
    chosen = ["--ranks", ",".join(str(rank) for rank in sorted({ranks[0], ranks[-1]}))]
    words = ["--config", str(file), "--model", model, "--output_dir", str(folder), "--check", *chosen]
    return run_script(TOOL, [*words, "--context.wait_limit", str(LIMIT_S), *flags])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ref", "generate"])
def test_the_first_layers_of_a_shipped_run(tmp_path, capsys, model):
    sizes = load_model_config(CONFIGS / "qwen2_5_7b")
    (tmp_path / "config.json").write_text(json.dumps(replace(sizes, num_layers=2).to_hf()))
    flags = ("--actor_config.model_config", str(tmp_path / "config.json"))
    assert check(tmp_path, "qwen2_5_7b", "grpo", model, *flags) == 0
    assert "rank 0: MindSpore lays out all 27 parameters as the table does" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("R1_ALL_CONFIGS"), reason="hours: set R1_ALL_CONFIGS=1")
@pytest.mark.parametrize(("shipped", "kind", "model"), ALL)
def test_every_shipped_run(tmp_path, capsys, shipped, kind, model):
    assert check(tmp_path, shipped, kind, model) == 0
    said = capsys.readouterr().out
    found = [line for line in said.splitlines() if "as the table does" in line or "nothing to check" in line]
    with capsys.disabled():
        print("", *(f"{shipped} {kind} {model}: {line}" for line in found), sep="\n")
    assert found
