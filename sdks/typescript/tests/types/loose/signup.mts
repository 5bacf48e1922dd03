/** What a newcomer writes who has not turned strictness on: parameters without types, `error.message` as it is. */
import { Do } from "@do-platform/sdk";
import { Action, client } from "@do-sdk/core";

declare const rooms: { find(id: string): Promise<{ owner: string } | undefined> };

const openRoom = new Action({
  name: "open-room",
  handler: async (inputs: { roomId: string }) => {
    const room = await rooms.find(inputs.roomId);
    if (!room) {
      throw new Error("Room not found.");
    }
    return { success: true, owner: room.owner };
  },
});

export async function handleArrival(request) {
  const { roomId, guest } = request.body;
  try {
    const { owner } = await client.action("open-room").invoke({ roomId });
    await Promise.all([
      client.action("tell-owner").invoke({ owner }),
      client.action("greet-guest").invoke({ guest, owner }),
    ]);
    return { status: 201 };
  } catch (error) {
    console.error("The arrival failed:", error.message);
    return { status: 500 };
  }
}

const desk = new Do({ apiKey: "YOUR_API_KEY" });

async function ring(roomId: string) {
  try {
    const result = await desk.action.execute({ name: "ring-bell", params: { roomId } });
    console.log(result.id);
    return result;
  } catch (error) {
    console.error(error);
  }
}

ring(openRoom.name);
