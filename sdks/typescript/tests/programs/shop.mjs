// A worker whose handler commits in a transaction of its own, and dies around that as it is told: NAME DIALECT URL.
import { Action, postgres, serve, sqlite, useDatabase } from "@do-sdk/core";
import Database from "libsql";
import pg from "pg";

const [name, dialect, url] = process.argv.slice(2);

const shops = {
  postgresql() {
    const pool = new pg.Pool({ connectionString: url, max: 4, allowExitOnIdle: true });
    useDatabase("main", postgres(pool));
    return async (item, ctx, die) => {
      const connection = await pool.connect();
      try {
        await connection.query("begin");
        const found = await connection.query("insert into orders (item) values ($1) returning id", [item]);
        const result = { order: found.rows[0].id, attempt: ctx.attempt };
        const { sql, parameters } = ctx.completionStatement(result);
        await connection.query(sql, parameters);
        await die("before");
        await connection.query((await die("forget")) ? "rollback" : "commit");
        await die("after");
        return result;
      } catch (error) {
        await connection.query("rollback");
        throw error;
      } finally {
        connection.release();
      }
    };
  },
  sqlite() {
    const [connection, other] = [new Database(url), new Database(url)];
    // By itself libsql does not wait when another process writes: then the attempt fails, and the next one does it.
    for (const each of [connection, other]) each.exec("pragma busy_timeout = 60000");
    useDatabase("shop", sqlite(other));
    return async (item, ctx, die) => {
      connection.exec("begin immediate");
      try {
        const found = connection.prepare("insert into orders (item) values (?) returning id").all(item);
        const result = { order: found[0].id, attempt: ctx.attempt };
        const { sql, parameters } = ctx.completionStatement(result);
        connection.prepare(sql).run(...parameters);
        await die("before");
        connection.exec((await die("forget")) ? "rollback" : "commit");
        await die("after");
        return result;
      } catch (error) {
        if (connection.inTransaction) connection.exec("rollback");
        throw error;
      }
    };
  },
};

const order = shops[dialect]();
new Action({
  name,
  retry: { attempts: 2, delay: 0.01 },
  handler: ({ item, moves }, ctx) =>
    order(item, ctx, async (moment) => {
      const move = moves[ctx.attempt - 1];
      if (move === `die ${moment}`) process.kill(process.pid, "SIGKILL");
      if (move === `throw ${moment}`) throw new Error(`thrown ${moment} the commit`);
      return move === moment;
    }),
});

await serve({ onReady: () => console.log("ready") });
