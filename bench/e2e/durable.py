"""Benchmarks 5 and 6: messages that are kept before they are acknowledged, and delivered later, in order."""
import os
import shutil
import tempfile
from functools import partial

from lib.documents import order
from lib.machine import Meter
from lib.programs import Place, limit, tool, until
from lib.rounds import Case, at_least, at_most

from .setup import loaded, must

KIB = 1024
LANES = 32
# Of 10,000 requests to a destination.
FAILING = 100


def raw_log(setup, how="synced"):
    """One file for all runs: making it is nobody's to pay."""
    return limit("log", setup.under_test, os.path.join(Place.work(), "log.bin"), how)


def accept(setup):
    """5: a message is acknowledged when it is synced; beside a raw log with group commit behind HTTP."""
    body = order(KIB)

    def raw(connections, how="synced"):
        with raw_log(setup, how) as program:
            return loaded(setup, program, connections, body)[0]

    def bus(connections, **variables):
        # Nobody listens at its destination: what is accepted stays and can be counted.
        with setup.bus("5-accept", **variables) as program:
            found, count = loaded(setup, program, connections, body)
            counts = program.settled()
            accepted = int(counts["xbus_messages_acknowledged_total"])
            must(count <= accepted <= count + connections, f"5: {count} answers, {accepted} accepted")
            must(counts["xbus_queue_depth"] == accepted, f"5: {accepted} accepted, {counts['xbus_queue_depth']:.0f} queued")
            if setup.smoke and not variables:
                # It is there, all of it, once the destination is.
                with setup.destination() as destination:
                    until(lambda: program.metrics()["xbus_queue_depth"] == 0, "the queue that drains")
                    seen = destination.seen()
                    must(seen["count"] == accepted, f"5: {accepted} accepted, {seen['count']} delivered")
            return found

    def in_memory(connections):
        folder = tempfile.mkdtemp(prefix="xbus-bench-", dir="/dev/shm")
        try:
            return bus(connections, STORE=folder)
        finally:
            shutil.rmtree(folder)

    for connections in (32,) if setup.smoke else (1, 32, 128):
        aims = []
        if connections >= 32:
            aims = [at_least("rate, of the raw log", 0.6, lambda case: case.ratio("xbus", "limit")),
                    at_least("rate, of our own without sync", 0.8, lambda case: case.ratio("xbus", "xbus, store in memory"))]
        sides = {"limit": raw, "limit, not synced": partial(raw, how="unsynced"), "xbus": bus, "xbus, store in memory": in_memory}
        yield Case(f"5 durable accept, 1 KiB, c={connections}", {name: partial(side, connections) for name, side in sides.items()}, aims)


def numbered(setup, program, port, path, also=()):
    """Callers of which each fills a lane; the figures of acceptance, and the meter that goes on."""
    meter = Meter(program.pids(), [other.pid for other in also])
    return tool("load", port, path, LANES, setup.seconds, 10**9, KIB, meter=meter), meter


def deliver(setup):
    """6: messages are kept, and delivered in the order of their lanes, of which one may have a destination that is down;
    beside the raw log that only keeps them and the bare client that only delivers."""

    def keep():
        with raw_log(setup) as program:
            found, meter = numbered(setup, program, setup.under_test, "/in")
            spent = meter.read()
            return found | {"cpu": spent["own"] / found["requests"] * 1e6, "memory": program.memory(), "foreign": spent["foreign"]}

    def client():
        with setup.destination() as destination:
            destination.reset(failing=FAILING)
            found, meter = numbered(setup, destination, setup.to, "/numbered")
            seen = destination.seen()
            must(seen["count"] == found["requests"] and seen["skipped"] + seen["repeated"] == 0, f"6: {seen} of {found}")
            return found | {"foreign": meter.read()["foreign"]}

    def accept_only():
        with setup.bus("6-deliver") as program:
            found, meter = numbered(setup, program, setup.under_test, "/in")
            spent = meter.read()
            depth = program.settled()["xbus_queue_depth"]
            must(depth == found["requests"] and not found["errors"], f"6: {depth} queued of {found}")
            return found | {"cpu": spent["own"] / depth * 1e6, "memory": program.memory(), "foreign": spent["foreign"]}

    def drain(all_live):
        with setup.destination() as others, setup.destination(setup.own) as own:
            others.reset(failing=FAILING)
            own.reset(failing=FAILING)
            if not all_live:
                own.end()
            with setup.bus("6-deliver") as program:
                also = [others, own] if all_live else [others]
                found, meter = numbered(setup, program, setup.under_test, "/in", also)
                must(not found["errors"], f"6: {found}")
                counts = until(lambda: drained(program, "deliver.others"), "the healthy lanes to drain")
                spent = meter.read()
                seen = in_order(others, LANES - 1)
                healthy = seen["count"]
                if all_live:
                    until(lambda: drained(program, "deliver.own"), "the lane with a destination of its own to drain")
                    blocked = in_order(own, 1)["count"]
                else:
                    blocked = program.depth("deliver.own")
                    # The destination is there again: what waited comes, in order.
                    with setup.destination(setup.own) as again:
                        until(lambda: drained(program, "deliver.own"), "the blocked lane to drain")
                        must(in_order(again, 1)["count"] == blocked, f"6: {blocked} waited, {again.seen()}")
                must(healthy + blocked == found["requests"], f"6: {found['requests']} accepted, {healthy} and {blocked} delivered")
                return {"rate": healthy / seen["seconds"], "accepted": found["rate"], "p50": found["p50"], "p99": found["p99"],
                        "cpu": spent["own"] / found["requests"] * 1e6, "memory": program.memory(), "errors": found["errors"],
                        "disorder": seen["repeated"] + seen["skipped"], "foreign": spent["foreign"]}

    def in_order(destination, lanes):
        seen = destination.seen()
        must(seen["lanes"] == lanes and seen["repeated"] + seen["skipped"] == 0, f"6: order violated: {seen}")
        return seen

    def drained(program, queue):
        return program.depth(queue) == 0 and program.metrics()

    slower = lambda found: min(found["raw log"]["rate"], found["bare client"]["rate"])
    live, dead = "xbus, delivers", "xbus, one dead"
    yield Case(f"6 accept and deliver, {LANES} lanes, 1 % failures",
               {"raw log": keep, "bare client": client, "xbus, accepts": accept_only,
                live: partial(drain, True), dead: partial(drain, False)},
               [at_least("delivered, of the slower limit", 0.5, lambda case: case.median(lambda found: found[live]["rate"] / slower(found))),
                at_least("accepted while draining, of accepting alone", 0.5,
                         lambda case: case.median(lambda found: found[live]["accepted"] / found["xbus, accepts"]["rate"])),
                at_least("healthy lanes with one blocked, of all healthy", 0.9, lambda case: case.ratio(dead, live)),
                at_most("order violations", 0, lambda case: max(found[side]["disorder"] for found in case.clean for side in (live, dead)))])
