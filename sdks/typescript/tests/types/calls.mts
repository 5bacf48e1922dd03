/** What callers may write, and what the compiler must refuse: each line that must not compile says so. */

import { ActionFailed, Do, type JsonObject, type Run } from "@do-platform/sdk";
import { Action, client, Effect, Fail, type Handle, Service, useDatabase } from "@do-sdk/core";

const book = new Action({
  name: "book-table",
  handler: async ({ guests }: { guests: number }, ctx) => {
    if (guests > 8) throw new Fail("too many");
    ctx.signal.throwIfAborted();
    return { table: `t${guests}` };
  },
});

// Types go from the handler to its callers.
const booked: { table: string } = await client.run(book, { guests: 3 });
const handle: Handle<{ table: string }> = await client.start(book, { guests: 3 }, { key: "k", labels: { a: "b" } });
const table: string = (await handle.result({ timeout: 5 })).table;
// @ts-expect-error: a wrong input
await client.run(book, { guests: "three" });
// @ts-expect-error: an input that is missing
await client.run(book, {});
// @ts-expect-error: a wrong option
await client.run(book, { guests: 3 }, { keys: "k" });
// @ts-expect-error: the output has no such field
(await client.run(book, { guests: 3 })).chair;
// The bare handler is there for unit tests.
book.handler satisfies (inputs: { guests: number }, ctx: never) => unknown;
// @ts-expect-error: a name is needed
new Action({ handler: () => null });
// @ts-expect-error: a handler gets an object
new Action({ name: "x", handler: (guests: number) => guests });
// @ts-expect-error: no such policy
new Action({ name: "x", handler: () => null, retries: 3 });

// By name nothing is known, unless it is said.
const { seat } = await client.action("find-seat").invoke({ near: "window" });
await client.action("keep-seat").invoke({ seat });
const count: number = await client.action<number>("count-seats").invoke();
const strict = client.action<{ seat: string }, { near: string }>("find-seat", { wait: 3 });
(await strict.invoke({ near: "window" })).seat satisfies string;
// @ts-expect-error: the input that was said
await strict.invoke({ far: "window" });
// @ts-expect-error: JSON is no text without a look at it
const text: string = seat;
// @ts-expect-error: an input is an object
await client.action("x").invoke("text");

const shop = new Do({ url: "http://127.0.0.1:8787", apiKey: "do_x" });
const run: Run = await shop.action.execute({ name: "send-receipt", params: { to: "u1" }, key: "r:1" });
run.id satisfies string;
run.result satisfies JsonObject;
// @ts-expect-error: not a status
run.status === "done";
// @ts-expect-error: a run is read only
run.status = "failed";
// @ts-expect-error: a name is needed
await shop.action.execute({ params: {} });
// @ts-expect-error: not an option
new Do({ key: "do_x" });

for await (const each of shop.runs.list({ status: "failed" })) each.createdAt satisfies number;
const page: Run<unknown>[] = await shop.runs.list({ limit: 3 });
// @ts-expect-error: not a status
await shop.runs.list({ status: "done" });
// @ts-expect-error: not an outcome
await shop.runs.resolve(run.id, "perhaps");

const onboarding = new Service<{ email: string }, { userId: string }>({ name: "onboarding" });
(await client.run(onboarding, { email: "a@example.com" })).userId satisfies string;
// @ts-expect-error: a wrong input
await client.run(onboarding, { mail: "a@example.com" });

const charge = new Effect({
  name: "charge",
  perform: async (input: { cents: number }, { key }) => ({ id: `${key}${input.cents}` }),
  undo: (answer, input) => answer.id.length + input.cents,
});
new Action({
  name: "pay",
  undo: book,
  handler: async ({ cents }: { cents: number }, { stage, request, completionStatement }) => {
    stage(charge, { cents });
    stage("ledger.post", { anything: cents });
    const { id } = await request(charge, { cents });
    const other = await request<{ ok: boolean }>("ledger.post", { cents });
    // @ts-expect-error: a wrong input of the effect
    stage(charge, { euros: cents });
    // @ts-expect-error: a wrong input of the effect
    await request(charge, { cents: id });
    const { sql, parameters } = completionStatement({ id }, { style: "?" });
    // @ts-expect-error: not a style
    completionStatement({ id }, { style: ":name" });
    return [id, other.ok, sql, parameters];
  },
});

useDatabase("main", { dialect: "sqlite", query: () => [] });
// @ts-expect-error: not a dialect
useDatabase("main", { dialect: "mysql", query: () => [] });

try {
  await client.run(book, { guests: 9 });
} catch (error) {
  if (error instanceof ActionFailed) error.attempts satisfies number;
}

export { booked, count, page, table, text };
