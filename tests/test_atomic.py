import pytest

from r1parallel.atomic import replacing


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a b.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a b.json"]


def test_a_block_that_fails_leaves_no_trace(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half"), replacing(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_stays_missing_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
