import type { X509Certificate } from "node:crypto";
import type { Client } from "../../src/client/index.ts";
import { ClientError } from "../../src/client/errors.ts";
import { readTraceParent, writeTraceParent } from "../../src/os/traceparent.ts";
import { environment } from "../line/bytes.ts";
import { findConnection, readCredentials } from "../line/connection.ts";
import { nameOf } from "../../src/x509/pem.ts";
import { count } from "../tell/format.ts";
import { say } from "../tell/output.ts";
import type { Given } from "../line/program.ts";

/** Says why there is no connection; `more` has the remedy and the settings that were used, a line each. */
class NoConnection extends ClientError {
  readonly more: readonly string[];

  constructor(
    code: ClientError["code"],
    message: string,
    more: readonly string[],
    options: ConstructorParameters<typeof ClientError>[2],
  ) {
    super(code, message, options);
    this.more = more;
  }
}

const DIAGNOSED_REASONS: ReadonlySet<string> = new Set(["", "BAD_CREDENTIALS"]);

/** Runs `work` with a client. A connection that fails is looked into: the error then says why, and what to do. */
export async function withClient<Result>(given: Given, work: (client: Client) => Promise<Result>): Promise<Result> {
  const env = environment();
  const connection = await findConnection(given, env);
  const { own, ...credentials } = await readCredentials(connection);
  warnOfEnd(own);
  // gRPC is nearly all of the program's start, so it is loaded here.
  const { connect } = await import("../../src/client/index.ts");
  try {
    // A trace whose place is not valid is to be begun anew (W3C Trace Context, 4.3): a command does not fail of it.
    const parent = readTraceParent(env["TRACEPARENT"]);
    using client = connect({ ...credentials, traceparent: parent && writeTraceParent(parent) });
    return await work(client);
  } catch (error) {
    const connecting =
      error instanceof ClientError && (error.code === "UNAVAILABLE" || error.code === "UNAUTHENTICATED");
    // A reason is the worker's own word, so there was a connection.
    if (!connecting || !DIAGNOSED_REASONS.has(error.reason)) throw error;
    const { diagnose } = await import("../../src/client/diagnose.ts");
    const { reason, message, remedy } = await diagnose(credentials);
    const told = reason === "answers" ? `${error.message}; ${message}` : message;
    throw new NoConnection(error.code, `no connection: ${told}`, [remedy, `with ${connection.sources}`], {
      reason,
      cause: error,
    });
  }
}

const DAY_MS = 24 * 3600 * 1000;
const SOON_DAYS = 14;

/** Tells on stderr that the caller's certificate ends soon. One that has ended is told of where it is refused. */
function warnOfEnd(certificate: X509Certificate): void {
  const days = (certificate.validToDate.getTime() - Date.now()) / DAY_MS;
  if (days < 0 || days >= SOON_DAYS) return;
  const left = days < 1 ? "within a day" : `in ${count(Math.floor(days), "day")}`;
  const at = certificate.validToDate.toISOString();
  say(`your certificate (${nameOf(certificate)}) ends ${left}, at ${at}: have it renewed (jobsctl certs renew)`);
}
