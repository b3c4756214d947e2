import { type Logger, pino } from "pino";
import { formatTarget, parseTarget } from "../../src/client/target.ts";
import { serve, type Served } from "../../src/server/server.ts";
import { openWorker } from "../../src/worker/index.ts";
import { isIgnored } from "../line/caller.ts";
import type { Given } from "../line/program.ts";
import { unwaiting } from "../tell/descriptors.ts";
import { EXIT } from "../tell/exit.ts";
import { print } from "../tell/output.ts";
import { sharedFindings } from "./kept.ts";
import { linesTo } from "./lines.ts";
import { openMetrics } from "./metrics.ts";
import { oneByOne, renewTls } from "./reload.ts";
import { settings } from "./settings.ts";
import { watchFiles } from "./watch.ts";

/** `jobsd`: serves until a signal ends it. Resolves to the exit code; throws what keeps it from starting. */
export async function serveUntilSignal(given: Given, root: string, version: string): Promise<number> {
  const stopping = signalled("SIGTERM", "SIGINT");
  /** Actions of a SIGHUP. One that comes early does nothing, and does not end the process. */
  const onHangup = new Set<() => void>();
  process.on("SIGHUP", () => onHangup.forEach((each) => each()));
  const settled = await settings(given, root);
  const { listen, worker: workerOptions, level, secrets, tlsFiles, metrics: scraped, ...served } = settled;
  const { host, port: wanted } = parseTarget(listen, "--listen");
  const log = openLog(level);
  await using metrics = scraped && (await openMetrics(scraped, version, log));
  const meter = metrics?.worker;
  const worker = await openWorker({
    ...workerOptions,
    meter,
    log: (at, message, facts) => log[at](facts ?? {}, message),
  });
  try {
    const serving = Promise.withResolvers<Served>();
    await metrics?.listen({ worker, server: serving.promise, stateDir: workerOptions.stateDir });
    const server = await serve({ ...served, worker, host, port: wanted, log, meter: metrics?.server });
    serving.resolve(server);
    const renew = oneByOne(() => renewTls(server, tlsFiles, log));
    onHangup.add(() => {
      log.info("SIGHUP: files are opened anew");
      server.reopen();
      renew();
    });
    using _watched = watchFiles(Object.values(tlsFiles), renew, (directory, error) =>
      log.warn({ err: error }, `changes of certificates in ${directory} are taken on SIGHUP alone`),
    );
    logCrashes(log);
    const address = formatTarget({ host, port: server.port });
    log.info({ address, host: worker.host, version }, "listening");
    for (const { meaning, reason, remedy } of sharedFindings(secrets, workerOptions))
      log.warn({ reason, remedy }, meaning);
    await print([`listening on ${address}`]).catch(() => {}); // jobs are more than a reader of this line
    const signal = await stopping;
    log.info({ signal }, "shutting down; jobs keep running");
    await server.close();
  } finally {
    await worker.close();
  }
  log.info("closed");
  return EXIT.ok;
}

/** Opens the log on stderr. It is written at once: the last words of a daemon that dies are those that matter. */
function openLog(level: string): Logger {
  const log: Logger = pino(
    {
      level,
      base: null,
      formatters: { level: (label) => ({ level: label }) },
      timestamp: pino.stdTimeFunctions.isoTime,
    },
    linesTo(unwaiting(2), (lines, reason) =>
      log.error({ lines, reason }, `${lines} lines of this log could not be written`),
    ),
  );
  return log;
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
