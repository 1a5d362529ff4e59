"""pip install "pydantic-ai-slim[openai]"

paged-stream serve --window-size 2048 &
python examples/clients/with_pydantic_ai.py http://localhost:8000/v1 smollm2-135m-instruct
"""

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

base, model = sys.argv[1:]
chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=base, api_key="none"))
agent = Agent(chat, output_type=bool)
print(agent.run_sync("Did Jane Austen write Emma?").output)
