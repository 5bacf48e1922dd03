/** The client understands what contract/golden/client has written down, and asks for it as written there. */
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { AccessDenied, ActionFailed, Do, InvalidInput, KeyConflict, UnknownName } from "@do-platform/sdk";
import { afterAll, beforeAll, expect, test } from "vitest";
import { rejection } from "./platform.js";

interface Exchange {
  readonly request: { method: string; path: string; headers: Record<string, string>; body: unknown };
  readonly status: number;
  readonly response: Record<string, unknown>;
}

function golden(name: string): Exchange {
  const file = new URL(`../../../contract/golden/client/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")) as Exchange;
}

let client: Do;
let answers: Exchange[] = [];
let asked: Exchange["request"][] = [];

/** The next requests are answered so. */
function play(...names: string[]): Exchange[] {
  asked = [];
  answers = names.map(golden);
  return [...answers];
}

const server = createServer((request, response) => {
  let text = "";
  request.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  request.on("end", () => {
    const { method = "", url: path = "", headers } = request;
    asked.push({ method, path, headers: headers as Record<string, string>, body: text ? JSON.parse(text) : null });
    const { status, response: body } = answers.shift() ?? { status: 500, response: {} };
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  });
});

beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  client = new Do({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, apiKey: "do_x" });
});
afterAll(() => void server.close());

test("a call, and its run", async () => {
  const [{ request, response }] = play("execute-completed") as [Exchange];
  const call = {
    name: "greet-user",
    params: { name: "Ada" },
    trail: "t",
    priority: 2,
    labels: { team: "a" },
    key: "g:1",
  };
  const run = await client.action.execute(call);
  expect(asked).toMatchObject([{ method: request.method, path: request.path, body: request.body }]);
  expect(asked[0]?.headers).toMatchObject({ "idempotency-key": "g:1", authorization: "Bearer do_x" });
  const { not_undone, waiting_for, continued_as, created_at, ended_at, erased_at, erased_by, ...same } = response;
  expect(run).toEqual({
    ...same,
    ...{ notUndone: not_undone, waitingFor: waiting_for, continuedAs: continued_as },
    ...{ createdAt: created_at, endedAt: ended_at, erasedAt: erased_at, erasedBy: erased_by },
  });
});

test("a failure", async () => {
  const [{ response }] = play("execute-failed") as [Exchange];
  const error = await rejection(client.action("refuse", { key: "r:1" }).invoke({ reason: "User not found." }));
  expect(error).toBeInstanceOf(ActionFailed);
  const details = { action: "refuse", errorType: "Fail", attempts: 1, step: "refuse", undo: "none" };
  expect(error).toMatchObject({ message: "User not found.", runId: response.id, ...details });
});

test.each([
  ["execute-invalid-input", InvalidInput],
  ["execute-key-conflict", KeyConflict],
  ["execute-unknown-name", UnknownName],
  ["denied", AccessDenied],
  ["no-key", AccessDenied],
])("a refusal: %s", async (name, kind) => {
  const [{ response }] = play(name) as [Exchange];
  const error = await rejection(client.action("greet-user").invoke({}));
  expect(error).toBeInstanceOf(kind);
  expect((error as Error).message).toBe(response.detail);
  expect((error as AccessDenied).requestId).toBe("req_1");
  if (!(error instanceof InvalidInput)) return;
  const errors = response.errors as { path: string; message: string }[];
  expect(error.problems).toEqual(errors.map(({ path, message }) => ({ path: path.replace(".params", ""), message })));
});

test("a start, and one under way", async () => {
  const [accepted, underWay, waiting] = play("execute-accepted", "execute-under-way", "get-waiting") as Exchange[];
  const service = client.service("approval", { key: "a:1" });
  const handle = await service.start({ name: "Ada" });
  expect(handle.id).toBe(accepted?.response.id);
  expect((await service.start({ name: "Ada" })).id).toBe(underWay?.response.run);
  expect(asked.map(({ path }) => path)).toEqual([
    accepted?.request.path,
    underWay?.request.path,
    waiting?.request.path,
  ]);
  expect(asked[0]?.headers.prefer).toBe("respond-async");
});

test("what a run waits for", async () => {
  const [{ response }] = play("get-waiting") as [Exchange];
  const run = await client.runs.get(String(response.id));
  expect(run.waitingFor).toEqual({ until: null, step: null, questions: [], ...(response.waiting_for as object) });
});

test("a page, a journal, definitions, a preview", async () => {
  const [page, journal, definitions, preview] = play("list-runs", "journal", "get-action", "preview") as Exchange[];
  const runs = await client.runs.list({ name: "greet-user", limit: 1 });
  expect(runs.map(({ id }) => id)).toEqual(((page?.response.runs ?? []) as { id: string }[]).map(({ id }) => id));
  expect(asked[0]?.path).toBe(page?.request.path);
  expect(await client.runs.journal("run_1")).toEqual(journal?.response.entries);
  const [definition] = await client.action.list();
  const [written] = (definitions?.response.definitions ?? []) as { input_schema: object; policy: object }[];
  expect(definition).toMatchObject({ inputSchema: written?.input_schema, policy: written?.policy });
  const found = await client.action("greet-user").preview({ name: "Ada" });
  const { status, result, steps } = preview?.response ?? {};
  expect(found).toMatchObject({ status, result, steps });
});
