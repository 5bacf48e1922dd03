/** The programs that newcomers write first: an action called by name, and a sign-up made of actions of one process. */

import { Do } from "@do-platform/sdk";
import * as core from "@do-sdk/core";
import { expect, test, vi } from "vitest";
import { platform } from "./platform.js";

process.env.DOTDO_URL = platform.url;
process.env.DOTDO_API_KEY = platform.key;

const { Action, client } = core;
const members = new Map<string, { name: string; email: string }>();
const letters: string[] = [];
const contacts: string[] = [];
let together = 0;
let mostTogether = 0;

async function meanwhile(): Promise<void> {
  together += 1;
  mostTogether = Math.max(mostTogether, together);
  await vi.waitFor(() => expect(mostTogether).toBe(2), 60_000);
  together -= 1;
}

new Action({
  name: "add-member",
  handler: async (inputs: { name: string; email: string }) => {
    const memberId = `m${members.size + 1}`;
    members.set(memberId, inputs);
    return { memberId };
  },
});

new Action({
  name: "greet-member",
  retry: { attempts: 2, delay: 0.01 },
  handler: async (inputs: { memberId: string }) => {
    const member = members.get(inputs.memberId);
    if (!member) {
      throw new Error("Member not found.");
    }
    await meanwhile();
    letters.push(member.email);
    return { success: true };
  },
});

new Action({
  name: "note-contact",
  handler: async (inputs: { email: string; name: string }) => {
    await meanwhile();
    contacts.push(`${inputs.name} <${inputs.email}>`);
    return { success: true };
  },
});

// As an application would write it, without types of its own.
async function handleSignup(request: { body: { name: string; email: string } }) {
  const { name, email } = request.body;
  try {
    const { memberId } = await client.action("add-member").invoke({ name, email });
    await Promise.all([
      client.action("greet-member").invoke({ memberId }),
      client.action("note-contact").invoke({ email, name }),
    ]);
    return { status: 201, message: "Welcome!" };
  } catch (error) {
    return { status: 500, message: (error as Error).message };
  }
}

test("actions of this process are invoked by name, two of them in parallel", async () => {
  expect(await handleSignup({ body: { name: "Ada", email: "ada@example.com" } })).toEqual({
    status: 201,
    message: "Welcome!",
  });
  expect(mostTogether).toBe(2);
  expect([letters, contacts]).toEqual([["ada@example.com"], ["Ada <ada@example.com>"]]);
});

test("an action that fails for good gives its handler's message", async () => {
  const error = await client
    .action("greet-member")
    .invoke({ memberId: "m9" })
    .catch((failure: unknown) => failure);
  expect(error).toBeInstanceOf(core.ActionFailed);
  expect(error).toMatchObject({ message: "Member not found.", errorType: "Error", attempts: 2 });
  expect(letters).toHaveLength(1);
});

test("an action is executed by name, with an API key", async () => {
  const shop = new Do({ url: platform.url, apiKey: platform.key });
  const result = await shop.action.execute({ name: "add-member", params: { name: "Eve", email: "eve@example.com" } });
  expect(result.id).toMatch(/^run_/);
  expect(result.status).toBe("completed");
  expect(result.result).toEqual({ memberId: "m2" });
});
