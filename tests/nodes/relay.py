"""A bad link between two network namespaces: packets are delayed, and some are lost.

    python relay.py PID DEVICE PID DEVICE SECONDS SHARE SEED

makes a TAP device in the namespace of each process, and carries Ethernet frames between them, in both directions, each
SECONDS late, but for a SHARE of them. As ``tc qdisc add dev DEVICE root netem delay .. loss ..`` on both ends, for
kernels without netem.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
LONGEST = 1 << 16  # bytes of a frame


def open_tap(pid, name):
    """A new TAP device in the network namespace of a process -> file descriptor."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return handle


def relay(ends, delay, loss, seed):
    """Carry frames between two devices until the process is killed."""
    rng, waiting, number = random.Random(seed), [], 0
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for handle in select.select(ends, [], [], patience)[0]:
            try:
                frame = os.read(handle, LONGEST)
            except OSError:  # the device is down
                continue
            if rng.random() >= loss:
                number += 1
                heapq.heappush(waiting, (time.monotonic() + delay, number, ends[handle == ends[0]], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, handle, frame = heapq.heappop(waiting)
            try:
                os.write(handle, frame)
            except OSError:
                continue


if __name__ == "__main__":
    arguments = sys.argv[1:]
    taps = [open_tap(int(arguments[0]), arguments[1]), open_tap(int(arguments[2]), arguments[3])]
    print("ready", flush=True)
    relay(taps, float(arguments[4]), float(arguments[5]), int(arguments[6]))
