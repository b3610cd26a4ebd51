"""Seconds and peak memory of tools/make_strategy.py: python -m benchmarks.checkpoint.strategy_files

The actors of Qwen2.5-7B on 8 ranks and of Qwen2.5-72B on 1024. Each runs in a process of its own.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# VmHWM and not ru_maxrss, which a process inherits from the one that started it.
MEASURED = """
import re, runpy, sys
runpy.run_path(sys.argv[1], run_name="tool")["main"](sys.argv[2:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def measure(model: str) -> tuple[float, float, int]:
    """Seconds, peak resident MB, files."""
    config = ROOT / "model_configs" / model / "grpo.yaml"
    with tempfile.TemporaryDirectory() as folder:
        words = [str(ROOT / "tools" / "make_strategy.py"), "--config", str(config), "--output_dir", folder]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        files = len(list((Path(folder) / "train_policy_strategy").iterdir()))
    return seconds, int(done.stdout.split()[-1]) / 1e3, files


if __name__ == "__main__":
    for name in ("qwen2_5_7b", "qwen2_5_72b"):
        seconds, megabytes, files = measure(name)
        print(f"{name}: {files} files in {seconds:.2f} s, peak {megabytes:.0f} MB")
