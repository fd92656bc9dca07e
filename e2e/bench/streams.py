"""streams: many streams of a counting model at once, each looked at word by word.

    streams.py HOST[:PORT] MODEL LETTER N_STREAMS N_AT_ONCE N_WORDS

Half of them by Ollama's API, half by OpenAI's. Prints one JSON object: how many came whole, were refused before their first
byte, told of an error, ended without a word, or had a word lost, doubled or out of order; with some examples of the last two.
"""
import http.client
import json
import sys
import threading

HOST, MODEL, LETTER = sys.argv[1:4]
N_STREAMS, N_AT_ONCE, N_WORDS = map(int, sys.argv[4:7])
MESSAGES = [{"role": "user", "content": "count"}]
TIMEOUT = 60

lock = threading.Lock()
n_begun = 0
seen = {"whole": 0, "refused": 0, "told": 0, "silent": 0, "wrong": 0}
examples = []


def ollama(line):
    """What a line says: text, whether it is the last one, and whether it is an error."""
    value = json.loads(line)
    text = value.get("message", {}).get("content", "")
    return text, value.get("done") is True, "error" in value


def openai(line):
    if not line.startswith(b"data: "):
        return "", False, False
    if line.strip() == b"data: [DONE]":
        return "", True, False
    value = json.loads(line[6:])
    text = "".join(choice["delta"].get("content") or "" for choice in value.get("choices", []))
    return text, False, "error" in value


def ask(number):
    """The outcome of one stream, and what was heard of it."""
    is_ollama = number % 2 == 0
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    body |= {"options": {"num_predict": N_WORDS}} if is_ollama else {"max_tokens": N_WORDS}
    path, read = ("/api/chat", ollama) if is_ollama else ("/v1/chat/completions", openai)
    connection = http.client.HTTPConnection(HOST, timeout=TIMEOUT)
    text, is_over, is_error = "", False, False
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            told = json.loads(answer.read())
            return ("refused" if "error" in told else "silent"), f"{answer.status} {told}"
        while line := answer.readline():
            if not line.strip():
                continue
            more, over, error = read(line)
            text += more
            is_over, is_error = is_over or over, is_error or error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if not is_over and not is_error:
            return "silent", f"{error!r} after {text!r}"
    finally:
        connection.close()
    words = text.split()
    if words != [f"{LETTER}{n + 1}" for n in range(len(words))]:
        return "wrong", text
    if is_error:
        return "told", text
    if not is_over:
        return "silent", f"a clean end after {text!r}"
    return ("whole" if len(words) == N_WORDS else "wrong"), text


def work():
    global n_begun
    while True:
        with lock:
            if n_begun == N_STREAMS:
                return
            number = n_begun
            n_begun += 1
        outcome, heard = ask(number)
        with lock:
            seen[outcome] += 1
            if outcome in ("silent", "wrong") and len(examples) < 5:
                examples.append(f"{outcome}: {heard}")


threads = [threading.Thread(target=work) for _ in range(N_AT_ONCE)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(seen | {"examples": examples}))
