"""The tool that clients offer: what it is, and as OpenAI's and Ollama's APIs have it."""

NAME = "weather"
DESCRIPTION = "Tells the weather of a city."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": NAME, "description": DESCRIPTION, "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
