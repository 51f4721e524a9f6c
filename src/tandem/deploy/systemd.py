"""A unit of systemd that may do what serving a model takes, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tandem.deploy.service import Service, arguments
from tandem.errors import DeployError

_HOMES = ("/home", "/root", "/run/user")
_CREDENTIAL = "api-keys"


def unit_files(service: Service, prefix: Path = Path("/")) -> dict[Path, str]:
    """The unit and its configuration. Paths in them are those under `/`, also where `prefix` puts the files elsewhere.

    Raises DeployError where the user that the service gets could not read the model or run the interpreter.
    """
    for path in (service.model, service.python):
        _check_reachable(path, of_others=service.user is None)
    config = Path("etc/tandem") / f"{service.name}.toml"
    unit = Path("etc/systemd/system") / f"{service.name}.service"
    return {prefix / config: service.configuration(), prefix / unit: _unit(service, f"/{config}")}


def _unit(service: Service, config: str) -> str:
    key = None if service.api_key_file is None else f"%d/{_CREDENTIAL}"
    words = [
        str(service.python),
        "-P",  # nothing is imported from the working directory, which the service may write
        "-m",
        "tandem",
        *arguments(str(service.model), service.host, service.port, config, None),
    ]
    command = " ".join(_quoted(word) for word in words)
    if key is not None:
        command += f" --api-key-file {key}"
    at_home = any(
        str(path).startswith(f"{home}/") for home in _HOMES for path in (service.model, service.mounted, service.python)
    )
    capability = "CAP_NET_BIND_SERVICE" if 0 < service.port < 1024 else ""
    lines = [
        "[Unit]",
        f"Description=Tandem serves {service.plan.model.replace('%', '%%')}",
        "After=network-online.target",
        "Wants=network-online.target",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={command}",
        "# What is not acceptable (exit code 2) does not become so by trying again.",
        "Restart=on-failure",
        "RestartSec=5",
        "RestartPreventExitStatus=2",
        "TimeoutStopSec=60",
        "KillMode=mixed",
        "",
        *(["DynamicUser=yes"] if service.user is None else [f"User={service.user}"]),
        *([f"LoadCredential={_CREDENTIAL}:{service.api_key_file}"] if key is not None else []),
        *(["SupplementaryGroups=render"] if service.vulkan else []),
        f"StateDirectory={service.name}",
        f"CacheDirectory={service.name}",
        "WorkingDirectory=%S/" + service.name,
        "Environment=HOME=%S/" + service.name,
        "Environment=XDG_CACHE_HOME=%C/" + service.name,
        "Environment=HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1",
        "",
        "# The memory plan, an eighth more, and 1 GiB for what is beside it.",
        f"MemoryMax={service.memory_limit >> 20}M",
        "MemorySwapMax=0",
        "OOMPolicy=stop",
        "",
        "UMask=0077",
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={capability}",
        f"AmbientCapabilities={capability}",
        "ProtectSystem=strict",
        f"ProtectHome={'read-only' if at_home else 'yes'}",
        "PrivateTmp=yes",
        *(
            ["DevicePolicy=closed", "DeviceAllow=char-drm rw"]
            if service.vulkan
            else ["PrivateDevices=yes", "DevicePolicy=closed"]
        ),
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "ProtectProc=invisible",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RemoveIPC=yes",
        "LockPersonality=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """A word of a command line: systemd has specifiers (%), variables ($) and C's escapes."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if any(letter in word for letter in " \t;'\"\\") or not word else word


def _check_reachable(path: Path, *, of_others: bool) -> None:
    real = path.resolve()
    if real.is_relative_to("/tmp") or real.is_relative_to("/var/tmp"):
        raise DeployError(f"the service does not see this machine's /tmp: move {path} to a place that lasts")
    if not of_others:
        return
    for place in (*reversed(real.parents), real):
        wanted = 0o5 if place == real and place.is_dir() else 0o1 if place.is_dir() else 0o4
        if place.stat().st_mode & wanted != wanted:
            raise DeployError(
                f"the service gets a user of its own, who cannot reach {path}: {place} is closed to others; move it to "
                f"where all may read (such as /srv or /opt), chmod o+rX {place}, or name a user with --user"
            )
