"""mindformers files: as --config of run_sft.py and as model_config of the models."""

import pytest
import yaml
from foreign_files import FILES, leaves, parse, refusal, with_section

from r1parallel.config.foreign.mindformers import KEYS as MINDFORMERS
from r1parallel.config.foreign.mindformers import SIZES
from r1parallel.config.loading.load import SFT_SECTIONS, sections_in
from r1parallel.config.schema import RunConfig

STEPS = ("--actor_config.lr_schedule.decay_steps", "100", "--actor_config.lr_schedule.warmup_step", "3")


def test_every_key_of_a_mindformers_file_has_one_line(capsys):
    names = list(leaves(yaml.safe_load((FILES / "finetune.yaml").read_text(encoding="utf-8"))))
    _, lines = parse(capsys, "--config", FILES / "finetune.yaml", *STEPS, sections=SFT_SECTIONS)
    groups = {name for name in MINDFORMERS if any(leaf.startswith(f"{name}.") for leaf in names)}
    for name in names:
        group = next((group for group in groups if name.startswith(f"{group}.")), name)
        found = [line for line in lines if line.startswith(f"note: {group} ")]
        assert len(found) == (0 if name in SIZES else 1), name
        assert group == name or name.rpartition(".")[2] in found[0]


def test_a_mindformers_file_trains(capsys):
    argv = ["--config", FILES / "finetune.yaml", "--run_mode", "finetune", "--train_data", "t.mindrecord"]
    config, lines = parse(capsys, *argv, "--use_parallel", "True", *STEPS, sections=SFT_SECTIONS)
    actor, sft = config.actor_config, config.sft_config
    assert actor.model_config == str(FILES / "finetune.yaml")
    assert (actor.load, actor.enable_parallel_optimizer) == ("model.ckpt", True)
    assert (actor.optimizer.adam_beta2, actor.optimizer.weight_decay, actor.optimizer.max_grad_norm) == (
        0.99,
        0.02,
        0.5,
    )
    assert (actor.lr_schedule.lr, actor.lr_schedule.min_lr, actor.lr_schedule.lr_decay_style) == (1e-6, 1e-7, "cosine")
    assert (actor.lr_schedule.decay_steps, actor.lr_schedule.warmup_step) == (100, 3)
    assert (sft.dataset_file, sft.output_dir, sft.epochs, sft.batch_size) == ("t.mindrecord", "./output", 2, 1)
    assert (sft.seed, sft.save_ckpt_interval, sft.save_max_ckpt_num) == (42, 500, 1)
    assert "note: --use_parallel True: no key here; the number of processes decides" in lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "finetune.yaml:"),
        ({"lr_schedule.warmup_ratio": ...}, "lr_schedule.total_steps is -1; how many updates a run has is not known"),
        ({"optimizer.type": "Lamb"}, "optimizer.type is Lamb: the optimizer is AdamW"),
        ({"optimizer.betas": [0.9]}, "optimizer.betas is [0.9]: give two numbers"),
        ({"lr_schedule.type": "CosineAnnealingWarmRestarts"}, "known schedules: CosineWithWarmUpLR"),
        ({"recompute_config.recompute": [7, 7]}, "give a number of layers for each of 1 pipeline stages"),
        ({"model.model_config.compute_dtype": "float16"}, "compute in float32 or bfloat16"),
        ({"layer_scale": True}, "every layer has the same learning rate"),
        ({"runner_config.epoch": 3}, "unknown key runner_config.epoch; did you mean runner_config.epochs?"),
        ({"zzzz": 3}, "unknown key zzzz; known: auto_trans_ckpt"),
    ],
)
def test_mindformers_values_without_counterpart_are_refused(tmp_path, changes, words):
    path = with_section(tmp_path, "finetune.yaml", "finetune.yaml", **changes)
    assert words in refusal("--config", path, sections=SFT_SECTIONS)


def test_schedules_of_mindformers(tmp_path, capsys):
    def schedule(**changes):
        path = with_section(tmp_path, "finetune.yaml", "f.yaml", **changes)
        return parse(capsys, "--config", path, sections=SFT_SECTIONS)[0].actor_config

    counted = schedule(**{"lr_schedule.total_steps": 200, "lr_schedule.type": "LinearWithWarmUpLR"}).lr_schedule
    assert (counted.decay_steps, counted.warmup_step, counted.lr_decay_style) == (200, 6, "linear")
    fixed = schedule(**{"lr_schedule.warmup_ratio": 0, "lr_schedule.lr_end": 1e-6}).lr_schedule
    assert (fixed.warmup_step, fixed.decay_steps) == (0, RunConfig().actor_config.lr_schedule.decay_steps)
    steps = schedule(**{"lr_schedule.warmup_steps": 4, "lr_schedule.total_steps": 200}).lr_schedule
    assert (steps.warmup_step, steps.decay_steps) == (4, 200)
    only = schedule(**{"lr_schedule": ..., "runner_wrapper.use_clip_grad": False})
    assert (only.lr_schedule.lr, only.optimizer.max_grad_norm) == (3e-6, 0.0)


@pytest.mark.parametrize(
    ("recompute", "select", "expected"),
    [
        (True, True, (True, [], False)),
        (False, True, (False, [], True)),
        ([2, 1], False, (True, [0, 1, 14], False)),
        (1, False, (True, [0, 14], False)),
        ([0, 0], False, (False, [], False)),
    ],
)
def test_recomputation_of_mindformers(tmp_path, capsys, recompute, select, expected):
    changes = {"recompute_config.recompute": recompute, "recompute_config.select_recompute": select}
    path = with_section(tmp_path, "finetune.yaml", "f.yaml", **changes, **{"parallel_config.pipeline_stage": 2})
    actor = parse(capsys, "--config", path, *STEPS, sections=SFT_SECTIONS)[0].actor_config
    found = actor.recompute_config
    assert (found.recompute, found.recompute_layers, found.select_recompute) == expected
    assert actor.parallel_config.micro_batch_num == 16


def test_models_of_other_sizes_are_refused(tmp_path):
    path = with_section(tmp_path, "predict.yaml", "small.yaml", **{"model.model_config.num_layers": 2})
    message = refusal("--sft_path_train", FILES / "finetune.yaml", "--sft_path_infer", path)
    assert "num_layers is 2, but the actor's is 28" in message


def test_which_sections_a_mindformers_file_is_for():
    assert sections_in(FILES / "finetune.yaml") == {"sft_config", "actor_config", "context"}
    assert sections_in(FILES / "mindspeed.yaml") == {"rl_config"}
