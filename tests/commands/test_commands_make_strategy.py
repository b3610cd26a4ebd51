"""tools/make_strategy.py: from a run's configuration to its strategy files."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from helpers.tiny_runs import REPOSITORY, run_script

from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_strategy
from r1parallel.parallel.layout.table import ModelLayout

TOOL = "tools/make_strategy.py"
SIZES = ModelConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2)
GRPO = """
actor_config:
  model_config: config.json
  parallel_config: {data_parallel: 1, model_parallel: 2, pipeline_stage: 2, micro_batch_num: 2}
  offset: [0, 1]
ref_config:
  parallel_config: {data_parallel: 4}
generate_config:
  parallel_config: {data_parallel: 2, model_parallel: 2}
"""
MESHES = {"actor": Mesh(pp=2, tp=2), "ref": Mesh(dp=4), "generate": Mesh(dp=2, tp=2)}
NAMES = {"actor": "train_policy", "ref": "infer_ref", "generate": "infer_policy"}


@pytest.fixture
def grpo(tmp_path) -> Path:
    """A configuration for four processes that says nothing about data, tokenizer or weights."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES.to_hf()))
    (tmp_path / "grpo.yaml").write_text(GRPO)
    return tmp_path / "grpo.yaml"


def make(grpo, *flags):
    return run_script(TOOL, ["--config", str(grpo), "--output_dir", str(grpo.parent / "out"), *flags])


@pytest.mark.parametrize("model", list(MESHES))
def test_each_model_of_a_run(grpo, capsys, model):
    assert make(grpo, "--model", model) == 0
    folder = grpo.parent / "out" / f"{NAMES[model]}_strategy"
    assert capsys.readouterr().out == f"wrote 4 strategy files to {folder}\n"
    expected = ModelLayout(SIZES, MESHES[model], stage_layers=(1, 2) if model == "actor" else None)
    assert read_strategy(folder).stages == expected.stages
    merged = grpo.parent / "out" / "merge_strategy" / f"{NAMES[model]}_merged_strategy.ckpt"
    assert read_strategy(merged).stages == expected.stages


def test_keys_of_the_command_line_beat_the_file(grpo):
    more = ["--actor_config.parallel_config.data_parallel", "2", "--actor_config.enable_parallel_optimizer"]
    assert make(grpo, *more, "--actor_config.offset=1,0", "--world_size", "8") == 0
    expected = ModelLayout(SIZES, Mesh(dp=2, pp=2, tp=2), True, (2, 1))
    assert read_strategy(grpo.parent / "out" / "train_policy_strategy").stages == expected.stages


def test_an_sft_file_describes_the_actor(grpo):
    sft = grpo.with_name("sft.yaml")
    sft.write_text("sft_config:\n  epochs: 2\nactor_config:\n  model_config: config.json\n  offset: 0\n")
    assert make(sft) == 0
    assert read_strategy(grpo.parent / "out" / "train_policy_strategy").stages == ModelLayout(SIZES, Mesh()).stages


def test_ranks_are_printed_and_files_written_for_all(grpo, capsys):
    assert make(grpo, "--ranks", "3,0") == 0
    output = capsys.readouterr().out
    assert output.index("rank 3 of 4: ") < output.index("rank 0 of 4: ") < output.index("wrote 4 strategy files")
    assert "model.layers.1-2.attention.wo.weight" in output
    assert len(list((grpo.parent / "out" / "train_policy_strategy").iterdir())) == 4


@pytest.mark.parametrize(("flags", "ranks"), [((), [0, 2]), (("--ranks", "3,1"), [3, 1])])
def test_check_asks_mindspore_about_the_ranks(grpo, monkeypatch, flags, ranks):
    asked = []
    compare = types.ModuleType("r1parallel.strategy_check.compare")
    compare.check_strategy = lambda config, *rest: asked.append((config.actor_config.offset, *rest))
    monkeypatch.setitem(sys.modules, "r1parallel.strategy_check.compare", compare)
    assert make(grpo, "--check", *flags) == 0
    sections = {"actor_config", "ref_config", "generate_config"}
    assert asked == [([0, 1], "actor", ranks, str(grpo.parent / "out"), sections)]


def test_check_says_that_the_actor_is_of_an_sft_run(grpo, monkeypatch):
    sft = grpo.with_name("sft.yaml")
    sft.write_text(GRPO + "sft_config:\n  epochs: 1\n")
    asked = []
    compare = types.ModuleType("r1parallel.strategy_check.compare")
    compare.check_strategy = lambda *given: asked.append(given[-1])
    monkeypatch.setitem(sys.modules, "r1parallel.strategy_check.compare", compare)
    assert make(sft, "--check") == 0
    assert [sections - {"actor_config", "ref_config", "generate_config"} for sections in asked] == [{"sft_config"}]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--world_size", "16"], "model_parallel 2 * pipeline_stage 2 = 4, but the number of processes is 16"),
        (["--model", "ref", "--world_size", "8"], "ref_config.parallel_config: data_parallel 4 "),
        (["--actor_config.parallel_config.model_parallel", "4"], "num_kv_heads 2; 1, 2 would do"),
        (["--generate_config.parallel_config.data_parallel", "1", "--model", "generate"], "set data_parallel to 2"),
        (["--actor_config.offset", "1,1"], "so it must sum to 1"),
        (["--ranks", "4"], "--ranks has '4'; give numbers from 0 to 3"),
        (["--actor_config.model_config", ""], "actor_config.model_config is empty"),
        (["--dp", "2"], "unknown flag --dp"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_written(grpo, capsys, flags, words):
    assert make(grpo, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error
    assert not (grpo.parent / "out").exists()


@pytest.mark.parametrize("wrong", [["--world_size", "many"], ["--model", "critic"]])
def test_wrong_values_of_its_own_flags(grpo, capsys, wrong):
    assert make(grpo, *wrong) == 2
    assert wrong[0] in capsys.readouterr().err


# VmHWM and not ru_maxrss, which a process inherits from the one that started it.
LARGE = """
import re, runpy, sys
runpy.run_path(sys.argv[1], run_name="tool")["main"](sys.argv[2:])
assert "mindspore" not in sys.modules
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize(
    ("model", "mesh", "opt_shard"),
    [("qwen2_5_7b", Mesh(dp=1, pp=2, tp=4), False), ("qwen2_5_72b", Mesh(dp=16, pp=8, tp=8), True)],
)
def test_large_models_need_no_mindspore_and_less_than_1_gb(tmp_path, model, mesh, opt_shard):
    config = REPOSITORY / "model_configs" / model
    words = [str(REPOSITORY / TOOL), "--config", str(config / "grpo.yaml"), "--output_dir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-c", LARGE, *words],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        cwd=REPOSITORY,
    )
    assert result.returncode == 0, result.stderr
    assert f"wrote {mesh.world_size} strategy files" in result.stdout
    assert int(result.stdout.split()[-1]) * 1024 < 1e9
    expected = ModelLayout(load_model_config(config), mesh, opt_shard)
    assert read_strategy(tmp_path / "train_policy_strategy").stages == expected.stages


@pytest.mark.parametrize("model", list(MESHES))
@pytest.mark.parametrize("shipped", sorted(path.parent.name for path in REPOSITORY.glob("model_configs/*/grpo.yaml")))
def test_every_shipped_run_has_strategies(tmp_path, capsys, shipped, model):
    config = str(REPOSITORY / "model_configs" / shipped / "grpo.yaml")
    assert run_script(TOOL, ["--config", config, "--model", model, "--output_dir", str(tmp_path)]) == 0
    written = capsys.readouterr().out
    assert read_strategy(tmp_path / f"{NAMES[model]}_strategy").world_size == int(written.split()[1])
