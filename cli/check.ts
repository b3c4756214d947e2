import { examine, type ExamineOptions } from "../src/worker/doctor/examine.ts";
import { checkPem } from "../src/server/pem.ts";
import { readKey, readPem } from "./connection.ts";
import { exitCodeOfFindings, findingsToJson, formatFindings, formatSummary, type Told } from "./findings.ts";
import { print, printJson } from "./output.ts";
import type { Given } from "./program.ts";

/** `jobsd --check`: what a daemon with these flags could enforce here. Resolves to the exit code of the findings. */
export async function check(given: Given, options: ExamineOptions): Promise<number> {
  const stateDir = given.text("state");
  const found = await examine({ ...options, ...(stateDir && { stateDir }) });
  const findings = [...found, ...(await certificateFindings(given))];
  if (given.on("json")) await printJson(findingsToJson(findings, new Date()));
  else await print(formatFindings(findings) + formatSummary(findings));
  return exitCodeOfFindings(findings);
}

/** Of the worker's certificate, when the flags name all of its files. */
async function certificateFindings(given: Given): Promise<Told[]> {
  const [ca, cert, key] = [given.text("ca"), given.text("cert"), given.text("key")];
  if (!ca || !cert || !key) return [];
  const area = "certificate";
  const warnings: Told[] = [];
  const warn = (reason: string): void =>
    void warnings.push({ area, name: "worker's", state: "limited", meaning: "clients may refuse it", reason });
  try {
    checkPem({ ca: await readPem(ca), cert: await readPem(cert), key: await readKey(key) }, warn);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const remedy = "jobs certs init makes one; so do jobs certs request and sign";
    return [{ area, name: "worker's", state: "missing", meaning: "no daemon starts", reason, remedy }];
  }
  return warnings.length > 0 ? warnings : [{ area, name: "worker's", state: "enforced", meaning: cert }];
}
