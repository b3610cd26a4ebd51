"""The rollout engine: prompts in, completions with log-probs and exact lengths out."""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.parallel import Layout
from tqdm import tqdm

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import SamplingConfig
from r1parallel.data.batches import right_aligned
from r1parallel.errors import UserError
from r1parallel.generation.noise import uniforms
from r1parallel.generation.sampling import Sampler
from r1parallel.models.fused import PLAIN, Operators
from r1parallel.models.parameters import unallocated
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.layout import ModelLayout
from r1parallel.parallel.mesh import Mesh
from r1parallel.parallel.program import on_mesh
from r1parallel.parallel.waiting import waiting
from r1parallel.parallel.world import World

_ONE_RANK, _ALONE = Mesh(), World()
_MIN_PROMPT_SLOTS = 2  # a call with one query is a further token: it does not clear the cache


@dataclass
class Completions:
    """What N prompts were answered with. Slots past `lengths` hold the padding id and log-prob 0.

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


class NextToken(nn.Cell):
    """One launch: run tokens through the model, write the cache, draw the next token from the last position."""

    def __init__(self, model: Qwen2ForCausalLM, sampler: Sampler):
        super().__init__(auto_prefix=False)
        self.model, self.sampler = model, sampler
        self.reshape, self.last = ops.Reshape(), ops.StridedSlice()

    def construct(
        self,
        tokens_BS: Tensor,
        slots_S: Tensor,
        starts_B: Tensor,
        uniform_B1: Tensor,
        seen_BV: Tensor,
        stop_bias_V: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, queries = tokens_BS.shape
        size = self.model.config.hidden_size
        hidden_BSH = self.reshape(self.model.hidden(tokens_BS, slots_S, starts_B), (rows, queries, size))
        last_BH = self.reshape(
            self.last(hidden_BSH, (0, queries - 1, 0), (rows, queries, size), (1, 1, 1)), (rows, size)
        )
        return self.sampler(self.model.logits(last_BH), uniform_B1, seen_BV, stop_bias_V)


def _split_cache(model: Qwen2ForCausalLM, mesh: Mesh) -> None:
    """Split writes to the cache over rows and heads. MindSpore has no rule for them, so their layouts stand here."""
    grid = Layout((mesh.dp, mesh.tp), ("dp", "tp"))
    heads, whole = grid("dp", "tp", "None", "None"), grid("None")
    # The second input of the latter is a number, the dimension.
    inputs = {"IndexAdd": (heads, whole, heads), "InplaceIndexAddExt": (heads, whole, whole, heads)}
    for layer in model.model.layers:
        write = layer.attention.write
        write.add_prim_attr("self_define_shard", True)
        write.shard(inputs[write.name], (heads,))


class RolloutEngine:
    """Batched sampling with a static cache: one graph for the prompts, one for every further token.

    Args:
        config: sizes of the model.
        sampling: how tokens are drawn; `max_tokens` is C.
        rows: prompts generated together on one dp rank; B is `rows` of all dp ranks.
        prompt_length: P, slots for the prompt.
        stop_ids: a completion ends with the first of these.
        pad_id: fills unused slots; may be a stop id, masks come from lengths.
        mesh: dp and tp of the generator; pp is 1. All ranks are called with the same prompts at the same time.
        world: which rank this is. With several ranks the graphs are compiled here, so that weights can be set after.
        operators: what the model is made of.

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
        self.prompt_slots = max(prompt_length, _MIN_PROMPT_SLOTS)
        with unallocated():
            self.model = Qwen2ForCausalLM(config, self.prompt_slots + self.max_tokens, self.rows, operators)
        self._prompt_slots = Tensor(np.arange(self.prompt_slots, dtype=np.int32))
        self._slots = [Tensor(np.array([self.prompt_slots + t], np.int32)) for t in range(self.max_tokens)]
        self._next_token = self._spread(mesh, world)
        if world.size > 1:
            self._compile()

    def _spread(self, mesh: Mesh, world: World) -> nn.Cell:
        program = NextToken(self.model, Sampler(self.sampling, self.config.vocab_size))
        program.set_train(False)
        if world.size > 1:
            _split_cache(self.model, mesh)
        return on_mesh(program, ModelLayout(self.config, mesh), world)

    def _compile(self) -> None:
        tokens = np.full((self.rows, self.prompt_slots), self.pad_id, np.int32)
        starts = np.zeros(self.rows, np.int32)
        rest = (Tensor(starts), Tensor(starts.astype(np.float32).reshape(-1, 1)), Tensor(self._seen(tokens, starts)))
        with waiting("compilation of the rollout graphs"):
            for inputs, slots in ((tokens, self._prompt_slots), (tokens[:, :1].copy(), self._slots[0])):
                self._next_token.compile(Tensor(inputs), slots, *rest, self._stop_bias(0))

    def generate(
        self, prompts: Sequence[Sequence[int]], seed: int, samples: Sequence[int], progress: bool = False
    ) -> Completions:
        """Answer every prompt.

        Args:
            prompts: N lists of ids, at most P long.
            seed: of the run.
            samples: N numbers that name the samples; (seed, sample) decides what is drawn.
            progress: show a bar.

        Raises:
            UserError: a prompt is empty or longer than P.
        """
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.prompt_length:
                raise UserError(f"prompt {row} has {len(prompt)} tokens; 1 to {self.prompt_length} are possible")
        count = len(prompts)
        result = Completions(
            np.full((count, self.max_tokens), self.pad_id, np.int32),
            np.zeros(count, np.int32),
            np.zeros((count, self.max_tokens), np.float32),
            np.zeros((count, self.max_tokens), np.float32),
            np.zeros(count, bool),
        )
        batches = -(-count // self.rows)
        with tqdm(
            total=batches * self.max_tokens,
            desc="rollout",
            unit="step",
            leave=False,
            disable=None if progress else True,
        ) as bar:
            for first in range(0, count, self.rows):
                self._generate_batch(result, prompts, seed, samples, first, bar)
        return result

    def _generate_batch(
        self,
        result: Completions,
        prompts: Sequence[Sequence[int]],
        seed: int,
        samples: Sequence[int],
        first: int,
        bar: tqdm,
    ) -> None:
        """Fill rows `first` … of `result`. A short last batch is filled up with copies of its first prompt."""
        real = min(self.rows, len(prompts) - first)
        chosen = [first + row if row < real else first for row in range(self.rows)]
        tokens, starts = right_aligned([prompts[i] for i in chosen], self.prompt_slots, self.pad_id)
        noise = uniforms(seed, [samples[i] for i in chosen], self.max_tokens)
        seen = self._seen(tokens, starts)
        drawn = np.full((self.rows, self.max_tokens), self.pad_id, np.int32)
        logps = np.zeros((2, self.rows, self.max_tokens), np.float32)
        lengths = np.full(self.rows, self.max_tokens, np.int32)
        stopped = np.zeros(self.rows, bool)
        device_starts, inputs, slots = Tensor(starts), Tensor(tokens), self._prompt_slots
        for step in range(self.max_tokens):
            token_B1, logps_B2 = self._next_token(
                inputs,
                slots,
                device_starts,
                Tensor(np.ascontiguousarray(noise[:, step : step + 1])),
                Tensor(seen),
                self._stop_bias(step),
            )
            drawn[:, step], logps[:, :, step] = token_B1.asnumpy()[:, 0], logps_B2.asnumpy().T
            ends = ~stopped & np.isin(drawn[:, step], self.stop_ids)
            lengths[ends] = step + 1
            stopped |= ends
            bar.update(1)
            if stopped[:real].all():
                bar.update(self.max_tokens - step - 1)
                break
            if self.sampling.repetition_penalty != 1.0:
                seen[np.arange(self.rows), drawn[:, step]] = 1.0
            inputs, slots = token_B1, self._slots[step]
        rows = slice(first, first + real)
        inside = np.arange(self.max_tokens) < lengths[:real, None]
        result.tokens[rows] = np.where(inside, drawn[:real], self.pad_id)
        result.logps[rows], result.drawn_logps[rows] = np.where(inside, logps[:, :real], 0.0)
        result.lengths[rows], result.stopped[rows] = lengths[:real], stopped[:real]

    def _seen(self, tokens_BP: np.ndarray, starts_B: np.ndarray) -> np.ndarray:
        """Which ids the prompts hold, float32 [B, V]; [1, 1] where nobody asks."""
        if self.sampling.repetition_penalty == 1.0:
            return np.zeros((1, 1), np.float32)
        seen = np.zeros((self.rows, self.config.vocab_size), np.float32)
        for row, start in enumerate(starts_B):
            seen[row, tokens_BP[row, start:]] = 1.0
        return seen

    def _stop_bias(self, step: int) -> Tensor:
        """What is added to the logits of step `step`, float32 [V]; [1] where no stop id is ever held back."""
        if self.sampling.min_tokens == 0:
            return Tensor(np.zeros(1, np.float32))
        bias = np.zeros(self.config.vocab_size, np.float32)
        if step < self.sampling.min_tokens:
            bias[self.stop_ids] = -1e9
        return Tensor(bias, ms.float32)
