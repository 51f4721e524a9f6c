"""Compiles the Vulkan shaders to the SPIR-V that ships in the package, or checks that what ships is up to date.

pip install '.[shaders]'
python tools/compile_shaders.py [--check]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SHADERS = Path(__file__).resolve().parent.parent / "src" / "tandem" / "devices" / "vulkan" / "shaders"


def compile_shader(source: Path, target: Path) -> None:
    command = ["glslangValidator", "-V", "--quiet", "--target-env", "vulkan1.2", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} does not compile:\n{done.stdout}{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the shipped SPIR-V differs")
    check = parser.parse_args().check
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(SHADERS.glob("*.comp")):
            shipped = source.with_suffix(".spv")
            target = Path(folder) / shipped.name
            compile_shader(source, target)
            if not check:
                shipped.write_bytes(target.read_bytes())
            elif not shipped.exists() or shipped.read_bytes() != target.read_bytes():
                stale.append(shipped.name)
    if stale:
        sys.exit(f"not what the sources compile to: {', '.join(stale)}; run tools/compile_shaders.py")


if __name__ == "__main__":
    main()
