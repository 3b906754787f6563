"""Importers: memory images, hash lists and agent streams become page-hash traces.

Each format is one function, named here so that only the one that is asked for is loaded.
"""

from __future__ import annotations

__all__ = ["FORMATS", "KEYED_FORMATS"]

#: Format of `planner trace import` -> "module:function". Every function has the signature
#: `(files, *, out, labels, key, force, progress) -> planner.importers.common.ImportReport`.
FORMATS: dict[str, str] = {
    "raw": "planner.importers.images:import_raw",
    "qemu": "planner.importers.elf:import_qemu",
    "firecracker": "planner.importers.images:import_firecracker",
    "elf": "planner.importers.elf:import_elf",
    "lime": "planner.importers.lime:import_lime",
    "avml": "planner.importers.avml:import_avml",
    "hashlist": "planner.importers.hashlist:import_hashlist",
    "agent": "planner.importers.agent:import_agent",
}
#: Formats that hold memory itself, which is hashed here and now under the site key.
KEYED_FORMATS = frozenset(("raw", "qemu", "firecracker", "elf", "lime", "avml"))
