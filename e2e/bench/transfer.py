#!/usr/bin/env python3
"""transfer: a number of known bytes over one TCP connection, with cubic at both ends.

  transfer.py serve ADDRESS PORT BYTES     sends them to each client
  transfer.py fetch ADDRESS PORT BYTES     takes them and prints one line of JSON: seconds, whether they are exact, and the
                                           fewest bytes that came within any 30 s (null when it took less)
"""
import hashlib, json, random, socket, sys, time

CONTROL = b"cubic"
WINDOW = 30.0
PATIENCE = 60.0  # seconds without a byte after which it is given up


def content(n_bytes):
    return random.Random(1).randbytes(n_bytes)


def cubic(s):
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONTROL)


def serve(address, port, n_bytes):
    data = content(n_bytes)
    with socket.create_server((address, port)) as server:
        cubic(server)
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                try:
                    client.sendall(data)
                except OSError:
                    pass  # that client gave up; the next one may not


def fetch(address, port, n_bytes, limit=None):
    """All of it, or what comes within `limit` seconds."""
    start, arrivals, digest, n_got = time.monotonic(), [], hashlib.sha256(), 0
    s = socket.socket()
    cubic(s)
    s.settimeout(PATIENCE)
    with s:
        s.connect((address, port))
        while True:
            left = PATIENCE if limit is None else start + limit - time.monotonic()
            if left <= 0:
                break
            s.settimeout(left)
            try:
                data = s.recv(65536)
            except TimeoutError:
                if limit is None:
                    raise
                break
            if not data:
                break
            digest.update(data)
            n_got += len(data)
            arrivals.append((time.monotonic() - start, n_got))
    seconds = time.monotonic() - start
    is_whole = n_got == n_bytes or limit is not None
    is_exact = is_whole and digest.hexdigest() == hashlib.sha256(content(n_bytes)[:n_got]).hexdigest()
    fewest = slowest(arrivals) if limit is None else n_got
    print(json.dumps({"seconds": seconds, "n_bytes": n_got, "is_exact": is_exact, "slowest": fewest}))


def slowest(arrivals):
    """The fewest bytes within a window of 30 s: it begins at an arrival, or it would not be the emptiest."""
    if not arrivals or arrivals[-1][0] < WINDOW:
        return None
    fewest, last, end = None, arrivals[-1][0], 0
    for at, before in arrivals:
        if at + WINDOW > last:
            break
        while arrivals[end][0] <= at + WINDOW:
            end += 1
        came = arrivals[end - 1][1] - before
        fewest = came if fewest is None else min(fewest, came)
    return fewest


if __name__ == "__main__":
    verb, address, port, n_bytes, *limit = sys.argv[1:]
    {"serve": serve, "fetch": fetch}[verb](address, int(port), int(n_bytes), *map(float, limit))
