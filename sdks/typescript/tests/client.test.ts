/** A client behaves as Python's does, against a real server. */
import {
  AccessDenied,
  ActionFailed,
  DefinitionError,
  Do,
  DotdoError,
  type Entry,
  InvalidInput,
  InvalidOperation,
  InvalidValue,
  KeyConflict,
  OutcomeError,
  RunBlocked,
  RunCancelled,
  StillRunning,
  UnknownName,
} from "@do-platform/sdk";
import { describe, expect, test, vi } from "vitest";
import { connect, platform, rejection, unique } from "./platform.js";

const client = connect();

describe("calls by name", () => {
  test("execute gives the run", async () => {
    const run = await client.action.execute({ name: "greet-user", params: { name: "Ada", polite: true } });
    expect(run).toMatchObject({ kind: "action", name: "greet-user", status: "completed", key: null });
    expect(run.result).toEqual({ text: "Good day, Ada" });
    expect(await client.runs.get(run.id)).toEqual(run);
  });

  test("invoke gives the output", async () => {
    expect(await client.action("greet-user").invoke({ name: "Ada" })).toEqual({ text: "Hello, Ada" });
    expect(await client.action<number>("count-to").invoke({ number: 3 })).toBe(3);
    expect(await client.action("greet-user@1").run({ name: "Eve" })).toEqual({ text: "Hello, Eve" });
  });

  test("preview does nothing", async () => {
    const trail = unique("preview");
    const found = await client.action<string>("post-blindly", { trail }).preview({ account: "a" });
    expect(found).toMatchObject({ status: "completed", result: "a", error: null });
    expect(found.effects).toMatchObject([{ kind: "staged", name: "ledger.lose", input: { account: "a" } }]);
    expect(await client.runs.list({ trail })).toEqual([]);
  });

  test("definitions have schemas", async () => {
    const found = (await client.action.list()).find(({ name }) => name === "greet-user");
    expect(found).toMatchObject({ kind: "action", version: 1, doc: "Greets somebody." });
    expect(found?.inputSchema).toMatchObject({ properties: { name: { type: "string" } } });
    expect((await client.service.list()).map(({ name }) => name)).toContain("approval");
  });
});

describe("keys", () => {
  test("the same key and input is the same run", async () => {
    const key = unique("signup");
    const call = { name: "greet-user", params: { name: "Ada" }, key };
    const first = await client.action.execute(call);
    const again = await client.action.execute(call);
    expect([again.id, again.key]).toEqual([first.id, key]);
    const conflict = await rejection(client.action("greet-user", { key }).invoke({ name: "Eve" }));
    expect(conflict).toBeInstanceOf(KeyConflict);
  });

  test("a run under way is the one that is waited for", async () => {
    const key = unique("approval");
    const handle = await client.service("approval", { key }).start({ name: "Ada" });
    const again = await client.service("approval", { key }).start({ name: "Ada" });
    expect(again.id).toBe(handle.id);
    const waiting = client.service("approval", { key }).invoke({ name: "Ada" });
    await handle.sendEvent("answer", "yes");
    expect(await waiting).toEqual({ said: "yes", text: "Hello, Ada" });
  });

  test("a key that no header can carry is refused here", async () => {
    expect(await rejection(client.action("greet-user", { key: "schlüssel\n" }).invoke({ name: "A" }))).toMatchObject({
      code: "invalid_definition",
    });
  });
});

describe("failures", () => {
  test("a failure has the handler's message", async () => {
    const error = await rejection(client.action("refuse").invoke({ reason: "User not found." }));
    expect(error).toBeInstanceOf(ActionFailed);
    expect(error).toBeInstanceOf(OutcomeError);
    expect(error).not.toBeInstanceOf(InvalidInput);
    expect(error).toMatchObject({
      name: "ActionFailed",
      message: "User not found.",
      code: "action_failed",
      action: "refuse",
      errorType: "Fail",
      attempts: 1,
      undo: "none",
    });
    const { runId } = error as ActionFailed;
    expect(await client.runs.get(runId)).toMatchObject({ status: "failed", error: { type: "Fail" } });
  });

  test("attempts are counted", async () => {
    const error = await rejection(client.action("fail-twice").invoke());
    expect(error).toMatchObject({ message: "attempt 2", errorType: "ValueError", attempts: 2 });
  });

  test("wrong input names every problem", async () => {
    const error = await rejection(client.action("greet-user").invoke({ nam: "Ada" }));
    expect(error).toBeInstanceOf(InvalidInput);
    const { problems, requestId, message } = error as InvalidInput;
    expect(problems.map(({ path }) => path).sort()).toEqual(["$.nam", "$.name"]);
    expect(requestId).toMatch(/^req_/);
    expect(message).toContain("The input of");
  });

  test("unknown names are refused", async () => {
    const error = await rejection(client.action("greet-usr").invoke({ name: "Ada" }));
    expect(error).toBeInstanceOf(UnknownName);
    expect((error as Error).message).toContain("greet-user");
    expect(await rejection(client.runs.get("run_0"))).toBeInstanceOf(UnknownName);
  });

  test("values that JSON would change are refused before they are sent", async () => {
    const refused = async (value: unknown): Promise<string> => {
      const error = await rejection(client.action("greet-user").invoke({ name: [value] }));
      expect(error).toBeInstanceOf(InvalidValue);
      return (error as Error).message;
    };
    expect(await refused(Number.NaN)).toBe(
      "The input cannot be carried as JSON: $.name[0] is NaN, which is not a JSON number",
    );
    expect(await refused(new Map())).toContain("$.name[0] is a Map");
    expect(await refused(() => 1)).toContain("$.name[0] is a function");
    expect(await refused(1n)).toContain("is a bigint");
    expect(await refused("\ud800")).toContain("lone surrogate");
    expect(await refused("\0")).toContain("NUL");
    const cyclic: unknown[] = [];
    cyclic.push(cyclic);
    expect(await refused(cyclic)).toContain("nested deeper than 64");
  });

  test("a wrong key is denied", async () => {
    const stranger = new Do({ url: platform.url, apiKey: "YOUR_API_KEY" });
    const error = await rejection(stranger.action("greet-user").invoke({ name: "Ada" }));
    expect(error).toBeInstanceOf(AccessDenied);
    expect((error as Error).message).toContain("no API key");
  });
});

describe("runs", () => {
  test("a service with event, progress, journal and stream", async () => {
    const handle = await client.service("approval").start({ name: "Ada" });
    const entries: Entry[] = [];
    const streaming = (async () => {
      for await (const entry of handle.stream()) entries.push(entry);
    })();
    for await (const value of handle.progress()) {
      expect(value).toEqual({ greeted: "Hello, Ada" });
      break;
    }
    const late = await rejection(handle.result({ timeout: 0.05 }));
    expect(late).toBeInstanceOf(StillRunning);
    expect((late as StillRunning).runId).toBe(handle.id);
    expect((await handle.get()).waitingFor).toMatchObject({ kind: "event", questions: [] });

    await handle.sendEvent("answer", { ok: true }, { key: "once" });
    await handle.sendEvent("answer", { ok: false }, { key: "once" });
    expect(await handle.result()).toEqual({ said: { ok: true }, text: "Hello, Ada" });
    await streaming;
    const journal = await handle.journal();
    expect(entries).toEqual(journal);
    expect(journal.map(({ kind }) => kind).filter((kind) => kind === "event")).toHaveLength(1);
    expect(await handle.journal({ after: journal.length - 1 })).toEqual(journal.slice(-1));
    expect(await rejection(handle.sendEvent("answer", "late"))).toBeInstanceOf(InvalidOperation);
  });

  test("lists in pages, or all", async () => {
    const trail = unique("list");
    const names = ["a", "b", "c"];
    await client.trail(trail, async () => {
      for (const name of names) await client.action("greet-user", { labels: { name } }).invoke({ name });
    });
    const page = await client.runs.list({ trail, limit: 2 });
    expect(page.map(({ labels }) => labels.name)).toEqual(["c", "b"]);
    const all: string[] = [];
    for await (const run of client.runs.list({ trail, limit: 2 })) all.push(run.labels.name ?? "");
    expect(all).toEqual(["c", "b", "a"]);
    expect(await client.runs.list({ trail, labels: { name: "b" } })).toHaveLength(1);
  });

  test("cancel and retry", async () => {
    const handle = await client.service("approval").start({ name: "Ada" });
    await handle.cancel();
    expect(await rejection(handle.result())).toBeInstanceOf(RunCancelled);
    await client.runs.retry(handle.id);
    await handle.sendEvent("answer", 1);
    expect(await handle.result()).toMatchObject({ said: 1 });
  });

  test("an ended run is undone", async () => {
    const { id } = await client.service.execute<null>({ name: "book", params: { seat: "12a" } });
    await client.runs.undo(id);
    await vi.waitFor(async () => expect((await client.runs.get(id)).undo).toBe("all"), 60_000);
    expect(await client.runs.list({ undo: "all", name: "book" })).toHaveLength(1);
  });

  test("a question is answered", async () => {
    const handle = await client.action<string>("post-blindly").start({ account: "cash" });
    const error = await rejection(handle.result());
    expect(error).toBeInstanceOf(RunBlocked);
    const [question] = (await handle.get()).waitingFor?.questions ?? [];
    expect(question).toMatchObject({
      about: "delivery",
      effect: "ledger.lose",
      version: 1,
      input: { account: "cash" },
    });
    expect(await rejection(client.runs.resolve(handle.id, "happened", { step: "other" }))).toMatchObject({
      code: "invalid_operation",
      message: expect.stringContaining("no such open question"),
    });
    await client.runs.resolve(handle.id, "happened", { step: "post-blindly" });
    expect(await handle.result()).toBe("cash");
  });
});

describe("waiting", () => {
  test("an aborted call gives up waiting; the run goes on", async () => {
    const key = unique("abort");
    const abort = new AbortController();
    const { signal } = abort;
    const waiting = client.service("approval", { key, signal }).invoke({ name: "Ada" });
    const handle = await client.service("approval", { key }).start({ name: "Ada" });
    abort.abort(new Error("enough"));
    expect(await rejection(waiting)).toMatchObject({ message: "enough" });
    await handle.sendEvent("answer", 1);
    expect(await handle.result()).toMatchObject({ said: 1 });
    expect(await rejection(client.action("greet-user", { signal }).invoke({ name: "Ada" }))).toMatchObject({
      message: "enough",
    });
  });

  test("wait bounds the call", async () => {
    const error = await rejection(client.service("approval", { wait: 0.05 }).invoke({ name: "Ada" }));
    expect(error).toBeInstanceOf(StillRunning);
    await client.runs.cancel((error as StillRunning).runId);
  });

  test("options that cannot be are refused, and nothing was started", async () => {
    const trail = unique("refused");
    const wrong: [object, string][] = [
      [{ wait: -1 }, "wait: -1: a number of seconds from 0 to 1000000000 is needed."],
      [{ wait: "soon" }, "wait: soon: a number of seconds from 0 to 1000000000 is needed."],
      [{ idempotencyKey: "k" }, "idempotencyKey: a call has no such option; it takes key, version, trail,"],
    ];
    for (const [options, text] of wrong) {
      const call = { name: "greet-user", params: { name: "Ada" }, trail, ...options };
      const error = await rejection(client.action.execute(call));
      expect(error).toBeInstanceOf(DefinitionError);
      expect((error as Error).message).toContain(text);
    }
    expect(await client.runs.list({ trail })).toEqual([]);
  });

  test("a wait may be longer than a timer of Node's", async () => {
    const handle = await client.service("approval").start({ name: "Ada" });
    const waiting = Promise.all([handle.result({ timeout: 30 * 24 * 3600 }), handle.result({ timeout: Infinity })]);
    for await (const _ of handle.progress()) break; // it waits for the answer
    await handle.sendEvent("answer", "yes");
    expect(await waiting).toMatchObject([{ said: "yes" }, { said: "yes" }]);
  });

  test("a closed client takes no more calls", async () => {
    const closed = connect();
    await closed.action("greet-user").invoke({ name: "Ada" });
    closed.close();
    expect(await rejection(closed.action("greet-user").invoke({ name: "Ada" }))).toMatchObject({
      code: "client_closed",
    });
  });
});

test("every error is one of dotdo's, with a stable code", async () => {
  const error = await rejection(client.action("none").invoke());
  expect(error).toBeInstanceOf(DotdoError);
  expect(error).toMatchObject({ name: "UnknownName", code: "unknown_name" });
});
