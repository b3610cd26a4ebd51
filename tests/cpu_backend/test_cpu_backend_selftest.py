import json
import shutil

import pytest

from r1parallel.cpu_backend import selftest
from r1parallel.errors import UserError
from r1parallel.parallel.launch.msrun import TIMED_OUT, Job, worker_environment


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One folder for the compiled kernels of all runs here."""
    if shutil.which("g++") is None:
        pytest.skip("NO COMPILER: g++ is missing, so the kernels cannot be built")
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_every_collective_agrees_with_numpy(cache, monkeypatch, capsys, workers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    selftest.main(["--workers", str(workers)])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.endswith(" ok") for line in lines)
    names = {line.split(",")[0].split("  ")[0] for line in lines}
    reductions = {f"{name} {op}" for name in ("AllReduce", "ReduceScatter") for op in ("sum", "max", "min")}
    assert names == reductions | {"AllGather", "Broadcast", "AlltoAll", "Send", "semi_auto_parallel"}
    assert len(lines) == {2: 11, 4: 21}[workers]


def results(monkeypatch, *ranks):
    """Let a run end with these results; a rank with None writes none."""

    def run(script, args, workers, folder, limit_s):
        for rank, faults in enumerate(ranks):
            if faults is not None:
                (folder / f"rank_{rank}.json").write_text(json.dumps(faults))
        return Job(0, "the end of the log", folder)

    monkeypatch.setattr(selftest, "run_workers", run)


def test_a_fault_of_any_rank_is_shown_and_fails(monkeypatch, capsys):
    results(monkeypatch, {"AllGather": "", "Broadcast": ""}, {"AllGather": "1 is not 2", "Broadcast": ""})
    with pytest.raises(UserError, match="1 of 2 checks"):
        selftest.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["AllGather", "WRONG on rank 1: 1 is not 2"]
    assert lines[1].split() == ["Broadcast", "ok"]


def test_a_rank_without_a_result_is_named(monkeypatch):
    results(monkeypatch, {"AllGather": ""}, None)
    with pytest.raises(UserError, match="rank 1 of the self-test ended early: the end of the log"):
        selftest.main([])


@pytest.mark.parametrize("workers", ["1", "3", "0"])
def test_workers_are_an_even_number(workers):
    with pytest.raises(UserError, match=f"--workers {workers}: an even number"):
        selftest.main(["--workers", workers])


@pytest.mark.parametrize(
    ("returncode", "message"),
    [
        (TIMED_OUT, r"did not end within 300 s: RuntimeError: no network"),
        (1, "rank 0 .* early: RuntimeError: no network"),
    ],
)
def test_a_run_that_fails_is_described_by_the_last_error(monkeypatch, returncode, message):
    def run(script, args, workers, folder, limit_s):
        (folder / "log").mkdir()
        (folder / "log" / "worker_0.log").write_text("fine\nRuntimeError: no network\nfine\n")
        return Job(returncode, "", folder)

    monkeypatch.setattr(selftest, "run_workers", run)
    with pytest.raises(UserError, match=message):
        selftest.main([])


def test_workers_run_this_python_and_this_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/before")
    environment = worker_environment()
    assert environment["PYTHONPATH"].endswith(":/before")
    assert shutil.which("python", path=environment["PATH"]) is not None
