"""A chat service: one live stream per connection, any number of connections.

python examples/chat_service.py --port 8000 &
nc localhost 8000          # type a line, read the answer, and so on for days
"""

import argparse
import asyncio
import contextlib

from paged_stream import AsyncLLMEngine, EngineConfig, SamplingParams


async def serve(model: str, port: int, ready=None) -> None:
    params = SamplingParams(temperature=0.6, max_tokens=200)
    async with AsyncLLMEngine(EngineConfig(model=model, max_num_seqs=16)) as engine:

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async with await engine.open_stream() as stream:
                while line := (await reader.readline()).decode().strip():
                    async for delta in stream.chat(line, params):
                        writer.write(delta.delta_text.encode())
                        await writer.drain()  # a slow reader holds up nobody else
                    writer.write(b"\n")
            writer.close()

        async with await asyncio.start_server(talk, "localhost", port) as server:
            if ready is not None:
                ready(server.sockets[0].getsockname()[1])
            await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(args.model, args.port))
