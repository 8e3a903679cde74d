"""Loads every shape by turns and prints the table. See main.rs. Usage: run.py [minutes]"""
import json, os, re, statistics, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = os.path.join(os.environ.get("CARGO_TARGET_DIR", HERE + "/target"), "release/runtime-shape")
ECHO, PORT, ROUNDS, SECONDS, FOREIGN = 18081, 18082, 6, 2, 0.15
TICK, CORES = os.sysconf("SC_CLK_TCK"), os.cpu_count()
CASES = [(mode, size, c, slow, shapes)
         for mode, size, slow, shapes, cs in [("proxy", 1024, 0, "a b c", (1, 32, 128)), ("proxy", 10240, 0, "a b c", (1, 32, 128)),
                                              ("accept", 1024, 0, "a b c", (1, 32, 128)), ("proxy", 1024, 5, "a b c a+ a* b*", (8, 32))]
         for c in cs]

def busy():
    """CPU seconds of the machine, with interrupts (schedstat counts loopback's as ours) and with what the host took."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICK

def wait_for_quiet(most):
    """Nothing of ours runs: what is busy is foreign. After `most` seconds the round is tried all the same."""
    end = time.time() + most
    while time.time() < end:
        before = busy()
        time.sleep(0.5)
        if (busy() - before) / (0.5 * CORES) < FOREIGN / 2:
            return

def cpu(process):
    """CPU seconds of a process, to the nanosecond."""
    tasks = f"/proc/{process.pid}/task"
    return sum(int(open(f"{tasks}/{t}/schedstat").read().split()[0]) for t in os.listdir(tasks)) / 1e9

def millis(text):
    value, unit = re.match(r"([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]

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
        start, all_, own, peer = time.time(), busy(), cpu(program), cpu(echo)
        out, load = wrk(connections, SECONDS, size, slow)
        all_, own, peer, took = busy() - all_, cpu(program) - own, cpu(echo) - peer, time.time() - start
    finally:
        program.kill()
        program.wait()
    requests = int(re.search(r"(\d+) requests in", out)[1])
    result = {"rate": requests / float(re.search(r"requests in ([\d.]+)s", out)[1]), "cpu": own / requests * 1e6,
              "foreign": (all_ - own - peer - load) / (took * CORES)}
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
                wait_for_quiet(15)
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
