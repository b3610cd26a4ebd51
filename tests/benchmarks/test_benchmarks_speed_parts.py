import json

import pytest

from benchmarks.speed import answers as speed_answers
from benchmarks.speed import parts as speed_parts
from r1parallel.errors import UserError
from r1parallel.rewards.functions.accuracy import accuracy_reward, math_verify_reward

PROBLEM = {"question": "How many?", "answer": "Half of 2,000.\n#### 1,000"}


@pytest.fixture
def batches(tmp_path):
    source = tmp_path / "train.jsonl"
    source.write_text(json.dumps(PROBLEM) + "\n")
    return speed_answers.answer_batches(source, 2)


def test_batches_differ_and_are_the_same_again(tmp_path, batches):
    assert {len(column) for batch in batches for column in batch.values()} == {256}
    assert batches[0]["completions"][128:] != batches[1]["completions"][128:]
    assert batches == speed_answers.answer_batches(tmp_path / "train.jsonl", 2)


def test_about_half_of_the_answers_are_right(batches):
    """Also of each kind, and both of our rewards say so."""
    part = {name: values[96:160] for name, values in batches[0].items()}
    columns = {"prompts": [""] * 64, **part}
    scores = accuracy_reward(**columns)
    assert scores == math_verify_reward(**columns)
    assert set(scores) == {0.0, 1.0}
    for half in (scores[:32], scores[32:]):
        assert 8 <= sum(half) <= 24


def one(*iterations: dict) -> dict:
    return {"warm_up": list(iterations[:1]), "iterations": list(iterations[1:])}


def test_scores_must_agree():
    parts = speed_parts
    found = parts.scores_of(one({"scores": [1.0, None]}, {"scores": [0.0]}))
    assert found == [[1.0, None], [0.0]]
    parts.check_scores("reward", found, [[1.0, None], [0.0]])
    with pytest.raises(UserError, match="reward: ours and the peer judge differently"):
        parts.check_scores("reward", found, [[1.0, 0.0], [0.0]])


@pytest.mark.parametrize(
    ("peer", "same"),
    [
        (one({"examples": 3, "ids": 9}), True),
        (one({"examples": 3, "ids": 9}, {"examples": 3, "ids": 8}), False),
        (one({"examples": 2, "ids": 9}), False),
        (one({"examples": 3}), False),
    ],
)
def test_data_must_agree(peer, same):
    check, ours = speed_parts.check_data, one({"examples": 3, "ids": 9}, {"examples": 3, "ids": 9})
    if same:
        check("data_read", ours, peer)
        return
    with pytest.raises(UserError, match="data_read: examples and token ids are"):
        check("data_read", ours, peer)
