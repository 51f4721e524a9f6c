"""Our products beside llama.cpp's, as AMD's compiler makes them. No GPU is needed, and nothing is run.

    LD_LIBRARY_PATH=MESA/lib VK_DRIVER_FILES=MESA/radeon_icd.json python tools/rdna_compare.py \\
        --llama llama.cpp/ggml/src/ggml-vulkan/vulkan-shaders [--markdown docs/shader-comparison.md]

llama.cpp's shaders are compiled from its sources with the definitions that its generator gives, and specialized as its
backend does for RDNA3 with subgroups of 64. A missing folder is an error: there is nothing else to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdna_gate import WIDE, Compiler, variants

FAMILY = "phoenix"
LOAD = re.compile(r"(buffer|global)_load_")
FLOATS = {"FLOAT_TYPE": "float", "FLOAT_TYPEV2": "vec2", "D_TYPE": "float"}
ROWS = {**FLOATS, "B_TYPE": "float", "B_TYPEV2": "vec2", "B_TYPEV4": "vec4", "USE_SUBGROUP_ADD": "1"}
BYTES = {**FLOATS, "ACC_TYPE": "float", "USE_SUBGROUP_ADD": "1"}
HALVES = {"FLOAT_TYPE": "float16_t", "FLOAT_TYPEV2": "f16vec2", "FLOAT_TYPEV4": "f16vec4", "FLOAT16": "1"}
MATRICES = {
    **HALVES,
    "ACC_TYPE": "float",
    "ACC_TYPEV2": "vec2",
    "D_TYPE": "float",
    "D_TYPE_VEC4": "vec4",
    "COOPMAT": "1",
}
# BLOCK_SIZE, BM, BN, BK, WM, WN, WMITER, TM, TN, TK, WARP, architecture (RDNA3).
TILE = (512, 128, 128, 32, 64, 32, 2, 16, 16, 16, 64, 4)


class Theirs(NamedTuple):
    """A shader of llama.cpp. constants: its specialization."""

    label: str
    source: str
    defines: Mapping[str, str]
    constants: tuple[int, ...]


def theirs(type: str) -> list[Theirs]:
    """Products with one type: mat-vec by floats and by integer dots, of 1 and 8 columns, and by matrices of bytes."""
    data = {f"DATA_A_{type}": "1"}
    vector = "mul_mat_vec_q4_k.comp" if type == "Q4_K" else "mul_mat_vec.comp"
    each = 1 if type == "Q8_0" else 2
    return [
        Theirs("floats x1", vector, ROWS | data, (64, each, 1)),
        Theirs("floats x8", vector, ROWS | data, (64, each, 8)),
        Theirs("dots x1", "mul_mat_vecq.comp", BYTES | data, (64, 1, 1)),
        Theirs("dots x8", "mul_mat_vecq.comp", BYTES | data, (64, 4, 8)),
        Theirs("matrices of bytes, 128 x 128", "mul_mmq_cm1.comp", MATRICES | data, TILE),
    ]


def ours(type: str) -> dict[str, tuple[str, str]]:
    """By our label: what it is called here."""
    return {
        f"product {type} x1": ("floats x1", "product"),
        f"product {type} x8": ("floats x8", "product"),
        f"product_int {type} x1": ("dots x1", "product_int"),
        f"product_int {type} x8, 2 outputs": ("dots x8", "product_int"),
        f"product_matrix_int8 {type}, 128 x 64": ("matrices of bytes, 128 x 64", "product_matrix_int8"),
    }


HEADER = """\
# Our products beside llama.cpp's, as RADV compiles them for a Radeon 780M

What ACO in Mesa 25 makes of both for gfx1103, without a GPU: `tools/rdna_compare.py`, llama.cpp as llama-cpp-python
0.3.36 has it. Nothing here was run. *Waves*: of a SIMD, by registers and shared memory. *Each*: vector instructions
for each `v_dot4` or `v_wmma`, without either for each `v_fma` or its like: what unpacking, scaling and addressing cost
beside the multiplying. *Inverse throughput* and *latency*: the compiler's estimates in cycles; loops count by its own
guess, and llama.cpp unrolls by far more than we do, so they do not compare the two.

| type, kernel | whose | VGPRs | waves | spills | code | loads, wide | dots | wmma | each | inv. throughput | latency |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
TYPES = ("Q4_0", "Q8_0", "Q4_K")


def compile_all(llama: Path, glslang: str) -> list[dict[str, Any]]:
    """Statistics of all of them, in the order of the table."""
    compiler = Compiler()
    known = {label: (shader, constants) for label, shader, constants in variants()}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for type in TYPES:
            for label, (name, _) in ours(type).items():
                shader, constants = known[label]
                found.append({"type": type, "who": "Tandem", "kernel": name, **compiler.compile(shader, constants)})
            for number, each in enumerate(theirs(type)):
                target = Path(folder) / f"product_matrix{type}{number}.spv"
                compile_theirs(glslang, llama / each.source, each.defines, target)
                statistics = compiler.compile(str(target.with_suffix("")), each.constants)
                found.append({"type": type, "who": "llama.cpp", "kernel": each.label, **statistics})
    return found


def compile_theirs(glslang: str, source: Path, defines: Mapping[str, str], target: Path) -> None:
    """To SPIR-V."""
    flags = [f"-D{name}={value}" for name, value in defines.items()]
    command = [glslang, "-V", "--quiet", "--target-env", "vulkan1.2", "-S", "comp", f"-I{source.parent}"]
    command.append("-P#extension GL_GOOGLE_include_directive : require")
    done = subprocess.run([*command, *flags, "-o", target, source], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile:\n{done.stdout}{done.stderr}")


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [HEADER]
    for each in sorted(found, key=lambda each: (TYPES.index(each["type"]), each["kernel"].partition(",")[0])):
        names = each["instructions"]

        def count(*starts: str, names: Mapping[str, int] = names) -> int:
            return sum(number for name, number in names.items() if name.startswith(starts))

        dots, matrices = count("v_dot4"), count("v_wmma")
        fmas = count("v_fma", "v_pk_fma", "v_dot2", "v_dual_fmac", "v_fmac", "v_mad_mix")
        loads = sum(number for name, number in names.items() if LOAD.match(name))
        wide = sum(number for name, number in names.items() if WIDE.match(name))
        per = count("v_") / max(1, matrices or dots or fmas)
        spilled = each.get("Spilled VGPRs", 0) + each.get("Spilled SGPRs", 0)
        waves = each.get("Subgroups per SIMD", "")
        lines.append(
            f"| {each['type']}, {each['kernel']} | {each['who']} | {each['VGPRs']} | {waves} | "
            f"{spilled} | {each['Code size']:,} B | {loads}, {wide} | {dots} | {matrices} | {per:.1f} | "
            f"{each.get('Inverse Throughput', 0):,} | {each.get('Latency', 0):,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True, help="llama.cpp's folder vulkan-shaders")
    parser.add_argument(
        "--glslang", default="glslangValidator", help="one that knows GL_EXT_integer_dot_product (15.4)"
    )
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.llama / "mul_mat_vec.comp").exists():
        sys.exit(f"{args.llama} has no mul_mat_vec.comp: name llama.cpp's ggml/src/ggml-vulkan/vulkan-shaders")
    if args.child:
        print(json.dumps(compile_all(args.llama, args.glslang)))
        return
    environment = {**os.environ, "RADV_FORCE_FAMILY": FAMILY, "MESA_SHADER_CACHE_DISABLE": "true"}
    command = [sys.executable, __file__, "--llama", str(args.llama), "--glslang", args.glslang, "--child"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("the shaders could not be compiled")
    found = table(json.loads(done.stdout))
    print(found)
    if args.markdown:
        args.markdown.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
