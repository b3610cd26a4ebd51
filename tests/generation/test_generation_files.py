import json

import pytest

from r1parallel.errors import UserError
from r1parallel.generation.files import check_writable, read_prompts, write_lines


def test_prompts_in_order_blank_lines_left_out(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "b", "more": 1}\n\n  \n{"prompt": "a"}\n{"prompt": " "}', encoding="utf-8")
    assert read_prompts(path) == ["b", "a", " "]


def test_only_a_line_feed_ends_a_line(tmp_path):
    """JSON may hold other line separators as they are, and an editor may have put a byte order mark."""
    path = tmp_path / "prompts.jsonl"
    text = json.dumps({"prompt": "one\u2028two\x85three"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n" + text.encode() + b"\r\n")
    assert read_prompts(path) == ["one\u2028two\x85three"] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "no JSON"),
        (b'{"prompt": "\xff"}', "no JSON: 'utf-8'"),
        (b'["prompt"]', "expected"),
        (b'{"text": "a"}', "expected"),
        (b'{"prompt": 3}', "expected"),
        (b'{"prompt": ""}', "expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"^{path}:3: {message}") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_no_prompt_at_all(tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(path)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="no such prompts file"):
            read_prompts(path)


def test_rows_are_written_whole_into_new_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "out.jsonl"
    write_lines(path, [{"a": "ü"}])
    write_lines(path, [{"a": "ü\n"}, {"b": [1.5]}])
    assert path.read_text(encoding="utf-8") == '{"a": "ü\\n"}\n{"b": [1.5]}\n'
    assert [file.name for file in path.parent.iterdir()] == ["out.jsonl"]


def test_a_look_at_the_output_leaves_it_alone(tmp_path):
    path = tmp_path / "new" / "out.jsonl"
    check_writable(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("kept")
    check_writable(path)
    assert path.read_text() == "kept"


def test_a_row_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.jsonl"
    write_lines(path, [{"a": 1}])
    with pytest.raises(TypeError):
        write_lines(path, [{"a": 2}, {"a": {3}}])
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_impossible_output_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "folder", tmp_path / "file" / "out.jsonl"):
        for write in (lambda path=path: write_lines(path, [{"a": 1}]), lambda path=path: check_writable(path)):
            with pytest.raises(UserError, match=f"{path}: cannot be written: .*choose another --output"):
                write()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"
