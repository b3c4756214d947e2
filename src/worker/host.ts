import type { Hierarchy } from "./cgroup.ts";
import { JobError } from "./errors.ts";
import type { Setting } from "./limits/setting.ts";

/* What this host can enforce, as people are told. */

const NO_CGROUP =
  "this host has no usable cgroup v2: no limits, usage of the main process only, and a tree is ended by descent";

/** In one line. */
export function describeHost(hierarchy: Hierarchy): string {
  return hierarchy.kind === "none"
    ? `${NO_CGROUP} (${hierarchy.reason})`
    : `cgroup v2 at ${hierarchy.path}, controllers: ${[...hierarchy.controllers].join(", ") || "none"}`;
}

/** What whoever starts a job here is to know. */
export function warningsOf(hierarchy: Hierarchy): string[] {
  return hierarchy.kind === "none" ? [NO_CGROUP] : [];
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
