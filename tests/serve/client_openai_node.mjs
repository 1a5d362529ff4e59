// What OpenAI's client for JavaScript does with a service: run in a folder of its own, with its address.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "who?" }];
const short = { model, messages, max_tokens: 8, temperature: 0 };

const models = await client.models.list();
assert.deepEqual(await client.models.retrieve(model), models.data[0]);

const said = await client.chat.completions.create(short);
const text = said.choices[0].message.content;
assert.equal(typeof text, "string");
let streamed = "";
for await (const part of await client.chat.completions.create({ ...short, stream: true })) {
  streamed += part.choices[0]?.delta?.content ?? "";
}
assert.equal(streamed, text);
const helper = client.chat.completions.stream(short);
assert.equal(await helper.finalContent(), text);

const parameters = {
  type: "object",
  properties: { is_far: { type: "boolean" } },
  required: ["is_far"],
  additionalProperties: false,
};
const called = await client.chat.completions.create({
  model,
  messages,
  tools: [{ type: "function", function: { name: "look", parameters } }],
  tool_choice: "required",
  seed: 1,
});
for (const call of called.choices[0].message.tool_calls) {
  assert.equal(typeof JSON.parse(call.function.arguments).is_far, "boolean");
}
const shaped = await client.chat.completions.create({
  model,
  messages,
  response_format: { type: "json_schema", json_schema: { name: "look", schema: parameters } },
  seed: 1,
});
assert.equal(typeof JSON.parse(shaped.choices[0].message.content).is_far, "boolean");

const request = { model, input: "who?", max_output_tokens: 8, temperature: 0 };
const first = await client.responses.create(request);
assert.equal(first.output_text, text);
const next = await client.responses.create({ ...request, previous_response_id: first.id });
assert.ok(next.usage.input_tokens > first.usage.input_tokens);
const events = [];
for await (const event of await client.responses.create({ ...request, stream: true })) {
  events.push(event.type);
}
assert.equal(events[0], "response.created");

const completed = await client.completions.create({ model, prompt: ["once", "upon"], max_tokens: 4 });
assert.equal(completed.choices.length, 2);
const { data } = await client.embeddings.create({ model, input: ["once", "upon"] });
assert.equal(data.length, 2);
assert.ok(Math.abs(Math.hypot(...data[0].embedding) - 1) < 1e-5);
await assert.rejects(client.models.retrieve("other"), OpenAI.NotFoundError);
