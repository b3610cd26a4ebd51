import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from r1parallel.data.text.sources import DATASET_TYPES, Example, ExampleSource
from r1parallel.errors import UserError

GOOD = {
    "gsm8k": {"question": "q", "answer": "first #### 3\nthen\n#### 1,234 "},
    "countdown": {"nums": [1, 2, 30], "target": 32, "answer": "<answer>30+2*1</answer>"},
    "arithmetic": {"question": "1+2=", "answer": "<answer>3</answer>", "solution": "3"},
    "alpaca": {"instruction": "Sort", "input": "b a", "output": "a b"},
    "openr1_math": {"problem": "p", "solution": "so \\boxed{1}", "answer": "1", "extra": 1},
    "deepscaler": {"problem": "p", "solution": "so \\boxed{1}", "answer": "1"},
    "math_17k": {
        "prompt": [{"role": "user", "content": "q\nEnd with Answer:"}],
        "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "9a"},
    },
    "openR1math": {"question": "q", "answer": "\\frac{1}{2}"},
    "question_answer": {"question": "q", "answer": "a"},
}
COUNTDOWN_QUESTION = (
    "Combine the numbers 1, 2 and 30 into an arithmetic expression that equals 32. Use each number exactly once, and "
    "only +, -, *, / and parentheses. Write the expression alone between <answer> and </answer>."
)
EXPECTED = {
    "gsm8k": Example("q", GOOD["gsm8k"]["answer"], "1234"),
    "countdown": Example(COUNTDOWN_QUESTION, "<answer>30+2*1</answer>", '{"nums": [1, 2, 30], "target": 32}'),
    "arithmetic": Example("1+2=", "<answer>3</answer>", "3"),
    "alpaca": Example("Sort\nb a", "a b", "a b"),
    "openr1_math": Example("p", "so \\boxed{1}", "1"),
    "deepscaler": Example("p", "so \\boxed{1}", "1"),
    "math_17k": Example("q\nEnd with Answer:", "", "34"),
    "openR1math": Example("q", "\\frac{1}{2}", "\\frac{1}{2}"),
    "question_answer": Example("q", "a", "a"),
}
PROMPTS_ALONE = ("math_17k",)  # the data set has nothing to learn from


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("dataset_type", DATASET_TYPES)
def test_rows_of_each_type(dataset_type, tmp_path):
    row, expected = GOOD[dataset_type], EXPECTED[dataset_type]
    lines = write_lines(tmp_path / "x.jsonl", ["", row, " ", row])
    whole = tmp_path / "x.json"
    whole.write_text("\ufeff\n " + json.dumps([row, row], indent=1), encoding="utf-8")
    parquet = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), parquet)
    for path in (lines, whole, parquet):
        required = dataset_type not in PROMPTS_ALONE
        assert list(ExampleSource(dataset_type, path, answers_required=required)) == [expected, expected]


def test_math_17k_processed_has_plain_columns(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"prompt": "q", "solution": "34"}])
    assert list(ExampleSource("math_17k", path, answers_required=False)) == [Example("q", "", "34")]


def test_math_17k_has_no_answer_to_learn(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [GOOD["math_17k"]])
    with pytest.raises(UserError, match="no answer to learn; use --prompts_only"):
        list(ExampleSource("math_17k", path))


def test_alpaca_input_is_optional(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"instruction": "Sing", "output": "la"}])
    assert list(ExampleSource("alpaca", path)) == [Example("Sing", "la", "la")]


def test_line_separators_inside_text_do_not_end_a_line(tmp_path):
    row = {"question": "a\u2028b\u0085c", "answer": "#### 1"}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert [example.question for example in ExampleSource("gsm8k", path)] == ["a\u2028b\u0085c"]


BAD = [
    ("gsm8k", "{", "not readable as JSON"),
    ("gsm8k", "[1]", "expected an object"),
    ("gsm8k", {"question": "q"}, "'answer' is missing or empty"),
    ("gsm8k", {"question": "  ", "answer": "#### 1"}, "'question' is missing or empty"),
    ("gsm8k", {"question": 5, "answer": "#### 1"}, "'question' is 5; expected text"),
    ("gsm8k", {"question": "q", "answer": "18"}, "no '#### '"),
    ("gsm8k", {"question": "q", "answer": "x #### "}, "no '#### '"),
    ("gsm8k", {"question": "q \ud83d", "answer": "#### 1"}, "half of a surrogate pair"),
    ("countdown", {"nums": [1], "target": 1}, "at least two whole numbers"),
    ("countdown", {"nums": [1, True], "target": 1}, "at least two whole numbers"),
    ("countdown", {"nums": [1, 2], "target": "3"}, "'target' is '3'"),
    ("countdown", {"nums": [1, 2], "target": 3}, "no answer to learn"),
    ("openr1_math", {"problem": "p", "answer": "1", "solution": None}, "no answer to learn"),
    ("openr1_math", {"problem": "p", "answer": None, "solution": "s"}, "'answer' is missing or empty"),
    ("math_17k", {"prompt": [], "reward_model": {"ground_truth": "1"}}, r"'prompt' is \[\]; expected one message"),
    ("math_17k", {"prompt": ["q"], "reward_model": {"ground_truth": "1"}}, "expected one message"),
    ("math_17k", {"prompt": [{"content": " "}], "reward_model": {"ground_truth": "1"}}, "'content' is missing"),
    ("math_17k", {"prompt": "q", "reward_model": {"ground_truth": 5}}, "'ground_truth' is 5; expected text"),
    ("math_17k", {"prompt": "q"}, "'solution' is missing or empty"),
]


@pytest.mark.parametrize(("dataset_type", "row", "message"), BAD)
def test_malformed_rows_are_named_or_counted(dataset_type, row, message, tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [GOOD[dataset_type], row, GOOD[dataset_type]])
    required = dataset_type not in PROMPTS_ALONE
    with pytest.raises(UserError, match=rf"x\.jsonl:2: .*{message}.*--skip_bad_rows"):
        list(ExampleSource(dataset_type, path, answers_required=required))
    source = ExampleSource(dataset_type, path, skip_bad_rows=True, answers_required=required)
    for _ in range(2):  # the count starts anew with each pass
        assert list(source)[-1] == EXPECTED[dataset_type]
        assert source.bad == 1


def test_bytes_that_are_no_utf8_are_a_bad_row(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"question": "\xff", "answer": "#### 1"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:1: not readable as JSON"):
        list(ExampleSource("gsm8k", path))


def test_answers_may_be_missing_where_only_prompts_are_needed(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"nums": [1, 2], "target": 3}])
    (example,) = ExampleSource("countdown", path, answers_required=False)
    assert example.answer == ""


def test_items_and_parquet_rows_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([GOOD["alpaca"], {}]))
    with pytest.raises(UserError, match=r"x\.json: item 2: 'instruction' is missing"):
        list(ExampleSource("alpaca", path))
    path = tmp_path / "x.parquet"
    rows = [{"problem": "p", "solution": "s", "answer": answer} for answer in ("1", None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(UserError, match=r"x\.parquet: row 2: 'answer' is missing"):
        list(ExampleSource("openr1_math", path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"\n \n", "the data set is empty"),
        ("x.jsonl", b"", "the data set is empty"),
        ("x.json", b"[]", "the data set is empty"),
        ("x.json", b"[{]", "x.json: not readable as JSON"),
        ("x.parquet", b"PAR1", "not readable as Parquet"),
    ],
)
def test_unusable_files_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(ExampleSource("alpaca", path, skip_bad_rows=True))


def test_parquet_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(UserError, match="none of the columns problem, solution, answer"):
        list(ExampleSource("openr1_math", path))


def test_unknown_type_and_missing_file(tmp_path):
    with pytest.raises(UserError, match="'gsm' is unknown; known: gsm8k, countdown, arithmetic, alpaca, openr1_math"):
        ExampleSource("gsm", tmp_path / "x")
    with pytest.raises(UserError, match="no such file"):
        ExampleSource("gsm8k", tmp_path / "x")


def test_all_of_gsm8k(shared_dir):
    path = shared_dir / "data" / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    examples = list(ExampleSource("gsm8k", path))
    assert len(examples) == 1319
    assert examples[0].solution == "18"
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", example.solution) for example in examples)
