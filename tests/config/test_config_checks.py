from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.checks import check_config, check_paths
from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS, load_config
from r1parallel.config.presets import PRESETS
from r1parallel.errors import UserError

NEEDED = {
    GRPO_SECTIONS: {
        "rl_config.dataset_file": "d",
        "rl_config.tokenizer_dir": "t",
        "actor_config.load": "c",
        "actor_config.model_config": "m",
    },
    SFT_SECTIONS: {
        "sft_config.dataset_file": "d",
        "sft_config.tokenizer_dir": "t",
        "actor_config.model_config": "m",
    },
    PREDICT_SECTIONS: {"generate_config.load": "c", "generate_config.model_config": "m"},
}


def check(changes, sections=GRPO_SECTIONS, world_size=1):
    check_config(load_config(None, {**NEEDED[sections], **changes}, sections), sections, world_size)


def refusal(changes, sections=GRPO_SECTIONS, world_size=1):
    with pytest.raises(UserError) as error:
        check(changes, sections, world_size)
    return str(error.value)


@pytest.mark.parametrize("sections", [GRPO_SECTIONS, SFT_SECTIONS, PREDICT_SECTIONS])
def test_the_defaults_pass_and_each_needed_key_is_needed(sections):
    check({}, sections)
    for key in NEEDED[sections]:
        assert f"{key} is empty" in refusal({key: ""}, sections)


@pytest.mark.parametrize("sections", [GRPO_SECTIONS, SFT_SECTIONS, PREDICT_SECTIONS])
def test_the_cpu_does_not_compute_in_bf16(sections):
    assert refusal({"context.compute_dtype": "bfloat16"}, sections) == (
        "context.compute_dtype is bfloat16, which the CPU cannot compute in; "
        "set it to float32, or context.device_target to Ascend"
    )
    for compute_dtype in ("float32", "bfloat16"):
        check({"context.compute_dtype": compute_dtype, "context.device_target": "Ascend"}, sections)


def test_message_of_a_missing_key_names_the_flag():
    message = refusal({"actor_config.load": ""})
    assert message == "actor_config.load is empty; set it in the YAML file or with --actor_checkpoint_path"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rl_config.batch_size", "0", "is 0; it must be at least 1"),
        ("rl_config.seed", "4294967296", "is 4294967296; it must be at most 4294967295"),
        ("rl_config.epochs", "-1", "at least 1"),
        ("rl_config.max_steps", "-1", "0 or more"),
        ("rl_config.beta", "-0.1", "0 or more"),
        ("rl_config.rollout_gap_limit", "-0.5", "0 or more, or -1"),
        ("rl_config.epsilon_high", "-0.1", "0 or more"),
        ("rl_config.epsilon_low", "1.5", "at most 1"),
        ("actor_config.lr_schedule.lr", "0", "above 0"),
        ("actor_config.optimizer.adam_beta1", "1", "below 1"),
        ("actor_config.optimizer.adam_beta2", "-0.1", "0 or more"),
        ("monitor_config.host_max_memory_threshold", "1.5", "at most 1"),
        ("ref_config.ref_model_batch_size", "0", "at least 1"),
        ("actor_config.lr_schedule.lr_decay_style", "step", "is 'step'; known: cosine, linear, constant"),
        ("actor_config.optimizer.type", "sgd", "is 'sgd'; known: adamw, momentum"),
        ("context.device_target", "GPU", "is 'GPU'; known: CPU, Ascend"),
        ("context.compute_dtype", "bf16", "is 'bf16'; known: float32, bfloat16"),
        ("actor_config.parallel_config.model_parallel", "0", "it must be at least 1"),
        ("generate_config.parallel_config.micro_batch_num", "-2", "it must be at least 1"),
        ("ref_config.parallel_config.micro_batch_interleave_num", "0", "it must be at least 1"),
        ("context.wait_limit", "0", "above 0"),
        ("actor_config.lr_schedule.warmup_step", "200001", "more than decay_steps 200000"),
        ("actor_config.lr_schedule.min_lr", "1", "more than lr 5e-07"),
        ("reward_config.verifier_weight", "1,2,3", "has 3 numbers for 2 functions (accuracy_reward, format_reward)"),
        ("reward_config.verifier_function", "", "name at least one"),
        ("generate_config.sampling_config.eos_token_id", "3,-1", "ids start at 0"),
        ("generate_config.sampling_config.pad_token_id", "-2", "or -1 for the tokenizer's"),
        ("generate_config.sampling_config.min_tokens", "513", "more than max_tokens 512"),
        ("rl_config.num_generations", "1", "it must be at least 2"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(key, value, words):
    message = refusal({key: value})
    assert message.startswith(f"{key} is") or "verifier_weight has" in message
    assert words in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", "0.9"), ("top_k", "20"), ("repetition_penalty", "1.05"), ("min_tokens", "2")],
)
def test_training_needs_samples_of_the_policy_or_a_correction(name, value):
    change = {f"generate_config.sampling_config.{name}": value}
    message = refusal(change)
    assert message.startswith(f"generate_config.sampling_config.{name} is {value}: training on samples that were not")
    assert "biases the ratio" in message and "rl_config.rollout_correction sequence_mask" in message
    for correction in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        check({**change, "rl_config.rollout_correction": correction})
    check(change, PREDICT_SECTIONS)


def test_sections_of_other_commands_are_not_looked_at():
    config = load_config(None, NEEDED[SFT_SECTIONS], SFT_SECTIONS)
    config.rl_config.batch_size = 0
    config.generate_config.sampling_config.temperature = -1.0
    check_config(config, SFT_SECTIONS, 1)


@pytest.mark.parametrize("sections", [GRPO_SECTIONS, SFT_SECTIONS])
def test_interleaved_parts_must_divide_the_rows(sections):
    section = "rl_config" if sections is GRPO_SECTIONS else "sft_config"
    parts = {"actor_config.parallel_config.micro_batch_interleave_num": "4", f"{section}.batch_size": "6"}
    message = refusal(parts, sections)
    assert f"micro_batch_interleave_num is 4, which does not divide {section}.batch_size 6; 3 or 6 would do" in message
    check({**parts, f"{section}.batch_size": "8"}, sections)


def test_recomputing_must_not_contradict_itself():
    keys = "actor_config.recompute_config"
    assert "exclude each other" in refusal({f"{keys}.recompute": "true", f"{keys}.select_recompute": "true"})
    assert "turn on recompute or select_recompute" in refusal({f"{keys}.recompute_layers": "0,1"})
    check({f"{keys}.recompute_layers": "0,1", f"{keys}.select_recompute": "true"})


def test_prompt_and_completion_must_fit_the_sequence():
    message = refusal({"rl_config.seq_length": "2559"})
    assert "2048 + sampling_config.max_tokens 512 = 2560" in message
    check({"rl_config.seq_length": "2560"})


def test_a_step_fills_at_least_one_training_batch():
    message = refusal({"rl_config.batch_size": "33"})
    assert "= 32 completions, fewer than the training batch: batch_size 33 * actor's data_parallel 1" in message
    assert "fewer than rl_config.mini_batch_size 33; lower it" in refusal({"rl_config.mini_batch_size": "33"})
    check({"rl_config.batch_size": "5", "rl_config.num_rollouts": "7"})  # the last rows are masked


def test_the_temperature_of_training_may_be_any_that_draws():
    key = "generate_config.sampling_config.temperature"
    for value in ("0.6", "1.0", "1.5"):
        check({key: value})
    for correction in ("none", "sequence_mask"):  # there is no distribution to correct for
        change = {key: "0", "rl_config.rollout_correction": correction}
        assert "draws the same completion every time; training needs it above 0" in refusal(change)
    check({key: "0"}, PREDICT_SECTIONS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rollout_correction": "token_mask", "rollout_correction_low": "2.0"},
            "not below rollout_correction_high",
        ),
        ({"dynamic_sampling": "true", "max_refills": "0"}, "max_refills is 0 with dynamic_sampling"),
        ({"dual_clip": "0.5"}, "dual_clip is 0.5; it must be above 1"),
        ({"dual_clip": "3.0", "policy_loss": "cispo"}, "dual_clip belongs to policy_loss clip, not cispo"),
        ({"policy_loss": "reinforce", "importance_level": "sequence"}, "policy_loss reinforce has no ratio"),
        ({"loss_constant": "5"}, "loss_constant belongs to loss_aggregation constant, not sequence_mean"),
        ({"kl_place": "reward", "kl_gradient": "k2"}, "belong to kl_place loss"),
        ({"kl_place": "reward", "kl_importance_weighted": "true"}, "belong to kl_place loss"),
        ({"kl_controller": "adaptive", "beta": "0"}, "kl_controller is adaptive, but beta is 0"),
        ({"overlong_buffer": "513"}, "overlong_buffer is 513, more than"),
        ({"pack_length": "100"}, "pack_length is given, but packing is off"),
        ({"num_generations": "1"}, "must be at least 2"),
    ],
)
def test_keys_of_the_algorithm_must_fit_together(changes, words):
    assert words in refusal({f"rl_config.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_correction_low": "1.0", "rollout_correction_high": "3.5"},
        {"max_refills": "0"},
        {"dual_clip": "3.0"},
        {"loss_aggregation": "constant", "loss_constant": "100"},
        {"kl_place": "reward", "kl_gradient": "k2", "beta": "0"},
        {"kl_controller": "adaptive"},
        {"overlong": "penalty", "overlong_buffer": "512"},
        {"packing": "true", "pack_length": "4096"},
        {"num_generations": "1", "algorithm": "reinforce_plus_plus"},
    ],
)
def test_keys_of_the_algorithm_that_go_together_pass(changes):
    check({f"rl_config.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(
    "changes",
    [{"algorithm": "rloo"}, {"advantage_scale": "group"}, {"dynamic_sampling": "true"}],
)
def test_one_completion_of_a_prompt_is_too_few_for_what_compares(changes):
    changes = {"algorithm": "reinforce_plus_plus", "num_generations": "1", **changes}
    assert "must be at least 2" in refusal({f"rl_config.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize("packing", ["false", "true"])
@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_passes_every_check(name, packing):
    check({"rl_config.algorithm": name, "rl_config.packing": packing})


def copies(**data_parallel):
    return {f"{section}.parallel_config.data_parallel": str(number) for section, number in data_parallel.items()}


def test_rows_of_a_batch_are_those_of_one_data_parallel_rank():
    layouts = copies(actor_config=4, ref_config=4, generate_config=4)  # 128 completions
    check({**layouts, "rl_config.batch_size": "32"}, world_size=4)
    message = refusal({**layouts, "rl_config.batch_size": "33"}, world_size=4)
    assert "generator's data_parallel 4" in message and "= 128 completions" in message
    assert "actor's data_parallel 4 * micro_batch_num 1 = 132" in message


SMALL = st.integers(1, 6)


@settings(deadline=None)
@given(rollouts=SMALL, chunk=SMALL, generations=st.integers(2, 6), batch=SMALL, micro=SMALL, forward=SMALL)
def test_batches_need_not_use_up_the_completions(rollouts, chunk, generations, batch, micro, forward):
    """Remainders are masked rows; only a batch that could never be full is refused."""
    changes = {
        "rl_config.num_rollouts": str(rollouts),
        "rl_config.chunk_size": str(chunk),
        "rl_config.num_generations": str(generations),
        "rl_config.batch_size": str(batch),
        "actor_config.parallel_config.micro_batch_num": str(micro),
        "ref_config.ref_model_batch_size": str(forward),
        "generate_config.infer_model_batch_size": str(forward),
    }
    if batch * micro <= rollouts * chunk * generations:
        check(changes)
    else:
        assert "fewer than the training batch" in refusal(changes)


def test_no_reference_no_rule_for_its_batch():
    check({"ref_config.ref_model_batch_size": "5", "rl_config.beta": "0"})


def test_paths_that_exist_pass(tmp_path):
    (tmp_path / "d").write_text("")
    (tmp_path / "m").write_text("")
    for folder in ("t", "c"):
        (tmp_path / folder).mkdir()
    for sections, needed in NEEDED.items():
        values = {key: str(tmp_path / name) for key, name in needed.items()}
        check_paths(load_config(None, values, sections), sections)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("rl_config.dataset_file", "file"),
        ("rl_config.tokenizer_dir", "folder"),
        ("actor_config.load", "file or folder"),
        ("actor_config.model_config", "file or folder"),
        ("ref_config.load", "file or folder"),
    ],
)
def test_missing_path_is_refused_by_key(tmp_path, key, kind):
    config = load_config(None, {key: str(tmp_path / "none")}, GRPO_SECTIONS)
    with pytest.raises(UserError) as error:
        check_paths(config, GRPO_SECTIONS)
    assert str(error.value).startswith(f"{key}: {attrgetter(key)(config)}: no such {kind};")


def test_folder_is_no_dataset_and_file_is_no_tokenizer_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for key, path in (("sft_config.eval_dataset_file", tmp_path), ("sft_config.tokenizer_dir", tmp_path / "file")):
        with pytest.raises(UserError, match=key):
            check_paths(load_config(None, {key: str(path)}, SFT_SECTIONS), SFT_SECTIONS)
