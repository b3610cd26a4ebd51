"""What MindSpore makes of every layout is what the table says.

Ranks of one stage get equal files, so one rank of each stage is compiled, and every rank of two layouts.
R1_ALL_RANKS=1 compiles every rank of every layout.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from compile_worker import run_config, sizes_of
from helpers.layout_cases import CASES, model_config
from helpers.msrun import TESTS_ON_PATH

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.compile_only import CompileOnlyProgram
from r1parallel.parallel.device import has_fused_kernels
from r1parallel.parallel.launch.msrun import worker_environment
from r1parallel.parallel.launch.world import CompileOnlyWorld
from r1parallel.parallel.layout.from_config import layout_before_run
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import read_rank_strategy, write_model_strategies
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout
from r1parallel.rl import grpo
from r1parallel.strategy_check import compare, compile_rank
from r1parallel.strategy_check.compare import check_strategy, first_difference
from r1parallel.training import sft

WORKER = Path(__file__).with_name("compile_worker.py")
LIMIT_S = 3600
ALL_RANKS = bool(os.environ.get("R1_ALL_RANKS"))
WHOLE = {("dp2-opt", False), ("tp2-pp2-sp", True)}  # layouts of which every rank is compiled
# Layouts that reference and generator have too, which know neither stages nor optimizer parallel.
FORWARD = ("dp2", "tp2", "dp2-tp2")
# With Ascend's fused operators and in bf16: the layout that has everything, the other two models over dp4 and tp2.
EVERYTHING = "dp2-tp2-pp2-sp-opt"
FUSED = {
    "untied": (("ref", 7), ("generate", 7), ("actor", 0)),
    "tied": (("actor", 4),),
}


def jobs(tying: str) -> list[str]:
    """CASE:tying:MODEL:RANK:TYPE of what is compiled."""
    tied, result = tying == "tied", []
    for name, case in CASES.items():
        if not ALL_RANKS and (case.recompute or case.interleave > 1):  # these leave parameters where they are
            continue
        stage_size = case.world_size // case.pp
        every = ALL_RANKS or (name, tied) in WHOLE
        result += [
            f"{name}:{tying}:actor:{rank}:float32" for rank in range(0, case.world_size, 1 if every else stage_size)
        ]
        if name in FORWARD:
            ranks = range(case.world_size) if ALL_RANKS else [case.world_size - 1]
            result += [f"{name}:{tying}:{model}:{rank}:float32" for model in ("ref", "generate") for rank in ranks]
    # These last: a compilation that ends at a missing kernel leaves MindSpore with its number of devices.
    return [*result, *(f"{EVERYTHING}:{tying}:{model}:{rank}:bfloat16" for model, rank in FUSED[tying])]


@pytest.mark.slow
@pytest.mark.parametrize("tying", ["untied", "tied"])
def test_mindspore_agrees_with_the_table(mindspore_cpu, tmp_path, tying):
    wanted = jobs(tying)
    result = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path), *wanted],
        cwd=tmp_path,
        env=worker_environment() | TESTS_ON_PATH | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        start_new_session=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    wrong = {}
    for job in wanted:
        name, _, model, rank, compute_dtype = job.split(":")
        sizes = sizes_of(CASES[name], tying == "tied", compute_dtype)
        config = run_config(CASES[name], tying == "tied", tmp_path, compute_dtype)
        layout = layout_before_run(config, model, None)
        theirs = read_rank_strategy(tmp_path / f"{job}.ckpt", sizes.parameter_shapes())
        turned = json.loads((tmp_path / f"{job}.json").read_text())
        is_turned = model == "generate" and (compute_dtype == "bfloat16" or not has_fused_kernels())
        assert bool(turned) == is_turned
        wrong[job] = first_difference(layout, int(rank), theirs, sizes.parameter_shapes(), turned)
    assert not {job: difference for job, difference in wrong.items() if difference}


SIZES = ModelConfig(vocab_size=16, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=4, num_kv_heads=2)
TABLE = ModelLayout(SIZES, Mesh(dp=2, tp=2, pp=2))
WO, NORM = "model.layers.0.attention.wo.weight", "model.layers.0.ffn_norm.weight"


def difference(name: str, layout: TensorLayout | None, transposed: tuple[str, ...] = ()) -> str | None:
    """What is said when MindSpore has one parameter of stage 0 in another way, or not at all."""
    theirs = {**TABLE.stages[0], name: layout}
    return first_difference(
        TABLE, 1, {n: t for n, t in theirs.items() if t is not None}, SIZES.parameter_shapes(), transposed
    )


def test_numbers_may_differ_where_the_meaning_does_not():
    assert difference(NORM, TensorLayout((4,), (-1,))) is None
    assert difference(WO, TensorLayout((2, 2), (0, -1)), (WO,)) is None


def test_differences_name_parameter_rank_and_both_slices():
    assert difference(WO, TensorLayout((2, 2), (0, -1))) == (
        f"{WO} on rank 0 is [:, 0:4] in the table, MindSpore has [0:4, :]"
    )
    assert difference(WO, TensorLayout((2, 2), (-1, 1))) == (
        f"{WO} on rank 1 is [:, 4:8] in the table, MindSpore has [:, 0:4]"
    )
    assert difference(NORM, None) == f"{NORM} is held according to the table and not according to MindSpore"
    more = TensorLayout((4,), (-1,))
    assert (
        difference("lm_head.weight", more)
        == "lm_head.weight is held according to MindSpore and not according to the table"
    )
    assert "cannot be cut into (3,)" in (difference(NORM, TensorLayout((3,), (0,))) or "")


@pytest.fixture
def run(tmp_path):
    """A run of two stages, and the folder of its strategy files."""
    config = run_config(replace(CASES["pp2"], layers=4), True, tmp_path)
    write_model_strategies(layout_before_run(config, "actor", None), "actor", tmp_path)
    return config, tmp_path


@pytest.mark.slow
def test_a_check_compiles_in_another_process_and_prints_a_line_for_each_rank(run, capsys):
    config, folder = run
    check_strategy(config, "actor", [1], folder)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("rank 1: MindSpore lays out all 25 parameters as the table does (")


@pytest.mark.slow
def test_a_wrong_table_is_one_line(run):
    config, folder = run
    other = ModelLayout(model_config(True, 4), Mesh(pp=2), stage_layers=(3, 1))
    write_model_strategies(other, "actor", folder)
    with pytest.raises(
        UserError, match=r"rank 1: model\.layers\.2\.attention\.wk\.bias is held according to MindSpore"
    ):
        check_strategy(config, "actor", [1], folder)


@pytest.mark.slow
def test_what_cannot_be_compiled_is_one_line(run):
    config, folder = run
    config.actor_config.parallel_config.data_parallel = 2
    with pytest.raises(
        UserError, match=r"rank 0: .*cannot compile this layout: UserError: actor_config.*processes is 2"
    ):
        check_strategy(config, "actor", [0], folder)


def test_a_compilation_has_a_limit(run):
    config, folder = run
    config.context.wait_limit = 0.1
    with pytest.raises(UserError, match=r"rank 0: MindSpore did not compile the model within 0\.1 s; raise context"):
        check_strategy(config, "actor", [0], folder)


def test_a_process_that_ends_is_one_line(run, monkeypatch):
    config, folder = run
    monkeypatch.setattr(compare, "REQUEST", "another name")
    with pytest.raises(UserError, match="rank 0: the compiling process ended with exit code "):
        check_strategy(config, "actor", [0], folder)


@pytest.mark.parametrize(
    ("compiles", "said"),
    [
        (lambda *request: {"b", "a"}, {"error": "", "transposed": ["a", "b"]}),
        (lambda *request: request[-1].read_text(), {"error": "FileNotFoundError: [Errno 2] No such file"}),
    ],
)
def test_the_compiling_process_says_how_it_went(run, monkeypatch, compiles, said):
    config, folder = run
    monkeypatch.setattr(compile_rank, "die_with_parent", lambda: None)
    monkeypatch.setattr(compile_rank, "compile_rank", compiles)
    compare.write_request(config, folder)
    compile_rank.main([str(folder), "actor", "rl_config,actor_config", "1", "2"])
    result = json.loads((folder / compare.RESULT).read_text())
    assert result.pop("seconds") >= 0 and result.pop("peak_bytes") > 0
    assert result.keys() == said.keys() and result["error"].startswith(said["error"])
    assert result.get("transposed") == said.get("transposed")


def test_an_sft_run_compiles_its_own_program(run, monkeypatch):
    config, _ = run
    built = []
    monkeypatch.setattr(sft, "SFTTrainer", lambda *made: built.append(made) or SimpleNamespace(model="sft"))
    monkeypatch.setattr(grpo, "Actor", lambda *made, **more: SimpleNamespace(model="grpo"))
    world = CompileOnlyWorld(0, 2, "file")
    config.sft_config.batch_size = 3
    assert compile_rank._actor(config, SIZES, compile_rank.task_of(["rl_config", "context"]), world) == "grpo"
    assert compile_rank._actor(config, SIZES, compile_rank.task_of(["context", "sft_config"]), world) == "sft"
    ((_, sizes, rows, held_out, given),) = built
    assert (sizes, held_out, given) == (SIZES, None, world)
    assert rows.prompt_ids.shape == rows.answer_ids.shape == (3 * 2, 2) and len(rows.solutions) == 6
    assert rows.prompt_lengths.tolist() == rows.answer_lengths.tolist() == [2] * 6


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        (["rl_config", "actor_config"], "grpo"),
        (["actor_config", "sft_config"], "sft"),
        (["rl_config", "sft_config"], "sft"),
        ([], "grpo"),
    ],
)
def test_the_sections_of_a_file_say_which_run_it_configures(sections, name):
    assert compile_rank.task_of(sections).name == name


@pytest.mark.parametrize(
    ("model", "sections"),
    [("actor", {"rl_config"}), ("actor", {"sft_config"}), ("ref", set()), ("generate", {"sft_config"})],
)
def test_the_caller_says_which_actor_is_compiled(run, monkeypatch, model, sections):
    config, folder = run
    write_model_strategies(layout_before_run(config, model, None), model, folder)
    asked = []

    def refuse(config, model, sections, *rest):
        asked.append((model, sections))
        raise UserError("enough")

    monkeypatch.setattr(compare, "_compile", refuse)
    with pytest.raises(UserError, match="enough"):
        check_strategy(config, model, [0], folder, sections)
    assert asked == [(model, sections)]


NO_KERNEL = "\n---\n- Kernel select failed:\n---\nUnsupported op [RmsNorm] on CPU"


@pytest.mark.parametrize(
    ("says", "writes", "ends"),
    [
        (NO_KERNEL, "all", True),
        (NO_KERNEL, "half", False),
        (NO_KERNEL, "nothing", False),
        ("no rule for this operator", "all", False),
    ],
)
def test_a_compilation_may_end_at_a_missing_kernel_once_its_file_is_whole(tmp_path, says, writes, ends):
    file, whole = tmp_path / "strategy.ckpt", tmp_path / "whole.ckpt"
    write_model_strategies(StageLayouts(1, ({"a": TensorLayout((1,), (-1,))},)), "actor", tmp_path)
    whole.write_bytes((tmp_path / "train_policy_strategy" / "strategy_0.ckpt").read_bytes())
    file.write_bytes(whole.read_bytes())  # of an earlier graph: it does not count

    class Program:
        def compile(self, *inputs):
            assert inputs == (1, 2)
            content = whole.read_bytes()
            if writes != "nothing":
                file.write_bytes(content if writes == "all" else content[: len(content) // 2])
            raise RuntimeError(says)

    program = CompileOnlyProgram(Program(), str(file))
    if ends:
        program.compile(1, 2)
        assert file.read_bytes() == whole.read_bytes()
    else:
        with pytest.raises(RuntimeError, match=says.splitlines()[-1].split("[")[0]):
            program.compile(1, 2)


def test_one_process_needs_no_check(run, capsys):
    config, folder = run
    write_model_strategies(StageLayouts(1, ({"a": TensorLayout((1,), (-1,))},)), "actor", folder)
    check_strategy(config, "actor", [0], folder)
    assert capsys.readouterr().out == "nothing to check: a single process holds everything\n"
