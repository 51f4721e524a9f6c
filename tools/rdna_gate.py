"""Compiles every shader variant with AMD's compiler and fails where the code is bad. No GPU is needed.

    LD_LIBRARY_PATH=MESA/lib VK_DRIVER_FILES=MESA/radeon_icd.json python tools/rdna_gate.py \\
        [--markdown docs/shader-statistics.md]

RADV (Mesa 25 or newer) compiles for the GPU that RADV_FORCE_FAMILY names, on a null device; this script starts itself
once for each family. Bad is: spilled registers, scratch memory, more vector registers than the kernel's class may
have, products without the `v_dot4` or `v_wmma` that they are built on, or with loads of less than 32 bits. The last two
need the instructions' names, which a Mesa built with an older LLVM does not know for every family; it says where.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, call, check, create, ffi, library, listed, struct, text
from tandem.devices.vulkan.context import BINDINGS, PUSH_BYTES
from tandem.devices.vulkan.dispatch import LANES, ROW_LANES, TEAM
from tandem.devices.vulkan.instance import Instance
from tandem.devices.vulkan.products import gated_outputs
from tandem.devices.vulkan.tiles import (
    FEW_ROWS,
    MANY_ROWS,
    MOST_ROWS,
    attention_tile,
    byte_matrix_tile,
    matrix_tile,
    ordered_matrix_tile,
)
from tandem.devices.vulkan.variants import SHARED, THIN
from tandem.weights.tensor import TensorType

FAMILIES = ("phoenix", "navi31", "rembrandt", "gfx1151")
SHADERS = Path(__file__).resolve().parent.parent / "src" / "tandem" / "devices" / "vulkan" / "shaders"
HEAD_DIMS = (64, 128, 256)
# Lanes of a subgroup, as RADV has them for compute.
WAVE = 64
# Of the rows that a workgroup may take, those that are compiled here: registers grow with them.
ROWS = (1, 2, 4, 6, 8, 12, MOST_ROWS)

# Vector registers of a lane. 96 let 16 waves share a SIMD of RDNA3 at wave32, 128 let 12.
CEILINGS = dict.fromkeys(("product", "product_int", "product_tile", "norm", "attention_split", "attention_row"), 128)
CEILINGS |= dict.fromkeys(("product_gated", "product_int_gated", "product_norm", "product_int_norm"), 128)
# 168 let 4 waves of wave64 share a SIMD, and so do up to 192: float16 weights bring float32 activations in registers.
CEILINGS["product_matrix"], CEILINGS["product_matrix_int8"] = 180, 168
CEILINGS["attention_matrix"] = 160
# Its shared memory lets no more than 4 waves share a SIMD; 144 registers let 5 of wave64.
CEILINGS["attention"] = 144
CEILING = 96
WIDE = re.compile(r"(buffer|global)_load_(b128|dwordx4)$")
NARROW = re.compile(r"(buffer|global)_load_(u8|i8|u16|i16|ubyte|sbyte|ushort|sshort|short|d16)")

FEATURES, PIPELINE_INFO, EXECUTABLE_INFO, STATISTIC, REPRESENTATION = (
    1000269000, 1000269001, 1000269003, 1000269004, 1000269005
)  # fmt: skip
CAPTURE_STATISTICS, CAPTURE_REPRESENTATIONS = 0x40, 0x80


def variants() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(label, shader, specialization constants) of the pipelines that a model can ask for."""
    for kind in TensorType:
        quantized, id = kind.block > 1, kind.ggml_id
        lanes, share = SHARED
        yield f"embed {kind.name}", "embed", (LANES, id)
        for rows in ROWS:
            yield f"product {kind.name} x{rows}", "product", (lanes, id, rows, 1, share)
            if quantized:
                yield f"product_int {kind.name} x{rows}", "product_int", (lanes, id, rows, 1, share)
        for shader in ("product", "product_int") if quantized else ("product",):
            for rows in (1, 2, 4, MOST_ROWS):
                label = f"{shader}_gated {kind.name} x{rows}"
                yield label, f"{shader}_gated", (ROW_LANES, id, rows, gated_outputs(shader, rows), share)
            yield f"{shader}_norm {kind.name}", f"{shader}_norm", (ROW_LANES, id, 1, 1, THIN[1], 3, 1)
        yield f"product_tile_float {kind.name}", "product_tile_float", (ROW_LANES, id)
        if quantized:
            for rows in ROWS[1:-1]:
                yield f"product_int {kind.name} x{rows}, 2 outputs", "product_int", (lanes, id, rows, 2, share)
            yield f"product_int {kind.name} x1, long", "product_int", (THIN[0], id, 1, 1, THIN[1])
            yield f"product_tile {kind.name}", "product_tile", (ROW_LANES, id)
        if quantized or kind in (TensorType.F16, TensorType.BF16):
            for bucket in (MOST_ROWS, 32, FEW_ROWS, MANY_ROWS):
                tile = matrix_tile(bucket, WAVE)
                label = f"product_matrix {kind.name}, {tile.rows} x {tile.outputs}"
                yield label, "product_matrix", (tile.subgroups * WAVE, id, 16, 16, 16, *tile.sizes)
        if quantized and kind is not TensorType.Q6_K:
            tiles = [
                *(byte_matrix_tile(bucket, WAVE, 64 << 10) for bucket in (MOST_ROWS, 32, FEW_ROWS, MANY_ROWS)),
                *(tile for _, share in (SHARED, THIN) if (tile := ordered_matrix_tile(MANY_ROWS, 8192, share))),
            ]
            for tile in tiles:
                label = f"product_matrix_int8 {kind.name}, {tile.rows} x {tile.outputs}"
                label += f" as {tile.share} lanes" if tile.share else ""
                yield label, "product_matrix_int8", (tile.subgroups * WAVE, id, 16, 16, 16, *tile.sizes)
    for dim in HEAD_DIMS:
        for flag, dtype in enumerate(("f16", "f32", "q8_0")):
            yield f"heads {dim} {dtype}", "heads", (TEAM, dim, flag, 1, 1)
            for heads in (1, 2, 8):
                rows = 16 // heads
                yield (
                    f"attention {dim} {dtype}, {heads} heads x {rows}",
                    "attention",
                    (2 * LANES, dim, flag, 1, heads, rows),
                )
                tile = attention_tile((16, 16, 16), dim, WAVE, 64 << 10)
                if dtype != "f32" and tile is not None:
                    sizes = (heads, tile.queries // heads, *tile.sizes)
                    label = f"attention_matrix {dim} {dtype}, {heads} heads x {tile.queries // heads}"
                    yield label, "attention_matrix", (tile.lanes, dim, flag, 1, *sizes)
                lanes = ROW_LANES if heads <= 4 else ROW_LANES // 2
                for shader in ("attention_split", "attention_row"):
                    yield f"{shader} {dim} {dtype}, {heads} heads", shader, (lanes, dim, flag, 1, heads)
    for each in (1, 4, 8):
        yield f"norm {each}", "norm", (ROW_LANES, each, 1, 1)
    yield "norm 4, 8 parts", "norm", (ROW_LANES, 4, 1, 8)
    for shader in ("gated", "combine"):
        yield shader, shader, (ROW_LANES,)
    for shader, names in (("select", ("chunk", "final")), ("adjust", ("apply", "undo"))):
        for flag, name in enumerate(names):
            yield f"{shader} {name}", shader, (ROW_LANES if shader == "select" else LANES, flag)
    for shader in ("mass", "answer", "rows", "copy", "ceiling_read", "ceiling_dots"):
        yield shader, shader, (LANES,)


class Compiler:
    """A device that compiles and cannot run."""

    def __init__(self) -> None:
        self._instance = Instance()
        physical = self._instance.physical_devices()[0]
        properties = struct("VkPhysicalDeviceProperties2")
        library().vkGetPhysicalDeviceProperties2(physical, properties)
        self.name = text(properties.properties.deviceName)
        names = [b"VK_KHR_pipeline_executable_properties", b"VK_KHR_shader_integer_dot_product"]
        # RDNA2 has no cooperative matrices.
        self.has_matrices = "VK_KHR_cooperative_matrix" in extensions_of(physical)
        names += [b"VK_KHR_cooperative_matrix", b"VK_EXT_subgroup_size_control"] if self.has_matrices else []
        strings = [ffi.new("char[]", name) for name in names]
        array = ffi.new("char*[]", strings)
        dot = struct("VkPhysicalDeviceShaderIntegerDotProductFeatures", shaderIntegerDotProduct=1)
        if self.has_matrices:
            matrix = struct("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", cooperativeMatrix=1)
            half = struct("VkPhysicalDeviceShaderFloat16Int8Features", shaderFloat16=1, shaderInt8=1)
            model = {"vulkanMemoryModel": 1, "vulkanMemoryModelDeviceScope": 1}
            memory = struct("VkPhysicalDeviceVulkanMemoryModelFeatures", **model)
            full = struct("VkPhysicalDeviceSubgroupSizeControlFeatures", computeFullSubgroups=1)
            dot.pNext, matrix.pNext, half.pNext, memory.pNext = matrix, half, memory, full
        executable = ffi.new("ExecutableFeatures*", [FEATURES, dot, 1])
        priority = ffi.new("float[1]", [1.0])
        queue = struct("VkDeviceQueueCreateInfo", queueCount=1, pQueuePriorities=priority)
        info = struct(
            "VkDeviceCreateInfo",
            pNext=executable,
            queueCreateInfoCount=1,
            pQueueCreateInfos=queue,
            enabledExtensionCount=len(names),
            ppEnabledExtensionNames=array,
        )
        self._device = create("vkCreateDevice", "VkDevice", physical, info, NULL)
        bindings = ffi.new(
            "VkDescriptorSetLayoutBinding[]",
            [(index, vk.DESCRIPTOR_STORAGE_BUFFER, 1, vk.SHADER_STAGE_COMPUTE, NULL) for index in range(BINDINGS)],
        )
        info = struct("VkDescriptorSetLayoutCreateInfo", bindingCount=BINDINGS, pBindings=bindings)
        sets = ffi.new(
            "VkDescriptorSetLayout[1]",
            [create("vkCreateDescriptorSetLayout", "VkDescriptorSetLayout", self._device, info, NULL)],
        )
        push = ffi.new("VkPushConstantRange*", [vk.SHADER_STAGE_COMPUTE, 0, PUSH_BYTES])
        info = struct(
            "VkPipelineLayoutCreateInfo",
            setLayoutCount=1,
            pSetLayouts=sets,
            pushConstantRangeCount=1,
            pPushConstantRanges=push,
        )
        self._layout = create("vkCreatePipelineLayout", "VkPipelineLayout", self._device, info, NULL)

    def compile(self, shader: str, constants: tuple[int, ...]) -> dict[str, Any]:
        """The compiler's statistics by name, and `instructions`: how often each mnemonic occurs."""
        pipeline = self._pipeline(shader, constants)
        info = ffi.new("ExecutableInfo*", [EXECUTABLE_INFO, NULL, pipeline, 0])
        statistics = {
            text(each.name): int(each.u64)
            for each in self._listed("Statistics", "ExecutableStatistic", STATISTIC, info)
        }
        library().vkDestroyPipeline(self._device, pipeline, NULL)
        return statistics | {"instructions": self._assembly}

    def _pipeline(self, shader: str, constants: tuple[int, ...]) -> Any:
        code = (SHADERS / f"{shader}.spv").read_bytes()
        words = ffi.new("uint32_t[]", len(code) // 4)
        ffi.memmove(words, code, len(code))
        info = struct("VkShaderModuleCreateInfo", codeSize=len(code), pCode=words)
        module = create("vkCreateShaderModule", "VkShaderModule", self._device, info, NULL)
        entries = ffi.new("VkSpecializationMapEntry[]", [(i, 4 * i, 4) for i in range(len(constants))])
        values = ffi.new("uint32_t[]", list(constants))
        special = ffi.new(
            "VkSpecializationInfo*", [len(constants), entries, 4 * len(constants), ffi.cast("void*", values)]
        )
        main = ffi.new("char[]", b"main")
        stage = struct(
            "VkPipelineShaderStageCreateInfo",
            flags=vk.STAGE_REQUIRE_FULL_SUBGROUPS if "_matrix" in Path(shader).name else 0,
            stage=vk.SHADER_STAGE_COMPUTE,
            module=module,
            pName=main,
            pSpecializationInfo=special,
        )
        info = struct(
            "VkComputePipelineCreateInfo",
            flags=CAPTURE_STATISTICS | CAPTURE_REPRESENTATIONS,
            stage=stage[0],
            layout=self._layout,
        )
        pipeline = ffi.new("VkPipeline*")
        call("vkCreateComputePipelines", self._device, NULL, 1, info, NULL, pipeline)
        library().vkDestroyShaderModule(self._device, module, NULL)
        executable = ffi.new("ExecutableInfo*", [EXECUTABLE_INFO, NULL, pipeline[0], 0])
        self._assembly = self._instructions(executable)
        return pipeline[0]

    def _instructions(self, info: Any) -> dict[str, int]:
        """Mnemonics of the machine code: asked for twice, first for its size."""
        found = self._listed("InternalRepresentations", "ExecutableRepresentation", REPRESENTATION, info)
        buffers = [ffi.new("char[]", max(1, each.dataSize)) for each in found]
        for each, buffer in zip(found, buffers, strict=True):
            each.pData = buffer
        count = ffi.new("uint32_t*", len(found))
        check("assembly", self._function("InternalRepresentations")(self._device, info, count, found.array))
        for each, buffer in zip(found, buffers, strict=True):
            if text(each.name) == "Assembly":
                return dict(Counter(re.findall(r"^\s+([a-z]\w+)", text(buffer), re.MULTILINE)))
        sys.exit("the driver does not give its assembly: Mesa 25 or newer is needed")

    def _function(self, what: str) -> Any:
        name = ffi.new("char[]", f"vkGetPipelineExecutable{what}KHR".encode())
        kind = {"Statistics": "GetStatistics", "InternalRepresentations": "GetRepresentations"}[what]
        return ffi.cast(kind, library().vkGetDeviceProcAddr(self._device, name))

    def _listed(self, what: str, element: str, kind: int, info: Any) -> Any:
        count = ffi.new("uint32_t*")
        check(what, self._function(what)(self._device, info, count, NULL))
        array = ffi.new(f"{element}[]", count[0])
        for index in range(count[0]):
            array[index].sType = kind
        check(what, self._function(what)(self._device, info, count, array))
        return _Elements(array, count[0])


def extensions_of(physical: Any) -> set[str]:
    listing = library().vkEnumerateDeviceExtensionProperties
    return set(listed(listing, "VkExtensionProperties", physical, NULL, convert=lambda each: text(each.extensionName)))


class _Elements(list[Any]):
    """An array's elements; the array lives as long as they do."""

    def __init__(self, array: Any, count: int) -> None:
        super().__init__(array[index] for index in range(count))
        self.array = array


def faults(shader: str, statistics: dict[str, Any]) -> list[str]:
    """What is wrong with one variant's code."""
    found = [
        f"{statistics[name]} {name.lower()}"
        for name in ("Spilled VGPRs", "Spilled SGPRs", "Scratch size")
        if statistics.get(name)
    ]
    ceiling = CEILINGS.get(shader, CEILING)
    if statistics["VGPRs"] > ceiling:
        found.append(f"{statistics['VGPRs']} VGPRs where {ceiling} are allowed")
    instructions = statistics["instructions"]
    if not readable(instructions):
        return found
    dots = ("product_int", "product_int_gated", "product_int_norm", "product_tile")
    wanted = "v_dot4" if shader in dots else "v_wmma" if "_matrix" in shader else None
    if wanted and not any(name.startswith(wanted) for name in instructions):
        found.append(f"no {wanted}")
    if shader.startswith("product"):
        if not any(WIDE.match(name) for name in instructions):
            found.append("no loads of 128 bits")
        found += [f"{count} {name}" for name, count in instructions.items() if NARROW.match(name)]
    return found


def readable(instructions: dict[str, int]) -> bool:
    """Whether the driver could name the instructions: every shader computes with vectors."""
    return any(name.startswith("v_") for name in instructions)


def compile_all() -> dict[str, dict[str, Any]]:
    compiler = Compiler()
    return {
        label: {"shader": shader, **compiler.compile(shader, constants)}
        for label, shader, constants in variants()
        if compiler.has_matrices or "_matrix" not in shader
    }


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: vector registers and code size of each variant for each family."""
    lines = [
        "# Shader statistics",
        "",
        "What AMD's compiler in Mesa (RADV, ACO) makes of each shader variant: vector registers a lane, and bytes of",
        "code. Compiled without a GPU by `tools/rdna_gate.py`, which fails on spills, scratch, too many registers,",
        "products without the `v_dot4` or `v_wmma` that they are built on, and loads of less than 32 bits in products.",
        "Nothing here was run.",
        "",
        "| variant | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for label in next(iter(results.values())):
        found = [each.get(label) for each in results.values()]
        cells = [f"{each['VGPRs']}, {each['Code size']:,} B" if each else "" for each in found]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the table of statistics there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(compile_all()))
        return
    results, bad = {}, []
    for family in FAMILIES:
        environment = {**os.environ, "RADV_FORCE_FAMILY": family, "MESA_SHADER_CACHE_DISABLE": "true"}
        done = subprocess.run([sys.executable, __file__, "--child"], env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{family}: the shaders could not be compiled")
        results[family] = json.loads(done.stdout)
        for label, statistics in results[family].items():
            bad += [f"{family}: {label}: {fault}" for fault in faults(statistics["shader"], statistics)]
    if args.markdown:
        args.markdown.write_text(table(results))
    for family, variants_of in results.items():
        if not all(readable(statistics["instructions"]) for statistics in variants_of.values()):
            print(f"{family}: this Mesa cannot name its instructions; their kinds were not checked")
    print(f"{len(results[FAMILIES[0]])} variants for {', '.join(FAMILIES)}: {len(bad)} faults")
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
