import type { Jobs, Worker } from "../worker/index.ts";
import type { Principal } from "../x509/identity.ts";

/** Whose jobs a client sees and changes, by its role: everybody's, or where they are private those of its own subject. */
export type Owners = "shared" | "private";

/** The jobs that a client may see, and by its role change. */
export type JobsOf = (client: Pick<Principal, "role" | "subject">) => Jobs;

export function jobsOf(worker: Worker, owners: Owners): JobsOf {
  return ({ role, subject }) => (owners === "shared" || role === "admin" ? worker : worker.of(subject));
}
