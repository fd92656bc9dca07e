#!/usr/bin/env python3
"""weather: a TUN interface that doubles packets and gives them back out of order, or late.

  weather.py NAME delay MS     each packet comes back after MS milliseconds; prints `ready` once it is up
  weather.py NAME DEPTH        each block of DEPTH packets comes back shuffled, each packet twice; prints `ready` once it is up.
                               A block that does not fill is given back after 50 ms without a packet.

What is routed into NAME comes out of it again, to be routed on: the kernel must send there only what it leads.
"""
import collections, fcntl, os, random, select, struct, sys, time

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
QUIET = 0.05
# A network gives packets in any order, but not thousands at one instant: no receiver has room for that.
BURST, PAUSE = 50, 0.001


def open_tun(name):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    os.system(f"ip link set {name} up txqueuelen 10000")
    print("ready", flush=True)
    return tun


def delay(name, ms):
    tun, waiting = open_tun(name), collections.deque()
    while True:
        left = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([tun], [], [], left)[0]:
            due = time.monotonic() + ms / 1e3
            try:
                while True:
                    waiting.append((due, os.read(tun, 65536)))
            except BlockingIOError:
                pass
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            os.write(tun, waiting.popleft()[1])


def shuffle(name, depth):
    tun = open_tun(name)
    draw, block = random.Random(7), []

    def give():
        draw.shuffle(block)
        # The copies are as far apart as the shuffle is deep, and no window is wider than that.
        for n, packet in enumerate(block + block):
            os.write(tun, packet)
            if n % BURST == BURST - 1:
                time.sleep(PAUSE)
        block.clear()

    while True:
        readable, _, _ = select.select([tun], [], [], QUIET)
        if not readable:
            give()
            continue
        try:
            while len(block) < depth:
                block.append(os.read(tun, 65536))
        except BlockingIOError:
            continue
        give()


if __name__ == "__main__":
    if sys.argv[2] == "delay":
        delay(sys.argv[1], float(sys.argv[3]))
    else:
        shuffle(sys.argv[1], int(sys.argv[2]))
