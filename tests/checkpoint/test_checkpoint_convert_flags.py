"""Every flag of convert_weight: what it writes, and the one line that refuses what cannot be meant."""

import json

import numpy as np
import pytest
from helpers.stored import read_all
from outcomes import one_line, refused, tree, values

from r1parallel.checkpoint.formats.dtypes import DTYPES, dtype_name
from r1parallel.checkpoint.formats.manifest import SUFFIX
from r1parallel.checkpoint.formats.tensor_file import open_checkpoint
from r1parallel.checkpoint.reading import windows
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.checkpoint.tables.names import concatenated_tensors, group_rows, to_hf, translate
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_merged_strategy, write_strategy_files
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout


@pytest.fixture(autouse=True)
def many_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 100)


@pytest.fixture
def convert(tool):
    main = tool("convert_weight")
    return lambda *flags: main([str(flag) for flag in flags])


@pytest.fixture
def source(make_folder, config):
    """Hugging Face's names, bf16."""
    return make_folder("hf", config, dtype="BF16")


def concatenated(config: ModelConfig, arrays):
    """What a concatenated checkpoint of ours holds, by plain numpy."""
    result = {}
    for name, parts in concatenated_tensors(arrays).items():
        if len(parts) > 1:
            rows = zip(parts, group_rows(config, name), strict=True)
            blocks = [arrays[part].reshape(-1, count, *arrays[part].shape[1:]) for part, count in rows]
            result[name] = np.concatenate(blocks, axis=1).reshape(-1, *arrays[parts[0]].shape[1:])
        else:
            result[name] = arrays[name]
    return result


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hop", [["mcore"], ["concatenated"], ["mcore", "concatenated"], ["concatenated", "mcore"]])
def test_all_names_there_and_back(tmp_path, make_folder, convert, config, tied_config, tied, hop):
    config = tied_config if tied else config
    first = make_folder("hf", config, dtype="BF16")
    flags = {"ours": [], "mcore": ["--names", "mcore"], "concatenated": ["--qkv_concat"], "hf": ["--reversed"]}
    for number, names in enumerate(["ours", *hop, "ours", "hf"]):
        previous = first if number == 0 else tmp_path / str(number - 1)
        convert("--input_path", previous, "--output_path", tmp_path / str(number), *flags[names])
    arrays = read_all(tmp_path / "0")
    assert set(arrays) == set(config.parameter_shapes())
    for number, names in enumerate(hop, start=1):
        expected = arrays if names == "mcore" else concatenated(config, arrays)
        named = {translate(name, "ours", "mcore") if names == "mcore" else name: a for name, a in expected.items()}
        assert values(tmp_path / str(number)) == {name: (a.dtype.name, a.tobytes()) for name, a in named.items()}
    assert values(tmp_path / str(number + 1)) == values(tmp_path / "0")
    assert values(tmp_path / str(number + 2)) == values(first)
    assert (tmp_path / str(number + 2) / "tokenizer.json").read_text() == '{"made": "up"}'


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
@pytest.mark.parametrize("dtype", [[], ["--dtype", "fp16"]])
def test_straight_to_the_shards_of_a_layout(tmp_path, make_folder, convert, config, kind, dtype):
    source = make_folder("hf", config, dtype="F32", max_shard_size=500)
    layout = ModelLayout(config, Mesh(dp=2, tp=2, pp=2), True)
    write_merged_strategy(layout, tmp_path / "merged.ckpt")
    write_strategy_files(layout, tmp_path / "ranks")
    for strategy, workers in (("merged.ckpt", 1), ("ranks", 3)):
        convert(
            *("--input_path", source, "--output_path", tmp_path / f"cut-by-{strategy.removesuffix('.ckpt')}", *dtype),
            *("--dst_strategy", tmp_path / strategy, "--world_size", 8, "--prefix", "p_"),
            *("--output_format", kind, "--transform_process_num", workers),
        )
    convert("--input_path", source, "--output_path", tmp_path / "ours", *dtype)
    reshard_checkpoint(tmp_path / "ours", tmp_path / "by-two", None, layout, "p_", kind)
    assert tree(tmp_path / "cut-by-merged") == tree(tmp_path / "by-two") == tree(tmp_path / "cut-by-ranks")
    assert (tmp_path / "by-two" / "rank_7" / f"p_7.{kind}").is_file()
    convert("--input_path", tmp_path / "by-two", "--output_path", tmp_path / "back", "--reversed", "--dtype", "fp32")
    if not dtype:
        assert values(tmp_path / "back") == values(source)


def test_concatenated_tensors_straight_to_shards(tmp_path, convert, source, config):
    """By a strategy of a model with concatenated tensors, as mindformers compiles it."""
    convert("--input_path", source, "--output_path", tmp_path / "full", "--qkv_concat", "True")
    arrays = read_all(tmp_path / "full")
    ours = ModelLayout(config, Mesh(tp=2))
    table = {name: ours.stages[0].get(name, TensorLayout((2,), (0, -1)[: arrays[name].ndim])) for name in arrays}
    assert sum("w_qkv" in name for name in table) == 2 * config.num_layers
    write_merged_strategy(StageLayouts(2, (table,)), tmp_path / "s.ckpt")
    convert(
        "--input_path", source, "--output_path", tmp_path / "cut", "--qkv_concat", "--dst_strategy", tmp_path / "s.ckpt"
    )
    for rank in range(2):
        found = read_all(tmp_path / "cut" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
        assert set(found) == set(arrays)
        for name, part in found.items():
            assert part.tobytes() == arrays[name][table[name].slices(arrays[name].shape, rank)].tobytes()
    # Half of the concatenated rows are whole heads: the same as concatenating what a rank holds.
    cut = read_all(tmp_path / "cut" / "rank_1" / "checkpoint_1.safetensors")
    full = read_all(source)
    half = {name: full[to_hf(name)][ours.slices(name, 1)] for name in config.parameter_shapes()}
    assert all(cut[name].tobytes() == array.tobytes() for name, array in concatenated(config, half).items())
    message = one_line(
        convert, "--input_path", source, "--output_path", tmp_path / "x", "--dst_strategy", tmp_path / "s.ckpt"
    )
    assert "wq.weight is in no stage of --dst_strategy" in message
    assert not (tmp_path / "x").exists()


def test_qkv_concat_takes_true_and_false_and_no_more(tmp_path, convert, source):
    for number, flags in enumerate(([], ["--qkv_concat", "False"], ["--qkv_concat"], ["--qkv_concat", "true"])):
        convert("--input_path", source, "--output_path", tmp_path / str(number), *flags)
    plain, told_not_to, short, long = (values(tmp_path / str(number)) for number in range(4))
    assert plain == told_not_to
    assert short == long
    assert any("w_gate_hidden" in name for name in short)
    flags = ("--input_path", source, "--output_path", tmp_path / "x")
    assert "yes: is neither True nor False" in one_line(convert, *flags, "--qkv_concat", "yes")
    for other in (["--reversed"], ["--names", "mcore"]):
        assert one_line(convert, *flags, "--qkv_concat", *other).startswith("--qkv_concat: only mindformers' llama")
    assert not (tmp_path / "x").exists()


def test_parts_of_several_types_are_not_concatenated(tmp_path, make_folder, convert, config):
    source = make_folder("hf", config)
    tensors = read_all(source)
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].astype(np.float16)
    write_checkpoint(source, [(name, a.shape, dtype_name(a.dtype), a) for name, a in tensors.items()])
    flags = ("--input_path", source, "--output_path", tmp_path / "x", "--qkv_concat")
    assert "model.layers.1.attention.w_qkv.weight: its parts are stored in several dtypes" in one_line(convert, *flags)
    convert(*flags, "--dtype", "fp32")
    assert {entry.dtype for entry in open_checkpoint(tmp_path / "x").values()} == {"F32"}


def test_the_commands_of_mindformers(tmp_path, monkeypatch, convert, source):
    """Those of its root script and of research/qwen2_5, which name the paths otherwise, and start where the user is."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    convert("--model", "qwen2_5", "--input_path", source, "--output_path", tmp_path / "root", "--dtype", "bf16")
    convert("--torch_ckpt_dir", source, "--mindspore_ckpt_path", "x.ckpt", "--dtype", "bf16", "--qkv_concat", "False")
    assert values(tmp_path / "here" / "x.ckpt") == values(tmp_path / "root")
    convert("--pre_ckpt_path", "x.ckpt", "--output_path", "q/y.ckpt", "--qkv_concat", "True", "--config_path", source)
    assert any("w_qkv" in name for name in values(tmp_path / "here" / "q" / "y.ckpt"))
    back = ("--reversed", "--torch_ckpt_path", tmp_path / "back", "--config_path", source / "config.json")
    convert(*back, "--mindspore_ckpt_path", "x.ckpt")
    convert("--model", "qwen2", "--reversed", "--input_path", "q/y.ckpt", "--output_path", tmp_path / "back2")
    assert values(tmp_path / "back") == values(tmp_path / "back2") == values(source)
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        *("config.json", "notes.txt", "q", "tokenizer.json", "x.ckpt", f"x.ckpt{SUFFIX}")
    ]
    assert (tmp_path / "here" / "notes.txt").read_text() == "mine"


def test_a_configuration_elsewhere(tmp_path, convert, source, config):
    """Where the input has none, or another one than is meant."""
    settings = json.loads((source / "config.json").read_text())
    (tmp_path / "elsewhere").mkdir()
    (source / "config.json").rename(tmp_path / "elsewhere" / "config.json")
    flags = ("--input_path", source, "--output_path", tmp_path / "ours")
    assert f"{source / 'model.yaml'}: no such model configuration" in one_line(convert, *flags)
    convert(*flags, "--config_path", tmp_path / "elsewhere" / "config.json")
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == settings
    (source / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    more = ("--input_path", source, "--output_path", tmp_path / "again")
    assert "model.layers.2.self_attn.q_proj.weight (8, 8) is missing" in one_line(convert, *more)
    convert(*more, "--config_path", tmp_path / "elsewhere")
    assert tree(tmp_path / "again") == tree(tmp_path / "ours")


@pytest.mark.parametrize(("dtype", "stored"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_dtypes(tmp_path, capsys, convert, source, dtype, stored):
    convert("--input_path", source, "--output_path", tmp_path / "x", "--dtype", dtype)
    original = read_all(source)
    for name, array in read_all(tmp_path / "x").items():
        assert array.tobytes() == original[to_hf(name)].astype(DTYPES[stored]).tobytes()
        assert array.dtype == DTYPES[stored]
    flags = ("--input_path", source, "--output_path", tmp_path / "y", "--dtype", "float32")
    assert "--dtype: invalid choice: 'float32'" in refused(capsys, convert, *flags)


def test_contradictions(tmp_path, capsys, convert, source, config, tied_config):
    write_merged_strategy(ModelLayout(config, Mesh(tp=2)), tmp_path / "s.ckpt")
    write_merged_strategy(ModelLayout(tied_config, Mesh(tp=2)), tmp_path / "tied.ckpt")
    both = ("--input_path", source, "--output_path", tmp_path / "x")
    cases = {
        ("--input_path", source): "--output_path is missing; give a file or a folder",
        ("--output_path", tmp_path / "x"): "--input_path is missing; give a file or a folder",
        (*both, "--mindspore_ckpt_path", "y.ckpt"): "--mindspore_ckpt_path: is the --output_path here",
        (*both, "--reversed", "--mindspore_ckpt_path", "y.ckpt"): "--mindspore_ckpt_path: is the --input_path here",
        (*both, "--transform_process_num", "0"): "--transform_process_num 0: must be a whole number, at least 1",
        (*both, "--is_lora", "no"): "no: is neither True nor False",
        (*both, "--is_lora", "True"): "--is_lora True: adapters are not supported",
        (*both, "--reversed", "--names", "mcore"): "--reversed asks for Hugging Face's names, --names for mcore",
        (*both, "--dst_strategy", tmp_path / "s.ckpt", "--world_size", 4): "--world_size 4: .* is for 2 ranks",
        (*both, "--dst_strategy", tmp_path / "none.ckpt"): "none.ckpt: no such strategy file",
        (*both, "--dst_strategy", tmp_path / "tied.ckpt"): "lm_head.weight is in no stage of --dst_strategy",
        (*both, "--reversed", "--dst_strategy", tmp_path / "s.ckpt"): "is in no stage of --dst_strategy",
        (
            *both[:2],
            "--output_path",
            tmp_path / "x.ckpt",
            "--dst_strategy",
            tmp_path / "s.ckpt",
        ): "ranks cannot go into",
        (*both[:2], "--output_path", source): "is the same folder as what is read",
        (*both[:2], "--output_path", source / "other.ckpt"): "is the same folder as what is read",
        ("--input_path", tmp_path / "none", *both[2:]): "none: no such checkpoint",
        (*both, "--config_path", tmp_path / "none.json"): "none.json: no such model configuration",
    }
    for flags, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            convert(*flags)
        assert "\n" not in str(error.value)
    assert "--model: invalid choice: 'glm4'" in refused(capsys, convert, *both, "--model", "glm4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "s.ckpt", "tied.ckpt"]
    convert(*both, "--is_lora", "False", "--names", "ours", "--dst_strategy", "None")
    assert set(values(tmp_path / "x")) == set(config.parameter_shapes())
