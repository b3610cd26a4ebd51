"""pass@k, the bookkeeping of evaluate() on scripted answers, and tools/evaluate.py on a tiny checkpoint."""

import json
import runpy
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.one_rank import save_model

from r1parallel.config.model import ModelConfig
from r1parallel.data.problems.arithmetic import generate_arithmetic, write_character_tokenizer
from r1parallel.data.text.tokenizer import Tokenizer, load_tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import Completions
from r1parallel.rl.evaluate import DEFAULT_VERIFIERS, evaluate, pass_at_k

TOOL = Path(__file__).parents[2] / "tools" / "evaluate.py"


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_pass_at_k_counts_the_draws_with_a_right_answer(num_samples):
    for num_right in range(num_samples + 1):
        right = [i < num_right for i in range(num_samples)]
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in combinations(right, k)]
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(folder)
    return load_tokenizer(folder)


class Scripted:
    """Answers in the given order; notes what it was asked."""

    def __init__(self, tokenizer: Tokenizer, answers: Sequence[str]):
        self.tokenizer, self.answers = tokenizer, answers
        self.prompts: list[str] = []

    def answer(self, prompts: Sequence[Sequence[int]], seed: int) -> Completions:
        self.prompts, self.seed = [self.tokenizer.decode(prompt) for prompt in prompts], seed
        ids = [[*self.tokenizer.encode(answer), self.tokenizer.eos_token_id] for answer in self.answers]
        assert len(ids) == len(prompts)
        tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
        for row, row_ids in enumerate(ids):
            tokens[row, : len(row_ids)] = row_ids
        lengths = np.array([len(row) for row in ids], np.int32)
        logps = np.zeros(tokens.shape, np.float32)
        return Completions(tokens, lengths, logps, logps, np.ones(len(ids), bool))


def write_problems(path: Path, *problems: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "solution": s}) + "\n" for q, s in problems))
    return path


def test_one_answer_to_each_problem(tokenizer, tmp_path):
    path = write_problems(tmp_path / "a.jsonl", ("1+1=", "2"), ("2+2=", "4"), ("9-9=", "0"), ("5-1=", "4"))
    answers = ["<answer>2</answer>", "4", "<answer>0</answer><answer>1</answer>", "1<answer>4</answer>"]
    scripted = Scripted(tokenizer, answers)
    summary, rows = evaluate(scripted, "arithmetic", path, 1, "plain", None, seed=3)
    assert scripted.prompts == ["1+1=\n", "2+2=\n", "9-9=\n", "5-1=\n"]
    assert scripted.seed == 3
    assert summary == {
        "accuracy": 0.5,
        "pass@1": 0.5,
        "num_problems": 4,
        "num_samples": 1,
        "skipped": 0,
        "completion_length_mean": (4 + 2 + 7 + 5) / 4,  # tags are one token each; eos counts
        "verifier": "answer_reward",
    }
    assert [row["right"] for row in rows] == [[True], [False], [False], [True]]
    assert rows[1] == {"question": "2+2=", "solution": "4", "completions": ["4<|im_end|>"], "right": [False]}


def test_several_answers_to_each_problem(tokenizer, tmp_path):
    """Answers of one problem stand side by side: 2, 0 and 3 of 3 are right."""
    path = write_problems(tmp_path / "a.jsonl", ("1+1=", "2"), ("2+2=", "4"), ("9-9=", "0"), ("5-1=", "4"))
    given = ["2", "3", "2", "1", "2", "3", "0", "0", "0"]
    scripted = Scripted(tokenizer, [f"<answer>{number}</answer>" for number in given])
    summary, rows = evaluate(scripted, "arithmetic", path, 3, "raw", "answer_reward", seed=0, num_rows=3)
    assert scripted.prompts == ["1+1="] * 3 + ["2+2="] * 3 + ["9-9="] * 3
    assert [row["right"] for row in rows] == [[True, False, True], [False] * 3, [True] * 3]
    assert summary["accuracy"] == pytest.approx(5 / 9)
    assert [key for key in summary if key.startswith("pass@")] == ["pass@1", "pass@2", "pass@3"]
    assert summary["pass@1"] == pytest.approx(summary["accuracy"])
    assert summary["pass@2"] == pytest.approx((1 + 0 + 1) / 3)
    assert summary["pass@3"] == pytest.approx(2 / 3)
    assert (summary["num_problems"], summary["num_samples"]) == (3, 3)


def test_the_ks_are_powers_of_two_and_the_number_of_samples(tokenizer, tmp_path):
    path = write_problems(tmp_path / "a.jsonl", ("1+1=", "2"))
    scripted = Scripted(tokenizer, ["<answer>2</answer>", *["1"] * 8])
    summary, _ = evaluate(scripted, "arithmetic", path, 9, "raw", None, seed=0)
    assert {key: summary[key] for key in summary if key.startswith("pass@")} == pytest.approx(
        {"pass@1": 1 / 9, "pass@2": 2 / 9, "pass@4": 4 / 9, "pass@8": 8 / 9, "pass@9": 1.0}
    )


def test_problems_without_a_readable_gold_answer_count_as_skipped(tokenizer, tmp_path):
    path = write_problems(tmp_path / "a.jsonl", ("1+1=", "2"), ("2+2=", "four"), ("3+3=", "6"))
    scripted = Scripted(tokenizer, ["#### 2", "#### 4", "#### 4"])
    summary, rows = evaluate(scripted, "arithmetic", path, 1, "raw", "gsm8k_reward", seed=0)
    assert (summary["accuracy"], summary["num_problems"], summary["skipped"]) == (0.5, 2, 1)
    assert [row["right"] for row in rows] == [[True], [False], [False]]
    assert summary["verifier"] == "gsm8k_reward"


def test_nothing_left_to_score(tokenizer, tmp_path):
    path = write_problems(tmp_path / "a.jsonl", ("2+2=", "four"))
    with pytest.raises(UserError, match=f"{path}: no gold answer can be read by gsm8k_reward"):
        evaluate(Scripted(tokenizer, ["4"]), "arithmetic", path, 1, "raw", "gsm8k_reward", seed=0)


def test_a_data_set_without_a_verifier_of_its_own(tokenizer, tmp_path):
    assert "alpaca" not in DEFAULT_VERIFIERS
    with pytest.raises(UserError, match="alpaca has no verifier of its own; name one with --verifier_function"):
        evaluate(Scripted(tokenizer, []), "alpaca", tmp_path / "a.jsonl", 1, "raw", None, seed=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory, mindspore_cpu, noisy_values, tokenizer) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("evaluate")
    write_character_tokenizer(folder / "tokenizer")
    config = ModelConfig(tokenizer.vocab_size, 16, 24, 1, 2, 1, max_position_embeddings=32, tie_word_embeddings=True)
    save_model(folder / "model", noisy_values(config), config, folder / "tokenizer", tokenizer.stop_ids)
    problems = list(generate_arithmetic(5, seed=1, digits=(1, 2)))
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return SimpleNamespace(model=folder / "model", problems=problems, path=path)


@pytest.fixture
def run(files, capsys) -> Callable[..., dict]:
    """run(flag=value, …) → the summary that tools/evaluate.py prints."""
    main = runpy.run_path(str(TOOL))["main"]

    def call(**changes) -> dict:
        flags = {"model": files.model, "file_path": files.path, "dataset_type": "arithmetic", "max_new_tokens": 5}
        try:
            main([f"--{flag}={value}" for flag, value in (flags | changes).items()])
        except UserError as error:
            assert "\n" not in str(error)
            raise
        return json.loads(capsys.readouterr().out)

    return call


def test_command_line(run, files, tmp_path):
    summary = run(num_samples=2, num_rows=3, batch_size=4, output=tmp_path / "out.jsonl", seed=2)
    assert (summary["num_problems"], summary["num_samples"], summary["skipped"]) == (3, 2, 0)
    assert 1 <= summary["completion_length_mean"] <= 5
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == [problem["question"] for problem in files.problems[:3]]
    assert [row["solution"] for row in rows] == [problem["solution"] for problem in files.problems[:3]]
    right = [flag for row in rows for flag in row["right"]]
    assert summary["accuracy"] == sum(right) / 6
    assert any(one != two for one, two in (row["completions"] for row in rows))  # sampled, at temperature 1


def test_one_sample_is_greedy(run, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert run(seed=1, output=one) == run(seed=2, output=two)
    assert one.read_text() == two.read_text()
    assert len(one.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "--num_samples is 0; it must be at least 1"),
        ({"num_rows": 0}, "--num_rows is 0; it must be at least 1"),
        ({"num_samples": 2, "temperature": 0}, "--temperature is 0 with several samples"),
        ({"verifier_function": "answer_rewards"}, "unknown reward 'answer_rewards', did you mean 'answer_reward'"),
        ({"model": "none"}, "none: no such checkpoint"),
        ({"file_path": "none.jsonl"}, "none.jsonl: no such file"),
        ({"dataset_type": "gsm8k"}, "problems.jsonl:1: 'answer' has no '#### '"),
        ({"prompt_type": "chat"}, "has no chat_template"),
    ],
)
def test_mistakes_are_one_line(run, changes, message):
    with pytest.raises(UserError, match=message):
        run(**changes)
