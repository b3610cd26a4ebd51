"""The numbers of benchmarks.learning as Markdown."""

from collections.abc import Iterable
from statistics import mean

Runs = dict[int, dict]  # seed → run


def steps_to(accuracies: dict[str, float], target: float) -> int | None:
    """The first evaluated step with at least this accuracy; None: never."""
    reached = [int(step) for step, accuracy in accuracies.items() if accuracy >= target - 1e-9]
    return min(reached, default=None)


def table(results: dict) -> str:
    """One row for each preset and peer, over all seeds; then how the mean accuracy grows."""
    start = {found["seed"]: found["accuracies"]["0"] for found in results["starts"]}
    by_name: dict[str, Runs] = {}
    for run in results["runs"]:
        by_name.setdefault(run["name"], {})[run["seed"]] = run
    gain = results["settings"]["gain"]
    lines = [
        f"| | accuracy | of each seed | steps to SFT + {100 * gain:.0f} points | completions | seconds of a run |",
        "|---|---|---|---|---|---|",
    ]
    if start:
        lines.append(f"| SFT, the start | {mean(start.values()):.1%} | {of_seeds(percent, start.values())} | | | |")
    for name, runs in by_name.items():
        last = {seed: list(run["accuracies"].values())[-1] for seed, run in runs.items()}
        needed = {seed: str(steps_to(run["accuracies"], start[seed] + gain) or "–") for seed, run in runs.items()}
        cells = [
            name,
            f"{mean(last.values()):.1%}",
            of_seeds(lambda seed, last=last: percent(last[seed]) if seed in last else "failed", start),
            of_seeds(lambda seed, needed=needed: needed.get(seed, "failed"), start),
            f"{mean(run['completions'] for run in runs.values()):.0f}",
            f"{mean(run['seconds'] for run in runs.values()):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, own in results["own"].items():
        lines += [
            "",
            f"{name}: {', '.join(f'`{key}: {value}`' for key, value in own['flags'].items())}, {own['reason']}.",
        ]
    return "\n".join([*lines, "", *growth(by_name, start)]).rstrip() + "\n"


def growth(by_name: dict[str, Runs], start: dict[int, float]) -> Iterable[str]:
    """Mean accuracy over the seeds at each evaluated step, in percent."""
    for number, (name, runs) in enumerate(by_name.items()):
        curves = [{"0": start[seed], **run["accuracies"]} for seed, run in runs.items()]
        if number == 0:
            yield f"| accuracy (%) after step | {' | '.join(curves[0])} |"
            yield f"|{'---|' * (len(curves[0]) + 1)}"
        yield f"| {name} | {' | '.join(percent(mean(curve[step] for curve in curves)) for step in curves[0])} |"


def of_seeds(text, seeds) -> str:
    return ", ".join(text(seed) for seed in seeds)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"
