"""Benchmark 7: many connections, slow destinations, many routes."""
from lib.machine import Meter
from lib.documents import order
from lib.programs import limit, tool
from lib.rounds import Case, at_least, at_most

from .setup import answered, loaded, must

CONNECTIONS = 1000
ROUTES = 1000


def connections(setup):
    """7: so many callers wait for destinations that take their time. The aim is of connections ÷ delay; the bare proxy
    beside it shows how much of that load, destination and machine leave."""
    callers, routes, each = (50, 50, 2) if setup.smoke else (CONNECTIONS, ROUTES, 8)

    def bus():
        return setup.bus("7-connections", copies=routes)

    def proxy():
        return limit("proxy", "streaming", setup.under_test, setup.to)

    def side(program, of_bus, delay, measure):
        """What `measure` finds with this program before a destination that takes so many milliseconds."""
        def run():
            with setup.destination() as destination:
                destination.reset(delay)
                with program() as running:
                    found, count, unsure = measure(running, destination)
                    answered(setup, destination, "7", count, unsure, bus=running if of_bus else None)
                    found |= {"of limit": found["rate"] / (callers * 1e3 / delay), "memory": running.most_memory()}
                    return found | ({"start": running.started * 1e3} if of_bus else {})
        return run

    def slow(spread):
        """Each caller sends a known number of requests, so that the rate has no ragged edge."""
        def measure(program, destination):
            meter = Meter(program.pids(), destination.pids())
            found = tool("load", setup.under_test, "/in/r{lane}", callers, 120, callers * each, 1024, callers, spread, meter=meter)
            spent = meter.read()
            must(not found["errors"] and found["requests"] == callers * each, f"7: {found}")
            return found | {"cpu": spent["own"] / found["requests"] * 1e6, "foreign": spent["foreign"]}, found["requests"], 0
        return measure

    def quick(program, destination):
        found, count = loaded(setup, program, callers, order(1024), path="/in/r%d", paths=routes, also=[destination])
        return found, count, callers

    def sides(delay, measure):
        return {"limit": side(proxy, False, delay, measure), "xbus": side(bus, True, delay, measure)}

    slowly = [at_least("rate, of connections ÷ delay", 0.98, lambda case: case.of("xbus", "of limit")),
              at_most("resident MiB at the most", 64, lambda case: case.of("xbus", "memory"))]
    starts = [at_most("ms to start", 200, lambda case: case.of("xbus", "start"))]
    name = f"7 {callers} connections, {routes} routes"
    yield Case(f"{name}, 500 ms", sides(500, slow(0)), slowly + starts)
    yield Case(f"{name}, 500 ms, spread", sides(500, slow(500)), slowly)
    yield Case(f"{name}, 30 ms", sides(30, quick),
               [at_most("resident MiB at the most", 64, lambda case: case.of("xbus", "memory"))])
