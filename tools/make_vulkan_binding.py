"""Compiles the Vulkan declarations to the tables that cffi reads at once, or checks that those in the package are up to
date. Parsing the headers at every start took 0.08 to 0.24 s.

python tools/make_vulkan_binding.py [--check]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from cffi import FFI

BINDING = Path(__file__).resolve().parent.parent / "src" / "tandem" / "devices" / "vulkan" / "binding"
MODULE = "tandem.devices.vulkan.binding.declarations"
HEADERS = (
    "base.h", "instance.h", "device.h", "pipeline.h", "commands.h", "queries.h", "debug.h", "executables.h",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the shipped tables differ")
    check = parser.parse_args().check
    ffi = FFI()
    for name in HEADERS:
        ffi.cdef((BINDING / "headers" / name).read_text(encoding="utf-8"))
    ffi.set_source(MODULE, None)
    shipped = BINDING / "declarations.py"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / shipped.name
        ffi.emit_python_code(str(made))
        if not check:
            shipped.write_bytes(made.read_bytes())
        elif not shipped.exists() or shipped.read_bytes() != made.read_bytes():
            sys.exit(f"{shipped.name} is not what the headers compile to; run tools/make_vulkan_binding.py")


if __name__ == "__main__":
    main()
