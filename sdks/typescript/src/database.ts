/**
 * The application's databases, in which handlers commit their attempts by themselves, and where attempts are settled.
 *
 * The last statement of a handler's transaction inserts its whole completion into `dotdo_applied`. Whoever did not see how
 * an attempt ended concludes nothing from an absent row: it inserts `void` under the same key. If that wins, the attempt
 * can never commit; if it collides, the row's completion counts. See contract/worker-protocol.md.
 */
import { catalogue } from "./catalogue.js";
import { DefinitionError } from "./errors.js";

export type Dialect = "postgresql" | "sqlite";
export type Parameter = string | number;

/** One of the application's databases. */
export interface Database {
  readonly dialect: Dialect;
  /** Executes one statement, in a transaction of its own, and gives its rows. */
  query(sql: string, parameters: readonly Parameter[]): readonly unknown[] | Promise<readonly unknown[]>;
}

/** A statement that a handler executes, as the last one of its own transaction, to commit its attempt. */
export interface CompletionStatement {
  readonly sql: string;
  readonly parameters: Parameter[];
  readonly database: string;
  readonly dialect: Dialect;
}

/** The attempt of a row. */
export interface Place {
  readonly run: string;
  readonly step: string;
  readonly generation: number;
  readonly attempt: number;
}

const VOID = "void";
const COLUMNS = "dotdo_applied (run, step, generation, attempt, completion, at)";
const HERE = {
  postgresql: "run = $1 and step = $2 and generation = $3 and attempt = $4",
  sqlite: "run = ? and step = ? and generation = ? and attempt = ?",
};
/** `or rollback`: on SQLite a failed statement leaves its transaction open, and a handler might commit the rest of it. */
const COMPLETION = {
  postgresql: `insert into ${COLUMNS} values ($1, $2, $3, $4, $5, $6)`,
  sqlite: `insert or rollback into ${COLUMNS} values (?, ?, ?, ?, ?, ?)`,
};
/** Waits no longer than 2 s for the attempt's own transaction, if that is still open. */
const VOIDING = {
  postgresql: `insert into ${COLUMNS}
    select $1, $2, $3::integer, $4::integer, $5, $6::bigint from set_config('lock_timeout', '2000', true)
    on conflict do nothing returning run`,
  sqlite: `insert into ${COLUMNS} values (?, ?, ?, ?, ?, ?) on conflict do nothing returning run`,
};
const TABLE = `create table if not exists dotdo_applied (
  run varchar(200) not null, step varchar(400) not null, generation integer not null, attempt integer not null,
  completion text not null, at bigint not null, primary key (run, step, generation, attempt))`;

/**
 * Names a database in which handlers of this process commit with `ctx.completionStatement()`. The same name means the
 * same database at every worker of the platform. `database`: `postgres(pool)`, `sqlite(connection)`, or your own.
 */
export function useDatabase(name: string, database: Database): void {
  if (catalogue.databases.has(name)) throw new DefinitionError(`There are two databases ${JSON.stringify(name)}.`);
  catalogue.databases.set(name, database);
  catalogue.edition += 1;
}

/** PostgreSQL, by a pool of the package `pg` or what has its `query`. */
export function postgres(pool: {
  query(sql: string, parameters: Parameter[]): Promise<{ readonly rows: readonly unknown[] }>;
}): Database {
  const query: Database["query"] = async (sql, parameters) => (await pool.query(sql, [...parameters])).rows;
  return { dialect: "postgresql", query };
}

/**
 * A SQLite file, by a connection of `better-sqlite3`, `libsql` or `node:sqlite`. Give it one that no handler uses: what is
 * settled must not become part of a handler's transaction.
 */
export function sqlite(connection: {
  prepare(sql: string): {
    all(...parameters: Parameter[]): readonly unknown[];
    run(...parameters: Parameter[]): unknown;
  };
}): Database {
  const query: Database["query"] = (sql, parameters) => {
    const statement = connection.prepare(sql);
    if (/^select|returning/.test(sql)) return statement.all(...parameters);
    statement.run(...parameters);
    return [];
  };
  return { dialect: "sqlite", query };
}

/** Creates the table of applied rows where it is missing. */
export async function prepare(database: Database): Promise<void> {
  const isThere = async (): Promise<unknown> => database.query("select 1 from dotdo_applied where run = ''", []);
  try {
    await isThere();
  } catch {
    try {
      await database.query(TABLE, []);
    } catch (error) {
      // Another process may have made it at the same moment, which PostgreSQL reports as a failure.
      await isThere().catch(() => {
        throw error;
      });
    }
  }
}

/** The statement that commits an attempt. completion: JSON. */
export function completionStatement(
  name: string,
  { dialect }: Database,
  place: Place,
  completion: string,
): CompletionStatement {
  return { sql: COMPLETION[dialect], parameters: row(place, completion), database: name, dialect };
}

/** Decides an attempt for good: its completion (JSON) if it has committed, null if it never will. */
export async function settle(database: Database, place: Place): Promise<string | null> {
  let completion = await committed(database, place);
  if (completion === undefined) {
    const inserted = await database.query(VOIDING[database.dialect], row(place, VOID));
    if (inserted.length > 0) return null;
    completion = await committed(database, place);
    if (completion === undefined) throw new Error("its row was deleted meanwhile");
  }
  return completion === VOID ? null : completion;
}

/** Deletes the row of an attempt whose end is durable at the server. */
export async function forget(database: Database, place: Place): Promise<void> {
  await database.query(`delete from dotdo_applied where ${HERE[database.dialect]}`, key(place));
}

async function committed(database: Database, place: Place): Promise<string | undefined> {
  const sql = `select completion from dotdo_applied where ${HERE[database.dialect]}`;
  const [found] = (await database.query(sql, key(place))) as readonly { readonly completion: string }[];
  return found?.completion;
}

function key({ run, step, generation, attempt }: Place): Parameter[] {
  return [run, step, generation, attempt];
}

function row(place: Place, completion: string): Parameter[] {
  return [...key(place), completion, Date.now()];
}
