import json

import numpy as np
import pytest

from r1parallel.checkpoint.formats.manifest import manifest_path
from r1parallel.checkpoint.formats.tensor_file import read_file
from r1parallel.checkpoint.writing.tensor_writer import write_tensor_file
from r1parallel.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensor_file(path, [("w", (3,), "F32", np.arange(3, dtype=np.float32))])
    return path


def test_it_says_what_was_written(file):
    manifest = json.loads(manifest_path(file).read_text())
    assert manifest["size"] == file.stat().st_size
    assert manifest["tensors"]["w"] == {"dtype": "F32", "shape": [3], "hash": read_file(file)[0]["w"].digest}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("size"),
        lambda m: m.pop("tensors"),
        lambda m: m.update(algorithm="md5"),
        lambda m: m.update(tensors=[]),
        lambda m: m["tensors"].update(w=[]),
        lambda m: m["tensors"].update(w="dtype shape hash"),
        lambda m: m["tensors"]["w"].pop("hash"),
        lambda m: m["tensors"]["w"].update(hash=None),  # else the tensor would go unchecked
        lambda m: m["tensors"]["w"].update(hash=[1]),
    ],
)
def test_one_that_is_not_readable_is_refused(file, change):
    manifest = json.loads(manifest_path(file).read_text())
    change(manifest)
    manifest_path(file).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"x.safetensors.manifest.json: is no readable manifest"):
        read_file(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(size=1), r"has \d+ bytes, not 1"),
        (lambda m: m["tensors"].update(v=m["tensors"]["w"]), "lacks v"),
        (lambda m: m["tensors"]["w"].update(shape=[1, 3]), r"has w as F32 \[3\]"),
    ],
)
def test_another_file_than_it_says_is_refused(file, change, message):
    manifest = json.loads(manifest_path(file).read_text())
    change(manifest)
    manifest_path(file).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"x.safetensors: {message}, which x.safetensors.manifest.json does not say"):
        read_file(file)
