/** The worker says, and understands, what contract/golden has written down: a server of paper plays it back. */
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Action, Effect, Fail, RetryLater, serve, sqlite, useDatabase } from "@do-sdk/core";
import Database from "libsql";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

interface Exchange {
  readonly request: { readonly path: string; readonly body: Record<string, unknown> };
  readonly status: number;
  readonly response: Record<string, unknown> & { readonly tasks?: readonly object[] };
}

function golden(name: string): Exchange {
  const file = new URL(`../../../contract/golden/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")) as Exchange;
}

interface Outcome {
  readonly task: string;
  readonly outcome: string;
}

/** Plays a server: registers, hands out the tasks that it is given, takes what becomes of them. */
class Paper {
  readonly said: { path: string; body: Record<string, unknown> }[] = [];
  readonly #tasks: object[][] = [];
  readonly #outcomes = new Map<string, (outcome: Outcome) => void>();
  readonly #answers: Record<string, Exchange[]> = {};
  #wake: (() => void) | undefined;
  #batch = 0;

  readonly server = createServer((request, response) => {
    let text = "";
    request.setEncoding("utf8").on("data", (piece: string) => {
      text += piece;
    });
    request.on("end", async () => {
      const path = request.url ?? "";
      const body = JSON.parse(text) as Record<string, unknown>;
      this.said.push({ path, body });
      const { status, answer } = await this.#answer(path.replace("/v1/worker/", ""), body);
      response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(answer));
    });
  });

  /** Hands out the tasks of a written claim: their outcomes. */
  hand(name: string): Promise<Outcome> {
    const tasks = golden(name).response.tasks ?? [];
    const [{ id }] = tasks as [{ id: string }];
    this.#tasks.push([...tasks]);
    this.#wake?.();
    return new Promise((resolve) => this.#outcomes.set(id, resolve));
  }

  /** What the next request of that kind is answered. */
  next(kind: string, exchange: Exchange): void {
    this.#answers[kind] = [...(this.#answers[kind] ?? []), exchange];
    this.#wake?.();
  }

  async #answer(kind: string, body: Record<string, unknown>): Promise<{ status: number; answer: object }> {
    if (kind === "claim" && this.#tasks.length === 0 && !this.#answers.claim?.length) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    // A beat that was on its way before is of other tasks; what is cancelled is told to one that names it.
    const cancelled = (this.#answers[kind]?.[0]?.response.cancelled ?? []) as string[];
    const isOfThese = cancelled.every((task) => (body.tasks as string[]).includes(task));
    const written = isOfThese ? this.#answers[kind]?.shift() : undefined;
    if (written) return { status: written.status, answer: written.response };
    if (kind === "register")
      return { status: 200, answer: { ...golden("register").response, heartbeat_seconds: 0.05 } };
    if (kind === "claim") {
      this.#batch += 1;
      return { status: 200, answer: { batch: this.#batch, tasks: this.#tasks.shift() ?? [] } };
    }
    if (kind !== "complete") return { status: 200, answer: kind === "heartbeat" ? golden("heartbeat").response : {} };
    const told = body.tasks as Outcome[];
    for (const outcome of told) this.#outcomes.get(outcome.task)?.(outcome);
    return { status: 200, answer: { results: told.map(({ task }) => ({ task, state: "accepted", detail: "" })) } };
  }
}

const paper = new Paper();
const stop = new AbortController();
const shop = new Database(":memory:");
let serving: Promise<void> | undefined;
let act: (ctx: Parameters<Action["handler"]>[1]) => unknown;
let charge: (input: object) => unknown;

useDatabase("main", sqlite(shop));
new Action({
  ...{ name: "create-user", version: 2, doc: "Creates a user.", timeout: 30 },
  retry: { attempts: 3, delay: 0, jitter: false },
  concurrency: [{ limit: 2, key: "email" }, 50],
  rate: "1000/minute",
  undo: { name: "create-user.undo", version: 2 },
  inputSchema: {
    type: "object",
    properties: { email: { type: "string" }, user_name: { type: "string", default: "x" } },
    required: ["email"],
    additionalProperties: false,
  },
  outputSchema: { type: "object" },
  handler: (inputs: object, ctx) => {
    expect(inputs).toEqual({ email: "ada@example.com", user_name: "Ada" });
    return act(ctx);
  },
});
new Action({ name: "create-user.undo", version: 2, handler: () => null });
new Effect({
  ...{ name: "ledger.post", doc: "Writes into the ledger.", dedup: "find" },
  retry: { attempts: 3, delay: 0, jitter: false },
  perform: (input: object) => charge(input),
  undo: (answer) => expect(answer).toEqual({ id: "l_3" }),
  lookup: () => ({ id: "l_2" }),
});

beforeAll(async () => {
  await new Promise<void>((resolve) => paper.server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(paper.server.address() as AddressInfo).port}`;
  await new Promise<void>((resolve) => {
    serving = serve({ url, name: "billing-1", concurrency: 2, signal: stop.signal, onReady: resolve });
  });
});
afterAll(async () => {
  stop.abort();
  await serving;
  paper.server.close();
});

function written(name: string): object {
  return (golden(name).request.body.tasks as object[])[0] ?? {};
}

test("what is offered", () => {
  const { sdk, actions, effects, ...rest } = golden("register").request.body;
  const said = paper.said[0];
  expect(said).toMatchObject({ path: "/v1/worker/register", body: rest });
  expect(said?.body).toMatchObject({ actions, effects });
  expect(said?.body.sdk).toMatch(/^dotdo-typescript\//);
});

test("an action with a request, a staged effect and a commit of its own", async () => {
  paper.next("request", golden("request-pending"));
  paper.next("request", golden("request-answered"));
  act = async (ctx) => {
    expect(await ctx.request("ledger.post", { cents: 100 })).toEqual({ id: "l_1" });
    ctx.stage("ledger.post", { cents: 5 });
    const { sql, parameters } = ctx.completionStatement({ userId: 7 });
    shop.prepare(sql).run(...parameters);
    return { userId: 7 };
  };
  const outcome = await paper.hand("claim-action");
  expect(outcome).toMatchObject(written("complete-action"));
  // The row in the application's database has the whole completion, as the protocol describes it.
  expect(outcome).toMatchObject({
    completion: { action: "create-user", version: 2, undo: true, input: { email: "ada@example.com" } },
  });
  const asked = paper.said.filter(({ path }) => path === "/v1/worker/request");
  const { wait, ...request } = golden("request-answered").request.body;
  expect(asked).toHaveLength(2);
  for (const { body } of asked) expect(body).toMatchObject(request);
});

test("a request that fails, and one after the task was given to another", async () => {
  paper.next("request", golden("request-failed"));
  act = ({ request }) => request("ledger.post", { cents: -1 });
  const outcome = await paper.hand("claim-again");
  expect(outcome).toMatchObject({ outcome: "failed", error: { kind: "fail", message: "No such account." } });
  paper.next("request", golden("request-lease-lost"));
  const aborted = new Promise((resolve) => {
    act = async ({ request, signal }) => {
      await request("x", {}).catch(() => undefined);
      resolve(signal.reason);
    };
  });
  void paper.hand("claim-again");
  expect(await aborted).toMatchObject({ code: "attempt_over" });
});

describe("how actions and effects end", () => {
  const error = ({ type, message, kind }: Record<string, unknown>): object => ({ type, message, kind });

  test("for good", async () => {
    act = () => {
      throw new Fail("User not found.");
    };
    const { error: expected } = written("complete-failed") as { error: Record<string, unknown> };
    expect(await paper.hand("claim-again")).toMatchObject({ outcome: "failed", error: error(expected) });
  });

  test("to be tried later", async () => {
    act = () => {
      throw new RetryLater("Not now.", { after: 0 });
    };
    const { error: expected } = written("complete-retry-later") as { error: Record<string, unknown> };
    expect(await paper.hand("claim-again")).toMatchObject({
      outcome: "failed",
      error: { ...error(expected), after: 0 },
    });
  });

  test("an effect, a lookup, an undo, a settlement", async () => {
    charge = () => ({ id: "l_1" });
    expect(await paper.hand("claim-effect")).toEqual(written("complete-effect"));
    expect(await paper.hand("claim-lookup")).toEqual(written("complete-lookup"));
    expect(await paper.hand("claim-effect-undo")).toMatchObject({ outcome: "completed" });
    expect(await paper.hand("claim-settle")).toEqual(written("complete-settle"));
  });
});

test("a heartbeat names the tasks, and hears what was cancelled", async () => {
  const { response } = golden("heartbeat-cancelled");
  const aborted = new Promise((resolve) => {
    act = ({ signal }) => {
      paper.next("heartbeat", { ...golden("heartbeat"), response: { ...response, cancelled: ["tsk_1"] } });
      return new Promise(() => signal.addEventListener("abort", () => resolve(signal.reason)));
    };
  });
  void paper.hand("claim-again");
  expect(await aborted).toMatchObject({ message: "It was cancelled." });
  const beats = paper.said.filter(({ path }) => path === "/v1/worker/heartbeat").map(({ body }) => body);
  expect(beats).toContainEqual(expect.objectContaining({ worker: "wrk_1", tasks: ["tsk_1"] }));
});

test("a session that is over is followed by another", async () => {
  const before = paper.said.filter(({ path }) => path === "/v1/worker/register").length;
  act = () => 1;
  paper.next("claim", golden("unknown-worker"));
  expect(await paper.hand("claim-again")).toMatchObject({ outcome: "completed" });
  expect(paper.said.filter(({ path }) => path === "/v1/worker/register")).toHaveLength(before + 1);
});
