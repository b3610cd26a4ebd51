"""The numbers of benchmarks.speed as Markdown. A case without a peer has dashes in its place."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

Found = dict  # what one process found
Rounds = list[dict[str, Found]]  # "ours" and "peer", of one case
SIDES = ("ours", "peer")
COUNTED = ("tokens", "completions", "examples")  # of which an iteration has at most one
COMPILED = ("compile_30_layers", "compile_10_layers")  # the first is to take at most twice as long
HEADER = (
    "| | seconds: ours | peer | a second: ours | peer | ours is … times as fast "
    "| first iteration, s: ours | peer | peak GB: ours | peer |"
)


def seconds(found: Found) -> float:
    """Of an iteration, the median."""
    return median(iteration["seconds"] for iteration in found["iterations"])


def rate(found: Found) -> float | None:
    """Tokens (completions, examples) a second, the median of the iterations; None where nothing is counted."""
    name = counted(found)
    return name and median(iteration[name] / iteration["seconds"] for iteration in found["iterations"])


def counted(found: Found) -> str | None:
    """What is counted of the iterations beside their seconds."""
    return next((name for name in COUNTED if all(name in iteration for iteration in found["iterations"])), None)


def ratio(one: dict[str, Found]) -> float | None:
    """How many times as fast as the peer ours was in a round: by what is counted, else by seconds."""
    if "peer" not in one:
        return None
    ours, peer = rate(one["ours"]), rate(one["peer"])
    if ours is None or peer is None:
        return seconds(one["peer"]) / seconds(one["ours"])
    return ours / peer


def table(results: dict) -> str:
    """One row a case: medians over the rounds with their ranges; then what the numbers are made of."""
    cases: dict[str, Rounds] = {}
    for done in results["rounds"]:
        for case, found in done.items():
            cases.setdefault(case, []).append(found)
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    lines += [f"| {case} | {' | '.join(cells(rounds))} |" for case, rounds in cases.items()]
    notes = [note for case, rounds in cases.items() for note in case_notes(case, rounds)]
    if all(case in cases for case in COMPILED):
        notes.append(compile_note(*(cases[case] for case in COMPILED)))
    return "\n".join([*lines, "", *notes, "", *about(results)]) + "\n"


def compile_note(long: Rounds, short: Rounds) -> str:
    """How many times as long 30 layers take as 10, within each round; of processor time too, which other jobs spare."""
    longer = []
    for key in ("seconds", "processor_seconds"):
        pairs = zip(long, short, strict=True)
        longer.append(within((a["ours"]["iterations"][0][key] / b["ours"]["iterations"][0][key] for a, b in pairs), 2))
    return f"- compile: 30 layers take {longer[0]} times as long as 10; of processor time {longer[1]}."


def cells(rounds: Rounds) -> Iterable[str]:
    yield from by_side(rounds, lambda found: within(map(seconds, found), 2))
    yield from by_side(rounds, rates)
    yield within(map(ratio, rounds), 2)
    yield from by_side(rounds, lambda found: within((one["first"] for one in found), 1))
    yield from by_side(rounds, lambda found: f"{max(one['peak_bytes'] for one in found) / 1e9:.2f}")


def by_side(rounds: Rounds, text: Callable[[list[Found]], str]) -> list[str]:
    return [text([one[side] for one in rounds]) if side in rounds[0] else "–" for side in SIDES]


def rates(found: list[Found]) -> str:
    """With what is counted behind them."""
    name = counted(found[0])
    return f"{within(map(rate, found), 1)} {name}" if name else "–"


def within(values: Iterable[float | None], digits: int) -> str:
    """Median, lowest and highest; a dash where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{median(known):.{digits}f} ({min(known):.{digits}f}–{max(known):.{digits}f})"


def case_notes(case: str, rounds: Rounds) -> Iterable[str]:
    """Lengths of completions where they differ; how far the first losses lie apart; where our step's time goes."""
    if "peer" not in rounds[0]:
        return
    ours, peer = ([iteration for one in rounds for iteration in one[side]["iterations"]] for side in SIDES)
    if any(one.get("mean_length") != one.get("longest") for one in (*ours, *peer)):
        yield f"- {case}: tokens of a completion, mean and longest: ours {lengths(ours)}, peer {lengths(peer)}."
    if "loss" in ours[0]:
        pairs = [(first(one["ours"]), first(one["peer"])) for one in rounds]
        loss = max(abs(mine["loss"] - theirs["loss"]) for mine, theirs in pairs)
        norm = max(abs(mine["norm"] / theirs["norm"] - 1) for mine, theirs in pairs)
        yield f"- {case}: the first update differs by at most {loss:.0e} in the loss, {norm:.0e} of the gradient norm."
    if "phases" in ours[0]:
        middle = {phase: median(one["phases"][phase] for one in ours) for phase in ours[0]["phases"]}
        said = ", ".join(f"{phase} {value:.2f}" for phase, value in middle.items())
        yield f"- {case}: seconds of our phases: {said}."


def first(found: Found) -> dict:
    """The first iteration of a process."""
    return [*found["warm_up"], *found["iterations"]][0]


def lengths(iterations: Sequence[dict]) -> str:
    mean = sum(one["mean_length"] for one in iterations) / len(iterations)
    return f"{mean:.1f} and {max(one['longest'] for one in iterations)}"


def about(results: dict) -> Iterable[str]:
    """What was run, and on what."""
    hardware, settings = results["hardware"], results["settings"]
    yield (
        f"{results['date']}, {hardware['processor']}, {hardware['cores']} cores used of {hardware['cpus']}, "
        f"{hardware['memory_bytes'] / 1e9:.0f} GB of memory. "
        f"{'; '.join(f'{side}: {versions(results, side)}' for side in SIDES)}."
    )
    yield ""
    yield ". ".join(f"{name}: {value}" for name, value in settings.items()) + "."


def versions(results: dict, side: str) -> str:
    known = {
        name: text
        for done in results["rounds"]
        for one in done.values()
        if side in one
        for name, text in one[side]["versions"].items()
    }
    return ", ".join(f"{name} {text}" for name, text in known.items()) or "none"
