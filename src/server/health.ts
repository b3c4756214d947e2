import {
  HealthCheckResponse_ServingStatus as ServingStatus,
  type HealthServer,
} from "../../proto/generated/grpc/health/v1/health.ts";
import { JobError } from "../worker/errors.ts";
import type { Handlers } from "./guard.ts";

/** "" is the server as a whole. */
const SERVICES: ReadonlySet<string> = new Set(["", "jobs.v1.WorkerService"]);

export interface Health {
  readonly service: Pick<HealthServer, "check" | "watch">;
  /** From now on NOT_SERVING; tells watchers. */
  stopServing(): void;
}

/** The gRPC health checking protocol (github.com/grpc/grpc, doc/health-checking.md). */
export function health({ unary, streaming }: Handlers): Health {
  let current: ServingStatus = ServingStatus.SERVING;
  const watchers = new Set<() => void>();
  return {
    service: {
      check: unary(({ service }) => {
        if (!SERVICES.has(service)) throw new JobError("not-found", `no service ${JSON.stringify(service)} here`);
        return { status: current };
      }),
      watch: streaming(async (call, { signal }) => {
        const known = SERVICES.has(call.request.service);
        const tell = (): void => void call.write({ status: known ? current : ServingStatus.SERVICE_UNKNOWN });
        tell();
        watchers.add(tell);
        await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
        watchers.delete(tell);
        signal.throwIfAborted();
      }),
    },
    stopServing() {
      current = ServingStatus.NOT_SERVING;
      for (const tell of watchers) tell();
    },
  };
}
