"""Lists models and asks one of them by the unmodified OpenAI client: chat, streamed and not, responses and completions alike,
and where they are named, embeddings of another model and tool calls of a third.

    openai_client.py BASE_URL MODEL [--embed MODEL] [--caller MODEL]
"""

import argparse
import json

from openai import BadRequestError, NotFoundError, OpenAI
from weather import FUNCTION, TOOL

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("base_url")
parser.add_argument("model")
parser.add_argument("--embed")
parser.add_argument("--caller")
arguments = parser.parse_args()
model = arguments.model
client = OpenAI(base_url=arguments.base_url + "/v1", api_key="unused", max_retries=0, timeout=60)
seen = {"models": [entry.id for entry in client.models.list()], "one": client.models.retrieve(model).id}
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
seen |= {
    "streamed": streamed,
    "n_chunks": n_chunks,
    "whole": whole.choices[0].message.content,
    "n_prompt_tokens": usage.prompt_tokens if usage else None,
    "n_output_tokens": usage.completion_tokens if usage else None,
}

streamed, last = "", None
for event in client.responses.create(model=model, input="hi", max_output_tokens=64, stream=True):
    if event.type == "response.output_text.delta":
        streamed += event.delta
    last = event
whole = client.responses.create(model=model, input="hi", max_output_tokens=64)
seen["responses"] = {
    "streamed": streamed,
    "last": last.type,
    "repeated": last.response.output_text,
    "whole": whole.output_text,
    "n_prompt_tokens": whole.usage.input_tokens,
    "n_output_tokens": whole.usage.output_tokens,
}

streamed = ""
for event in client.completions.create(model=model, prompt="hi", max_tokens=16, stream=True):
    streamed += event.choices[0].text if event.choices else ""
seen["completions"] = streamed

errors = {}
for name, call in {
    "unknown": lambda: client.chat.completions.create(model="no-such-model", messages=question),
    "wrong": lambda: client.responses.create(model=model, input="hi", previous_response_id="resp_1"),
}.items():
    try:
        call()
    except (NotFoundError, BadRequestError) as error:
        errors[name] = {"status": error.status_code, "message": error.body["message"]}
seen["errors"] = errors

if arguments.embed:
    answer = client.embeddings.create(model=arguments.embed, input=["one", "two"])
    seen["embeddings"] = [len(row.embedding) for row in answer.data]
if arguments.caller:
    model = arguments.caller

    def told_calls(calls):
        return [[call.name, json.loads(call.arguments)] for call in calls]

    whole = client.chat.completions.create(model=model, messages=question, tools=[TOOL]).choices[0]
    calls, streamed = whole.message.tool_calls, {}
    for event in client.chat.completions.create(model=model, messages=question, tools=[TOOL], stream=True):
        for call in (event.choices[0].delta.tool_calls or []) if event.choices else []:
            parts = streamed.setdefault(call.index, ["", ""])
            parts[0] += call.function.name or ""
            parts[1] += call.function.arguments or ""
    told = {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"}
    more = question + [whole.message.model_dump(exclude_none=True), told]
    again = client.chat.completions.create(model=model, messages=more, tools=[TOOL]).choices[0].message
    flat = FUNCTION | {"type": "function"}
    response = client.responses.create(model=model, input="hi", tools=[flat])
    done = [
        event.item
        for event in client.responses.create(model=model, input="hi", tools=[flat], stream=True)
        if event.type == "response.output_item.done"
    ]
    seen["calls"] = {
        "whole": told_calls(call.function for call in calls),
        "streamed": [[name, json.loads(text)] for name, text in streamed.values()],
        "again": told_calls(call.function for call in again.tool_calls),
        "response": told_calls(item for item in response.output if item.type == "function_call"),
        "events": told_calls(item for item in done if item.type == "function_call"),
        "reason": whole.finish_reason,
    }
print(json.dumps(seen))
