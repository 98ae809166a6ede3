#!/usr/bin/env bash
# Tests of the modules, then every step of the training with --tiny-steps, on the CPU.
#
# Usage: smoke.sh [MODEL_DIR | --prepare]     MODEL_DIR: keep the exported folder there; --prepare: only set up what the run needs
# The virtual environment is made once, at $TRAIN_VENV (default ~/.cache/cosyvoice-train).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${TRAIN_VENV:-$HOME/.cache/cosyvoice-train}

wanted=$(cat "$here/requirements.txt" "$here/requirements-alone.txt")
if [ "$wanted" != "$(cat "$venv/installed.txt" 2>/dev/null)" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
    "$venv/bin/pip" install --quiet --no-deps --requirement "$here/requirements-alone.txt"
    printf '%s\n' "$wanted" > "$venv/installed.txt"
fi
if ! [ -d /usr/share/games/fortunes ] || ! command -v flite >/dev/null; then
    apt-get update --quiet >/dev/null
    apt-get install --yes --quiet fortunes flite >/dev/null
fi
[ "${1:-}" != --prepare ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here"
"$venv/bin/python" -m unittest --verbose test_parity test_alignment test_phonetic test_training
"$venv/bin/python" run_all.py --work "$work" --out "${1:-$work/model}" --device cpu --threads 2 --tiny-steps
