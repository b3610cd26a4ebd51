"""A checkpoint that answers prompts: what generate and evaluate share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1parallel.checkpoint.load import config_beside, read_model
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig, SamplingConfig
from r1parallel.data.text.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.parameters import load_parameters
from r1parallel.parallel.device import setup_device


@dataclass
class Answerer:
    """A checkpoint's sizes and tokenizer; the weights are read when the first prompts are known.

    Attributes:
        path: Hugging Face folder or a checkpoint of ours.
        config: sizes.
        tokenizer: of the same folder unless another was given.
        sampling: how tokens are drawn.
        rows: prompts generated together.
        compute_dtype: of the configuration's context.
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    sampling: SamplingConfig
    rows: int
    compute_dtype: str

    @classmethod
    def open(cls, config: RunConfig) -> "Answerer":
        """Read the sizes and tokenizer that `generate_config` names and set the device up.

        Raises:
            UserError: one is missing or they do not fit each other.
        """
        generate = config.generate_config
        path = Path(generate.load)
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint")
        folder = Path(generate.tokenizer_dir) if generate.tokenizer_dir else (path if path.is_dir() else path.parent)
        sizes = load_model_config(generate.model_config) if generate.model_config else config_beside(path)
        tokenizer = load_tokenizer(folder)
        check_tokenizer(tokenizer, sizes, str(folder))
        setup_device(config.context)
        return cls(
            path,
            sizes,
            tokenizer,
            generate.sampling_config,
            generate.infer_model_batch_size,
            config.context.compute_dtype,
        )

    def answer(self, prompts: Sequence[Sequence[int]], seed: int) -> Completions:
        """Complete every prompt; sample i of the list is named i.

        Raises:
            UserError: the checkpoint is damaged, a prompt is empty, or the model has too few positions.
        """
        longest = max(len(prompt) for prompt in prompts)
        stop_ids = self.sampling.eos_token_id or self.tokenizer.stop_ids
        pad_id = self.tokenizer.pad_token_id if self.sampling.pad_token_id < 0 else self.sampling.pad_token_id
        rows = min(self.rows, len(prompts))
        operators = choose_operators(self.compute_dtype, trained=False)
        engine = RolloutEngine(self.config, self.sampling, rows, longest, stop_ids, pad_id, operators=operators)
        load_parameters(engine.model, read_model(self.path, self.config), str(self.path))
        return engine.generate(prompts, seed, range(len(prompts)), progress=True)
