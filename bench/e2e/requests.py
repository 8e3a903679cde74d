"""Benchmarks 1 to 4: requests that are answered when their destinations have answered."""
import xml.etree.ElementTree as ElementTree

from lib.documents import order
from lib.programs import limit, post
from lib.rounds import Case, at_least, at_most

from .setup import SOAP, calls, must, pair

KIB = 1024


def passthrough(setup):
    """1: a request is handed on, and its answer back; beside a bare streaming proxy."""
    for size, connections in [(1, 32)] if setup.smoke else [(size, c) for c in (32, 1) for size in (1, 10, 100)]:
        body = order(size * KIB)
        name = f"1 passthrough, {size} KiB, c={connections}"
        sides = pair(setup, name, lambda: limit("proxy", "streaming", setup.under_test, setup.to),
                     lambda: setup.bus("1-passthrough"), connections, body)
        if connections > 1:
            aims = [at_least("rate, of the bare proxy", 0.8, lambda case: case.ratio("xbus", "limit")),
                    at_most("p99, of the bare proxy", 1.5, lambda case: case.ratio("xbus", "limit", "p99"))]
        else:
            # The mean of a closed loop with one caller is one over its rate.
            added = lambda case: 1e6 / case.of("xbus", "rate") - 1e6 / case.of("limit", "rate")
            aims = [at_most("µs added to a request", 60, added)]
        yield Case(name, sides, aims)


def router(setup):
    """2: an element of a SOAP body says where a message goes; beside hyper and quick-xml that stop reading there."""
    for size in (1,) if setup.smoke else (1, 10, 100):
        name = f"2 route by an element, {size} KiB, c=32"
        sides = pair(setup, name, lambda: limit("router", setup.under_test, setup.to, setup.to),
                     lambda: setup.bus("2-router"), 32, order(size * KIB, soap=True), SOAP)
        aims = [at_least("rate, of the limit", 0.75, lambda case: case.ratio("xbus", "limit"))]
        if size == 1:
            sides["xbus passthrough"] = calls(setup, name, lambda: setup.bus("1-passthrough"), 32, order(KIB), journalled=True)
            aims.append(at_least("rate, of our own passthrough", 0.9, lambda case: case.ratio("xbus", "xbus passthrough")))
        yield Case(name, sides, aims)


def same_invoice(setup):
    """Limit and bus make the same of an order: the destination sends back what it was sent."""
    made = []
    for program in (lambda: limit("script", setup.under_test, setup.to), lambda: setup.bus("3-script")):
        with setup.destination(), program():
            answer = post(f"http://127.0.0.1:{setup.under_test}/in", order(KIB), "application/xml")
            made.append(ElementTree.canonicalize(answer))
    must("<gross>14161</gross>" in made[0] and made[0] == made[1], f"3: not the same invoices: {made}")


def script(setup):
    """3: a script makes another document of each; beside hyper, quick-xml and rhai put together by hand."""
    if setup.smoke:
        same_invoice(setup)
    for size in (1,) if setup.smoke else (1, 10):
        name = f"3 XML by script, {size} KiB, c=32"
        yield Case(name, pair(setup, name, lambda: limit("script", setup.under_test, setup.to), lambda: setup.bus("3-script"),
                              32, order(size * KIB)),
                   [at_least("rate, of the limit", 0.7, lambda case: case.ratio("xbus", "limit"))])


def chain(setup):
    """4: two invokes, a script, two distributes; beside the same written by hand."""
    name = "4 chain, 1 KiB, c=32"
    yield Case(name, pair(setup, name, lambda: limit("chain", setup.under_test, setup.to), lambda: setup.bus("4-chain"),
                          32, order(KIB), each=4),
               [at_least("rate, of the limit", 0.7, lambda case: case.ratio("xbus", "limit"))])
