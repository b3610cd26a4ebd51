"""Command lines of mindrlhf's rlhf_data.py, as its guide has them."""

import json

import pytest
from data_helpers import tool_main
from tokenizers import pre_tokenizers

from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

pytest.importorskip("mindspore.mindrecord")
preprocess_data = tool_main("preprocess_data")

GSM8K = {"question": "2 pens at 3?", "answer": "2*3=6\n#### 6"}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """vocab.json of Qwen2.5's size, with the bytes alone in use, and a merges.txt with one merge."""
    folder = tmp_path_factory.mktemp("vocabulary")
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "pe"]
    pieces += [f"unused {i}" for i in range(151643 - len(pieces))]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\np e\n")
    return folder


def run(tmp_path, vocabulary, rows, *flags):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--vocab_path", f"{vocabulary}/vocab.json", "--merges_file_path", f"{vocabulary}/merges.txt"]
    # the slash behind the file stands in their guide
    preprocess_data([*files, "--file_path", f"{tmp_path}/train.jsonl/", "--output_path", f"{tmp_path}/x", *flags])
    rows = read_mindrecord(tmp_path / "x")
    decode = load_tokenizer(vocabulary).decode
    return (
        [decode(ids[:n]) for ids, n in zip(rows.prompt_ids, rows.prompt_lengths, strict=True)],
        [decode(ids[:n]) for ids, n in zip(rows.answer_ids, rows.answer_lengths, strict=True)],
        rows,
    )


def test_gsm8k(tmp_path, vocabulary, capsys):
    sizes = ["--max_prompt_length", "64", "--seq_length", "128"]
    flags = ["--dataset_type", "gsm8k", "--pad_token_id", "151643", *sizes]
    long = {"question": "q", "answer": "x" * 200 + "#### 7"}
    prompts, answers, rows = run(tmp_path, vocabulary, [GSM8K, long, {**GSM8K, "question": "q" * 65}], *flags)
    assert prompts == ["2 pens at 3?", "q"]  # no template, no line end
    assert (answers, rows.solutions) == (["2*3=6\n#### 6<|im_end|>", ""], ["6", "7"])
    assert rows.prompt_ids[0, -1] == 151643
    assert capsys.readouterr().out.splitlines() == [
        f"--vocab_path, --merges_file_path: the tokenizer is that of --tokenizer_dir {vocabulary}",
        "rows that do not fit are dropped and counted, not cut; an answer that does not fit is left out",
        "--pad_token_id 151643: no meaning here, lengths tell padding from text",
        "--prompt_type: not given, so raw, the question as it stands",
        f"{tmp_path}/x: 2 rows written, 1 dropped as too long, 0 bad",
    ]


def test_openr1math_and_templates_of_ours(tmp_path, vocabulary):
    row = {"question": "1/2?", "answer": "\\frac{1}{2}", "other": 1}
    prompts, _, rows = run(tmp_path, vocabulary, [row], "--dataset_type", "openR1math", "--prompt_type", "plain")
    assert (prompts, rows.solutions) == (["1/2?\n"], ["\\frac{1}{2}"])
    assert (rows.prompt_ids.shape[1], rows.answer_ids.shape[1]) == (2048, 2048)  # their defaults


def test_no_data_set_type_is_question_and_answer(tmp_path, vocabulary, capsys):
    prompts, answers, rows = run(tmp_path, vocabulary, [{"question": "q", "answer": "a"}])
    assert (prompts, answers, rows.solutions) == (["q"], ["a<|im_end|>"], ["a"])
    assert "--dataset_type: not given, so question_answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_type", "mine"], "dataset_type 'mine' is unknown; known: .*question_answer"),
        (["--tokenizer_dir", "t"], "--vocab_path and --tokenizer_dir both name a tokenizer; give one"),
        (["--vocab_path", "none.json"], "--vocab_path none.json: no such file"),
    ],
)
def test_what_must_change_is_said(tmp_path, vocabulary, flags, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, vocabulary, [GSM8K], *flags)


def test_tokenizer_files_of_other_names(tmp_path, vocabulary):
    other = tmp_path / "qwen_vocab.json"
    other.write_text("{}")
    with pytest.raises(UserError, match=r"must be vocab\.json and merges\.txt of one folder; copy them into one"):
        run(tmp_path, vocabulary, [GSM8K], "--vocab_path", str(other))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocab_path", "v"], "--vocab_path and --merges_file_path go together"),
        (["--pad_token_id", "0"], "--pad_token_id goes with mindrlhf's --vocab_path"),
        (["--file_path", "x"], "missing: --dataset_type, --tokenizer_dir, --output_path; or give --config"),
    ],
)
def test_missing_flags(flags, message):
    with pytest.raises(UserError, match=message):
        preprocess_data(flags)
