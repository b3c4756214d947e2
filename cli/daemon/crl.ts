import type { Logger } from "pino";
import { reasonOf } from "../../src/os/errno.ts";
import { readCrls } from "../../src/server/pem.ts";
import type { FaultyLists } from "../../src/server/revocation.ts";
import type { ServeOptions } from "../../src/server/server.ts";
import { parseWord } from "../line/parse.ts";
import type { Given } from "../line/program.ts";
import type { Setting } from "./config.ts";

export const crlFlags: readonly Setting[] = [
  {
    name: "crl",
    value: "FILE",
    about: "lists (CRL) of certificates that their CAs have revoked; read anew when it changes",
  },
  {
    name: "crl-expired",
    value: "refuse|warn",
    about: "what becomes of clients whose CA's list has expired, is missing or cannot be read; refuse when not given",
  },
];

export interface CrlOptions {
  /** Nobody counts as revoked when absent. */
  readonly crlFile: string | undefined;
  readonly faultyLists: FaultyLists;
}

/** Returns what the flags say. Throws UsageError. */
export function crlOptions(given: Given): CrlOptions {
  const faulty = given.text("crl-expired") ?? "refuse";
  return {
    crlFile: given.text("crl"),
    faultyLists: parseWord(given.nameOf("crl-expired"), faulty, ["refuse", "warn"]),
  };
}

/** The lists of a file; undefined where none was asked for. */
export type Crls = ServeOptions["crls"];

/** Tells whether other lists are there: a number may be absent, and a second may have two lists. */
export function listsChanged(before: Crls, now: Crls): boolean {
  const named = (crls: Crls): string => (crls?.lists ?? []).map(({ ca, signature }) => `${ca} ${signature}`).join("\n");
  return named(before) !== named(now);
}

/** Reads the lists. Throws ServeError, led by the file's name, for a file that cannot be relied on. */
export async function crlsOf(
  { crlFile }: Pick<CrlOptions, "crlFile">,
  { ca }: Pick<ServeOptions["tls"], "ca">,
  log: Logger,
): Promise<Crls> {
  if (crlFile === undefined) return undefined;
  const crls = await readCrls(crlFile, ca);
  const { strangers } = crls;
  if (strangers.length > 0) log.warn({ crl: crlFile, strangers }, "lists of CAs that are not trusted are left out");
  return crls;
}

/**
 * Reads the lists when the daemon starts. Where clients are to be let in all the same, lists that cannot be read are none.
 * Throws ServeError.
 */
export async function firstCrls(given: CrlOptions & { readonly tls: ServeOptions["tls"] }, log: Logger): Promise<Crls> {
  try {
    return await crlsOf(given, given.tls, log);
  } catch (error) {
    if (given.faultyLists === "refuse") throw error;
    log.warn({ reason: reasonOf(error) }, "nobody counts as revoked: the lists cannot be read");
    return { lists: [], strangers: [] };
  }
}
