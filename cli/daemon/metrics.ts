import { resolve } from "node:path";
import type { Logger } from "pino";
import type { MetricsAddress } from "../../src/metrics/listener.ts";
import type { Metrics, Sources } from "../../src/metrics/metrics.ts";
import { parseTarget } from "../../src/client/target.ts";
import { UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";
import type { Setting } from "./config.ts";

/** The daemon's flags for metrics. */
export const metricsFlags: readonly Setting[] = [
  {
    name: "metrics",
    value: "HOST:PORT|unix:PATH",
    about: "serve metrics for Prometheus there, at /metrics, without TLS; none when not given",
  },
  {
    name: "metrics-remote",
    about: "--metrics may be an address that other hosts reach: they are not asked who they are",
  },
];

export interface MetricsOptions {
  readonly address: MetricsAddress;
  readonly remote: boolean;
}

/** The most bytes of a socket's path (unix(7)), without the NUL behind it. */
const MAX_SOCKET_PATH = 107;

/** Returns where these flags have metrics served; undefined where they do not. Throws UsageError and ClientError. */
export function metricsOptions(given: Given): MetricsOptions | undefined {
  const address = optional(given, "metrics", parseAddress);
  if (!address && given.on("metrics-remote"))
    throw new UsageError(`${given.nameOf("metrics-remote")} is for ${given.nameOf("metrics")} HOST:PORT only`);
  return address && { address, remote: given.on("metrics-remote") };
}

function parseAddress(flag: string, text: string): MetricsAddress {
  const [, path] = /^unix:(.*)$/s.exec(text) ?? [];
  if (path === undefined) return { kind: "tcp", ...parseTarget(text, flag) };
  if (path === "")
    throw new UsageError(`${flag} ${text} names no socket; give unix:PATH, as in unix:/run/jobsd/metrics`);
  const full = resolve(path);
  if (Buffer.byteLength(full) > MAX_SOCKET_PATH)
    throw new UsageError(`${flag} ${text}: the path of a socket has at most ${MAX_SOCKET_PATH} bytes`);
  return { kind: "unix", path: full };
}

/** Metrics that count from now on, and can be had once they are listened for. */
export interface DaemonMetrics extends AsyncDisposable, Pick<Metrics, "worker" | "server"> {
  /** Throws MetricsError when the address cannot be had. Scrapes wait for `server`. */
  listen(sources: Omit<Sources, "server"> & { readonly server: Promise<Sources["server"]> }): Promise<void>;
}

/** Opens metrics; what they take is loaded only here. */
export async function openMetrics(options: MetricsOptions, version: string, log: Logger): Promise<DaemonMetrics> {
  const [counted, { listenForScrapes }] = await Promise.all([
    import("../../src/metrics/metrics.ts"),
    import("../../src/metrics/listener.ts"),
  ]);
  await using opening = new AsyncDisposableStack();
  const metrics = opening.use(counted.openMetrics(version));
  const opened = opening.move();
  return {
    worker: metrics.worker,
    server: metrics.server,
    async listen({ server, ...rest }) {
      const scrape = async (): Promise<string> => metrics.scrape({ ...rest, server: await server });
      const failed = (error: unknown): void => log.error({ err: error }, "metrics could not be served");
      const listener = await listenForScrapes({ ...options, scrape, failed });
      opened.defer(() => listener.close());
      log.info({ address: listener.address }, "serving metrics");
    },
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}
