"""What the machine is doing, and which part of it is ours: from /proc (Linux), without dependencies."""
import os, platform, shutil, socket, time

TICK, CORES = os.sysconf("SC_CLK_TCK"), os.cpu_count()
# A round with more CPU of others than this is thrown away.
FOREIGN = 0.15


def busy():
    """CPU seconds of the machine since it started, with interrupts and with what its host took."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICK


def cpu(pid):
    """CPU seconds of a process's living threads, to the nanosecond."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat") as stat:
                total += int(stat.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total / 1e9


def kernel_threads():
    """CPU seconds of the kernel's own threads, which write what the programs under test have written: nobody's, so not foreign."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[1] == "2":
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory(pid, field="VmRSS"):
    """Resident MiB of a process (VmHWM: the most there ever was)."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) / 1024


class Meter:
    """What a stretch of time cost the program under test (processes `own`), our other processes, and strangers."""

    def __init__(self, own=(), others=()):
        self.own, self.pids = len(own), [*own, *others, os.getpid()]
        # Children that ended meanwhile: whoever waits for them adds what they used.
        self.children = 0
        self.before = [cpu(pid) for pid in self.pids]
        self.kernel, self.busy, self.begun = kernel_threads(), busy(), time.time()

    def read(self):
        took, everything = time.time() - self.begun, busy() - self.busy
        spent = [cpu(pid) - before for pid, before in zip(self.pids, self.before)]
        ours = sum(spent) + self.children + kernel_threads() - self.kernel
        return {"own": sum(spent[:self.own]), "took": took, "foreign": max(0.0, everything - ours) / (took * CORES)}


def wait_for_quiet(most=15):
    """Waits until nobody else is busy, at most so many seconds. Nothing of ours may run meanwhile."""
    end = time.time() + most
    while time.time() < end:
        before = busy()
        time.sleep(0.3)
        if (busy() - before) / (0.3 * CORES) < FOREIGN / 2:
            return


def free_ports(count):
    """Ports in a row that were free a moment ago, below those that the system gives to clients."""
    for step in range(1000):
        base = 20_000 + (os.getpid() * 7 + step) % 1000 * 10
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            pass
    raise SystemExit("no free ports")


def described():
    """The machine in a line, for the head of a table."""
    with open("/proc/cpuinfo") as info:
        name = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    with open("/proc/meminfo") as info:
        gib = int(info.readline().split()[1]) / 1024**2
    free = shutil.disk_usage(".").free / 1024**3
    return f"{CORES} cores ({name}), {gib:.0f} GiB, Linux {platform.release()}, {free:.0f} GiB free on disk, {time.strftime('%Y-%m-%d %H:%M')}"
