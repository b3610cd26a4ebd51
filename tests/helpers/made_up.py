"""Completions that nobody drew and rewards that nobody computed: what a step works on, at random."""

from collections.abc import Sequence

import numpy as np

from r1parallel.config.schema import RewardConfig, RLConfig
from r1parallel.generation.engine import Completions
from r1parallel.parallel.launch.world import World
from r1parallel.rewards import Scores
from r1parallel.rl.experience.experience import Experience, collect, compute_advantages


def scores(totals: Sequence[float]) -> Scores:
    """Of one reward, `made_up`."""
    totals = np.array(totals, float)
    return Scores(totals, {"made_up": totals.copy()}, np.isnan(totals), 0, 0)


def completions(rng: np.random.Generator, count: int, slots: int, vocab: int, level: float = -3.0) -> Completions:
    """Of every length; behind each stand tokens and log-probs that must not count."""
    lengths = rng.integers(1, slots + 1, count).astype(np.int32)
    lengths[rng.choice(count, 2, replace=False)] = 1, slots
    inside = np.arange(slots) < lengths[:, None]
    logps = rng.normal(level, 0.3, (count, slots)).astype(np.float32)
    drawn = (logps + np.abs(rng.normal(0, 0.2, logps.shape))).astype(np.float32)
    tokens = rng.integers(0, vocab, (count, slots)).astype(np.int32)
    stopped = (lengths < slots) | (rng.random(count) < 0.3)
    return Completions(tokens, lengths, np.where(inside, logps, 0.0), np.where(inside, drawn, 0.0), stopped)


def experience(seed: int, settings: RLConfig, groups: int, prompt: int, slots: int, vocab: int = 32) -> Experience:
    """A step's, judged. Old and reference log-probs are noise around the rollout's, and NaN behind a completion."""
    rng = np.random.default_rng(seed)
    group = settings.num_generations
    count = groups * group
    prompts = [rng.integers(0, vocab, rng.integers(1, prompt + 1)).tolist() for _ in range(groups)]
    totals = rng.integers(0, 3, count) / 2.0
    totals[:2] = 0.0, 1.0  # one group at least differs
    made = collect(
        [prompts[row // group] for row in range(count)],
        rng.permutation(100)[np.arange(count) // group],
        completions(rng, count, slots, vocab),
        scores(totals),
        settings,
        prompt,
        pad_id=0,
    )
    noise = rng.normal(0, 0.3, (2, count, slots))
    made.old_logps, made.ref_logps = (
        np.where(made.inside, made.rollout_logps + part, np.nan).astype(np.float32) for part in noise
    )
    compute_advantages(made, settings, settings.beta)
    return made


class FakeEngine:
    """Answers with tokens and log-probs that are a function of seed and sample alone, as the real one does."""

    graphs = 0

    def __init__(self, rows: int, slots: int, vocab: int = 32):
        self.rows, self.slots, self.vocab = rows, slots, vocab
        self.calls: list[list[int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, samples: Sequence[int], progress: bool = False
    ) -> Completions:
        self.calls.append(list(samples))
        parts = [completions(np.random.default_rng([seed, s]), 2, self.slots, self.vocab) for s in samples]
        names = ("tokens", "lengths", "logps", "drawn_logps", "stopped")
        return Completions(*(np.concatenate([getattr(part, name)[:1] for part in parts]) for name in names))


def scores_of_texts(
    config: RewardConfig, prompts: list[str], texts: list[str], solutions: list[str], world: World
) -> Scores:
    """Stands in for `score_on_leader`: the share of sevens in a text, and something for its length."""
    return scores([text.count("7") / max(1, len(text)) + 0.01 * len(text) for text in texts])
