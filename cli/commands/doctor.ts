import type { X509Certificate } from "node:crypto";
import type { ExamineResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { ownFault, unusableCredentials } from "../../src/client/diagnose.ts";
import type { Credentials } from "../../src/client/client.ts";
import { identify } from "../../src/x509/identity.ts";
import { endsSoon, pathOf } from "../../src/x509/chain.ts";
import { nameOf, parseTls } from "../../src/x509/pem.ts";
import { environment } from "../line/bytes.ts";
import { findConnection, readCredentials } from "../line/connection.ts";
import { withClient } from "./with-client.ts";
import {
  exitCodeOfFindings,
  formatFindings,
  formatSummary,
  printFindings,
  type Told,
  toldOf,
} from "../tell/findings.ts";
import { count } from "../tell/format.ts";
import { formatDuration } from "../tell/units.ts";
import { print } from "../tell/output.ts";
import { toDuration } from "../line/parse.ts";
import type { Given } from "../line/program.ts";

const TIMEOUT_MS = 30_000;
const DAY_MS = 24 * 3600 * 1000;
const SKEW_MS = 5_000;

/** `jobsctl doctor`: what of the client's own matters, then what the worker's host can enforce. */
export async function doctor(given: Given): Promise<number> {
  const connection = await findConnection(given, environment());
  const own = ownFindings(await readCredentials(connection));
  const json = given.text("output") === "json";
  const sentMs = Date.now();
  const answer = await withClient(given, (client) => client.examine({ timeoutMs: TIMEOUT_MS })).catch(
    async (error: unknown) => {
      // The findings about the client may be the reason.
      await (json ? printFindings(own) : print(formatFindings(own)));
      throw error;
    },
  );
  const clock = clockFinding(answer, sentMs, Date.now());
  const worker: Told = { area: "client", name: "worker", state: "enforced", meaning: connection.server };
  const findings = [worker, ...own, ...clock, ...toldOf(answer)];
  if (json) await printFindings(findings, answer.time);
  else await print([...formatFindings(findings), formatSummary(findings)]);
  return exitCodeOfFindings(findings);
}

function ownFindings(credentials: Credentials): Told[] {
  const unusable = unusableCredentials(credentials);
  if (unusable) return [refused("certificate", unusable)];
  const { own: certificate } = parseTls(credentials);
  return [certificateFinding(certificate, credentials), roleFinding(certificate)];
}

function refused(name: string, { message, remedy }: { readonly message: string; readonly remedy: string }): Told {
  return { area: "client", name, state: "missing", meaning: "a worker refuses it", reason: message, remedy };
}

function certificateFinding(certificate: X509Certificate, credentials: Credentials): Told {
  const fault = ownFault(credentials);
  if (fault) return refused("certificate", fault);
  const days = Math.floor((certificate.validToDate.getTime() - Date.now()) / DAY_MS);
  const until = `until ${certificate.validToDate.toISOString().slice(0, 10)}, ${count(days, "day")} left`;
  const issuer = certificate.issuer.replaceAll("\n", ", ");
  const meaning = `${nameOf(certificate)}, signed by ${issuer}, ${until}`;
  const row = { area: "client", name: "certificate", meaning } as const;
  const { chain, authorities } = parseTls(credentials);
  const ending = pathOf(certificate, chain, authorities).certificates.find((each) => endsSoon(each));
  if (!ending) return { ...row, state: "enforced" };
  const what = ending === certificate ? "it" : `the certificate of ${nameOf(ending)}, which it depends on,`;
  const reason = `${what} ends on ${ending.validToDate.toISOString().slice(0, 10)}`;
  return { ...row, state: "limited", reason, remedy: "sign a new one: jobsctl certs sign" };
}

/** Examines the role by the rule that the worker uses. */
function roleFinding({ raw, validToDate }: X509Certificate): Told {
  const identity = identify(raw, validToDate.getTime());
  if (!identity.ok)
    return refused("role", { message: identity.message, remedy: "sign one with --role reader, writer or admin" });
  const { role } = identity.principal;
  const meaning = role === "writer" ? "writer: may do everything" : "reader: may look, and start and stop nothing";
  return { area: "client", name: "role", state: "enforced", meaning };
}

/** The worker read its clock at some time between `sentMs` and `receivedMs` of this one. */
function clockFinding({ time }: ExamineResponse, sentMs: number, receivedMs: number): Told[] {
  if (!time) return [];
  const row = { area: "client", name: "clock" } as const;
  const [ahead, behind] = [sentMs - time.getTime(), time.getTime() - receivedMs];
  const apartMs = Math.max(ahead, behind, 0);
  if (apartMs < SKEW_MS)
    return [
      {
        ...row,
        state: "enforced",
        meaning: `as the worker's, to ${formatDuration(toDuration(Math.max(receivedMs - sentMs, apartMs)))}`,
      },
    ];
  const meaning = `${formatDuration(toDuration(apartMs))} ${ahead > 0 ? "ahead of" : "behind"} the worker's`;
  const reason = "certificates may be taken as expired, or as not valid yet";
  return [{ ...row, state: "limited", meaning, reason, remedy: "set both clocks by NTP: timedatectl set-ntp true" }];
}
