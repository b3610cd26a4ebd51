"""run_grpo.py without a configuration, on one process and shortened."""

from pathlib import Path

import pytest
from helpers.tiny_runs import REPOSITORY

from r1parallel.checkpoint.load import config_beside, open_model
from r1parallel.config.model import load_model_config
from r1parallel.errors import UserError
from r1parallel.rl import demo

TINY = REPOSITORY / "model_configs" / "tiny"


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_SFT_UPDATES", 10)
    monkeypatch.setattr(demo, "_GRPO_STEPS", 1)


@pytest.mark.slow
def test_it_makes_its_data_trains_and_may_be_run_again(mindspore_cpu, tmp_path):
    demo._make_data()  # as an earlier demo
    (demo.FOLDER / "grpo").mkdir()
    (demo.FOLDER / "grpo" / "old").touch()
    model = demo.run_demo(TINY, 1)
    assert model == Path("runs/demo/grpo/model")
    assert config_beside(model).num_layers == load_model_config(TINY).num_layers
    assert set(open_model(model, config_beside(model)).shapes) == set(config_beside(model).parameter_shapes())
    for folder, lines in (("sft", 10), ("grpo", 1)):
        metrics = (demo.FOLDER / folder / "metrics.jsonl").read_text().splitlines()
        assert len(metrics) == lines
        assert (demo.FOLDER / folder / "report.html").exists()
    assert not (demo.FOLDER / "grpo" / "old").exists()


def test_a_folder_of_somebody_else_is_left_alone(mindspore_cpu, tmp_path):
    demo.FOLDER.mkdir(parents=True)
    (demo.FOLDER / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="runs/demo: holds files that are not the demo's"):
        demo.run_demo(TINY, 1)
    assert (demo.FOLDER / "thesis.tex").read_text() == "years of work"


def test_a_number_of_processes_without_a_layout():
    with pytest.raises(UserError, match="3"):
        demo.run_demo(TINY, 3)
    assert not demo.FOLDER.exists()
