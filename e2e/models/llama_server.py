#!/usr/bin/env python3
"""Runs llama.cpp's own HTTP server, which the xllamacpp wheel embeds, until a signal ends it.

    llama_server.py -m FILE --alias NAME --host IP --port PORT [-t N] [-np N] [--metrics] [--no-webui] [--embeddings]
                    [--cache-ram MIB]

The flags are those of llama.cpp's llama-server and mean the same. The wheel's code runs on any x86-64 with AVX2 and on
arm64; the ready-made llama-servers among wheels are built for one newer CPU and die of an illegal instruction elsewhere.
llama.cpp's log goes to standard error. Exit code 1: it did not start, 2: wrong flags.
"""

import argparse
import os
import signal
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True, metavar="FILE", help="the model, a GGUF file")
    parser.add_argument("--alias", metavar="NAME", help="the name that clients see; the file's by default")
    parser.add_argument("--host", default="127.0.0.1", metavar="IP", help="where to listen")
    parser.add_argument("--port", type=port, default=8080, help="where to listen")
    parser.add_argument("-t", "--threads", type=count, default=1, metavar="N", help="threads that compute")
    parser.add_argument("-np", "--parallel", type=count, default=1, metavar="N", help="requests at a time")
    parser.add_argument("-cram", "--cache-ram", type=size, metavar="MIB", help="memory for prompts that no slot holds")
    parser.add_argument("--metrics", action="store_true", help="answer /metrics")
    parser.add_argument("--no-webui", action="store_true", help="serve no web page")
    parser.add_argument("--embeddings", action="store_true", help="make embeddings and nothing else")
    arguments = parser.parse_args()

    # llama.cpp logs some levels to standard output.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Python's own handler runs between two of its instructions, of which there are none while llama.cpp loads a model.
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.SIG_DFL)

    # Kept in a name: the server ends with the object.
    _server = start(arguments)
    while True:
        signal.pause()


def start(arguments):
    try:
        with open(arguments.model, "rb"):
            pass
    except OSError as error:
        sys.exit(f"llama_server: cannot read the model {arguments.model}: {error.strerror}")
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(f"llama_server: no xllamacpp ({error}): run `make tools`")

    parameters = xllamacpp.CommonParams()
    parameters.model.path = arguments.model
    if arguments.alias:
        parameters.model_alias = {arguments.alias}
    parameters.hostnames = [arguments.host]
    parameters.port = arguments.port
    parameters.cpuparams.n_threads = arguments.threads
    parameters.cpuparams_batch.n_threads = arguments.threads
    parameters.n_parallel = arguments.parallel
    if arguments.cache_ram is not None:
        parameters.cache_ram_mib = arguments.cache_ram
    parameters.endpoint_metrics = arguments.metrics
    parameters.endpoint_slots = True
    parameters.ui = not arguments.no_webui
    parameters.embedding = arguments.embeddings
    try:
        return xllamacpp.Server(parameters)
    except (RuntimeError, ValueError) as error:
        sys.exit(
            f"llama_server: cannot serve {arguments.model} on {arguments.host}:{arguments.port}, "
            f"llama.cpp's log above says why: {error}"
        )


def port(text):
    return number(text, 1, 65535)


def count(text):
    return number(text, 1, 1024)


def size(text):
    return number(text, 0, 1 << 20)


def number(text, lowest, highest):
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {lowest} to {highest}")
    return int(text)


if __name__ == "__main__":
    main()
