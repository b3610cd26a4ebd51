"""Headers that are damaged, or that claim what nobody has: each is read, or refused in one line, in bounded memory."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from header_mutations import TERABYTE, with_length

import r1parallel.parallel.layout.strategy_files as strategy
from r1parallel.checkpoint.formats import ckpt_format, safetensors_format
from r1parallel.checkpoint.formats.header_limits import MAX_TENSORS
from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_files import read_strategy, write_strategy_files
from r1parallel.parallel.layout.strategy_proto import ParallelStrategyMap
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout
from r1parallel.wire import encode_bytes, encode_length

HEADERS = 10_000
TIME_LIMIT = 300  # s
MEMORY = 200 * 10**6  # bytes
MODULES = {"safetensors": safetensors_format, "ckpt": ckpt_format}
Big = tuple[str, Path, str]  # format, file, what shall come of it


class BigFiles:
    """Makes the files, and keeps what shall come of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Big] = []

    def add(self, name: str, outcome: str, content: bytes, size: int | None = None) -> None:
        """`size`: what the file is made long to, without taking room."""
        file = self.folder / f"{len(self.files)}.{name}"
        file.write_bytes(content)
        if size is not None:
            os.truncate(file, size)
        self.files.append((name, file, outcome))


def add_terabytes(big: BigFiles) -> None:
    """Files that have what they claim, and files that claim what is only zeros."""
    size = 2 * TERABYTE
    for name in ("safetensors", "ckpt", "strategy"):
        big.add(name, "refused", b"", size)
    plan = safetensors_format.plan_file([("w", (size,), "U8")], {})
    big.add("safetensors", "read", plan.blobs[0][1], plan.size)
    big.add("safetensors", "refused", plan.blobs[0][1], plan.size - 1)
    plan = ckpt_format.plan_file([("w", (size,), "U8")], {})
    big.add("ckpt", "refused", plan.blobs[0][1], plan.size)  # zeros where the second chunk shall be
    big.add("safetensors", "refused", struct.pack("<Q", TERABYTE) + b"{}", size)
    big.add("ckpt", "refused", encode_length(1, size - 7) + encode_bytes(1, b"w"), size)
    big.add("ckpt", "refused", encode_length(1, TERABYTE) + encode_length(1, TERABYTE - 6), size)
    dims = encode_length(1, TERABYTE - 100)
    big.add(
        "ckpt",
        "refused",
        encode_length(1, TERABYTE) + encode_bytes(1, b"w") + encode_length(2, TERABYTE - 50) + dims,
        size,
    )
    big.add("strategy", "refused", encode_length(3, 2**29) + encode_length(1, 2**29 - 6), 2**30)


def add_full_headers(big: BigFiles) -> None:
    """As much as a header can hold of what takes the most memory."""
    for text in (b"[]", b"{}", b'{"":0}', b'{"":""}', b"1.5", b"9", b'"ab"', b"[[["):
        count = (2**24 - 20) // (len(text) + 1)
        big.add("safetensors", "refused", with_length(b"[" + b",".join([text] * count) + b"]"))
    pairs = b",".join(b'"%d":""' % index for index in range(5 * MAX_TENSORS))
    big.add("safetensors", "refused", with_length(b"{" + pairs + b"}"))
    pairs = b",".join(b'"%d":[]' % index for index in range(2 * MAX_TENSORS))
    big.add("safetensors", "refused", with_length(b'{"__metadata__":{' + pairs + b"}}"))
    big.add("safetensors", "refused", with_length(b'{"%s":1}' % ("\N{GRINNING FACE}".encode() * (2**22 - 9))))
    big.add("safetensors", "refused", with_length(b'{"w":[' + b",".join([b"9" * 15] * 10**6) + b"]}"))


def add_many_tensors(big: BigFiles) -> None:
    for name, module in MODULES.items():
        plan = module.plan_file([(f"layers.{index:07}.weight", (2, 0), "F32") for index in range(MAX_TENSORS)], {})
        big.add(name, "read", b"".join(blob for _, blob in plan.blobs))
    layouts = encode_bytes(2, encode_bytes(1, encode_bytes(1, b"\1\2")) + encode_bytes(2, encode_bytes(1, b"\0")))
    items = (encode_bytes(3, encode_bytes(1, b"%0500d" % index) + layouts) for index in range(50_000))
    big.add("strategy", "read", b"\x08\1" + operator() + b"".join(items))


def operator() -> bytes:
    return encode_bytes(2, encode_bytes(1, b"o") + encode_bytes(2, b"\x08\0"))


@pytest.mark.slow
def test_every_header_is_read_or_refused_in_one_line(tmp_path):
    big = BigFiles(tmp_path)
    add_terabytes(big)
    add_full_headers(big)
    add_many_tensors(big)
    command = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), str(tmp_path), str(HEADERS)]
    command += [text for name, file, _ in big.files for text in (name, str(file))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, start_new_session=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(sum(counts.values()) for counts in found["counts"].values()) == HEADERS
    for counts in found["counts"].values():  # the mutations are neither all harmless nor all the same
        assert counts["read"] > 50 and counts["refused"] > 1000, found["counts"]
    assert found["big"] == [outcome for _, _, outcome in big.files]
    assert found["growth"] < MEMORY


@pytest.mark.parametrize(
    ("layout", "error"),
    [
        (TensorLayout((2**20, 2**20), (0, 1)), "a lies on 1099511627776 devices, 1 to 1048576 are supported"),
        (TensorLayout((2, 0), (0,)), "a lies on 0 devices"),
        (TensorLayout((2,) * 33, (0,)), "a has a dev_matrix or tensor_map of more than 32 numbers"),
        (TensorLayout((2,), (-1,) * 33), "a has a dev_matrix or tensor_map of more than 32 numbers"),
        (TensorLayout((2, 2), (1, 1)), r"a has tensor_map \(1, 1\)"),
        (TensorLayout((2, 2), (-2,)), r"a has tensor_map \(-2,\)"),
        (TensorLayout((2, 2), (2,)), r"a has tensor_map \(2,\)"),
        (TensorLayout((4, 2), (0,), 2, 3), "opt_weight_shard_size 3, but 1 dims on 4 devices that hold the same part"),
        (TensorLayout((4, 2), (0,), 2, 8), "opt_weight_shard_size 8, but 1 dims on 4 devices"),
        (TensorLayout((4, 2), (0,), 2, -2), "opt_weight_shard_size -2"),
        (TensorLayout((4, 2), (0,), -2, 4), "opt_weight_shard_step -2"),
        (TensorLayout((4, 2), (), 1, -1), "but 0 dims on 8 devices"),
    ],
)
def test_layouts_that_cannot_be(tmp_path, layout, error):
    (file,) = write_strategy_files(StageLayouts(1, ({"a": TensorLayout((1,), (0,))},)), tmp_path)
    message = ParallelStrategyMap.FromString(file.read_bytes())
    layouts = message.parallel_layout_item[0].parallel_layouts
    layouts.dev_matrix[0].dim[:], layouts.tensor_map[0].dim[:] = layout.dev_matrix, layout.tensor_map
    layouts.opt_weight_shard_step, layouts.opt_weight_shard_size = layout.opt_shard_step, layout.opt_shard_size
    file.write_bytes(message.SerializeToString())
    with pytest.raises(UserError, match=error):
        read_strategy(file)


@pytest.mark.parametrize(
    "layout",
    [TensorLayout((4, 2), (0,), 2, 2), TensorLayout((4, 2), (0,), 2, -1), TensorLayout((4, 2), (), 0, 0)],
)
def test_layouts_that_can_be(tmp_path, layout):
    (file, *_) = write_strategy_files(StageLayouts(8, ({"a": layout},)), tmp_path)
    assert read_strategy(file).stages == ({"a": layout},)


def item(name: bytes, axis: bytes = b"\0") -> bytes:
    layouts = encode_bytes(1, encode_bytes(1, b"\1\2")) + encode_bytes(2, encode_bytes(1, axis))
    return encode_bytes(3, encode_bytes(1, name) + encode_bytes(2, layouts))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (item(b"w"), "it holds no layouts"),
        (operator(), "it holds no layouts"),
        (operator() + item(b"\xff"), "is damaged"),
        (operator() + item(b"a\nb"), "a name of 3 characters is not printable or too long"),
        (operator() + item(b"n" * 600), "a name of 600 characters is not printable or too long"),
        (operator() + item(b"n" * 70000), "at most 65536 are expected"),
        (operator() + item(b"2147483648-w"), "w is of stage 2147483648, at most 1048576 are supported"),
        (operator() + item(b"1-w"), r"has stages \[1\] only"),
        (operator() + item(b"w") + item(b"w", b"\xff" * 9 + b"\1"), "has two different layouts of w"),
        (operator() * 3 + item(b"w"), "more than 2 operators or 5 layouts"),
        (operator() + b"".join(item(b"%d-w" % stage) for stage in range(6)), "more than 2 operators or 5 layouts"),
        (operator() + b"".join(item(b"%d-w" % stage) for stage in range(5)), "describes 10 ranks, at most 8 are"),
    ],
)
def test_strategy_files_that_claim_too_much(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(strategy, "_MAX_LAYOUTS", 5)
    if "operators" in message:
        monkeypatch.setattr(strategy, "_MAX_OPERATORS", 2)
    if "8" in message:
        monkeypatch.setattr(strategy, "_MAX_RANKS", 8 if "most 8" in message else 2**20)
    (tmp_path / "merged.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_strategy(tmp_path / "merged.ckpt")


def test_a_strategy_file_of_terabytes(tmp_path):
    (tmp_path / "merged.ckpt").write_bytes(operator() + item(b"w"))
    assert read_strategy(tmp_path / "merged.ckpt").world_size == 2
    os.truncate(tmp_path / "merged.ckpt", TERABYTE)
    with pytest.raises(UserError, match="has 1099511627776 bytes, no strategy file has more than 1073741824"):
        read_strategy(tmp_path / "merged.ckpt")
