"""Lists models and asks one of them by the unmodified Ollama client: chat and generate, streamed and not, and where they are
named, embeddings of another model and tool calls of a third.

    ollama_client.py BASE_URL MODEL [--embed MODEL] [--caller MODEL]
"""

import argparse
import json
from urllib.parse import urlsplit

from ollama import Client, ResponseError
from weather import NAME, TOOL

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("base_url")
parser.add_argument("model")
parser.add_argument("--embed")
parser.add_argument("--caller")
arguments = parser.parse_args()
base_url, model = arguments.base_url, arguments.model
if urlsplit(base_url).port is None:
    base_url += ":80"  # the client's own default for a missing port is another
client = Client(host=base_url, timeout=60)
seen = {
    "models": [entry.model for entry in client.list().models],
    "capabilities": client.show(model).capabilities,
}
question = [{"role": "user", "content": "hi"}]
options = {"num_predict": 64}

streamed, n_chunks, last = "", 0, None
for part in client.chat(model=model, messages=question, options=options, stream=True):
    if part.message.content:
        streamed += part.message.content
        n_chunks += 1
    last = part
whole = client.chat(model=model, messages=question, options=options)
seen |= {
    "streamed": streamed,
    "n_chunks": n_chunks,
    "whole": whole.message.content,
    "n_prompt_tokens": last.prompt_eval_count,
    "n_output_tokens": last.eval_count,
}
generated = ""
for part in client.generate(model=model, prompt="hi", options=options, stream=True):
    generated += part.response
seen["generated"] = generated
try:
    client.chat(model="no-such-model", messages=question)
except ResponseError as error:
    seen["errors"] = {"unknown": {"status": error.status_code, "message": error.error}}
if arguments.embed:
    answer = client.embed(model=arguments.embed, input=["one", "two"])
    seen["embeddings"] = [len(row) for row in answer.embeddings]
if arguments.caller:
    model = arguments.caller
    whole = client.chat(model=model, messages=question, tools=[TOOL])
    streamed = [
        call
        for part in client.chat(model=model, messages=question, tools=[TOOL], stream=True)
        for call in part.message.tool_calls or []
    ]
    told = {"role": "tool", "tool_name": NAME, "content": "rain"}
    again = client.chat(model=model, messages=question + [whole.message, told], tools=[TOOL])
    seen["calls"] = {
        name: [[call.function.name, call.function.arguments] for call in calls]
        for name, calls in {
            "whole": whole.message.tool_calls,
            "streamed": streamed,
            "again": again.message.tool_calls,
        }.items()
    }
print(json.dumps(seen))
