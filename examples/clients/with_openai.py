"""pip install openai

paged-stream serve --window-size 2048 &
python examples/clients/with_openai.py http://localhost:8000/v1 smollm2-135m-instruct
"""

import sys

from openai import OpenAI

base, model = sys.argv[1:]
client = OpenAI(base_url=base, api_key="none")
said = client.responses.create(model=model, input="Who wrote Emma?", max_output_tokens=32)
print(said.output_text)
said = client.responses.create(  # nothing that was said before is computed again
    model=model, input="And what else?", previous_response_id=said.id, max_output_tokens=32
)
print(said.output_text)
