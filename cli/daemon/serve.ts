import { join } from "node:path";
import type { Logger } from "pino";
import { formatTarget } from "../../src/client/target.ts";
import { nativeDirectory } from "../../src/os/native.ts";
import { serve, type Served } from "../../src/server/server.ts";
import { openWorker } from "../../src/worker/index.ts";
import { isIgnored } from "../line/caller.ts";
import type { Given } from "../line/program.ts";
import { EXIT } from "../tell/exit.ts";
import { print } from "../tell/output.ts";
import { firstCrls } from "./crl.ts";
import { sharedFindings } from "./kept.ts";
import { openLog } from "./log.ts";
import { openMetrics } from "./metrics.ts";
import { openNotifier } from "./notify.ts";
import { oneByOne, openReload } from "./reload.ts";
import { settings } from "./settings.ts";
import { heardBy, traceBy } from "./tracing.ts";
import { watchFiles } from "./watch.ts";

interface ServeOptions {
  readonly given: Given;
  /** Reads what is given anew: the configuration file may have changed. */
  readonly read: () => Promise<Given>;
  readonly root: string;
  readonly version: string;
}

/** `jobsd`: serves until a signal ends it. Resolves to the exit code; throws what keeps it from starting. */
export async function serveUntilSignal({ given, read, root, version }: ServeOptions): Promise<number> {
  const stopping = signalled("SIGTERM", "SIGINT");
  let hungUp = false;
  let onHangup = (): void => undefined;
  process.on("SIGHUP", () => {
    hungUp = true;
    onHangup();
  });
  const started = await settings(given, root);
  const { listen, worker: workerOptions, level, secrets, tlsFiles, crlFile, metrics: scraped, ...served } = started;
  const log = openLog(level);
  const crls = await firstCrls(started, log);
  using notifier = openNotifier(join(nativeDirectory(root), "notify.node"), process.env, log);
  await using metrics = scraped && (await openMetrics(scraped, version, log));
  const tracing = await traceBy(started.tracing, version);
  const worker = await openWorker({
    ...workerOptions,
    meter: heardBy(metrics?.worker, tracing),
    log: (at, message, facts) => log[at](facts ?? {}, message),
  });
  try {
    const serving = Promise.withResolvers<Served>();
    await metrics?.listen({ worker, server: serving.promise, stateDir: workerOptions.stateDir });
    const server = await serve({ ...served, ...listen, crls, worker, log, meter: metrics?.server, tracing });
    serving.resolve(server);
    const address = formatTarget({ host: listen.host, port: server.port });
    const status = `listening on ${address}`;
    const reload = openReload({ given, read, root, started, crls, server, worker, log });
    const untaken = `${status}; the configuration was not taken: the log has the reason`;
    const reloads = oneByOne(async () => {
      if (hungUp) {
        hungUp = false;
        notifier.reloading();
        notifier.ready((await reload.all()) ? status : untaken);
      } else await reload.certificates();
    });
    onHangup = reloads.ask;
    const watched = [...Object.values(tlsFiles), ...(crlFile === undefined ? [] : [crlFile])];
    using _watched = watchFiles(watched, reloads.ask, (directory, error) =>
      log.warn({ err: error }, `changes of certificates in ${directory} are taken on SIGHUP alone`),
    );
    // Takes what has changed since the files were read.
    reloads.ask();
    logCrashes(log);
    log.info({ address, host: worker.host, version }, "listening");
    for (const { meaning, reason, remedy } of sharedFindings(secrets, workerOptions))
      log.warn({ reason, remedy }, meaning);
    await print([status]).catch(() => {}); // jobs are more than a reader of this line
    notifier.ready(status);
    const signal = await stopping;
    log.info({ signal }, "shutting down; jobs keep running");
    await reloads.end();
    notifier.stopping();
    await server.close();
  } finally {
    await worker.close();
  }
  log.info("closed");
  return EXIT.ok;
}

/** Resolves to the first of these signals that the caller does not ignore. A second one ends the process at once. */
function signalled(...signals: readonly NodeJS.Signals[]): Promise<NodeJS.Signals> {
  return new Promise((settle) => {
    const listener = (signal: NodeJS.Signals): void => {
      for (const each of signals) process.off(each, listener);
      settle(signal);
    };
    for (const each of signals) if (!isIgnored(each)) process.on(each, listener);
  });
}

function logCrashes(log: Logger): void {
  process.on("uncaughtException", (error) => {
    log.fatal({ err: error }, "crashed; jobs keep running");
    process.exit(EXIT.failed);
  });
}
