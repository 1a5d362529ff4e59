// npm install openai
//
// paged-stream serve --window-size 2048 &
// node examples/clients/with_openai_node.mjs http://localhost:8000/v1 smollm2-135m-instruct

import OpenAI from "openai";

const [base, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: "none" });
const messages = [{ role: "user", content: "Who wrote Emma?" }];
const parts = await client.chat.completions.create({ model, messages, max_tokens: 32, stream: true });
for await (const part of parts) process.stdout.write(part.choices[0]?.delta?.content ?? "");
