"""Scripts of the conformance tests without a kernel: on the models, and the harness itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.conformance.casebook import summary, unexpected, written
from tests.conformance.cases import CASES
from tests.conformance.compare import MODELLED, MODELS
from tests.conformance.random_scripts import random_script, random_scripts
from tests.conformance.script import (
    Script,
    ScriptError,
    checksum,
    compile_script,
    content_bytes,
    content_key,
    first_difference,
    n_observations,
    repaired,
    run_script,
    slot,
    validate,
)
from tests.conformance.shrink import shrunk
from tests.conformance.vectors import VECTORS
from tests.oracles.kernel_ksm import Machine as Twin

BOOK = VECTORS | CASES
PAIR: Script = (["spawn", 1], ["map", 1, slot(0), 4, "small"], ["write", 1, slot(0), [5, 5, 6, 7]],
                ["advise", 1, slot(0), 4], ["scan"], ["scan"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", MODELLED)
def test_the_models_show_what_was_worked_out_by_hand(kernel: str, model: str) -> None:
    wrong = {}
    for name, write in BOOK.items():
        script, expected = written(write, kernel)
        found = unexpected(run_script(MODELS[model](kernel), script), expected)
        if found is not None:
            wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("kernel", MODELLED)
def test_all_models_are_equal_on_random_scripts(kernel: str) -> None:
    for script in random_scripts(7, 100):
        told = [run_script(make(kernel), script) for make in MODELS.values()]
        for other in told[1:]:
            assert first_difference(told[0], other) is None


def test_random_scripts_are_valid_and_the_same_for_the_same_seed() -> None:
    for number in range(30):
        script = random_script(3, number)
        validate(script)
        assert script == random_script(3, number)
        assert script != random_script(4, number)
        assert n_observations(script) >= 5


def test_random_scripts_get_to_chains_zero_pages_skips_breaks_refusals_and_stale_pages() -> None:
    most: dict[str, int] = {}
    for script in random_scripts(1, 400):
        for seen in run_script(Twin("6.18"), script):
            values = summary(seen)
            values["errors"] = len(values["errors"])
            merged = sum(values["ksm_merging_pages"].values())
            values["items of the dead"] = (values["pages_shared"] + values["pages_sharing"]
                                           - merged)
            for name, value in values.items():
                if isinstance(value, int):
                    most[name] = max(most.get(name, 0), value)
    for name in ("pages_shared", "pages_unshared", "pages_volatile", "pages_skipped",
                 "ksm_zero_pages", "stable_node_chains", "cow_ksm", "errors",
                 "items of the dead"):
        assert most[name] > 0, name


@pytest.mark.parametrize(("script", "what"), [
    ([["scan"], ["write", 1, slot(0), [1]]], "not alive"),
    ([*PAIR, ["write", 1, slot(0) + 3, [1, 2]]], "not mapped"),
    ([*PAIR, ["map", 1, slot(0) + 100, 4, "small"]], "mapped already"),
    ([*PAIR, ["fork", 1, 1]], "alive already"),
    ([*PAIR, ["run", 0], ["scan"]], "unless run is 1"),
    ([*PAIR, ["exit", 0]], "process 0 stays"),
    ([*PAIR, ["knob", "run", 1]], "not a knob"),
    ([*PAIR, ["mremap", 1, slot(0), 4, slot(1) + 1]], "place within a huge page"),
    ([["spawn", 1], ["map", 1, slot(0), 512, "huge"], ["read", 1, slot(0), 1]], "not read"),
    ([["scan", 1]], "0 arguments"),
    ([["halt"]], "unknown step")])
def test_a_step_that_cannot_be_done_is_named(script: Script, what: str) -> None:
    with pytest.raises(ScriptError, match=what):
        validate(script)


def test_what_is_left_of_a_script_is_valid() -> None:
    for number in range(20):
        script = random_script(5, number)
        rest = repaired(script[::2])
        validate(rest)
        assert len(rest) <= len(script)


def test_contents_are_the_kernels_to_hash_and_to_order() -> None:
    # Computed by the kernel's own function for the zero page.
    assert checksum(0) == 0x32D8BBDB
    for low, high in ((0, 1), (1, 2), (3, 999)):
        assert (content_key(low) < content_key(high)) == (content_bytes(low) < content_bytes(high))
    assert len(content_bytes(9)) == 4096


def test_a_script_is_written_for_the_driver_in_short() -> None:
    text = compile_script([["write", 1, 16, [4] * 300 + [7, 8, 9, 2]]], "x")
    assert text == "script x\n0 write 1 16 304 4x300 7+3 2\nend\n"


class _ForgetsToSkip(Twin):
    """A model with a mistake: smart scan is always off."""

    def set_knob(self, name: str, value: int) -> str | None:
        return super().set_knob(name, 0 if name == "smart_scan" else value)

    def spawn(self, p: int) -> None:
        super().set_knob("smart_scan", 0)
        super().spawn(p)


def test_a_mistake_is_found_and_shown_by_a_script_of_few_steps() -> None:
    def fails(candidates: Sequence[Script]) -> list[bool]:
        return [first_difference(run_script(Twin("6.18"), one),
                                 run_script(_ForgetsToSkip("6.18"), one)) is not None
                for one in candidates]

    failing = next(script for script in (random_script(1, i) for i in range(20))
                   if fails([script])[0])
    short = shrunk(failing, fails)
    assert fails([short]) == [True]
    # A page, and the five scans until it is skipped.
    assert len(short) <= 9 < len(failing)
    assert sum(len(step[3]) for step in short if step[0] == "write") == 1


def test_a_difference_says_where_it_is() -> None:
    told = run_script(Twin("6.18"), PAIR)
    other = run_script(Twin("6.18"), PAIR)
    assert first_difference(told, other) is None
    other[1]["counters"]["pages_sharing"] = 2
    found = first_difference(told, other)
    assert found is not None
    assert "observation 1 (step 5): counters.pages_sharing: observed 1, expected 2" in found
    assert first_difference(told, other[:1]) == "2 observations, 1 expected"
    other = run_script(Twin("6.18"), PAIR)
    other[0]["frames"][1][slot(0) + 2] = 0
    assert "frames.1.0x100002: observed 2, expected 0" in str(first_difference(told, other))
