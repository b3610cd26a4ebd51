"""From prompts to scored completions, and dynamic sampling: groups that teach nothing are replaced."""

from dataclasses import dataclass, replace

import numpy as np

from r1parallel.config.schema import RunConfig
from r1parallel.data.batches import RowOrder
from r1parallel.data.mindrecord import DatasetRows
from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import World
from r1parallel.rewards import Scores
from r1parallel.rl.experience.scoring import score_on_leader
from r1parallel.rl.objective.advantages import equal_groups, kept_rows

_OTHER_SAMPLES = 1 << 40  # refills number their samples from here on


@dataclass
class Draw:
    """Completions of some prompts, G of each, next to each other; N in all.

    Attributes:
        prompt_rows: int [N], row of the data set.
        prompt_ids: N lists of token ids.
        drawn: tokens and log-probs.
        prompts: N texts.
        completions: N texts.
        solutions: N gold answers.
        scores: of the N.
    """

    prompt_rows: np.ndarray
    prompt_ids: list[list[int]]
    drawn: Completions
    prompts: list[str]
    completions: list[str]
    solutions: list[str]
    scores: Scores

    def replace(self, old_N: np.ndarray, other: "Draw", new_N: np.ndarray) -> None:
        """Put the completions `new_N` of another draw in the place of `old_N`."""
        for old, new in zip(old_N, new_N, strict=True):
            for name in ("prompt_ids", "prompts", "completions", "solutions"):
                getattr(self, name)[old] = getattr(other, name)[new]
        self.prompt_rows[old_N] = other.prompt_rows[new_N]
        for name in ("tokens", "lengths", "logps", "drawn_logps", "stopped"):
            getattr(self.drawn, name)[old_N] = getattr(other.drawn, name)[new_N]
        for name in ("total", "skipped"):
            getattr(self.scores, name)[old_N] = getattr(other.scores, name)[new_N]
        for name, values in self.scores.parts.items():
            values[old_N] = other.scores.parts[name][new_N]


class Rollout:
    """Samples and scores the completions of a step.

    Args:
        config: of the run.
        rows: prompts and gold answers.
        tokenizer: decodes completions for the rewards.
        engine: draws completions.
        world: which rank this is.
    """

    def __init__(self, config: RunConfig, rows: DatasetRows, tokenizer: Tokenizer, engine: RolloutEngine, world: World):
        settings = config.rl_config
        self.config, self.rows, self.tokenizer, self.engine, self.world = config, rows, tokenizer, engine, world
        self.group = settings.num_generations
        self.prompts_per_step = (
            settings.chunk_size * config.generate_config.parallel_config.data_parallel * settings.num_rollouts
        )
        self.completions_per_step = self.prompts_per_step * self.group
        self.order = RowOrder(len(rows.prompt_ids), self.prompts_per_step, settings.seed)
        self._other_order = RowOrder(len(rows.prompt_ids), self.prompts_per_step, settings.seed + 1)

    def draw(self, number: int, timer: PhaseTimer, progress: bool) -> Draw:
        """The completions of step `number`, a function of the weights and this number."""
        return self._draw(self.order.indices(number), number * self.completions_per_step, timer, progress)

    def refill(self, draw: Draw, number: int, timer: PhaseTimer, progress: bool) -> dict[str, float]:
        """Replace groups whose rewards are all equal by groups of other prompts that differ (Yu et al. 2025).

        Timeouts and failures of every reward that was computed are added to the draw's.

        The prompts come from an order of their own, so that every prompt of the data set keeps its turn. At most
        `max_refills` rounds; groups that are then left equal stay, and count nowhere.

        Returns:
            Metrics: tokens that were drawn, groups that were drawn and replaced, share of the groups that is left.
        """
        settings, tokens, others = self.config.rl_config, 0.0, 0
        replaced = 0
        for turn in range(settings.max_refills):
            useless = np.flatnonzero(self._useless(draw))
            if not len(useless):
                break
            index = number * settings.max_refills + turn
            chosen = self._other_order.indices(index)[: self._worth_drawing(len(useless))]
            first = _OTHER_SAMPLES + index * self.completions_per_step
            fresh = self._draw(chosen, first, timer, progress)
            good = np.flatnonzero(~self._useless(fresh))[: len(useless)]
            draw.replace(self._members(useless[: len(good)]), fresh, self._members(good))
            draw.scores = _with_errors_of(draw.scores, fresh.scores)
            tokens += float(fresh.drawn.lengths.sum())
            others, replaced = others + len(chosen), replaced + len(good)
        return {
            "refill_tokens": tokens,
            "refill_groups": float(others),
            "refilled_groups": float(replaced),
            "frac_groups_left_equal": float(self._useless(draw).mean()),
        }

    def _useless(self, draw: Draw) -> np.ndarray:
        """Bool [groups]: all rewards equal, or one that is no number."""
        totals = draw.scores.total
        return equal_groups(totals, self.group) | ~kept_rows(totals, self.group)[:: self.group]

    def _worth_drawing(self, missing: int) -> int:
        """How many prompts to draw for the missing groups: as many as the generator's batches hold anyway."""
        batches = -(-missing * self.group // self.engine.rows)
        return min(self.prompts_per_step, max(missing, batches * self.engine.rows // self.group))

    def _members(self, groups: np.ndarray) -> np.ndarray:
        """Rows of the completions of these groups."""
        return (groups[:, None] * self.group + np.arange(self.group)).reshape(-1)

    def _draw(self, prompts: np.ndarray, first_sample: int, timer: PhaseTimer, progress: bool) -> Draw:
        chosen = np.repeat(prompts, self.group)
        prompt_ids = [self.rows.prompt_ids[i, : self.rows.prompt_lengths[i]].tolist() for i in chosen]
        samples = range(first_sample, first_sample + len(chosen))
        with timer.phase("rollout"), waiting("rollout"):
            drawn = self.engine.generate(prompt_ids, self.config.rl_config.seed, samples, progress)
        with timer.phase("reward"):
            texts = [self.tokenizer.decode(ids) for ids in prompt_ids]
            completions = [self.tokenizer.decode(drawn.ids(row)) for row in range(len(chosen))]
            solutions = [self.rows.solutions[i] for i in chosen]
            scores = score_on_leader(self.config.reward_config, texts, completions, solutions, self.world)
        return Draw(chosen, prompt_ids, drawn, texts, completions, solutions, scores)


def _with_errors_of(scores: Scores, other: Scores) -> Scores:
    timeouts, failures = scores.timeouts + other.timeouts, scores.failures + other.failures
    return replace(scores, timeouts=timeouts, failures=failures)
