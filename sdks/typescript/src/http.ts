/**
 * One HTTP exchange: over kept connections, with a deadline, and with the one piece of knowledge that callers need when it
 * fails: whether the request can have been read by anybody.
 *
 * Not fetch, because that cannot tell the latter, and cannot leave a process free to end while a worker asks for work.
 */
import { setMaxListeners } from "node:events";
import * as http from "node:http";
import * as https from "node:https";

/** Shorter than the time after which common servers (uvicorn: 5 s) close idle connections. */
const IDLE_MS = 4_000;

export interface Exchange {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: string | undefined;
  /** Milliseconds for the whole answer; without, it may take for ever. */
  readonly timeout?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** The process may end while this is under way. */
  readonly background?: boolean | undefined;
}

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

/** An exchange that failed. `sent`: somebody may have read the request. */
export class ExchangeFailed extends Error {
  constructor(
    message: string,
    readonly sent: boolean,
  ) {
    super(message);
  }
}

export class Connections {
  readonly #agent: http.Agent;
  readonly #request: typeof http.request;
  readonly #url: URL;
  readonly #connected: string;

  constructor(url: URL) {
    const secure = url.protocol === "https:";
    const options = { keepAlive: true, maxSockets: Number.POSITIVE_INFINITY, timeout: IDLE_MS };
    this.#agent = secure ? new https.Agent(options) : new http.Agent(options);
    this.#request = secure ? https.request : http.request;
    this.#connected = secure ? "secureConnect" : "connect";
    this.#url = url;
  }

  /** Sends a request and reads the whole answer. Throws ExchangeFailed; what `signal` was aborted with. */
  async exchange(exchange: Exchange): Promise<Answer> {
    const response = await this.open(exchange);
    const pieces: Buffer[] = [];
    try {
      for await (const piece of response) pieces.push(piece as Buffer);
    } catch (error) {
      exchange.signal?.throwIfAborted();
      throw new ExchangeFailed(reason(error), true);
    }
    const body = Buffer.concat(pieces).toString("utf8");
    return { status: response.statusCode ?? 0, headers: response.headers, body };
  }

  /** Sends a request; resolves once the answer's headers are here. Its body must be read, or destroyed. */
  open(exchange: Exchange): Promise<http.IncomingMessage> {
    const { method, path, headers, body, timeout, signal, background } = exchange;
    const length = body === undefined ? {} : { "Content-Length": String(Buffer.byteLength(body)) };
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      let connected = false;
      const request = this.#request(new URL(this.#url.pathname.replace(/\/$/, "") + path, this.#url), {
        method,
        headers: { ...headers, ...length },
        agent: this.#agent,
        timeout: 0,
      });
      const late = (): void => void request.destroy(new Error(`no answer within ${(timeout ?? 0) / 1000} s`));
      const timer = timeout === undefined ? undefined : setTimeout(late, timeout).unref();
      const abort = (): void => void request.destroy(new Error("aborted"));
      const over = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
      };
      if (signal) {
        setMaxListeners(0, signal); // one signal may end any number of calls
        signal.addEventListener("abort", abort, { once: true });
      }
      request.on("socket", (socket) => {
        socket.setTimeout(0); // the agent's is for idle connections
        if (request.reusedSocket) connected = true;
        else
          socket.once(this.#connected, () => {
            connected = true;
          });
        if (background) socket.unref();
      });
      request.on("close", over);
      request.on("response", resolve);
      request.on("error", (error) => {
        over();
        reject(signal?.aborted ? signal.reason : new ExchangeFailed(reason(error), connected));
      });
      request.end(body);
    });
  }

  close(): void {
    this.#agent.destroy();
  }
}

function reason(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return reason(error.errors[0]);
  return error instanceof Error ? error.message : String(error);
}
