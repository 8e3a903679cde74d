"""Loads the bus and the bare programs with RabbitMQ between by turns, and prints the table. See src/main.rs.

Usage: run.py [--smoke] [--rounds N] [--minutes N] [--only WORD] [--foreign SHARE] [--keep]
The bus is the release build of this repository, or what XBUS names."""
import argparse, json, os, shutil, signal, statistics, subprocess, sys, tempfile, time
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from lib import machine
from lib.machine import free_ports
from lib.programs import get
from rabbit import Rabbit

TARGET = os.environ.get("CARGO_TARGET_DIR")
BINARY = os.path.join(TARGET or HERE + "/target", "release/amqp-limits")
XBUS = os.environ.get("XBUS", os.path.join(TARGET or HERE + "/../../target", "release/xbus"))
SIZE = 1024
SIDES = ("bare", "xbus")
# Keeping each message in a log before the broker gets it, as a lane has it, costs a bare program this.
LOGGED = "bare, with a log"

@dataclass(frozen=True)
class Case:
    name: str
    what: str          # out, in, put, drain, trips
    queue: str = "quorum"
    prefetch: int = 1
    at_once: int = 1   # messages under way, or callers
    count: int = 0     # messages, where a queue is filled first

CASES = [
    Case("AMQP in, HTTP out, in order, prefetch 1", "out", count=3000),
    Case("AMQP in, HTTP out, in order, prefetch 50", "out", prefetch=50, count=10000),
    Case("AMQP in, HTTP out, 16 at once", "out", prefetch=16, at_once=16, count=10000),
    *[Case(f"HTTP in, AMQP out, {kind}, c={c}", "in", queue=kind, at_once=c) for kind in ("classic", "quorum") for c in (1, 32)],
    *[Case(f"lane put, c={c}", "put", queue="lane", at_once=c) for c in (1, 32, 128)],
    Case("lane drain", "drain", queue="lane", count=5000),
    Case("the broker alone", "trips", queue="lane", count=2000),
]

def sides_of(case):
    return ("bare",) if case.what == "trips" else ("bare", LOGGED, "xbus") if case.what == "put" else SIDES

class Meter(machine.Meter):
    """As everywhere, with the broker's part."""
    def __init__(self, bench, pid):
        super().__init__([pid], [bench.rabbit.pid, bench.sink.pid])
        self.broker, self.broker_before = bench.rabbit.pid, machine.cpu(bench.rabbit.pid)
    def read(self):
        spent = super().read()
        return spent | {"broker": machine.cpu(self.broker) - self.broker_before, "memory": machine.memory(self.pids[0])}

class Bench:
    def __init__(self, smoke):
        self.smoke, self.number = smoke, 0
        self.rabbit = Rabbit()
        self.port = free_ports(3)
        self.sink = subprocess.Popen([BINARY, "sink", str(self.port)])
        self.to = f"http://127.0.0.1:{self.port}"
        self.until(lambda: get(self.to + "/_reset"))

    def close(self):
        self.sink.kill()
        self.sink.wait()
        self.rabbit.close()

    def until(self, works, most=60):
        end = time.time() + most
        while True:
            try:
                result = works()
                if result is not False:
                    return result
            except OSError:
                if time.time() > end:
                    raise
            if time.time() > end:
                raise TimeoutError
            time.sleep(0.02)

    def tool(self, *words):
        done = subprocess.run([BINARY, words[0], *([] if words[0] == "load" else [self.rabbit.url]), *map(str, words[1:])],
                              stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def depth(self, queue):
        return int(self.tool("depth", queue))

    def load(self, connections, seconds, count=10**8, meter=None):
        child = subprocess.Popen([BINARY, "load", f"http://127.0.0.1:{self.port + 1}/in", str(connections), str(seconds), str(count),
                                  str(SIZE)], stdout=subprocess.PIPE, text=True)
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"the callers ended with {status}")
        if meter:
            meter.children += usage.ru_utime + usage.ru_stime
        return json.loads(out)

    def start(self, side, case, queue):
        """The program under test, ready."""
        if side != "xbus":
            folder = tempfile.mkdtemp(prefix="xbus-bench-") if side == LOGGED else None
            kept = [folder + "/log"] if folder else []
            words = (["out", self.rabbit.url, queue, case.prefetch, case.at_once, self.to + "/"] if case.what in ("out", "drain") else
                     ["in", self.port + 1, self.rabbit.url, queue, 202 if case.what == "put" else 200, *kept])
            program = subprocess.Popen([BINARY, *map(str, words)])
            if case.what in ("in", "put"):
                self.until(lambda: self.connects())
            return program, folder
        folder = tempfile.mkdtemp(prefix="xbus-bench-")
        os.mkdir(folder + "/routes")
        sends = f"    http: {{ url: \"{self.to}/\" }}\n    timeout: 10m\n"
        post = "receive: { http: { path: /in } }\ndistribute:\n  - name: t\n"
        if case.what == "out":
            several = f", concurrency: {case.at_once}" if case.at_once > 1 else ""
            route = (f"receive: {{ amqp: {{ connection: rabbit, queue: {queue}, prefetch: {case.prefetch}{several} }} }}\n"
                     f"distribute:\n  - name: t\n{sends}")
        elif case.what == "in":
            route = f"{post}    amqp: {{ connection: rabbit, routing_key: {queue} }}\n"
        else:
            route = f"{post}    async: {{ connection: rabbit, queue: {queue} }}\n{sends}"
        for name, text in (("routes/bench.yaml", "route: bench\n" + route),
                           ("xbus.yaml", f"name: bench\nhttp: {{ listen: \"127.0.0.1:{self.port + 1}\" }}\n"
                            "admin: { listen: \"127.0.0.1:0\" }\n"
                            f"connections: {{ rabbit: {{ amqp: {{ url: \"{self.rabbit.url}\" }} }} }}\n")):
            with open(f"{folder}/{name}", "w") as file:
                file.write(text)
        program = subprocess.Popen([XBUS, "run", "."], cwd=folder, stdout=subprocess.DEVNULL, stderr=open(folder + "/bus.log", "w"))
        try:
            admin = self.until(lambda: json.load(open(folder + "/data/listening.json")))["admin"]
            self.until(lambda: get(f"http://{admin}/health/ready"))
        except Exception:
            program.kill()
            sys.exit(f"xbus does not start: {open(folder + '/bus.log').read()}")
        return program, folder

    def connects(self):
        import socket
        socket.create_connection(("127.0.0.1", self.port + 1)).close()

    def stop(self, program, folder):
        log = folder + "/bus.log" if folder else ""
        if program.poll() is not None:
            log = open(log).read() if os.path.exists(log) else ""
            raise SystemExit(f"the program under test ended with {program.returncode}: {log}")
        program.send_signal(signal.SIGTERM)
        try:
            program.wait(40)
        finally:
            program.kill()
            program.wait()
            if folder and os.environ.get("KEEP"):
                print("kept:", folder)
            elif folder:
                lines = open(log).readlines() if os.path.exists(log) else []
                warnings = [line for line in lines if " WARN " in line or "ERROR" in line]
                shutil.rmtree(folder)
                if warnings:
                    print("xbus warned:", *warnings[:5], sep="\n  ", file=sys.stderr)

    def measure(self, side, case):
        self.number += 1
        queue = f"bench{os.getpid()}-{self.number}"
        if case.what == "trips":
            return self.trips(case, queue)
        count = case.count // 15 if self.smoke else case.count
        by_bus = case.what in ("put", "drain") and side == "xbus"
        if not by_bus:
            self.tool("declare", queue, case.queue)
        get(self.to + "/_reset")
        if count and not by_bus:
            self.tool("fill", queue, count, SIZE)
        program, folder = self.start(side, case, queue)
        try:
            if case.what in ("in", "put"):
                found = self.callers(case, program, queue, held=1 if by_bus else 0)
            else:
                found = self.drained(case, program, queue, count, by_bus)
        finally:
            self.stop(program, folder)
        left = self.depth(queue)
        expected = found.pop("left")
        if left != expected:
            raise SystemExit(f"{case.name}, {side}: {left} messages are left in the queue, not {expected}")
        self.tool("delete", queue)
        return found

    def callers(self, case, program, queue, held):
        warm = self.load(case.at_once, 0.2 if self.smoke else 1)
        meter = Meter(self, program.pid)
        got = self.load(case.at_once, 0.5 if self.smoke else 2, meter=meter)
        spent = meter.read()
        total, errors = warm["requests"] + got["requests"], warm["errors"] + got["errors"]
        if errors:
            raise SystemExit(f"{case.name}: {errors} errors")
        self.until(lambda: self.depth(queue) == total - held)
        return self.result(got["rate"], got["requests"], spent) | {"p50": got["p50"], "p99": got["p99"], "left": total}

    def drained(self, case, program, queue, count, by_bus):
        if by_bus:
            # One caller's order is known, and seen to at the end.
            got = self.load(1 if self.smoke else 64, 600, count)
            if got["errors"] or got["requests"] != count:
                raise SystemExit(f"{case.name}: {got}")
            self.until(lambda: self.depth(queue) == count - 1)
        get(f"{self.to}/_held/{case.at_once}")
        time.sleep(0.2)
        meter = Meter(self, program.pid)
        get(self.to + "/_open")
        got = json.loads(get(f"{self.to}/_wait/{count}", 600))
        spent = meter.read()
        time.sleep(0.2)
        got = json.loads(get(f"{self.to}/_wait/{count}"))
        in_order = not got["disorder"] or case.at_once > 1 or (by_bus and not self.smoke)
        if got["count"] != count or got["distinct"] != count or not in_order:
            raise SystemExit(f"{case.name}: {got}, not {count}")
        return self.result(count / got["seconds"], count, spent) | {"left": 0}

    def result(self, rate, messages, spent):
        return {"rate": rate, "cpu": spent["own"] / messages * 1e6, "broker": spent["broker"] / messages * 1e6,
                "memory": spent["memory"], "foreign": spent["foreign"]}

    def trips(self, case, queue):
        self.tool("declare", queue, case.queue)
        found = json.loads(self.tool("trips", queue, case.count // 15 if self.smoke else case.count, SIZE))
        self.tool("delete", queue)
        return {"rate": found["publish"], "take": found["take"], "foreign": 0.0}

def table(clean, thrown):
    foreign = [r["foreign"] for case, rounds in clean.items() if case.what != "trips" for found in rounds for r in found.values()]
    if not foreign:
        return print(f"no clean round, {thrown} thrown away: the machine is too busy to measure on")
    print(f"{thrown} rounds thrown away; foreign CPU median {statistics.median(foreign):.1%}, most {max(foreign):.1%}")
    print("| case | side | rounds | msg/s | of bare (least to most) | p50 / p99 ms | own CPU µs/msg | broker's | resident MiB |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for case, rounds in clean.items():
        if not rounds:
            continue
        if case.what == "trips":
            of = lambda key: statistics.median(r["bare"][key] for r in rounds)
            print(f"| {case.name}: publish and confirm, one at a time | | {len(rounds)} | {of('rate'):.0f} | | | | | |")
            print(f"| {case.name}: take and acknowledge, one at a time | | {len(rounds)} | {of('take'):.0f} | | | | | |")
            continue
        for side in sides_of(case):
            of = lambda key: statistics.median(r[side][key] for r in rounds)
            ratios = [r[side]["rate"] / r["bare"]["rate"] for r in rounds]
            ratio = "" if side == "bare" else f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
            waits = f"{of('p50'):.2f} / {of('p99'):.2f}" if "p50" in rounds[0][side] else ""
            print(f"| {case.name} | {side} | {len(rounds)} | {of('rate'):.0f} | {ratio} | {waits} | {of('cpu'):.0f} | {of('broker'):.0f} "
                  f"| {of('memory'):.0f} |")

def main():
    words = argparse.ArgumentParser()
    words.add_argument("--smoke", action="store_true", help="a moment each: whether it works and counts right")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--minutes", type=float, default=12)
    words.add_argument("--only", default="", help="cases whose name holds this")
    words.add_argument("--foreign", type=float, default=0.15, help="a round with more CPU of others is thrown away")
    words.add_argument("--keep", action="store_true", help="thrown-away rounds count too")
    given = words.parse_args()
    for program in (BINARY, XBUS):
        if not os.path.exists(program):
            sys.exit(f"no {program}: cargo build --release")
    cases = [case for case in CASES if given.only in case.name]
    rounds, deadline = 1 if given.smoke else given.rounds, time.time() + 60 * given.minutes
    clean, thrown = {case: [] for case in cases}, []
    bench = Bench(given.smoke)
    try:
        while (left := [case for case in cases if len(clean[case]) < rounds]) and time.time() < deadline:
            for case in left:
                sides = sides_of(case)
                sides = sides if len(clean[case]) % 2 else sides[::-1]
                if not given.smoke and not given.keep:
                    machine.wait_for_quiet()
                found = {side: bench.measure(side, case) for side in sides}
                if max(r["foreign"] for r in found.values()) > given.foreign and not given.smoke and not given.keep:
                    thrown.append([case.name, found])
                else:
                    clean[case].append(found)
    finally:
        bench.close()
    if given.smoke:
        return print(f"{len(clean)} cases work and count right")
    os.makedirs(HERE + "/../results", exist_ok=True)
    with open(HERE + "/../results/amqp.json", "w") as out:
        json.dump({"clean": [[case.name, rounds] for case, rounds in clean.items()], "thrown": thrown}, out)
    table(clean, len(thrown))

if __name__ == "__main__":
    main()
