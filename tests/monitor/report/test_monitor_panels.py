from r1parallel.monitor.report.panels import is_grpo, panels_of, table_of, tiles_of

SFT = [{"step": step, "loss": 10.0 - step, "lr": 1e-5} for step in range(10)]


def titles(lines):
    return [panel.title for panel in panels_of(lines)]


def test_only_panels_with_data_are_shown():
    assert titles(SFT) == ["Loss", "Learning rate"]
    assert titles([{"step": 1, "reward_mean": 1.0, "kl": 0.0}]) == ["Reward", "KL to the reference"]


def test_functions_get_a_panel_when_there_are_several():
    one = {"step": 1, "reward_mean": 1.0, "reward/a": 1.0}
    assert "Reward by function" not in titles([one])
    panel = next(panel for panel in panels_of([one | {"reward/b": 2.0}]) if panel.title == "Reward by function")
    assert panel.curves == {"reward/a": "a", "reward/b": "b"}


def test_a_grpo_run_is_known_by_its_rewards_even_if_the_first_step_had_none():
    assert is_grpo([{"step": 1, "loss": 0.0}, {"step": 2, "reward_mean": 1.0}])
    assert not is_grpo(SFT)


def test_tiles_average_the_first_and_the_last_tenth():
    lines = [{"step": step, "reward_mean": float(step), "accuracy": step / 20} for step in range(1, 21)]
    assert tiles_of(lines) == [
        ("Steps", "20", ""),
        ("Reward", "1.5 → 19.5", "means of first and last 2"),
        ("Accuracy", "7.5% → 97.5%", "means of first and last 2"),
    ]


def test_tiles_of_one_step_show_one_value():
    assert tiles_of([{"step": 4, "loss": 2.0}]) == [("Steps", "4", ""), ("Training loss", "2", "")]


def test_time_is_all_phases_and_what_lies_between_them():
    def time_of(seconds, steps):
        lines = [{"step": i, "seconds/step": seconds, "seconds/update": 0.1} for i in range(steps)]
        return tiles_of(lines)[-1]

    assert time_of(4.0, 2) == ("Time", "8.0 s", "4 s per step")
    assert time_of(60.0, 2) == ("Time", "2 min", "60 s per step")
    assert time_of(3660.0, 2) == ("Time", "2 h 2 min", "3.66e+03 s per step")


def test_table_has_every_metric_once_even_if_it_came_late():
    lines = [
        {"step": 1, "loss": 3.0, "seconds/step": 1.0},
        {"step": 2, "loss": 1.0, "kl": 0.5},
        {"step": 3, "loss": 2.0},
    ]
    assert table_of(lines) == [("loss", "3", "2", "1", "3"), ("kl", "0.5", "0.5", "0.5", "0.5")]
