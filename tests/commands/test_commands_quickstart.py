"""The quickstart's driver: all stages, shortened."""

import importlib.util
import json
from pathlib import Path

import pytest

from r1parallel.errors import UserError

ROOT = Path(__file__).parent.parent.parent
SHORT = {"run_sft.py": ("--max_steps", 2), "scripts/run_grpo.py": ("--max_steps", 2)}


@pytest.fixture
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "scripts" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_stages(quickstart, monkeypatch, tmp_path, capsys):
    whole = quickstart.Stages.run
    commands = []

    def shortened(self, stage, script, *flags):
        commands.append(script)
        return whole(self, stage, script, *flags, *SHORT.get(script, ()))

    monkeypatch.setattr(quickstart.Stages, "run", shortened)
    monkeypatch.setattr(quickstart, "NUM_TRAIN", 80)
    monkeypatch.setattr(quickstart, "NUM_TEST", 20)
    out = tmp_path / "a quick start"
    quickstart.main(["--seed", "3", "--output_dir", str(out)])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_problems"] == 20
    assert summary["seed"] == 3
    assert 0 <= summary["sft_accuracy"] <= 1 and 0 <= summary["grpo_accuracy"] <= 1
    assert set(summary["seconds"]) == {"data", "sft", "slice", "grpo", "export", "evaluate", "total"}
    assert {"run_sft.py", "scripts/run_grpo.py", "tools/convert_weight.py", "tools/evaluate.py"} <= set(commands)
    for made in (
        "report.html",
        "hf/model.safetensors",
        "hf/tokenizer.json",
        "strategy/merge_strategy",
        "grpo/samples.jsonl",
    ):
        assert (out / made).exists(), made
    assert "held-out accuracy" in capsys.readouterr().out
    assert "$ scripts/run_grpo.py" in (out / "stages.log").read_text()
    quickstart.fresh_folder(out)  # a second quickstart replaces the first
    assert [path.name for path in out.iterdir()] == ["stages.log"]


def test_a_folder_of_somebody_else_is_left_alone(quickstart, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"no quickstart's; give another --output_dir"):
        quickstart.fresh_folder(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
