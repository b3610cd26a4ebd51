#!/usr/bin/env bash
# Check everything: ruff, clang-format, mypy, then all tests with coverage. Stops at the first step that fails.
#
#     bash scripts/test.sh                       all of it
#     bash scripts/test.sh tests/config -k keys  only pytest, with these arguments (paths start at the project root)
#     R1_PARITY=1 bash scripts/test.sh           also the tests that compare with torch, transformers and trl
#     R1_MINDFORMERS=1 bash scripts/test.sh      also the tests that compare with mindformers; not both at once
set -euo pipefail

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ ${R1_PARITY:-0} == 1 && ${R1_MINDFORMERS:-0} == 1 ]]; then
    echo "R1_PARITY and R1_MINDFORMERS ask for other versions of pyarrow: set one of them, and R1_VENV for each" >&2
    exit 2
fi
extras=test
if [[ ${R1_PARITY:-0} == 1 ]]; then extras+=,parity; fi
if [[ ${R1_MINDFORMERS:-0} == 1 ]]; then extras+=,mindformers; fi
python="$(bash "$root/scripts/setup_venv.sh" "$extras")"
cd -- "$root"

step() {
    printf '\n== %s\n' "$*"
    "$python" -m "$@"
}

check_cpp_format() {
    local sources
    shopt -s globstar nullglob
    sources=({r1parallel,tests}/**/*.{h,cc})
    printf '\n== clang-format of %s files\n' "${#sources[@]}"
    "$(dirname -- "$python")/clang-format" --dry-run -Werror "${sources[@]}"
}

warn_of_skips() {
    local have='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))'
    if ! "$python" -c "$have" torch transformers trl; then
        printf '\n!! torch, transformers and trl are not all installed: the parity tests will be SKIPPED.\n'
        printf '!! To run them too: R1_PARITY=1 bash scripts/test.sh\n'
    fi
    if ! "$python" -c "$have" mindformers; then
        printf '\n!! mindformers is not installed: the comparisons with it will be SKIPPED.\n'
        printf '!! To run them too: R1_MINDFORMERS=1 bash scripts/test.sh\n'
    fi
}

if (($#)); then
    warn_of_skips
    step pytest "$@"
else
    step ruff check .
    step ruff format --check .
    check_cpp_format
    step mypy
    warn_of_skips
    # Two files at a time. Those with many ranks are long and stand in the middle: their order is kept.
    step pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=r1parallel --cov-report=term --cov-fail-under=90
fi
