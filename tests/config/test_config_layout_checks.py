import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.layout_checks import (
    MODEL_SECTIONS,
    check_parallel_config,
    check_parallel_configs,
    check_sequence_parallel,
    num_processes,
    parallel_config,
)
from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS
from r1parallel.config.schema import ParallelConfig, RunConfig
from r1parallel.config.values import from_text, from_yaml
from r1parallel.errors import UserError

SIZES = st.integers(1, 8)


def run(actor=(1, 1, 1), ref=(1, 1, 1), generate=(1, 1, 1), micro=1):
    """A configuration with these layouts, each dp, tp, pp."""
    config = RunConfig()
    for section, (dp, tp, pp) in zip(MODEL_SECTIONS.values(), (actor, ref, generate), strict=True):
        vars(config)[section].parallel_config = ParallelConfig(dp, tp, pp)
    config.actor_config.parallel_config.micro_batch_num = micro
    return config


def refusal(check, *arguments):
    with pytest.raises(UserError) as error:
        check(*arguments)
    return str(error.value)


def test_every_process_holds_a_part_of_every_model():
    config = run(actor=(2, 1, 2), ref=(2, 2, 1), generate=(4, 1, 1), micro=2)
    check_parallel_configs(config, GRPO_SECTIONS, 4)
    config.generate_config.parallel_config.data_parallel = 2
    assert refusal(check_parallel_configs, config, GRPO_SECTIONS, 4) == (
        "generate_config.parallel_config: data_parallel 2 * model_parallel 1 * pipeline_stage 1 = 2, but the number of "
        "processes is 4; start 2 processes or set data_parallel to 4"
    )


def test_only_the_models_of_a_command_are_looked_at():
    check_parallel_configs(run(actor=(2, 2, 1)), SFT_SECTIONS, 4)
    check_parallel_configs(run(actor=(2, 2, 1)), PREDICT_SECTIONS, 1)
    config = run(actor=(4, 1, 1), generate=(4, 1, 1))
    assert "ref_config.parallel_config: " in refusal(check_parallel_configs, config, GRPO_SECTIONS, 4)
    config.rl_config.beta = 0.0
    check_parallel_configs(config, GRPO_SECTIONS, 4)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(1, 64))
def test_the_advice_on_data_parallel_works(dp, tp, pp, world_size):
    config = run(actor=(dp, tp, pp), micro=pp)
    layout = config.actor_config.parallel_config
    if num_processes(layout) == world_size:
        check_parallel_config(config, "actor", world_size)
        return
    message = refusal(check_parallel_config, config, "actor", world_size)
    assert f"start {dp * tp * pp} processes or " in message
    if world_size % (tp * pp):
        assert f"({tp * pp}) so that it divides {world_size}" in message
    else:
        layout.data_parallel = int(message.rsplit(" ", 1)[1])
        check_parallel_config(config, "actor", world_size)


@pytest.mark.parametrize("model", ["ref", "generate"])
@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("pipeline_stage", 2, "1"),
        ("use_seq_parallel", True, "false"),
        ("micro_batch_num", 4, "1"),
        ("micro_batch_interleave_num", 2, "1"),
    ],
)
def test_only_the_actor_has_pipelines_and_micro_batches(model, name, value, needed):
    config = RunConfig()
    key, layout = parallel_config(config, model)
    setattr(layout, name, value)
    message = refusal(check_parallel_config, config, model, num_processes(layout))
    assert message.startswith(f"{key}.{name} is {str(value).lower()}; only the actor")
    assert message.endswith(f"it must be {needed}")


def test_ascend_devices_come_in_certain_numbers():
    config = run(generate=(1, 3, 1))
    check_parallel_config(config, "generate", 3)
    config.context.device_target = "Ascend"
    assert refusal(check_parallel_config, config, "generate", 3) == (
        "the number of processes is 3; MindSpore takes 1, 2, 4 or a multiple of 8 Ascend devices: change "
        "generate_config.parallel_config, or set context.device_target CPU, where any number works"
    )
    for dp in (1, 2, 4, 8, 24):
        config.generate_config.parallel_config = ParallelConfig(dp, 1, 1)
        check_parallel_config(config, "generate", dp)


def test_pipeline_needs_a_micro_batch_for_every_stage():
    check_parallel_config(run(actor=(1, 1, 4), micro=4), "actor", 4)
    message = refusal(check_parallel_config, run(actor=(1, 1, 4), micro=2), "actor", 4)
    assert "micro_batch_num is 2; a pipeline of 4 stages needs at least 4" in message


@settings(deadline=None)
@given(SIZES, st.integers(1, 50), SIZES, st.sampled_from([1, 2]))
def test_activations_are_shared_out_evenly_or_refused(batch_size, slots, tp, parts):
    layout = ParallelConfig(model_parallel=tp, micro_batch_interleave_num=parts, use_seq_parallel=True)
    if batch_size // parts * slots % tp == 0:
        check_sequence_parallel(layout, batch_size, slots)
        return
    message = refusal(check_sequence_parallel, layout, batch_size, slots)
    assert f"no multiple of model_parallel {tp}" in message
    works = int(message.split("; rows of ")[1].split(" ")[0])
    assert works >= slots
    check_sequence_parallel(layout, batch_size, works)
    layout.use_seq_parallel = False
    check_sequence_parallel(layout, batch_size, slots)


def test_one_number_stands_for_a_list_of_one():
    assert from_yaml(0, list[int]) == from_text("0", list[int]) == [0]
    for value in (True, 1.5, "0"):
        with pytest.raises(ValueError, match="no list"):
            from_yaml(value, list[int])
