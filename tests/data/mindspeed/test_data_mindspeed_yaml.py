"""Data set YAMLs of MindSpeed-RL, as its configs/datasets have them, through the command and back."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from data_helpers import tool_main

from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.data.mindspeed.yaml_file import read_dataset_yaml
from r1parallel.data.templates import render
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

pytest.importorskip("mindspore.mindrecord")
preprocess_data = tool_main("preprocess_data")

DEEPSCALER = """\
input: ./dataset/deepscaler.json
tokenizer_name_or_path: ./model_from_hf/qwen25-7b
output_prefix: ./dataset/data
handler_name: R1AlpacaStyleInstructionHandler
tokenizer_type: HuggingFaceTokenizer
workers: 8
log_interval: 1000
prompt_type: qwen_r1
map_keys: {"prompt":"problem", "query":"", "response": "answer", "system":""}
dataset_additional_keys: ["labels"]
"""
MATH_17K = """\
input: ./dataset/dapo-math-17k.parquet
tokenizer_name_or_path: ./model_from_hf/qwen25-7b
output_prefix: ./dataset/data
handler_name: Math17kAlpacaStyleInstructionHandler
tokenizer_type: HuggingFaceTokenizer
workers: 8
log_interval: 1000
prompt_type: empty
dataset_additional_keys: [labels]
map_keys:  {"prompt":"prompt", "query":"", "response": "reward_model", "system":""}
"""
ALPACA = """\
input: ./dataset/alpaca
tokenizer_name_or_path: ./model_from_hf/qwen25-7b
output_prefix: ./dataset/data
handler_name: AlpacaStyleInstructionHandler
tokenizer_type: HuggingFaceTokenizer
workers: 8
log_interval: 1000
prompt_type: qwen
pack: True
seq_length: 400
"""
PROBLEMS = [
    {"problem": "Find $x$.", "answer": "7", "solution": "So $x=7$."},
    {"problem": "Half?", "answer": "\\frac{1}{2}", "solution": ""},
]


@pytest.fixture
def home(tmp_path, byte_folder, monkeypatch):
    """A working directory as their YAMLs expect it, with the data sets in their own forms."""
    (tmp_path / "dataset" / "alpaca").mkdir(parents=True)
    (tmp_path / "model_from_hf").mkdir()
    byte_folder.rename(tmp_path / "model_from_hf" / "qwen25-7b")
    (tmp_path / "dataset" / "deepscaler.json").write_text(json.dumps(PROBLEMS, indent=2))
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"content": f"Solve {i}.\nEnd with Answer:", "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(i), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"id-{i}"},
        }
        for i in range(3)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "dataset" / "dapo-math-17k.parquet")
    for name, word in (("b", "la"), ("a", "do")):
        row = {"instruction": "Sing", "input": word, "output": word * 2, "text": "unread"}
        (tmp_path / "dataset" / "alpaca" / f"{name}.jsonl").write_text(json.dumps(row))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(home):
    """Prompts, answers and solutions of the file, and its two sizes."""
    rows = read_mindrecord(home / "dataset" / "data.mindrecord")
    decode = load_tokenizer(home / "model_from_hf" / "qwen25-7b").decode
    prompts = [decode(ids[:n]) for ids, n in zip(rows.prompt_ids, rows.prompt_lengths, strict=True)]
    answers = [decode(ids[:n]) for ids, n in zip(rows.answer_ids, rows.answer_lengths, strict=True)]
    return prompts, answers, rows.solutions, (rows.prompt_ids.shape[1], rows.answer_ids.shape[1])


def run(home, yaml, *flags):
    (home / "x.yaml").write_text(yaml)
    preprocess_data(["--config", "x.yaml", *flags])


def test_deepscaler(home, capsys):
    run(home, DEEPSCALER)
    prompts, answers, solutions, sizes = written(home)
    tokenizer = load_tokenizer(home / "model_from_hf" / "qwen25-7b")
    assert prompts == [render("mindspeed_qwen_r1", row["problem"], tokenizer) for row in PROBLEMS]
    assert (answers, solutions, sizes) == (["", ""], ["7", "\\frac{1}{2}"], (2048, 1))
    assert capsys.readouterr().out.splitlines() == [
        "handler_name: R1AlpacaStyleInstructionHandler gives prompts and gold solutions, for GRPO; "
        "no answer to learn is kept",
        "output_prefix: the file is dataset/data.mindrecord, with its .db",
        "dataset_additional_keys: labels is the column solution, as text",
        "prompt_type: MindSpeed-RL's template qwen_r1, here mindspeed_qwen_r1",
        "workers: no meaning here, rows are tokenised in one process",
        "log_interval: no meaning here, a progress bar is shown instead",
        "seq_length: prompts of up to 2048 tokens are kept, with answers 2049 in all",
        "dataset/data.mindrecord: 2 rows written, 0 dropped as too long, 0 bad",
    ]


def test_math_17k_by_name_as_their_shell_script_does(home):
    (home / "configs" / "datasets").mkdir(parents=True)
    (home / "configs" / "datasets" / "math_17k.yaml").write_text(MATH_17K)
    preprocess_data(["math_17k", "--num_rows", "2"])
    prompts, answers, solutions, _ = written(home)
    assert prompts == [f"Solve {i}.\nEnd with Answer:" for i in range(2)]
    assert (answers, solutions) == (["", ""], ["0", "1"])


def test_alpaca_from_a_folder_gives_answers_to_learn(home, capsys):
    run(home, ALPACA)
    prompts, answers, solutions, sizes = written(home)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert prompts[0] == f"{system}<|im_start|>user\nSing\ndo<|im_end|>\n<|im_start|>assistant\n"
    assert (answers, solutions, sizes) == (["dodo<|im_end|>", "lala<|im_end|>"], ["dodo", "lala"], (200, 200))
    assert "pack: no meaning here, the file holds one row an example" in capsys.readouterr().out


def test_rows_as_long_as_seq_length_are_dropped_as_theirs_are(home, capsys):
    yaml = DEEPSCALER.replace("qwen_r1", "empty").replace("answer", "solution")
    (home / "dataset" / "deepscaler.json").write_text(
        json.dumps([{"problem": "x" * n, "solution": "1"} for n in (9, 10, 11)])
    )
    run(home, yaml + "seq_length: 10\n")
    assert [len(prompt) for prompt in written(home)[0]] == [9]
    assert "1 rows written, 2 dropped as too long" in capsys.readouterr().out
    run(home, yaml + "seq_length: 10\n", "--max_prompt_length", "10", "--overwrite")
    assert written(home)[3] == (10, 1)


def test_columns_for_query_and_system_and_a_file_of_templates(home):
    slots = {"format_user": {"slots": ["Q: {{content}}\nA:"]}, "format_system": {"slots": ["({{content}})"]}}
    (home / "mine.json").write_text(json.dumps([{"name": "mine", **slots}]))
    rows = [{"problem": "p", "extra": "e", "sys": "s", "answer": ["1"]}, {"problem": "q", "extra": "", "answer": "2"}]
    (home / "dataset" / "deepscaler.json").write_text(json.dumps(rows))
    keys = '\'{"prompt":"problem", "query":"extra", "response": "answer", "system":"sys"}\''  # JSON in a text
    yaml = DEEPSCALER.replace("qwen_r1", "mine\nprompt_type_path: ./mine.json")
    yaml = yaml.replace('["labels"]', "labels").replace(
        yaml[yaml.index('{"prompt') : yaml.index("\ndataset_add")], keys
    )
    run(home, yaml)
    assert written(home)[0] == ["(s)Q: p\ne\nA:", "Q: q\nA:"]
    assert written(home)[2] == ["1", "2"]


def test_bad_rows_stop_or_are_skipped(home, capsys):
    rows = [PROBLEMS[0], {"problem": "p", "answer": None}, {"problem": None, "answer": "1"}]
    rows.append({"problem": "p", "answer": ["1", "2"]})
    (home / "dataset" / "deepscaler.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"item 2: 'answer' is missing or empty; .*--skip_bad_rows"):
        run(home, DEEPSCALER)
    run(home, DEEPSCALER, "--skip_bad_rows")
    assert "1 rows written, 0 dropped as too long, 3 bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ('"query":"hint"', "map_keys: query: no row has the column 'hint'; mend the name"),
        ('"response": "anser"', "map_keys: response: no row has the column 'anser'"),
    ],
)
def test_a_column_that_no_row_has(home, column, message):
    old = '"query":""' if "query" in column else '"response": "answer"'
    with pytest.raises(UserError, match=message):
        run(home, DEEPSCALER.replace(old, column), "--skip_bad_rows")
    assert not (home / "dataset" / "data.mindrecord").exists()


CHANGES = [
    ("workers: 8", "worker: 8", r"x\.yaml:6: worker: unknown key of a data set YAML; did you mean workers\?"),
    ("workers: 8", "zzz: 8", "zzz: unknown key .* known: input"),
    ("workers: 8", "input: y", r"x\.yaml:6: input was given in line 1 already"),
    ("R1AlpacaStyleInstruction", "AlpacaStylePairwise", "pairs of a better and a worse answer, .*; use R1Alpaca"),
    ("R1AlpacaStyleInstruction", "AlpacaStyleProcessReward", "a label for each step .*; use R1Alpaca"),
    ("R1AlpacaStyleInstruction", "Own", r"handler_name: is 'OwnHandler'; known: AlpacaStyleInstructionHandler, R1"),
    ("HuggingFaceTokenizer", "Gpt2", "tokenizer_type: is 'Gpt2'; only HuggingFaceTokenizer is known"),
    ("qwen_r1", "gemma", "prompt_type 'gemma' is not among"),
    ("qwen_r1", "5", "prompt_type: is 5; expected text"),
    ("workers: 8", "seq_length: 1", "seq_length: is 1; expected a whole number of at least 2"),
    ("workers: 8", "enable_thinking: 1", "enable_thinking: is 1; expected true or false"),
    ("workers: 8", "merge_group_keys: [a]", "merge_group_keys: there is nothing to merge"),
    ('"query":""', '"history":"h"', "map_keys: history: several turns"),
    ('"query":""', '"quary":""', "map_keys: 'quary' is unknown; known: prompt, query, response, system"),
    ('"query":""', '"query":5', "map_keys: is .* expected names of columns"),
    ('"response": "answer"', '"response": ""', "map_keys: response names no column"),
    ('"prompt":"problem"', '"prompt":""', "map_keys: prompt names no column"),
    ('map_keys: {"prompt"', "map_keys: '{prompt'  # {", "expected keys and values"),
    ("deepscaler.json", "none.json", "input dataset/none.json: no such file or folder; a data set of a hub"),
    ("dataset/deepscaler.json", "dataset", r"must all end with one of \.json, .*; found \.json, \.parquet"),
    ("./model_from_hf/qwen25-7b", "./none", "none: no such tokenizer folder"),
    ("input: ./dataset/deepscaler.json\n", "", "input is missing; add it"),
]


@pytest.mark.parametrize(("old", "new", "message"), CHANGES)
def test_what_cannot_be_read_is_refused_in_one_line(home, old, new, message):
    assert old in DEEPSCALER
    with pytest.raises(UserError, match=message) as caught:
        run(home, DEEPSCALER.replace(old, new, 1))
    assert "\n" not in str(caught.value)
    assert not (home / "dataset" / "data.mindrecord").exists()


def test_unreadable_yamls(home):
    for content, message in (
        ("a: [", "not readable as YAML"),
        ("- a", "expected keys and values"),
        ("", "expected keys"),
    ):
        with pytest.raises(UserError, match=message):
            run(home, content)
    with pytest.raises(UserError, match=r"configs/datasets/none\.yaml: no such data set YAML"):
        preprocess_data(["none"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--file_path", "y"], "--file_path: the YAML names it"),
        (["--prompt_type", "qwen"], "--prompt_type: the YAML names it"),
        (["deepscaler"], "'deepscaler' and --config both name"),
        (["--max_prompt_length", "0"], "max_prompt_length is 0; it must be at least 1"),
    ],
)
def test_flags_that_do_not_go_with_a_yaml(home, flags, message):
    with pytest.raises(UserError, match=message):
        run(home, DEEPSCALER, *flags)


def reported(home, yaml):
    lines = []
    (home / "x.yaml").write_text(yaml)
    settings = read_dataset_yaml("x.yaml", lines.append)
    return settings, lines


def test_every_key_without_a_meaning_is_named(home):
    extra = "streaming: false\nn_subs: 4\nneat_pack: false\nscript_data_dir:\nappend_eod: true\nseq_length:\n"
    settings, lines = reported(home, DEEPSCALER.replace('["labels"]', '["labels", "level"]') + extra)
    assert settings.seq_length is None
    told = {line.split(":")[0] for line in lines}
    assert {"streaming", "n_subs", "neat_pack", "append_eod", "workers", "log_interval"} <= told
    assert "dataset_additional_keys: level is not kept, rewards get the solution only" in lines
    assert "script_data_dir" not in told  # it has no value


def test_thinking(home):
    off = "enable_thinking: off, so each prompt ends with an empty thought"
    assert off in reported(home, DEEPSCALER.replace("qwen_r1", "qwen3"))[1]
    settings, lines = reported(home, DEEPSCALER.replace("qwen_r1", "qwen3") + "enable_thinking: true\n")
    assert settings.enable_thinking and off not in lines
    _, lines = reported(home, DEEPSCALER + "enable_thinking: true\n")
    assert "enable_thinking: no meaning for the template qwen_r1, which knows no thoughts" in lines
