/** A worker in TypeScript: what handlers may do and how they end, against a real server. */
import { readFileSync } from "node:fs";
import {
  Action,
  ActionFailed,
  AttemptOver,
  type Context,
  client,
  DefinitionError,
  Effect,
  Fail,
  RetryLater,
  RunBlocked,
  RunCancelled,
  Service,
} from "@do-sdk/core";
import { describe, expect, test, vi } from "vitest";
import { platform, rejection, unique } from "./platform.js";

process.env.DOTDO_URL = platform.url;
process.env.DOTDO_API_KEY = platform.key;
process.env.TEST_SECRET = "tell-nobody";

/** An action with a name of its own. */
function define<Input extends object, Output>(
  handler: (inputs: Input, ctx: Context) => Output | Promise<Output>,
  options: Omit<ConstructorParameters<typeof Action<Input, Output>>[0], "name" | "handler"> = {},
): Action<Input, Output> {
  return new Action({ name: unique("far"), retry: 1, handler, ...options });
}

interface Line {
  readonly account: string;
  readonly cents: number;
  readonly key: string;
}

function ledger(account: string): Line[] {
  const lines = readFileSync(platform.ledger, "utf8").trim().split("\n").filter(Boolean);
  return lines.map((line) => JSON.parse(line) as Line).filter((line) => line.account === account);
}

describe("calls between languages", () => {
  test("an action of this process is called by a service in Python", async () => {
    const double = define(({ number }: { number: number }) => ({ twice: 2 * number }));
    const callFar = new Service<{ action: string; params: object }, { twice: number }>({ name: "call-far" });
    await client.run(double, { number: 1 }); // so that the platform knows it
    expect(await client.run(callFar, { action: double.name, params: { number: 21 } })).toEqual({ twice: 42 });
  });

  test("an action in Python is called from here", async () => {
    expect(await client.action("greet-user").invoke({ name: "Ada" })).toEqual({ text: "Hello, Ada" });
  });

  test("a handler's failure reaches a service in Python, and its caller", async () => {
    const broken = define(() => {
      throw new Fail("No such customer.");
    });
    await rejection(client.run(broken, {}));
    const error = await rejection(client.service("call-far").invoke({ action: broken.name, params: {} }));
    expect(error).toBeInstanceOf(ActionFailed);
    expect(error).toMatchObject({ message: "No such customer.", action: broken.name, errorType: "Fail" });
  });
});

describe("what a handler is given", () => {
  test("its context says what it runs for", async () => {
    const echo = define((inputs: { nested: { userId: string } }, ctx) => {
      const { runId, step, attempt, idempotencyKey, actor, trail } = ctx;
      return { inputs, runId, step, attempt, idempotencyKey, actor, trail };
    });
    const trail = unique("trail");
    const run = await client.action.execute<Record<string, unknown>>({
      name: echo.name,
      params: { nested: { userId: "u1", extra: undefined } },
      trail,
    });
    expect(run.result).toMatchObject({
      inputs: { nested: { userId: "u1" } },
      runId: run.id,
      step: echo.name,
      attempt: 1,
      actor: "key:tests",
      trail,
    });
    expect(run.result.idempotencyKey).toContain(run.id);
  });

  test("what does not fit its schema never reaches it", async () => {
    const called = vi.fn(() => null);
    const strict = define(called, {
      inputSchema: {
        type: "object",
        properties: { user_id: { type: "string" } },
        required: ["user_id"],
        additionalProperties: false,
      },
    });
    const error = await rejection(client.action(strict.name).invoke({ userId: 7 }));
    expect(error).toMatchObject({ code: "invalid_input", problems: [{ path: "$.user_id" }] });
    expect(called).not.toHaveBeenCalled();
    await client.action(strict.name).invoke({ userId: "u1" });
    expect(called).toHaveBeenCalledExactlyOnceWith({ user_id: "u1" }, expect.anything());
  });

  test("a secret is hidden in errors and refused in results", async () => {
    const leaky = define(({ how }: { how: string }, { secret }) => {
      const text = secret("TEST_SECRET");
      if (how === "throw") throw new Error(`refused: ${text}`);
      return { text };
    });
    const thrown = await rejection(client.run(leaky, { how: "throw" }));
    expect(thrown).toMatchObject({ message: "refused: ***" });
    expect(await rejection(client.run(leaky, { how: "return" }))).toMatchObject({
      errorType: "InvalidValue",
      message: expect.stringContaining("stored in the clear"),
    });
    const unknown = define((_: object, ctx) => ctx.secret("TEST_NONE"));
    expect(await rejection(client.run(unknown, {}))).toMatchObject({ errorType: "DefinitionError" });
  });
});

describe("how a handler ends", () => {
  test("it is retried as its policy says, with the attempts counted", async () => {
    const third = define(
      (_: object, { attempt }) => {
        if (attempt < 3) throw new TypeError(`attempt ${attempt}`);
        return attempt;
      },
      { retry: { attempts: 3, delay: 0.01 } },
    );
    expect(await client.run(third, {})).toBe(3);
  });

  test("Fail is not retried, RetryLater says when", async () => {
    const fails = define(
      () => {
        throw new Fail("never");
      },
      { retry: 5 },
    );
    expect(await rejection(client.run(fails, {}))).toMatchObject({ message: "never", attempts: 1 });
    const later = define(
      (_: object, { attempt }) => {
        if (attempt === 1) throw new RetryLater("not yet", { after: 0.01 });
        return attempt;
      },
      { retry: { attempts: 2, delay: 100 } },
    );
    expect(await client.run(later, {})).toBe(2);
  });

  test("a result that JSON cannot carry fails it, and so does what is thrown that is no error", async () => {
    const odd = define(() => ({ at: new Map() }));
    expect(await rejection(client.run(odd, {}))).toMatchObject({
      errorType: "InvalidValue",
      message: expect.stringContaining("$.at is a Map"),
    });
    const text = define(() => {
      throw "just text";
    });
    expect(await rejection(client.run(text, {}))).toMatchObject({ message: "just text", errorType: "Error" });
    expect(
      await client.run(
        define(() => undefined),
        {},
      ),
    ).toBeNull();
  });

  test("past its timeout it is aborted, and its context does nothing more", async () => {
    const after: unknown[] = [];
    let over: (() => void) | undefined;
    const done = new Promise<void>((resolve) => {
      over = resolve;
    });
    const slow = define(
      async (_: object, ctx) => {
        await new Promise((resolve) => ctx.signal.addEventListener("abort", resolve));
        for (const act of [() => ctx.stage("ledger.post", {}), ctx.heartbeat, () => ctx.completionStatement()]) {
          try {
            act();
          } catch (error) {
            after.push(error);
          }
        }
        over?.();
      },
      { timeout: 0.1 },
    );
    expect(await rejection(client.run(slow, {}))).toMatchObject({ errorType: "AttemptTimedOut" });
    await done;
    expect(after).toHaveLength(3);
    for (const error of after) expect(error).toBeInstanceOf(AttemptOver);
  });

  test("cancelled, its signal is aborted", async () => {
    let aborted: ((reason: unknown) => void) | undefined;
    const reason = new Promise((resolve) => {
      aborted = resolve;
    });
    const began = vi.fn();
    const waits = define((_: object, { signal }) => {
      began();
      return new Promise((resolve) =>
        signal.addEventListener("abort", () => {
          aborted?.(signal.reason);
          resolve(null);
        }),
      );
    });
    const handle = await client.start(waits, {});
    await vi.waitFor(() => expect(began).toHaveBeenCalled(), 60_000);
    await handle.cancel();
    expect(await rejection(handle.result())).toBeInstanceOf(RunCancelled);
    expect(await reason).toBeInstanceOf(AttemptOver);
  });

  test("a step that failed for good is taken back by the undo of those before", async () => {
    const undone: unknown[] = [];
    const undo = define((given: object) => void undone.push(given));
    const reserve = define(({ seat }: { seat: string }) => ({ reserved: seat }), { undo });
    await client.run(reserve, { seat: "9z" });
    const { id } = await client.service.execute({
      name: "call-far",
      params: { action: reserve.name, params: { seat: "1a" } },
    });
    await client.runs.undo(id);
    await vi.waitFor(async () => expect((await client.runs.get(id)).undo).toBe("all"), 60_000);
    expect(undone).toEqual([{ output: { reserved: "1a" }, input: { seat: "1a" } }]);
  });
});

describe("effects", () => {
  const received: unknown[] = [];
  const mail = new Effect({
    name: unique("mail"),
    dedup: "key",
    retry: { attempts: 3, delay: 0.01 },
    perform: async (input: { to: string }, { key, attempt }) => {
      received.push({ ...input, key, attempt });
      if (attempt === 1) throw new RetryLater("busy", { after: 0.01 });
      return { sent: received.length };
    },
  });

  test("staged in a handler, they are delivered by the server after its commit", async () => {
    const account = unique("account");
    const pay = define(({ cents }: { cents: number }, { stage }) => {
      stage("ledger.post", { account, cents });
      stage("ledger.post@1", { account, cents: -cents });
      return ledger(account).length;
    });
    const run = await client.action.execute({ name: pay.name, params: { cents: 5 } });
    expect(run.result).toBe(0);
    const lines = ledger(account);
    expect(lines.map(({ cents }) => cents).sort()).toEqual([-5, 5]);
    expect(new Set(lines.map(({ key }) => key)).size).toBe(2);
    for (const { key } of lines) expect(key).toContain(run.id);
  });

  test("nothing is sent when the handler throws", async () => {
    const account = unique("account");
    const fails = define((_: object, { stage }) => {
      stage("ledger.post", { account, cents: 1 });
      throw new Fail("after all not");
    });
    await rejection(client.run(fails, {}));
    expect(ledger(account)).toEqual([]);
  });

  test("defined here, they are performed here, with their own retries", async () => {
    const invites = define(({ to }: { to: string }, { stage }) => stage(mail, { to }).key);
    const key = await client.run(invites, { to: "ada@example.com" });
    expect(received).toEqual([
      { to: "ada@example.com", key, attempt: 1 },
      { to: "ada@example.com", key, attempt: 2 },
    ]);
  });

  test("requested, they answer; a retry gets the same answer without a call", async () => {
    const account = unique("account");
    const asks = define(
      async ({ cents }: { cents: number }, { request, attempt }) => {
        const [answer, again] = await Promise.all([
          request<string>("ledger.post", { account, cents }),
          request<string>("ledger.post", { account, cents: 7 }),
        ]);
        if (attempt === 1) throw new Error("once more");
        return { answer, again };
      },
      { retry: { attempts: 2, delay: 0.01 } },
    );
    expect(await client.run(asks, { cents: 3 })).toEqual({ answer: `${account} has 3`, again: `${account} has 7` });
    expect(
      ledger(account)
        .map(({ cents }) => cents)
        .sort(),
    ).toEqual([3, 7]);
  });

  test("an effect that nobody has blocks a step that staged it, and fails one that asks for it", async () => {
    const stages = define((_: object, { stage }) => stage("no.such", {}).key);
    expect(await rejection(client.run(stages, {}))).toBeInstanceOf(RunBlocked);
    const asks = define((_: object, { request }) => request("no.such", {}));
    expect(await rejection(client.run(asks, {}))).toMatchObject({ errorType: "UnknownName" });
  });

  test("an input that does not fit its effect fails the step", async () => {
    const stages = define((_: object, { stage }) => stage("ledger.post", { account: 7 }).key);
    const asks = define((_: object, { request }) => request("ledger.post", { account: 7 }));
    for (const action of [stages, asks]) {
      expect(await rejection(client.run(action, {}))).toMatchObject({ errorType: "InvalidInput", attempts: 1 });
    }
  });
});

describe("definitions", () => {
  test("a name is defined once", () => {
    const once = define(() => null);
    expect(() => new Action({ name: once.name, handler: () => null })).toThrow(DefinitionError);
    expect(new Action({ name: once.name, version: 2, handler: () => 2 }).version).toBe(2);
    expect(() => new Action({ name: "a b", handler: () => null })).toThrow("no spaces");
  });

  test("versions live side by side", async () => {
    const first = define(() => 1);
    const second = new Action({ name: first.name, version: 2, handler: () => 2 });
    expect(await client.run(first, {})).toBe(1);
    expect(await client.run(second, {})).toBe(2);
    expect(await client.action<number>(first.name).invoke()).toBe(2);
    expect(await client.action<number>(`${first.name}@1`).invoke()).toBe(1);
  });

  test("an action is listed with its schemas", async () => {
    const listed = define(() => null, { doc: "Does nothing.", inputSchema: { type: "object" } });
    await client.run(listed, {});
    const found = (await client.action.list()).find(({ name }) => name === listed.name);
    expect(found).toMatchObject({ doc: "Does nothing.", version: 1, inputSchema: { type: "object" } });
  });
});
