/** `node daemon.ts SUPERVISOR LAUNCH`: starts the one job of LAUNCH (JSON), prints its pid, and stays until it is gone. */
import { dirname } from "node:path";
import type { Launch } from "../../worker/frame.ts";
import { openSpawner } from "../../worker/spawner.ts";

const [binary = "", launch = ""] = process.argv.slice(2);
const { env, ...rest }: Omit<Launch, "env"> & { readonly env: Record<string, string> } = JSON.parse(launch);
const spawner = openSpawner(binary, dirname(rest.directory), (message) => process.stderr.write(`${message}\n`));
const pid = await spawner.launch(
  { ...rest, env: new Map(Object.entries(env)) },
  () => {},
  () => spawner[Symbol.dispose](),
);
process.stdout.write(`${pid}\n`);
