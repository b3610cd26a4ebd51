"""What a process does as a member of a job, with a stand-in for msrun; with msrun itself: test_parallel_launch.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1parallel.config.schema import ContextConfig
from r1parallel.parallel import device, worker
from r1parallel.parallel.launch.msrun import worker_environment
from r1parallel.parallel.launch.rank_status import JobStatus
from r1parallel.parallel.launch.world import World, is_scheduler, is_worker, launched_world_size

MEMBER = """\
import sys
from r1parallel.errors import UserError
from r1parallel.parallel.worker import run_worker
def main(argv):
    exec(argv[0])
run_worker(main)
"""


def test_a_single_process_is_rank_0_of_1(mindspore_cpu):
    assert device.setup_device(ContextConfig()) == World(0, 1) == device.current_world()


def test_roles_are_msruns(monkeypatch):
    monkeypatch.delenv("MS_ROLE", raising=False)
    monkeypatch.delenv("MS_WORKER_NUM", raising=False)
    assert (is_worker(), is_scheduler(), launched_world_size()) == (False, False, 1)
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("MS_WORKER_NUM", "8")
    assert (is_worker(), is_scheduler(), launched_world_size()) == (True, False, 8)
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    assert (is_worker(), is_scheduler()) == (False, True)


def member(tmp_path, code, *, parent="--join=True", **variables):
    """Run a rank's code below a process that looks like msrun."""
    script = tmp_path / "member.py"
    script.write_text(MEMBER)
    start = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[2:]]))"
    environment = worker_environment() | {"MS_ROLE": "MS_WORKER", "RANK_ID": "3", "MS_SCHED_PORT": "1"}
    return subprocess.run(
        [sys.executable, "-c", start, parent, str(script), code],
        env=environment | {"R1_JOB_DIR": str(tmp_path / "notes")} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        ("raise UserError('not\\nthis')", 2, "error: not this"),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
        ("raise ValueError('a\\nb')", 1, "ValueError: a b"),
        ("sys.exit(5)", 5, ""),
        ("sys.exit('words')", 1, ""),
    ],
)
def test_a_rank_that_fails_notes_its_code_and_error(tmp_path, code, exit_code, message):
    assert member(tmp_path, code).returncode == exit_code
    status = JobStatus(tmp_path / "notes").read(3)
    assert (status.exit_code, status.message) == (exit_code, message)


def test_a_rank_that_ends_well_leaves_no_note(tmp_path):
    done = member(tmp_path, "import os; print(os.environ['MS_NODE_TIMEOUT'])", MS_NODE_TIMEOUT="7")
    assert (done.returncode, done.stdout) == (0, "7\n")
    assert not (tmp_path / "notes").exists()


def test_a_rank_without_its_launcher_does_not_start(tmp_path):
    assert member(tmp_path, "print('on')", parent="--join=False").returncode == 1
    assert not (tmp_path / "notes").exists()


def test_msrun_that_does_not_wait_leaves_its_ranks_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "die_with_parent", lambda: pytest.fail("it must live on"))
    monkeypatch.delenv("R1_JOB_DIR", raising=False)
    worker._end_with_launcher()


def test_without_msrun_a_command_runs_as_ever(monkeypatch, capsys):
    monkeypatch.delenv("MS_ROLE", raising=False)
    monkeypatch.setattr(sys, "argv", ["x", "one"])
    worker.run_worker(lambda argv: print(*argv))
    assert capsys.readouterr().out == "one\n"


class Joined:
    """Stands for mindspore.communication in a process that msrun has not started."""

    @pytest.fixture(autouse=True)
    def job(self, monkeypatch, tmp_path, mindspore_cpu):
        from mindspore import communication

        calls = []
        for name, value in {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "DEVICE_ID": "0"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("R1_JOB_DIR", str(tmp_path))
        monkeypatch.setattr(device, "_world", None)
        monkeypatch.setattr(communication, "init", lambda: calls.append("init"))
        monkeypatch.setattr(communication, "get_rank", lambda: 1)
        monkeypatch.setattr(communication, "get_group_size", lambda: 2)
        monkeypatch.setattr(device, "_enable_cpu_backend", lambda world: calls.append(world))
        monkeypatch.setattr(device, "watch", lambda statuses, rank, size, limit: calls.append((rank, size, limit)))
        return calls


class TestJoining(Joined):
    def test_ranks_are_mindspores_and_a_second_call_sets_only_the_limit(self, job, monkeypatch):
        monkeypatch.setenv("RANK_ID", "1")
        assert device.setup_device(ContextConfig(wait_limit=5)) == World(1, 2)
        assert job == [(1, 2, 5), "init", World(1, 2)]
        assert device.setup_device(ContextConfig(wait_limit=6)) == World(1, 2) == device.current_world()
        assert job[3:] == [(1, 2, 6)]

    def test_a_rank_that_only_init_knows_is_watched_from_then_on(self, job, monkeypatch):
        monkeypatch.delenv("RANK_ID", raising=False)
        assert device.setup_device(ContextConfig(wait_limit=5)) == World(1, 2)
        assert job == ["init", (1, 2, 5), World(1, 2)]
        assert os.environ["RANK_ID"] == "1"
        monkeypatch.setenv("RANK_ID", "1")  # so that it is taken back


@pytest.mark.parametrize("name", ["enable", "enable_fused"])
def test_only_the_leader_says_what_the_backend_lacks(monkeypatch, capsys, name):
    from r1parallel.cpu_backend import enable

    switch_on = {"enable": device._enable_cpu_backend, "enable_fused": device._enable_fused}[name]
    monkeypatch.setattr(enable, name, lambda: "install g++")
    switch_on(World(0, 2))
    switch_on(World(1, 2))
    assert capsys.readouterr().out == "install g++\n"


def test_fused_kernels_are_for_the_cpu(mindspore_cpu, monkeypatch):
    """There they are asked for whenever the device is set up; Ascend has its own."""
    import mindspore as ms

    asked = []
    monkeypatch.setattr(device, "_enable_fused", asked.append)
    device.setup_device(ContextConfig())
    assert asked == [World(0, 1)]
    monkeypatch.setattr(ms, "set_device", lambda target, number: None)
    device.setup_device(ContextConfig(device_target="Ascend"))
    assert len(asked) == 1


@pytest.mark.parametrize("kernels", [True, False])
def test_it_is_known_whether_there_are_fused_kernels(monkeypatch, kernels):
    from r1parallel.cpu_backend import enable

    monkeypatch.setattr(enable, "_fused", None if kernels else "g++ is missing")
    assert device.has_fused_kernels() == kernels


def test_the_scheduler_ends_with_a_rank_that_failed(tmp_path):
    """No rank ever comes, so MindSpore's own scheduler would wait for minutes."""
    member(tmp_path, "raise UserError('no')")
    done = member(tmp_path, "", MS_ROLE="MS_SCHED", MS_WORKER_NUM="4", MS_SCHED_HOST="127.0.0.1", MS_SCHED_PORT="0")
    assert done.returncode == 1
    assert "ERROR: rank 3: error: no" in done.stdout
    assert Path(tmp_path / "notes" / "rank_3.json").exists()
