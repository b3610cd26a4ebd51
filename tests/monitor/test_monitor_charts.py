import re
import xml.etree.ElementTree as ElementTree

import pytest
from helpers.monitor_runs import write_grpo_run

from r1parallel.errors import UserError
from r1parallel.monitor.charts import (
    Panel,
    draw_panel,
    draw_phases,
    moving_average,
    phase_seconds,
    save_curve,
    series,
    thin_lines,
    to_svg,
)
from r1parallel.monitor.metrics import read_metrics

PLAIN = Panel("Loss", "", "nats", {"loss": "loss"})


def lines_of(values, metric="loss"):
    return [{"step": step, metric: value} for step, value in enumerate(values, start=1)]


def test_series_skips_steps_without_the_metric():
    lines = [{"step": 1, "loss": 3.0}, {"step": 2}, {"step": 4, "loss": 1.0}]
    assert series(lines, "loss") == ([1, 4], [3.0, 1.0])


def test_moving_average_is_centred_and_shorter_at_the_ends():
    assert moving_average([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
    assert moving_average([5.0], 7) == [5.0]


def test_thinning_keeps_extremes_means_and_idle_phases():
    lines = [
        {"step": 1, "reward_mean": 1.0, "reward_min": -1.0, "reward_max": 2.0, "seconds/checkpoint": 4.0},
        {"step": 2, "reward_mean": 3.0, "reward_min": 0.0, "reward_max": 5.0},
        {"step": 3, "reward_mean": 7.0, "reward_min": 1.0, "reward_max": 7.0},
    ]
    merged, last = thin_lines(lines, 2)
    assert merged == {
        "step": 2,
        "reward_mean": 2.0,
        "reward_min": -1.0,
        "reward_max": 5.0,
        "seconds/checkpoint": 2.0,
    }
    assert last == lines[2]
    assert thin_lines(lines, 3) == lines


@pytest.mark.parametrize("count", [1, 399, 400, 401, 1234])
def test_thinning_keeps_the_number_of_lines_down(count):
    thinned = thin_lines(lines_of([1.0] * count), 400)
    assert len(thinned) <= 400
    assert thinned[-1]["step"] == count


def test_what_no_phase_accounts_for_is_other():
    line = {"step": 1, "loss": 1.0, "seconds/rollout": 2.0, "seconds/step": 5.0, "seconds/checkpoint": 9.0}
    assert phase_seconds(line) == {"rollout": 2.0, "checkpoint": 9.0, "other": 3.0}
    assert phase_seconds({"step": 1, "seconds/update": 2.0}) == {"update": 2.0}


def test_bars_are_stacked_to_the_whole_step():
    lines = [{"step": s, "seconds/rollout": 2.0, "seconds/update": 1.0, "seconds/step": 4.0} for s in (5, 10)]
    (axes,) = draw_phases(lines).axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert tops == [2.0, 2.0, 3.0, 3.0, 4.0, 4.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rollout", "update", "other"]


def test_every_phase_of_a_grpo_run_has_its_own_colour_and_other_is_on_top(tmp_path):
    (axes,) = draw_phases(read_metrics(write_grpo_run(tmp_path, 10) / "metrics.jsonl")).axes
    legend = axes.get_legend()
    assert legend.get_texts()[-1].get_text() == "other"
    colours = {patch.get_facecolor() for patch in legend.get_patches()}
    assert len(colours) == len(legend.get_texts()) == 8


def test_a_long_run_is_drawn_with_few_points_and_a_moving_average():
    panel = Panel("Reward", "", "reward", {"r": "mean"}, smooth=True)
    (axes,) = draw_panel(lines_of([float(i % 7) for i in range(2000)], "r"), panel).axes
    raw, average = axes.get_lines()
    assert len(raw.get_xdata()) == len(average.get_xdata()) == 400
    assert average.get_label() == "moving average, 255 steps"
    assert raw.get_xdata()[-1] == 2000


def test_a_short_run_has_no_moving_average_but_marks():
    panel = Panel("Reward", "", "reward", {"r": "mean"}, smooth=True)
    (line,) = draw_panel(lines_of([1.0, 2.0], "r"), panel).axes[0].get_lines()
    assert line.get_marker() == "o"


def test_a_single_step_shows_its_band_and_its_number():
    panel = Panel("Reward", "", "reward", {"m": "mean"}, band=("lo", "hi"))
    (axes,) = draw_panel([{"step": 7, "m": 1.0, "lo": 0.0, "hi": 2.0}], panel).axes
    assert list(axes.get_xticks()) == [7]
    (segment,) = axes.collections[0].get_segments()
    assert segment[:, 1].tolist() == [0.0, 2.0]


def test_a_metric_that_stays_at_0_gets_an_axis_up_to_1():
    assert draw_panel(lines_of([0.0, 0.0]), PLAIN).axes[0].get_ylim() == (0.0, 1.0)


def test_a_panel_draws_only_what_was_logged():
    panel = Panel("Loss", "", "nats", {"loss": "training", "eval_loss": "evaluation"}, band=("lo", "hi"))
    (axes,) = draw_panel(lines_of([1.0, 2.0]), panel).axes
    assert [line.get_label() for line in axes.get_lines()] == ["training"]
    assert len(axes.collections) == 0


@pytest.mark.parametrize(("values", "scale"), [([1e-6, 1e-4], "log"), ([0.0, 1e-4], "linear")])
def test_a_log_axis_needs_positive_numbers(values, scale):
    panel = Panel("Gap", "", "nats", {"loss": "gap"}, log=True)
    assert draw_panel(lines_of(values), panel).axes[0].get_yscale() == scale


def test_svg_is_well_formed_scales_and_takes_the_colours_of_the_page():
    panel = Panel("Loss", "", "nats", {"loss": "a $x$ <b>"}, percent=True)
    svg = to_svg(draw_panel(lines_of([1.0, 2.0]), panel), 'L & "M" <i>')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'L & "M" <i>'
    assert root.get("width") is None
    assert root.get("viewBox") is not None
    assert not re.findall(r"#[0-9a-f]{6}", svg)
    assert "var(--series0)" in svg
    assert "var(--ink)" in svg
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"nats", "step", "100%"} <= texts


def test_equal_lines_give_equal_pictures():
    first, second = (to_svg(draw_panel(lines_of([1.0, 2.0]), PLAIN), "x") for _ in range(2))
    assert first == second


def test_save_curve_writes_a_png(tmp_path):
    path = write_grpo_run(tmp_path / "run", 3) / "metrics.jsonl"
    for metric in ("reward_mean", "kl", "accuracy"):
        save_curve(path, metric, tmp_path / f"{metric}.png", "Reward of a $run$ & more_words")
        assert (tmp_path / f"{metric}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["accuracy.png", "kl.png", "reward_mean.png", "run"]


def test_save_curve_names_what_is_wrong(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0, "lr": 2.0}\n')
    with pytest.raises(UserError, match="'los'; it has loss, lr"):
        save_curve(path, "los", tmp_path / "x.png", "t")
    with pytest.raises(UserError, match="does not exist"):
        save_curve(path, "loss", tmp_path / "none" / "x.png", "t")
