"""Files and commands of mindrlhf, mindformers and MindSpeed-RL."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from foreign_files import FILES, leaves, parse, refusal, with_section

from r1parallel.config.checks import check_config
from r1parallel.config.foreign.migration import migration_page
from r1parallel.config.foreign.mindformers import FLAGS as MINDFORMERS_FLAGS
from r1parallel.config.foreign.mindformers import KEYS as MINDFORMERS
from r1parallel.config.foreign.mindformers import SIZES
from r1parallel.config.foreign.mindrlhf import FLAGS, GRPO_KEYS, KEYS, VALUES
from r1parallel.config.foreign.mindspeed import KEYS as MINDSPEED
from r1parallel.config.keys import list_keys
from r1parallel.config.loading.command_line import ALIASES
from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS, foreign_keys, load_config
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
OWN = list_keys(vars(RunConfig()))
# The flags of main.py, both generations, as its users type them.
NEW_COMMAND = """msrun --worker_num=8 --local_worker_num=8 --master_addr=127.0.0.1 --master_port=9887 --join=True
    --log_dir=./log examples/grpo/qwen_grpo_tutorial/main.py --config {files}/grpo_config.yaml --model_name qwen
    --dataset_file d.mindrecord --tokenizer_type qwen --tokenizer_dir tok --actor_checkpoint_path a
    --ref_checkpoint_path r --generate_checkpoint_path g --verifier_function "qwen_accuracy_reward,format_reward"
    --verifier_weight "1.0,0.5" --tensorboard --save_checkpoint_dir ckpt --resume_training"""
OLD_COMMAND = """msrun --worker_num=2 --local_worker_num=2 --join=True --log_dir=./log main.py
    --sft_path_infer {files}/predict.yaml --sft_path_ref {files}/finetune.yaml --sft_path_train {files}/finetune.yaml
    --vocab_path tok/vocab.json --merges_file_path tok/merges.txt --mind_dataset_dir d.mindrecord --save_data_file s
    --save_ckpt_dir ckpt --use_parallel True --load_sft_checkpoint_infer "" --load_sft_checkpoint_train a
    --load_ref_checkpoint r --enable_compile_cache False --pre_num_generations 1 --pre_store_data 16
    --reward_funcs accuracy_reward format_reward --reward_weights 1.0 0.5 --save_strategy_dir ../../strategy/
    --custom_model_name qwen --tensorboard_dir tb --tensorboard_queue_size 10 --load_ckpt_format safetensors
    --only_save_strategy False"""
HYDRA_COMMAND = """msrun --worker_num=8 main.py --config {files}/grpo_config.yaml rl_config.beta=0.02
    rl_config.save_data_file=./saved actor_config.parallel_config.vocab_emb_dp=False actor_config.load=a
    reward_config.verifier_function=["qwen_accuracy_reward","format_reward"] reward_config.verifier_weight=[1.0,0.5]
    generate_config.max_model_len=32768 generate_config.sampling_config.top_k=-1"""


def flags_of(command):
    words = shlex.split(command.format(files=FILES).replace('["', "'[\"").replace('"]', "\"]'"))
    return words[next(index for index, word in enumerate(words) if word.endswith("main.py")) + 1 :]


@pytest.mark.parametrize(
    ("table", "source"), [({**KEYS, **GRPO_KEYS}, "grpo_config.yaml"), (MINDSPEED, "mindspeed.yaml")]
)
def test_every_key_of_a_file_is_ours_or_has_one_line(capsys, table, source):
    names = list(leaves(yaml.safe_load((FILES / source).read_text(encoding="utf-8"))))
    _, lines = parse(capsys, "--config", FILES / source)
    for name in names:
        of_it = [line for line in lines if line.startswith(f"note: {name} ")]
        above = [line for line in lines if line.startswith(f"note: {name.rpartition('.')[0]} ")]
        if name in table or name == "generate_config.sampling_config.pad_token_id":
            assert len(of_it) == 1, name
        else:
            assert (of_it == [] and name in OWN) or len(above) == 1 or name.startswith("reward_config"), name


@pytest.mark.parametrize("tables", [KEYS, GRPO_KEYS, MINDSPEED, MINDFORMERS], ids=["rlhf", "grpo", "speed", "formers"])
def test_every_translation_leads_to_keys_of_ours(tables):
    places = {"model": "actor_config", "train": "actor_config", "run": "sft_config", "host": "context"}
    for name, fate in tables.items():
        assert fate.to or fate.text, name
        for target in fate.to:
            place, colon, key = target.partition(":")
            assert (f"{places[place]}.{key}" if colon else target) in OWN


def test_every_flag_leads_to_keys_of_ours():
    for name, flag in {**FLAGS, **MINDFORMERS_FLAGS}.items():
        assert flag.fate.to or flag.fate.text
        assert name not in ALIASES
        assert set(flag.fate.to) <= {*OWN, "ref_config.model_config"}


def test_only_declared_keys_hide_keys_of_ours():
    assert set(KEYS) & set(OWN) == set()
    assert set(MINDSPEED) & set(OWN) == {"rl_config.mini_batch_size", "rl_config.overlong_buffer"}
    assert set(GRPO_KEYS) & set(OWN) == {"generate_config.load"}
    assert set(VALUES) <= set(OWN)
    assert set(foreign_keys(GRPO_SECTIONS)) & set(OWN) == {"generate_config.load"}
    assert set(foreign_keys(PREDICT_SECTIONS)) & set(OWN) == set()


def test_values_of_the_shipped_file_arrive(capsys):
    config, lines = parse(capsys, "--config", FILES / "grpo_config.yaml")
    assert config.rl_config.packing is True
    assert config.rl_config.pack_length == 2048
    assert config.actor_config.offset == [0]
    assert config.actor_config.parallel_config.pipeline_stage == 2
    assert config.actor_config.recompute_config.recompute_layers == []
    assert config.actor_config.optimizer.max_grad_norm == 1.0
    assert config.ref_config.parallel_config.model_parallel == 4
    assert config.generate_config.load == ""
    assert config.generate_config.sampling_config.pad_token_id == 151643
    assert (config.context.device_target, config.context.compute_dtype) == ("Ascend", "bfloat16")
    assert all(line.startswith("note: ") for line in lines)
    assert len(set(lines)) == len(lines)


def test_the_shipped_sampling_is_refused_by_the_checks_in_one_line(capsys):
    config, _ = parse(capsys, "--config", FILES / "grpo_config.yaml")
    with pytest.raises(UserError, match=r"generate_config\.sampling_config\.") as error:
        check_config(config, GRPO_SECTIONS, 8)
    assert "\n" not in str(error.value)


def test_the_new_command(capsys):
    config, lines = parse(capsys, *flags_of(NEW_COMMAND))
    rl = config.rl_config
    assert (rl.dataset_file, rl.tokenizer_dir, rl.tensorboard, rl.resume_training) == (
        "d.mindrecord",
        "tok",
        True,
        True,
    )
    assert (config.actor_config.load, config.actor_config.save, config.ref_config.load) == ("a", "ckpt", "r")
    assert config.reward_config.verifier_function == ["qwen_accuracy_reward", "format_reward"]
    assert config.reward_config.verifier_weight == [1.0, 0.5]
    assert "note: --model_name qwen: rl_config.model_name qwen" in lines
    assert "note: --generate_checkpoint_path g: no key here; the generator takes the actor's weights" in lines
    assert not any("silently takes" in line for line in lines)


def test_the_new_command_passes_the_checks_once_its_sampling_is_corrected_for(capsys):
    config, _ = parse(capsys, *flags_of(NEW_COMMAND), "--rl_config.rollout_correction", "sequence_mask")
    check_config(config, GRPO_SECTIONS, 8)
    on_cpu, _ = parse(capsys, *flags_of(NEW_COMMAND), "--context.device_target", "CPU")
    with pytest.raises(UserError, match=r"set it to float32, or context\.device_target to Ascend"):
        check_config(on_cpu, GRPO_SECTIONS, 8)


def test_the_old_command(capsys):
    config, lines = parse(capsys, *flags_of(OLD_COMMAND))
    rl, actor = config.rl_config, config.actor_config
    assert (rl.dataset_file, rl.tokenizer_dir, rl.tensorboard_dir) == ("d.mindrecord", "tok", "tb")
    assert (rl.model_name, rl.save_strategy_dir, rl.num_generations) == ("qwen", "../../strategy/", 8)
    assert (actor.load, actor.save, config.ref_config.load) == ("a", "ckpt", "r")
    assert actor.model_config == str(FILES / "finetune.yaml")
    assert config.reward_config.verifier_function == ["accuracy_reward", "format_reward"]
    assert config.reward_config.verifier_weight == [1.0, 0.5]
    assert actor.parallel_config.model_parallel == config.ref_config.parallel_config.model_parallel == 2
    assert actor.parallel_config.micro_batch_num == 1
    assert actor.recompute_config.recompute_layers == list(range(7))
    assert (config.context.device_target, config.context.compute_dtype) == ("Ascend", "bfloat16")
    assert actor.lr_schedule.lr == RunConfig().actor_config.lr_schedule.lr
    assert any("silently takes qwen_accuracy_reward" in line for line in lines)
    for name in FLAGS:
        if f"--{name} " in OLD_COMMAND:
            assert len([line for line in lines if line.startswith(f"note: --{name} ")]) == 1


def test_words_of_hydra(capsys):
    config, lines = parse(capsys, *flags_of(HYDRA_COMMAND))
    assert config.rl_config.beta == 0.02
    assert config.actor_config.load == "a"
    assert config.reward_config.verifier_function == ["qwen_accuracy_reward", "format_reward"]
    assert config.reward_config.verifier_weight == [1.0, 0.5]
    assert config.generate_config.sampling_config.top_k == 0
    assert "note: generate_config.sampling_config.top_k -1: 0; 0 keeps every token here" in lines


def test_every_quoted_flag_has_a_fate():
    quoted = set(re.findall(r"--(\w+)", NEW_COMMAND.split("main.py")[1] + OLD_COMMAND.split("main.py")[1]))
    assert quoted - {"config"} == (set(FLAGS) | set(ALIASES)) & quoted
    assert set(FLAGS) - quoted == {"tokenizer_path"}


def test_mindspeed_means_what_it_means_there(capsys):
    rl = parse(capsys, "--config", FILES / "mindspeed.yaml")[0].rl_config
    assert (rl.mini_batch_size, rl.num_generations, rl.packing, rl.pack_length) == (512, 16, True, 32768)
    assert (rl.epsilon_low, rl.epsilon_high, rl.loss_aggregation) == (0.2, 0.28, "token_mean")
    assert (rl.overlong, rl.overlong_buffer, rl.overlong_penalty) == ("penalty", 4096, 0.5)
    assert (rl.kl_estimator, rl.kl_controller, rl.beta, rl.kl_target) == ("k3", "adaptive", 0.02, 3.0)
    assert (rl.dynamic_sampling, rl.max_refills, rl.entropy_coef) == (True, 3, 0.001)


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        (
            "grpo_config.yaml",
            {"generate_config.sampling_config.min_p": 0.01},
            "min_p is 0.01, which has no counterpart",
        ),
        ("grpo_config.yaml", {"actor_config.parallel_config.context_parallel": 2}, "context_parallel is 2"),
        ("grpo_config.yaml", {"context.mode": 1}, "context.mode is 1, which has no counterpart: models run in graph"),
        ("grpo_config.yaml", {"rl_config.save_ckpt_format": "ckpt"}, "set safetensors"),
        ("grpo_config.yaml", {"rl_config.bata": 1}, "unknown key rl_config.bata; did you mean rl_config.beta?"),
        ("grpo_config.yaml", {"rl_config.align_typ": 1}, "did you mean rl_config.align_type?"),
        ("grpo_config.yaml", {"profiler_config.profil": 1}, "did you mean profiler_config.profile?"),
        ("grpo_config.yaml", {"rl_config.start_lr": "fast"}, "start_lr, which is actor_config.lr_schedule.lr here, is"),
        ("grpo_config.yaml", {"rl_config.start_lr": 1e-5}, "another key of this file makes it"),
        ("grpo_config.yaml", {"ref_config.model_config": "none.yaml"}, "none.yaml: no such file"),
        ("mindspeed.yaml", {"rl_config.adv_estimator": "gae"}, "adv_estimator is gae: known: group_norm"),
        ("mindspeed.yaml", {"rl_config.filter_groups_max_batches": -1}, "a step has a limit here"),
        ("mindspeed.yaml", {"rl_config.partial_rollout_max_split": 2}, "a completion is drawn in one step; set 1"),
        ("mindspeed.yaml", {"megatron_training.seed": 1}, "unknown key megatron_training"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, source, changes, words):
    assert words in refusal("--config", with_section(tmp_path, source, "run.yaml", **changes))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--only_save_strategy", "True"], "strategy files alone are written by tools/make_strategy.py; give False"),
        (["--vocab_path", "a/v.json", "--merges_file_path", "b/m.txt"], "--vocab_path and --merges_file_path give"),
        (["--mind_dataset_di", "x"], "did you mean --mind_dataset_dir?"),
        (["--rl_config.reshard_mod", "x"], "did you mean --rl_config.reshard_mode?"),
        (["--reward_funcs"], "--reward_funcs needs a value"),
        (["--reward_weights", "1.0", "much"], "is '1.0,much'; expected list of float"),
        (["--context.mode", "1"], "--context.mode: context.mode is 1, which has no counterpart"),
        (["--context.mode", "["], "--context.mode: context.mode is [, which has no counterpart"),
        (["seed=3"], "unexpected argument 'seed=3'"),
    ],
)
def test_wrong_flags_of_theirs_are_refused(argv, words):
    assert words in refusal(*argv)


def test_flags_of_theirs_belong_to_their_command():
    assert "unknown flag --mind_dataset_dir" in refusal("--mind_dataset_dir", "x", sections=SFT_SECTIONS)
    assert "unknown flag --train_data" in refusal("--train_data", "x")


def test_model_files_are_found_in_the_working_directory_too(tmp_path, capsys, monkeypatch):
    (tmp_path / "runs").mkdir()
    run = tmp_path / "runs" / "run.yaml"
    run.write_text("actor_config:\n  model_config: finetune.yaml\n", encoding="utf-8")
    monkeypatch.chdir(FILES)
    config, lines = parse(capsys, "--config", run)
    assert config.actor_config.model_config == "finetune.yaml"
    assert any("taken from the working directory" in line for line in lines)


def test_only_rank_0_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK_ID", "1")
    assert parse(capsys, "--model_name", "x")[1] == []
    monkeypatch.setenv("RANK_ID", "0")
    assert len(parse(capsys, "--model_name", "x")[1]) == 1


def test_micro_batches_without_a_pipeline_are_named(capsys):
    _, lines = parse(capsys, "--model_name", "x", "--actor_config.parallel_config.micro_batch_num", "4")
    assert any("mindrlhf would take 1" in line for line in lines)


def test_files_of_ours_print_nothing(capsys):
    for path in sorted((ROOT / "model_configs").glob("*/grpo.yaml")):
        load_config(path, {}, GRPO_SECTIONS)
    assert capsys.readouterr().out == ""


def test_the_migration_page_is_up_to_date(capsys):
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    assert page == migration_page(), "run: python -m r1parallel.config.foreign.migration > docs/migration.md"
    runpy.run_path(str(ROOT / "r1parallel" / "config" / "foreign" / "migration.py"), run_name="__main__")
    assert capsys.readouterr().out == page


def test_the_migration_page_has_a_row_for_every_key():
    page = migration_page()
    for name in (*KEYS, *GRPO_KEYS, *MINDFORMERS, *MINDSPEED, *SIZES):
        assert f"\n| `{name}` |" in page
    for name in (*FLAGS, *MINDFORMERS_FLAGS):
        assert f"\n| `--{name}` |" in page
