import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS, load_config
from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import from_text, from_yaml, value_text
from r1parallel.errors import UserError


@pytest.fixture
def load(tmp_path):
    def load_text(text, overrides=None, sections=GRPO_SECTIONS):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides or {}, sections)

    return load_text


def refusal(load, text, overrides=None, sections=GRPO_SECTIONS):
    with pytest.raises(UserError) as error:
        load(text, overrides, sections)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_file_means_the_defaults():
    assert load_config(None, {}, GRPO_SECTIONS) == RunConfig()


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_empty_file_means_the_defaults(load, text):
    assert load(text) == RunConfig()


def test_loaded_configurations_share_nothing():
    first = load_config(None, {}, GRPO_SECTIONS)
    first.actor_config.optimizer.eps = 1.0
    first.reward_config.verifier_weight.append(3.0)
    assert load_config(None, {}, GRPO_SECTIONS) == RunConfig()


def test_file_sets_only_what_it_names(load):
    config = load("rl_config:\n  beta: 0.5\nactor_config:\n  lr_schedule:\n    warmup_step: 3\n")
    assert config.rl_config.beta == 0.5
    assert config.actor_config.lr_schedule.warmup_step == 3
    assert config.actor_config.lr_schedule.lr == RunConfig().actor_config.lr_schedule.lr
    assert config.rl_config.num_generations == 8


def test_overrides_beat_the_file_for_their_key_alone(load):
    config = load("rl_config:\n  beta: 0.5\n  chunk_size: 7\n", {"rl_config.beta": "0.25"})
    assert (config.rl_config.beta, config.rl_config.chunk_size) == (0.25, 7)


@pytest.mark.parametrize(("text", "value"), [("5e-7", 5e-7), ("1E3", 1000.0), ("2", 2.0), ("1.0e-6", 1e-6)])
def test_every_way_to_write_a_float(load, text, value):
    lr = load(f"actor_config:\n  lr_schedule:\n    lr: {text}\n").actor_config.lr_schedule.lr
    assert (lr, type(lr)) == (value, float)


def test_lists(load):
    config = load(
        "reward_config:\n  verifier_function: [a, b]\n  verifier_weight: [1, 5e-1]\n",
        {"generate_config.sampling_config.eos_token_id": "3, 4"},
    )
    assert config.reward_config.verifier_function == ["a", "b"]
    assert config.reward_config.verifier_weight == [1.0, 0.5]
    assert config.generate_config.sampling_config.eos_token_id == [3, 4]


def test_anchors_and_merge_keys(load):
    config = load(
        "actor_config:\n  parallel_config: &base\n    data_parallel: 2\n    model_parallel: 4\n"
        "ref_config:\n  parallel_config: *base\n"
        "generate_config:\n  parallel_config:\n    <<: *base\n    model_parallel: 1\n"
    )
    assert config.ref_config.parallel_config.model_parallel == 4
    assert config.generate_config.parallel_config.data_parallel == 2
    assert config.generate_config.parallel_config.model_parallel == 1


def test_model_config_of_a_file_starts_at_its_folder(load, tmp_path):
    text = "actor_config:\n  model_config: model.yaml\n  load: ckpt\ngenerate_config:\n  model_config: /a/m.yaml\n"
    config = load(text)
    assert config.actor_config.model_config == str(tmp_path / "model.yaml")
    assert config.generate_config.model_config == "/a/m.yaml"
    assert config.actor_config.load == "ckpt"
    assert load("", {"actor_config.model_config": "model.yaml"}).actor_config.model_config == "model.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rl_config:\n  seed: 1\n  bata: 0.1\n", ":3: unknown key rl_config.bata; did you mean rl_config.beta?"),
        (
            "actor_config:\n  parallel_config:\n    model_paralel: 2\n",
            ":3: unknown key actor_config.parallel_config.model_paralel; did you mean "
            "actor_config.parallel_config.model_parallel?",
        ),
        ("rl_config:\n  lr: 1.0\n", "did you mean actor_config.lr_schedule.lr?"),
        ("rl_confg:\n  seed: 1\n", ":1: unknown key rl_confg; did you mean rl_config?"),
        ("zzzzzz: 1\n", ":1: unknown key zzzzzz; known: rl_config, actor_config"),
        ("rl_config:\n  xqzxqz: 1\n", "unknown key rl_config.xqzxqz; known: rl_config.model_name,"),
        ("context:\n  1: 2\n", ":2: unknown key context.1"),
        ("actr_config.load: x\n", "did you mean actor_config.load?"),
        ("seed: 3\n", "did you mean rl_config.seed?"),
    ],
)
def test_unknown_key_is_refused_with_line_and_nearest(load, text, words):
    assert words in refusal(load, text)


@pytest.mark.parametrize(
    ("sections", "section"),
    [(SFT_SECTIONS, "rl_config"), (GRPO_SECTIONS, "sft_config"), (PREDICT_SECTIONS, "actor_config")],
)
def test_section_of_another_command_is_refused(load, sections, section):
    message = refusal(load, f"context: {{}}\n{section}: {{}}\n", sections=sections)
    assert f":2: this command has no use for section {section}; remove it (used: {sections[0]}" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch_size", "2.0", "is 2.0; expected int"),
        ("batch_size", "true", "is True; expected int"),
        ("batch_size", "'2'", "is '2'; expected int"),
        ("beta", "true", "is True; expected float"),
        ("beta", "much", "is 'much'; expected float"),
        ("beta", ".nan", "is nan; expected float"),
        ("beta", ".inf", "is inf; expected float"),
        ("beta", "[1.0]", "is [1.0]; expected float"),
        ("tensorboard", "1", "is 1; expected true or false"),
        ("tensorboard", "'true'", "is 'true'; expected true or false"),
        ("model_name", "7", "is 7; expected str"),
        ("output_dir", "2024-01-02", "is datetime.date(2024, 1, 2); expected str"),
        ("output_dir", "2024-13-02", "month must be in 1..12"),
        ("model_name", "", "is empty; give it a value (str)"),
        ("beta", "null", "is empty; give it a value (float)"),
        ("beta", "!!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_wrong_type_is_refused_with_key_and_line(load, key, value, words):
    message = refusal(load, f"# first line\nrl_config:\n  {key}: {value}\n")
    assert "run.yaml:3:" in message
    assert words in message
    assert "constructor" in words or f"rl_config.{key}" in message


@pytest.mark.parametrize(
    "value", ["accuracy_reward", "[a, 1]", "[a, null]", "{a: 1}"], ids=["scalar", "number", "null", "mapping"]
)
def test_list_has_elements_of_its_type(load, value):
    message = refusal(load, f"reward_config:\n  verifier_function: {value}\n")
    assert "run.yaml:2: reward_config.verifier_function is" in message
    assert "expected list of str" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rl_config:\n  beta: 0.1\n  seed: 1\n  beta: 0.2\n", ":4: beta is given twice, first in line 2"),
        ("context: {}\ncontext: {}\n", ":2: context is given twice, first in line 1"),
    ],
)
def test_repeated_key_is_refused(load, text, words):
    assert words in refusal(load, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", ":1: the file must hold keys and values"),
        ("rl_config: 3\n", ":1: rl_config must hold keys and values"),
        ("actor_config:\n  optimizer: [adamw]\n", ":2: actor_config.optimizer must hold keys and values"),
        ("context:\n", ":1: context must hold keys and values"),
        ("a: [1\n", "not readable as YAML"),
        ("context:\n  <<: 3\n", ":2: not readable as YAML: expected a mapping"),
        ("a: 1\n---\nb: 2\n", "not readable as YAML"),
        ("a: \x07\n", "not readable as YAML"),
        ("reward_config:\n  verifier_function: &a [*a]\n", "not readable as YAML"),
    ],
)
def test_broken_file_is_refused(load, text, words):
    message = refusal(load, text)
    assert "run.yaml" in message
    assert words in message


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--config .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml", {}, SFT_SECTIONS)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"binary\.yaml: not readable"):
        load_config(tmp_path / "binary.yaml", {}, SFT_SECTIONS)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rl_config.seed", "1.5", "--rl_config.seed is '1.5'; expected int"),
        ("rl_config.beta", "nan", "--rl_config.beta is 'nan'; expected float"),
        ("rl_config.tensorboard", "yes", "--rl_config.tensorboard is 'yes'; expected true or false"),
        ("reward_config.verifier_weight", "1,,2", "expected list of float"),
        ("rl_config.sead", "1", "unknown flag --rl_config.sead; did you mean --rl_config.seed?"),
        ("sft_config.eval_interval", "1", "unknown flag --sft_config.eval_interval; --help lists all flags"),
        ("actor_config.optimizer", "adamw", "--actor_config.optimizer is a section; name one of its keys"),
    ],
)
def test_wrong_override_names_its_flag(name, text, words):
    with pytest.raises(UserError) as error:
        load_config(None, {name: text}, GRPO_SECTIONS)
    assert words in str(error.value)


def test_a_preset_is_weaker_than_the_file_and_the_file_than_the_command_line(load):
    text = "rl_config:\n  algorithm: dapo\n  epsilon_high: 0.3\n  beta: 0.5\n"
    rl = load(text, {"rl_config.beta": "0.25"}).rl_config
    assert (rl.algorithm, rl.loss_aggregation, rl.dynamic_sampling, rl.overlong) == (
        "dapo",
        "token_mean",
        True,
        "penalty",
    )
    assert (rl.epsilon_low, rl.epsilon_high, rl.beta) == (0.2, 0.3, 0.25)


def test_what_the_file_keeps_from_the_command_lines_preset_is_said(load, capsys):
    load("rl_config:\n  beta: 0.5\n  epsilon_high: 0.28\n", {"rl_config.algorithm": "dapo"})
    assert capsys.readouterr().out == "note: rl_config.beta stays 0.5 as the file has it; dapo has 0.0\n"
    load("rl_config:\n  algorithm: dapo\n  beta: 0.5\n", {"rl_config.epsilon_high": "0.3"})
    assert capsys.readouterr().out == ""


def test_the_command_line_picks_the_preset(load):
    rl = load("rl_config:\n  algorithm: dapo\n", {"rl_config.algorithm": "dr_grpo"}).rl_config
    assert (rl.algorithm, rl.loss_aggregation, rl.advantage_scale) == ("dr_grpo", "constant", "none")
    assert rl.dynamic_sampling is False


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_gives_its_values_and_no_others(name):
    config = load_config(None, {"rl_config.algorithm": name}, GRPO_SECTIONS)
    expected = RunConfig()
    vars(expected.rl_config).update(PRESETS[name], algorithm=name)
    assert config == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DAPO", "rl_config.algorithm is 'DAPO'; did you mean dapo?"),
        ("Dr.GRPO", "did you mean dr_grpo?"),
        ("reinforce++", "did you mean reinforce_plus_plus?"),
        ("xyz", "rl_config.algorithm is 'xyz'; known: grpo, dr_grpo,"),
    ],
)
def test_unknown_algorithm_is_refused_with_the_nearest(load, name, words):
    assert words in refusal(load, f"rl_config:\n  algorithm: {name}\n")


KINDS = {
    int: st.integers(-(2**70), 2**70),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    list[int]: st.lists(st.integers()),
    list[float]: st.lists(st.floats(allow_nan=False, allow_infinity=False)),
}


@settings(deadline=None)
@given(st.sampled_from(list(KINDS)).flatmap(lambda kind: st.tuples(st.just(kind), KINDS[kind])))
def test_a_value_written_as_text_reads_back_the_same(case):
    kind, value = case
    assert from_text(value_text(value), kind) == value
    assert from_yaml(value, kind) == value
