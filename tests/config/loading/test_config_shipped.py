import math
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from r1parallel.config.checks import check_config
from r1parallel.config.layout_checks import check_sequence_parallel
from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS, load_config
from r1parallel.config.model import ModelConfig, load_model_config

ROOT = Path(__file__).resolve().parents[3] / "model_configs"
# Numbers of parameters of the published checkpoints, a tied head counted once.
PUBLISHED = {
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
}
SMOLLM2_PUBLISHED = 134_515_008
WORLD_SIZES = {"qwen2_5_3b": 8, "qwen2_5_7b": 8, "qwen2_5_14b": 8, "qwen2_5_32b": 16, "qwen2_5_72b": 1024}
FROM_THE_COMMAND_LINE = {
    "sft": (SFT_SECTIONS, ["sft_config.dataset_file", "sft_config.tokenizer_dir"]),
    "grpo": (GRPO_SECTIONS, ["rl_config.dataset_file", "rl_config.tokenizer_dir", "actor_config.load"]),
    "predict": (PREDICT_SECTIONS, ["generate_config.load"]),
}
MODELS = sorted(path.name for path in ROOT.iterdir() if path.is_dir())


def parameters(config):
    return sum(math.prod(shape) for shape in config.parameter_shapes().values())


def load(model, kind):
    sections, given = FROM_THE_COMMAND_LINE[kind]
    return load_config(ROOT / model / f"{kind}.yaml", {key: "given" for key in given}, sections)


def test_the_shipped_models_are_those_we_name():
    assert set(MODELS) == set(PUBLISHED) | {"smollm2_135m", "tiny"}
    for model in MODELS:
        names = {path.name for path in (ROOT / model).iterdir()}
        assert names - {"r1.yaml"} == {"model.yaml", "sft.yaml", "grpo.yaml", "predict.yaml"}


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_qwen_has_as_many_parameters_as_published(model):
    assert parameters(load_model_config(ROOT / model)) == PUBLISHED[model]


def test_smollm2_differs_from_a_llama_by_its_biases_alone():
    config = load_model_config(ROOT / "smollm2_135m")
    biases = config.num_layers * (config.hidden_size + 2 * config.kv_size)
    assert parameters(config) - biases == SMOLLM2_PUBLISHED


@pytest.mark.parametrize("model", MODELS)
def test_model_yaml_states_every_size_and_nothing_else(model):
    written = yaml.safe_load((ROOT / model / "model.yaml").read_text(encoding="utf-8"))
    assert list(written) == [field.name for field in fields(ModelConfig)]


@pytest.mark.parametrize("kind", list(FROM_THE_COMMAND_LINE))
@pytest.mark.parametrize("model", MODELS)
def test_shipped_run_passes_every_check(model, kind):
    config = load(model, kind)
    fused = config.context.device_target == "Ascend"
    assert config.context.compute_dtype == ("bfloat16" if fused else "float32")
    main = config.generate_config if kind == "predict" else config.actor_config
    layout = main.parallel_config
    world_size = layout.data_parallel * layout.model_parallel * layout.pipeline_stage
    check_config(config, FROM_THE_COMMAND_LINE[kind][0], world_size)
    assert Path(main.model_config) == ROOT / model / "model.yaml"
    if kind != "predict":
        assert world_size == WORLD_SIZES.get(model, 1)
    first_line = (ROOT / model / f"{kind}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert ("one process" if world_size == 1 else f"{world_size} devices") in first_line


@pytest.mark.parametrize("model", MODELS)
def test_shipped_predict_divides_the_model(model):
    tp = load(model, "predict").generate_config.parallel_config.model_parallel
    sizes = load_model_config(ROOT / model)
    for size in (sizes.num_heads, sizes.num_kv_heads, sizes.intermediate_size, sizes.vocab_size):
        assert size % tp == 0


@pytest.mark.parametrize("model", MODELS)
def test_shipped_grpo_can_split_its_activations(model):
    config = load(model, "grpo")
    slots = config.generate_config.max_prompt_length + config.generate_config.sampling_config.max_tokens
    check_sequence_parallel(config.actor_config.parallel_config, config.rl_config.batch_size, slots)


@pytest.mark.parametrize("model", MODELS)
def test_shipped_grpo_fits_the_positions_and_its_files_stay_apart(model):
    config = load(model, "grpo")
    assert config.rl_config.seq_length <= load_model_config(ROOT / model).max_position_embeddings
    assert config.rl_config.output_dir == f"runs/grpo_{model}"
    assert load(model, "sft").sft_config.output_dir == f"runs/sft_{model}"
