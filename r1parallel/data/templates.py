"""From a question to the prompt that the model reads."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1parallel.data.mindspeed.templates import BUILT_IN_TEMPLATES, load_mindspeed_template
from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.errors import UserError

_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_R1_SYSTEM = (
    "Work on the user's question in two parts. First write your reasoning between <think> and </think>. "
    "Then write the final answer between <answer> and </answer>, and put it in \\boxed{} there."
)
_BOXED_SYSTEM = "Solve the problem step by step and put the final answer in \\boxed{}."
_GSM8K_INSTRUCTION = 'Finish with a last line of the form "#### number".'
# Worked problems that a small model can imitate: our own, in GSM8K's form.
_GSM8K_SHOTS = (
    ("Tom has 3 apples. He buys 4 more. How many apples does he have?", "He has 3 + 4 = 7 apples.\n#### 7"),
    ("A pen costs 2 dollars. How much do 5 pens cost?", "They cost 5 * 2 = 10 dollars.\n#### 10"),
)


def _chatml(system: str) -> Callable[[str, Tokenizer], str]:
    def build(question: str, tokenizer: Tokenizer) -> str:
        for marker in ("<|im_start|>", "<|im_end|>"):  # otherwise they would be read as ordinary letters
            tokenizer.id_of(marker)
        return (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )

    return build


def _chat(question: str, tokenizer: Tokenizer, shots: Sequence[tuple[str, str]] = ()) -> str:
    messages = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ]
    messages.append({"role": "user", "content": question})
    if tokenizer.chat_template is None:
        raise UserError(
            "the tokenizer folder has no chat_template; choose a --prompt_type that does not begin with chat"
        )
    try:
        return _compiled(tokenizer.chat_template).render(
            messages=messages,
            add_generation_prompt=True,
            **tokenizer.special_tokens,
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the tokenizer folder's chat_template fails: {error}") from None


def _mindspeed(name: str, enable_thinking: bool = False) -> Callable[[str, Tokenizer], str]:
    template = load_mindspeed_template(name)
    return lambda question, tokenizer: template.prompt(question, tokenizer, enable_thinking=enable_thinking)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    # The white-space switches and names that Hugging Face templates are written for.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


_TEMPLATES: dict[str, Callable[[str, Tokenizer], str]] = {
    "plain": lambda question, tokenizer: question + "\n",
    "raw": lambda question, tokenizer: question,
    "qwen": _chatml(_QWEN_SYSTEM),
    "qwen_r1": _chatml(_R1_SYSTEM),
    "qwen_boxed": _chatml(_BOXED_SYSTEM),
    "chat": _chat,
    "chat_gsm8k": lambda question, tokenizer: _chat(f"{question}\n{_GSM8K_INSTRUCTION}", tokenizer),
    "chat_gsm8k_shots": lambda question, tokenizer: _chat(question, tokenizer, _GSM8K_SHOTS),
    **{f"mindspeed_{name}": _mindspeed(name) for name in BUILT_IN_TEMPLATES},
    "mindspeed_qwen3_thinking": _mindspeed("qwen3", enable_thinking=True),
}
PROMPT_TYPES = tuple(_TEMPLATES)


def render(prompt_type: str, question: str, tokenizer: Tokenizer) -> str:
    """The prompt of one question, up to where the completion begins.

    Raises:
        UserError: `prompt_type` is unknown, or the tokenizer lacks the markers or the template that it needs.
    """
    if prompt_type not in _TEMPLATES:
        raise UserError(f"prompt_type {prompt_type!r} is unknown; known: {', '.join(PROMPT_TYPES)}")
    return _TEMPLATES[prompt_type](question, tokenizer)
