"""A RabbitMQ of its own: data, cookie, ports and epmd in a temporary folder, nothing shared with a broker that the
machine may run. It ends with `close`, and a guard ends it when this process is gone."""
import glob, os, secrets, shutil, signal, socket, subprocess, tempfile, time

from lib.machine import free_ports

GUARD = r"""
trap '' HUP INT TERM
epmd -address 127.0.0.1 -port "$2" </dev/null >/dev/null 2>&1 &
epmd=$!
cat >/dev/null
vm=$(cat "$1/vm.pid" 2>/dev/null)
if [ -n "$vm" ]; then
    kill -9 "$vm" 2>/dev/null
    n=0
    while readlink "/proc/$vm/exe" >/dev/null && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
fi
kill -9 $epmd
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"""

class Rabbit:
    def __init__(self):
        server = os.path.realpath("/usr/lib/rabbitmq/bin/rabbitmq-server")
        if not os.path.exists(server):
            raise SystemExit("no RabbitMQ: `make tools` installs it")
        root = os.path.dirname(os.path.dirname(server))
        self.dir = tempfile.mkdtemp(prefix="xbus-bench-rabbit-")
        self.port = base = free_ports(10)
        file = lambda name: os.path.join(self.dir, name)
        os.symlink(root + "/sbin", file("sbin"))
        os.symlink(root + "/escript", file("escript"))
        os.mkdir(file("plugins"))
        # With the plugins of the core alone a start takes half of the time.
        for plugin in glob.glob(root + "/plugins/*"):
            name = os.path.basename(plugin)
            if not name.startswith("rabbitmq_") or name.startswith("rabbitmq_prelaunch"):
                os.symlink(plugin, file("plugins/" + name))
        for name, text in (("rabbitmq.conf", f"listeners.tcp.1 = 127.0.0.1:{base}\ndisk_free_limit.absolute = 1MB\n"),
                           ("advanced.config", "[]."), ("enabled_plugins", "[]."), ("rabbitmq-env.conf", "")):
            with open(file(name), "w") as out:
                out.write(text)
        with open(os.open(file(".erlang.cookie"), os.O_CREAT | os.O_WRONLY, 0o400), "w") as out:
            out.write(secrets.token_hex(16).upper())
        node, env = f"bench{base}@localhost", {
            "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": self.dir, "ERL_EPMD_ADDRESS": "127.0.0.1"}
        self.guard = subprocess.Popen(["sh", "-c", GUARD, "rabbit-guard", self.dir, str(base + 2)], cwd="/", env=env,
                                      stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                      start_new_session=True)
        self.wait(lambda: socket.create_connection(("127.0.0.1", base + 2)).close())
        env |= {"ERL_EPMD_PORT": str(base + 2), "RABBITMQ_NODENAME": node, "RABBITMQ_DIST_PORT": str(base + 3),
                "RABBITMQ_SCRIPTS_DIR": file("sbin"), "RABBITMQ_MNESIA_BASE": file("data"), "RABBITMQ_LOG_BASE": file("log"),
                "RABBITMQ_LOGS": "-", "RABBITMQ_ENABLED_PLUGINS_FILE": file("enabled_plugins"),
                "RABBITMQ_CONFIG_FILE": file("rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE": file("advanced.config"),
                "RABBITMQ_CONF_ENV_FILE": file("rabbitmq-env.conf"), "RABBITMQ_ALLOW_INPUT": "1"}
        # Each program replaces the one before: the child is the virtual machine itself.
        self.vm = subprocess.Popen(["sh", "-c", "echo $$ >vm.pid; exec sbin/rabbitmq-server -noinput"], cwd=self.dir, env=env,
                                   stdin=subprocess.DEVNULL, stdout=open(file("broker.log"), "w"), stderr=subprocess.STDOUT,
                                   start_new_session=True)
        self.wait(self.shakes_hands)
        self.pid, self.url = self.vm.pid, f"amqp://guest:guest@127.0.0.1:{base}/%2f"

    def wait(self, works):
        end = time.time() + 120
        while True:
            try:
                return works()
            except (OSError, AssertionError):
                if time.time() > end:
                    self.close()
                    raise
                time.sleep(0.05)

    def shakes_hands(self):
        """It answers the protocol header with a method frame (AMQP 0-9-1, 2.2.4)."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as stream:
            stream.settimeout(5)
            stream.sendall(b"AMQP\x00\x00\x09\x01")
            assert stream.recv(1) == b"\x01"

    def close(self):
        self.vm.send_signal(signal.SIGKILL) if hasattr(self, "vm") else None
        self.guard.stdin.close()
        self.guard.wait()
        shutil.rmtree(self.dir, ignore_errors=True)
