#!/usr/bin/env bash
# Make the project's virtual environment, or bring it up to date, and print the path of its Python.
#
#     python="$(bash scripts/setup_venv.sh test,parity)"
#
# Argument: extras of setup.py, separated by commas (default: none). The environment is .venv in the project root, or
# R1_VENV. Nothing is installed while setup.py is what it was at the last install with these extras.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

extras="${1:-}"
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${R1_VENV:-$root/.venv}"
[[ $venv == /* ]] || venv="$PWD/$venv"
python="$venv/bin/python"
stamp="$venv/installed-${extras:-base}"

# Only running it tells: pyenv's python3.10 exists and fails where that version is not selected.
fits() { "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 12))' 2>/dev/null; }

find_python() {
    local name
    for name in python3.11 python3.10 python3; do
        if fits "$name"; then
            echo "$name"
            return
        fi
    done
    die "no Python 3.10 or 3.11 with the venv module on PATH; install one (Debian, Ubuntu: python3.11 and python3.11-venv)"
}

make_venv() {
    if [[ -d $venv && ! -e $venv/pyvenv.cfg && -n "$(ls -A -- "$venv")" ]]; then
        die "$venv is a folder, but not a virtual environment; set R1_VENV to another place"
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        local base
        base="$(find_python)"
        say "making $venv with $("$base" --version)"
        "$base" -m venv "$venv" || die "$base could not make $venv; delete that folder and try again"
    fi
    fits "$python" || die "$venv does not hold Python 3.10 or 3.11; delete that folder, or set R1_VENV to another place"
}

# Run pip without its chatter, and show that only if it fails.
pip_install() {
    "$python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        die "pip install $* failed; its last lines are above"
    }
}

install() {
    log="$(mktemp)"
    trap 'rm -f -- "$log"' EXIT
    say "installing r1parallel${extras:+ with $extras} into $venv (the first time: several minutes, some gigabytes)"
    cd -- "$root"
    pip_install -e ".${extras:+[$extras]}"
}

main() {
    # Two at a time would break each other's install; the second waits, then finds the stamp.
    exec 9<"$root/setup.py"
    if command -v flock >/dev/null; then flock 9; fi
    # The root belongs to the key, for an editable install points there.
    local key
    key="$({ echo "$root" && cat -- "$root/setup.py"; } | sha256sum)"
    make_venv
    if [[ ! -e $stamp || "$(<"$stamp")" != "$key" ]]; then
        rm -f -- "$stamp"
        install
        echo "$key" >"$stamp"
    fi
    echo "$python"
}

main
