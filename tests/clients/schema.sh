#!/usr/bin/env bash
# Schemathesis against a running server: the cases that follow from the description, which are the same each time, and so many drawn
# examples for each operation: tests/clients/schema.sh http://localhost:8000 [EXAMPLES [SEED]]
# All its checks are on by default; `--checks all` would overrule what the config turns off.
set -euo pipefail
drawn=(--phases examples,coverage)
[ "${2:-2000}" = 0 ] || drawn=(--max-examples "${2:-2000}" --seed "${3:-1}")
config=$(realpath "$(dirname "$0")/schemathesis.toml")
# How fast the generator is on this machine says nothing of the server. What an earlier run left in its folder would be tried again first.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
schemathesis --config-file "$config" run "${1:-http://localhost:8000}/openapi.json" \
    "${drawn[@]}" --suppress-health-check too_slow --request-timeout 60 --exclude-path-regex '/events$'
