"""The kernel module and the model of its rules, call for call, on both kernels in QEMU.

By hand, for more: python -m tests.agreement --kernel 6.12 --calls 10000 --seed 1
"""

from __future__ import annotations

import pytest

from tests.agreement.machine import differences, run_scripts
from tests.agreement.script import n_calls, scripts

pytestmark = pytest.mark.kernel

SEED, N_CALLS = 20_250_125, 1000


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_random_calls_do_to_the_module_what_they_do_to_the_model(series: str) -> None:
    made = scripts(SEED, N_CALLS)
    assert sum(map(n_calls, made)) >= N_CALLS
    answers = run_scripts(series, made)
    assert len(answers) == len(made), "the driver ran every script"
    wrong = [difference for script, answer in zip(made, answers, strict=True)
             for difference in differences(script, answer)]
    assert wrong == []
