#!/usr/bin/env python3
"""probe: small questions of time, run inside a namespace by the benchmarks.

  probe.py echo ADDRESS PORT                   answers what it hears over TCP, one client at a time
  probe.py chat ADDRESS PORT COUNT             one message of 100 bytes each 20 ms, and back; prints round trips in ms
  probe.py talk ADDRESS PORT                   sends whoever connects a message of 100 bytes each 20 ms, one client at a time
  probe.py listen ADDRESS PORT COUNT           hears so many of those; prints how many ms after it was due each one came
  probe.py first-ping ADDRESS SECONDS -- CMD…  starts CMD and prints how many ms later ADDRESS answered an ICMP echo request;
                                               then CMD runs on until this is ended

All but first-ping run at real-time priority: what they measure is the way between them, not their own turn at a busy core.
"""
import json, os, select, signal, socket, struct, subprocess, sys, time

MESSAGE = 100
EACH = 0.02
PATIENCE = 5.0  # seconds for the last answers
PING_EACH = 0.002


def hurry():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def serve(address, port, talk_to):
    """Talks to whoever connects, one client at a time."""
    hurry()
    with socket.create_server((address, int(port))) as server:
        while True:
            client, _ = server.accept()
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    talk_to(client)
                except OSError:
                    pass  # that client is gone; the next one may come


def echo(client):
    while data := client.recv(65536):
        client.sendall(data)


def talk(client):
    start, n = time.monotonic(), 0
    while True:
        n += 1
        due = start + n * EACH
        time.sleep(max(0, due - time.monotonic()))
        # All namespaces of a machine have one clock.
        client.sendall(struct.pack("!d", due).ljust(MESSAGE, b"."))


def chat(address, port, count):
    hurry()
    count, trips, sent, pending = int(count), [], [], b""
    with socket.create_connection((address, int(port)), timeout=PATIENCE) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.monotonic()
        while len(trips) < count:
            now = time.monotonic()
            if len(sent) < count and now >= (due := start + len(sent) * EACH):
                # A message counts from when it was due, so that a link that takes none does not look fast.
                sent.append(due)
                s.sendall(struct.pack("!I", len(trips)).ljust(MESSAGE, b"."))
                continue
            if len(sent) == count and now > sent[-1] + PATIENCE:
                break
            wait = start + len(sent) * EACH - now if len(sent) < count else PATIENCE
            if select.select([s], [], [], max(0, wait))[0]:
                data = s.recv(65536)
                if not data:
                    break
                pending += data
                while len(pending) >= MESSAGE and len(trips) < len(sent):
                    trips.append((time.monotonic() - sent[len(trips)]) * 1e3)
                    pending = pending[MESSAGE:]
    json.dump({"sent": len(sent), "ms": trips}, sys.stdout)


def listen(address, port, count):
    hurry()
    count, delays, pending = int(count), [], b""
    with socket.create_connection((address, int(port)), timeout=PATIENCE) as s:
        while len(delays) < count:
            try:
                data = s.recv(65536)
            except TimeoutError:
                break
            if not data:
                break
            pending += data
            while len(pending) >= MESSAGE and len(delays) < count:
                due, = struct.unpack("!d", pending[:8])
                delays.append((time.monotonic() - due) * 1e3)
                pending = pending[MESSAGE:]
    json.dump({"sent": count, "ms": delays}, sys.stdout)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def first_ping(address, seconds, command):
    ident = os.getpid() & 0xFFFF
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.setblocking(False)
    start = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        sequence, took = 0, None
        while took is None and time.monotonic() < start + float(seconds) and child.poll() is None:
            sequence += 1
            body = struct.pack("!BBHHH", 8, 0, 0, ident, sequence & 0xFFFF) + b"proxima."
            body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
            try:
                s.sendto(body, (address, 0))
            except OSError:
                pass  # no route yet
            until = time.monotonic() + PING_EACH
            while took is None and (left := until - time.monotonic()) > 0:
                if not select.select([s], [], [], left)[0]:
                    break
                packet = s.recv(2048)
                reply = packet[(packet[0] & 15) * 4:]
                if reply[0] == 0 and struct.unpack("!H", reply[4:6])[0] == ident:
                    took = (time.monotonic() - start) * 1e3
        print(json.dumps({"ms": took, "asked": sequence}), flush=True)
        child.wait()
    finally:
        child.terminate()
        child.wait()


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    what, args = sys.argv[1], sys.argv[2:]
    if what == "echo":
        serve(*args, echo)
    elif what == "chat":
        chat(*args)
    elif what == "talk":
        serve(*args, talk)
    elif what == "listen":
        listen(*args)
    elif what == "first-ping" and args[2] == "--":
        first_ping(args[0], args[1], args[3:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
