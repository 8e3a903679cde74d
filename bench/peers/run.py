"""`make bench-peers`: nginx and HAProxy with the load of benchmark 1, Node-RED with that of benchmark 2, beside the limits
and the bus. What they do not do (journal, ids, acknowledgements in SOAP) they do not pay for."""
import argparse
import os
import shutil
import string
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from e2e import requests  # noqa: E402
from e2e.setup import SOAP, Setup, calls  # noqa: E402
from lib import rounds  # noqa: E402
from lib.documents import order  # noqa: E402
from lib.programs import BENCH, TARGET, Place, Program  # noqa: E402

PEERS = os.path.join(BENCH, "peers")


class Peer(Program):
    """A program whose workers count too. With `path` it is ready when it knows that path, not when it listens."""

    def __init__(self, words, port, folder, path=None, **more):
        self.folder, self.path = folder, path
        super().__init__(words, port, **more)

    def listens(self):
        if super().listens() and self.path:
            # Only POST is known there: anything else than 404 would do.
            asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{self.path}", order(1024, soap=True).encode(),
                                           {"Content-Type": SOAP}, method="POST")
            urllib.request.urlopen(asked, timeout=5).read()
        return True

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)

    def pids(self):
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as children:
            return [self.pid, *map(int, children.read().split())]


def folder():
    return tempfile.mkdtemp(dir=Place.work())


def configured(name, at, **values):
    """A configuration with its values put in."""
    with open(os.path.join(PEERS, name)) as file:
        text = string.Template(file.read()).safe_substitute(values)
    path = os.path.join(at, os.path.basename(name))
    with open(path, "w") as out:
        out.write(text)
    return path


def nginx(setup):
    at = folder()
    path = configured("nginx.conf", at, DIR=at, PORT=setup.under_test, TO=setup.to)
    return Peer(["/usr/sbin/nginx", "-p", at, "-c", path], setup.under_test, at)


def haproxy(setup):
    at = folder()
    path = configured("haproxy.cfg", at, PORT=setup.under_test, TO=setup.to)
    return Peer(["/usr/sbin/haproxy", "-db", "-f", path], setup.under_test, at)


def node_red(setup):
    at = folder()
    for name in ("settings.js", "flows.json"):
        shutil.copy(os.path.join(PEERS, "node-red", name), at)
    url = f"http://127.0.0.1:{setup.to}/"
    program = os.path.join(TARGET, "peers", "node_modules", "node-red", "red.js")
    return Peer(["node", program, "--userDir", at, "--settings", os.path.join(at, "settings.js")], setup.under_test, at, "/in",
                env={**os.environ, "PORT": str(setup.under_test), "HOME_URL": url, "ABROAD_URL": url}, stdout=subprocess.DEVNULL)


def install_node_red():
    """From npm, into the folder of the build."""
    at = os.path.join(TARGET, "peers")
    if not os.path.exists(os.path.join(at, "node_modules", "node-red", "red.js")):
        os.makedirs(at, exist_ok=True)
        shutil.copy(os.path.join(PEERS, "node-red", "package.json"), at)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=at, check=True)


def main():
    words = argparse.ArgumentParser()
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--minutes", type=float, default=15)
    words.add_argument("--keep", action="store_true", help="disturbed rounds count too: what comes out are no results")
    given = words.parse_args()
    install_node_red()
    setup = Setup(False)
    cases = [case for case in requests.passthrough(setup) if "c=32" in case.name and "100 KiB" not in case.name]
    for case, size in zip(cases, (1, 10)):
        for name, peer in (("nginx", nginx), ("HAProxy", haproxy)):
            case.sides[name] = calls(setup, case.name, lambda peer=peer: peer(setup), 32, order(size * 1024))
    routed = next(case for case in requests.router(setup) if "1 KiB" in case.name)
    routed.sides["Node-RED"] = calls(setup, routed.name, lambda: node_red(setup), 32, order(1024, soap=True), SOAP)
    cases.append(routed)
    rounds.run(cases, given.rounds, 60 * given.minutes, given.keep)
    rounds.save("peers", cases)
    rounds.table(cases)
    if given.keep:
        print("\nDisturbed rounds were kept: these are no results.")


if __name__ == "__main__":
    main()
