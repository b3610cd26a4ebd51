"""The rollout engine under a layout answers as one process does."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from generate_cases import CONFIG, LAYOUTS, SETTINGS, generate
from helpers.msrun import run_workers

from r1parallel.checkpoint.load import ArraySource, config_beside, open_model
from r1parallel.config.schema import SamplingConfig
from r1parallel.data.templates import render
from r1parallel.data.text.sources import ExampleSource
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.parameters import load_slices
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

WORKER = Path(__file__).with_name("generate_worker.py")
QUESTIONS, TOKENS, STOP_ID = 4, 24, 2


@pytest.fixture(scope="module")
def values(noisy_values) -> dict[str, np.ndarray]:
    return noisy_values(CONFIG, seed=4)


@pytest.fixture(scope="module")
def expected(mindspore_cpu, values) -> dict[str, Completions]:
    """What one process answers with every setting."""
    source = ArraySource(values, "start values")
    return {name: generate(name, source, Mesh(), World())[1] for name in SETTINGS}


def check_same(expected: Completions, answers: Path, tolerance: float) -> None:
    """A rank's answers are those of one process."""
    with np.load(answers) as drawn:
        for key in ("tokens", "lengths", "stopped"):
            np.testing.assert_array_equal(drawn[key], getattr(expected, key))
        np.testing.assert_allclose(drawn["logps"], expected.logps, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("layouts", [["tp2", "dp2"], ["dp2-tp2"]], ids="+".join)
def test_tokens_and_log_probs_are_those_of_one_process(expected, values, tmp_path, layouts):
    """All settings under all layouts for the same number of ranks."""
    np.savez(tmp_path / "values.npz", **values)
    workers = LAYOUTS[layouts[0]].world_size
    ended = run_workers(WORKER, ["tiny", str(tmp_path), *layouts], workers, tmp_path / "job", limit_s=1000)
    assert ended.returncode == 0, ended.output[-3000:]
    for name, completions in expected.items():
        assert 1 <= completions.stopped.sum() < len(completions.stopped)  # both kinds occur
        for layout in layouts:
            for rank in range(workers):
                check_same(completions, tmp_path / f"{layout}-{name}-{rank}.npz", 1e-5)


@pytest.fixture(scope="module")
def real_prompts(smollm2: Path, shared_dir: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(smollm2)
    questions = islice(ExampleSource("gsm8k", shared_dir / "data" / "gsm8k" / "test.jsonl"), QUESTIONS)
    return [tokenizer.encode(render("chat", example.question, tokenizer)) for example in questions]


@pytest.fixture(scope="module")
def real(mindspore_cpu, smollm2: Path, real_prompts) -> Completions:
    config, sampling = config_beside(smollm2), SamplingConfig(max_tokens=TOKENS, temperature=0.0)
    engine = RolloutEngine(config, sampling, 2, max(map(len, real_prompts)), [STOP_ID], STOP_ID)
    load_slices(engine.model, open_model(smollm2, config), ModelLayout(config, Mesh()), 0)
    return engine.generate(real_prompts, 0, range(QUESTIONS))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layouts"), [(2, ["dp2", "pp2"]), (3, ["tp3"])], ids=["dp2+pp2", "tp3"])
def test_a_real_model_answers_as_in_one_process(real, real_prompts, smollm2, tmp_path, ranks, layouts):
    """pp2 is an actor's layout: it hands its weights to a generator under dp2, whose tokens it then scores."""
    (tmp_path / "prompts.json").write_text(json.dumps(real_prompts))
    arguments = ["real", str(tmp_path), str(smollm2), *layouts]
    ended = run_workers(WORKER, arguments, ranks, tmp_path / "job", limit_s=1200)
    assert ended.returncode == 0, ended.output[-3000:]
    for layout in layouts:
        for rank in range(ranks):
            check_same(real, tmp_path / f"{layout}-{rank}.npz", 1e-4)
