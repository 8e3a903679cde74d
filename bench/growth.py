"""`make bench BENCH=growth`: what a message costs as work grows, and `BENCH=memory`: what the bus holds.

Cost is CPU of the bus a message (own CPU, so that what others take of the machine disturbs it least) beside the time that one caller
waits. Both should not rise with routes, lanes or journal; with the body's size they rise in proportion."""
import os
import time

from e2e.setup import must
from lib import machine
from lib.documents import order
from lib.load import hey
from lib.machine import Meter
from lib.programs import BENCH, tool, until
from lib.plot import line_chart
from lib.rounds import number

MIB = 1 << 20
LONGEST = 50 * MIB


def cost(setup, program, destination, requests, send):
    """Microseconds of the bus's CPU a message, of the clock a message, and what others took, over so many messages."""
    meter = Meter(program.pids(), destination.pids())
    begun = time.time()
    send(requests, meter)
    took = time.time() - begun
    spent = meter.read()
    return {"cpu": spent["own"] / requests * 1e6, "clock": took / requests * 1e6, "foreign": spent["foreign"], "memory": program.memory()}


def quietest(measure, times):
    """Of several tries the median one by CPU; more others' CPU than allowed in all of them is shown beside it."""
    found = sorted((measure() for _ in range(times)), key=lambda one: one["cpu"])
    return found[len(found) // 2]


def routes(setup, tops):
    """Requests over all routes in turn."""
    for count in tops:
        with setup.destination() as destination, setup.bus("7-connections", copies=count) as program:
            send = lambda requests, meter: must(
                tool("load", setup.under_test, "/in/r{lane}", min(count, 32), 600, requests, 1024, count, meter=meter)["errors"] == 0, "errors")
            send(1000, Meter())
            yield count, quietest(lambda: cost(setup, program, destination, setup.messages, send), setup.tries) | {"start": program.started}


def lanes(setup, tops):
    """A queue with so many keys, each with messages in turn, accepted and delivered."""
    for count in tops:
        with setup.destination() as destination, setup.destination(setup.own), setup.bus("6-deliver") as program:
            messages, callers = max(setup.messages, count), min(count, 32)

            def send(requests, meter):
                found = tool("load", setup.under_test, "/in", callers, 600, requests, 1024, count, meter=meter)
                must(found["errors"] == 0, "errors")
                until(lambda: program.depth("deliver.others") + program.depth("deliver.own") == 0 and True, "lanes that drain", 600)
            yield count, quietest(lambda: cost(setup, program, destination, messages, send), setup.tries)


def journal(setup, tops):
    """A store with so many journaled messages: to open it, and a message beyond."""
    for count in tops:
        program = setup.bus("1-passthrough", before=lambda folder: tool("journal", os.path.join(folder, "data"), count))
        with setup.destination() as destination, program:
            send = lambda requests, meter: hey(setup.under_test, 32, requests // 32 * 32, order(1024), meter=meter)
            send(960, Meter())
            yield count, quietest(lambda: cost(setup, program, destination, setup.messages // 32 * 32, send), setup.tries) | {"start": program.started}


def bodies(setup, tops):
    """Passed through, by one caller."""
    for size in tops:
        with setup.destination() as destination, setup.bus("1-passthrough", MAX_BODY="64MiB") as program:
            requests = max(5, min(setup.messages, 200 * MIB // size))
            body = order(size)
            send = lambda count, meter: hey(setup.under_test, 1, count, body, meter=meter)
            send(3, Meter())
            yield size, quietest(lambda: cost(setup, program, destination, requests, send), setup.tries)


SERIES = {
    "routes": (routes, [1, 10, 100, 1000], [], "routes"),
    "lanes": (lanes, [1, 10, 100, 1000, 10_000], [], "lanes"),
    "journal": (journal, [10, 1000, 100_000, 1_000_000], [10_000_000], "journaled messages"),
    "bodies": (bodies, [1 << 10, 10 << 10, 100 << 10, MIB, 10 * MIB, LONGEST], [], "bytes of a body"),
}


def run(setup, full, smoke):
    setup.messages, setup.tries = (64, 1) if smoke else (10_000, 3)
    charts = []
    for name, (measure, tops, further, what) in SERIES.items():
        print(f"\n| {what} | CPU µs a message | clock µs a message | resident MiB | s to start | others' CPU |\n|---|---|---|---|---|---|", flush=True)
        points = []
        for count, found in measure(setup, tops[:2] if smoke else tops + (further if full else [])):
            points.append((count, found["cpu"]))
            print(f"| {count:,} | {found['cpu']:.1f} | {found['clock']:.1f} | {found['memory']:.0f} | {number(found.get('start'), 2)} "
                  f"| {found['foreign']:.0%}{'' if found['foreign'] <= machine.FOREIGN else ', no result'} |", flush=True)
        charts.append((what, points))
    folder = os.path.join(BENCH, "results")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "growth.svg")
    with open(path, "w") as out:
        out.write(line_chart(charts, "own CPU, µs a message", machine.described()))
    print(f"\nplotted: {path}")


def memory(setup, smoke):
    """What the bus holds, idle and under load, and what it has grown by after a million messages and with a million queued."""
    million = 2000 if smoke else 1_000_000
    routes_, callers = (50, 50) if smoke else (1000, 1000)
    print(f"\n{machine.described()}\n\n| state of the bus | resident MiB | the most there was | wanted |\n|---|---|---|---|")

    def row(what, program, wanted):
        print(f"| {what} | {program.memory():.0f} | {program.most_memory():.0f} | {wanted} |", flush=True)

    with setup.bus("1-passthrough") as program:
        row("idle, one route", program, "at most 25")
    with setup.destination() as destination, setup.bus("7-connections", copies=routes_) as program:
        row(f"idle, {routes_} routes; started in {program.started * 1e3:.0f} ms (wanted: 200)", program, "")
        destination.reset(100)
        tool("load", setup.under_test, "/in/r{lane}", callers, 60, callers * 20, 1024)
        row(f"{callers} connections over {routes_} routes, after 20 messages each", program, "at most 64")
        # The pool has closed its connections by then, and the allocator has had its time.
        time.sleep(1 if smoke else 12)
        row("the callers gone for 12 s", program, "")
    with setup.destination(), setup.bus("1-passthrough") as program:
        send = lambda count: tool("load", setup.under_test, "/in", 32, 600, count, 1024)
        send(million // 20)
        row(f"passed {million // 20:,} messages", program, "")
        for part in range(1, 5):
            send(million // 4)
            row(f"{million // 4 * part:,} more", program, "as before")
    with setup.bus("5-accept") as program:
        for part in range(1, 5):
            tool("load", setup.under_test, "/in", 128, 1200, million // 4, 1024)
            row(f"{million // 4 * part:,} messages of 1 KiB queued", program, "bounded")
        must(program.settled()["xbus_queue_depth"] == million, "not all are queued")
