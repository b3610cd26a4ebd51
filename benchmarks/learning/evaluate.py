"""Held-out accuracy of several checkpoints of one model: what tools/evaluate.py does, with one graph for all of them.

python -m benchmarks.learning.evaluate JOB.json, which holds: model_config, tokenizer_dir, test (JSON lines),
max_tokens, checkpoints (name → a model's folder, or a step_<n> of a run), output (JSON: name → accuracy).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.machine import write
from r1parallel.checkpoint.load import read_model
from r1parallel.checkpoint.run_state import load_run_state
from r1parallel.config.model import load_model_config
from r1parallel.config.schema import ContextConfig, SamplingConfig
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import run_command
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.parameters import load_parameters
from r1parallel.parallel.device import setup_device
from r1parallel.rl.evaluate import evaluate

ROWS, PROMPT_SLOTS = 250, 8


class Pupil:
    """A model that answers greedily, and takes the weights of one checkpoint after the other."""

    def __init__(self, model_config: str, tokenizer_dir: str, max_tokens: int) -> None:
        self.config, self.tokenizer = load_model_config(model_config), load_tokenizer(tokenizer_dir)
        sampling = SamplingConfig(max_tokens=max_tokens, temperature=0.0)
        stop_ids, pad_id = self.tokenizer.stop_ids, self.tokenizer.pad_token_id
        operators = choose_operators("float32", trained=False)
        self.engine = RolloutEngine(self.config, sampling, ROWS, PROMPT_SLOTS, stop_ids, pad_id, operators=operators)

    def load(self, checkpoint: Path) -> None:
        load_parameters(self.engine.model, self._values(checkpoint), str(checkpoint))

    def _values(self, checkpoint: Path) -> dict[str, np.ndarray]:
        if not (checkpoint / "state.json").is_file():
            return read_model(checkpoint, self.config)
        source = load_run_state(checkpoint)[0]["actor"]
        return {name: source.read(name) for name in self.config.parameter_shapes()}

    def answer(self, prompts: Sequence[Sequence[int]], seed: int) -> Completions:
        """As `Answerer.answer`, which `evaluate` calls."""
        return self.engine.generate(prompts, seed, range(len(prompts)), progress=False)


def main(argv: Sequence[str]) -> None:
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    setup_device(ContextConfig())
    pupil = Pupil(job["model_config"], job["tokenizer_dir"], job["max_tokens"])
    accuracies = {}
    for name, checkpoint in job["checkpoints"].items():
        pupil.load(Path(checkpoint))
        summary, _ = evaluate(pupil, "arithmetic", job["test"], 1, "raw", None, 0)
        accuracies[name] = summary["accuracy"]
        print(name, json.dumps(summary), flush=True)
    write(Path(job["output"]), json.dumps(accuracies))


if __name__ == "__main__":
    run_command(main)
