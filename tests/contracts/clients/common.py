"""What all clients ask. Knows nothing of any client."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel

URL, KEY = os.environ["SHOAL_URL"], os.environ["SHOAL_KEY"]
BASE, MODEL = f"{URL}/v1", "shoal-demo"
QUESTION = "What is 17 + 25?"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
LONG = {"temperature": 0.0, "max_tokens": 300}
STREAMS = 32  # at once, every other one left after its first piece
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER},
}


class Trip(BaseModel):
    """Bounded, so that a small model comes to its end."""

    home: bool
    days: int | None
