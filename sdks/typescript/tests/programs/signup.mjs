// Defines an action, invokes it, and ends: NAME.
import { Action, client } from "@do-sdk/core";

const name = process.argv[2];
new Action({ name, handler: ({ number }) => ({ twice: 2 * number }) });

const found = await Promise.all([1, 2].map((number) => client.action(name).invoke({ number })));
console.log(JSON.stringify(found));
