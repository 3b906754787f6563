"""The kinds of settings, each in a module of its own that is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from planner.errors import UsageError
from planner.exporters.common import Current, prepare
from planner.metrics import Result

__all__ = ["KINDS", "export_settings"]

#: Kind to module and what it is, in the order of the documentation.
KINDS = {
    "sysfs": ("sysfs", "shell script: apply, show, undo"),
    "tmpfiles": ("tmpfiles", "tmpfiles.d file, applied at every boot"),
    "ksmtuned": ("ksmtuned", "/etc/ksmtuned.conf that holds ksmd at this pace"),
    "kubevirt": ("kubevirt", "shell script of kubectl commands: KubeVirt patch, node annotations"),
    "proxmox": ("proxmox", "shell script: ksmtuned.conf, and qm set for guests to keep out"),
    "libvirt": ("libvirt", "shell script of virsh commands, and domain XML for guests to keep out"),
    "systemd": ("systemd", "shell script that makes MemoryKSM= drop-ins of services"),
    "ansible": ("ansible", "playbook: tmpfiles.d file, applied and asserted"),
    "selective-ksm": ("selective", "plan of partitions, members and triggers (JSON)"),
    "overcommit": ("overcommit", "ratios for Nova, KubeVirt and Proxmox"),
    "alerts": ("alerts", "Prometheus rules: saving, COW rate, headroom"),
}


def export_settings(result: Result, policy: str, kind: str, *, current: Current | None = None,
                    host: str | None = None) -> str:
    """The settings of `policy` as the text of a file of `kind`.

    `current` are present values to note in it, `host` the host of the scenario to write it for.
    Raises UsageError for an unknown policy, kind or host, and where the kind cannot express the
    policy.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind[:80]!r}", where="--as",
                         instead=f"choose one of {', '.join(KINDS)}")
    export = prepare(result, policy, kind, current, host)
    module = import_module(f"planner.exporters.{KINDS[kind][0]}")
    text: str = module.render(export)
    return text
