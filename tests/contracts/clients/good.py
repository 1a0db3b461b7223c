"""The good client: nothing of the others is left, and a sum has the answer that it always had."""

from __future__ import annotations

import time

import httpx
import openai
from common import BASE, KEY, MESSAGES, MODEL, URL

PATIENCE_S = 30.0

until_s = time.monotonic() + PATIENCE_S
headers = {"authorization": f"Bearer {KEY}"}
while httpx.get(f"{URL}/load", headers=headers, timeout=PATIENCE_S).json()["server_load"]:
    assert time.monotonic() < until_s, "streams that were left still run"
with openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == "42", answer
