import { resolve } from "node:path";
import { reasonOf } from "../../src/os/errno.ts";
import { examine } from "../../src/worker/index.ts";
import { findingsOf } from "../../src/server/expiry.ts";
import { readCrls, readTls, ServeError } from "../../src/server/pem.ts";
import { ownersFinding } from "../../src/server/owners.ts";
import { readTlsFiles } from "../line/connection.ts";
import { exitCodeOfFindings, formatFindings, formatSummary, printFindings, type Told } from "../tell/findings.ts";
import { crlOptions } from "./crl.ts";
import { sharedFindings } from "./kept.ts";
import { ownersOf } from "./owners.ts";
import { print } from "../tell/output.ts";
import type { Given } from "../line/program.ts";
import { hostOptions, settingsWithoutTls } from "./settings.ts";

/**
 * `jobsd --check`: what a daemon with these settings could enforce here. Resolves to the exit code of the findings. Throws
 * UsageError for settings that are wrong.
 */
export async function check(given: Given, root: string): Promise<number> {
  settingsWithoutTls(given, root);
  const options = hostOptions(given, root);
  const path = given.text("state");
  const state = path ? { stateDir: resolve(path) } : {};
  const found = await examine({ ...options, ...state });
  const secrets = ["key", "audit"].flatMap((flag) => given.text(flag) ?? []);
  const findings = [
    ...found,
    ...configFindings(given),
    ownersFinding(ownersOf(given)),
    ...(await certificateFindings(given)),
    ...sharedFindings(secrets, { ...options, ...state }),
  ];
  if (given.on("json")) await printFindings(findings, new Date());
  else await print([...formatFindings(findings), formatSummary(findings)]);
  return exitCodeOfFindings(findings);
}

/** Tells which configuration file was read; one that is wrong is not read. */
function configFindings(given: Given): Told[] {
  const file = given.text("config");
  return file === undefined ? [] : [{ area: "configuration", name: "file", state: "enforced", meaning: file }];
}

/** Examines the worker's certificate and the lists of revoked ones, when the flags name all of its files. */
async function certificateFindings(given: Given): Promise<readonly Told[]> {
  const [ca, cert, key] = [given.text("ca"), given.text("cert"), given.text("key")];
  if (!ca || !cert || !key) return [];
  const row = { area: "certificate", state: "missing", meaning: "no daemon starts" } as const;
  try {
    const tls = await readTlsFiles({ ca, cert, key });
    return [...findingsOf({ files: readTls(tls), ...(await listsOf(given, tls.ca)) })];
  } catch (error) {
    const reason = reasonOf(error);
    if (error instanceof ServeError && error.code === "bad-crl")
      return [{ ...row, name: "revoked", reason, remedy: "sign a new list: jobsctl certs crl" }];
    const remedy = "jobsctl certs init makes one; so do jobsctl certs request and sign";
    return [{ ...row, name: "worker's", reason, remedy }];
  }
}

/** Reads the lists that a daemon would. Throws ServeError where it would not start without them. */
async function listsOf(given: Given, ca: string) {
  const { crlFile, faultyLists } = crlOptions(given);
  if (crlFile === undefined) return {};
  return readCrls(crlFile, ca).catch((error: unknown) => {
    if (faultyLists === "refuse") throw error;
    return { lists: [] };
  });
}
