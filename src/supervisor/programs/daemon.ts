/** `node daemon.ts SUPERVISOR LAUNCH ISOLATION`: starts the one job of LAUNCH (JSON), prints its pid, and stays until it is gone. */
import { dirname } from "node:path";
import type { Launch } from "../../worker/frame.ts";
import type { Isolation, Part } from "../../worker/isolation.ts";
import { openSpawner } from "../../worker/spawner.ts";

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
