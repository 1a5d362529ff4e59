"""pip install litellm

paged-stream serve --window-size 2048 &
python examples/clients/with_litellm.py http://localhost:8000/v1 smollm2-135m-instruct
"""

import sys

import litellm

base, model = sys.argv[1:]
service = {"api_base": base, "api_key": "none", "model": f"openai/{model}"}
messages = [{"role": "user", "content": "Who wrote Emma?"}]
for part in litellm.completion(messages=messages, max_tokens=32, stream=True, **service):
    print(part.choices[0].delta.content or "", end="", flush=True)
