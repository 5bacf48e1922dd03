// The same as signup.mjs, in CommonJS: NAME.
const { Action, client } = require("@do-sdk/core");

const name = process.argv[2];
new Action({ name, handler: ({ number }) => ({ twice: 2 * number }) });

Promise.all([1, 2].map((number) => client.action(name).invoke({ number }))).then((found) => {
  console.log(JSON.stringify(found));
});
