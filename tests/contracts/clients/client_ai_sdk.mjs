// The Vercel ai-sdk against the served model: `node --test client_ai_sdk.mjs`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, jsonSchema, streamText, tool } from "ai";
import { z } from "zod";

const QUESTION = "What is 17 + 25?";
const STREAMS = 32;

function provider(key = process.env.SHOAL_KEY) {
  return createOpenAICompatible({
    name: "shoal",
    baseURL: `${process.env.SHOAL_URL}/v1`,
    apiKey: key,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
}

const ask = (more = {}) => ({
  model: provider()("shoal-demo"),
  prompt: QUESTION,
  temperature: 0,
  maxRetries: 0,
  ...more,
});
const weather = tool({
  description: "The weather.",
  inputSchema: jsonSchema({
    type: "object",
    properties: { city: { type: "string", enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
    required: ["city", "days"],
    additionalProperties: false,
  }),
});

test("a stream says what the answer says", async () => {
  const whole = await generateText(ask());
  const stream = streamText(ask());
  let said = "";
  for await (const piece of stream.textStream) said += piece;
  assert.equal(said, whole.text);
  assert.equal(said, "42");
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
});

test("a tool is called in a stream as without", async () => {
  const asked = { tools: { weather }, toolChoice: "required" };
  const whole = await generateText(ask(asked));
  const stream = streamText(ask(asked));
  for await (const _ of stream.textStream);
  const streamed = await stream.toolCalls;
  assert.ok(whole.toolCalls.length >= 1);
  assert.deepEqual(streamed.map((call) => call.input), whole.toolCalls.map((call) => call.input));
  assert.ok(["Paris", "Rome"].includes(whole.toolCalls[0].input.city));
});

test("an answer is parsed into an object", async () => {
  const schema = z.object({ home: z.boolean(), size: z.enum(["s", "l"]) });
  const { object } = await generateObject(ask({ schema }));
  schema.parse(object);
});

test("reasoning comes apart from the answer", async () => {
  const providerOptions = { shoal: { reasoningEffort: "high" } };
  const whole = await generateText(ask({ providerOptions }));
  assert.equal(whole.text, "42");
  assert.ok(whole.reasoningText.length > 0);
  const stream = streamText(ask({ providerOptions }));
  let said = "";
  for await (const piece of stream.textStream) said += piece;
  assert.equal(said, "42");
  assert.equal(await stream.reasoningText, whole.reasoningText);
});

test("errors are of their class", async () => {
  const cases = [
    [{ model: provider("wrong")("shoal-demo") }, 401],
    [{ model: provider()("other") }, 404],
    [{ temperature: 7 }, 400],
  ];
  for (const [more, status] of cases) {
    await assert.rejects(generateText(ask(more)), (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.equal(error.statusCode, status);
      return true;
    });
  }
});

test("half of many streams may leave", async () => {
  const one = async (leaves) => {
    const control = new AbortController();
    let said = "";
    try {
      const stream = streamText(ask({ abortSignal: control.signal, onError: () => {} }));
      for await (const piece of stream.textStream) {
        said += piece;
        if (leaves) control.abort();
      }
    } catch (error) {
      if (!leaves) throw error;
    }
    return said;
  };
  const said = await Promise.all(Array.from({ length: STREAMS }, (_, number) => one(number % 2 === 1)));
  assert.deepEqual(new Set(said.filter((_, number) => number % 2 === 0)), new Set(["42"]));
});
