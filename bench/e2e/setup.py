"""What the eight benchmarks have in common: ports, sides, a measured stretch of load, and counting what came."""
import os

from lib.load import hey, wrk
from lib.machine import Meter, free_ports
from lib.programs import BENCH, Bus, Destination

E2E = os.path.join(BENCH, "e2e")
SOAP = "text/xml; charset=utf-8"


class Setup:
    """Ports, the destination, and how long things take. One for all benchmarks of a run."""

    def __init__(self, smoke):
        self.smoke = smoke
        self.seconds = 1 if smoke else 2
        self.port = free_ports(8)
        self.under_test, self.admin, self.to, self.own, self.nobody = range(self.port, self.port + 5)

    def destination(self, port=None):
        return Destination(port or self.to)

    def bus(self, folder, copies=0, before=None, **variables):
        variables = {"TO": self.to, "OTHER": self.to, "OWN": self.own} | variables
        return Bus(os.path.join(E2E, folder), (self.under_test, self.admin), copies, before, **variables)


class Bad(SystemExit):
    """Something was lost, came twice, or was refused: the run ends here."""


def must(holds, what):
    if not holds:
        raise Bad(f"miscounted: {what}")


def loaded(setup, program, connections, body, kind="application/xml", path="/in", paths=1, also=()):
    """Warms up, then measures; gives the figures and how many requests were answered in all."""
    warm = hey(setup.under_test, min(connections, 32), 32 if setup.smoke else 30 * min(connections, 32), body, kind,
               path.replace("%d", "0"))
    meter = Meter(program.pids(), [other.pid for other in also])
    found = wrk(setup.under_test, connections, setup.seconds, body, kind, path, paths, meter)
    spent = meter.read()
    must(found["errors"] == 0, f"{found['errors']} requests failed")
    found |= {"cpu": spent["own"] / found["requests"] * 1e6, "memory": program.memory(), "foreign": spent["foreign"]}
    return found, warm + found["requests"]


def answered(setup, destination, name, answered_to_callers, connections, each=1, bus=None):
    """The callers, the bus and the destination count the same. Requests that wrk breaks off at its end are what may be
    between: the bus brings each to its end, a limit may not."""
    # wrk opens its connections anew, and hey's requests are all answered.
    most = answered_to_callers + connections
    if bus:
        counts = bus.settled()
        received = int(counts["xbus_messages_received_total"])
        must(counts["xbus_messages_failed_total"] == 0, f"{name}: the bus counts failed messages")
        must(counts["xbus_messages_acknowledged_total"] == received, f"{name}: {received} received, not all acknowledged")
        must(answered_to_callers <= received <= most, f"{name}: {answered_to_callers} answers, {received} received")
        seen = destination.wait(received * each, 10)
        must(seen["count"] == received * each, f"{name}: {seen['count']} at the destination, not {received * each}")
    else:
        seen = destination.wait(answered_to_callers * each, 10)
        must(answered_to_callers * each <= seen["count"] <= most * each,
             f"{name}: {seen['count']} at the destination of {answered_to_callers}")


def calls(setup, name, program, connections, body, kind="application/xml", each=1, journalled=False):
    """A side whose destination gets `each` requests a message."""
    def measure():
        with setup.destination() as destination:
            with program() as running:
                destination.reset()
                found, count = loaded(setup, running, connections, body, kind, also=[destination])
                answered(setup, destination, name, count, connections, each, running if journalled else None)
                return found
    return measure


def pair(setup, name, bare, bus, connections, body, kind="application/xml", each=1):
    """The limit's side and the bus's, with the same load."""
    return {"limit": calls(setup, f"{name}, limit", bare, connections, body, kind, each),
            "xbus": calls(setup, f"{name}, xbus", bus, connections, body, kind, each, journalled=True)}
