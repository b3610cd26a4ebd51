"""tools/generate.py on a tiny checkpoint of ours, in this process."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.one_rank import save_model

from r1parallel.config.model import ModelConfig
from r1parallel.data.problems.arithmetic import write_character_tokenizer
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

TOOL = Path(__file__).parents[2] / "tools" / "generate.py"
PROMPTS = ["12+3=", "7-", "100-99=1", "5+5="]
TOKENS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory, mindspore_cpu, noisy_values) -> SimpleNamespace:
    """A checkpoint with its tokenizer, and prompts."""
    folder = tmp_path_factory.mktemp("generate")
    write_character_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    config = ModelConfig(tokenizer.vocab_size + 3, 16, 24, 1, 2, 1, max_position_embeddings=20)
    values = noisy_values(config, seed=3)
    save_model(folder / "model", values, config, folder / "tokenizer", tokenizer.stop_ids)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return SimpleNamespace(folder=folder, model=folder / "model", prompts=prompts, tokenizer=tokenizer)


@pytest.fixture
def generate(files, tmp_path) -> Callable[..., list[dict]]:
    """generate(flag=value, …) → the rows that were written."""
    main = runpy.run_path(str(TOOL))["main"]

    def call(**changes) -> list[dict]:
        output = tmp_path / "out.jsonl"
        output.unlink(missing_ok=True)
        flags = {"model": files.model, "prompts": files.prompts, "output": output, "max_new_tokens": TOKENS}
        try:
            main([f"--{flag}={value}" for flag, value in (flags | changes).items()])
        except UserError as error:
            assert "\n" not in str(error)
            assert list(tmp_path.iterdir()) == []  # nothing half written
            raise
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    return call


def test_rows_come_out_in_order_with_all_keys(generate, files, capsys):
    rows = generate(seed=6)
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:
        assert list(row) == ["prompt", "prompt_ids", "completion_ids", "completion", "logps"]
        assert row["prompt_ids"] == files.tokenizer.encode(row["prompt"])
        assert 1 <= len(row["completion_ids"]) == len(row["logps"]) <= TOKENS
        assert row["completion"] == files.tokenizer.decode(row["completion_ids"], skip_special_tokens=True)
        assert max(row["logps"]) < 0.0
        body = row["completion_ids"][:-1]
        assert not set(body) & set(files.tokenizer.stop_ids)
    assert "4 completions" in capsys.readouterr().out


def test_a_seed_gives_the_same_rows_in_any_batch(generate):
    rows, others = generate(seed=5), generate(seed=5, batch_size=3)
    assert len({tuple(row["completion_ids"]) for row in rows}) > 1
    assert [row["completion_ids"] for row in rows] == [row["completion_ids"] for row in others]
    for row, other in zip(rows, others, strict=True):
        np.testing.assert_allclose(row["logps"], other["logps"], rtol=0, atol=1e-5)


def test_a_template_and_a_configuration_file(generate, tmp_path_factory, files):
    """The prompt is written as the model saw it; flags are stronger than the file."""
    config = tmp_path_factory.mktemp("config") / "predict.yaml"
    config.write_text("generate_config:\n  sampling_config: {temperature: 0.0, max_tokens: 2, eos_token_id: [31]}\n")
    rows = generate(prompt_type="plain", config=config, max_new_tokens=5)
    assert [row["prompt"] for row in rows] == [f"{prompt}\n" for prompt in PROMPTS]
    assert [len(row["completion_ids"]) for row in rows] == [5] * 4  # 31 is a row of the embedding without a token


def test_a_single_file_and_a_tokenizer_from_elsewhere(generate, files):
    """Greedy, so that the seed changes nothing."""
    file = files.model / "model.safetensors"
    rows = generate(model=file, tokenizer_dir=files.folder / "tokenizer", temperature=0, seed=1)
    assert rows == generate(temperature=0, seed=2)


def test_missing_model(generate, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/none: no such checkpoint"):
        generate(model=tmp_path / "none")


def test_a_folder_without_sizes(generate, files):
    with pytest.raises(UserError, match="no such model configuration"):
        generate(model=files.folder / "tokenizer")


def test_missing_prompts_file(generate, files):
    with pytest.raises(UserError, match="no such prompts file"):
        generate(prompts=files.folder / "none.jsonl")


def test_bad_line_of_the_prompts_file(generate, tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "prompts.jsonl"
    path.write_text('{"prompt": "1+1="}\nplain text\n')
    with pytest.raises(UserError, match=f"{path}:2: no JSON"):
        generate(prompts=path)


def test_a_prompt_that_the_tokenizer_cannot_express(generate, tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "prompts.jsonl"
    path.write_text('{"prompt": "Q"}\n')
    with pytest.raises(UserError, match="cannot encode 'Q'"):
        generate(prompts=path)


def test_the_tokenizer_of_another_model(generate, files, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for file in (files.folder / "tokenizer").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word{i}": len(content["model"]["vocab"]) + i for i in range(9)}
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{other}: the tokenizer has .* rows; is it the tokenizer of this model"):
        generate(tokenizer_dir=other)


def test_no_room_for_the_completion(generate):
    with pytest.raises(UserError, match="max_position_embeddings 20; shorten"):
        generate(max_new_tokens=13)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("temperature", "hot", "generate_config.sampling_config.temperature"),
        ("top_p", 0, "generate_config.sampling_config.top_p is 0.0; it must be above 0"),
        ("batch_size", 0, "generate_config.infer_model_batch_size is 0; it must be at least 1"),
        ("config", "none.yaml", "none.yaml"),
    ],
)
def test_bad_flags(generate, flag, value, message):
    with pytest.raises(UserError, match=message):
        generate(**{flag: value})


def test_a_configuration_for_ascend_is_refused_on_the_cpu(generate, tmp_path_factory):
    file = tmp_path_factory.mktemp("configuration") / "predict.yaml"
    file.write_text("context:\n  device_target: Ascend\n  compute_dtype: bfloat16\n")
    with pytest.raises(UserError, match="compute_dtype is bfloat16, which the CPU cannot compute in"):
        generate(config=file, device_target="CPU")


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5"])
def test_a_seed_that_is_none(generate, capsys, seed):
    with pytest.raises(SystemExit):
        generate(seed=seed)
    assert f"{seed!r} is no number from 0 to 4294967295" in capsys.readouterr().err


def test_flags_are_not_abbreviated(files, capsys):
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL))["main"]([f"--model={files.model}", "--prompt=x", "--output=y"])
    assert stop.value.code == 2
    assert "--prompts" in capsys.readouterr().err
