/** The same packages from CommonJS. */
import core = require("@do-sdk/core");
import sdk = require("@do-platform/sdk");

const add = new core.Action({ name: "add", handler: ({ a, b }: { a: number; b: number }) => a + b });
const sum: Promise<number> = core.client.run(add, { a: 1, b: 2 });
// @ts-expect-error: a wrong input
core.client.run(add, { a: 1 });
const client = new sdk.Do({ apiKey: "do_x" });
const runs: Promise<unknown> = client.action.execute({ name: "add", params: { a: 1, b: 2 } });

export = [sum, runs];
