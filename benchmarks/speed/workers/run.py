"""A command line of ours, and what it took: python -m benchmarks.speed.workers.run FOUND.json run_grpo.py ARGUMENT …

Runs the script as `python run_grpo.py ARGUMENT …` does. Where it ends well, FOUND.json holds the time at which this
process was started (seconds since the epoch), its peak resident memory (bytes) and MindSpore's version.
"""

import json
import runpy
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.speed.workers.timing import seconds_since_start
from r1parallel.monitor.memory import peak_resident_bytes

if __name__ == "__main__":
    started = time.time() - seconds_since_start()
    found, *sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    result = {
        "started": started,
        "peak_bytes": peak_resident_bytes(),
        "versions": {name: version(name) for name in ("mindspore", "numpy")},
    }
    Path(found).write_text(json.dumps(result), encoding="utf-8")
