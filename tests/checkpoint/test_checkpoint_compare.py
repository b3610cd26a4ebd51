"""tools/verify_ckpt.py: what is equal, what differs, and how it says so."""

import json
import re
from functools import partial

import numpy as np
import pytest
from helpers.verifying import drop_manifests, flip, run_verify

from r1parallel.checkpoint.compare import compare_checkpoints
from r1parallel.checkpoint.comparing.findings import LISTED
from r1parallel.checkpoint.convert import Target, convert_weight
from r1parallel.checkpoint.formats.dtypes import dtype_name
from r1parallel.checkpoint.reading.source import STRATEGY_FILE, open_source
from r1parallel.checkpoint.slice import slice_checkpoint
from r1parallel.checkpoint.tables.names import from_hf
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout

HF_EMBEDDING = "model.embed_tokens.weight"
EMBEDDING = "model.tok_embeddings.embedding_weight"
NORM = "model.norm.weight"
TENSORS = 27  # of the configurations in conftest, the head included


@pytest.fixture
def verify(capsys):
    return partial(run_verify, capsys)


def test_equal_in_every_form(tmp_path, make_folder, config, verify):
    hf = make_folder("hf", config, dtype="BF16")
    sharded = make_folder("sharded", config, dtype="BF16", max_shard_size=700)
    ours = convert_weight(hf, tmp_path / "ours")
    mcore = convert_weight(hf, tmp_path / "mcore", Target("mcore"))
    ckpt = convert_weight(hf, tmp_path / "k" / "x.ckpt")
    joined = convert_weight(hf, tmp_path / "joined", Target(concatenate=True))
    slice_checkpoint(ours, tmp_path / "cut", ModelLayout(config, Mesh(dp=2, tp=2, pp=2), True))
    forms = [hf, sharded, ours, mcore, ckpt, joined, tmp_path / "cut"]
    for one, other in zip(forms, [*forms[1:], hf], strict=True):
        for pair in ((one, other), (other, one)):
            done = verify(*pair)
            assert done.code == 0, done.lines
            assert re.fullmatch(rf"equal: {TENSORS} tensors, [0-9.]+kB", done.last)
    assert "27 of 27 in A" in verify(hf, ours).lines[-2]


def test_a_strategy_may_be_given(tmp_path, make_folder, config, verify):
    full = make_folder("full", config, hf=False)
    slice_checkpoint(full, tmp_path / "cut", ModelLayout(config, Mesh(tp=2)))
    (tmp_path / "cut" / STRATEGY_FILE).rename(tmp_path / "s.ckpt")
    assert verify(full, tmp_path / "cut").code == 2
    assert verify(full, tmp_path / "cut", "--strategy_b", tmp_path / "s.ckpt").code == 0
    assert verify(tmp_path / "cut", full, "--strategy_a", tmp_path / "s.ckpt").code == 0


def test_a_flipped_bit_is_found_against_the_other_side(make_folder, config, verify):
    one, other = make_folder("one", config, dtype="BF16"), make_folder("other", config, dtype="BF16")
    flip(other / "model.safetensors", HF_EMBEDDING)
    drop_manifests(other)
    done = verify(one, other)
    assert done.code == 1
    assert re.fullmatch(r"DIFFERENT: 1 content; 27 tensors, [0-9.]+kB", done.last)
    values = [open_source(folder).read(HF_EMBEDDING)[15, 7] for folder in (one, other)]
    finding = f"{HF_EMBEDDING}: 1 of 128 elements differ, the first at [15, 7]: {values[0]} in A, {values[1]} in B"
    assert f"content {finding}" in done.lines
    assert done.lines[2].endswith("manifest: 27 of 27 in A, 0 of 27 in B")


def test_a_flipped_bit_is_found_against_the_manifest(make_folder, config, verify):
    one, other = make_folder("one", config), make_folder("other", config)
    flip(other / "model.safetensors", HF_EMBEDDING)
    done = verify(one, other)
    assert done.code == 1
    assert done.last.startswith("DIFFERENT: 1 damaged;")
    assert sum("model.safetensors.manifest.json says" in line for line in done.lines) == 1
    assert verify(one).code == 0
    alone = verify(other)
    assert (alone.code, alone.last[:21]) == (1, "DIFFERENT: 1 damaged;")
    assert re.search(rf"damaged .*{HF_EMBEDDING} is not what model.safetensors.manifest.json says", alone.lines[1])


def test_ranks_whose_copies_differ(tmp_path, make_folder, config, verify):
    full = make_folder("full", config, hf=False)
    slice_checkpoint(full, tmp_path / "cut", ModelLayout(config, Mesh(dp=2)))
    drop_manifests(tmp_path / "cut")
    flip(tmp_path / "cut" / "rank_1" / "checkpoint_1.safetensors", EMBEDDING)
    done = verify(full, tmp_path / "cut")
    assert done.code == 1
    assert any("embedding_weight differs from its copy in" in line for line in done.lines)


def test_missing_shapes_and_dtypes(make_folder, config, verify):
    def change(arrays):
        del arrays[NORM]
        arrays[HF_EMBEDDING] = arrays[HF_EMBEDDING][1:]
        arrays["more"] = np.ones(3, np.float32)

    one, other = make_folder("one", config), make_folder("other", config, change=change)
    done = verify(one, other)
    assert done.code == 1
    assert done.lines[3:-1] == [
        f"missing {NORM} is only in A",
        "missing more is only in B",
        f"shape   {HF_EMBEDDING}: [16, 8] in A, [15, 8] in B",
    ]
    assert done.last.startswith("DIFFERENT: 2 missing, 1 shape; 26 tensors")
    half = verify(one, make_folder("half", config, dtype="F16"))
    assert half.code == 1
    assert f"dtype   {HF_EMBEDDING}: F32 in A, F16 in B" in half.lines
    assert f"dtype   … and {TENSORS - LISTED} more" in half.lines


def test_missing_under_other_names(tmp_path, make_folder, config, verify):
    whole = convert_weight(make_folder("hf", config), tmp_path / "ours")
    done = verify(make_folder("less", config, change=lambda arrays: arrays.pop(NORM)), whole)
    assert (done.code, done.lines[3]) == (1, f"missing {from_hf(NORM)} is only in B")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_cast_is_verified_bit_for_bit(tmp_path, make_folder, config, verify, dtype):
    hf = make_folder("hf", config)
    cast = convert_weight(hf, tmp_path / "cast", Target(dtype=dtype))
    assert verify(hf, cast).code == 1
    assert verify(hf, cast, "--dtype", dtype).code == 0
    flip(cast / "model.safetensors", EMBEDDING)
    drop_manifests(cast)
    done = verify(hf, cast, "--dtype", dtype)
    assert (done.code, done.last[:21]) == (1, "DIFFERENT: 1 content;")


def test_a_number_that_the_dtype_cannot_hold(make_folder, config, verify):
    def change(arrays):
        arrays[NORM][0] = 1e30

    large = make_folder("large", config, change=change)
    done = verify(large, make_folder("half", config, dtype="F16"), "--dtype", "fp16")
    assert done.code == 1
    assert any(line.startswith(f"damaged {NORM}: 1e+30 does not fit") for line in done.lines)


def test_a_tied_head_on_one_side(tmp_path, make_folder, tied_config, config, verify):
    def same_head(arrays):
        arrays["lm_head.weight"] = arrays[HF_EMBEDDING]

    plain, extra = make_folder("plain", tied_config), make_folder("extra", tied_config, change=same_head)
    mcore = convert_weight(plain, tmp_path / "mcore", Target("mcore"))
    for pair, side in (((plain, extra), "B"), ((extra, plain), "A"), ((extra, mcore), "A")):
        done = verify(*pair)
        assert done.code == 0
        assert f"only {side} stores lm_head.weight, which equals its embedding" in done.lines
        assert done.last.startswith("equal: 26 tensors")
    own = make_folder("own", tied_config, change=lambda a: a.update({"lm_head.weight": a[HF_EMBEDDING] + 1}))
    done = verify(own, plain)
    assert (done.code, done.lines[3]) == (1, "missing lm_head.weight is only in A, and is not its embedding")
    (plain / "config.json").write_text(json.dumps(config.to_hf()))  # now its head is lost
    done = verify(extra, plain)
    assert (done.code, done.lines[3]) == (1, "missing lm_head.weight is only in A")


def test_rotary_buffers_do_not_count(tmp_path, make_folder, config, verify):
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    old = make_folder("old", config, change=lambda arrays: arrays.update({buffer: np.ones(2, np.float32)}))
    done = verify(old, convert_weight(old, tmp_path / "ours"))
    assert done.code == 0
    assert f"only A stores {buffer}, which follows from the model's sizes" in done.lines


def test_concatenated_tensors_need_the_sizes(tmp_path, make_folder, config, verify):
    ours = make_folder("ours", config, hf=False)
    joined = convert_weight(ours, tmp_path / "joined", Target(concatenate=True))
    flip(joined / "model.safetensors", "model.layers.1.attention.w_qkv.weight")
    drop_manifests(joined)
    done = verify(ours, joined)
    assert (done.code, done.last[:21]) == (1, "DIFFERENT: 1 content;")
    assert any("layers.1.attention.wv.weight: 1 of 32 elements differ, the first at [3, 7]" in x for x in done.lines)
    assert verify(joined, joined).last.startswith("equal: 17 tensors")  # compared as they are stored
    small = ModelConfig(
        **{**vars(config), "intermediate_size": 12, "num_heads": 8, "num_kv_heads": 1, "hidden_size": 80}
    )
    (joined / "config.json").write_text(json.dumps(small.to_hf()))
    assert "is not made of groups of 100 rows" in verify(ours, joined).last
    for folder in (ours, joined):
        (folder / "config.json").unlink()
    assert "put the model's config.json beside it" in verify(ours, joined).last


def write(folder, arrays):
    write_checkpoint(folder, [(name, a.shape, dtype_name(a.dtype), a) for name, a in arrays.items()])
    return folder


def test_tensors_of_no_model_are_compared_as_stored(tmp_path, verify):
    """Scalars, integers, numbers that look alike."""
    quiet, other = (np.array([word], np.uint32).view(np.float32) for word in (0x7FC00000, 0x7FC00001))
    arrays = {"step": np.array(3), "state.w": np.zeros((2, 3), np.float32), "nan": quiet, "same": np.ones(2)}
    changed = arrays | {"step": np.array(4), "state.w": -arrays["state.w"], "nan": other}
    done = verify(write(tmp_path / "a", arrays), write(tmp_path / "b", changed))
    assert done.code == 1
    assert "names of no whole model, compared as stored" in done.lines[0]
    assert done.lines[3:-1] == [
        "content step: 1 of 1 elements differ, 3 in A, 4 in B",
        "content state.w: 6 of 6 elements differ, the first at [0, 0]: 0.0 in A, -0.0 in B",
        "content nan: 1 of 1 elements differ, the first at [0]: nan (0x7fc00000) in A, nan (0x7fc00001) in B",
    ]


def test_windows_of_a_large_tensor(tmp_path, monkeypatch):
    """The first difference has its place in the full tensor, and what differs is counted in all windows."""
    monkeypatch.setattr("r1parallel.checkpoint.reading.windows.WINDOW", 64)
    values = np.arange(400, dtype=np.float32).reshape(50, 8)
    changed = values.copy()
    changed[20:45, 3] += 1
    one, other = write(tmp_path / "a", {"w": values}), write(tmp_path / "b", {"w": changed})
    report = compare_checkpoints(open_source(one), open_source(other), workers=2)
    assert [finding.text for finding in report.findings] == [
        "w: 25 of 400 elements differ, the first at [20, 3]: 163.0 in A, 164.0 in B"
    ]


def test_many_differences_are_counted(tmp_path, verify):
    zeros = {f"w{i}": np.zeros(2, np.float32) for i in range(LISTED + 5)}
    ones = {name: value + 1 for name, value in zeros.items()}
    done = verify(write(tmp_path / "a", zeros), write(tmp_path / "b", ones))
    assert sum("the first at [0]" in line for line in done.lines) == LISTED
    assert done.lines[-2] == "content … and 5 more"
    assert done.last == f"DIFFERENT: {LISTED + 5} content; {LISTED + 5} tensors, 200B"


def test_one_tensor_twice_is_refused(make_folder, config, verify):
    hf = make_folder("hf", config)
    twice = make_folder("t", config, change=lambda a: a.update({from_hf("model.layers.0.mlp.up_proj.weight"): a[NORM]}))
    ours = make_folder("ours", config, hf=False)
    joined = make_folder(
        "joined",
        config,
        hf=False,
        change=lambda a: a.update({"model.layers.0.attention.w_qkv.bias": np.ones(16, "f4")}),
    )
    assert "are one tensor; keep one of them" in verify(twice, convert_folder(ours)).last
    assert "is stored twice" in verify(joined, hf).last


def convert_folder(folder):
    """The same in mcore's names, which share none with the others."""
    return convert_weight(folder, folder.with_name("mcore"), Target("mcore"))
