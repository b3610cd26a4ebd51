"""Ways in which the headers of the three formats are damaged, each made of a small valid file."""

import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.formats import ckpt_format, safetensors_format
from r1parallel.parallel.layout.strategy_files import read_strategy, write_merged_strategy, write_strategy_files
from r1parallel.parallel.layout.strategy_proto import ParallelStrategyMap
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout
from r1parallel.wire import encode_bytes, encode_length, encode_varint

TERABYTE = 2**40
HUGE = (2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TENSORS = [("b", (2, 3), "F32"), ("a.weight", (4,), "BF16"), ("scalar", (), "I64"), ("empty", (0, 7), "U8")]
NUMBERS = ["-1", "0", "1e999", "NaN", "null", "true", "1.0", '"1"', "[]", "{}", "9" * 300, "9" * 5000, "[" * 10**5]
NUMBERS += [str(number) for number in HUGE]
STRINGS = [
    "",
    "\\u0000",
    "../..",
    "/etc/passwd",
    "a\\nb",
    "\\ud800",
    "__metadata__",
    "dtype",
    "shape",
    "F64",
    "Z" * 9999,
]
Mutation = Callable[[random.Random, bytes], bytes]


# ---- any bytes ----


def some_place(rng: random.Random, content: bytes) -> int:
    return rng.randrange(len(content) + 1)


def flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: some_place(rng, content)]


def insert(rng: random.Random, content: bytes) -> bytes:
    place = some_place(rng, content)
    return content[:place] + rng.randbytes(rng.randint(1, 20)) + content[place:]


def remove(rng: random.Random, content: bytes) -> bytes:
    place = some_place(rng, content)
    return content[:place] + content[place + rng.randint(1, 20) :]


def repeat(rng: random.Random, content: bytes) -> bytes:
    begin, end = sorted((some_place(rng, content), some_place(rng, content)))
    return content[:end] + content[begin:end] * rng.randint(1, 50) + content[end:]


def huge_number(rng: random.Random, content: bytes) -> bytes:
    """A number of protobuf, or of eight bytes, in the place of what was there."""
    place = some_place(rng, content)
    number = rng.choice([*HUGE, TERABYTE, 100 * TERABYTE])
    if rng.random() < 0.5:
        return content[:place] + encode_varint(number) + content[place + 1 :]
    return content[:place] + struct.pack("<Q", number) + content[place + 8 :]


def noise(rng: random.Random, content: bytes) -> bytes:
    return rng.randbytes(rng.randint(0, 300))


ANY: list[Mutation] = [flip, truncate, insert, remove, repeat, huge_number, noise]


# ---- safetensors ----


def with_length(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def change_json(pattern: bytes, values: list[str]) -> Mutation:
    def change(rng: random.Random, content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        text, data = content[8 : 8 + length], content[8 + length :]
        for _ in range(rng.randint(1, 2)):
            found = rng.choice(list(re.finditer(pattern, text)))
            text = text[: found.start()] + rng.choice(values).encode() + text[found.end() :]
        return with_length(text, data)

    return change


SAFETENSORS: list[Mutation] = [
    *ANY,
    change_json(rb"\d+", NUMBERS),
    change_json(rb'"[^"]*"', NUMBERS),
    change_json(rb'(?<=")[^",:]+(?=")', STRINGS),
    lambda rng, content: struct.pack("<Q", rng.choice([*HUGE, TERABYTE, 100 * 2**20])) + content[8:],
]


# ---- .ckpt ----


def ckpt_value(rng: random.Random) -> bytes:
    """A value that is well formed, but claims anything."""
    dims = [rng.choice([0, 1, 2, 3, *HUGE]) for _ in range(rng.choice([0, 1, 2, 40, 400]))]
    packed = b"".join(map(encode_varint, dims))
    tensor = encode_bytes(1, packed) if rng.random() < 0.3 else b"".join(b"\x08" + encode_varint(dim) for dim in dims)
    tensor += encode_bytes(2, rng.choice([b"Float32", b"UInt8", b"str", b"Int4", b"\xff", b"F" * 9999]))
    content = rng.randbytes(rng.choice([0, 4, 12]))
    size = rng.choice([len(content)] * 3 + [TERABYTE, 2**63, 2**64 - 1])
    tensor += encode_length(3, size) + content
    name = rng.choice([b"w", b"", b"\0", b"..", b"a\nb", b"\xed\xa0\x80", b"n" * 5000])
    size = rng.choice([len(tensor)] * 3 + [TERABYTE, 2**64 - 1])
    return encode_bytes(1, encode_bytes(1, name) + encode_length(rng.choice([2, 2, 2, 3, 7]), size) + tensor)


def put_value(rng: random.Random, content: bytes) -> bytes:
    value = ckpt_value(rng)
    return rng.choice([value, content + value, value + content, value * 3, content + b"crc_num" + bytes(10)])


CKPT: list[Mutation] = [*ANY, put_value, put_value, put_value]


# ---- strategy files ----


def change_message(rng: random.Random, content: bytes) -> bytes:
    message = ParallelStrategyMap.FromString(content)
    item = rng.choice(message.parallel_layout_item)
    layouts = item.parallel_layouts
    unsigned = [0, 1, 2, 3, 2**20, 2**31, 2**32 - 1]
    signed = [-(2**31), -2, -1, 0, 1, 2, 5, 2**31 - 1]
    length = rng.choice([0, 1, 2, 3, 40, 1000])
    for _ in range(rng.randint(1, 2)):
        match rng.randrange(8):
            case 0:
                layouts.dev_matrix[0].dim[:] = rng.choices(unsigned, k=length)
            case 1:
                layouts.tensor_map[0].dim[:] = rng.choices(signed, k=length)
            case 2:
                layouts.opt_weight_shard_step = rng.choice(signed)
            case 3:
                layouts.opt_weight_shard_size = rng.choice(signed)
            case 4:
                item.param_name = rng.choice(["", "\0", "..", "a\nb", f"{2**31}-w", f"{'9' * 5000}-w", "n" * 10**5])
            case 5:
                message.parallel_strategy_item[0].parallel_strategys.stage = rng.choice(unsigned)
            case 6:
                message.parallel_layout_item.add().CopyFrom(item)
            case 7:
                layouts.dev_matrix[0].dim[:] = [2] * 40
    return message.SerializeToString()


STRATEGY: list[Mutation] = [*ANY, change_message, change_message, change_message, change_message]


# ---- all ----


def planned(module) -> bytes:
    """A small valid file."""
    plan = module.plan_file(TENSORS, {"format": "pt"})
    content = bytearray(np.random.default_rng(0).bytes(plan.size))
    for offset, blob in plan.blobs:
        content[offset : offset + len(blob)] = blob
    return bytes(content)


def strategies(folder: Path) -> list[bytes]:
    table = {"a": TensorLayout((2, 2), (0, -1), 2, -1), "b": TensorLayout((4,), (-1,))}
    write_merged_strategy(StageLayouts(4, (table, table)), folder / "merged.ckpt")
    (file, *_) = write_strategy_files(StageLayouts(4, (table,)), folder / "ranks")
    return [(folder / "merged.ckpt").read_bytes(), file.read_bytes()]


def formats(folder: Path) -> dict[str, tuple[Callable[[Path], object], list[bytes], list[Mutation]]]:
    """Name → reader, valid files, mutations."""
    return {
        "safetensors": (safetensors_format.read_header, [planned(safetensors_format)], SAFETENSORS),
        "ckpt": (ckpt_format.read_header, [planned(ckpt_format)], CKPT),
        "strategy": (read_strategy, strategies(folder), STRATEGY),
    }
