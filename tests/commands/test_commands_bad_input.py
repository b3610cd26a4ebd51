import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_runs import (
    GRPO_STEPS,
    PROMPT_SLOTS,
    REPOSITORY,
    SIZES,
    error_line,
    folder_bytes,
    grpo_flags,
    run_script,
    sft_flags,
)

from r1parallel.checkpoint.run_state import latest_run_state
from r1parallel.data.preprocess import preprocess
from r1parallel.monitor.metrics import read_metrics


@pytest.fixture
def refused(capfd):
    """Runs a script that must fail with exit code 2; gives its one line."""

    def run(script: str, flags: list[str]) -> str:
        capfd.readouterr()
        code = run_script(script, [str(flag) for flag in flags])
        assert code == 2
        return error_line(capfd.readouterr().err)

    return run


@pytest.fixture
def untouched(grpo_run, sft_run):
    """Two finished runs, which no bad command may change, whatever its output_dir."""
    before = folder_bytes(grpo_run), folder_bytes(sft_run)
    yield
    assert (folder_bytes(grpo_run), folder_bytes(sft_run)) == before


SMALL = "".join(f"{key}: {json.dumps(value)}\n" for key, value in {**SIZES, "vocab_size": 16}.items())
CASES = {
    "data": ({"dataset_file": "none.mindrecord"}, "{section}.dataset_file: none.mindrecord: no such file"),
    "data index": ({"dataset_file": "LONE"}, "lone.mindrecord.db: no such file; a data set is a MindRecord file with"),
    "data damaged": ({"dataset_file": "DAMAGED"}, "damaged.mindrecord: not readable as MindRecord, make it again: "),
    "checkpoint": ({"actor_config__load": "none"}, "actor_config.load: none: no such file or folder"),
    "tokenizer": ({"tokenizer_dir": "none"}, "{section}.tokenizer_dir: none: no such folder"),
    "model": ({"actor_config__model_config": "none"}, "actor_config.model_config: none: no such file or folder"),
    "tokenizer of another model": (
        {"actor_config__model_config": "SMALL"},
        "the tokenizer has 30 ids, the model's embedding 16 rows; is it the tokenizer of this model?",
    ),
}


@pytest.mark.parametrize("script", ["run_grpo.py", "run_sft.py"])
@pytest.mark.parametrize("case", CASES)
def test_inputs_that_cannot_be_used(script, case, inputs, grpo_run, sft_run, untouched, refused, tmp_path):
    changes, words = CASES[case]
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "lone.mindrecord").write_bytes(b"")
    (tmp_path / "damaged.mindrecord").write_bytes(b"no records")
    (tmp_path / "damaged.mindrecord.db").write_bytes(b"no index")
    special = {name.upper(): tmp_path / f"{name}.mindrecord" for name in ("lone", "damaged")}
    special["SMALL"] = tmp_path / "small.yaml"
    changes = {key: special.get(value, value) for key, value in changes.items()}
    make, run, section = {
        "run_grpo.py": (grpo_flags, grpo_run, "rl_config"),
        "run_sft.py": (sft_flags, sft_run, "sft_config"),
    }[script]
    flags = make(inputs, run, max_steps=20, resume_training="true", **changes)
    assert words.format(section=section) in refused(script, flags)


def test_a_batch_larger_than_the_step(inputs, grpo_run, untouched, refused):
    error = refused("run_grpo.py", grpo_flags(inputs, grpo_run, resume_training="true", batch_size=9))
    assert "num_generations 4 = 16 completions, fewer than the training batch: batch_size 9" in error
    assert "= 18; lower one of these or raise num_rollouts" in error


def test_an_unknown_key_names_the_nearest(inputs, grpo_run, untouched, refused, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("rl_config:\n  num_generation: 4\n")
    error = refused("run_grpo.py", ["--config", config, *grpo_flags(inputs, grpo_run)])
    assert f"{config}:2: unknown key rl_config.num_generation; did you mean rl_config.num_generations?" in error
    error = refused("run_sft.py", ["--batchsize", "4"])
    assert "unknown flag --batchsize; did you mean --" in error


def test_an_unknown_reward_names_the_nearest(inputs, grpo_run, untouched, refused):
    flags = grpo_flags(inputs, grpo_run, reward_config__verifier_function="acuracy_reward,format_reward")
    assert "unknown reward 'acuracy_reward', did you mean 'accuracy_reward'?" in refused("run_grpo.py", flags)


def copy_truncated(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    weights = next(target.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    return target


def test_a_truncated_checkpoint_leaves_no_run_folder(inputs, refused, tmp_path):
    broken = copy_truncated(inputs.checkpoint, tmp_path / "broken")
    for script, make in (("run_grpo.py", grpo_flags), ("run_sft.py", sft_flags)):
        error = refused(script, make(inputs, tmp_path / "run", actor_config__load=broken))
        assert f"{broken / 'model.safetensors'}: damaged safetensors file" in error
        assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model(inputs, refused, tmp_path):
    (tmp_path / "model.yaml").write_text(
        SMALL.replace('"vocab_size": 16', "").replace("vocab_size: 16", "vocab_size: 40")
    )
    flags = grpo_flags(inputs, tmp_path / "run", actor_config__model_config=tmp_path / "model.yaml")
    assert "embedding_weight has shape (32, 32), the model wants (40, 32)" in refused("run_grpo.py", flags)
    assert not (tmp_path / "run").exists()


def test_a_truncated_newest_run_checkpoint_is_passed_over(inputs, grpo_run, refused, tmp_path):
    """The run then goes on from the one before; here it is complete at that step already."""
    shutil.copytree(grpo_run, tmp_path / "run")
    copy_truncated(grpo_run / "checkpoints" / "step_12", tmp_path / "step_12")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_12")
    (tmp_path / "step_12").rename(tmp_path / "run" / "checkpoints" / "step_12")
    flags = grpo_flags(inputs, tmp_path / "run", max_steps=10, resume_training="true")
    assert "the run is complete: 10 of 10 steps" in refused("run_grpo.py", flags)


def test_empty_and_unusable_data_sets_are_refused_when_prepared(inputs, refused, tmp_path):
    source, output = tmp_path / "empty.jsonl", tmp_path / "empty.mindrecord"
    flags = ["--dataset_type", "arithmetic", "--file_path", source, "--tokenizer_dir", inputs.tokenizer]
    flags += ["--output_path", output, "--prompt_type", "raw"]
    source.write_text("")
    assert refused("tools/preprocess_data.py", flags) == f"{source}: the data set is empty"
    source.write_text('{"question": "1+1=", "answer": "<answer>2</answer>", "solution": "2"}\n')
    error = refused("tools/preprocess_data.py", [*flags, "--max_prompt_length", "2", "--seq_length", "8"])
    assert "no row is left to write, 1 were too long" in error
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]


def test_sft_needs_answers(inputs, refused, tmp_path):
    source, output = tmp_path / "prompts.jsonl", tmp_path / "prompts.mindrecord"
    rows = [{"question": f"{i}+1=", "solution": str(i + 1)} for i in range(8)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preprocess("arithmetic", source, inputs.tokenizer, output, PROMPT_SLOTS, 20, "raw", prompts_only=True)
    words = "prompts.mindrecord: 8 rows have no answer to learn; prepare it without --prompts_only"
    assert words in refused("run_sft.py", sft_flags(inputs, tmp_path / "run", dataset_file=output))
    assert words in refused("run_sft.py", sft_flags(inputs, tmp_path / "run", eval_dataset_file=output))


def test_held_out_rows_of_another_tokenizer(inputs, refused, tmp_path):
    shutil.copytree(inputs.tokenizer, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {token: i + 20 for token, i in tokenizer["model"]["vocab"].items()}
    tokenizer["added_tokens"] = [{**token, "id": token["id"] + 20} for token in tokenizer["added_tokens"]]
    path.write_text(json.dumps(tokenizer))
    source, output = inputs.held_out.with_suffix(".jsonl"), tmp_path / "foreign.mindrecord"
    preprocess("arithmetic", source, tmp_path / "tokenizer", output, PROMPT_SLOTS, 30, "raw")
    error = refused("run_sft.py", sft_flags(inputs, tmp_path / "run", eval_dataset_file=output))
    assert "foreign.mindrecord: holds token id 4" in error
    assert "the model's embedding has 32 rows" in error


def test_a_reward_that_always_raises_damages_nothing(inputs, grpo_run, refused, tmp_path):
    broken = f"{Path(__file__).parents[1] / 'helpers' / 'rewards_of_runs.py'}:broken"
    run = tmp_path / "run"
    shutil.copytree(grpo_run, run)
    flags = grpo_flags(
        inputs,
        run,
        max_steps=20,
        resume_training="true",
        reward_config__verifier_function=f"format_reward,{broken}",
    )
    message = f"reward '{broken}' failed on all 16 completions, at row 0: ZeroDivisionError: no luck"
    assert refused("run_grpo.py", flags) == message
    before, after = folder_bytes(grpo_run), folder_bytes(run)
    new = {name for name, content in after.items() if before.get(name) != content}
    assert {name for name in new if not name.startswith("tensorboard/events.out")} == {"config.json"}
    assert before.keys() <= after.keys()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(inputs, refused, tmp_path):
    flags = sft_flags(
        inputs,
        tmp_path,
        eval_dataset_file="",
        save_ckpt_interval=1,
        actor_config__lr_schedule__lr="1e30",
        actor_config__lr_schedule__warmup_step=0,
    )
    error = refused("run_sft.py", flags)
    assert "is nan at update 2, data set rows " in error or "is inf at update 2, data set rows " in error
    assert error.endswith("stopped before the update; lower lr or look at these rows")
    assert latest_run_state(tmp_path / "checkpoints").name == "step_1"
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert not (tmp_path / "model").exists()


def test_a_host_that_runs_out_of_memory_gets_a_checkpoint_first(inputs, grpo_run, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("r1parallel.training.run.host_memory_used_fraction", lambda: 0.97)
    run = tmp_path / "run"
    shutil.copytree(grpo_run, run)
    flags = grpo_flags(inputs, run, max_steps=20, resume_training="true", monitor_config__host_memory_protection="true")
    error = refused("run_grpo.py", flags)
    assert error.startswith(f"step {GRPO_STEPS + 1}: the host's memory is more than 95% used; a checkpoint was written")
    assert latest_run_state(run / "checkpoints").name == f"step_{GRPO_STEPS + 1}"
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == GRPO_STEPS + 1


def test_an_sft_run_that_fills_the_hosts_memory_gets_a_checkpoint_and_goes_on(
    inputs, sft_run, refused, tmp_path, monkeypatch
):
    run, protected = tmp_path / "run", {"monitor_config__host_memory_protection": "true"}
    with monkeypatch.context() as full:
        full.setattr("r1parallel.training.run.host_memory_used_fraction", lambda: 0.97)
        assert refused("run_sft.py", sft_flags(inputs, run, **protected)) == (
            "step 1: the host's memory is more than 95% used; a checkpoint was written, go on with --resume_training "
            "on a host with more memory or a smaller batch"
        )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_1"]
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1]
    assert not (run / "model").exists()
    monkeypatch.setattr("r1parallel.training.run.host_memory_used_fraction", lambda: 0.94)
    assert run_script("run_sft.py", sft_flags(inputs, run, resume_training="true", **protected)) == 0
    assert folder_bytes(run / "model") == folder_bytes(sft_run / "model")


def test_without_protection_a_full_host_stops_nothing(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("r1parallel.training.run.host_memory_used_fraction", lambda: 0.97)
    assert run_script("run_sft.py", sft_flags(inputs, tmp_path / "run", max_steps=2, eval_dataset_file="")) == 0


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("run_grpo.py", lambda inputs, run: grpo_flags(inputs, run, dataset_file="none")),
        (
            "run_sft.py",
            lambda inputs, run: sft_flags(inputs, run),
        ),  # before a graph is compiled
    ],
)
def test_a_process_ends_with_one_line_and_code_2(script, flags, inputs, sft_run, untouched):
    command = [sys.executable, str(REPOSITORY / script), *flags(inputs, sft_run)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert ended.stdout == ""
