// Calls an action, and ends.
import { Do } from "@do-platform/sdk";

const { text } = await new Do().action("greet-user").invoke({ name: "Ada" });
console.log(text);
