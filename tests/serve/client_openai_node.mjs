// What OpenAI's client for JavaScript does with a service: run in a folder of its own, with its address.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: base, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "who?" }];
const short = { model, messages, max_tokens: 8, temperature: 0 };

const parameters = {
  type: "object",
  properties: { is_far: { type: "boolean" } },
  required: ["is_far"],
  additionalProperties: false,
};

async function text() {
  return (await client.chat.completions.create(short)).choices[0].message.content;
}

async function chat() {
  const models = await client.models.list();
  assert.deepEqual(await client.models.retrieve(model), models.data[0]);
  assert.equal(typeof (await text()), "string");
  await assert.rejects(client.models.retrieve("other"), OpenAI.NotFoundError);
}

async function parts() {
  let streamed = "";
  for await (const part of await client.chat.completions.create({ ...short, stream: true })) {
    streamed += part.choices[0]?.delta?.content ?? "";
  }
  assert.equal(streamed, await text());
  assert.equal(await client.chat.completions.stream(short).finalContent(), streamed);
}

async function tools() {
  const offered = [{ type: "function", function: { name: "look", parameters } }];
  const called = await client.chat.completions.create({
    model,
    messages,
    tools: offered,
    tool_choice: "required",
    seed: 1,
  });
  for (const call of called.choices[0].message.tool_calls) {
    assert.equal(typeof JSON.parse(call.function.arguments).is_far, "boolean");
  }
}

async function schema() {
  const shaped = await client.chat.completions.create({
    model,
    messages,
    response_format: { type: "json_schema", json_schema: { name: "look", schema: parameters } },
    seed: 1,
  });
  assert.equal(typeof JSON.parse(shaped.choices[0].message.content).is_far, "boolean");
}

async function responses() {
  const request = { model, input: "who?", max_output_tokens: 8, temperature: 0 };
  const first = await client.responses.create(request);
  assert.equal(first.output_text, await text());
  const next = await client.responses.create({ ...request, previous_response_id: first.id });
  assert.ok(next.usage.input_tokens > first.usage.input_tokens);
  const events = [];
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    events.push(event.type);
  }
  assert.equal(events[0], "response.created");
}

async function completions() {
  const prompt = ["once", "upon"];
  const completed = await client.completions.create({ model, prompt, max_tokens: 4 });
  assert.equal(completed.choices.length, 2);
}

async function embeddings() {
  const { data } = await client.embeddings.create({ model, input: ["once", "upon"] });
  assert.equal(data.length, 2);
  assert.ok(Math.abs(Math.hypot(...data[0].embedding) - 1) < 1e-5);
}

for (const feature of [chat, parts, tools, schema, responses, completions, embeddings]) await feature();
