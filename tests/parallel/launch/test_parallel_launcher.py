"""The launcher with jobs that fail, and the parts it is made of. The launcher runs in processes of its own."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.msrun import LAUNCH_WORKER as WORKER
from helpers.msrun import TIMED_OUT, run_workers

from r1parallel.errors import UserError
from r1parallel.parallel.launch import launcher as module
from r1parallel.parallel.launch import msrun
from r1parallel.parallel.launch.failures import Failures
from r1parallel.parallel.launch.launcher import launch
from r1parallel.parallel.launch.rank_status import JobStatus, new_status

LIMIT_S = 200
START = """\
import sys
from pathlib import Path
from r1parallel.errors import run_command
from r1parallel.parallel.launch.launcher import launch
run_command(lambda argv: sys.exit(launch(Path(argv[0]), argv[1:])))
"""


@pytest.fixture
def start(tmp_path):
    """(case, processes) → the running launcher; nothing of it is left afterwards."""
    started = []

    def run(case, workers=2):
        words = [sys.executable, "-c", START, str(WORKER), "--worker_num", str(workers), "--log_dir", "log", case]
        environment = msrun.worker_environment() | {"OMP_NUM_THREADS": "1"}
        with (tmp_path / "screen").open("w") as screen:
            process = subprocess.Popen(
                words, cwd=tmp_path, env=environment, stdout=screen, stderr=subprocess.STDOUT, start_new_session=True
            )
        started.append(process)
        return process

    yield run
    for process in started:
        msrun.end_job(process)


def screen(tmp_path):
    return (tmp_path / "screen").read_text().splitlines()


@pytest.mark.slow
def test_the_first_error_is_the_last_line_and_its_code_the_exit_code(start, tmp_path):
    assert start("refuse").wait(LIMIT_S) == 2
    assert screen(tmp_path)[-1] == "rank 1: error: rank 1 knows better"


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_named_by_the_one_that_waits(start, tmp_path):
    assert start("hang").wait(LIMIT_S) == 124
    last = screen(tmp_path)[-1]
    assert last.startswith("rank 0: error: rank 0 waited 3 s for rank 1 in 'weights, step 3'; rank 1 was last in")
    assert "'rollout, step 3' and has left it" in last
    assert "rank 0 of 2 is ready" in screen(tmp_path)


@pytest.mark.slow
def test_a_killed_rank_of_four_ends_the_job_and_leaves_no_process(start, tmp_path):
    process = start("killed", 4)
    family = wait_for_family(process, 5)
    assert process.wait(LIMIT_S) == 137
    assert screen(tmp_path)[-1] == "rank 3: killed by signal 9"
    assert left_of(family) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "msrun"])
def test_the_end_of_the_launcher_or_of_msrun_ends_every_process(start, tmp_path, victim):
    process = start("wait")
    wait_for_line(tmp_path, "rank 0 of 2 is ready")
    family = psutil.Process(process.pid).children(recursive=True)
    if victim == "launcher":
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert screen(tmp_path)[-1] == "error: ended by SIGTERM"
    else:
        next(child for child in family if child.ppid() == process.pid).send_signal(signal.SIGKILL)
        assert process.wait(LIMIT_S) != 0
        assert screen(tmp_path)[-1].startswith("error: msrun was killed by signal 9")
    assert left_of(family) == []


@pytest.mark.slow
def test_plain_msrun_names_the_rank_and_ends_with_it(tmp_path):
    job = run_workers(WORKER, ["fault"], 2, tmp_path, LIMIT_S)
    assert job.returncode == 1
    assert "ERROR: rank 1: ValueError: a fault of its own" in job.output
    assert "rank 0 of 2 is ready" in job.log(0)


def wait_for_family(process, size):
    """All processes below the launcher, as soon as there are so many."""
    while process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        if len(family) >= size:
            return family
        time.sleep(0.1)
    raise AssertionError("it ended early")


def wait_for_line(tmp_path, line):
    deadline = time.monotonic() + LIMIT_S
    while line not in screen(tmp_path):
        assert time.monotonic() < deadline, screen(tmp_path)
        time.sleep(0.1)


def left_of(family):
    """Those that still run; the kernel needs a moment to end a process."""
    return psutil.wait_procs(family, timeout=20)[1]


def test_a_job_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    started = []

    class Child(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(["sh", "-c", "echo begun; setsid sleep 600 & sleep 600"], **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Child)
    job = run_workers(WORKER, [], 2, tmp_path / "job", limit_s=0.3)
    assert (job.returncode, job.output, job.log(0)) == (TIMED_OUT, "begun\n", "")
    assert started[0].returncode == -signal.SIGKILL


def printed(capsys, *argv):
    assert launch(Path("run.py"), [*argv, "--print"]) == 0
    line = capsys.readouterr().out
    return shlex.split(line)


def test_one_node_needs_only_the_number_of_processes(capsys, monkeypatch):
    monkeypatch.setenv("R1_WORKER_NUM", "8")
    words = printed(capsys, "--config", "a file.yaml", "--rl_config.seed=3")
    assert words[-4:] == ["run.py", "--config", "a file.yaml", "--rl_config.seed=3"]
    assert {"--worker_num=8", "--local_worker_num=8", "--join=True", "--master_addr=127.0.0.1"} <= set(words)
    assert not any(word.startswith("--node_rank") for word in words)
    ports = {word for line in (words, printed(capsys)) for word in line if word.startswith("--master_port=")}
    assert len(ports) == 2


def test_several_nodes_share_the_processes(capsys):
    given = ["--worker_num", "16", "--num_nodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1"]
    words = printed(capsys, *given, "--master_port", "8118", "--log_dir", "/shared/logs")
    assert words[0] == "R1_JOB_DIR=/shared/logs/notes"
    expected = {"--worker_num=16", "--local_worker_num=8", "--node_rank=1", "--master_addr=10.0.0.1"}
    assert expected | {"--master_port=8118", "--log_dir=/shared/logs"} <= set(words)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--worker_num is missing"),
        (["--worker_num", "0"], "--worker_num 0: one process or more"),
        (["--worker_num", "3", "--num_nodes", "2"], "--worker_num 3 cannot be shared evenly by --num_nodes 2"),
        (["--worker_num", "4", "--num_nodes", "2", "--node_rank", "2"], r"--node_rank 2: must be 0 … 1"),
        (["--worker_num", "4", "--num_nodes", "2"], "--master_addr is missing"),
        (["--worker_num", "4", "--num_nodes", "2", "--master_addr", "a"], "--master_port is missing"),
        (["--worker_num", "4", "--num_nodes", "2", "--master_addr", "a", "--master_port", "1"], "--log_dir is missing"),
    ],
)
def test_options_that_do_not_fit_are_refused(monkeypatch, argv, message):
    for name in ("R1_WORKER_NUM", "R1_NUM_NODES", "R1_MASTER_ADDR", "R1_MASTER_PORT", "R1_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message):
        launch(Path("run.py"), argv)


def test_a_port_in_use_is_refused_where_the_scheduler_would_run():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(UserError, match=f"--master_port {port}: another process"):
            launch(Path("run.py"), ["--worker_num", "2", "--master_port", port])
    assert launch(Path("run.py"), ["--worker_num", "2", "--master_port", port, "--print"]) == 0


class Fake:
    """A launched job whose msrun is a shell script; it can leave statuses and logs of ranks."""

    def __init__(self, monkeypatch, tmp_path, script):
        monkeypatch.setattr(module, "_command", lambda options: ["sh", "-c", script])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own
        self.log = tmp_path / "log"

    def run(self, workers=2):
        return launch(Path("run.py"), ["--worker_num", str(workers), "--log_dir", str(self.log)])


def test_a_job_without_failures_shows_what_the_leader_prints(monkeypatch, tmp_path, capfd):
    chatter = "[WARNING] ME(1,7f,python):2026 [x.cc:1] y"
    fake = Fake(monkeypatch, tmp_path, f"printf '%s\\n' one '{chatter}' two > {tmp_path}/log/worker_0.log")
    assert fake.run() == 0
    assert capfd.readouterr().out.splitlines()[1:] == ["one", "two"]


def test_msrun_that_fails_before_any_rank_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"msrun ended with exit code 3 and no rank said why; see .*msrun_0.log"):
        Fake(monkeypatch, tmp_path, "exit 3").run()


def test_a_rank_without_words_is_described_by_the_end_of_its_log(monkeypatch, tmp_path, capfd):
    write = "from r1parallel.parallel.launch.rank_status import *; import os, pathlib; "
    write += "JobStatus(pathlib.Path(os.environ['R1_JOB_DIR'])).write(new_status(1, 'start', True)); os._exit(9)"
    script = f'cd "{tmp_path}/log"; printf "usage: x\\nx: error: no such flag\\n" > worker_1.log; '
    script += f'"{sys.executable}" -c "{write}"'
    assert Fake(monkeypatch, tmp_path, script + "; sleep 60").run() in (9, 1)
    assert capfd.readouterr().err.splitlines()[-1] == "rank 1: x: error: no such flag"


def sleeper(statuses, rank, *words):
    process = subprocess.Popen(words)
    status = new_status(rank, "start", inside=True)
    statuses.write(type(status)(rank, status.host, process.pid, status.what, status.inside, status.time))
    return process


def test_ends_are_seen_in_their_order(tmp_path):
    statuses = JobStatus(tmp_path)
    failures = Failures(statuses, 4)
    failures.look(0)
    well, killed = sleeper(statuses, 0, "true"), sleeper(statuses, 1, "sleep", "600")
    failures.look(0.2)
    well.wait()
    assert failures.num_ended == 0, "rank 1 still runs"
    assert not failures.any() and failures.first() is None
    killed.kill()
    while not failures.any():
        failures.look(1)
    killed.wait()
    assert failures.num_ended == 2
    statuses.write(new_status(2, "rollout", inside=True).failed(2, "error: broken by it"))
    assert (failures.first().rank, failures.first().exit_code) == (1, 137)
    assert statuses.read(1).message == "killed by signal 9"


def test_a_process_that_is_gone_already_has_failed_unless_it_took_its_note_along(tmp_path):
    statuses = JobStatus(tmp_path)
    sleeper(statuses, 0, "true").wait()
    failures = Failures(statuses, 2)
    failures.look(0)
    assert (failures.first().exit_code, failures.first().message) == (1, "")


def test_processes_of_other_machines_are_not_looked_for(tmp_path):
    statuses = JobStatus(tmp_path)
    status = new_status(0, "start", inside=True)
    statuses.write(type(status)(0, "elsewhere", os.getpid(), "start", True, status.time))
    failures = Failures(statuses, 1)
    failures.look(0)
    assert failures._running == {} and not failures.any()
