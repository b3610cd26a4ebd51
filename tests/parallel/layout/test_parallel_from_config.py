from dataclasses import replace
from pathlib import Path

import pytest

from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import ParallelConfig, RunConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.from_config import layout_before_run, layout_from_config
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

CONFIGS = Path(__file__).parents[3] / "model_configs"
SIZES = ModelConfig(vocab_size=48, hidden_size=32, intermediate_size=40, num_layers=5, num_heads=8, num_kv_heads=4)


def run(dp=1, tp=1, pp=1, section="actor_config"):
    config = RunConfig()
    vars(config)[section].parallel_config = ParallelConfig(dp, tp, pp, micro_batch_num=pp)
    return config


def refusal(config, model="actor", world_size=None, sizes=SIZES):
    layout = {"actor": config.actor_config, "ref": config.ref_config, "generate": config.generate_config}[model]
    parallel = layout.parallel_config
    if world_size is None:
        world_size = parallel.data_parallel * parallel.model_parallel * parallel.pipeline_stage
    with pytest.raises(UserError) as error:
        layout_from_config(config, sizes, model, world_size)
    return str(error.value)


def test_the_actor_has_stages_offsets_and_optimizer_parallel():
    config = run(dp=2, tp=2, pp=2)
    config.actor_config.enable_parallel_optimizer = True
    config.actor_config.offset = [0, 1]
    layout = layout_from_config(config, SIZES, "actor", 8)
    expected = ModelLayout(SIZES, Mesh(dp=2, pp=2, tp=2), True, (2, 3))
    assert (layout.mesh, layout.parameters, layout.stages) == (expected.mesh, expected.parameters, expected.stages)
    config.actor_config.offset = [0]
    assert layout_from_config(config, SIZES, "actor", 8).stages == ModelLayout(SIZES, Mesh(2, 2, 2), True).stages


@pytest.mark.parametrize(("model", "section"), [("ref", "ref_config"), ("generate", "generate_config")])
def test_the_others_have_neither(model, section):
    config = run(dp=2, tp=4, section=section)
    config.actor_config.enable_parallel_optimizer = True
    layout = layout_from_config(config, SIZES, model, 8)
    assert layout.stages == ModelLayout(SIZES, Mesh(dp=2, tp=4)).stages


@pytest.mark.parametrize(
    ("model", "section"), [("actor", "actor_config"), ("ref", "ref_config"), ("generate", "generate_config")]
)
def test_errors_name_the_key_and_what_works(model, section):
    message = refusal(run(tp=3, section=section), model)
    assert message.startswith(f"{section}.parallel_config.model_parallel is 3, which does not divide")
    assert message.endswith("; 1, 2, 4 would do")
    message = refusal(run(dp=2, section=section), model, world_size=4)
    assert message.startswith(f"{section}.parallel_config: ")
    assert message.endswith("set data_parallel to 4")


def test_stages_and_layers_must_exist():
    assert "actor_config.parallel_config.pipeline_stage is 6, more than the model's 5 layers" in refusal(run(pp=6))
    config = run()
    config.actor_config.recompute_config.recompute_layers = [0, 5, -1]
    assert "recompute_layers has 5, -1; the model's layers are 0 to 4" in refusal(config)
    config.actor_config.recompute_config.recompute_layers = [0, 4]
    assert layout_from_config(config, SIZES, "actor", 1).world_size == 1


def test_before_a_run_only_the_model_configuration_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"actor_config\.model_config is empty"):
        layout_before_run(RunConfig(), "actor", None)
    config = run(dp=2, tp=2)
    config.actor_config.model_config = str(CONFIGS / "tiny" / "model.yaml")
    assert layout_before_run(config, "actor", None).mesh == Mesh(dp=2, tp=2)
    with pytest.raises(UserError, match=r"ref_config.* number of processes is 4"):
        layout_before_run(config, "ref", None)
    with pytest.raises(UserError, match=r"actor_config.* number of processes is 8"):
        layout_before_run(config, "actor", 8)
    config.actor_config.parallel_config.data_parallel = 0
    with pytest.raises(UserError, match=r"data_parallel is 0; it must be at least 1"):
        layout_before_run(config, "actor", None)


@pytest.mark.parametrize("model", ["actor", "ref", "generate"])
@pytest.mark.parametrize("shipped", sorted(path.parent.name for path in CONFIGS.glob("*/grpo.yaml")))
def test_every_shipped_run_has_a_layout_for_each_model(shipped, model):
    config = load_config(CONFIGS / shipped / "grpo.yaml", {}, GRPO_SECTIONS)
    layout = layout_before_run(config, model, None)
    actor = config.actor_config.parallel_config
    assert layout.world_size == actor.data_parallel * actor.model_parallel * actor.pipeline_stage
    assert layout.config == load_model_config(CONFIGS / shipped)
    assert len(layout.stages) == (actor.pipeline_stage if model == "actor" else 1)


def test_smollm2_can_be_split_in_three():
    sizes = load_model_config(CONFIGS / "smollm2_135m")
    assert layout_from_config(run(tp=3), sizes, "actor", 3).local_shape("model.layers.0.attention.wk.weight", 2) == (
        64,
        576,
    )
    assert refusal(run(tp=2), sizes=sizes).endswith("; 1, 3 would do")
    assert refusal(run(tp=2), sizes=replace(sizes, num_heads=8, num_kv_heads=1)).endswith("; 1 would do")
