"""A container image with Tandem, and a compose file that runs it with a model."""

from __future__ import annotations

import json
from pathlib import Path

from tandem.deploy.service import Service, arguments

# Where things are inside; the port is the container's own.
_MODELS, _CONFIG, _KEYS, _PORT = Path("/models"), "/etc/tandem/tandem.toml", "/run/secrets/api-keys", 8000
_USER = 10001
_HEALTH = (
    "python", "-c", f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{_PORT}/health', timeout=5)",
)  # fmt: skip


def container_files(service: Service, folder: Path) -> dict[Path, str]:
    return {folder / "tandem.toml": service.configuration(), folder / "Containerfile": _containerfile(service)}


def compose_files(service: Service, folder: Path) -> dict[Path, str]:
    return {**container_files(service, folder), folder / "compose.yaml": _compose(service)}


def _command(service: Service) -> list[str]:
    model = _MODELS / service.model.relative_to(service.mounted)
    key = None if service.api_key_file is None else _KEYS
    return arguments(str(model), "0.0.0.0", _PORT, _CONFIG, key)


def _published(service: Service) -> str:
    return f"{service.host}:{service.port}:{_PORT}"


def _render_groups() -> list[str]:
    """By number: an image has other names."""
    return sorted({str(node.stat().st_gid) for node in Path("/dev/dri").glob("renderD*")}) or ["render"]


def _containerfile(service: Service) -> str:
    vulkan = (
        "RUN apt-get update && apt-get install -y --no-install-recommends libvulkan1 mesa-vulkan-drivers \\\n"
        "    && rm -rf /var/lib/apt/lists/*\n"
        if service.vulkan
        else ""
    )
    devices = " --device /dev/dri --group-add keep-groups" if service.vulkan else ""
    keys = "" if service.api_key_file is None else f" -v {service.api_key_file}:{_KEYS}:ro"
    return f"""\
# {service.plan.model}, served by Tandem. Put the wheel that tools/build_wheel.sh makes beside this file, then:
#   podman build -t {service.name} .
#   podman run --rm --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges \\
#     --memory {service.memory_limit >> 20}m -p {_published(service)}{devices} \\
#     -v {service.mounted}:{_MODELS}:ro{keys} \\
#     {service.name}
FROM docker.io/library/python:3.11-slim-bookworm
{vulkan}COPY tandem_llm-*.whl /tmp/
RUN pip install --no-cache-dir /tmp/tandem_llm-*.whl && rm /tmp/tandem_llm-*.whl
COPY tandem.toml {_CONFIG}
ENV HF_HUB_OFFLINE=1 HOME=/tmp XDG_CACHE_HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER {_USER}
EXPOSE {_PORT}
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m CMD {json.dumps(_HEALTH)}
ENTRYPOINT ["python", "-m", "tandem"]
CMD {json.dumps(_command(service))}
"""


def _compose(service: Service) -> str:
    """YAML, whose strings are JSON's."""
    volumes = [f"{service.mounted}:{_MODELS}:ro"]
    if service.api_key_file is not None:
        volumes.append(f"{service.api_key_file}:{_KEYS}:ro")
    devices = f"    devices: [/dev/dri]\n    group_add: {json.dumps(_render_groups())}\n" if service.vulkan else ""
    return f"""\
services:
  {service.name}:
    build:
      context: .
      dockerfile: Containerfile
    command: {json.dumps(_command(service))}
    ports: [{json.dumps(_published(service))}]
    volumes: {json.dumps(volumes)}
{devices}    mem_limit: {service.memory_limit >> 20}m
    memswap_limit: {service.memory_limit >> 20}m
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    init: true
    restart: unless-stopped
    stop_grace_period: 60s
"""
