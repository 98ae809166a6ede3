#!/usr/bin/env bash
# The checks of schemathesis against a running server. A cancelled task is still shown, by contract, so "use after free" is left out:
# tests/clients/schema.sh http://localhost:8000 [examples]
set -euo pipefail
cd "$(dirname "$0")"
exec schemathesis --config-file schemathesis.toml run "${1:-http://localhost:8000}/openapi.json" \
    --checks all --exclude-checks use_after_free --max-examples "${2:-2000}" --workers 2 --request-timeout 30 --exclude-path-regex '/events$'
