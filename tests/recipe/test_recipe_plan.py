"""What a recipe becomes, and what is refused before anything runs."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.one_rank import save_model
from helpers.tiny_runs import MODEL, REPOSITORY, SIZES, STOP_ID, tiny_inputs
from toy_recipes import changed, toy_recipe, write_recipe

from r1parallel.errors import UserError
from r1parallel.models.parameters import random_values
from r1parallel.recipe import plan as plan_module
from r1parallel.recipe.plan import plan_recipe


def plan(folder: Path, **changes):
    values = toy_recipe(folder)
    for key, value in changes.items():
        changed(values, key.replace("__", "."), value)
    return plan_recipe(write_recipe(folder, values), None)


def stage(plan, name):
    return next(stage for stage in plan.stages if stage.name == name)


def value(stage, flag):
    return stage.flags[stage.flags.index(f"--{flag}") + 1]


def test_the_stages_follow_each_other(tmp_path):
    made = plan(tmp_path)
    assert [(stage.name, stage.script, stage.needs) for stage in made.stages] == [
        ("problems_test", "tools/make_problems.py", ()),
        ("problems_train", "tools/make_problems.py", ("problems_test",)),
        ("data_sft", "tools/preprocess_data.py", ("problems_train",)),
        ("data_grpo", "tools/preprocess_data.py", ("problems_train",)),
        ("sft", "run_sft.py", ("data_sft",)),
        ("evaluate_sft", "tools/evaluate.py", ("sft", "problems_test")),
        ("grpo", "run_grpo.py", ("sft", "data_grpo")),
        ("export", "tools/convert_weight.py", ("grpo",)),
        ("evaluate_grpo", "tools/evaluate.py", ("export", "problems_test")),
    ]
    assert [stage.name for stage in made.stages if stage.resumable] == ["sft", "grpo"]
    assert made.limit_s == 300
    assert made.model == tmp_path / "run" / "model"


def test_each_command_gets_its_flags(tmp_path):
    made, run = plan(tmp_path), tmp_path / "run"
    problems = " ".join(stage(made, "problems_train").flags)
    assert problems == (
        f"--kind arithmetic --num 32 --digits 1 2 --exclude {run}/data/test.jsonl "
        f"--output_path {run}/data/train.jsonl --overwrite"
    )
    assert value(stage(made, "problems_test"), "tokenizer_dir") == str(run / "data" / "tokenizer")
    data = stage(made, "data_grpo")
    assert "--prompts_only" in data.flags and "--prompts_only" not in stage(made, "data_sft").flags
    assert value(data, "file_path") == f"{run}/data/train.jsonl" and value(data, "dataset_type") == "arithmetic"
    sft = stage(made, "sft")
    assert value(sft, "sft_config.dataset_file") == f"{run}/data/sft.mindrecord"
    assert value(sft, "actor_config.model_config") == f"{tmp_path}/model.yaml"
    assert "--actor_config.load" not in sft.flags
    grpo = stage(made, "grpo")
    assert value(grpo, "actor_config.load") == f"{run}/sft/model"
    assert value(grpo, "config") == f"{tmp_path}/grpo.yaml"
    assert value(stage(made, "export"), "input_path") == f"{run}/grpo/model"
    assert value(stage(made, "evaluate_grpo"), "model") == f"{run}/model"


def test_the_settings_are_those_of_file_recipe_and_preset(tmp_path):
    settings = stage(plan(tmp_path), "grpo").settings
    assert settings["rl_config.max_steps"] == 2  # the recipe is stronger than the file's 9
    assert settings["rl_config.num_generations"] == 4
    assert settings["rl_config.loss_aggregation"] == "constant"
    assert settings["rl_config.dataset_file"] == f"{tmp_path}/run/data/grpo.mindrecord"
    assert settings["rl_config.resume_training"] is False
    assert "sft_config.max_steps" not in settings


def test_a_base_is_evaluated_and_started_from(tmp_path):
    inputs = tiny_inputs()
    made = plan(
        tmp_path, base=str(inputs.checkpoint), sft=None, data__sft=None, data__grpo={"mindrecord": str(inputs.train)}
    )
    assert [stage.name for stage in made.stages][2:] == ["evaluate_base", "grpo", "export", "evaluate_grpo"]
    assert value(stage(made, "grpo"), "actor_config.load") == str(inputs.checkpoint)
    assert value(stage(made, "grpo"), "rl_config.dataset_file") == str(inputs.train)
    assert value(stage(made, "evaluate_base"), "tokenizer_dir") == str(inputs.checkpoint)
    assert stage(made, "grpo").needs == ()


def test_only_sft_without_export_and_evaluation(tmp_path):
    made = plan(tmp_path, grpo=None, export=None, evaluate=None, data__grpo=None, data__sft_eval={
        "problems": "test", "prompt_type": "raw", "max_prompt_length": 6, "seq_length": 30,
    })  # fmt: skip
    assert [stage.name for stage in made.stages][2:] == ["data_sft", "data_sft_eval", "sft"]
    assert value(stage(made, "sft"), "sft_config.eval_dataset_file").endswith("run/data/sft_eval.mindrecord")
    assert made.model == tmp_path / "run" / "sft" / "model"


def test_several_processes_go_through_the_launcher(tmp_path):
    values = toy_recipe(tmp_path)
    changed(values, "worker_num", 2)
    for section in ("sft.actor_config", "grpo.actor_config", "grpo.ref_config", "grpo.generate_config"):
        changed(values, f"{section}.parallel_config.model_parallel", 2)
    made = plan_recipe(write_recipe(tmp_path, values), str(tmp_path / "else where"))
    for name in ("sft", "grpo"):
        assert stage(made, name).script == f"scripts/run_{name}.py"
        words = ["--worker_num", "2", "--log_dir", f"{tmp_path}/else where/logs/{name}"]
        assert stage(made, name).flags[:4] == words
        assert (REPOSITORY / stage(made, name).script).is_file()


def test_mindspore_is_not_needed_to_check():
    """The driver waits for days beside the runs."""
    words = [sys.executable, "-c", "import sys, r1parallel.recipe.run; print('mindspore' in sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, start_new_session=True, cwd=REPOSITORY)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("worker_nun", 1, r"r1.yaml:\d+: worker_nun: unknown key; did you mean worker_num\?"),
        ("worker_num", "two", r"worker_num: expected int"),
        ("worker_num", 0, r"worker_num: is 0; it must be at least 1"),
        ("worker_num", 3, r"sft: actor_config.parallel_config: .* but the number of processes is 3"),
        ("stage_limit", 0, r"stage_limit: is 0 seconds"),
        ("output_dir", None, r"output_dir: is missing; add it"),
        ("base", "nowhere", r"base: nowhere: no such checkpoint"),
        ("tokenizer_dir", "nowhere", r"r1.yaml:\d+: tokenizer_dir: nowhere"),
        ("data", 3, r"data: expected keys and values"),
        ("data.grpo", None, r"data: grpo is missing; say what grpo reads"),
        ("data.gpro", {}, r"data.gpro: unknown key; did you mean grpo\?"),
        ("data.sft.problems", "trian", r"r1.yaml:\d+: data.sft.problems: 'trian' is unknown; known: test, train"),
        ("data.sft.seq_lenght", 30, r"data.sft.seq_lenght: unknown key; did you mean seq_length\?"),
        ("data.sft.seq_length", "long", r"data.sft.seq_length: invalid int value: 'long'"),
        ("data.sft.seq_length", 65, r"data.sft.seq_length: is 65, the model has 64 positions"),
        ("data.sft.skip_bad_rows", "yes please", r"data.sft.skip_bad_rows: is 'yes please'; expected true or false"),
        ("data.sft.num_rows", True, r"data.sft.num_rows: expected a number, text or a list"),
        ("data.sft.output_path", "x", r"data.sft.output_path: the recipe gives this flag itself"),
        ("data.sft.prompt_type", "rwa", r"data.sft.prompt_type: 'rwa' is unknown; known: plain, raw"),
        ("data.sft", {"dataset_type": "gsm8k", "file_path": "none.jsonl"}, r"data.sft.file_path: none.jsonl: no such"),
        ("data.sft", {"dataset_type": "gsm9k", "file_path": "x"}, r"data.sft.dataset_type: .*'gsm9k' is unknown"),
        ("data.sft", {"dataset_type": "gsm8k"}, r"data.sft.file_path: is missing; add it"),
        ("data.sft", {"mindrecord": "none.mindrecord"}, r"data.sft.mindrecord: none.mindrecord: no such file"),
        ("data.grpo.max_prompt_length", 7, r"data.grpo.max_prompt_length: is 7; give at most .*max_prompt_length 6"),
        ("problems.train.kind", "geometry", r"problems.train.kind: invalid choice: 'geometry'"),
        ("problems.train.num", None, r"problems.train: the following arguments are required: --num"),
        ("problems.train.exclude", "tset", r"problems.train.exclude: 'tset' is none of the problems above this one"),
        ("sft.config", "none.yaml", r"none.yaml: No such file"),
        ("sft.sft_config.max_stepz", 3, r"sft.sft_config.max_stepz: .*did you mean --sft_config.max_steps\?"),
        ("sft.sft_config.max_steps", "many", r"sft.sft_config.max_steps: --sft_config.max_steps is 'many'; expected"),
        ("sft.sft_config.dataset_file", "x", r"sft.sft_config.dataset_file: the recipe gives this key itself"),
        ("sft.sft_config.resume_training", True, r"resume_training: the recipe gives this key itself"),
        ("sft.rl_config", {"beta": 0.1}, r"sft.rl_config: unknown key"),
        ("sft.actor_config.model_config", "none.yaml", r"sft.actor_config.model_config: .*none.yaml"),
        ("grpo.rl_config.algorithm", "dappo", r"grpo.rl_config.algorithm: .*did you mean dapo\?"),
        ("grpo.rl_config.num_generations", 1, r"grpo.rl_config.num_generations: .*it must be at least 2"),
        ("grpo.reward_config", {"verifier_function": ["acuracy_reward", "format_reward"]}, r"did you mean 'accuracy"),
        ("grpo.reward_config", {"verifier_function": ["my, reward"]}, r"flags cannot hold a comma"),
        ("export.names", "hff", r"export.names: invalid choice: 'hff'"),
        ("export.max_shard_size", "big", r"export: --max_shard_size big: is no size"),
        ("export.is_lora", "True", r"export: --is_lora True: adapters are not supported"),
        ("evaluate.verifier_function", None, r"evaluate.verifier_function: is missing; add it"),
        ("evaluate.verifier_function", "answer_rewards", r"evaluate: .*did you mean 'answer_reward'"),
        ("evaluate.num_samples", 0, r"evaluate: --num_samples is 0; it must be at least 1"),
        ("evaluate.config", "none.yaml", r"evaluate: --config .*none.yaml: No such file"),
        ("evaluate.prompt_type", "chat9", r"evaluate.prompt_type: 'chat9' is unknown"),
        ("evaluate", {"problems": []}, r"evaluate.verifier_function: is missing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_place(tmp_path, monkeypatch, key, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as refused:
        plan_recipe(write_recipe(tmp_path, changed(toy_recipe(tmp_path), key, given)), None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft": None, "grpo": None}, "grpo: is missing, and so is sft; a recipe trains something"),
        ({"sft": None, "data__sft": None}, "base: is missing; GRPO needs a model to start from"),
        ({"grpo": None, "export": None}, r"data.grpo: there is no section grpo that reads it"),
        (
            {"problems": None, "data": {"sft": {}}, "evaluate": None},
            "tokenizer_dir: is missing; only arithmetic problems come with a tokenizer",
        ),
        ({"data": None}, "data: sft is missing"),
    ],
)
def test_parts_that_need_each_other(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        plan(tmp_path, **changes)


def test_sft_and_grpo_train_the_same_model(tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(SIZES | {"num_layers": 2}))
    with pytest.raises(UserError, match="grpo: its model_config has other sizes than that of sft"):
        plan(tmp_path, grpo__actor_config={"model_config": "other.yaml"})


def test_a_base_of_other_sizes_is_refused(tmp_path):
    other = replace(MODEL, num_layers=2)
    save_model(tmp_path / "base", random_values(other, 0, 0.1), other, tiny_inputs().tokenizer, [STOP_ID])
    with pytest.raises(UserError, match=r"r1.yaml:\d+: base: "):
        plan(tmp_path, base=str(tmp_path / "base"))


def test_a_prompt_that_the_tokenizer_cannot_write_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.sft.prompt_type: chat: the tokenizer folder has no chat_template"):
        plan(tmp_path, tokenizer_dir=str(tiny_inputs().tokenizer), data__sft__prompt_type="chat")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    values = toy_recipe(tmp_path) | {"tokenizer_dir": str(tiny_inputs().tokenizer)}
    recipe = write_recipe(tmp_path, values)
    (tmp_path / "model.yaml").write_text((tmp_path / "model.yaml").read_text().replace("size: 32", "size: 16", 1))
    with pytest.raises(UserError, match="is it the tokenizer of this model"):
        plan_recipe(recipe, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "r1.yaml:1: a recipe must hold keys and values"),
        ("", "a recipe must hold keys and values"),
        ("base: x\nbase: y\n", "base is given twice"),
        ("base:\n", "r1.yaml:1: base: is empty; give it a value or leave it out"),
        ("base: [\n", "not readable as YAML"),
        ("<<: 3\n", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, words):
    (tmp_path / "r1.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        plan_recipe(tmp_path / "r1.yaml", None)


def test_the_shipped_toy_passes(tmp_path):
    made = plan_recipe(REPOSITORY / "model_configs" / "tiny" / "r1.yaml", str(tmp_path / "run"))
    assert [stage.name for stage in made.stages][-4:] == ["evaluate_sft", "grpo", "export", "evaluate_grpo"]
    assert not (tmp_path / "run").exists()


def test_the_shipped_7b_passes(tmp_path, monkeypatch, shared_dir):
    """With the real tokenizer and data sets of one row; only the weights are not looked at."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared_dir / "tokenizers" / "qwen2_5", tmp_path / "Qwen2.5-7B")
    row = json.dumps({"question": "1+1?", "answer": "#### 2"})
    for name in ("openr1_math/train.parquet", "deepscaler/deepscaler.json", "gsm8k/test.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_text(row)
    monkeypatch.setattr(plan_module, "open_model", lambda path, sizes: sizes)
    made = plan_recipe(REPOSITORY / "model_configs" / "qwen2_5_7b" / "r1.yaml", None)
    assert [stage.name for stage in made.stages] == [
        *("data_sft", "data_grpo", "evaluate_base", "sft", "evaluate_sft", "grpo", "export", "evaluate_grpo"),
    ]
    settings = stage(made, "grpo").settings
    assert settings["rl_config.dynamic_sampling"] is True
    assert (settings["rl_config.epsilon_high"], settings["rl_config.beta"]) == (0.28, 0.0)
    assert value(stage(made, "evaluate_base"), "model") == "Qwen2.5-7B"
    assert value(stage(made, "sft"), "actor_config.load") == "Qwen2.5-7B"
