"""Speed and memory of slice_ckpt: python -m benchmarks.checkpoint.slicing

A bf16 checkpoint of random bits is cut for 8 ranks (tp4·pp2) and put together again. Every command runs in a fresh
process, in turn with `cp` of the same bytes; what the previous one wrote is flushed and removed before. The peer is
MindSpore's transform_checkpoints on .ckpt. Then Qwen2.5-72B, as files without content, is planned for 1024 ranks.
Prints all numbers as JSON, and a table.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from math import prod
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.reading.tensor_rows import TensorRows, words
from r1parallel.checkpoint.tables.names import to_hf
from r1parallel.checkpoint.writing.copy_engine import create_file
from r1parallel.checkpoint.writing.output import plan_full, write_output
from r1parallel.config.model import ModelConfig, load_model_config, write_model_config
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_merged_strategy
from r1parallel.parallel.layout.table import ModelLayout

ROOT = Path(__file__).resolve().parents[2]
MODEL = ModelConfig(151936, 2048, 11008, 20, 16, 4)  # 4.37 GB in bf16
LIMIT = 3600  # seconds, of one command
# VmHWM and not ru_maxrss, which a process inherits from the one that started it.
HIGHEST = "import re; print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
TOOL = f"import runpy, sys\nrunpy.run_path(sys.argv[1], run_name='tool')['main'](sys.argv[2:])\n{HIGHEST}"
TRANSFORM = f"""
import sys, mindspore
src, dst, prefix, a, b = (None if word == "None" else word for word in sys.argv[1:])
mindspore.transform_checkpoints(src, dst, prefix, a, b)
{HIGHEST}
"""


class RandomRows:
    """A tensor of random bits."""

    row_step = 1

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype, self.row_bytes = shape, "BF16", prod(shape[1:]) * 2
        self._random = np.random.default_rng(0)

    def read(self, region: tuple[slice, ...], out: np.ndarray, streams: object) -> None:
        out[...] = self._random.integers(0, 2**16, out.shape, words("BF16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of ours and cp")
    parser.add_argument("--peer_rounds", type=int, default=1, help="of transform_checkpoints, which is slow")
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        work = Path(folder)
        prepare(work)
        results = {
            "hardware": {"processor": platform.processor() or platform.machine(), "cpus": len(os.sched_getaffinity(0))},
            "versions": {name: version(name) for name in ("mindspore", "numpy", "xxhash")},
            "bytes": (work / "full" / "model.safetensors").stat().st_size,
            "rounds": [one_round(work) for _ in range(args.rounds)],
            "transform_checkpoints": [peer_round(work) for _ in range(args.peer_rounds)],
            "plan_72b": plan_72b(work),
        }
    print(json.dumps(results))
    print(table(results))


def prepare(work: Path) -> None:
    """The source in both formats, and the strategy."""
    (work / "full").mkdir()
    tensors: Mapping[str, TensorRows] = {name: RandomRows(shape) for name, shape in MODEL.parameter_shapes().items()}
    write_output(plan_full(tensors, {"format": "ms"}), work / "full", 1)
    write_model_config(MODEL, work / "full" / "config.json")
    write_merged_strategy(ModelLayout(MODEL, Mesh(tp=4, pp=2)), work / "tp4pp2.ckpt")
    peer = work / "peer" / "rank_0"  # where transform_checkpoints looks
    peer.mkdir(parents=True)
    tool("convert_weight", "--input_path", work / "full", "--output_path", peer / "checkpoint_0.ckpt")


def one_round(work: Path) -> dict[str, dict[str, float]]:
    """cp and ours, in turn."""
    full, strategy = work / "full", work / "tp4pp2.ckpt"
    cut = ["--src_checkpoint", full, "--dst_checkpoint_dir", work / "cut", "--dst_strategy", strategy]
    merge = ["--src_checkpoint", work / "cut", "--dst_checkpoint_dir", work / "back", "--src_strategy", strategy]
    found = {"cp": timed(work / "copy", "cp", full / "model.safetensors", work / "copy")}
    found["slice"] = timed(None, *command(TOOL, ROOT / "tools" / "slice_ckpt.py", *cut))
    found["cp again"] = timed(work / "copy", "cp", full / "model.safetensors", work / "copy")
    found["merge"] = timed(work / "back", *command(TOOL, ROOT / "tools" / "slice_ckpt.py", *merge))
    shutil.rmtree(work / "cut")
    one_file = ["--src_checkpoint", work / "peer" / "rank_0" / "checkpoint_0.ckpt", "--output_format", "ckpt"]
    merge_files = ["--output_format", "ckpt", *merge]
    found["slice .ckpt"] = timed(None, *command(TOOL, ROOT / "tools" / "slice_ckpt.py", *one_file, *cut[2:]))
    found["merge .ckpt"] = timed(work / "back", *command(TOOL, ROOT / "tools" / "slice_ckpt.py", *merge_files))
    shutil.rmtree(work / "cut")
    return found


def peer_round(work: Path) -> dict[str, dict[str, float]]:
    """MindSpore's own, on .ckpt files."""
    strategy = work / "tp4pp2.ckpt"
    cut, back = work / "peer_cut", work / "peer_back"
    found = {"slice": timed(None, *command(TRANSFORM, work / "peer", cut, "checkpoint_", None, strategy))}
    found["merge"] = timed(back, *command(TRANSFORM, cut, back, "checkpoint_", strategy, None))
    shutil.rmtree(cut)
    return found


def plan_72b(work: Path) -> dict[str, float]:
    """Seconds to plan Qwen2.5-72B for 1024 ranks (dp16·tp8·pp8, optimizer parallel), from Hugging Face's form."""
    model = load_model_config(ROOT / "model_configs" / "qwen2_5_72b" / "model.yaml")
    folder = work / "72b"
    folder.mkdir()
    tensors = {to_hf(name): RandomRows(shape) for name, shape in model.parameter_shapes().items()}
    output = plan_full(tensors, {"format": "pt"})
    for file, plan in output.files.items():
        create_file(folder / file, plan)  # of its full size, without content: takes no disk
    for name, text in output.indexes.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_model_config(model, folder / "config.json")
    write_merged_strategy(ModelLayout(model, Mesh(dp=16, tp=8, pp=8), opt_shard=True), work / "72b.ckpt")
    words = ["--input_path", folder, "--output_path", work / "x", "--dst_strategy", work / "72b.ckpt", "--dry_run"]
    found = timed(None, *command(TOOL, ROOT / "tools" / "convert_weight.py", *words))
    return {"seconds": found["seconds"], "megabytes": found["megabytes"], "bytes": float(output.nbytes)}


def command(code: str, *words: object) -> list[object]:
    return [sys.executable, "-c", code, *words]


def tool(name: str, *words: object) -> None:
    timed(None, *command(TOOL, ROOT / "tools" / f"{name}.py", *words))


def timed(remove: Path | None, *words: object) -> dict[str, float]:
    """Seconds of a command, seconds with a sync after it, and its peak resident memory where it prints that."""
    subprocess.run(["sync"], check=True, timeout=LIMIT)
    began = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT,
        start_new_session=True,
    )
    seconds = time.perf_counter() - began
    subprocess.run(["sync"], check=True, timeout=LIMIT)
    result = {"seconds": seconds, "with_sync": time.perf_counter() - began}
    if done.stdout.strip():
        result["megabytes"] = int(done.stdout.split()[-1]) / 1e3
    if remove is not None:
        shutil.rmtree(remove) if remove.is_dir() else remove.unlink()
    return result


def table(results: dict) -> str:
    """Medians, and the ratios within each round."""
    rounds, size = results["rounds"], results["bytes"]
    lines = ["| | seconds | with sync | GB/s | speed, cp = 1 | with sync | peak MB |", "|---|---|---|---|---|---|---|"]
    for name in rounds[0]:
        seconds, synced = (statistics.median(found[name][key] for found in rounds) for key in ("seconds", "with_sync"))
        ratios = [against_cp(rounds, name, key) for key in ("seconds", "with_sync")]
        peak = max(found[name].get("megabytes", 0) for found in rounds)
        cells = [name, f"{seconds:.2f}", f"{synced:.2f}", f"{size / seconds / 1e9:.2f}", *ratios, f"{peak:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    peers = results["transform_checkpoints"]
    for name in ("slice", "merge"):
        ours = statistics.median(found[f"{name} .ckpt"]["seconds"] for found in rounds)
        theirs = statistics.median(found[name]["seconds"] for found in peers)
        peak = max(found[name]["megabytes"] for found in peers)
        ratio = f"ours is {theirs / ours:.1f} times as fast"
        lines.append(f"transform_checkpoints, {name} .ckpt: {theirs:.1f} s, peak {peak:.0f} MB; {ratio}")
    plan = results["plan_72b"]
    lines.append(
        f"72B ({plan['bytes'] / 1e9:.0f} GB), --dry_run: {plan['seconds']:.1f} s, peak {plan['megabytes']:.0f} MB"
    )
    return "\n".join(lines)


def against_cp(rounds: list, name: str, key: str) -> str:
    """Speed as a multiple of the mean of the round's two runs of cp: median, lowest and highest."""
    ratios = sorted((found["cp"][key] + found["cp again"][key]) / 2 / found[name][key] for found in rounds)
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
