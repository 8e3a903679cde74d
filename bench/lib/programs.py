"""The programs of a benchmark: limits, destinations, and the bus, each a child process that ends with its `with`."""
import atexit, json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request

from .machine import memory

BENCH = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(BENCH)
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))


class Place:
    """Where the binaries are, and where folders of runs are made: on the disk that holds the build."""
    profile = "release"

    @classmethod
    def binary(cls, name):
        path = os.environ.get(name.upper()) or os.path.join(TARGET, cls.profile, name)
        if not os.path.exists(path):
            raise SystemExit(f"no {path}: `make bench` builds it")
        return path

    @staticmethod
    def work():
        """A folder of this run, which goes with it."""
        path = os.path.join(TARGET, f"bench-work-{os.getpid()}")
        if not os.path.exists(path):
            os.makedirs(path)
            if not os.environ.get("KEEP"):
                atexit.register(shutil.rmtree, path, ignore_errors=True)
        return path


def get(url, timeout=60):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def post(url, body, kind):
    """The answer's text."""
    request = urllib.request.Request(url, body.encode(), {"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def until(works, what, most=60):
    """Calls `works` until it gives something; connections that fail meanwhile count as not yet."""
    end = time.time() + most
    while True:
        try:
            result = works()
            if result:
                return result
        except (OSError, urllib.error.URLError, ValueError):
            pass
        if time.time() > end:
            raise SystemExit(f"{what}: not within {most} s")
        time.sleep(0.01)


class Program:
    """A child process under test."""

    def __init__(self, words, port=None, **more):
        self.words, self.port = [str(word) for word in words], port
        self.process = subprocess.Popen(self.words, **more)
        self.pid = self.process.pid

    def __enter__(self):
        if self.port:
            until(self.listens, " ".join(self.words[:3]))
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    end = __exit__

    def listens(self):
        if self.process.poll() is not None:
            raise SystemExit(f"{' '.join(self.words)} ended with {self.process.returncode}")
        socket.create_connection(("127.0.0.1", self.port)).close()
        return True

    def pids(self):
        """Its processes, as things stand."""
        return [self.pid]

    def memory(self):
        return sum(memory(pid) for pid in self.pids())

    def most_memory(self):
        return sum(memory(pid, "VmHWM") for pid in self.pids())


def limit(*words):
    """One of bench/limits that serves a port, its second or third word."""
    port = next(word for word in words if isinstance(word, int))
    return Program([Place.binary("limits"), *words], port)


def tool(*words, meter=None):
    """A program of bench/limits that runs to its end; what it printed, as JSON. `meter` learns what it used."""
    child = subprocess.Popen([Place.binary("limits"), *map(str, words)], stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"limits {' '.join(map(str, words))} ended with {status}")
    if meter:
        meter.children += usage.ru_utime + usage.ru_stime
    return json.loads(out) if out else None


class Destination(Program):
    """The counting echo of bench/limits."""

    def __init__(self, port):
        super().__init__([Place.binary("limits"), "destination", port], port)

    def reset(self, delay=0, failing=0):
        get(f"http://127.0.0.1:{self.port}/_reset/{delay}/{failing}")

    def seen(self):
        return json.loads(get(f"http://127.0.0.1:{self.port}/_count"))

    def wait(self, count, seconds):
        return json.loads(get(f"http://127.0.0.1:{self.port}/_wait/{count}/{int(seconds * 1000)}", seconds + 10))


class Bus(Program):
    """The real command with a copy of an installation folder; what is measured with it is the whole product."""

    def __init__(self, folder, ports, copies=0, before=None, **variables):
        self.dir = tempfile.mkdtemp(prefix=os.path.basename(folder) + "-", dir=Place.work())
        shutil.copytree(folder, self.dir, dirs_exist_ok=True)
        self.http, self.admin = ports
        if copies:
            self.multiply(copies)
        if before:
            before(self.dir)
        variables = {"HTTP_PORT": self.http, "ADMIN_PORT": self.admin} | variables
        self.log = os.path.join(self.dir, "bus.log")
        with open(self.log, "w") as log:
            self.begun = time.time()
            super().__init__([Place.binary("xbus"), "run", "."], cwd=self.dir, stdout=subprocess.DEVNULL, stderr=log,
                             env={**os.environ, **{name: str(value) for name, value in variables.items()}})

    def multiply(self, copies):
        """Writes the one route so often, each time under another name."""
        routes = os.path.join(self.dir, "routes")
        (name,) = os.listdir(routes)
        with open(os.path.join(routes, name)) as file:
            text = file.read()
        os.remove(os.path.join(routes, name))
        for number in range(copies):
            with open(os.path.join(routes, f"r{number}.yaml"), "w") as file:
                file.write(text.replace("${ROUTE}", f"r{number}"))

    def __enter__(self):
        try:
            until(self.is_ready, "xbus")
        except BaseException:
            self.__exit__(None)
            raise
        self.started = time.time() - self.begun
        return self

    def is_ready(self):
        if self.process.poll() is not None:
            raise SystemExit(f"xbus ended with {self.process.returncode}:\n{self.told()}")
        return get(f"http://127.0.0.1:{self.admin}/health/ready")

    def told(self):
        with open(self.log) as log:
            return log.read()[-4000:]

    def __exit__(self, failed, *_):
        """A clean stop, or it was no good run."""
        try:
            if failed is None and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(20)
            if failed is None and self.process.returncode not in (0, 1):
                raise SystemExit(f"xbus ended with {self.process.returncode}:\n{self.told()}")
        finally:
            self.process.kill()
            self.process.wait()
            if os.environ.get("KEEP"):
                print("kept:", self.dir, file=sys.stderr)
            else:
                shutil.rmtree(self.dir)

    def metrics(self):
        """Sums over labels."""
        sums = {}
        for line in get(f"http://127.0.0.1:{self.admin}/metrics").splitlines():
            found = re.match(r"(\w+)(?:\{.*\})? (\S+)$", line)
            if found:
                sums[found[1]] = sums.get(found[1], 0) + float(found[2])
        return sums

    def depth(self, queue):
        """Messages that wait in a queue."""
        lines = get(f"http://127.0.0.1:{self.admin}/metrics").splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("xbus_queue_depth{") and f'"{queue}"' in line)

    def settled(self, most=30):
        """What it counts when nothing is on its way any more."""
        def still():
            found = self.metrics()
            return found if found.get("xbus_messages_running") == 0 else None
        return until(still, "messages that end", most)
