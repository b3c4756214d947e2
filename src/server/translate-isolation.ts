import { type Isolation, Network, type Rlimit, type StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { invalid, type Job, type JobSpec, type NamedRlimit } from "../worker/index.ts";
import { defined, fromCount, toCount } from "./translate-resources.ts";

/** What a start asks of isolation; throws JobError `invalid`. */
export function toIsolation(
  request: StartRequest,
): Pick<JobSpec, "network" | "privateTmp" | "userNamespaces" | "rlimits" | "umask" | "oomScoreAdj"> {
  return defined({
    network: toNetwork(request.network),
    privateTmp: request.privateTmp || undefined,
    userNamespaces: request.allowUserNamespaces || undefined,
    rlimits: request.rlimits.length > 0 ? request.rlimits.map(toRlimit) : undefined,
    umask: request.umask,
    oomScoreAdj: request.oomScoreAdj || undefined,
  });
}

function toNetwork(network: Network): "host" | "none" | undefined {
  if (network === Network.NETWORK_UNSPECIFIED) return undefined;
  if (network === Network.NETWORK_HOST) return "host";
  if (network === Network.NETWORK_NONE) return "none";
  throw invalid("network", `${network} is no network: use NETWORK_HOST or NETWORK_NONE`);
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

/** What holds of a job. */
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
    network: network === "none" ? Network.NETWORK_NONE : Network.NETWORK_HOST,
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
