// A lending library: two actions of this process, called by name. Start a server first: `dotdo dev app.py`.
import { Action, client, Fail } from "@do-sdk/core";

const shelves = new Map([["b1", "Moby Dick"]]);
const loans = [];

new Action({
  name: "find-book",
  handler: async ({ bookId }) => {
    const title = shelves.get(bookId);
    if (!title) throw new Fail(`There is no book ${bookId}.`);
    return { title };
  },
});

new Action({
  name: "lend-book",
  retry: { attempts: 3, delay: 0.1 },
  handler: async ({ title, reader }, { attempt, idempotencyKey, log }) => {
    if (attempt === 1) throw new Error("The card index is locked."); // tried again by the platform
    log.info(`${title} goes to ${reader}`);
    loans.push({ title, reader, key: idempotencyKey });
    return { loans: loans.length };
  },
});

for (const bookId of ["b1", "b2"]) {
  try {
    const { title } = await client.action("find-book").invoke({ bookId });
    const run = await client.action.execute({ name: "lend-book", params: { title, reader: "Ada" } });
    console.log(`${title}: ${run.status}, ${run.result.loans} loan(s)`);
  } catch (error) {
    console.log(`${bookId}: ${error.message}`);
  }
}
