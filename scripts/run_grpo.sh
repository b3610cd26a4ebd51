#!/usr/bin/env bash
# GRPO in several processes, on one node or several.
#
#     bash scripts/run_grpo.sh --worker_num 8 --config model_configs/tiny/grpo.yaml …
#     bash scripts/run_grpo.sh --worker_num 16 --num_nodes 2 --node_rank 0 --master_addr 10.0.0.1 --master_port 8118 \
#         --log_dir /shared/logs/run1 --config …
#
# What is not an option of the launcher goes to run_grpo.py. docs/launch.md tells more. R1_PYTHON names the Python to
# use, for example that of an environment with Ascend's MindSpore; without it, .venv is made and used.
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
python="${R1_PYTHON:-$(bash "$root/scripts/setup_venv.sh")}"
# exec: signals reach the launcher itself.
exec "$python" "$root/scripts/run_grpo.py" "$@"
