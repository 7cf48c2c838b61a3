// A session of OpenAI's client for Node with a node of modeld. Its environment says where: OPENAI_BASE_URL, OPENAI_API_KEY.
// It writes a line of JSON for each step that went well, and ends with an error at the first that did not.

import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const weather = {
  name: "get_weather",
  description: "Get the weather in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const tools = [{ type: "function", function: weather }];
const schema = {
  type: "object",
  properties: { name: { enum: ["kiwi", "lotus"] } },
  required: ["name"],
  additionalProperties: false,
};
const said = (content) => [{ role: "user", content }];
const call = '!call get_weather {"city": "Oslo"}';

async function all(stream) {
  const found = [];
  for await (const item of stream) found.push(item);
  return found;
}

const steps = {
  async models() {
    const ids = (await all(client.models.list())).map((model) => model.id);
    assert.ok(ids.includes("tiny"));
    assert.equal((await client.models.retrieve("tiny")).object, "model");
  },

  async chat() {
    const answer = await client.chat.completions.create({ model: "fake", messages: said("hello") });
    assert.equal(answer.object, "chat.completion");
    assert.match(answer.choices[0].message.content, /^hello #/);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.choices[0].message.refusal, null);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.ok(answer._request_id);
  },

  async stream() {
    const asked = { model: "fake", messages: said("!count 30") };
    const whole = await client.chat.completions.create(asked);
    const chunks = await all(
      await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } }),
    );
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
    const final = await client.chat.completions.stream(asked).finalChatCompletion();
    assert.equal(final.choices[0].message.content, text);
  },

  async logprobs() {
    const answer = await client.chat.completions.create({
      model: "tiny",
      messages: said("Where is Anna?"),
      reasoning_effort: "none",
      max_tokens: 20,
      logprobs: true,
      top_logprobs: 2,
    });
    const told = answer.choices[0].logprobs.content;
    assert.equal(told.map((token) => token.token).join(""), answer.choices[0].message.content);
    assert.equal(told[0].top_logprobs.length, 2);
  },

  async tools() {
    const messages = said(call);
    const answer = await client.chat.completions.create({ model: "fake", messages, tools });
    const made = answer.choices[0].message.tool_calls[0];
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    assert.deepEqual(JSON.parse(made.function.arguments), { city: "Oslo" });
    messages.push(answer.choices[0].message, { role: "tool", tool_call_id: made.id, content: "sunny" });
    assert.ok(await client.chat.completions.create({ model: "fake", messages, tools }));
    // The client's own loop: it calls the function and sends the result back.
    const cities = [];
    const run = (args) => (cities.push(JSON.parse(args).city), "sunny");
    const runner = client.chat.completions.runTools(
      { model: "fake", messages: said(call), tools: [{ type: "function", function: { ...weather, function: run } }] },
      { maxChatCompletions: 2 },
    );
    await runner.done();
    assert.equal(cities[0], "Oslo");
  },

  async parallel_tools() {
    const two = [tools[0], { type: "function", function: { name: "get_time", parameters: { type: "object" } } }];
    const asked = { model: "fake", messages: said(`${call} && get_time {}`), tools: two, parallel_tool_calls: true };
    const whole = await client.chat.completions.create(asked);
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
    for (const answer of [whole, streamed]) {
      const made = answer.choices[0].message.tool_calls;
      assert.deepEqual(made.map((one) => one.function.name), ["get_weather", "get_time"]);
      assert.deepEqual(made.map((one) => JSON.parse(one.function.arguments)), [{ city: "Oslo" }, {}]);
      assert.notEqual(made[0].id, made[1].id);
    }
  },

  async json_schema() {
    const answer = await client.chat.completions.parse({
      model: "tiny",
      messages: said("Give me a fruit."),
      response_format: { type: "json_schema", json_schema: { name: "fruit", schema, strict: true } },
      reasoning_effort: "none",
      max_tokens: 60,
    });
    assert.ok(["kiwi", "lotus"].includes(JSON.parse(answer.choices[0].message.content).name));
  },

  async completions() {
    const answer = await client.completions.create({ model: "tiny", prompt: ["A river", "Snow"], max_tokens: 5 });
    assert.equal(answer.object, "text_completion");
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
    const chunks = await all(await client.completions.create({ model: "tiny", prompt: "A river", stream: true }));
    assert.ok(chunks.at(-1).choices[0].finish_reason);
  },

  async embeddings() {
    // Left to itself the client asks for base64.
    const texts = ["a river", "two stones"];
    const packed = await client.embeddings.create({ model: "tiny", input: texts });
    const numbers = await client.embeddings.create({ model: "tiny", input: texts, encoding_format: "float" });
    assert.equal(packed.data.length, 2);
    assert.deepEqual([...packed.data[1].embedding], numbers.data[1].embedding);
    assert.equal(packed.usage.prompt_tokens, numbers.usage.total_tokens);
  },

  async responses() {
    const asked = { model: "fake", input: "hello", reasoning: { effort: "high" } };
    const whole = await client.responses.create(asked);
    assert.deepEqual(whole.output.map((item) => item.type), ["reasoning", "message"]);
    assert.equal(whole.status, "completed");
    const events = await all(await client.responses.create({ ...asked, stream: true }));
    assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
    assert.equal(events.at(-1).type, "response.completed");
    const final = await client.responses.stream(asked).finalResponse();
    assert.equal(final.output_text, whole.output_text);
  },

  async responses_tools() {
    const input = said(call);
    const functions = [{ type: "function", strict: false, ...weather }];
    const first = await client.responses.create({ model: "fake", input, tools: functions });
    const made = first.output.find((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(made.arguments), { city: "Oslo" });
    input.push(...first.output, { type: "function_call_output", call_id: made.call_id, output: "sunny" });
    const second = await client.responses.create({ model: "fake", input, tools: functions });
    assert.ok(second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens);
    const both = [...functions, { type: "function", name: "get_time", strict: false, parameters: { type: "object" } }];
    const two = await client.responses.create({ model: "fake", input: `${call} && get_time {}`, tools: both });
    assert.deepEqual(two.output.map((item) => item.name), ["get_weather", "get_time"]);
    const held = await client.responses.parse({
      model: "tiny",
      input: "Give me a fruit.",
      text: { format: { type: "json_schema", name: "fruit", schema, strict: true } },
      reasoning: { effort: "none" },
      max_output_tokens: 60,
    });
    assert.ok(["kiwi", "lotus"].includes(JSON.parse(held.output_text).name));
  },

  async errors() {
    const chat = (body) => client.chat.completions.create({ model: "fake", messages: said("x"), ...body });
    await assert.rejects(chat({ model: "nobody" }), (error) => {
      return error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && error.param === "model";
    });
    await assert.rejects(chat({ messages: said("x".repeat(5000)) }), (error) => {
      return error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded";
    });
    await assert.rejects(chat({ logit_bias: { 1: 1 } }), (error) => error.param === "logit_bias" && !!error.requestID);
    await assert.rejects(client.responses.create({ model: "fake", input: "x", store: true }), OpenAI.BadRequestError);
    const stranger = new OpenAI({ apiKey: "x".repeat(20), maxRetries: 0 });
    await assert.rejects(all(stranger.models.list()), OpenAI.AuthenticationError);
  },

  async leaving() {
    const stream = await client.chat.completions.create({
      model: "fake:delay=0.005",
      messages: said("!count 900"),
      stream: true,
    });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  },
};

for (const [name, step] of Object.entries(steps)) {
  await step();
  console.log(JSON.stringify(name));
}
