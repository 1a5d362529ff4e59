"""pip install instructor

paged-stream serve --window-size 2048 &
python examples/clients/with_instructor.py http://localhost:8000/v1 smollm2-135m-instruct
"""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field


class Book(BaseModel):
    title: str = Field(max_length=30)
    is_novel: bool


base, model = sys.argv[1:]
client = instructor.from_openai(OpenAI(base_url=base, api_key="none"))
messages = [{"role": "user", "content": "What is Emma by Jane Austen?"}]
print(client.chat.completions.create(model=model, messages=messages, response_model=Book))
