"""pip install llama-index-llms-openai-like

paged-stream serve --window-size 2048 &
python examples/clients/with_llama_index.py http://localhost:8000/v1 smollm2-135m-instruct
"""

import sys

from llama_index.llms.openai_like import OpenAILike

base, model = sys.argv[1:]
llm = OpenAILike(api_base=base, api_key="none", model=model, is_chat_model=True, max_tokens=32)
for part in llm.stream_complete("Who wrote Emma?"):
    print(part.delta, end="", flush=True)
