import threading
from dataclasses import replace

import pytest

from r1parallel.parallel.launch import waiting as module
from r1parallel.parallel.launch.rank_status import JobStatus, job_status, new_status
from r1parallel.parallel.launch.waiting import Watch, _describe, waiting

OTHERS = {rank: new_status(rank, "weights, step 3", inside=True) for rank in (0, 1, 3)}


def describe(**changes):
    others = OTHERS | {int(rank[1:]): status for rank, status in changes.items()}
    return _describe(2, "weights, step 3", 1800.0, others)


def test_the_line_names_the_rank_that_did_not_come():
    late = new_status(5, "rollout, step 3", inside=True)
    assert describe(_5=late) == (
        "rank 2 waited 1800 s for rank 5 in 'weights, step 3'; rank 5 was last in 'rollout, step 3'; "
        "raise context.wait_limit if that is normal"
    )
    assert "'rollout, step 3' and has left it;" in describe(_5=replace(late, inside=False))
    assert "rank 5 ended with exit code 2: error: no;" in describe(_5=late.failed(2, "error: no"))


def test_of_several_the_one_that_stopped_first_is_described():
    late = {f"_{rank}": replace(new_status(rank, "rollout", inside=True), time=100.0 - rank) for rank in range(4, 10)}
    line = describe(**late)
    assert "for ranks 4, 5, 6, 7 and 2 others in" in line
    assert "rank 9 was last in 'rollout'" in line


def test_ranks_without_a_note_and_no_missing_rank_are_told_apart():
    assert "for rank 7 in 'weights, step 3'; no status of theirs is here" in describe(_7=None)
    assert "although all ranks are there" in describe()


def test_nothing_is_limited_in_a_single_process(monkeypatch):
    monkeypatch.setattr(module, "_watch", None)
    with waiting("anything"):
        pass


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A watch with a limit of 0.2 s, and what it said at the end."""
    said, ended = [], threading.Event()

    def leave(message):
        said.append(message)
        ended.set()

    watch = Watch(JobStatus(tmp_path / "notes"), 0, 2, 0.2, leave)
    monkeypatch.setattr(module, "_watch", watch)
    yield watch, said, ended
    watch.stop()


def test_a_wait_that_takes_too_long_ends_the_rank(watched):
    _, said, ended = watched
    with waiting("step 1"):
        assert ended.wait(30)
    assert said[0].startswith("rank 0 waited 0.2 s for rank 1 in 'step 1'")


def test_work_between_waits_has_no_limit(watched):
    _, said, ended = watched
    with waiting("step 1"):
        pass
    assert not ended.wait(0.6)
    assert said == []


def test_notes_follow_the_innermost_wait(watched, tmp_path):
    statuses = JobStatus(tmp_path / "notes")

    def now():
        status = statuses.read(0)
        return status.what, status.inside

    with pytest.raises(KeyError), waiting("outer"):
        with waiting("inner"):
            assert now() == ("inner", True)
        assert now() == ("outer", True)
        raise KeyError
    assert now() == ("outer", False)


def test_a_new_watch_takes_the_place_of_the_old_one(watched, tmp_path, monkeypatch):
    first, said, _ = watched
    module.watch(JobStatus(tmp_path / "other"), 1, 2, 60.0)
    assert first._stopped.is_set()
    with waiting("step 2"):
        assert JobStatus(tmp_path / "other").read(1).what == "step 2"
    module._watch.stop()
    assert said == []


def test_the_last_note_takes_the_folder_along(tmp_path):
    statuses = JobStatus(tmp_path / "notes")
    statuses.remove(0)
    statuses.write(new_status(0, "a", inside=True))
    statuses.write(new_status(1, "b", inside=True))
    statuses.remove(0)
    assert statuses.read(0) is None
    assert statuses.read(1).what == "b"
    statuses.remove(1)
    assert not (tmp_path / "notes").exists()


def test_workers_of_one_job_meet_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MS_SCHED_PORT", "8118")
    monkeypatch.delenv("R1_JOB_DIR", raising=False)
    assert "8118" in job_status()._folder.name
    monkeypatch.setenv("R1_JOB_DIR", str(tmp_path))
    assert job_status()._folder == tmp_path
