"""Benchmark 8: files through a route to files."""
import os
import shutil
import tempfile
import time

from lib.machine import Meter
from lib.programs import Place, tool, until
from lib.rounds import Case, at_least

from .setup import must

SIZE = 4096


def files(setup):
    """8: each file is read, written beside its place, synced, and renamed; beside the loop that does only that."""
    count = 200 if setup.smoke else 10_000

    def right(out, done):
        """Every file is there, whole, and its source out of the way."""
        names = sorted(os.listdir(out))
        must(len(names) == count, f"8: {len(names)} files of {count}")
        for name in names:
            with open(os.path.join(out, name)) as file:
                content = file.read()
            must(content.startswith(name[:6] + "\n") and len(content) == SIZE, f"8: {name} is not what it was")
        must(len(os.listdir(done)) == count, "8: sources are missing")

    def loop():
        folder = tempfile.mkdtemp(dir=Place.work())
        try:
            at = lambda name: os.path.join(folder, name)
            tool("files", "make", at("in"), count, SIZE)
            meter = Meter()
            found = tool("files", "move", at("in"), at("out"), at("done"), meter=meter)
            spent = meter.read()
            right(at("out"), at("done"))
            return {"rate": count / found["seconds"], "cpu": meter.children / count * 1e6, "foreign": spent["foreign"]}
        finally:
            shutil.rmtree(folder)

    def bus():
        with setup.bus("8-files") as program:
            at = lambda name: os.path.join(program.dir, name)
            # Made beside and moved in at once, so that the clock has a beginning.
            tool("files", "make", at("beside"), count, SIZE)
            meter, begun = Meter(program.pids()), time.time()
            for name in os.listdir(at("beside")):
                os.rename(os.path.join(at("beside"), name), os.path.join(at("in"), name))
            end = lambda: program.metrics()["xbus_messages_acknowledged_total"] >= count
            while not end():
                must(time.time() < begun + 120, "8: not all files within two minutes")
                time.sleep(0.05)
            took = time.time() - begun
            spent = meter.read()
            until(lambda: len(os.listdir(at("in/.done"))) == count, "sources that are moved away")
            right(at("out"), at("in/.done"))
            return {"rate": count / took, "cpu": spent["own"] / count * 1e6, "memory": program.most_memory(), "foreign": spent["foreign"]}

    yield Case(f"8 {count:,} files of 4 KiB", {"limit": loop, "xbus": bus},
               [at_least("rate, of the bare loop", 0.6, lambda case: case.ratio("xbus", "limit"))])
