import runpy
from dataclasses import fields
from pathlib import Path

from r1parallel.config.keys import help_texts, list_keys, nearest
from r1parallel.config.limits import _KNOWN_NAMES, _RULES
from r1parallel.config.loading.reference import reference_page
from r1parallel.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[3]
SECTIONS = [field.name for field in fields(RunConfig)]


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), "run: python -m r1parallel.config.loading.reference > docs/configuration.md"


def test_the_module_prints_the_page(capsys):
    runpy.run_path(str(ROOT / "r1parallel" / "config" / "loading" / "reference.py"), run_name="__main__")
    assert capsys.readouterr().out == reference_page()


def test_the_page_has_a_row_for_every_key():
    page = reference_page()
    for name in list_keys(SECTIONS):
        assert f"\n| `{name}` |" in page
    assert "cosine \\| linear \\| constant" in page
    assert "&lt;output_dir>" in page


def test_help_is_the_comment_behind_the_field():
    texts = help_texts(list_keys(SECTIONS).values())
    assert texts["actor_config.lr_schedule.lr"] == "peak learning rate"
    assert texts["ref_config.load"] == "checkpoint; empty: the actor's"
    assert texts["rl_config.seed"] != texts["sft_config.seed"]
    assert texts["actor_config.optimizer.adam_beta1"] == "decay of the mean of gradients"


def test_nearest_prefers_the_same_word_in_another_section():
    known = list(list_keys(SECTIONS))
    assert nearest("rl_config.warmup_step", known) == "actor_config.lr_schedule.warmup_step"
    assert nearest("sft_config.batchsize", known) == "sft_config.batch_size"
    assert nearest("qqqqqqqq", known) is None


def test_every_number_and_name_has_a_limit():
    """A new key must be given a limit, or be named here as free."""
    free = {"generate_config.sampling_config.pad_token_id", "rl_config.num_generations"}  # own checks
    limited = {key for keys, _, _ in _RULES for key in keys} | free
    numbers = {key.name for key in list_keys(SECTIONS).values() if key.kind in (int, float)}
    assert numbers - limited == set()
    assert (limited | set(_KNOWN_NAMES)) - set(list_keys(SECTIONS)) == set()
