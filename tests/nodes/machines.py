"""Machines on this one: each is a set of Linux namespaces (network, processes, mounts, host name).

Their network devices are joined to a switch (a bridge in a namespace of its own) by veth pairs, or by `relay` where a
link is to be bad. A machine can be cut off and killed as if its power had failed, has mounts of its own (a disk that
others do not see, a small one), and knows the others by name. It sees the files of this machine otherwise.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from toy_runs import ROOT, environment

NEEDED = ("ip", "unshare", "nsenter", "mount", "hostname")
RELAY = Path(__file__).with_name("relay.py")
# Otherwise a machine that comes late makes all of them fail (docs/cluster.md).
SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def why_not():
    """What keeps this machine from having such machines, or an empty string."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux, hostname)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    command = "ip link add one type veth peer name other && ip link add three type bridge && hostname x"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "sh", "-c", command], capture_output=True, text=True
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def children(pid):
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid):
    """The processes below a process."""
    found = []
    with contextlib.suppress(OSError):
        for child in children(pid):
            found += [child, *descendants(child)]
    return found


def wait_until(true, seconds, why=lambda: ""):
    """Wait until ``true()`` is, and return its value."""
    until = time.monotonic() + seconds
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < until, f"not within {seconds} s: {why()}"
        threading.Event().wait(0.05)


class Namespace:
    """Namespaces that last as long as a process that does nothing."""

    def __init__(self, *kinds, setup="true"):
        command = [
            "unshare",
            *kinds,
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            f"{setup} && echo ready && exec sleep 3600",
        ]
        self.keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.keeper.stdout.readline() == "ready\n"
        self.pid = children(self.keeper.pid)[0]

    def enter(self, *command):
        """A command line that runs a command in these namespaces."""
        return ["nsenter", "--target", str(self.pid), "--all", *map(str, command)]

    def call(self, *command):
        """Run a command to its end."""
        return subprocess.run(self.enter(*command), check=True, capture_output=True, text=True).stdout

    def close(self):
        """End all processes in it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.keeper.wait()
        self.keeper.stdout.close()


class Machine(Namespace):
    """One of the machines of a `Network`; ``link``: its device on the switch."""

    def __init__(self, name, address, hosts):
        mounts = f"hostname {name} && mount --bind {hosts} /etc/hosts"
        super().__init__("--net", "--uts", "--mount", "--pid", "--mount-proc", setup=mounts)
        self.name = name
        self.address = address
        self.link = f"port-{name}"

    def own(self, folder, megabytes=None):
        """Give this machine a folder of its own at a path: empty, of so many megabytes (None: in memory, unlimited)."""
        folder.mkdir(parents=True, exist_ok=True)
        size = ["-o", f"size={megabytes}m"] if megabytes else []
        self.call("mount", "-t", "tmpfs", *size, "tmpfs", folder)

    def read(self, path):
        """The text of a file as this machine sees it; empty where there is none."""
        return subprocess.run(self.enter("cat", path), capture_output=True, text=True).stdout

    def names(self, folder):
        """The names in a folder as this machine sees it."""
        return subprocess.run(self.enter("ls", folder), capture_output=True, text=True).stdout.split()

    def start(self, output, script, *options, nodes, ranks=1, restarts=0, conf=()):
        """Start torchrun here; its output is added to a file -> Run."""
        settings = {"join_timeout": 120, "last_call_timeout": 1, **dict(conf)}
        command = [
            *TORCHRUN,
            *("--nnodes", nodes, "--nproc-per-node", ranks, "--max-restarts", restarts),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29500", "--rdzv-id", "test"),
            *("--rdzv-conf", ",".join(f"{name}={value}" for name, value in settings.items())),
            *(ROOT / "recipes" / script, *options),
        ]
        return Run(self, command, output)


class Run:
    """A program on a machine; its output goes to a file."""

    def __init__(self, machine, command, output):
        self.machine = machine
        self.output = output
        with output.open("a") as sink:
            self.process = subprocess.Popen(
                machine.enter(*command), env={**environment(), **SETTINGS}, stdout=sink, stderr=subprocess.STDOUT
            )

    def said(self):
        """All output."""
        return self.output.read_text(errors="replace")

    def wait(self, seconds=120):
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.machine.name} is still at work after {seconds} s: {self.said()}") from None

    def signal(self, number, ranks=False):
        """Send a signal to torchrun, or to its ranks."""
        agent = children(self.process.pid)[0]
        for pid in children(agent) if ranks else [agent]:
            os.kill(pid, number)


class Network:
    """Machines node1, node2, .. on a switch."""

    def __init__(self, folder):
        self.folder = folder
        self.switch = Namespace("--net")
        self.machines = {}
        self.relays = []
        self.switch.call("ip", "link", "add", "switch", "type", "bridge")
        self.switch.call("ip", "link", "set", "switch", "up")
        self.hosts = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"10.77.0.{number} node{number}" for number in range(1, 10))]
        self.hosts.write_text("".join(f"{line}\n" for line in lines))

    def add(self, number, delay=0.0, loss=0.0):
        """A machine; ``delay`` in seconds and ``loss`` as a share of the packets, in each direction."""
        machine = Machine(f"node{number}", f"10.77.0.{number}", self.hosts)
        self.machines[number] = machine
        if delay or loss:
            ends = [self.switch.pid, machine.link, machine.pid, "eth0"]
            command = [sys.executable, str(RELAY), *map(str, [*ends, delay, loss, number])]
            relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self.relays.append(relay)
            assert relay.stdout.readline() == "ready\n"
        else:
            peer = ["type", "veth", "peer", "name", "eth0", "netns", machine.pid]
            self.switch.call("ip", "link", "add", machine.link, *peer)
        self.switch.call("ip", "link", "set", machine.link, "master", "switch", "up")
        machine.call("ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            machine.call("ip", "link", "set", device, "up")
        return machine

    def fail(self, number):
        """As if the power of a machine failed: first its link is down, so that nothing that it runs says good-bye."""
        machine = self.machines.pop(number)
        self.switch.call("ip", "link", "set", machine.link, "down")
        machine.close()
        subprocess.run(self.switch.enter("ip", "link", "del", machine.link), capture_output=True)

    def close(self):
        """End all machines."""
        for machine in self.machines.values():
            machine.close()
        for relay in self.relays:
            relay.kill()
            relay.wait()
            relay.stdout.close()
        self.switch.close()
