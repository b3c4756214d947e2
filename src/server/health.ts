import { chmod } from "node:fs/promises";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import type { Logger } from "pino";
import {
  HealthCheckResponse_ServingStatus as ServingStatus,
  type HealthServer,
  HealthService,
} from "../../proto/generated/grpc/health/v1/health.ts";
import { reasonOf } from "../os/errno.ts";
import { removeStale } from "../os/socket.ts";
import { JobError, quoted } from "../worker/index.ts";
import { type Caller, handlers, type Handlers } from "./guard.ts";
import type { Principal } from "../x509/identity.ts";
import { grpcOptions } from "./limits.ts";
import { ServeError } from "./pem.ts";

/** The names that a check may ask for; "" is the server as a whole. */
const SERVICES: ReadonlySet<string> = new Set(["", "jobs.v1.WorkerService"]);

export interface Health {
  readonly service: (calls: Handlers) => Pick<HealthServer, "check" | "watch" | "list">;
  /** Answers NOT_SERVING from now on, and tells watchers. */
  stopServing(): void;
}

/** Implements the gRPC health checking protocol (github.com/grpc/grpc, doc/health-checking.md). */
export function health(): Health {
  let current: ServingStatus = ServingStatus.SERVING;
  const watchers = new Set<() => void>();
  return {
    service: ({ unary, streaming }) => ({
      check: unary(({ service }) => {
        if (!SERVICES.has(service)) throw new JobError("not-found", `no service ${quoted(service)} here`);
        return { status: current };
      }),
      list: unary(() => ({ statuses: new Map([...SERVICES].map((name) => [name, { status: current }])) })),
      watch: streaming(async (call, { signal }) => {
        const known = SERVICES.has(call.request.service);
        const tell = (): void => void call.write({ status: known ? current : ServingStatus.SERVICE_UNKNOWN });
        tell();
        watchers.add(tell);
        await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
        watchers.delete(tell);
        signal.throwIfAborted();
      }),
    }),
    stopServing() {
      current = ServingStatus.NOT_SERVING;
      for (const tell of watchers) tell();
    },
  };
}

/** How many calls one connection of the health socket has at once. */
const MAX_WATCHERS = 100;

const LOCAL: Principal = {
  name: "local",
  subject: "local",
  role: "reader",
  serial: "",
  fingerprint256: "",
  notBefore: new Date(0),
  notAfter: new Date(8.64e15),
};

const LOCAL_CALLER: Caller = { principal: LOCAL, denied: () => undefined, take: (work) => void work() };

/**
 * Answers health checks, and nothing else, on a UNIX socket that only the daemon's own user can open: what keeps the daemon
 * running needs no certificate. These checks leave no audit records.
 *
 * @throws ServeError when the socket cannot be had
 */
export async function serveHealth(path: string, { service }: Health, log: Logger): Promise<Server> {
  const server = new Server(grpcOptions(MAX_WATCHERS));
  server.addService(HealthService, service(handlers({ get: () => LOCAL_CALLER }, log)));
  try {
    await removeStale(path, "--health-socket");
    await new Promise<void>((resolve, reject) =>
      server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      ),
    );
    await chmod(path, 0o600);
    return server;
  } catch (error) {
    server.forceShutdown();
    const reason = reasonOf(error);
    throw new ServeError("cannot-listen", `cannot listen on ${path}: ${reason}`, error);
  }
}
