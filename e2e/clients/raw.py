"""Sends HTTP requests byte by byte as they are given and prints the status of each answer, 0 for none.

    raw.py HOST:PORT FILE      FILE: a JSON list of whole requests, a byte as the character of its number
"""

import concurrent.futures
import json
import socket
import sys

target, path = sys.argv[1:]
host, port = target.rsplit(":", 1)
family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
with open(path) as file:
    requests = json.load(file)


def send(request):
    answer = b""
    try:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(15)
            connection.connect(address)
            connection.sendall(request.encode("latin-1"))
            while b"\r\n" not in answer:
                piece = connection.recv(4096)
                if not piece:
                    break
                answer += piece
            # Read on, so that a request hidden behind the first one gets its chance.
            connection.settimeout(0.3)
            while connection.recv(65536):
                pass
    except OSError:
        pass
    words = answer.split(b"\r\n", 1)[0].split(b" ")
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(send, requests))))
