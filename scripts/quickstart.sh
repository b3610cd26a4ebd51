#!/usr/bin/env bash
# The whole road on a toy, in minutes: data, SFT, strategy and slices, GRPO, export, evaluation, report.
#
#     bash scripts/quickstart.sh                              results in runs/quickstart
#     bash scripts/quickstart.sh --seed 1 --output_dir DIR    another seed, another place
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$root/scripts/setup_venv.sh")"
cd -- "$root"
exec "$python" scripts/quickstart.py "$@"
