import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.monitor_runs import write_grpo_run, write_sft_run

from r1parallel.errors import UserError
from r1parallel.monitor.report.report import flatten, write_report

TOOL = Path(__file__).parents[3] / "tools" / "report.py"


class Page(HTMLParser):
    """Text by enclosing tag, and every address that the page would fetch."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.text, self.addresses, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.stack.append(tag)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.append((self.stack[-1] if self.stack else "", data.strip()))

    def of(self, tag):
        return [text for inside, text in self.text if inside == tag and text]


def page_of(run_dir, title=None):
    path = write_report(run_dir, title)
    assert path == run_dir / "report.html"
    assert not list(path.parent.glob("*.tmp*"))
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    run_dir = write_grpo_run(tmp_path_factory.mktemp("runs") / "a-run", 25)
    return run_dir, page_of(run_dir)


def test_a_grpo_run_shows_its_charts(grpo):
    page = grpo[1]
    wanted = {"Reward", "Accuracy", "Reward by function", "Completion length", "KL to the reference", "Time by phase"}
    assert wanted | {"Clip fraction", "Gradient norm", "Learning rate"} <= set(page.of("h3"))
    assert page.tags.count("svg") == len([title for title in page.of("h3") if not title.startswith("Step")])
    assert page.of("h1") == ["a-run"]


def test_nothing_is_fetched_from_elsewhere(grpo):
    run_dir, page = grpo
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    text = (run_dir / "report.html").read_text()
    assert "default-src 'none'" in text
    assert "url(http" not in text
    assert "@import" not in text


def test_completions_of_first_and_last_step_are_escaped(grpo):
    page = grpo[1]
    assert [title for title in page.of("h3") if title.startswith("Step ")] == ["Step 1", "Step 25"]
    shown = "\n".join(page.of("pre"))
    assert "Eggs & boxes <b>many</b>" in shown
    assert "<answer>31</answer>" in shown
    assert "many" not in page.of("b")


def test_settings_are_folded_rows(grpo):
    cells = grpo[1].of("td")
    assert cells[cells.index("rl_config.resume_training") + 1] == "false"
    assert cells[cells.index("reward_config.verifier_weight") + 1] == "1, 0.5"


def test_the_same_run_gives_the_same_page(grpo):
    run_dir = grpo[0]
    before = (run_dir / "report.html").read_bytes()
    write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_a_run_of_a_single_step(tmp_path):
    page = page_of(write_grpo_run(tmp_path / "run", 1), "One step")
    assert page.of("h1") == ["One step"]
    assert [title for title in page.of("h3") if title.startswith("Step ")] == ["Step 1"]


def test_an_sft_run_without_samples_and_settings(tmp_path):
    page = page_of(write_sft_run(tmp_path / "run", 12))
    assert page.of("h3")[:2] == ["Loss", "Evaluation: probability of the answer"]
    assert "Reward" not in page.of("h3")
    assert page.tags.count("details") == 1
    assert "Completions" not in page.of("h2")


def test_a_run_without_phase_times_has_no_chart_of_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert page_of(tmp_path).of("h3") == ["Loss"]


def test_a_sample_that_could_not_be_scored_and_one_with_nothing_but_text(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward_mean": 1.0}\n')
    rows = [{"step": 1, "completion": "x", "reward": None, "parts": {"acc": None}}, {"step": 1, "completion": "y"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [text for text in page_of(tmp_path).of("span") if "scored" in text] == [
        "reward not scored",
        "acc not scored",
    ]


def test_a_folder_of_runs_is_one_page(tmp_path):
    write_grpo_run(tmp_path / "grpo", 3)
    write_sft_run(tmp_path / "sft", 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "summary.json").write_text(
        json.dumps({"accuracy": {"before": 0.0625, "after": 0.5}, "model": "<tiny>"})
    )
    page = page_of(tmp_path)
    assert [title for title in page.of("h2") if title != "Completions"] == ["sft", "grpo"]
    assert [text for text in page.of("a")] == ["sft", "grpo"]
    assert page.of("td")[:6] == ["accuracy.before", "0.0625", "accuracy.after", "0.5", "model", "<tiny>"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{", "summary.json is not JSON"),
        ("config.json", "[1]", "config.json must hold one JSON object"),
        ("metrics.jsonl", "", "has no step yet"),
    ],
)
def test_unreadable_files_are_named_and_no_page_is_left(tmp_path, name, text, message):
    write_sft_run(tmp_path, 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    assert not list(tmp_path.glob("report*"))


def test_a_folder_without_a_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl in"):
        write_report(tmp_path)


def test_flatten_names_nested_values():
    values = {"a": {"b": 1, "c": {"d": 0.123456789}}, "e": [True, None, "x"], "f": "text", "g": [{"h": 1}]}
    assert flatten(values) == [
        ("a.b", "1"),
        ("a.c.d", "0.123457"),
        ("e", "true, null, x"),
        ("f", "text"),
        ("g", '{"h": 1}'),
    ]


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("report_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_command_writes_the_page(command, tmp_path, capsys):
    write_sft_run(tmp_path, 2)
    command(["--run_dir", str(tmp_path), "--title", "My run"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert re.search("<h1>My run ", (tmp_path / "report.html").read_text())


def test_the_command_draws_a_curve(command, tmp_path, capsys):
    write_sft_run(tmp_path, 2)
    command(["--run_dir", str(tmp_path), "--curve", "loss", "--output", str(tmp_path / "loss.png")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert not (tmp_path / "report.html").exists()


def test_the_command_wants_curve_and_output_together(command, tmp_path):
    with pytest.raises(UserError, match="go together"):
        command(["--run_dir", str(tmp_path), "--curve", "loss"])
