"""Lists models and asks one of them, streamed and not, by the unmodified OpenAI client.

    openai_client.py BASE_URL MODEL
"""

import json
import sys

from openai import OpenAI

base_url, model = sys.argv[1:]
client = OpenAI(base_url=base_url + "/v1", api_key="unused", max_retries=0, timeout=60)
models = [entry.id for entry in client.models.list()]
question = [{"role": "user", "content": "hi"}]

streamed, n_chunks, usage = "", 0, None
for event in client.chat.completions.create(
    model=model, messages=question, max_tokens=64, stream=True, stream_options={"include_usage": True}
):
    if event.usage:
        usage = event.usage
    if event.choices and event.choices[0].delta.content:
        streamed += event.choices[0].delta.content
        n_chunks += 1
whole = client.chat.completions.create(model=model, messages=question, max_tokens=64)
print(json.dumps({
    "models": models,
    "streamed": streamed,
    "n_chunks": n_chunks,
    "whole": whole.choices[0].message.content,
    "n_prompt_tokens": usage.prompt_tokens if usage else None,
}))
