import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.errors import UserError
from r1parallel.monitor.metrics import TENSORBOARD_TAGS, MetricsWriter, read_metrics


def write_steps(run_dir, steps, resume_step=None, tensorboard_dir=None):
    writer = MetricsWriter(run_dir, tensorboard_dir, resume_step)
    for step in steps:
        writer.write(step, {"loss": step / 3, "lr": 1e-7})
    writer.close()
    return run_dir / "metrics.jsonl"


def test_lines_are_json_in_order(tmp_path):
    path = write_steps(tmp_path / "new" / "run", [1, 2])
    assert path.read_text() == '{"step": 1, "loss": 0.3333333333333333, "lr": 1e-07}\n' + (
        '{"step": 2, "loss": 0.6666666666666666, "lr": 1e-07}\n'
    )
    assert read_metrics(path) == [
        {"step": 1, "loss": 1 / 3, "lr": 1e-7},
        {"step": 2, "loss": 2 / 3, "lr": 1e-7},
    ]


def test_a_line_is_on_disk_before_the_writer_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path, None, None)
    writer.write(1, {"loss": 1.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    writer.close()


def test_numbers_of_numpy_are_written_like_python_ones(tmp_path):
    np = pytest.importorskip("numpy")
    writer = MetricsWriter(tmp_path, None, None)
    writer.write(1, {"a": np.float32(0.5), "b": np.int64(3), "c": np.float64(0.1)})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 0.5, "b": 3.0, "c": 0.1}\n'


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back_as_it_was(tmp_path_factory, value):
    run_dir = tmp_path_factory.mktemp("run")
    writer = MetricsWriter(run_dir, None, None)
    writer.write(1, {"loss": value})
    writer.close()
    back = read_metrics(run_dir / "metrics.jsonl")[0]["loss"]
    assert (back, math.copysign(1, back)) == (value, math.copysign(1, value))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_is_refused_by_name_and_nothing_is_written(tmp_path, bad):
    writer = MetricsWriter(tmp_path, None, None)
    with pytest.raises(ValueError, match=r"metric kl is .* at step 5"):
        writer.write(5, {"loss": 1.0, "kl": bad})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_fresh_run_does_not_write_into_an_earlier_one(tmp_path):
    path = write_steps(tmp_path, [1])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"resume_training.*another output_dir"):
        MetricsWriter(tmp_path, None, None)
    assert path.read_bytes() == before


def test_a_run_that_ended_before_its_first_step_is_no_earlier_run(tmp_path):
    write_steps(tmp_path, [])
    assert len(read_metrics(write_steps(tmp_path, [1]))) == 1


def test_resuming_gives_the_file_of_a_run_that_never_stopped(tmp_path):
    whole = write_steps(tmp_path / "whole", range(1, 9))
    write_steps(tmp_path / "parts", range(1, 7))
    resumed = write_steps(tmp_path / "parts", range(5, 9), resume_step=4)
    assert resumed.read_bytes() == whole.read_bytes()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["metrics.jsonl"]


def test_resuming_at_step_0_starts_again(tmp_path):
    write_steps(tmp_path, [1, 2])
    assert [line["step"] for line in read_metrics(write_steps(tmp_path, [1], resume_step=0))] == [1]


def test_resuming_without_a_file_makes_one(tmp_path):
    assert [line["step"] for line in read_metrics(write_steps(tmp_path, [4], resume_step=3))] == [4]


@given(cut=st.integers(min_value=1, max_value=200))
def test_a_file_cut_anywhere_resumes(tmp_path_factory, cut):
    path = write_steps(tmp_path_factory.mktemp("run"), range(1, 5))
    data = path.read_bytes()
    path.write_bytes(data[: max(1, len(data) - cut)])
    whole_lines = [json.loads(line) for line in data[: max(1, len(data) - cut)].split(b"\n") if line[-1:] == b"}"]
    kept = [line for line in whole_lines if line["step"] <= 3]
    write_steps(path.parent, [9], resume_step=3)
    assert read_metrics(path)[:-1] == kept
    assert read_metrics(path)[-1]["step"] == 9


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b"\xff\x00", b"7"])
def test_a_half_written_last_line_is_passed_over(tmp_path, tail):
    path = write_steps(tmp_path, [1])
    path.write_bytes(path.read_bytes() + tail)
    assert [line["step"] for line in read_metrics(path)] == [1]


@pytest.mark.parametrize("bad", ["{oops}", '{"loss": 1.0}', '{"step": 1.5}', '{"step": true}', "[1]"])
def test_a_broken_line_in_the_middle_is_named_and_the_file_left_alone(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(tmp_path, None, 3)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="missing"):
        read_metrics(tmp_path / "metrics.jsonl")


def events(folder):
    """(tag, step, value) of every scalar in TensorBoard's files, in order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                found.append(("session", event.step, event.session_log.status))
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_has_the_tags_that_users_know(tmp_path):
    writer = MetricsWriter(tmp_path, tmp_path / "tb", None)
    writer.write(3, {"loss": 0.25, "reward_mean": 1.5, "reward/accuracy_reward": 0.5, "kl": 2.0})
    writer.close()
    assert events(tmp_path / "tb") == [
        ("Training_loss/total_loss", 3, 0.25),
        ("average-scores", 3, 1.5),
        ("reward_mean", 3, 1.5),
        ("reward/accuracy_reward", 3, 0.5),
        ("kl", 3, 2.0),
    ]


def test_tensorboard_hides_what_a_resumed_run_writes_again(tmp_path):
    write_steps(tmp_path, [1, 2, 3], tensorboard_dir=tmp_path / "tb")
    write_steps(tmp_path, [3], resume_step=2, tensorboard_dir=tmp_path / "tb2")
    start = events(tmp_path / "tb2")[0]
    assert start == ("session", 3, 1)  # SessionLog.START at step 3 purges what is at step 3 or later


def test_no_two_metrics_share_a_tag():
    tags = [tag for group in TENSORBOARD_TAGS.values() for tag in group]
    assert len(tags) == len(set(tags))
    plain = {"reward_min", "reward_max", "advantage_mean", "prompt_length_mean", "kl"}
    assert not plain & set(tags)
