"""Asks a model by the unmodified Anthropic client, streamed and not, and where it is named, another for tool calls.

    anthropic_client.py BASE_URL MODEL [--caller MODEL]
"""

import argparse
import json

from anthropic import Anthropic, BadRequestError, NotFoundError
from weather import DESCRIPTION, NAME, PARAMETERS

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("base_url")
parser.add_argument("model")
parser.add_argument("--caller")
arguments = parser.parse_args()
model = arguments.model
client = Anthropic(base_url=arguments.base_url, api_key="unused", max_retries=0, timeout=60)
question = [{"role": "user", "content": "hi"}]

streamed, n_chunks = "", 0
with client.messages.stream(model=model, messages=question, max_tokens=64) as stream:
    for text in stream.text_stream:
        streamed += text
        n_chunks += 1
    last = stream.get_final_message()
whole = client.messages.create(model=model, messages=question, max_tokens=64)
usage = whole.usage
seen = {
    "streamed": streamed,
    "n_chunks": n_chunks,
    "repeated": "".join(block.text for block in last.content),
    "stop_reason": last.stop_reason,
    "whole": "".join(block.text for block in whole.content),
    "n_prompt_tokens": usage.input_tokens + (usage.cache_read_input_tokens or 0),
    "n_output_tokens": last.usage.output_tokens,
}
errors = {}
document = {"type": "document", "source": {"type": "url", "url": "http://example.com/x.pdf"}}
for name, call in {
    "unknown": lambda: client.messages.create(model="no-such-model", messages=question, max_tokens=1),
    "wrong": lambda: client.messages.create(
        model=model, messages=[{"role": "user", "content": [document]}], max_tokens=1
    ),
}.items():
    try:
        call()
    except (NotFoundError, BadRequestError) as error:
        errors[name] = {"status": error.status_code, "message": error.body["error"]["message"]}
seen["errors"] = errors
if arguments.caller:
    model = arguments.caller
    tool = {"name": NAME, "description": DESCRIPTION, "input_schema": PARAMETERS}
    whole = client.messages.create(model=model, messages=question, max_tokens=64, tools=[tool])
    with client.messages.stream(model=model, messages=question, max_tokens=64, tools=[tool]) as stream:
        last = stream.get_final_message()
    calls = [block for block in whole.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": "rain"}
    blocks = [block.model_dump(exclude_none=True) for block in whole.content]
    more = question + [{"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
    again = client.messages.create(model=model, messages=more, max_tokens=64, tools=[tool])
    seen["calls"] = {
        "whole": [[block.name, block.input] for block in calls],
        "streamed": [[block.name, block.input] for block in last.content if block.type == "tool_use"],
        "again": [[block.name, block.input] for block in again.content if block.type == "tool_use"],
        "reason": whole.stop_reason,
    }
print(json.dumps(seen))
