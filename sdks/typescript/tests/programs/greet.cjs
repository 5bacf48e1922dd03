// The same as greet.mjs, in CommonJS.
const { Do } = require("@do-platform/sdk");

const greeted = new Do().action("greet-user").invoke({ name: "Ada" });
greeted.then(({ text }) => console.log(text));
