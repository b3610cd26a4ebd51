"""The rollout engine: prompts in, completions with log-probs and exact lengths out."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import SamplingConfig
from r1parallel.errors import UserError
from r1parallel.generation.philox import uniforms
from r1parallel.generation.programs import FillCache, NextTokens, split_cache
from r1parallel.generation.sampling import Sampler
from r1parallel.generation.scheduler import RowScheduler
from r1parallel.models.decoding.chunk_block import WholeChunkBlock
from r1parallel.models.decoding.model import prompt_model, token_model
from r1parallel.models.fused.operators import PLAIN, Operators
from r1parallel.models.parameters import share_parameters, unallocated
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.compiling import compiling
from r1parallel.parallel.launch.world import CompileOnlyWorld, World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.program import on_mesh

_ONE_RANK, _ALONE = Mesh(), World()
_CHUNK = 32  # tokens of a prompt at most that are computed together
_FILLED = 512  # tokens of prompts at most that a launch computes, where it computes no others
_TOKENS = 4  # of a launch at most


@dataclass
class Completions:
    """Completions of N prompts. Slots past `lengths` hold the padding id and log-prob 0.

    Attributes:
        tokens: int32 [N, C]; the stop id that ended a completion is its last token.
        lengths: int32 [N], at least 1.
        logps: float32 [N, C], log-probs of the tokens under the model at the sampling temperature (greedy: at 1).
        drawn_logps: float32 [N, C], under the distribution that they were drawn from, after all cuts and penalties.
        stopped: bool [N]; False: cut off at C tokens.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    logps: np.ndarray
    drawn_logps: np.ndarray
    stopped: np.ndarray

    def ids(self, row: int) -> list[int]:
        """The real tokens of one completion."""
        return self.tokens[row, : self.lengths[row]].tolist()


class RolloutEngine:
    """Sampling with a static cache and continuous batching: a completion that ends gives its row to the next one.

    Args:
        config: sizes of the model.
        sampling: how tokens are drawn; `max_tokens` is C.
        rows: completions generated together on one dp rank; B is `rows` of all dp ranks.
        prompt_length: P, the longest prompt.
        stop_ids: a completion ends with the first of these.
        pad_id: fills unused slots; may be a stop id, masks come from lengths.
        mesh: dp and tp of the generator; pp is 1. All ranks are called with the same prompts at the same time.
        world: which rank this is. With several ranks the graphs are compiled here, so that weights can be set after;
            alone with the first prompts, so that a model can be shared before.
        operators: what the model is made of.

    Attributes:
        model: holds the weights.
        tokens_per_launch: of every row. What a row draws after its end is thrown away.

    Raises:
        UserError: P + C is more than the model's positions, or a stop or padding id is not the model's.
    """

    def __init__(
        self,
        config: ModelConfig,
        sampling: SamplingConfig,
        rows: int,
        prompt_length: int,
        stop_ids: Sequence[int],
        pad_id: int,
        mesh: Mesh = _ONE_RANK,
        world: World = _ALONE,
        operators: Operators = PLAIN,
    ):
        slots = prompt_length + sampling.max_tokens
        if slots > config.max_position_embeddings:
            raise UserError(
                f"prompt length {prompt_length} + max_tokens {sampling.max_tokens} is more than the model's "
                f"max_position_embeddings {config.max_position_embeddings}; shorten one of them"
            )
        for token in (*stop_ids, pad_id):
            if not 0 <= token < config.vocab_size:
                raise UserError(f"token id {token} (stop or padding) is outside the model's {config.vocab_size} ids")
        self.config, self.sampling = config, sampling
        self.rows, self.prompt_length, self.max_tokens = rows * mesh.dp, prompt_length, sampling.max_tokens
        self.stop_ids, self.pad_id = np.array(sorted(stop_ids), np.int32), pad_id
        # The longest prompt fills all of its chunks alike. The last token of a text is never run through the model; in
        # its place stands what is not kept.
        prompt_slots = max(1, prompt_length - 1)
        chunk = -(-prompt_slots // -(-prompt_slots // _CHUNK))
        with unallocated():
            self.model = token_model(config, self.rows, slots, operators, split=world.size > 1)
            prefill = prompt_model(self.model, chunk, operators)
        self._models = (self.model, prefill)
        if isinstance(prefill.model.layers[0], WholeChunkBlock):  # chunks that nobody fills cost nothing
            chunks, patience = max(1, _FILLED // chunk), max(1, rows // 8)
        else:
            chunks, patience = -(-rows // 4), max(1, self.rows // 4)
        self._new_scheduler = partial(RowScheduler, self.rows, mesh.dp, chunks, chunk, slots, pad_id, patience)
        if world.size > 1:
            split_cache(self.model, prefill, mesh)
        sampler = Sampler(sampling, config.vocab_size)
        # A penalty or a least length makes the host look at every token before the next one is drawn.
        watched = sampling.repetition_penalty != 1.0 or sampling.min_tokens > 0
        self.tokens_per_launch = 1 if watched else min(_TOKENS, self.max_tokens)
        self._fill, self._next_tokens = (
            on_mesh(program.set_train(False), ModelLayout(config, mesh), world)
            for program in (FillCache(prefill), NextTokens(self.model, sampler, self.tokens_per_launch, slots))
        )
        self._world, self._compiled = world, False
        if world.size > 1:
            self._compile()

    def _compile(self) -> None:
        scheduler = self._new_scheduler()
        graphs = [
            (
                self._next_tokens,
                self._step_inputs(scheduler, np.zeros((0, self.tokens_per_launch), np.float32), self._seen([])),
            ),
            (self._fill, tuple(Tensor(x) for x in scheduler.next_prefill())),
        ]
        # Only the former holds every Parameter. The first graph slices them, the last one's layout is checked.
        with compiling("the rollout graphs", self._world):
            for program, inputs in reversed(graphs) if isinstance(self._world, CompileOnlyWorld) else graphs:
                program.compile(*inputs)
        self._compiled = True

    def share(self, model: Qwen2ForCausalLM) -> None:
        """Hold the very Parameters of a model on the same single rank: what it learns need not be copied.

        To be called before anything is generated.
        """
        for own in self._models:
            share_parameters(model, own)

    @property
    def graphs(self) -> int:
        """Graphs that were compiled so far."""
        return len(self._fill.compile_cache) + len(self._next_tokens.compile_cache)

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, samples: Sequence[int], progress: bool = False
    ) -> Completions:
        """Answer every prompt.

        Args:
            prompts: N lists of ids, at most P long.
            seed: of the run.
            samples: N sample numbers; (seed, sample) determines the random numbers of a sample.
            progress: show a bar.

        Raises:
            UserError: a prompt is empty or longer than P.
        """
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.prompt_length:
                raise UserError(f"prompt {row} has {len(prompt)} tokens; 1 to {self.prompt_length} are possible")
        count, size = len(prompts), self.max_tokens
        result = Completions(
            np.full((count, size), self.pad_id, np.int32),
            np.zeros(count, np.int32),
            np.zeros((count, size), np.float32),
            np.zeros((count, size), np.float32),
            np.zeros(count, bool),
        )
        uniform_NC, seen = uniforms(seed, samples, size), self._seen(prompts)
        if not self._compiled:
            self._compile()
        scheduler, waiting_samples = self._new_scheduler(), deque(range(count))
        with tqdm(
            total=count, desc="rollout", unit="completion", leave=False, disable=None if progress else True
        ) as bar:
            while waiting_samples or len(scheduler.active_rows):
                if scheduler.should_admit(len(waiting_samples)):
                    scheduler.admit(waiting_samples, prompts)
                while scheduler.pending_rows:
                    self._fill(*(Tensor(x) for x in scheduler.next_prefill()))
                bar.update(self._step(scheduler, result, uniform_NC, seen))
        return result

    def _step(self, scheduler: RowScheduler, result: Completions, uniform_NC: np.ndarray, seen: np.ndarray) -> int:
        """The next tokens of every taken row; → how many samples are complete with them."""
        rows, complete = scheduler.active_rows, 0
        numbers = np.minimum(scheduler.drawn[rows, None] + np.arange(self.tokens_per_launch), self.max_tokens - 1)
        uniform = uniform_NC[scheduler.sample[rows, None], numbers]
        tokens_BN, logps_BN2 = (x.asnumpy() for x in self._next_tokens(*self._step_inputs(scheduler, uniform, seen)))
        for tokens_B, logps_B2 in zip(tokens_BN.T, np.split(logps_BN2, self.tokens_per_launch, axis=1), strict=True):
            complete += self._take(scheduler, result, tokens_B, logps_B2, seen)
        return complete

    def _take(
        self, scheduler: RowScheduler, result: Completions, tokens_B: np.ndarray, logps_B2: np.ndarray, seen: np.ndarray
    ) -> int:
        """Give every taken row its token, and its place to another sample where that was the last; → how many were."""
        rows = scheduler.active_rows
        samples, drawn, tokens = scheduler.sample[rows], scheduler.drawn[rows], tokens_B[rows]
        result.tokens[samples, drawn] = tokens
        result.logps[samples, drawn], result.drawn_logps[samples, drawn] = logps_B2[rows].T
        if self.sampling.repetition_penalty != 1.0:
            seen[samples, tokens] = 1.0
        scheduler.token[rows], scheduler.drawn[rows] = tokens, drawn + 1
        stopped = np.isin(tokens, self.stop_ids)
        ended = stopped | (drawn + 1 == self.max_tokens)
        result.lengths[samples[ended]], result.stopped[samples[ended]] = drawn[ended] + 1, stopped[ended]
        scheduler.release(rows[ended])
        return int(ended.sum())

    def _step_inputs(self, scheduler: RowScheduler, uniform: np.ndarray, seen: np.ndarray) -> tuple[Tensor, ...]:
        """Of the graph of tokens; `uniform` is for the rows that are taken."""
        row_slots, positions = scheduler.token_slots()
        uniform_BN = np.zeros((self.rows, self.tokens_per_launch), np.float32)
        uniform_BN[scheduler.active_rows] = uniform
        return (
            Tensor(scheduler.token[:, None].copy()),
            Tensor(row_slots),
            Tensor(positions),
            Tensor(uniform_BN),
            Tensor(self._of_rows(scheduler, seen)),
            Tensor(self._stop_bias(scheduler)),
        )

    def _seen(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Which ids the prompts hold, float32 [N, V]; [1, 1] where nobody asks."""
        if self.sampling.repetition_penalty == 1.0:
            return np.zeros((1, 1), np.float32)
        seen = np.zeros((len(prompts), self.config.vocab_size), np.float32)
        for row, prompt in enumerate(prompts):
            seen[row, prompt] = 1.0
        return seen

    def _of_rows(self, scheduler: RowScheduler, seen: np.ndarray) -> np.ndarray:
        """The lines of the samples in the rows, [B, V]."""
        if self.sampling.repetition_penalty == 1.0:
            return seen
        chosen = np.zeros((self.rows, self.config.vocab_size), np.float32)
        chosen[scheduler.active_rows] = seen[scheduler.sample[scheduler.active_rows]]
        return chosen

    def _stop_bias(self, scheduler: RowScheduler) -> np.ndarray:
        """What is added to the logits, float32 [B, V]; [1, 1] where no stop id is ever held back."""
        if self.sampling.min_tokens == 0:
            return np.zeros((1, 1), np.float32)
        bias = np.zeros((self.rows, self.config.vocab_size), np.float32)
        early = np.flatnonzero(scheduler.drawn < self.sampling.min_tokens)
        bias[early[:, None], self.stop_ids] = -1e9
        return bias
