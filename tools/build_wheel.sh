#!/usr/bin/env bash
# Builds the wheel into a folder (default dist) under the manylinux tag that auditwheel finds for it; needs the extra `wheel`.
# It runs on every x86-64-v2 CPU: tools/run_on_old_cpu.py tries an installed one.
set -euo pipefail
out=$(realpath -m "${1:-dist}")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip wheel -q --no-deps -w "$work/built" .
auditwheel show "$work"/built/*.whl
auditwheel repair -w "$work/repaired" "$work"/built/*.whl
mkdir -p "$out"
rm -f "$out"/tandem_llm-*.whl
mv "$work"/repaired/*.whl "$out"
echo "wheel: $(ls "$out"/tandem_llm-*.whl)"
