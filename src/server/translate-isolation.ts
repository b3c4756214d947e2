import { type Isolation, Network, type Rlimit, type StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import type { Job, JobSpec, NamedRlimit } from "../worker/index.ts";
import { defined, fromCount, namesIn, toCount } from "./translate-values.ts";

const NETWORKS = namesIn<"NETWORK", "host" | "none", Network>("NETWORK", Network);

/** Translates what a start asks of isolation. Throws JobError `invalid`. */
export function toIsolation(
  request: StartRequest,
): Pick<JobSpec, "network" | "privateTmp" | "userNamespaces" | "rlimits" | "umask" | "oomScoreAdj"> {
  return defined({
    network: request.network ? NETWORKS.nameOf("network", request.network) : undefined,
    privateTmp: request.privateTmp || undefined,
    userNamespaces: request.allowUserNamespaces || undefined,
    rlimits: request.rlimits.length > 0 ? request.rlimits.map(toRlimit) : undefined,
    umask: request.umask,
    oomScoreAdj: request.oomScoreAdj || undefined,
  });
}

function toRlimit({ name, soft, hard }: Rlimit): NamedRlimit {
  return {
    name,
    ...defined({
      soft: soft === undefined ? undefined : toCount("rlimits", soft),
      hard: hard === undefined ? undefined : toCount("rlimits", hard),
    }),
  };
}

/** Translates a job's isolation. */
export function fromIsolation({
  isolation,
  network,
  privateTmp,
  userNamespaces,
  rlimits,
  umask,
  oomScoreAdj,
}: Job): Isolation {
  return {
    parts: [...(isolation ?? [])],
    network: NETWORKS.of(network ?? "host"),
    privateTmp: privateTmp ?? false,
    rlimits: (rlimits ?? []).map(({ name, soft, hard }) => ({
      name,
      soft: fromCount(soft),
      hard: fromCount(hard),
    })),
    umask: umask ?? 0,
    oomScoreAdj: oomScoreAdj ?? 0,
    userNamespaces: userNamespaces ?? false,
  };
}
