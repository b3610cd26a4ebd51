"""Which charts, headline numbers and table rows the report of a GRPO run and of an SFT run has."""

from collections.abc import Callable
from statistics import fmean

from r1parallel.monitor.charts import Lines, Panel, phase_seconds, series

GRPO_PANELS = (
    Panel(
        "Reward",
        "Mean of the step's completions and the range from the worst to the best one.",
        "reward",
        {"reward_mean": "mean"},
        band=("reward_min", "reward_max"),
        smooth=True,
        from_zero=False,
    ),
    Panel(
        "Accuracy",
        "Share of completions with the right answer.",
        "completions",
        {"accuracy": "accuracy"},
        smooth=True,
        percent=True,
    ),
    Panel(
        "Completion length",
        "Mean, shortest and longest. A mean that runs into the limit means cut-off answers.",
        "tokens",
        {"completion_length_mean": "mean"},
        band=("completion_length_min", "completion_length_max"),
        smooth=True,
    ),
    Panel(
        "Groups and completions that teach little",
        "Groups whose completions all got one reward have no gradient; cut-off completions rarely score.",
        "share",
        {"frac_reward_zero_std": "groups of equal reward", "completion_clipped_fraction": "cut-off completions"},
        percent=True,
    ),
    Panel(
        "KL to the reference",
        "How far the policy has moved from the model it started from.",
        "nats per token",
        {"kl": "KL"},
    ),
    Panel(
        "Clip fraction",
        "Share of tokens whose probability ratio was clipped; 0 when each batch is used for one update.",
        "tokens",
        {"clip_fraction": "clip fraction"},
        percent=True,
    ),
    Panel(
        "Loss",
        "Starts near 0, and that is right: advantages sum to zero in each group. The reward tells the progress.",
        "loss",
        {"loss": "total", "actor_loss": "actor", "kl_loss": "KL term"},
        from_zero=False,
    ),
    Panel(
        "Rollout against training",
        "Difference of log-probability between the generator and the training graph. It should stay small.",
        "nats",
        {"rollout_logp_diff_mean": "mean", "rollout_logp_diff_max": "max"},
        log=True,
    ),
)
SFT_PANELS = (
    Panel(
        "Loss",
        "Cross-entropy of the answer's tokens. An evaluation loss that rises again means over-fitting.",
        "nats per token",
        {"loss": "training", "eval_loss": "evaluation"},
        from_zero=False,
    ),
    Panel(
        "Evaluation: probability of the answer",
        "Mean probability that the model gives to the held-out answers, token by token.",
        "probability",
        {"eval_token_probability": "probability"},
        percent=True,
        from_zero=False,
    ),
)
COMMON_PANELS = (
    Panel(
        "Gradient norm",
        "Global L2 norm before clipping.",
        "norm",
        {"grad_norm": "gradient norm"},
    ),
    Panel("Learning rate", "After warm-up and decay.", "learning rate", {"lr": "learning rate"}),
    Panel(
        "Throughput",
        "Tokens of completions in a GRPO step, of answers in an SFT update.",
        "tokens per second",
        {"tokens_per_second": "tokens per second"},
    ),
)


def is_grpo(lines: Lines) -> bool:
    """Tell a GRPO run from an SFT run: only the former has rewards."""
    return any("reward_mean" in line for line in lines)


def panels_of(lines: Lines) -> list[Panel]:
    """Give the panels that have something to show."""
    names = {name for line in lines for name in line}
    panels = [*(GRPO_PANELS if is_grpo(lines) else SFT_PANELS), *COMMON_PANELS]
    functions = {name: name.removeprefix("reward/") for name in sorted(names) if name.startswith("reward/")}
    if len(functions) > 1:
        caption = "Mean score of each reward function, before its weight."
        panels.insert(2, Panel("Reward by function", caption, "score", functions, from_zero=False))
    return [panel for panel in panels if names & set(panel.curves)]


def tiles_of(lines: Lines) -> list[tuple[str, str, str]]:
    """Give the headline numbers as (name, value, remark)."""
    tiles = [("Steps", str(lines[-1]["step"]), "")]
    for name, metric, show in _GRPO_HEADLINES if is_grpo(lines) else _SFT_HEADLINES:
        values = series(lines, metric)[1]
        if values:
            tenth = max(1, len(values) // 10)
            first, last = fmean(values[:tenth]), fmean(values[-tenth:])
            value = f"{show(first)} → {show(last)}" if len(values) > 1 else show(last)
            remark = f"means of first and last {tenth}" if tenth > 1 else ""
            tiles.append((name, value, remark))
    seconds = sum(sum(phase_seconds(line).values()) for line in lines)
    if seconds > 0:
        tiles.append(("Time", _duration(seconds), f"{seconds / len(lines):.3g} s per step"))
    return tiles


def table_of(lines: Lines) -> list[tuple[str, ...]]:
    """Give (metric, first, last, smallest, largest) of every metric but the phase times."""
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    rows = []
    for name in names:
        values = series(lines, name)[1]
        if not name.startswith("seconds/"):
            rows.append((name, *(f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values)))))
    return rows


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


_Headlines = tuple[tuple[str, str, Callable[[float], str]], ...]

_GRPO_HEADLINES: _Headlines = (
    ("Reward", "reward_mean", _number),
    ("Accuracy", "accuracy", _percent),
    ("Completion tokens", "completion_length_mean", lambda value: f"{value:.0f}"),
)
_SFT_HEADLINES: _Headlines = (
    ("Training loss", "loss", _number),
    ("Evaluation loss", "eval_loss", _number),
)
