/** A proxy that passes requests on and, so many times, cuts the connection before the answer comes back. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

export class Cutting {
  cut = 0;
  readonly #server: Server;
  readonly #open = new Set<Socket>();

  private constructor(
    target: URL,
    public left: number,
  ) {
    this.#server = createServer((near) => {
      const far = connect(Number(target.port), target.hostname);
      for (const socket of [near, far]) {
        this.#open.add(socket);
        socket.on("close", () => this.#open.delete(socket)).on("error", () => {});
      }
      near.pipe(far);
      near.on("close", () => far.destroy());
      far.on("close", () => near.destroy());
      far.on("data", (data) => {
        if (near.destroyed) return; // the rest of an answer that was cut
        if (this.left > 0) {
          this.left -= 1;
          this.cut += 1;
          near.destroy();
        } else near.write(data);
      });
    });
  }

  static async before(url: string, left: number): Promise<Cutting> {
    const cutting = new Cutting(new URL(url), left);
    cutting.#server.listen(0, "127.0.0.1");
    await once(cutting.#server, "listening");
    return cutting;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Cuts whatever is open now. */
  cutAll(): void {
    for (const socket of this.#open) socket.destroy();
  }

  close(): void {
    this.#server.close();
    this.cutAll();
  }
}
