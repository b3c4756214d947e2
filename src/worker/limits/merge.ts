import type { LinuxBlockIO, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice } from "../model/resources.ts";
import { isKeyed, lineKey } from "./change.ts";
import { THROTTLES } from "./io.ts";
import type { Host } from "./setting.ts";

/** Fields that are converted together, because what is written for one depends on the others. */
const TOGETHER = {
  memory: [["limit", "swap"]],
  cpu: [
    ["quota", "period", "burst"],
    ["shares", "idle"],
  ],
} as const;

/** The limits of a job after an update. What the update does not name stays; lists and maps are merged entry by entry. */
export function merged(old: LinuxResources, update: LinuxResources, host: Host): LinuxResources {
  return withoutEmpty({
    ...old,
    // The order of device rules decides, so an update replaces all of them.
    ...(update.devices?.length && { devices: update.devices }),
    memory: { ...old.memory, ...update.memory },
    cpu: { ...old.cpu, ...update.cpu },
    pids: { ...old.pids, ...update.pids },
    blockIO: mergedBlockIO(old.blockIO ?? {}, update.blockIO ?? {}, host),
    hugepageLimits: replaced(old.hugepageLimits, update.hugepageLimits, ({ pageSize }) => pageSize),
    rdma: mergedEach(old.rdma, update.rdma, (before, now) => ({ ...before, ...now })),
    unified: mergedEach(old.unified, update.unified, (before, now, file) =>
      isKeyed(file) ? replaced(lines(before), lines(now), (line) => lineKey(file, line)).join("\n") : now,
    ),
  });
}

/** The part of `all`, the merged resources, that an update writes: what the update names, and what is converted with that. */
export function affected(all: LinuxResources, update: LinuxResources): LinuxResources {
  return {
    ...update,
    ...(update.memory && { memory: { ...update.memory, ...together(all.memory, update.memory, TOGETHER.memory) } }),
    ...(update.cpu && { cpu: { ...update.cpu, ...together(all.cpu, update.cpu, TOGETHER.cpu) } }),
  };
}

function together<Group extends object>(
  all: Group | undefined,
  update: Group,
  sets: readonly (readonly (keyof Group)[])[],
): Partial<Group>;
function together(all: object | undefined, update: object, sets: readonly (readonly PropertyKey[])[]): object {
  const names = new Set<PropertyKey>(sets.filter((set) => set.some((name) => name in update)).flat());
  return Object.fromEntries(Object.entries(all ?? {}).filter(([name]) => names.has(name)));
}

function mergedBlockIO(old: LinuxBlockIO, update: LinuxBlockIO, host: Host): LinuxBlockIO {
  const key = ({ major, minor, path }: LinuxThrottleDevice | LinuxWeightDevice): string =>
    path === undefined ? `${major}:${minor}` : (host.disk(path) ?? path);
  const throttles = THROTTLES.map(([name]) => [name, replaced(old[name], update[name], key)]);
  const weightDevice = replaced(old.weightDevice, update.weightDevice, key);
  return { ...old, ...update, ...withoutEmpty({ ...Object.fromEntries(throttles), weightDevice }) };
}

function mergedEach<Value>(
  old: Readonly<Record<string, Value>> = {},
  update: Readonly<Record<string, Value>> = {},
  merge: (before: Value, now: Value, key: string) => Value,
): Record<string, Value> {
  const entries = Object.entries(update).map(([key, now]): [string, Value] => {
    const before = Object.hasOwn(old, key) ? old[key] : undefined;
    return [key, before === undefined ? now : merge(before, now, key)];
  });
  return { ...old, ...Object.fromEntries(entries) };
}

/** The old entries, of which those with the key of a new one are replaced. */
function replaced<Entry>(
  old: readonly Entry[] = [],
  update: readonly Entry[] = [],
  key: (entry: Entry) => string,
): readonly Entry[] {
  const keys = new Set(update.map(key));
  return [...old.filter((entry) => !keys.has(key(entry))), ...update];
}

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line !== "");
}

function withoutEmpty<Of extends object>(of: Of): Of;
function withoutEmpty(of: object): object {
  return Object.fromEntries(Object.entries(of).filter(([, value]) => Object.keys(value ?? {}).length > 0));
}
