import { isAbsolute } from "node:path";
import type { Logger } from "pino";
import manifest from "../package.json" with { type: "json" };
import { ClientError } from "../src/client/errors.ts";
import { commandLine, environment } from "./bytes.ts";
import { isIgnored, keepIgnored } from "./caller.ts";
import { unwaiting } from "./descriptors.ts";
import { EXIT } from "./exit.ts";
import { sharedFindings } from "./kept.ts";
import { linesTo } from "./lines.ts";
import { exit, print, replaceNodes, sayError } from "./output.ts";
import { UsageError } from "./parse.ts";
import { type Given, parse, type Program } from "./program.ts";
import { flags, hostOptions, settings, withEnvironment } from "./settings.ts";

const program: Program = {
  name: "jobsd",
  version: manifest.version,
  flags: [],
  commands: [
    {
      name: "",
      about: [
        "Runs jobs on this machine for clients with certificates. Each flag can be set as JOBSD_FLAG, as in JOBSD_LOG_LIMIT.",
        "SIGTERM ends the daemon; jobs go on, and the next one on the same state directory has them again.",
        "SIGHUP has it open its audit log anew, which may have been moved away; it ends nothing.",
        "--check exits with 0 when nothing is missing, 1 when jobs lack something, 125 when no daemon could start.",
      ],
      flags,
      examples: ["--listen 0.0.0.0:7443 --state /var/lib/jobs --ca ca.crt --cert worker.crt --key worker.key"],
      run: async (given) =>
        given.on("check")
          ? (await import("./check.ts")).check(given, hostOptions(given))
          : given.on("recover")
            ? (await import("./recover.ts")).recover(given)
            : daemon(given),
    },
  ],
};

replaceNodes();
// S3's client would look for its configuration, which may name a program to run, in the current directory.
if (!isAbsolute(process.env["HOME"] ?? "/")) delete process.env["HOME"];
keepIgnored();
void main().then(exit);

/** Resolves to the exit code; a start that fails says why in one line on stderr. */
async function main(): Promise<number> {
  try {
    const parsed = parse(program, commandLine());
    return parsed ? await parsed.command.run(withEnvironment(parsed.given, environment())) : EXIT.ok;
  } catch (error) {
    sayError(error, "jobsd");
    return error instanceof UsageError || error instanceof ClientError ? EXIT.unavailable : EXIT.failed;
  }
}

/** Serves until a signal comes. Throws what keeps it from starting. */
async function daemon(given: Given): Promise<number> {
  const stopping = signalled("SIGTERM", "SIGINT");
  /** What a SIGHUP does; one that comes before there is anything to do ends nothing. */
  const onHangup = new Set<() => void>();
  process.on("SIGHUP", () => onHangup.forEach((each) => each()));
  const { listen, worker: workerOptions, level, secrets, ...served } = await settings(given);
  const [{ pino }, { parseTarget, formatTarget }, { openWorker }, { serve }] = await Promise.all([
    import("pino"),
    import("../src/client/target.ts"),
    import("../src/worker/index.ts"),
    import("../src/server/server.ts"),
  ]);
  const { host, port: wanted } = parseTarget(listen, "--listen");
  // Written at once: the last words of a daemon that dies are those that matter.
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
  const worker = await openWorker({ ...workerOptions, log: (at, message, facts) => log[at](facts ?? {}, message) });
  try {
    const server = await serve({ ...served, worker, host, port: wanted, log });
    onHangup.add(() => {
      log.info("SIGHUP: files are opened anew");
      server.reopen();
    });
    logCrashes(log);
    const address = formatTarget({ host, port: server.port });
    log.info({ address, host: worker.host, version: manifest.version }, "listening");
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

/** The first of these signals that the caller does not have ignored; a second one ends the process at once, as it would without this. */
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
