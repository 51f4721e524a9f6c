"""The unit: what it may do follows from the placement, and systemd itself accepts it."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from services import bundled_plan, on_vulkan, service

from tandem.deploy.systemd import unit_files
from tandem.errors import DeployError


def unit_of(**more: object) -> dict[str, str]:
    (unit,) = [text for path, text in unit_files(service(**more)).items() if path.suffix == ".service"]
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)


def test_what_it_runs_and_may() -> None:
    unit = unit_of()
    words = unit["ExecStart"].split()
    assert words[:5] == ["/usr/bin/env", "-P", "-m", "tandem", "serve"]
    assert words[6:] == ["--host", "127.0.0.1", "--port", "8000", "--config", "/etc/tandem/stories.toml"]
    assert unit["PrivateDevices"] == "yes"
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ""
    limit = int(unit["MemoryMax"].removesuffix("M")) << 20
    assert bundled_plan().total + (1 << 30) <= limit < 2 * bundled_plan().total + (1 << 30)


def test_the_gpu_is_let_in_where_it_is_used() -> None:
    unit = unit_of(plan=on_vulkan(bundled_plan()))
    assert unit["DeviceAllow"] == "char-drm rw"
    assert unit["SupplementaryGroups"] == "render"
    assert "PrivateDevices" not in unit


def test_what_else_changes_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    unit = unit_of(api_key_file=keys, port=80, python=Path("/home/joanna/venv/bin/python"))
    assert unit["LoadCredential"] == f"api-keys:{keys}"
    assert unit["ExecStart"].endswith(" --api-key-file %d/api-keys")
    assert unit["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"
    assert unit["ProtectHome"] == "read-only"
    assert unit["User"] == "somebody"


def test_odd_names_stay_one_word() -> None:
    unit = unit_of(model=Path('/srv/a b/50%/$x"y.gguf'))
    assert '"/srv/a b/50%%/$$x\\"y.gguf"' in unit["ExecStart"]


def test_the_configuration() -> None:
    (text,) = [text for path, text in unit_files(service()).items() if path == Path("/etc/tandem/stories.toml")]
    assert tomllib.loads(text) == {"context": 256, "max_sequences": 4}


def test_what_the_services_own_user_cannot_reach(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="does not see this machine's /tmp"):
        unit_files(service(model=Path("/tmp/model.gguf")))


def test_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "closed" / "model.gguf"
    model.parent.mkdir(mode=0o700)
    model.touch()
    monkeypatch.setattr(Path, "is_relative_to", lambda self, other: False)  # tests live under /tmp
    unit_files(service(model=model, user="somebody"))
    with pytest.raises(DeployError, match=r"is closed to others; .*chmod o\+rX .*--user"):
        unit_files(service(model=model, user=None))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("vulkan", [False, True])
def test_systemd_accepts_it(tmp_path: Path, vulkan: bool) -> None:
    plan = on_vulkan(bundled_plan()) if vulkan else bundled_plan()
    # With a name that systemd has to read back.
    model = Path("/srv/50% of $it.gguf")
    keys = tmp_path / "keys"
    files = unit_files(service(plan=plan, api_key_file=keys, model=model), tmp_path)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    unit = next(path for path in files if path.suffix == ".service")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # It warns about what it does not know or cannot read.
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert complaints == []
