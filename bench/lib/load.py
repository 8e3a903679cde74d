"""Callers: wrk, which costs least beside what it loads."""
import os, re, subprocess

from .programs import BENCH, Place

UNITS = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}


def millis(text):
    value, unit = re.match(r"([\d.]+)(us|ms|s|m)$", text).groups()
    return float(value) * UNITS[unit]


def wrk(port, connections, seconds, body="", kind="application/xml", path="/in", paths=1, meter=None):
    """Posts `body` (a text) over so many connections; with `paths` a `%d` in `path` counts through so many.

    Gives requests, seconds, rate, p50 and p99 in milliseconds, mean, and errors."""
    file = os.path.join(Place.work(), "body")
    with open(file, "w") as out:
        out.write(body)
    words = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--timeout", "30s", "--latency",
             "-s", os.path.join(BENCH, "lib", "post.lua"), f"http://127.0.0.1:{port}/"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "BODY": file, "KIND": kind, "REQUEST_PATH": path, "PATHS": str(paths)})
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    os.remove(file)
    if status:
        raise SystemExit(f"wrk ended with {status}:\n{out}")
    if meter:
        meter.children += usage.ru_utime + usage.ru_stime
    requests, took = re.search(r"(\d+) requests in ([\d.]+)(\w+),", out).group(1, 2)
    took = float(took) * UNITS[re.search(r"requests in [\d.]+(\w+),", out)[1]] / 1e3
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = (int(refused[1]) if refused else 0) + (sum(map(int, broken.groups())) if broken else 0)
    return {"requests": int(requests), "rate": int(requests) / took, "errors": errors,
            "p50": millis(re.search(r"\s50%\s+(\S+)", out)[1]), "p99": millis(re.search(r"\s99%\s+(\S+)", out)[1]),
            "mean": millis(re.search(r"Latency\s+(\S+)", out)[1])}


def hey(port, connections, requests, body, kind="application/xml", path="/in", meter=None):
    """Exactly so many requests (a multiple of the connections); all of them must succeed."""
    file = os.path.join(Place.work(), "body")
    with open(file, "w") as out:
        out.write(body)
    child = subprocess.Popen(["hey", "-n", str(requests), "-c", str(connections), "-m", "POST", "-T", kind, "-D", file,
                              f"http://127.0.0.1:{port}{path}"], stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, _, usage = os.wait4(child.pid, 0)
    os.remove(file)
    if meter:
        meter.children += usage.ru_utime + usage.ru_stime
    answered = sum(int(count) for count in re.findall(r"\[2\d\d\]\s+(\d+) responses", out))
    if answered != requests:
        raise SystemExit(f"of {requests} requests {answered} were answered well:\n{out}")
    return requests
