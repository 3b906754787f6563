"""Run random scripts on a kernel and on models, and show the shortest ones that differ.

    python -m tests.conformance --kernel 6.12 --scans 10000 --seed 1
    python -m tests.conformance --kernel 6.18 --model twin --scans 10000 --most 3

The kernel is this one if it is of that series (root needed; KSM is held for a few seconds at a
time and put back as it was), otherwise Debian's in QEMU. Exit code 0: all observations equal;
1: not; 3: this machine cannot do it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.conformance.compare import MODELLED, MODELS, mismatches, run_on, shortest
from tests.conformance.driver import CannotServeError
from tests.conformance.random_scripts import random_scripts
from tests.conformance.script import Script, n_scans

#: Scans for each time a kernel is booted or held.
SCANS_AT_ONCE = 1000


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kernel", choices=MODELLED, required=True)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=2, help="mismatches to shrink for each model")
    parser.add_argument("--wait", type=float, default=300,
                        help="seconds to wait for KSM while others use it")
    options = parser.parse_args()
    models = options.model or list(MODELS)
    scripts = list(random_scripts(options.seed, options.scans))
    shown: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    done = n_pages = n_observations = n_done = 0
    started = time.monotonic()
    while done < len(scripts):
        chunk: list[Script] = []
        while done + len(chunk) < len(scripts) and sum(map(n_scans, chunk)) < SCANS_AT_ONCE:
            chunk.append(scripts[done + len(chunk)])
        try:
            outcomes = run_on(options.kernel, chunk, options.wait)
        except CannotServeError as error:
            print(f"stopped after {done} of {len(scripts)} scripts: {error}", file=sys.stderr)
            break
        done += len(chunk)
        n_done += sum(map(n_scans, chunk))
        n_observations += sum(len(outcome.observations) for outcome in outcomes)
        n_pages += sum(len(frames) for outcome in outcomes for seen in outcome.observations
                       for frames in seen["frames"].values())
        for model in models:
            for mismatch in mismatches(model, options.kernel, chunk, outcomes):
                wrong[model] += 1
                if shown[model] < options.most:
                    shown[model] += 1
                    print(shortest(mismatch), flush=True)
    for model in models:
        print(f"Linux {options.kernel}, {model}: {done} scripts, {n_done} scans, "
              f"{n_observations} observations, {n_pages} pages compared, {wrong[model]} scripts "
              f"differ ({time.monotonic() - started:.0f} s)")
    return 1 if wrong else 0 if done == len(scripts) else 3


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotServeError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
