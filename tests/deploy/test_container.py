"""Containerfile and compose file: the model is mounted whole, and nothing is open that need not be."""

from __future__ import annotations

import json
import re
from pathlib import Path

from services import MODEL, bundled_plan, on_vulkan, service

from tandem.deploy.container import compose_files, container_files


def value(text: str, key: str) -> object:
    """Of a line of YAML whose value is JSON."""
    match = re.search(rf"^ *{key}: (.*)$", text, re.MULTILINE)
    assert match is not None, key
    return json.loads(match[1])


def test_compose() -> None:
    files = compose_files(service(host="0.0.0.0", port=9000, api_key_file=Path("/etc/keys")), Path("out"))
    assert {path.name for path in files} == {"tandem.toml", "Containerfile", "compose.yaml"}
    text = files[Path("out/compose.yaml")]
    command = value(text, "command")
    assert isinstance(command, list)
    assert command[:2] == ["serve", f"/models/{MODEL.name}"]
    assert command[-2:] == ["--api-key-file", "/run/secrets/api-keys"]
    assert value(text, "ports") == ["0.0.0.0:9000:8000"]
    assert value(text, "volumes") == [f"{MODEL.parent}:/models:ro", "/etc/keys:/run/secrets/api-keys:ro"]
    assert "read_only: true" in text
    assert "/dev/dri" not in text
    # The image runs the same command.
    assert f"CMD {json.dumps(command)}" in files[Path("out/Containerfile")]


def test_the_gpu() -> None:
    files = compose_files(service(plan=on_vulkan(bundled_plan())), Path())
    assert "devices: [/dev/dri]" in files[Path("compose.yaml")]
    assert "mesa-vulkan-drivers" in files[Path("Containerfile")]
    assert "mesa" not in container_files(service(), Path())[Path("Containerfile")]


def test_a_model_of_links_is_mounted_with_what_they_point_to(tmp_path: Path) -> None:
    """As huggingface_hub keeps them."""
    blob = tmp_path / "models--a--b" / "blobs" / "0123"
    link = tmp_path / "models--a--b" / "snapshots" / "ffff" / "model.gguf"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"GGUF")
    link.symlink_to("../../blobs/0123")
    for model, inside in ((link, "snapshots/ffff/model.gguf"), (link.parent, "snapshots/ffff")):
        text = compose_files(service(model=model), Path())[Path("compose.yaml")]
        assert value(text, "volumes") == [f"{tmp_path / 'models--a--b'}:/models:ro"]
        assert value(text, "command")[1] == f"/models/{inside}"  # type: ignore[index]
