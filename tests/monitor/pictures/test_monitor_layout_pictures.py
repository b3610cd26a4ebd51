"""tools/draw_layout.py: the committed pictures are what it draws now, and they say what the layout table says."""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import pairwise

import pytest
from helpers.tiny_runs import REPOSITORY, run_script
from mindspore.ops import Primitive

from r1parallel.config.model import ModelConfig
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.monitor.pictures.block_flow import HALVES, block_steps, collective, num_parts, part_of
from r1parallel.monitor.pictures.canvas import ranks_text
from r1parallel.monitor.pictures.mesh_picture import stage_contents
from r1parallel.monitor.pictures.schedule_picture import BACKWARD, FORWARD, idle_fraction, one_forward_one_backward
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.parallelize import parallelize

TOOL = "tools/draw_layout.py"
CONFIG = str(REPOSITORY / "model_configs" / "qwen2_5_7b" / "grpo.yaml")
PAGE = (REPOSITORY / "docs" / "parallel.md").read_text(encoding="utf-8")
PARALLEL = "--actor_config.parallel_config."
NAMES = ("mesh.svg", "block.svg", "schedule.svg")


def page_flags():
    """The layout flags of the command that the page names."""
    command = re.search(r"python tools/draw_layout\.py ((?:.*\\\n)*.*)\n", PAGE)[1].replace("\\\n", " ").split()
    assert command[:2] == ["--config", "model_configs/qwen2_5_7b/grpo.yaml"]
    assert command[-2:] == ["--output_dir", "docs/pictures"]
    return command[2:-2]


def draw(folder, *flags, config=CONFIG):
    return run_script(TOOL, ["--config", config, "--output_dir", str(folder), *flags])


def words(file):
    return [text.text for text in ET.parse(file).iter("{http://www.w3.org/2000/svg}text")]


def test_the_committed_pictures_are_what_the_tool_draws(tmp_path, capsys):
    assert draw(tmp_path, *page_flags()) == 0
    assert capsys.readouterr().out == "".join(f"wrote {tmp_path / name}\n" for name in NAMES)
    for name in NAMES:
        committed = REPOSITORY / "docs" / "pictures" / name
        assert (tmp_path / name).read_bytes() == committed.read_bytes(), f"draw {committed} again, see docs/parallel.md"
        assert f"pictures/{name}" in PAGE


def test_every_rank_stands_in_the_mesh(tmp_path):
    assert draw(tmp_path, *page_flags()) == 0
    found = words(tmp_path / "mesh.svg")
    assert [word for word in found if word.startswith("rank ") and word[5:].isdigit()] == [
        f"rank {r}" for r in range(8)
    ]
    assert "embedding, layers 0 to 13" in found
    assert {"0·1,  2·3,  4·5,  6·7", "0·2,  1·3,  4·6,  5·7", "0·4,  1·5,  2·6,  3·7"} <= set(found)


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_the_block_shows_its_collectives(tmp_path, sequence_parallel):
    flags = [f"{PARALLEL}use_seq_parallel", str(sequence_parallel).lower()]
    assert draw(tmp_path, *page_flags(), *flags) == 0
    counts = Counter(words(tmp_path / "block.svg"))
    expected = {"AllGather": 2, "ReduceScatter": 2, "AllReduce": 0} if sequence_parallel else {"AllReduce": 2}
    assert {name: counts[name] for name in ("AllGather", "ReduceScatter", "AllReduce")} == {
        "AllGather": 0,
        "ReduceScatter": 0,
    } | expected


def test_one_tp_rank_needs_no_collective(tmp_path):
    flags = ("model_parallel", "1", "data_parallel", "4", "pipeline_stage", "2", "use_seq_parallel", "false")
    keys = [word if i % 2 else f"{PARALLEL}{word}" for i, word in enumerate(flags)]
    assert draw(tmp_path, *keys) == 0
    found = words(tmp_path / "block.svg")
    assert not {"AllGather", "ReduceScatter", "AllReduce"} & set(found)
    assert found.count("0…3") == 12  # nothing is split: each of the 12 parameters is whole on all of them


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["data_parallel", "4"], "data_parallel * model_parallel is 16; a picture can show 8"),
        (["pipeline_stage", "14", f"{PARALLEL}micro_batch_num", "14"], "pipeline_stage is 14; a picture can show 8"),
        (["micro_batch_num", "65"], "micro_batch_num is 65; a picture can show 64"),
        (["model_parallel", "8"], "model_parallel is 8, which does not divide"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_nothing_is_written(tmp_path, capsys, flags, message):
    assert draw(tmp_path / "out", f"{PARALLEL}{flags[0]}", *flags[1:]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_equal_layouts_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        assert draw(tmp_path / name) == 0
    for name in NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# Which operator of a block each step stands for, in the order of `block_steps`.
OPERATORS = {
    "attention": ("attention_norm.normalize", "attention.wq.matmul", "attention.core.scores", "attention.wo.matmul"),
    "feed forward": ("ffn_norm.normalize", "feed_forward.w1.matmul", "feed_forward.gate", "feed_forward.w2.matmul"),
}
ADDS = {"attention": "add_attention", "feed forward": "add_feed_forward"}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_steps_are_split_as_the_operators_of_the_model(half, sequence_parallel):
    mesh = Mesh(dp=2, tp=4)
    model = Qwen2ForCausalLM(ModelConfig(64, 32, 64, 2, 4, 4, tie_word_embeddings=True), 8)
    parallelize(model, mesh, (2,), sequence_parallel)
    for step, path in zip(block_steps(half), (*OPERATORS[half], ADDS[half]), strict=True):
        operator = model.model.layers[0]
        for name in path.split("."):
            operator = getattr(operator, name)
        assert isinstance(operator, Primitive)
        assert operator.in_strategy[0][:2] == num_parts(step.takes, mesh, sequence_parallel), path
        if step.partial:  # the sum goes over what splits the columns that it takes
            assert operator.in_strategy[1] == (1, mesh.tp)
            scattered = operator.attrs.get("out_strategy")
            assert scattered == (((8, 1),) if sequence_parallel else None)


def test_collectives_follow_from_the_splits():
    steps = block_steps("attention")
    norm, projection, heads, out, add = steps
    for mesh, sequence_parallel, expected in (
        (Mesh(dp=2, tp=2), True, ["AllGather", None, None, "ReduceScatter"]),
        (Mesh(dp=2, tp=2), False, [None, None, None, "AllReduce"]),
        (Mesh(dp=4), False, [None] * 4),
    ):
        pairs = ((norm, projection), (projection, heads), (heads, out), (out, add))
        assert [collective(*pair, mesh, sequence_parallel) for pair in pairs] == expected
    mesh = Mesh(dp=2, tp=2)
    assert [part_of(norm.takes, mesh, True, rank) for rank in range(4)] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [part_of(heads.takes, mesh, True, rank) for rank in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("num_stages", [1, 2, 4, 5])
@pytest.mark.parametrize("backward_time", [1, 2, 3])
def test_the_schedule_is_a_schedule(num_stages, backward_time):
    for num_micro in range(num_stages, 10):
        schedule = one_forward_one_backward(num_stages, num_micro, backward_time)
        at = {(work.stage, work.kind, work.micro): work for work in schedule}
        assert len(at) == len(schedule) == 2 * num_stages * num_micro
        for stage in range(num_stages):
            own = sorted((work for work in schedule if work.stage == stage), key=lambda work: work.start)
            assert all(a.end <= b.start for a, b in pairwise(own))  # one pass at a time
            kept = 0
            for work in own:  # no stage keeps the activations of more micro-batches than there are stages behind it
                kept += 1 if work.kind == FORWARD else -1
                assert 0 <= kept <= num_stages - stage
        for micro in range(num_micro):
            way = [at[s, FORWARD, micro] for s in range(num_stages)]
            way += [at[s, BACKWARD, micro] for s in reversed(range(num_stages))]
            assert all(a.end <= b.start for a, b in pairwise(way))
        bubble = (num_stages - 1) / (num_micro + num_stages - 1)
        assert idle_fraction(schedule) == pytest.approx(bubble, abs=1e-12)


@pytest.mark.parametrize(("tied", "head"), [(True, "tied head"), (False, "head")])
def test_stages_hold_every_layer(tied, head):
    config = ModelConfig(64, 32, 64, 4, 4, 2, tie_word_embeddings=tied)
    layout = ModelLayout(config, Mesh(pp=2), stage_layers=(3, 1))
    assert stage_contents(layout, 0) == ["embedding", "layers 0 to 2"]
    assert stage_contents(layout, 1) == ["layer 3", "last norm", head]
    assert stage_contents(ModelLayout(config, Mesh()), 0) == ["embedding", "layers 0 to 3", "last norm", head]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "3"), ([0, 2], "0·2"), ([0, 1, 2, 3], "0…3"), ([1, 3, 5, 7], "1·3…7"), ([4, 5, 6], "4·5·6")],
)
def test_ranks_in_few_words(ranks, text):
    assert ranks_text(ranks) == text


def test_small_boxes_have_no_numbers(tmp_path):
    """A picture of many micro-batches still fits its page."""
    assert draw(tmp_path, f"{PARALLEL}micro_batch_num", "64") == 0
    found = words(tmp_path / "schedule.svg")
    assert "63" not in found
    assert "Time. Idle: 1.5% = (2 − 1) / (64 + 2 − 1)" in found


def test_the_page_names_every_layout_that_is_compared():
    cases = (REPOSITORY / "tests" / "helpers" / "layout_cases.py").read_text(encoding="utf-8")
    names = re.findall(r'^ +Case\("(.+?)"', cases, re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in PAGE] == []
