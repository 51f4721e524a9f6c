"""Runs the bundled model on an emulated CPU without AVX; tools/build_wheel.sh calls it.

python tools/run_on_old_cpu.py SITE_PACKAGES: where the packages are that Tandem depends on; it is on PYTHONPATH itself.
"""

from __future__ import annotations

import sys

sys.path.append(sys.argv[1])

from tandem import LLM, SamplingParams, _native

isa = _native.choose_isa("")
if isa != "scalar":
    raise SystemExit(f"this CPU runs the {isa} kernels: it is no old one")
with LLM(max_sequences=1, context=64, threads=1) as llm:
    (output,) = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=4))
if output.error or len(output.outputs[0].token_ids) != 4:
    raise SystemExit(f"no text came: {output}")
print(f"runs with x86-64-v2 alone: Once upon a time{output.outputs[0].text}")
