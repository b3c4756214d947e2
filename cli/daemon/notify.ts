import { constants } from "node:os";
import type { Logger } from "pino";

/** Tells the service manager about the daemon, as sd_notify(3) has it; nobody where none asked for it. */
export interface Notifier extends Disposable {
  /** Start-up, or a reload, is over. From the first time on the watchdog hears that the event loop turns, if it wants to. */
  ready(status: string): void;
  reloading(): void;
  stopping(): void;
}

/**
 * Takes what the service manager asks for out of `env`, so that it reaches no job.
 *
 * @param addon path of the native module that notify.c is built to
 */
export function openNotifier(addon: string, env: NodeJS.ProcessEnv, log: Logger): Notifier {
  const { NOTIFY_SOCKET: path = "", WATCHDOG_USEC, WATCHDOG_PID = String(process.pid) } = env;
  for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) delete env[name];
  const send = path === "" ? undefined : senderTo(path, addon, log);
  const watchdogMs = WATCHDOG_PID === String(process.pid) ? Number(WATCHDOG_USEC) / 1000 : 0;
  let alive: NodeJS.Timeout | undefined;
  return {
    ready(status) {
      send?.("READY=1", `STATUS=${status.replaceAll(/\p{Cc}/gu, " ")}`);
      // Half of what it allows, as sd_watchdog_enabled(3) advises.
      if (send && watchdogMs >= 2) alive ??= setInterval(() => send("WATCHDOG=1"), watchdogMs / 2).unref();
    },
    // CLOCK_MONOTONIC, as Type=notify-reload needs it.
    reloading: () => send?.("RELOADING=1", `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`),
    stopping: () => send?.("STOPPING=1"),
    [Symbol.dispose]: () => clearInterval(alive),
  };
}

/** Returns what sends assignments in one datagram. A failure is logged, once until the next success. */
function senderTo(path: string, addon: string, log: Logger): ((...assignments: readonly string[]) => void) | undefined {
  const fail = (reason: string): void => log.warn({ socket: path, reason }, "the service manager cannot be told");
  if (!/^[/@]./.test(path)) {
    fail("NOTIFY_SOCKET is neither an absolute path nor @ with a name");
    return undefined;
  }
  let notify: unknown;
  try {
    const loaded: { exports: unknown } = { exports: {} };
    process.dlopen(loaded, addon);
    notify = loaded.exports;
  } catch (error) {
    fail(String(error));
    return undefined;
  }
  let failed = false;
  return (...assignments) => {
    const errno: unknown = typeof notify === "function" ? notify(path, assignments.join("\n")) : undefined;
    if (errno !== 0 && !failed)
      fail(Object.entries(constants.errno).find(([, number]) => number === errno)?.[0] ?? String(errno));
    failed = errno !== 0;
  };
}
