"""Rounds: the sides of a case in turn, disturbed rounds thrown away and repeated, medians of what is left; and the table."""
import json, os, statistics, sys, time

from . import machine
from .programs import BENCH


class Case:
    """One row of a benchmark: sides by name, each a function that measures and gives a dict with `rate`, `foreign` and what else there is.

    `aims`: functions from a side's name to its list of rounds, to (what, value, at least or at most, bound)."""

    def __init__(self, name, sides, aims=(), unit="req/s"):
        self.name, self.sides, self.aims, self.unit = name, sides, list(aims), unit
        self.clean, self.thrown = [], 0

    def of(self, side, key):
        """The median over rounds."""
        values = [found[side][key] for found in self.clean if key in found[side]]
        return statistics.median(values) if values else None

    def median(self, of_round):
        """The median over rounds of what `of_round` makes of one: sides by name."""
        return statistics.median(of_round(found) for found in self.clean)

    def ratio(self, side, other, key="rate"):
        """The median of the ratios within a round."""
        return self.median(lambda found: found[side][key] / found[other][key])


def at_least(what, bound, value):
    return lambda case: (what, value(case), ">=", bound)


def at_most(what, bound, value):
    return lambda case: (what, value(case), "<=", bound)


def run(cases, rounds, seconds, keep=False):
    """Measures, one round of each case after the other, until all have theirs or the time is up; a case that was disturbed
    twice as often as it has rounds is left. `keep`: disturbed rounds count too."""
    end = time.time() + seconds
    while time.time() < end:
        left = [case for case in cases if len(case.clean) < rounds and case.thrown < 2 * rounds]
        if not left:
            break
        for case in left:
            if time.time() > end:
                break
            names = list(case.sides)
            turn = (len(case.clean) + case.thrown) % len(names)
            if not keep:
                machine.wait_for_quiet()
            found = {name: case.sides[name]() for name in names[turn:] + names[:turn]}
            if not keep and max(side["foreign"] for side in found.values()) > machine.FOREIGN:
                case.thrown += 1
            else:
                case.clean.append(found)
            print(f"{case.name}: {len(case.clean)} rounds, {case.thrown} thrown away", file=sys.stderr, flush=True)


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def shown(case):
    """Lines of the table, and whether each aim was reached."""
    lines, outcomes = [], []
    for side in case.sides:
        of = lambda key: case.of(side, key)
        waits = "" if of("p50") is None else f"{of('p50'):.2f} / {of('p99'):.2f}"
        first = list(case.sides)[0]
        ratio = "" if side == first or of("rate") is None else f"{case.ratio(side, first):.2f}"
        lines.append(f"| {case.name} | {side} | {len(case.clean)} | {number(of('rate'))} | {ratio} | {waits} "
                     f"| {number(of('cpu'), 1)} | {number(of('memory'))} | {number(of('errors'))} |")
    for aim in case.aims:
        what, value, sign, bound = aim(case)
        reached = value >= bound if sign == ">=" else value <= bound
        outcomes.append((reached, f"| {case.name} | {what} | {value:.3g} | {'at least' if sign == '>=' else 'at most'} {bound:g} "
                                  f"| {'reached' if reached else '**missed**'} |"))
    return lines, outcomes


def table(cases):
    """Prints everything, missed aims first; gives how many aims were missed."""
    print(f"\n{machine.described()}\n")
    missing = [case.name for case in cases if not case.clean]
    lines, outcomes = [], []
    for case in cases:
        if case.clean:
            more, of_case = shown(case)
            lines += more
            outcomes += of_case
    print("| benchmark | side | rounds | a second | of the first | p50 / p99 ms | own CPU µs/message | resident MiB | errors |\n"
          "|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    print("\n| benchmark | aim | measured | wanted | |\n|---|---|---|---|---|")
    print("\n".join(text for _, text in sorted(outcomes, key=lambda outcome: outcome[0])))
    thrown = sum(case.thrown for case in cases)
    foreign = [side["foreign"] for case in cases for found in case.clean for side in found.values()]
    if foreign:
        print(f"\n{thrown} rounds thrown away (over {machine.FOREIGN:.0%} of the CPU was others'); in those that count others had "
              f"{statistics.median(foreign):.1%} in the median, {max(foreign):.1%} at most.")
    if missing:
        print(f"No clean round, so no figures: {'; '.join(missing)}. The machine is too busy to measure on.")
    return sum(not reached for reached, _ in outcomes)


def save(name, cases):
    """Every round, for later questions."""
    folder = os.path.join(BENCH, "results")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name + ".json"), "w") as out:
        json.dump({"machine": machine.described(), "cases": {case.name: {"rounds": case.clean, "thrown": case.thrown} for case in cases}}, out)
