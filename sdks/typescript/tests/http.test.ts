/** What a client knows when the connection fails, and that it keeps no process alive. */
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Do, InputError, OutcomeUnknown, StoreError, Unreachable } from "@do-platform/sdk";
import { describe, expect, type TestContext, test } from "vitest";
import { Cutting } from "./cutting.js";
import { connect, platform, rejection, unique } from "./platform.js";
import { program } from "./processes.js";

const { url, key: apiKey } = platform;

async function cutting({ onTestFinished }: TestContext, left: number): Promise<Cutting> {
  const proxy = await Cutting.before(url, left);
  onTestFinished(() => proxy.close());
  return proxy;
}

describe.concurrent("lost answers", () => {
  test("are asked for again, and the run is one", async (context) => {
    const proxy = await cutting(context, 2);
    const trail = unique("cut");
    const client = new Do({ url: proxy.url, apiKey });
    const run = await client.action.execute({ name: "greet-user", params: { name: "Ada" }, trail });
    expect(proxy.cut).toBe(2);
    expect(run.result).toEqual({ text: "Hello, Ada" });
    expect((await connect().runs.list({ trail })).map(({ id }) => id)).toEqual([run.id]);
  });

  test("for good are unknown, and name the run", async (context) => {
    const proxy = await cutting(context, 1_000);
    const key = unique("lost");
    const client = new Do({ url: proxy.url, apiKey });
    const error = await rejection(client.action("greet-user", { key }).invoke({ name: "Ada" }));
    expect(error).toBeInstanceOf(OutcomeUnknown);
    const runId = `run_${createHash("sha256").update(`greet-user\0${key}`).digest("hex").slice(0, 32)}`;
    expect((error as OutcomeUnknown).runId).toBe(runId);
    expect((await connect().runs.get(runId)).status).toBe("completed");
  });

  test("of what is not repeatable are unknown at once", async (context) => {
    const handle = await connect().service("approval").start({ name: "Ada" });
    const proxy = await cutting(context, 1_000);
    const client = new Do({ url: proxy.url, apiKey });
    const error = await rejection(client.runs.cancel(handle.id));
    expect(error).toBeInstanceOf(OutcomeUnknown);
    expect((error as OutcomeUnknown).runId).toBe(handle.id);
    expect(proxy.cut).toBe(1);
  });

  test("a stream that is cut goes on where it was", async (context) => {
    const proxy = await cutting(context, 0);
    const handle = await connect().service("approval").start({ name: "Ada" });
    const seen: number[] = [];
    for await (const { seq, kind } of new Do({ url: proxy.url, apiKey }).handle(handle.id).stream()) {
      seen.push(seq);
      if (kind === "published") {
        proxy.cutAll();
        await handle.sendEvent("answer", 1);
      }
    }
    expect(seen).toEqual((await handle.journal()).map(({ seq }) => seq));
  });
});

describe.concurrent("refusals", () => {
  test("nobody listening means that nothing happened", async () => {
    const client = new Do({ url: "http://127.0.0.1:9" });
    const error = await rejection(client.action("greet-user").invoke({ name: "Ada" }));
    expect(error).toBeInstanceOf(Unreachable);
    expect((error as Error).message).toContain("nothing happened");
  });

  test("an address that is none is refused at once", () => {
    expect(() => new Do({ url: "do.example.com" })).toThrow("an address such as https://do.example.com is needed");
  });

  async function answering(
    { onTestFinished }: TestContext,
    ...answers: { status: number; headers?: Record<string, string>; body?: object }[]
  ) {
    const asked: string[] = [];
    const server = createServer((request, response) => {
      asked.push(String(request.headers["idempotency-key"] ?? ""));
      const { status, headers = {}, body } = answers[Math.min(asked.length, answers.length) - 1] ?? { status: 500 };
      request.resume().on("end", () => response.writeHead(status, headers).end(body ? JSON.stringify(body) : "oops"));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void server.close());
    const client = new Do({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
    return { client, asked };
  }

  test("an overloaded server is asked again, under the same key", async (context) => {
    const busy = { code: "overloaded", detail: "The server is busy.", retryable: true };
    const done = { id: "run_1", status: "completed", result: 7, continued_as: null, erased_at: null, error: null };
    const { client, asked } = await answering(
      context,
      { status: 429, headers: { "Retry-After": "0" }, body: busy },
      { status: 503, body: { code: "store_unavailable", detail: "full", retryable: true } },
      { status: 200, body: done },
    );
    expect(await client.action("x").invoke()).toBe(7);
    expect(asked).toHaveLength(3);
    expect(new Set(asked).size).toBe(1);
  });

  test("a store that stays unavailable is said to be", async (context) => {
    const { client, asked } = await answering(context, {
      status: 503,
      body: { code: "store_unavailable", detail: "The disk is full.", retryable: true },
    });
    const error = await rejection(client.action("x").invoke());
    expect(error).toBeInstanceOf(StoreError);
    expect(error).toMatchObject({ message: "The disk is full." });
    expect(asked).toHaveLength(5);
  });

  test("a server's own failure is an unknown outcome", async (context) => {
    const body = { code: "internal_error", detail: "The server failed.", retryable: false, request_id: "req_7" };
    const { client } = await answering(context, { status: 500, body });
    const error = await rejection(client.action("x").invoke());
    expect(error).toBeInstanceOf(OutcomeUnknown);
    expect(error).toMatchObject({ message: "The server failed. (request req_7)", requestId: "req_7" });
  });

  test("what is no platform is told as it answered", async (context) => {
    const { client } = await answering(context, { status: 404 });
    const error = await rejection(client.action("x").invoke());
    expect(error).toBeInstanceOf(InputError);
    expect(error).toMatchObject({ message: "The server answered 404." });
    const moved = await answering(context, { status: 308, headers: { location: "https://do.example.com/" } });
    expect(await rejection(moved.client.action("x").invoke())).toMatchObject({
      message: "The server answered 308 and points to https://do.example.com/: use that as the client's url.",
    });
  });
});

test.for(["greet.mjs", "greet.cjs"])("%s ends when its main does", async (file, context) => {
  const greet = program(context, file, []);
  await greet.line("Hello, Ada");
  const began = performance.now();
  expect(await greet.ended).toBe(0);
  expect(performance.now() - began).toBeLessThan(3_000); // idle connections last for 4 s
});
