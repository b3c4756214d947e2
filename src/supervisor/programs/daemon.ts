import { dirname } from "node:path";
import type { Part } from "../../worker/model/isolation.ts";
import type { Launch } from "../../worker/supervisor/frame.ts";
import type { Isolation } from "../../worker/supervisor/isolation.ts";
import { openSpawner } from "../../worker/supervisor/spawner.ts";

/** `node daemon.ts SUPERVISOR LAUNCH ISOLATION`: starts the one job of LAUNCH (JSON), prints its pid, and stays until it is gone. */

const [binary = "", launch = "", isolation = ""] = process.argv.slice(2);
const { env, ...rest }: Omit<Launch, "env"> & { readonly env: Record<string, string> } = JSON.parse(launch);
const { wanted, ...others }: Omit<Isolation, "wanted"> & { readonly wanted: readonly Part[] } = JSON.parse(isolation);
const spawner = openSpawner(binary, dirname(rest.directory), { ...others, wanted: new Set(wanted) }, (message) =>
  process.stderr.write(`${message}\n`),
);
const pid = await spawner.launch(
  { ...rest, env: new Map(Object.entries(env)) },
  () => {},
  () => spawner[Symbol.dispose](),
);
process.stdout.write(`${pid}\n`);
