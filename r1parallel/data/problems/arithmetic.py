"""Sums and differences with written working, and a character tokenizer: a task small enough for a laptop."""

import json
import random
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from r1parallel.atomic import replacing
from r1parallel.errors import UserError

_MAX_MISSES = 20000  # draws in a row without a new problem that count as "there are no more"
_QUESTION = re.compile(r"(\d+)([+-])(\d+)=")
_CONTROL = ("<|endoftext|>", "<|im_end|>")  # pad, eos
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # ordinary tokens: rewards must see them
_CHARACTERS = "0123456789+-*/=#(),.:? \n"

ArithmeticKey = tuple[str, int, int]


def generate_arithmetic(
    num: int,
    seed: int,
    digits: Sequence[int] = (2, 3),
    slip: float = 0.0,
    exclude: Collection[ArithmeticKey] = (),
) -> Iterator[dict[str, str]]:
    """Yield `num` distinct rows {"question", "answer", "solution"}, as "47+38=".

    Each operand has one of `digits` decimal digits; the result has at most max(digits) and is never negative.
    `answer` works from the last column to the first, "<think>7+8=15,4+3+1=8</think><answer>85</answer>",
    with the carry or the borrow as the third term: for three digits at most 31 tokens of the character
    tokenizer, eos included. A fraction `slip` of the rows is worked by a careless teacher, who forgets every carry
    and borrow: with one in it, such a row's answer is wrong; `solution` is always right. Sums that
    differ by the order of the operands are the same problem; those whose `arithmetic_key` is in `exclude` are left out.

    Raises:
        UserError: a parameter is out of range, or there are fewer distinct problems than asked for.
    """
    if not digits or min(digits) < 1:
        raise UserError(f"arithmetic: digits are {list(digits)}; each must be at least 1")
    if not 0 <= slip <= 1:
        raise UserError(f"arithmetic: slip is {slip}; it must lie between 0 and 1")
    rng = random.Random(seed)
    seen = set(exclude)
    for made in range(num):
        key = _new_problem(rng, digits, seen)
        if key is None:
            raise UserError(f"arithmetic: found only {made} of {num} distinct problems; ask for fewer")
        seen.add(_canonical(*key))
        sign, left, right = key
        answer = _worked(sign, left, right, careless=rng.random() < slip)
        gold = left + right if sign == "+" else left - right
        yield {"question": f"{left}{sign}{right}=", "answer": answer, "solution": str(gold)}


def arithmetic_key(row: dict[str, Any]) -> ArithmeticKey:
    """What makes two problems the same; KeyError, TypeError or ValueError for a row that is none."""
    match = _QUESTION.fullmatch(row["question"])
    if match is None:
        raise ValueError(f"{row['question']!r} is no arithmetic question")
    return _canonical(match[2], int(match[1]), int(match[3]))


def _canonical(sign: str, left: int, right: int) -> ArithmeticKey:
    return (sign, min(left, right), max(left, right)) if sign == "+" else (sign, left, right)


def _new_problem(rng: random.Random, digits: Sequence[int], seen: set[ArithmeticKey]) -> ArithmeticKey | None:
    limit = 10 ** max(digits)
    for _ in range(_MAX_MISSES):
        left, right = (_number(rng, rng.choice(digits)) for _ in range(2))
        sign = rng.choice("+-")
        fits = left + right < limit if sign == "+" else left >= right
        if fits and _canonical(sign, left, right) not in seen:
            return sign, left, right
    return None


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _worked(sign: str, left: int, right: int, careless: bool) -> str:
    """The completion: working by columns, then the answer. A careless teacher forgets every carry and borrow."""
    columns, result, carry = [], 0, 0
    num_columns = max(len(str(left)), len(str(right)))
    for i in range(num_columns):
        a, b = left // 10**i % 10, right // 10**i % 10
        value = a + b + carry if sign == "+" else a - b - carry
        borrow = sign == "-" and value < 0
        top, value = (a + 10, value + 10) if borrow else (a, value)
        columns.append(f"{top}{sign}{b}{f'{sign}{carry}' if carry else ''}={value}")
        result += value % 10 * 10**i
        carry = 0 if careless else int(borrow) if sign == "-" else value // 10
    result += carry * 10**num_columns
    return f"<think>{','.join(columns)}</think><answer>{result}</answer>"


def write_character_tokenizer(folder: str | Path) -> None:
    """Write a Hugging Face tokenizer folder with one token for each character that arithmetic needs.

    <|endoftext|> is the pad token, <|im_end|> the eos token; <think>, </think>, <answer> and </answer> are
    one token each. Any other character cannot be encoded.

    Raises:
        UserError: the folder holds another tokenizer.
    """
    folder = Path(folder)
    files = {"tokenizer.json": _character_tokenizer().to_str(pretty=True), "tokenizer_config.json": _config()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != content:
            raise UserError(f"{path}: another tokenizer is here; choose another --tokenizer_dir")
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _character_tokenizer() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate([*_CONTROL, *_TAGS, *_CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # absent, so the unknown is an error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in _TAGS])
    return tokenizer


def _config() -> str:
    pad, eos = _CONTROL
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,  # decoding must give the very text back
    }
    return json.dumps(config, indent=2) + "\n"
