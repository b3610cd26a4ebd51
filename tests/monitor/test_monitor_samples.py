import pytest

from r1parallel.errors import UserError
from r1parallel.monitor.samples import SampleLog, read_samples


def row(text):
    return {"prompt": "2+2?", "completion": text, "solution": "4", "reward": 1.0, "parts": {"format": 0.5}}


def test_rows_come_back_with_their_step(tmp_path):
    log = SampleLog(tmp_path, None)
    log.write(1, [row("four\n</think>"), row("数学\u2028 \0 é")])
    log.write(2, [])
    log.write(3, [row("")])
    log.close()
    rows = read_samples(tmp_path / "samples.jsonl")
    assert rows == [
        {"step": 1, **row("four\n</think>")},
        {"step": 1, **row("数学\u2028 \0 é")},
        {"step": 3, **row("")},
    ]
    assert "数学" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


def test_resuming_cuts_later_rows(tmp_path):
    log = SampleLog(tmp_path, None)
    for step in (2, 4, 6):
        log.write(step, [row("a"), row("b")])
    log.close()
    resumed = SampleLog(tmp_path, 5)
    resumed.write(6, [row("c")])
    resumed.close()
    shown = [(line["step"], line["completion"]) for line in read_samples(tmp_path / "samples.jsonl")]
    assert shown == [(2, "a"), (2, "b"), (4, "a"), (4, "b"), (6, "c")]


def test_a_fresh_run_refuses_earlier_rows(tmp_path):
    log = SampleLog(tmp_path, None)
    log.write(1, [row("a")])
    log.close()
    with pytest.raises(UserError, match=r"samples\.jsonl holds an earlier run"):
        SampleLog(tmp_path, None)


def test_a_score_that_could_not_be_given_is_null(tmp_path):
    log = SampleLog(tmp_path, None)
    log.write(1, [row("a") | {"reward": float("nan"), "parts": {"x": float("inf"), "y": 1.0}}])
    log.close()
    (line,) = read_samples(tmp_path / "samples.jsonl")
    assert line["reward"] is None
    assert line["parts"] == {"x": None, "y": 1.0}
