"""pip install langchain-openai

paged-stream serve --window-size 2048 &
python examples/clients/with_langchain.py http://localhost:8000/v1 smollm2-135m-instruct
"""

import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

base, model = sys.argv[1:]
chat = ChatOpenAI(base_url=base, api_key="none", model=model, max_tokens=32)
for part in chat.stream("Who wrote Emma?"):
    print(part.content, end="", flush=True)
# Otherwise it sends token ids of OpenAI's own models.
own = {"check_embedding_ctx_length": False}
vectors = OpenAIEmbeddings(base_url=base, api_key="none", model=model, **own)
print(len(vectors.embed_query("Who wrote Emma?")))
