import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import rounds as speed_rounds
from benchmarks.speed import steps as speed_steps
from r1parallel.errors import UserError


def found(loss: float, norm: float, warm_up: bool = True) -> dict:
    first, later = {"loss": loss, "norm": norm}, {"loss": 9.0, "norm": 9.0}
    return {"warm_up": [first] if warm_up else [], "iterations": [later] if warm_up else [first]}


@pytest.mark.parametrize(
    ("peer", "same"),
    [
        ((-0.5, 4.0), True),
        ((-0.50009, 4.003), True),
        ((-0.50011, 4.0), False),
        ((-0.5, 4.005), False),
        ((float("nan"), 4.0), False),
        ((-0.5, float("nan")), False),
    ],
)
@pytest.mark.parametrize("warm_up", [True, False])
def test_both_must_compute_the_same_first_update(peer, same, warm_up):
    check = speed_rounds.check_agreement
    if same:
        check("training", found(-0.5, 4.0), found(*peer, warm_up))
        return
    with pytest.raises(UserError, match=r"training: .* do not compute the same"):
        check("training", found(-0.5, 4.0), found(*peer, warm_up))


def line(seconds: float, shortest: int) -> dict:
    return {"seconds/step": seconds, "seconds/update": seconds / 2, "completion_length_min": shortest, "loss": 0.0}


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 0), (2, 0), (3, 2), (6, 2)])
def test_steps_to_warm_up(steps, warm_up):
    steps_module = speed_steps
    length = steps_module.COMPLETION
    parts = steps_module.our_iterations("grpo", [line(float(n), length) for n in range(steps)])
    assert [one["seconds"] for one in parts["warm_up"]] == list(range(warm_up))
    assert [one["seconds"] for one in parts["iterations"]] == list(range(warm_up, steps))
    assert parts["iterations"][0]["phases"] == {"step": warm_up, "update": warm_up / 2}


def test_short_completions_are_refused():
    steps_module = speed_steps
    lines = [line(1.0, steps_module.COMPLETION), line(1.0, steps_module.COMPLETION - 1)]
    with pytest.raises(UserError, match="not every completion"):
        steps_module.our_iterations("grpo", lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["rolout"], "'rolout' is no subject; known: rollout, training, grpo, startup, compile, reward, data"),
        (["--model", "nowhere"], "nowhere: no model.safetensors; make the model with: bash scripts/build_smollm2.sh"),
        (["--gsm8k", "nowhere"], "nowhere: no such file"),
        (["--gsm8k", __file__, "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--gsm8k", __file__, "--threads", "100000"], "--threads is 100000, but"),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, flags, message):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=message):
        speed.main(["--model", str(tmp_path), *flags])
