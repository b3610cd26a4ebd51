import pytest

from r1parallel.config.keys import list_keys
from r1parallel.config.loading.command_line import ALIASES, parse_command_line, short_flags
from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS
from r1parallel.config.schema import RunConfig
from r1parallel.errors import UserError


def parse(*argv, sections=GRPO_SECTIONS):
    return parse_command_line(argv, sections, "run_grpo.py", "GRPO of one model.")


def refusal(*argv, sections=GRPO_SECTIONS):
    with pytest.raises(UserError) as error:
        parse(*argv, sections=sections)
    return str(error.value)


def test_nothing_given_means_the_defaults():
    assert parse() == RunConfig()


def test_both_ways_to_write_a_flag():
    config = parse("--rl_config.seed", "3", "--actor_config.optimizer.eps=1e-5", "--rl_config.output_dir=a=b")
    assert config.rl_config.seed == 3
    assert config.actor_config.optimizer.eps == 1e-5
    assert config.rl_config.output_dir == "a=b"


def test_values_may_be_negative_or_empty():
    config = parse("--generate_config.sampling_config.pad_token_id", "-1", "--rl_config.output_dir=")
    assert config.generate_config.sampling_config.pad_token_id == -1
    assert config.rl_config.output_dir == ""


def test_flags_beat_the_file_wherever_config_stands(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("rl_config:\n  seed: 1\n  beta: 0.5\n")
    for argv in (["--seed", "2", "--config", str(path)], [f"--config={path}", "--rl_config.seed=2"]):
        config = parse(*argv)
        assert (config.rl_config.seed, config.rl_config.beta) == (2, 0.5)


def test_the_last_of_two_flags_counts():
    assert parse("--seed", "1", "--rl_config.seed", "2").rl_config.seed == 2
    assert parse("--rl_config.seed", "2", "--seed", "1").rl_config.seed == 1


def test_short_flags_of_grpo():
    config = parse(
        *("--dataset_file", "d", "--tokenizer_dir", "t", "--output_dir", "o", "--max_steps", "5", "--seed", "6"),
        *("--actor_checkpoint_path", "a", "--ref_checkpoint_path", "r", "--save_checkpoint_dir", "s"),
        *("--verifier_function", "x, y", "--verifier_weight", "1.0,2", "--resume_training", "--tensorboard", "false"),
    )
    rl = config.rl_config
    assert (rl.dataset_file, rl.tokenizer_dir, rl.output_dir, rl.max_steps, rl.seed) == ("d", "t", "o", 5, 6)
    assert (config.actor_config.load, config.ref_config.load, config.actor_config.save) == ("a", "r", "s")
    assert config.reward_config.verifier_function == ["x", "y"]
    assert config.reward_config.verifier_weight == [1.0, 2.0]
    assert (rl.resume_training, rl.tensorboard) == (True, False)


def test_short_flags_of_sft_mean_its_own_keys():
    config = parse("--dataset_file", "d", "--resume_training", "--max_steps", "4", sections=SFT_SECTIONS)
    assert (config.sft_config.dataset_file, config.sft_config.resume_training) == ("d", True)
    assert config.sft_config.max_steps == 4
    assert config.rl_config == RunConfig().rl_config


def test_every_short_flag_means_a_key_that_exists():
    assert short_flags(list_keys(GRPO_SECTIONS)) == ALIASES
    assert "verifier_weight" not in short_flags(list_keys(SFT_SECTIONS))
    assert short_flags(list_keys(PREDICT_SECTIONS)) == {}


@pytest.mark.parametrize("words", [[], ["true"], ["True"]])
def test_a_switch_may_stand_alone(words):
    config = parse("--rl_config.resume_training", *words, "--seed", "1")
    assert config.rl_config.resume_training is True
    assert config.rl_config.seed == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sed", "1"], "unknown flag --sed; did you mean --seed?"),
        (["--actor_chekpoint_path", "x"], "did you mean --actor_checkpoint_path?"),
        (["--lr", "1"], "did you mean --actor_config.lr_schedule.lr?"),
        (["--conf", "x"], "did you mean --config?"),
        (["--xqzxqzxqz", "1"], "unknown flag --xqzxqzxqz; --help lists all flags"),
        (["--actor_config.optimizer", "x"], "--actor_config.optimizer is a section"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "--max_steps", "1"], "--seed needs a value"),
        (["--config"], "--config needs a value"),
        (["run.yaml"], "unexpected argument 'run.yaml'"),
        (["--resume_training", "1"], "unexpected argument '1'"),
        (["--seed", "many"], "--rl_config.seed is 'many'; expected int"),
        (["--resume_training=yes"], "--rl_config.resume_training is 'yes'; expected true or false"),
    ],
)
def test_wrong_command_line_is_refused(argv, words):
    assert words in refusal(*argv)


def test_flag_of_another_command_is_refused():
    assert "unknown flag --rl_config.beta" in refusal("--rl_config.beta", "1", sections=SFT_SECTIONS)
    assert "unknown flag --dataset_file" in refusal("--dataset_file", "x", sections=PREDICT_SECTIONS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_key_with_default_and_meaning(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        parse("--seed", "1", flag, sections=SFT_SECTIONS)
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith("usage: run_grpo.py")
    assert "GRPO of one model." in text
    assert all(f"--{name}  " in text for name in list_keys(SFT_SECTIONS))
    assert "--actor_config.lr_schedule.lr  float (default: 5e-07)\n        peak learning rate" in text
    assert "--dataset_file           is --sft_config.dataset_file" in text
    assert "rl_config.beta" not in text
