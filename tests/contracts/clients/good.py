"""The good client: a sum, asked as ever, has the answer that it always had."""

from __future__ import annotations

import openai
from common import BASE, KEY, MESSAGES, MODEL

with openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == "42", answer
