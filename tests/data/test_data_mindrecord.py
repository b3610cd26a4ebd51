import shutil

import numpy as np
import pytest
from data_helpers import tool_main

from r1parallel.data.mindrecord import Counts, read_mindrecord, write_mindrecord
from r1parallel.data.text.sources import Example
from r1parallel.errors import UserError

mindrecord = pytest.importorskip("mindspore.mindrecord")
preprocess_data = tool_main("preprocess_data")

ROWS = [Example("ab", "cde", "gold 1"), Example("é", "x", '{"n": [1]}\n\\frac'), Example("abc", "yz", "")]


def write(path, tokenizer, examples=ROWS, prompt=5, total=9, **options):
    return write_mindrecord(path, examples, tokenizer, "plain", prompt, total, **options)


def test_rows_come_back(tmp_path, byte_tokenizer):
    path = tmp_path / "x.mindrecord"
    assert write(path, byte_tokenizer) == Counts(3, 0)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["x.mindrecord", "x.mindrecord.db"]
    rows = read_mindrecord(path)
    encode, eos, pad = byte_tokenizer.encode, byte_tokenizer.eos_token_id, byte_tokenizer.pad_token_id
    assert rows.prompt_ids.shape == (3, 5) and rows.answer_ids.shape == (3, 4)
    assert rows.prompt_ids.dtype == rows.answer_ids.dtype == np.int32
    assert rows.prompt_lengths.tolist() == [3, 3, 4] and rows.answer_lengths.tolist() == [4, 2, 3]
    assert rows.prompt_ids[0].tolist() == [*encode("ab\n"), pad, pad]
    assert rows.answer_ids[1].tolist() == [*encode("x"), eos, pad, pad]
    assert rows.solutions == [row.solution for row in ROWS]


def test_the_mask_is_one_on_the_answer_and_zero_on_padding(tmp_path, byte_tokenizer):
    path = tmp_path / "x.mindrecord"
    write(path, byte_tokenizer)
    reader = mindrecord.FileReader(str(path))
    masks = [row["loss_mask"].tolist() for row in reader.get_next()]
    reader.close()
    assert masks == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]


def test_order_is_kept_over_many_chunks(tmp_path, byte_tokenizer):
    path = tmp_path / "x.mindrecord"
    examples = [Example(f"{i}", f"{i}", f"{i}") for i in range(1300)]
    assert write(path, byte_tokenizer, examples, 8, 16).written == 1300
    rows = read_mindrecord(path)
    assert rows.solutions == [f"{i}" for i in range(1300)]
    assert byte_tokenizer.decode(rows.prompt_ids[1111][: rows.prompt_lengths[1111]]) == "1111\n"


def test_long_rows_are_dropped_and_counted(tmp_path, byte_tokenizer):
    examples = [*ROWS, Example("abcde", "x", "long prompt"), Example("a", "wxyz", "long answer")]
    assert write(tmp_path / "x", byte_tokenizer, examples) == Counts(3, 2)
    assert read_mindrecord(tmp_path / "x").solutions == [row.solution for row in ROWS]


def test_prompts_are_kept_without_their_answers(tmp_path, byte_tokenizer):
    examples = [ROWS[0], Example("a", "wxyz", "long answer"), Example("b", "", "none"), Example("abcde", "x", "")]
    assert write(tmp_path / "x", byte_tokenizer, examples, answers_optional=True) == Counts(3, 1)
    rows = read_mindrecord(tmp_path / "x")
    assert rows.answer_lengths.tolist() == [4, 0, 0]
    assert (rows.answer_ids[1:] == byte_tokenizer.pad_token_id).all()


def entries(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "bytes")


@pytest.mark.parametrize(
    ("examples", "sizes", "message"),
    [
        ([Example("abcdef", "x", "")], (5, 9), "no row is left to write, 1 were too long"),
        ([], (5, 9), "no row is left to write, 0 were too long"),
        ([*ROWS, Example("a", "", "1")], (5, 9), "example 4 has no answer to learn"),
        (ROWS, (5, 5), "max_prompt_length is 5; .* less than seq_length 5"),
        (ROWS, (0, 5), "max_prompt_length is 0"),
    ],
)
def test_nothing_is_written_half(examples, sizes, message, tmp_path, byte_tokenizer):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "x", byte_tokenizer, examples, *sizes)
    assert entries(tmp_path) == []


def test_output_is_replaced_only_when_told(tmp_path, byte_tokenizer):
    path = tmp_path / "x"
    write(path, byte_tokenizer)
    with pytest.raises(UserError, match="exists already"):
        write(path, byte_tokenizer, ROWS[:1])
    with pytest.raises(UserError, match="no row is left"):
        write(path, byte_tokenizer, [], overwrite=True)
    assert len(read_mindrecord(path).solutions) == 3
    write(path, byte_tokenizer, ROWS[:1], overwrite=True)
    assert len(read_mindrecord(path).solutions) == 1
    path.unlink()
    with pytest.raises(UserError, match="exists already"):  # the .db of another data set
        write(path, byte_tokenizer)


def test_a_missing_folder_and_an_impossible_name_are_refused(tmp_path, byte_tokenizer):
    with pytest.raises(UserError, match="nope: no such folder"):
        write(tmp_path / "nope" / "x", byte_tokenizer)
    with pytest.raises(UserError, match="MindRecord cannot write it"):
        write(tmp_path / "a*b", byte_tokenizer)
    assert entries(tmp_path) == []


@pytest.fixture
def written(tmp_path, byte_tokenizer):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "x", byte_tokenizer)
    return folder / "x"


def test_a_whole_folder_may_be_moved(written, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(written.parent, moved)
    assert len(read_mindrecord(moved / "x").solutions) == 3


def test_missing_files_are_named(written):
    written.with_name("x.db").unlink()
    with pytest.raises(UserError, match=r"x\.db: no such file"):
        read_mindrecord(written)
    with pytest.raises(UserError, match="y: no such file"):
        read_mindrecord(written.with_name("y"))


@pytest.mark.parametrize("keep_old", [True, False])
def test_renamed_files_are_refused(written, keep_old):
    for suffix in ("", ".db"):
        (shutil.copy if keep_old else shutil.move)(f"{written}{suffix}", written.with_name(f"y{suffix}"))
    with pytest.raises(UserError, match=r"y: its \.db was written for x; MindRecord files cannot be renamed"):
        read_mindrecord(written.with_name("y"))


def test_damaged_files_are_refused(written):
    whole = written.read_bytes()
    for content in (b"hello" * 1000, whole[:1000], whole[: len(whole) // 2], b""):
        written.write_bytes(content)
        with pytest.raises(UserError, match="x: not readable as MindRecord"):
            read_mindrecord(written)
    written.write_bytes(whole)
    written.with_name("x.db").write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match="x: not readable as MindRecord"):
        read_mindrecord(written)


def write_foreign(path, schema, row):
    writer = mindrecord.FileWriter(str(path))
    writer.add_schema(schema, "foreign")
    writer.write_raw_data([row])
    writer.commit()


def test_foreign_columns_are_refused(tmp_path):
    write_foreign(tmp_path / "x", {"prompt_ids": {"type": "int64", "shape": [-1]}}, {"prompt_ids": np.arange(3)})
    with pytest.raises(UserError, match=r"columns \(prompt_ids\) are not those of .* \(prompt_ids, pretrain_ids"):
        read_mindrecord(tmp_path / "x")


@pytest.mark.parametrize(
    ("shape", "message"), [([3], "a length lies outside its row"), ([-1], "are not those of .* shape")]
)
def test_lengths_beyond_the_row_and_open_shapes_are_refused(shape, message, tmp_path):
    arrays = {name: np.ones(3, np.int32) for name in ("prompt_ids", "pretrain_ids", "loss_mask")}
    lengths = {name: np.array([4], np.int32) for name in ("prompt_length", "pretrain_length")}
    schema = {name: {"type": "int32", "shape": shape} for name in arrays}
    schema |= {name: {"type": "int32", "shape": [1]} for name in lengths}
    row = {**arrays, **lengths, "solution": "s"}
    write_foreign(tmp_path / "x", {**schema, "solution": {"type": "string"}}, row)
    with pytest.raises(UserError, match=message):
        read_mindrecord(tmp_path / "x")


LINES = '{"question": "ab", "answer": "#### 1"}\n{"question": "abcdefgh", "answer": "#### 2"}\n{"question": 3}\n'


def run_tool(tmp_path, folder, *flags):
    source = tmp_path / "rows.jsonl"
    source.write_text(LINES)
    paths = ["--file_path", str(source), "--tokenizer_dir", str(folder), "--output_path", str(tmp_path / "x")]
    sizes = ["--max_prompt_length", "8", "--seq_length", "16"]
    preprocess_data(["--dataset_type", "gsm8k", *paths, *sizes, *flags])


def test_command_line(tmp_path, byte_folder, capsys):
    run_tool(tmp_path, byte_folder, "--skip_bad_rows")
    assert capsys.readouterr().out == f"{tmp_path / 'x'}: 1 rows written, 1 dropped as too long, 1 bad\n"
    run_tool(tmp_path, byte_folder, "--num_rows", "2", "--prompt_type", "raw", "--overwrite")
    assert "2 rows written, 0 dropped as too long, 0 bad" in capsys.readouterr().out
    assert read_mindrecord(tmp_path / "x").solutions == ["1", "2"]
    run_tool(tmp_path, byte_folder, "--num_rows", "2", "--prompts_only", "--seq_length", "9", "--overwrite")
    assert read_mindrecord(tmp_path / "x").answer_lengths.tolist() == [0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "rows.jsonl:3: 'question' is 3"),
        (["--num_rows", "0"], "--num_rows is 0"),
        (["--prompt_type", "nope"], "prompt_type 'nope' is unknown"),
        (["--dataset_type", "nope"], "dataset_type 'nope' is unknown"),
        (["--tokenizer_dir", "nope"], "nope: no such tokenizer folder"),
    ],
)
def test_command_line_mistakes(flags, message, tmp_path, byte_folder):
    with pytest.raises(UserError, match=message):
        run_tool(tmp_path, byte_folder, *flags)
    assert entries(tmp_path) == ["rows.jsonl"]
