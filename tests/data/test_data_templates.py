from pathlib import Path

import pytest
from data_helpers import write_config

from r1parallel.data.templates import PROMPT_TYPES, render
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
QUESTION = "How many  eggs are 3 × 4?\nGive a number."


@pytest.mark.parametrize("prompt_type", PROMPT_TYPES)
def test_prompts_equal_the_golden_files(prompt_type, byte_tokenizer, deepseek_tokenizer):
    tokenizer = deepseek_tokenizer if "deepseek" in prompt_type else byte_tokenizer
    assert render(prompt_type, QUESTION, tokenizer).encode() == (GOLDEN / f"{prompt_type}.txt").read_bytes()


def test_every_golden_file_belongs_to_a_template():
    assert {path.stem for path in GOLDEN.iterdir()} == set(PROMPT_TYPES)


def test_qwen_is_the_template_of_the_qwen_folder(qwen_dir):
    tokenizer = load_tokenizer(qwen_dir)
    assert render("qwen", QUESTION, tokenizer) == render("chat", QUESTION, tokenizer)


def test_unknown_name_lists_the_known(byte_tokenizer):
    with pytest.raises(UserError, match="'qwen3' is unknown; known: plain, raw, qwen, qwen_r1"):
        render("qwen3", QUESTION, byte_tokenizer)


def test_chatml_needs_its_markers(sentencepiece_model):
    tokenizer = load_tokenizer(sentencepiece_model.parent)
    with pytest.raises(UserError, match=r"no token '<\|im_start\|>'"):
        render("qwen", QUESTION, tokenizer)
    with pytest.raises(UserError, match="has no chat_template"):
        render("chat", QUESTION, tokenizer)


def render_own(folder, template):
    write_config(folder, chat_template=template)
    return render("chat", "q", load_tokenizer(folder))


def test_templates_know_special_tokens_and_have_hugging_face_white_space(byte_folder):
    template = "{% for m in messages %}\n  {% if true %}\n{{ m['content'] }}\n  {% endif %}\n{% break %}{% endfor %}"
    assert render_own(byte_folder, template + "{{ eos_token }}{{ pad_token }}") == "q\n<|im_end|><|endoftext|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only assistants') }}", "only assistants"),
        ("{% if %}", "chat_template fails"),
        ("{{ messages.append(1) }}", "chat_template fails"),
        ("{{ ''.__class__.__mro__ }}", "chat_template fails"),
    ],
)
def test_failing_templates_are_user_errors(byte_folder, template, message):
    with pytest.raises(UserError, match=message):
        render_own(byte_folder, template)
