"""More scripts than CI has: python -m tests.agreement --kernel 6.12 --calls 10000 --seed 1."""

from __future__ import annotations

import argparse
import sys

from tests.agreement.machine import differences, run_scripts
from tests.agreement.script import n_calls, scripts


def main() -> int:
    """Print what differs; 1 if anything does."""
    parser = argparse.ArgumentParser(prog="python -m tests.agreement")
    parser.add_argument("--kernel", choices=("6.1", "6.12"), required=True)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    made = scripts(options.seed, options.calls)
    answers = run_scripts(options.kernel, made, timeout_s=60 + options.calls)
    n_wrong = 0
    for number, (script, answer) in enumerate(zip(made, answers, strict=True)):
        wrong = differences(script, answer)
        n_wrong += len(wrong)
        # What follows the first is often its consequence.
        for difference in wrong[:1]:
            print(f"script {number}: {difference}")
    print(f"{len(made)} scripts, {sum(map(n_calls, made))} calls, "
          f"{sum(map(len, made))} operations: {n_wrong} differences")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
