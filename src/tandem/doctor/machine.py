"""A machine as its /proc, /sys, /dev and /etc describe it, under any root."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64", "usr/lib", "lib", "usr/local/lib",
    "usr/local/lib64", "usr/local/lib/x86_64-linux-gnu", "run/opengl-driver/lib",
)  # fmt: skip
_DISPLAY_CLASS = "0x03"


class Unreadable(Exception):
    """Something is there and cannot be read, so that nothing can be said about it."""


@dataclass(frozen=True, slots=True)
class PciDevice:
    """vendor, device: four hexadecimal digits. driver: the kernel's driver that has taken it, if one has."""

    address: str
    vendor: str
    device: str
    kind: str
    driver: str | None

    @property
    def id(self) -> str:
        return f"{self.vendor}:{self.device}"

    @property
    def display(self) -> bool:
        return self.kind.startswith(_DISPLAY_CLASS)


@dataclass(frozen=True, slots=True)
class Node:
    """A device file. group: the name of the group that owns it, or its number where it has no name."""

    path: str
    group: str
    gid: int
    mode: int
    may_open: bool


@dataclass(frozen=True)
class Machine:
    """Paths are relative to `root`, without a leading slash. environment: variables of a process that would run models.

    Raises Unreadable where a thing is there and may not be read.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether this is the machine that we run on."""
        return self.root == Path("/")

    def read(self, path: str) -> str | None:
        """A file's text, or None where there is no such file."""
        try:
            return (self.root / path).read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise Unreadable(f"/{path} cannot be read: {error.strerror}") from None

    def number(self, path: str) -> int | None:
        text = self.read(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            raise Unreadable(f"/{path} holds no number: {text!r:.40}") from None

    def names(self, path: str) -> list[str] | None:
        """What a folder holds, or None where there is no such folder."""
        try:
            return sorted(os.listdir(self.root / path))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unreadable(f"/{path} cannot be read: {error.strerror}") from None

    def exists(self, path: str) -> bool:
        try:
            (self.root / path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise Unreadable(f"/{path} cannot be read: {error.strerror}") from None
        return True

    def fields(self, path: str) -> dict[str, str] | None:
        """A file of lines `name: value`; of several lines with one name the first counts."""
        text = self.read(path)
        if text is None:
            return None
        found: dict[str, str] = {}
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip(), value.strip())
        return found

    @cached_property
    def kernel(self) -> tuple[int, int] | None:
        """(major, minor) of the running kernel, or None where it does not say."""
        numbers = (self.read("proc/sys/kernel/osrelease") or "").split(".")
        try:
            return int(numbers[0]), int(numbers[1].split("-")[0])
        except (IndexError, ValueError):
            return None

    @cached_property
    def pci(self) -> list[PciDevice] | None:
        """Devices of the PCI bus by address, or None where the bus is not shown."""
        addresses = self.names("sys/bus/pci/devices")
        return None if addresses is None else [self._pci_device(address) for address in addresses]

    def _pci_device(self, address: str) -> PciDevice:
        folder = f"sys/bus/pci/devices/{address}"
        vendor, device, kind = ((self.read(f"{folder}/{name}") or "").strip() for name in ("vendor", "device", "class"))
        link = self.root / folder / "driver"
        driver = os.readlink(link).rpartition("/")[2] if link.is_symlink() else None  # noqa: PTH115
        return PciDevice(address, vendor.removeprefix("0x"), device.removeprefix("0x"), kind, driver)

    @cached_property
    def ids(self) -> tuple[int, frozenset[int]] | None:
        """(user, groups) of the process, effective; None where it does not say."""
        status = self.fields("proc/self/status")
        try:
            assert status is not None
            groups = {int(status["Gid"].split()[1]), *map(int, status["Groups"].split())}
            return int(status["Uid"].split()[1]), frozenset(groups)
        except (AssertionError, KeyError, IndexError, ValueError):
            return None

    def group(self, gid: int) -> tuple[str, list[str]] | None:
        """A group's name and the users that it lists."""
        for line in (self.read("etc/group") or "").splitlines():
            parts = line.split(":")
            if len(parts) == 4 and parts[2] == str(gid):
                return parts[0], [user for user in parts[3].split(",") if user]
        return None

    @cached_property
    def user(self) -> tuple[str, str] | None:
        """(name, home) of the process's user; for decisions and for hiding them, never for the report."""
        for line in (self.read("etc/passwd") or "").splitlines():
            parts = line.split(":")
            if len(parts) == 7 and self.ids is not None and parts[2] == str(self.ids[0]):
                return parts[0], parts[5]
        return None

    def node(self, path: str) -> Node | None:
        """A device file, and whether the process may read and write it."""
        try:
            found = (self.root / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unreadable(f"/{path} cannot be read: {error.strerror}") from None
        group = self.group(found.st_gid)
        name = group[0] if group else str(found.st_gid)
        # On the running machine the kernel knows of access lists, too, which a desktop's login sets.
        may_open = os.access(self.root / path, os.R_OK | os.W_OK) if self.live else self._permits(path, found)
        return Node(f"/{path}", name, found.st_gid, stat.S_IMODE(found.st_mode), may_open)

    def _permits(self, path: str, found: os.stat_result) -> bool:
        if self.ids is None:
            raise Unreadable(f"/proc/self/status does not tell whose access to /{path} is in question")
        user, groups = self.ids
        if user == 0 or found.st_mode & 0o006 == 0o006:
            return True
        if user == found.st_uid:
            return found.st_mode & 0o600 == 0o600
        return found.st_gid in groups and found.st_mode & 0o060 == 0o060

    @cached_property
    def container(self) -> bool:
        marks = any(self.exists(path) for path in (".dockerenv", "run/.containerenv"))
        return marks or any(name in self.environment for name in ("container", "KUBERNETES_SERVICE_HOST"))

    def library(self, name: str) -> bool:
        """Whether the dynamic linker's usual folders hold a library."""
        if "/" in name:
            return self.exists(name.lstrip("/"))
        extra = [folder.lstrip("/") for folder in self.environment.get("LD_LIBRARY_PATH", "").split(":") if folder]
        return any(self.exists(f"{folder}/{name}") for folder in (*extra, *_LIBRARY_FOLDERS))

    @cached_property
    def family(self) -> str | None:
        """debian, fedora, arch or suse: whose package manager this machine has."""
        release = dict(line.split("=", 1) for line in (self.read("etc/os-release") or "").splitlines() if "=" in line)
        likes = " ".join(release.get(name, "").strip('"') for name in ("ID", "ID_LIKE")).split()
        known = {"debian": "debian", "ubuntu": "debian", "fedora": "fedora", "rhel": "fedora", "arch": "arch",
                 "suse": "suse", "opensuse": "suse"}  # fmt: skip
        return next((known[like] for like in likes if like in known), None)

    def install(self, packages: Mapping[str, str]) -> str:
        """The command that installs packages, named per family; for an unknown one, Debian's names in words."""
        if self.family is None or self.family not in packages:
            return f"install the packages that Debian calls {packages['debian']}"
        tool = {"debian": "apt install", "fedora": "dnf install", "arch": "pacman -S", "suse": "zypper install"}
        sudo = "" if self.ids is not None and self.ids[0] == 0 else "sudo "
        return f"{sudo}{tool[self.family]} {packages[self.family]}"
