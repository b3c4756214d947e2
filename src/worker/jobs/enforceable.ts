import type { Hierarchy } from "../cgroup/hierarchy.ts";
import type { Setting } from "../limits/setting.ts";
import { forbidden, unsupported } from "../model/errors.ts";
import { isNamespace, type Part } from "../model/isolation.ts";
import type { JobSpec } from "../model/job.ts";
import { OWN_USER, type WorkerOptions } from "../model/options.ts";
import type { Credentials } from "../system/users.ts";
import type { Spawner } from "../supervisor/spawner.ts";
import type { Context } from "./context.ts";

/* What this host can enforce, in words, and what is refused because it cannot. */

function noCgroup(parts: readonly Part[]): string {
  const tree = parts.includes("pid") ? "" : "; a tree is ended by descent, as far as that can be followed";
  return `this host has no usable cgroup v2: no limits, and usage of the main process only${tree}`;
}

/** Describes in one line what this host can enforce. */
export function describeHost({ hierarchy, spawner }: Context): string {
  const cgroups =
    hierarchy.kind === "none"
      ? `${noCgroup(spawner.parts)} (${hierarchy.reason})`
      : `cgroup v2 at ${hierarchy.path}, controllers: ${[...hierarchy.controllers].join(", ") || "none"}`;
  const parts = spawner.parts.join(", ") || "none";
  return [cgroups, `isolation: ${parts}`, ...missing(spawner)].join("; ");
}

function missing(spawner: Spawner): string[] {
  const namespaces = [...spawner.lacking].filter(([part]) => isNamespace(part));
  const reasons = namespaces.map(([part, errno]) => `${part} (${errno})`).join(", ");
  const filter = spawner.lacking.get("seccomp");
  return [
    ...(reasons ? [`this host gives no namespaces of these kinds, so jobs share the host's: ${reasons}`] : []),
    ...(filter ? [`this host has no seccomp filters (${filter}), so jobs may make every system call`] : []),
  ];
}

/** The warnings that every job on this host has. */
export function warningsOf({ hierarchy, spawner }: Context): string[] {
  return [...(hierarchy.kind === "none" ? [noCgroup(spawner.parts)] : []), ...missing(spawner)];
}

/** Throws `unsupported`, naming the field, for isolation that this host or the worker's options do not give. */
export function checkIsolation({ network, privateTmp }: JobSpec, { spawner: { parts } }: Context): void {
  if (privateTmp && !parts.includes("mount")) throw unsupported("private_tmp", "jobs have no mount namespace here");
  if (network === "none" && process.getuid?.() !== 0 && !parts.includes("user"))
    throw unsupported(
      "network",
      "the worker is not root and may make no user namespace, so jobs have the host's network here",
    );
}

/** Throws `forbidden` when a job asks for user namespaces and may not make any. */
export function checkUserNamespaces(
  { userNamespaces }: JobSpec,
  { uid }: Pick<Credentials, "uid">,
  { allowUserNamespaces }: Pick<WorkerOptions, "allowUserNamespaces">,
): void {
  if (!userNamespaces) return;
  const field = "allow_user_namespaces";
  if (!allowUserNamespaces)
    throw forbidden(field, "this worker lets no job make user namespaces (jobsd --allow-user-namespaces)");
  if (uid === process.geteuid?.()) throw forbidden(field, `${OWN_USER}; name another user`);
}

/** Throws `unsupported` when a host without cgroup v2 is asked for device rules. */
export function checkDevices(hierarchy: Hierarchy): void {
  if (hierarchy.kind === "none")
    throw unsupported("resources.devices", `${hierarchy.reason}, so this host enforces no device rules`);
}

/** Throws `unsupported`, naming the field, for a limit that this host cannot enforce. */
export function checkSettings(settings: readonly Setting[], hierarchy: Hierarchy): void {
  for (const { field, controller } of settings) {
    if (hierarchy.kind === "none")
      throw unsupported(
        field,
        `${hierarchy.reason}, so this host enforces no limits; the ${controller} controller is missing`,
        { controller },
      );
    if (!hierarchy.controllers.has(controller))
      throw unsupported(
        field,
        `the ${controller} controller is missing at ${hierarchy.path}, so this host cannot enforce it`,
        { controller },
      );
  }
}
