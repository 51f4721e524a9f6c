"""Runs the installed package on an emulated CPU with x86-64-v2 and nothing more (qemu-user of Debian)."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

CPU = "Nehalem"


def main() -> None:
    # The interpreter itself, not the virtual environment's link to it: packages are named to it instead.
    packages = [*site.getsitepackages(), os.environ.get("PYTHONPATH", "")]
    # What this machine's BLAS is told to be (OPENBLAS_CORETYPE) would be no truth there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, reversed(packages)))
    command = ["qemu-x86_64", "-cpu", CPU, str(Path(sys.executable).resolve()), __file__, "emulated"]
    raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)


def emulated() -> None:
    from tandem import LLM, SamplingParams, _native

    isa = _native.choose_isa("")
    if isa != "scalar":
        raise SystemExit(f"this CPU runs the {isa} kernels: it is no old one")
    with LLM(max_sequences=1, context=64, threads=1) as llm:
        (output,) = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=4))
    if output.error or len(output.outputs[0].token_ids) != 4:
        raise SystemExit(f"no text came: {output}")
    print(f"runs with x86-64-v2 alone: Once upon a time{output.outputs[0].text}")


if __name__ == "__main__":
    emulated() if sys.argv[1:] == ["emulated"] else main()
