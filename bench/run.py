"""`make bench`: the benchmarks by number, beside their limits; see README.md. `run.py --help` tells the rest."""
import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import growth  # noqa: E402
from e2e import durable, files, many, requests  # noqa: E402
from e2e.setup import Setup  # noqa: E402
from lib import rounds  # noqa: E402
from lib.programs import Place  # noqa: E402

BENCHMARKS = {"1": requests.passthrough, "2": requests.router, "3": requests.script, "4": requests.chain,
              "5": durable.accept, "6": durable.deliver, "7": many.connections, "8": files.files}


def smoke(setup, wanted):
    """Each side for a moment: that it works, and counts right, is all that is asked."""
    for name in wanted:
        for case in BENCHMARKS[name](setup):
            begun = time.time()
            for measure in case.sides.values():
                measure()
            print(f"{case.name}: works and counts right ({time.time() - begun:.1f} s)", flush=True)


def main():
    words = argparse.ArgumentParser()
    words.add_argument("which", nargs="*", choices=[*BENCHMARKS, "growth", "memory", []], help="left out: the eight")
    words.add_argument("--full", action="store_true", help="growth: up to ten million journaled messages")
    words.add_argument("--smoke", action="store_true", help="a second each, with the debug build: only whether it works and counts right")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--minutes", type=float, default=15, help="for all of them together")
    words.add_argument("--keep", action="store_true", help="rounds in which others were busy count too: what comes out are no results")
    given = words.parse_args()
    wanted = given.which or list(BENCHMARKS)
    setup = Setup(given.smoke)
    if given.smoke:
        Place.profile = "debug"
    if wanted == ["growth"]:
        return growth.run(setup, given.full, given.smoke)
    if wanted == ["memory"]:
        return growth.memory(setup, given.smoke)
    if given.smoke:
        return smoke(setup, wanted)
    cases = [case for name in wanted for case in BENCHMARKS[name](setup)]
    rounds.run(cases, given.rounds, 60 * given.minutes, given.keep)
    rounds.save("-".join(["e2e", *wanted]), cases)
    missed = rounds.table(cases)
    if given.keep:
        print("\nDisturbed rounds were kept: these are no results.")
    print(f"\n{missed} aims missed")


if __name__ == "__main__":
    main()
