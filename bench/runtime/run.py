"""Loads every shape by turns and prints the table. See main.rs. Usage: run.py [minutes]"""
import json, os, re, statistics, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from lib.load import millis
from lib.machine import FOREIGN, Meter, wait_for_quiet

BINARY = os.path.join(os.environ.get("CARGO_TARGET_DIR", HERE + "/target"), "release/runtime-shape")
ECHO, PORT, ROUNDS, SECONDS = 18081, 18082, 6, 2
CASES = [(mode, size, c, slow, shapes)
         for mode, size, slow, shapes, cs in [("proxy", 1024, 0, "a b c", (1, 32, 128)), ("proxy", 10240, 0, "a b c", (1, 32, 128)),
                                              ("accept", 1024, 0, "a b c", (1, 32, 128)), ("proxy", 1024, 5, "a b c a+ a* b*", (8, 32))]
         for c in cs]

def wrk(connections, seconds, size, slow):
    child = subprocess.Popen(["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", HERE + "/load.lua",
                              f"http://127.0.0.1:{PORT}/"], stdout=subprocess.PIPE, text=True, env={**os.environ, "SIZE": str(size), "SLOW": str(slow)})
    out = child.stdout.read()
    _, _, usage = os.wait4(child.pid, 0)
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit("errors under load:\n" + out)
    return out, usage.ru_utime + usage.ru_stime

def measure(echo, shape, mode, size, connections, slow):
    program = subprocess.Popen([BINARY, shape, mode, str(PORT), str(ECHO)])
    try:
        time.sleep(0.1)
        wrk(connections, 1, size, slow)
        meter = Meter([program.pid], [echo.pid])
        out, load = wrk(connections, SECONDS, size, slow)
        meter.children += load
        spent = meter.read()
    finally:
        program.kill()
        program.wait()
    requests = int(re.search(r"(\d+) requests in", out)[1])
    result = {"rate": requests / float(re.search(r"requests in ([\d.]+)s", out)[1]), "cpu": spent["own"] / requests * 1e6,
              "foreign": spent["foreign"]}
    for name, p in ("p50", "50"), ("p99", "99"):
        result[name] = millis(re.search(rf"\s{p}%\s+(\S+)", out)[1])
    if slow:
        result["p50"], result["p99"] = (int(n) / 1e3 for n in re.search(r"others (\d+) (\d+)", out).groups())
    return result

def main():
    deadline = time.time() + 60 * float(sys.argv[1] if len(sys.argv) > 1 else 20)
    clean, thrown, foreign = {case: [] for case in CASES}, [], []
    echo = subprocess.Popen([BINARY, "echo", str(ECHO)])
    try:
        while (left := [case for case in CASES if len(clean[case]) < ROUNDS]) and time.time() < deadline:
            for case in left:
                mode, size, connections, slow, shapes = case
                shift = len(clean[case]) % len(shapes.split())  # no shape is always the first
                order = shapes.split()[shift:] + shapes.split()[:shift]
                wait_for_quiet()
                found = {shape: measure(echo, shape, mode, size, connections, slow) for shape in order}
                foreign += [r["foreign"] for r in found.values()]
                if max(r["foreign"] for r in found.values()) > FOREIGN:
                    thrown.append([case, found])
                else:
                    clean[case].append(found)
    finally:
        echo.kill()
    os.makedirs(HERE + "/../results", exist_ok=True)
    json.dump({"clean": list(clean.items()), "thrown": thrown}, open(HERE + "/../results/runtime.json", "w"))
    print(f"{len(thrown)} rounds thrown away; foreign CPU median {statistics.median(foreign):.1%}, most {max(foreign):.1%}")
    print("| case | shape | rounds | req/s | of a | p50 / p99 ms | own CPU µs/req |\n|---|---|---|---|---|---|---|")
    for (mode, size, connections, slow, shapes), rounds in clean.items():
        for shape in shapes.split() if rounds else []:
            of = lambda key: statistics.median(r[shape][key] for r in rounds)
            ratio = statistics.median(r[shape]["rate"] / r["a"]["rate"] for r in rounds)
            print(f"| {mode} {size // 1024} KiB{f', {slow} % slow' if slow else ''}, c={connections} | {shape} | {len(rounds)} | {of('rate') / 1e3:.1f}k "
                  f"| {ratio:.2f} | {of('p50'):.2f} / {of('p99'):.2f} | {of('cpu'):.1f} |")

main()
