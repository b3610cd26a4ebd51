"""Completions of a checkpoint outside of training, for the commands `generate` and `evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1parallel.checkpoint.load import config_beside, read_model
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.data.text.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.engine import Completions
from r1parallel.generation.make_engine import make_engine
from r1parallel.models.parameters import load_parameters
from r1parallel.parallel.device import setup_device


@dataclass
class Answerer:
    """A checkpoint's sizes and tokenizer; the weights are read when the first prompts are known.

    Attributes:
        path: Hugging Face folder or a checkpoint of ours.
        config: sizes.
        tokenizer: of the same folder unless another was given.
        run: the configuration; `generate_config` says how tokens are drawn.
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    run: RunConfig

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
        return cls(path, sizes, tokenizer, config)

    def answer(self, prompts: Sequence[Sequence[int]], seed: int) -> Completions:
        """Complete every prompt; sample i of the list is named i.

        Raises:
            UserError: the checkpoint is damaged, a prompt is empty, or the model has too few positions.
        """
        longest = max(len(prompt) for prompt in prompts)
        rows = min(self.run.generate_config.infer_model_batch_size, len(prompts))
        engine = make_engine(self.run, self.config, longest, self.tokenizer, rows)
        load_parameters(engine.model, read_model(self.path, self.config), str(self.path))
        return engine.generate(prompts, seed, range(len(prompts)), progress=True)
