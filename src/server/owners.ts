import type { Finding, Jobs, Worker } from "../worker/index.ts";
import type { Principal } from "../x509/identity.ts";

/** Whose jobs a client sees and changes, by its role: everybody's, or where they are private those of its own subject. */
export type Owners = "shared" | "private";

/** What a client may see, and by its role change. */
export type JobsOf = (client: Pick<Principal, "role" | "subject">) => Jobs;

/** Gives each client its jobs; an examination of the host tells whose these are. */
export function jobsOf(worker: Worker, owners: Owners): JobsOf {
  const told = (jobs: Jobs): Jobs => ({
    ...jobs,
    examine: async () => [...(await jobs.examine()), ownersFinding(owners)],
  });
  const all = told(worker);
  return ({ role, subject }) => (owners === "shared" || role === "admin" ? all : told(worker.of(subject)));
}

/** Tells whose jobs clients see. */
export function ownersFinding(owners: Owners): Finding {
  const row = { area: "owner", name: "jobs", state: "enforced" } as const;
  return owners === "shared"
    ? { ...row, meaning: "readers see the jobs of all owners, and writers change them" }
    : { ...row, meaning: "clients see and change the jobs of their own subject; an admin those of all" };
}
