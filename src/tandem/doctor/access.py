"""Device files: whether they are there, and whether this process may open them."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.doctor.finding import Area, Finding
from tandem.doctor.gpu import NVIDIA, gpus
from tandem.doctor.machine import Machine, Node


def check_render_nodes(machine: Machine) -> Iterator[Finding]:
    """Of GPUs that a kernel driver has taken; NVIDIA's driver has files of its own."""
    nodes = [name for name in machine.names("dev/dri") or [] if name.startswith("renderD")]
    driven = [device for device in gpus(machine) if device.driver not in (None, "vfio-pci") and device.vendor != NVIDIA]
    if driven and not nodes:
        if machine.container:
            text = "this container has no /dev/dri, though the machine has a GPU"
            fix = "start it with --device /dev/dri --group-add $(stat -c %g /dev/dri/renderD128), run on the host"
        else:
            text = "the kernel has a GPU driver, but there is no /dev/dri/renderD*"
            fix = "reboot; if it stays so: sudo dmesg | grep -i drm"
        yield Finding("gpu", "render node", "problem", text, fix)
    for name in nodes:
        node = machine.node(f"dev/dri/{name}")
        if node is not None:
            yield check_node(machine, node, "gpu", "render node")


def check_node(machine: Machine, node: Node, area: Area, name: str) -> Finding:
    facts = {"path": node.path, "group": node.group, "mode": f"{node.mode:04o}"}
    if node.may_open:
        return Finding(area, name, "ok", f"{node.path} may be opened (group {node.group})", facts=facts)
    text = f"{node.path} may not be opened: it belongs to the group {node.group}"
    if node.mode & 0o060 != 0o060:
        text = f"{node.path} may not be opened: its mode {node.mode:04o} lets nobody but its owner in"
        fix = "sudo udevadm trigger --subsystem-match=drm, or reboot: the distribution's rules give it to a group"
    elif machine.container:
        fix = f"start the container with --group-add {node.gid}"
    elif machine.user is not None and machine.user[0] in (machine.group(node.gid) or ("", []))[1]:
        text += ", which this user has joined since logging in"
        fix = "log out and in again (or reboot)"
    else:
        fix = f"sudo usermod -aG {node.group} $USER, then log out and in again"
    return Finding(area, name, "problem", text, fix, facts)
