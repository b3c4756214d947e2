import { resolve } from "node:path";
import { reasonOf } from "../../src/os/errno.ts";
import { examine } from "../../src/worker/index.ts";
import { problemsOf, readTls } from "../../src/server/pem.ts";
import { readTlsFiles } from "../line/connection.ts";
import { exitCodeOfFindings, formatFindings, formatSummary, printFindings, type Told } from "../tell/findings.ts";
import { sharedFindings } from "./kept.ts";
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

/** Examines the worker's certificate, when the flags name all of its files. */
async function certificateFindings(given: Given): Promise<Told[]> {
  const [ca, cert, key] = [given.text("ca"), given.text("cert"), given.text("key")];
  if (!ca || !cert || !key) return [];
  const row = { area: "certificate", name: "worker's" } as const;
  try {
    const warnings: Told[] = [];
    for (const { message: reason } of problemsOf(readTls(await readTlsFiles({ ca, cert, key })))) {
      warnings.push({ ...row, state: "limited", meaning: "clients may refuse it", reason });
    }
    return warnings.length > 0 ? warnings : [{ ...row, state: "enforced", meaning: cert }];
  } catch (error) {
    const reason = reasonOf(error);
    const remedy = "jobsctl certs init makes one; so do jobsctl certs request and sign";
    return [{ ...row, state: "missing", meaning: "no daemon starts", reason, remedy }];
  }
}
