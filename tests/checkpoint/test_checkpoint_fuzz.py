"""Headers that are damaged, or that claim what nobody has: each is read, or refused in one line, in bounded memory."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from header_mutations import TERABYTE, with_length

import r1parallel.parallel.strategy as strategy
from r1parallel.checkpoint import ckpt_format, safetensors_format
from r1parallel.checkpoint.claims import MAX_TENSORS
from r1parallel.errors import UserError
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
    print(found["growth"], found["counts"])
    assert found["growth"] < MEMORY
