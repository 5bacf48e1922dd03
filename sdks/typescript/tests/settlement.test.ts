/** A handler that commits in a transaction of its own does so exactly once, however it ends. */
import type { Do } from "@do-platform/sdk";
import Database from "libsql";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, type TestContext, test } from "vitest";
import { connect, platform, rejection, unique } from "./platform.js";
import { type Program, program } from "./processes.js";

interface Ordered {
  readonly order: number;
  readonly attempt: number;
}

const pool = new pg.Pool({ connectionString: platform.postgres, max: 2 });
const shop = new Database(platform.shop);
const client: Do = connect();

beforeAll(async () => {
  await pool.query("create table orders (id serial primary key, item text not null)");
  shop.exec("pragma journal_mode = wal");
  shop.exec("create table orders (id integer primary key, item text not null)");
});
afterAll(() => pool.end());

const databases = {
  postgresql: {
    url: platform.postgres,
    orders: async (item: string): Promise<number> =>
      (await pool.query("select id from orders where item = $1", [item])).rows.length,
    rows: async (run: string): Promise<string[]> =>
      (await pool.query("select completion from dotdo_applied where run = $1", [run])).rows.map(
        (row) => row.completion,
      ),
  },
  sqlite: {
    url: platform.shop,
    orders: async (item: string): Promise<number> =>
      shop.prepare("select id from orders where item = ?").all(item).length,
    rows: async (run: string): Promise<string[]> =>
      (shop.prepare("select completion from dotdo_applied where run = ?").all(run) as { completion: string }[]).map(
        (row) => row.completion,
      ),
  },
};

describe.each(["postgresql", "sqlite"] as const)("%s", (dialect) => {
  const { url, orders, rows } = databases[dialect];

  /** A worker, for an action of its own, and how that is started. */
  const open = (context: TestContext) => {
    const name = unique("order");
    const work = (): Program => program(context, "shop.mjs", [name, dialect, url]);
    const start = async (...moves: string[]) => {
      const item = unique("item");
      return { item, handle: await client.action<Ordered>(name).start({ item, moves }) };
    };
    return { work, start };
  };

  test.for([
    ["die after", 1],
    ["die before", 2],
  ] as const)("killed (%s its commit), its order is placed once, by attempt %i", async ([move, attempt], context) => {
    const { work, start } = open(context);
    const dying = work();
    await dying.line("ready");
    const { item, handle } = await start(move);
    expect(await dying.ended).toBe("SIGKILL");
    expect(await orders(item)).toBe(move === "die after" ? 1 : 0);
    await work().line("ready");
    expect(await handle.result()).toMatchObject({ attempt });
    expect(await orders(item)).toBe(1);
  });

  test("it returns, throws after its commit, throws before it, or never commits", async (context) => {
    const { work, start } = open(context);
    const worker = work();
    await worker.line("ready");

    const returns = await start();
    expect(await returns.handle.result()).toMatchObject({ attempt: 1 });
    expect(await orders(returns.item)).toBe(1);
    await expect.poll(() => rows(returns.handle.id)).toEqual([]);

    const late = await start("throw after");
    expect(await late.handle.result()).toMatchObject({ attempt: 1 });
    expect(await orders(late.item)).toBe(1);
    await expect.poll(() => worker.output()).toContain("had committed, and counts; it then threw");

    const early = await start("throw before");
    expect(await early.handle.result()).toMatchObject({ attempt: 2 });
    expect(await orders(early.item)).toBe(1);
    // Of the attempt that failed, and might have been about to commit, the void row stays.
    await expect.poll(() => rows(early.handle.id)).toEqual(["void"]);

    const forgets = await start("forget");
    const error = await rejection(forgets.handle.result());
    expect(error).toMatchObject({ errorType: "DefinitionError", attempts: 1 });
    expect((error as Error).message).toContain("nothing of it is committed");
    expect(await orders(forgets.item)).toBe(0);

    worker.child.kill("SIGTERM");
    expect(await worker.ended).toBe(0);
  });
});
