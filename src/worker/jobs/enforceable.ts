import type { Hierarchy } from "../cgroup/hierarchy.ts";
import type { Setting } from "../limits/setting.ts";
import { JobError } from "../model/errors.ts";
import { isNamespace, type Part } from "../model/isolation.ts";
import type { JobSpec } from "../model/job.ts";
import { OWN_USER, type WorkerOptions } from "../model/options.ts";
import type { Credentials } from "../system/users.ts";
import type { Context } from "./context.ts";

/* What this host can enforce, as people are told. */

function noCgroup(parts: readonly Part[]): string {
  const tree = parts.includes("pid") ? "" : "; a tree is ended by descent, as far as that can be followed";
  return `this host has no usable cgroup v2: no limits, and usage of the main process only${tree}`;
}

type Host = Pick<Context, "hierarchy" | "spawner">;

/** In one line. */
export function describeHost(host: Host): string {
  const { hierarchy, spawner } = host;
  const cgroups =
    hierarchy.kind === "none"
      ? `${noCgroup(spawner.parts)} (${hierarchy.reason})`
      : `cgroup v2 at ${hierarchy.path}, controllers: ${[...hierarchy.controllers].join(", ") || "none"}`;
  const parts = spawner.parts.join(", ") || "none";
  return [cgroups, `isolation: ${parts}`, ...missing(host)].join("; ");
}

function missing({ spawner }: Host): string[] {
  const namespaces = [...spawner.lacking].filter(([part]) => isNamespace(part));
  const reasons = namespaces.map(([part, errno]) => `${part} (${errno})`).join(", ");
  const filter = spawner.lacking.get("seccomp");
  return [
    ...(reasons ? [`this host gives no namespaces of these kinds, so jobs share the host's: ${reasons}`] : []),
    ...(filter ? [`this host takes no seccomp filter (${filter}), so jobs may make every system call`] : []),
  ];
}

/** What whoever starts a job here is to know. */
export function warningsOf(host: Host): string[] {
  return [...(host.hierarchy.kind === "none" ? [noCgroup(host.spawner.parts)] : []), ...missing(host)];
}

/** Throws `unsupported` with the field's name for what this host, or its daemon's configuration, does not give. */
export function checkIsolation({ network, privateTmp }: JobSpec, { spawner: { parts } }: Host): void {
  if (privateTmp && !parts.includes("mount"))
    throw new JobError("unsupported", "private_tmp: jobs have no mount namespace here", { field: "private_tmp" });
  if (network === "none" && process.getuid?.() !== 0 && !parts.includes("user"))
    throw new JobError(
      "unsupported",
      "network: the worker is not root and may make no user namespace, so jobs have the host's network here",
      { field: "network" },
    );
}

/** Throws `forbidden` for user namespaces that this worker does not let that job make. */
export function checkUserNamespaces(
  { userNamespaces }: JobSpec,
  { uid }: Pick<Credentials, "uid">,
  { allowUserNamespaces }: Pick<WorkerOptions, "allowUserNamespaces">,
): void {
  if (!userNamespaces) return;
  const field = "allow_user_namespaces";
  if (!allowUserNamespaces)
    throw new JobError(
      "forbidden",
      `${field}: this worker lets no job make user namespaces (jobsd --allow-user-namespaces)`,
      { field },
    );
  if (uid === process.geteuid?.())
    throw new JobError("forbidden", `${field}: ${OWN_USER}; name another user`, { field });
}

/** Throws `unsupported` where there is no group that device rules could be of. */
export function checkDevices(hierarchy: Hierarchy): void {
  const field = "resources.devices";
  if (hierarchy.kind === "none")
    throw new JobError("unsupported", `${field}: ${hierarchy.reason}, so this host enforces no device rules`, {
      field,
    });
}

/** Throws `unsupported` with the field's name for a limit that this host cannot enforce. */
export function checkSettings(settings: readonly Setting[], hierarchy: Hierarchy): void {
  for (const { field, controller } of settings) {
    if (hierarchy.kind === "none")
      throw new JobError(
        "unsupported",
        `${field}: ${hierarchy.reason}, so this host enforces no limits; the ${controller} controller is missing`,
        { field, facts: { controller } },
      );
    if (!hierarchy.controllers.has(controller))
      throw new JobError(
        "unsupported",
        `${field}: the ${controller} controller is missing at ${hierarchy.path}, so this host cannot enforce it`,
        { field, facts: { controller } },
      );
  }
}
