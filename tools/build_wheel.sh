#!/usr/bin/env bash
# Builds the wheel into a folder (default dist): for any x86-64-v2 CPU, under the manylinux tag that auditwheel finds for it.
# Needs the extra `wheel`. With qemu-x86_64 (Debian: qemu-user) the wheel is also run on a CPU that has nothing more.
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

if command -v qemu-x86_64 >/dev/null; then
    # Nehalem is x86-64-v2. The package comes from the wheel, what it depends on from this environment.
    python -m zipfile -e "$out"/tandem_llm-*.whl "$work/site"
    PYTHONPATH="$work/site" qemu-x86_64 -cpu Nehalem "$(python -c 'import os, sys; print(os.path.realpath(sys.executable))')" \
        tools/run_on_old_cpu.py "$(python -c 'import site; print(site.getsitepackages()[0])')"
else
    echo 'not run on an old CPU: qemu-x86_64 is not installed'
fi
