"""Asks a model by LangChain's ChatOllama, streamed and not, and where they are named, embeds by OllamaEmbeddings and
has a tool called.

    langchain_client.py BASE_URL MODEL [--embed MODEL] [--caller MODEL]
"""

import argparse
import json

from langchain_ollama import ChatOllama, OllamaEmbeddings

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("base_url")
parser.add_argument("model")
parser.add_argument("--embed")
parser.add_argument("--caller")
arguments = parser.parse_args()
chat = ChatOllama(
    base_url=arguments.base_url, model=arguments.model, num_predict=64, validate_model_on_init=True
)
streamed, n_chunks = "", 0
for chunk in chat.stream("hi"):
    if chunk.content:
        streamed += chunk.content
        n_chunks += 1
whole = chat.invoke("hi")
seen = {
    "streamed": streamed,
    "n_chunks": n_chunks,
    "whole": whole.content,
    "n_prompt_tokens": whole.usage_metadata["input_tokens"],
    "n_output_tokens": whole.usage_metadata["output_tokens"],
}
if arguments.embed:
    embedder = OllamaEmbeddings(base_url=arguments.base_url, model=arguments.embed)
    seen["embeddings"] = [len(row) for row in embedder.embed_documents(["one", "two"])]
if arguments.caller:

    def weather(city: str) -> str:
        """Tells the weather of a city."""
        return "rain"

    caller = ChatOllama(base_url=arguments.base_url, model=arguments.caller).bind_tools([weather])
    streamed = [call for chunk in caller.stream("hi") for call in chunk.tool_calls]
    seen["calls"] = {
        name: [[call["name"], call["args"]] for call in calls]
        for name, calls in {"whole": caller.invoke("hi").tool_calls, "streamed": streamed}.items()
    }
print(json.dumps(seen))
