import pytest

from r1parallel.monitor import phases
from r1parallel.monitor.phases import PhaseTimer


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(phases.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_phases_add_up_until_they_are_collected(clock):
    timer = PhaseTimer()
    for seconds in (2.0, 3.0):
        with timer.phase("rollout"):
            clock.now += seconds
        clock.now += 50.0
    with timer.phase("update"):
        clock.now += 1.0
    assert timer.collect() == {"seconds/rollout": 5.0, "seconds/update": 1.0}
    assert timer.collect() == {}
    with timer.phase("update"):
        clock.now += 4.0
    assert timer.collect() == {"seconds/update": 4.0}


def test_an_inner_phase_counts_in_both(clock):
    timer = PhaseTimer()
    with timer.phase("step"):
        clock.now += 1.0
        with timer.phase("update"):
            clock.now += 2.0
    assert timer.collect() == {"seconds/update": 2.0, "seconds/step": 3.0}


def test_a_phase_that_fails_is_timed_and_its_error_passes(clock):
    timer = PhaseTimer()
    with pytest.raises(KeyError), timer.phase("reward"):
        clock.now += 2.0
        raise KeyError("x")
    assert timer.collect() == {"seconds/reward": 2.0}
