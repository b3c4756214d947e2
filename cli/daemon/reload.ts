import type { Logger } from "pino";
import { reasonOf } from "../../src/os/errno.ts";
import type { Served } from "../../src/server/server.ts";
import type { Worker } from "../../src/worker/index.ts";
import { readTlsFiles } from "../line/connection.ts";
import { UsageError } from "../line/parse.ts";
import type { Given } from "../line/program.ts";
import { type Crls, crlsOf, listsChanged } from "./crl.ts";
import { flags, settings, type Settings } from "./settings.ts";

interface Running {
  /** The settings that the daemon was started with. */
  readonly given: Given;
  /** Reads what is given anew: the configuration file may have changed. */
  readonly read: () => Promise<Given>;
  readonly root: string;
  readonly started: Pick<Settings, "tls" | "tlsFiles" | "crlFile">;
  /** The lists that the server began with. */
  readonly crls: Crls;
  readonly server: Served;
  readonly worker: Worker;
  readonly log: Logger;
}

/** Takes changes while the daemon runs. Where anything is wrong nothing is taken, and the log has the reason. */
export interface Reload {
  /**
   * Takes the certificates' files and what of the configuration needs no restart, and opens the audit log anew. Resolves to
   * whether it was taken.
   */
  all(): Promise<boolean>;
  /** Takes the certificates' files where they have changed, likewise. */
  certificates(): Promise<boolean>;
}

export function openReload({ given: first, read, root, started, crls: atFirst, server, worker, log }: Running): Reload {
  let given = first;
  let { tls } = started;
  let crls = atFirst;

  async function all(): Promise<void> {
    const next = await read();
    // Settings that need a restart are checked as well, so that the restart does not fail.
    await settings(next, root);
    const mixed = mixedOf(given, next);
    const wanted = await settings(mixed, root);
    const lists = await crlsOf(wanted, wanted.tls, log);
    const takeWorker = worker.renew(wanted.worker);
    const takeServer = server.renew({ tls: wanted.tls, crls: lists, limits: wanted });
    takeWorker();
    takeServer();
    log.level = wanted.level;
    const files = [...changedFiles(tls, wanted), ...changedList(wanted, crls, lists)];
    const [taken, later] = [changes(given, mixed), changes(mixed, next)];
    given = mixed;
    tls = wanted.tls;
    crls = lists;
    log.info({ ...(files.length > 0 && { files }), ...taken }, "configuration taken");
    if (Object.keys(later).length > 0) log.warn(later, "a part of the configuration needs a restart");
  }

  async function certificates(): Promise<void> {
    const { tlsFiles } = started;
    const next = await readTlsFiles(tlsFiles);
    const lists = await crlsOf(started, next, log);
    const files = [...changedFiles(tls, { tls: next, tlsFiles }), ...changedList(started, crls, lists)];
    if (files.length === 0) return;
    server.renew({ tls: next, crls: lists })();
    tls = next;
    crls = lists;
    log.info({ files }, "certificates taken");
  }

  const whole = (what: string, work: () => Promise<void>) => async (): Promise<boolean> => {
    try {
      await work();
      return true;
    } catch (error) {
      const more = error instanceof UsageError && error.more.length > 0 ? { more: error.more } : {};
      log.error({ reason: reasonOf(error), ...more }, `${what} not taken: all stays as it was`);
      return false;
    }
  };
  return { all: whole("configuration", all), certificates: whole("certificates", certificates) };
}

/** Returns what is given now where it needs no restart, and otherwise what was given before. */
function mixedOf(before: Given, now: Given): Given {
  const of = (name: string): Given => (flags.some((flag) => flag.name === name && flag.reloads) ? now : before);
  return {
    ...now,
    text: (name) => of(name).text(name),
    list: (name) => of(name).list(name),
    on: (name) => of(name).on(name),
    nameOf: (name) => of(name).nameOf(name),
  };
}

/** Returns which flags differ, each as `OLD → NEW`. */
function changes(before: Given, now: Given): Record<string, string> {
  const shown = (given: Given, name: string): string => given.list(name).join(",") || "not given";
  return Object.fromEntries(
    flags
      .map(({ name }) => [name, shown(before, name), shown(now, name)] as const)
      .filter(([, was, is]) => was !== is)
      .map(([name, was, is]) => [name, `${was} → ${is}`]),
  );
}

/** Returns the names of the files of TLS whose content has changed. */
function changedFiles(before: Settings["tls"], { tls, tlsFiles }: Pick<Settings, "tls" | "tlsFiles">): string[] {
  return (["ca", "cert", "key"] as const).filter((part) => tls[part] !== before[part]).map((part) => tlsFiles[part]);
}

/** Returns the name of the file of lists where these have changed. */
function changedList({ crlFile }: Pick<Settings, "crlFile">, before: Crls, now: Crls): string[] {
  return crlFile !== undefined && listsChanged(before, now) ? [crlFile] : [];
}

/** Work that is asked for at any time. */
export interface Repeated {
  /** Has the work done, once more after it where it is under way, and never twice at once. */
  readonly ask: () => void;
  /** Resolves when the work is over, and has no more of it done. */
  end(): Promise<void>;
}

export function oneByOne(work: () => Promise<unknown>): Repeated {
  let asked = false;
  let ended = false;
  let running: Promise<void> | undefined;
  async function run(): Promise<void> {
    while (asked && !ended) {
      asked = false;
      await work();
    }
    running = undefined;
  }
  return {
    ask() {
      asked = true;
      if (!ended) running ??= run();
    },
    async end() {
      ended = true;
      await running;
    },
  };
}
