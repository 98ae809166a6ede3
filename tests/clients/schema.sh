#!/usr/bin/env bash
# All checks of schemathesis against a running server: tests/clients/schema.sh http://localhost:8000 [examples]
set -euo pipefail
cd "$(dirname "$0")"
exec schemathesis --config-file schemathesis.toml run "${1:-http://localhost:8000}/openapi.json" \
    --checks all --max-examples "${2:-2000}" --workers 2 --request-timeout 30 --exclude-path-regex '/events$'
