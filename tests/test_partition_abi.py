"""planner/partitions/abi.py is the header: the compiler's view of it against the dtypes."""

from __future__ import annotations

import os
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from planner.ksm import selective
from planner.partitions import REFUSAL_RULES, Refusal, abi
from tests import test_abi
from tests.conftest import REPOSITORY
from tests.test_abi import Layout, compiled, constants_of

compiler = test_abi.compiler

HEADER = REPOSITORY / "kmod/include/uapi/planner/ksm_partition.h"
PREFIX = "ksm_partition"
#: Constants of these families are members of an enum.
FAMILIES: dict[str, type[IntFlag] | type[IntEnum]] = {
    "REFUSED_": abi.Refusal, "COST_": abi.Cost, "IS_": abi.State,
}


def differences(layout: Layout, constants: dict[str, int]) -> list[str]:
    """Where the compiler and abi.py disagree."""
    wrong = []
    for name, seen in layout.items():
        dtype = getattr(abi, name.upper())
        mine = (dtype.itemsize, {field: (int(at), kind.itemsize)
                                 for field, (kind, at, *_) in dtype.fields.items()})
        if seen != mine:
            wrong.append(f"struct {name}: {seen} is not {mine}")
    for name, value in constants.items():
        family = next((prefix for prefix in FAMILIES if name.startswith(prefix)), "")
        members = FAMILIES[family].__members__ if family else {}
        here = getattr(abi, name, members.get(name.removeprefix(family)))
        if here is None or int(here) != value:
            wrong.append(f"{name}: {value:#x} is not {here}")
    names = set(constants)
    for family, kind in FAMILIES.items():
        wrong += [f"{family}{member} is not in the header" for member in kind.__members__
                  if family + member not in names]
    return wrong


def test_every_size_offset_and_constant_equals_the_header(
    compiler: str, tmp_path: Path
) -> None:
    layout, constants = compiled(compiler, HEADER, tmp_path, PREFIX)
    assert sorted(layout) == ["counters", "counts", "open", "range", "unlink"]
    assert len(constants) > 40
    assert differences(layout, constants) == []


@pytest.mark.parametrize(("old", "new"), [
    ("\t__u64 n_merged;\n\t__u64 n_candidates;", "\t__u64 n_candidates;\n\t__u64 n_merged;"),
    ("#define KSM_PARTITION_REFUSED_BUSY\t\t10", "#define KSM_PARTITION_REFUSED_BUSY\t\t9"),
    ("#define KSM_PARTITION_COST_WALK\t\t0", "#define KSM_PARTITION_COST_STROLL\t0"),
])
def test_a_changed_header_is_seen(
    compiler: str, tmp_path: Path, old: str, new: str
) -> None:
    text = HEADER.read_text()
    assert text.count(old) == 1, old
    changed = tmp_path / "ksm_partition.h"
    changed.write_text(text.replace(old, new))
    assert differences(*compiled(compiler, changed, tmp_path, PREFIX)) != []


def test_flags_of_the_model_are_those_of_the_module() -> None:
    assert (selective.KSM_SYNC, selective.KSM_CREAT, selective.KSM_EXCL) == (
        abi.KSM_SYNC, abi.KSM_CREAT, abi.KSM_EXCL)
    names = constants_of(HEADER.read_text(), "KSM")
    assert {"SYNC", "CREAT", "EXCL"} <= set(names)
    text = HEADER.read_text()
    for name in ("KSM_SYNC", "KSM_CREAT", "KSM_EXCL"):
        assert f"#define {name}\t{getattr(abi, name):#x}" in text
    assert abi.KSM_SYNC & abi.KSM_CREAT & abi.KSM_EXCL & os.O_ACCMODE == 0


def test_every_refusal_is_explained() -> None:
    assert set(REFUSAL_RULES) == set(Refusal)
    assert len(Refusal) == abi.REFUSED_N <= abi.REFUSED_MAX
    assert len(abi.Cost) == abi.COST_N <= abi.COST_MAX
    assert sum(abi.State) == abi.IS_ALL
