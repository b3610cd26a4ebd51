import json

import pytest

from r1parallel.data.mindspeed.templates import load_mindspeed_template
from r1parallel.data.templates import render
from r1parallel.errors import UserError


def write_templates(tmp_path, *entries):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(entries))
    return path


def own(tmp_path, **entry):
    return load_mindspeed_template("own", write_templates(tmp_path, {"name": "own", **entry}))


def test_a_system_of_the_row_takes_the_place_of_the_default(byte_tokenizer):
    template = load_mindspeed_template("qwen_r1")
    prompt = template.prompt("q", byte_tokenizer, system="Be brief.")
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA conversation between ")
    assert "helpful" not in prompt


def test_our_qwen_r1_is_another_prompt_than_theirs(byte_tokenizer):
    assert render("qwen_r1", "q", byte_tokenizer) != render("mindspeed_qwen_r1", "q", byte_tokenizer)


def test_a_file_is_stronger_than_what_is_kept_here(tmp_path, byte_tokenizer):
    entries = [{"name": "other"}, {"name": "qwen_r1", "format_user": {"slots": ["Q {{content}} {{idx}} A"]}}]
    template = load_mindspeed_template("qwen_r1", write_templates(tmp_path, *entries))
    assert template.prompt("{{idx}}{{content}}", byte_tokenizer) == "Q {{idx}}{{content}} 0 A"


def test_slots_are_texts_named_tokens_and_given_tokens(tmp_path, byte_tokenizer):
    template = own(
        tmp_path,
        format_prefix={"slots": [["bos_token"], {"token": "<|im_start|>"}, ["eos_token"]]},
        format_system={"slots": ["[{{content}}]"]},
        default_system=["one ", "two"],
    )
    assert template.prompt("q", byte_tokenizer) == "<|im_start|><|im_end|>[one two]q"  # Qwen has no bos token


def test_llama2_puts_the_system_before_the_question(tmp_path, byte_tokenizer):
    entry = {"name": "llama2", "format_user": {"slots": ["[INST] {{content}} [/INST]"]}, "default_system": "s "}
    template = load_mindspeed_template("llama2", write_templates(tmp_path, entry))
    assert template.prompt("q", byte_tokenizer) == "[INST] s q [/INST]"


@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        ("<think>\na\n</think>\n\nb", False, "b"),
        ("b", False, "b"),
        ("b", True, "<think>\n\n</think>\n\nb"),
        ("<think>\na\n</think>\n\nb", True, "<think>\na\n</think>\n\nb"),
    ],
)
def test_thoughts_in_answers_of_a_reasoning_template(text, thinking, expected):
    assert load_mindspeed_template("qwen3").answer(text, thinking) == expected
    assert load_mindspeed_template("qwen").answer(text, thinking) == text


def test_thought_words_of_a_file(tmp_path, byte_tokenizer):
    template = own(tmp_path, template_class="ReasoningTemplate", thought_words=["<t>", "</t>"])
    assert template.prompt("q", byte_tokenizer) == "q<t></t>"
    assert template.prompt("q", byte_tokenizer, enable_thinking=True) == "q"


def test_a_tokenizer_without_the_markers_is_refused(byte_tokenizer, deepseek_tokenizer):
    with pytest.raises(UserError, match="no token '<｜User｜>'"):
        render("mindspeed_deepseek3", "q", byte_tokenizer)
    with pytest.raises(UserError, match=r"no token '<\|im_start\|>'"):
        render("mindspeed_qwen", "q", deepseek_tokenizer)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"format_user": {"slots": ["fixed"]}}, r"template 'own': format_user has no \{\{content\}\}"),
        ({"format_prefix": {"slots": "x"}}, "format_prefix has no list of slots"),
        ({"format_prefix": {"slots": [["cls_token"]]}}, r"a slot of format_prefix is \['cls_token'\]"),
        ({"default_system": 5}, "default_system is 5"),
        ({"template_class": "Llama2Template"}, "template_class is 'Llama2Template'"),
        ({"thought_words": ["<t>"]}, "thought_words is"),
    ],
)
def test_malformed_templates_are_named(tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        own(tmp_path, **entry)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(UserError, match=r"'gemma' is not among .*empty, qwen, qwen_r1, .*set prompt_type_path"):
        load_mindspeed_template("gemma")
    with pytest.raises(UserError, match="has no template 'b', only a; mend prompt_type"):
        load_mindspeed_template("b", write_templates(tmp_path, {"name": "a"}))
    with pytest.raises(UserError, match=r"none\.json: no such file; leave the key out"):
        load_mindspeed_template("b", tmp_path / "none.json")
    for content, message in (("{", "not readable as JSON"), ("{}", "expected a list of templates")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=message):
            load_mindspeed_template("b", tmp_path / "x.json")
