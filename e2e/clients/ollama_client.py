"""Lists models and asks one of them, streamed and not, by the unmodified Ollama client.

    ollama_client.py BASE_URL MODEL
"""

import json
import sys
from urllib.parse import urlsplit

from ollama import Client

base_url, model = sys.argv[1:]
if urlsplit(base_url).port is None:
    base_url += ":80"  # the client's own default for a missing port is another
client = Client(host=base_url, timeout=60)
models = [entry.model for entry in client.list().models]
question = [{"role": "user", "content": "hi"}]

streamed, n_chunks, last = "", 0, None
for part in client.chat(model=model, messages=question, options={"num_predict": 64}, stream=True):
    if part.message.content:
        streamed += part.message.content
        n_chunks += 1
    last = part
whole = client.chat(model=model, messages=question, options={"num_predict": 64})
print(json.dumps({
    "models": models,
    "streamed": streamed,
    "n_chunks": n_chunks,
    "whole": whole.message.content,
    "n_prompt_tokens": last.prompt_eval_count,
}))
