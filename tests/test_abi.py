"""planner/capture/abi.py is the header: the compiler's view of it against the dtypes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path

import numpy as np
import pytest

from planner.capture import abi
from planner.trace import NO_HASH, PageFlag, RegionFlag
from planner.trace.schema import KSM_INCOMPATIBLE

HEADER = Path(__file__).resolve().parent.parent / "kmod/include/uapi/planner/pagehash.h"
TYPES = ("__u8", "__u16", "__u32", "__u64")
#: Constants of these families are members of an enum.
FAMILIES: dict[str, type[IntFlag] | type[IntEnum]] = {
    "START_": abi.StartFlag, "TYPE_": abi.SlotType, "STATUS_": abi.Status, "SKIP_": abi.Skip,
    "PAGE_": PageFlag, "VMA_": RegionFlag,
}

Layout = dict[str, tuple[int, dict[str, tuple[int, int]]]]


@pytest.fixture(scope="module")
def compiler() -> str:
    """A C compiler; only a run outside CI may do without."""
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        assert not os.environ.get("CI"), "CI needs a C compiler"
        pytest.skip("no C compiler here")
    return found


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def structs_of(text: str, prefix: str = "pagehash") -> dict[str, list[str]]:
    """The structs of a header and their fields, in order."""
    found = {}
    for name, body in re.findall(rf"struct {prefix}_(\w+) \{{(.*?)\}};", without_comments(text),
                                 re.DOTALL):
        fields = []
        for line in filter(None, (part.strip() for part in body.split(";"))):
            match = re.fullmatch(r"(__u\d+) (\w+)(\[\w+\])?", line)
            assert match is not None, f"{name}: {line!r}"
            assert match[1] in TYPES, f"{name}: {line!r}"
            fields.append(match[2])
        found[name] = fields
    return found


def constants_of(text: str, prefix: str = "PAGEHASH") -> list[str]:
    """The names of a header's constants, without PAGEHASH_."""
    return re.findall(rf"^#define {prefix}_(\w+)\s+\S", without_comments(text), re.MULTILINE)


def compiled(compiler: str, header: Path, folder: Path, prefix: str = "pagehash"
             ) -> tuple[Layout, dict[str, int]]:
    """What the compiler makes of a header: sizes and offsets, and the values of constants."""
    text = header.read_text()
    lines = []
    for name, fields in structs_of(text, prefix).items():
        lines.append(f'printf("struct {name} %zu\\n", sizeof(struct {prefix}_{name}));')
        lines += [f'printf("field {name} {field} %zu %zu\\n", '
                  f"offsetof(struct {prefix}_{name}, {field}), "
                  f"sizeof(((struct {prefix}_{name} *)0)->{field}));" for field in fields]
    lines += [f'printf("constant {name} %llu\\n", (unsigned long long){prefix.upper()}_{name});'
              for name in constants_of(text, prefix.upper()) if name not in ("ASSERT", "OFFSET")]
    program = folder / "layout.c"
    program.write_text(f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\n'
                       "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    subprocess.run([compiler, "-std=gnu11", "-Wall", "-Wextra", "-Wpadded", "-Werror", "-o",
                    folder / "layout", program], check=True, capture_output=True, text=True)
    output = subprocess.run([folder / "layout"], check=True, capture_output=True,
                            text=True).stdout
    layout: Layout = {}
    constants = {}
    for line in output.splitlines():
        kind, *words = line.split()
        if kind == "struct":
            layout[words[0]] = (int(words[1]), {})
        elif kind == "field":
            layout[words[0]][1][words[1]] = (int(words[2]), int(words[3]))
        else:
            constants[words[0]] = int(words[1])
    return layout, constants


def layout_of_dtypes() -> Layout:
    found: Layout = {}
    for name in ("start", "header", "page", "vma", "name", "trailer"):
        dtype: np.dtype[np.void] = getattr(abi, name.upper())
        assert dtype.fields is not None
        found[name] = (dtype.itemsize, {
            field: (int(at), kind.itemsize) for field, (kind, at, *_) in dtype.fields.items()})
    return found


def differences(layout: Layout, constants: dict[str, int]) -> list[str]:
    """Where the compiler and abi.py disagree."""
    wrong = []
    mine = layout_of_dtypes()
    for name in sorted(set(layout) | set(mine)):
        if layout.get(name) != mine.get(name):
            wrong.append(f"struct {name}: {layout.get(name)} is not {mine.get(name)}")
    seen = set()
    for name, value in constants.items():
        if hasattr(abi, name):
            here = getattr(abi, name)
            seen.add(name)
        else:
            family = next((prefix for prefix in FAMILIES if name.startswith(prefix)), "")
            member = name.removeprefix(family)
            members = FAMILIES[family].__members__ if family else {}
            here = members.get(member)
            seen.add(family + member)
        if here is None or int(here) != value:
            wrong.append(f"{name}: {value:#x} is not {here}")
    expected = {name for name in abi.__all__ if isinstance(getattr(abi, name), int)}
    for prefix, family_type in FAMILIES.items():
        expected |= {prefix + member for member in family_type.__members__}
    return wrong + [f"{name} is not in the header" for name in sorted(expected - seen)]


def test_every_size_offset_and_constant_equals_the_header(
    compiler: str, tmp_path: Path
) -> None:
    layout, constants = compiled(compiler, HEADER, tmp_path)
    assert sum(len(fields) for _, fields in layout.values()) > 50
    assert len(constants) > 80
    assert differences(layout, constants) == []


def test_dtypes_are_little_endian_and_every_field_is_unsigned() -> None:
    for name in ("START", "HEADER", "PAGE", "VMA", "NAME", "TRAILER"):
        fields = getattr(abi, name).fields
        assert fields is not None
        for kind, *_ in fields.values():
            base = kind.base
            assert base.kind == "u"
            assert base.itemsize == 1 or base.newbyteorder("<") == base, f"{name}: {base}"


def test_masks_are_those_of_the_trace_schema() -> None:
    assert sum(PageFlag) == abi.PAGE_ALL
    assert abi.PAGE_NO_HASH == NO_HASH
    assert sum(RegionFlag) == abi.VMA_ALL
    assert abi.VMA_INCOMPATIBLE == KSM_INCOMPATIBLE
    assert sum(abi.StartFlag) == abi.START_ALL
    assert len(abi.Skip) == abi.SKIP_N <= abi.SKIP_MAX


@pytest.mark.parametrize(("old", "new", "message"), [
    # Asserts of the header itself guard many changes; these pass them.
    ("\t__u32 algorithm;\n", "\t__u32 procedure;\n", "struct header"),
    ("\t__u32 hash_bits;\n\t__u32 key_id;\n", "\t__u32 key_id;\n\t__u32 hash_bits;\n", None),
    ("\t__u64 lock_max_ns;\n\t__u64 lock_total_ns;\n",
     "\t__u64 lock_total_ns;\n\t__u64 lock_max_ns;\n", "struct trailer"),
    ("#define PAGEHASH_SKIP_MARKER\t5", "#define PAGEHASH_SKIP_MARKER\t4", "SKIP_MARKER"),
    ("#define PAGEHASH_PAGE_LOCKED\t\t(1U << 11)", "#define PAGEHASH_PAGE_LOCKED\t\t(1U << 12)",
     "PAGE_LOCKED"),
    ("#define PAGEHASH_STATUS_EXITED\t\t1", "#define PAGEHASH_STATUS_GONE\t\t1",
     "STATUS_GONE"),
    ("#define PAGEHASH_TYPE_NAME\t3", "#define PAGEHASH_TYPE_NAME\t3\n#define PAGEHASH_TYPE_X 9",
     "TYPE_X"),
    ("\t__u16 type;\n\t__u16 node;\n};", "\t__u16 type;\n};", None),
    ("\t__u64 reserved[4];\n};", "\t__u64 reserved[4];\n\t__u8 extra;\n};", None),
])
def test_a_changed_header_is_seen(
    compiler: str, tmp_path: Path, old: str, new: str, message: str | None
) -> None:
    """By the comparison (message) or by the compiler (None: asserts and -Wpadded)."""
    text = HEADER.read_text()
    assert text.count(old) >= 1, old
    changed = tmp_path / "pagehash.h"
    changed.write_text(text.replace(old, new, 1))
    if message is None:
        with pytest.raises(subprocess.CalledProcessError):
            compiled(compiler, changed, tmp_path)
    else:
        assert any(message in line for line in differences(*compiled(compiler, changed,
                                                                     tmp_path)))
