from pathlib import Path

import pytest
from helpers.tiny_runs import GRPO_STEPS, TinyInputs, grpo_flags, run_script, sft_flags, tiny_inputs


@pytest.fixture(scope="session")
def inputs() -> TinyInputs:
    return tiny_inputs()


@pytest.fixture(scope="session")
def grpo_run(inputs, tmp_path_factory) -> Path:
    """The folder of a GRPO run of 12 steps that nothing interrupted. Tests only read it."""
    folder = tmp_path_factory.mktemp("grpo") / "run"
    assert run_script("run_grpo.py", grpo_flags(inputs, folder, max_steps=GRPO_STEPS)) == 0
    return folder


@pytest.fixture(scope="session")
def sft_run(inputs, tmp_path_factory) -> Path:
    """The folder of an SFT run of 8 updates that nothing interrupted. Tests only read it."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    assert run_script("run_sft.py", sft_flags(inputs, folder)) == 0
    return folder
