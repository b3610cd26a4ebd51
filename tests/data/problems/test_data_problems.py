import ast
import json
import operator
import re
from fractions import Fraction

import pytest
from data_helpers import tool_main
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.data.problems.arithmetic import arithmetic_key, generate_arithmetic, write_character_tokenizer
from r1parallel.data.problems.countdown import countdown_key, generate_countdown
from r1parallel.data.text.sources import ExampleSource
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(text):
    """(exact value, numbers used) of an expression."""

    def walk(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value), [node.value]
        if isinstance(node, ast.UnaryOp):
            value, numbers = walk(node.operand)
            return -value, numbers
        (left, left_numbers), (right, right_numbers) = walk(node.left), walk(node.right)
        return OPERATIONS[type(node.op)](left, right), left_numbers + right_numbers

    return walk(ast.parse(text, mode="eval").body)


def parts(answer):
    match = re.fullmatch(r"<think>(.*)</think><answer>(.*)</answer>", answer)
    return match[1], match[2]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(2, 6), min_size=1, max_size=3))
def test_countdown_is_solved_by_its_answer(seed, sizes):
    rows = list(generate_countdown(20, seed, sizes))
    assert len({countdown_key(row) for row in rows}) == 20
    for row in rows:
        working, expression = parts(row["answer"])
        value, used = evaluate(expression)
        assert value == row["target"] and 1 <= row["target"] <= 100
        assert sorted(used) == sorted(row["nums"]) and len(used) in sizes
        assert len(working.split(", ")) == len(used) - 1
        for step in working.split(", "):
            left, right = step.split("=")
            assert evaluate(left)[0] == evaluate(right)[0]


def test_countdown_depends_on_the_seed_alone():
    assert list(generate_countdown(30, 7)) == list(generate_countdown(30, 7))
    assert list(generate_countdown(30, 7)) != list(generate_countdown(30, 8))


def test_countdown_leaves_out_the_excluded():
    held_out = {countdown_key(row) for row in generate_countdown(500, 1, (2,))}
    rows = generate_countdown(500, 1, (2,), held_out)
    assert not held_out & {countdown_key(row) for row in rows}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), digits=st.lists(st.integers(1, 4), min_size=1, max_size=2))
def test_arithmetic_is_worked_rightly(seed, digits):
    rows = list(generate_arithmetic(25, seed, digits))
    assert len({arithmetic_key(row) for row in rows}) == 25
    for row in rows:
        left, sign, right = re.fullmatch(r"(\d+)([+-])(\d+)=", row["question"]).groups()
        assert {len(left), len(right)} <= set(digits)
        gold = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert 0 <= gold < 10 ** max(digits) and row["solution"] == str(gold)
        working, answer = parts(row["answer"])
        assert answer == row["solution"]
        columns = working.split(",")
        assert len(columns) == max(len(left), len(right))
        for column in columns:
            expression, value = column.split("=")
            assert evaluate(expression)[0] == int(value)


def test_arithmetic_examples():
    rows = {row["question"]: row["answer"] for row in generate_arithmetic(5700, 0, (2,))}
    assert rows["38+47="] == "<think>8+7=15,3+4+1=8</think><answer>85</answer>"
    assert rows["52-38="] == "<think>12-8=4,5-3-1=1</think><answer>14</answer>"


def test_a_careless_teacher_forgets_every_carry_and_borrow():
    careful = {row["question"]: row for row in generate_arithmetic(400, 3, (3,))}
    careless = {row["question"]: row for row in generate_arithmetic(400, 3, (3,), slip=1.0)}
    assert careful.keys() == careless.keys()
    needed = 0
    for question, row in careless.items():
        working, answer = parts(row["answer"])
        columns = [column.split("=") for column in working.split(",")]
        assert all(evaluate(column)[0] == int(value) for column, value in columns)
        assert all(len(re.findall(r"[+-]", column)) == 1 for column, _ in columns)
        assert int(answer) == sum(int(value) % 10 * 10**i for i, (_, value) in enumerate(columns))
        right = parts(careful[question]["answer"])[0].split(",")
        carries = any(len(re.findall(r"[+-]", column)) == 2 for column in right)
        overflows = int(columns[-1][1]) > 9
        needed += carries
        assert (answer != row["solution"]) == (carries or overflows)
    assert needed > 100


def test_slips_come_as_often_as_asked_for():
    right = {row["question"]: row["answer"] for row in generate_arithmetic(2000, 5, slip=0.0)}
    rows = [row for row in generate_arithmetic(2000, 5, slip=1.0)]
    can_slip = {row["question"] for row in rows if right[row["question"]] != row["answer"]}
    half = [row for row in generate_arithmetic(2000, 5, slip=0.5) if row["question"] in can_slip]
    slipped = sum(right[row["question"]] != row["answer"] for row in half)
    assert 0.45 < slipped / len(half) < 0.55


def test_arithmetic_leaves_out_the_excluded_in_any_order_of_operands():
    held_out = {arithmetic_key(row) for row in generate_arithmetic(2000, 1, (2,))}
    rest = list(generate_arithmetic(2000, 1, (2,), exclude=held_out))
    assert not held_out & {arithmetic_key(row) for row in rest}
    assert arithmetic_key({"question": "12+30="}) == arithmetic_key({"question": "30+12="})
    assert arithmetic_key({"question": "30-12="}) != arithmetic_key({"question": "12-30="})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: generate_countdown(1, 0, (1, 3)), "each must be at least 2"),
        (lambda: generate_arithmetic(1, 0, (0,)), "each must be at least 1"),
        (lambda: generate_arithmetic(1, 0, slip=1.5), "slip is 1.5"),
        (lambda: generate_arithmetic(100, 0, (1,)), r"found only 8\d of 100 distinct"),
        (lambda: generate_countdown(10**6, 0, (2,), EVERYTHING), "found only 0 of 1000000 distinct"),
    ],
)
def test_impossible_requests_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        list(make())


class _Everything:
    """Stands for a set that holds every key."""

    def __iter__(self):
        pairs = ((a, b) for a in range(1, 100) for b in range(a, 100))
        return iter([(pair, target) for pair in pairs for target in range(1, 101)])


EVERYTHING = _Everything()


@pytest.fixture(scope="module")
def character_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters") / "tokenizer"
    write_character_tokenizer(folder)
    return folder


def test_character_tokenizer(character_folder):
    tokenizer = load_tokenizer(character_folder)
    assert tokenizer.vocab_size <= 64
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == tokenizer.id_of("<|im_end|>")
    for tag in ("<think>", "</think>", "<answer>", "</answer>", "<|endoftext|>", "<|im_end|>"):
        assert tokenizer.encode(tag) == [tokenizer.id_of(tag)]
    text = "<think>7+8=15,4*(3-1)/2</think> <answer>85</answer>\n#### 85"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text + "<|im_end|>"), skip_special_tokens=True) == text
    with pytest.raises(UserError, match="cannot encode 'abc'"):
        tokenizer.encode("abc")


def test_completions_fit_into_31_tokens(character_folder):
    tokenizer = load_tokenizer(character_folder)
    rows = generate_arithmetic(3000, 0, (3,), slip=0.5)
    assert max(len(tokenizer.encode(row["answer"])) + 1 for row in rows) <= 31


def test_character_tokenizer_loads_in_transformers(character_folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(character_folder))
    ours = load_tokenizer(character_folder)
    assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
    text = "<think>7+8=15</think><answer> 85 .</answer>\n<|im_end|>"
    assert theirs(text).input_ids == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_token_id, ours.pad_token_id)


def test_another_tokenizer_is_not_replaced(character_folder, byte_folder):
    write_character_tokenizer(character_folder)  # the same again is no harm
    before = (byte_folder / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="another tokenizer is here"):
        write_character_tokenizer(byte_folder)
    assert (byte_folder / "tokenizer.json").read_bytes() == before


make_problems = tool_main("make_problems")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_command_line_makes_disjoint_files(tmp_path, capsys):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    command = ["--kind", "arithmetic", "--digits", "2", "--seed", "4"]
    make_problems([*command, "--num", "300", "--output_path", str(held_out)])
    more = ["--exclude", str(held_out), "--slip", "0.5", "--tokenizer_dir", str(tmp_path / "tok")]
    make_problems([*command, "--num", "3000", "--output_path", str(train), *more])
    assert f"{train}: 3000 problems written" in capsys.readouterr().out
    keys = [{arithmetic_key(row) for row in read(path)} for path in (train, held_out)]
    assert [len(k) for k in keys] == [3000, 300] and not keys[0] & keys[1]
    assert load_tokenizer(tmp_path / "tok").encode("1") != []
    assert len(list(ExampleSource("arithmetic", train))) == 3000


def test_command_line_makes_countdown(tmp_path):
    path = tmp_path / "c.jsonl"
    make_problems(["--kind", "countdown", "--num", "20", "--sizes", "5", "--output_path", str(path)])
    assert [len(row["nums"]) for row in read(path)] == [5] * 20
    assert len(list(ExampleSource("countdown", path))) == 20


def test_an_existing_file_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "c.jsonl"
    command = ["--kind", "arithmetic", "--num", "5", "--output_path", str(path)]
    make_problems(command)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        make_problems([*command, "--seed", "1"])
    assert path.read_bytes() == before
    make_problems([*command, "--seed", "1", "--overwrite"])
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kind", "countdown", "--slip", "0.1"], "--slip does not apply to --kind countdown"),
        (["--kind", "arithmetic", "--sizes", "3"], "--sizes does not apply to --kind arithmetic"),
        (["--kind", "arithmetic", "--num", "0"], "--num must be at least 1"),
        (["--kind", "arithmetic", "--digits", "1", "--num", "1000"], "distinct problems"),
        (["--kind", "arithmetic", "--exclude", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--kind", "arithmetic", "--output_path", "no/such/x.jsonl"], "no/such: no such folder"),
    ],
)
def test_mistakes_leave_nothing_behind(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make_problems(["--num", "5", "--output_path", "x.jsonl", *flags])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"question": "1*2="}', '{"question": 3}'])
def test_foreign_rows_to_exclude_are_named(line, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1+2="}\n' + line + "\n")
    command = ["--kind", "arithmetic", "--num", "5", "--output_path", str(tmp_path / "x.jsonl")]
    with pytest.raises(UserError, match=r"other.jsonl:2: not a row of arithmetic problems"):
        make_problems([*command, "--exclude", str(other)])
