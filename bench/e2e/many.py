"""Benchmark 7: many connections, slow destinations, many routes."""
from lib.machine import Meter
from lib.documents import order
from lib.programs import tool
from lib.rounds import Case, at_least, at_most

from .setup import answered, loaded, must

CONNECTIONS = 1000
ROUTES = 1000


def connections(setup):
    """7: so many callers wait for destinations that take their time; the limit is connections ÷ delay."""
    callers, routes, each = (50, 50, 2) if setup.smoke else (CONNECTIONS, ROUTES, 8)

    def slow():
        """Each caller sends a known number of requests, so that the rate has no ragged edge."""
        delay = 500
        with setup.destination() as destination:
            destination.reset(delay)
            with setup.bus("7-connections", copies=routes) as program:
                meter = Meter(program.pids(), destination.pids())
                found = tool("load", setup.under_test, "/in/r{lane}", callers, 120, callers * each, 1024, meter=meter)
                spent = meter.read()
                must(not found["errors"] and found["requests"] == callers * each, f"7: {found}")
                answered(setup, destination, "7", found["requests"], 0, bus=program)
                return found | {"of limit": found["rate"] / (callers * 1e3 / delay), "cpu": spent["own"] / found["requests"] * 1e6,
                                "memory": program.most_memory(), "start": program.started * 1e3, "foreign": spent["foreign"]}

    def quick():
        with setup.destination() as destination:
            destination.reset(30)
            with setup.bus("7-connections", copies=routes) as program:
                found, count = loaded(setup, program, callers, order(1024), path="/in/r%d", paths=routes, also=[destination])
                answered(setup, destination, "7", count, callers, bus=program)
                return found | {"of limit": found["rate"] / (callers * 1e3 / 30), "memory": program.most_memory(),
                                "start": program.started * 1e3}

    yield Case(f"7 {callers} connections, {routes} routes, 500 ms", {"xbus": slow},
               [at_least("rate, of connections ÷ delay", 0.98, lambda case: case.of("xbus", "of limit")),
                at_most("resident MiB at the most", 64, lambda case: case.of("xbus", "memory")),
                at_most("ms to start", 200, lambda case: case.of("xbus", "start"))])
    yield Case(f"7 {callers} connections, {routes} routes, 30 ms", {"xbus": quick},
               [at_most("resident MiB at the most", 64, lambda case: case.of("xbus", "memory"))])
