import { readFile, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import type { Credentials } from "../src/client/target.ts";
import type { Client } from "../src/client/index.ts";
import { ClientError } from "../src/client/errors.ts";
import { environment } from "./bytes.ts";
import { UsageError } from "./parse.ts";
import type { Given } from "./program.ts";

const PARTS = ["server", "ca", "cert", "key"] as const;
type Part = (typeof PARTS)[number];
type Parts = Readonly<Partial<Record<Part, string>>>;

/** Where to connect, as file names, and where each part was found. */
export interface Connection extends Readonly<Record<Part, string>> {
  readonly sources: string;
}

/** A person's files or settings are not as they must be. */
export class SettingError extends Error {
  override readonly name = "SettingError";
}

/**
 * Flags over environment over the context of config.json, for each part by itself. Throws UsageError when a part is
 * missing, SettingError when config.json is wrong.
 */
export async function findConnection(given: Pick<Given, "text">, env: NodeJS.ProcessEnv): Promise<Connection> {
  const layers = [
    { source: "flags", parts: parts((part) => given.text(part)) },
    { source: "environment", parts: parts((part) => env[`JOBS_${part.toUpperCase()}`]) },
  ];
  const complete = PARTS.every((part) => layers.some((layer) => layer.parts[part]));
  const wanted = given.text("context") ?? (env["JOBS_CONTEXT"] || undefined);
  if (!complete || wanted) layers.push(await readContext(wanted, env));
  const found = PARTS.flatMap((part) => {
    const layer = layers.find(({ parts: has }) => has[part]);
    return layer ? [{ part, source: layer.source, value: layer.parts[part] ?? "" }] : [];
  });
  const missing = PARTS.filter((part) => !found.some((one) => one.part === part));
  if (missing.length > 0) {
    const flags = missing.map((part) => `--${part}`).join(" ");
    const variables = missing.map((part) => `JOBS_${part.toUpperCase()}`).join(" ");
    throw new UsageError(
      `no ${missing.join(", ")}: give ${flags}, or set ${variables}, or name a context in ${configFile(env)}`,
    );
  }
  const values: Record<Part, string> = { server: "", ca: "", cert: "", key: "" };
  for (const { part, value } of found) values[part] = value;
  return { ...values, sources: describeSources(found) };
}

function describeSources(found: readonly { part: Part; source: string; value: string }[]): string {
  const [first] = found;
  const one = found.every(({ source }) => source === first?.source);
  const list = found.map(({ part, source, value }) => `${part} ${value}${one ? "" : ` (${source})`}`).join(", ");
  return one ? `${list} (${first?.source})` : list;
}

/** Reads the files. Throws SettingError naming the one that is missing, or the key that others may read. */
export async function readCredentials({ server, ca, cert, key }: Connection): Promise<Credentials> {
  return { server, ca: await readPem(ca), cert: await readPem(cert), key: await readKey(key) };
}

/** Throws SettingError when the file is missing. */
export async function readPem(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new SettingError(`${path}: ${why(error)}`, { cause: error });
  }
}

/** As readPem; throws SettingError, too, when others may read the key. */
export async function readKey(path: string): Promise<Buffer> {
  const found = await stat(path).catch(() => undefined);
  if (found && (found.mode & 0o077) !== 0) {
    const mode = (found.mode & 0o7777).toString(8).padStart(4, "0");
    throw new SettingError(`${path}: others can read this private key (mode ${mode}): chmod 600 ${path}`);
  }
  return readPem(path);
}

const DIAGNOSED_REASONS: ReadonlySet<string> = new Set(["", "BAD_CREDENTIALS"]);

/** Runs `work` with a client. A connection that fails is looked into: the error then says why, and what to do. */
export async function withClient<Result>(given: Given, work: (client: Client) => Promise<Result>): Promise<Result> {
  const connection = await findConnection(given, environment());
  const credentials = await readCredentials(connection);
  // Loaded here and not above: it is nearly all of the program's start.
  const { connect } = await import("../src/client/index.ts");
  try {
    using client = connect(credentials);
    return await work(client);
  } catch (error) {
    const connecting =
      error instanceof ClientError && (error.code === "UNAVAILABLE" || error.code === "UNAUTHENTICATED");
    // A reason is the worker's own word, so there was a connection.
    if (!connecting || !DIAGNOSED_REASONS.has(error.reason)) throw error;
    const { diagnose } = await import("../src/client/diagnose.ts");
    const { reason, message, remedy } = await diagnose(credentials);
    const told = reason === "answers" ? `${error.message}; ${message}` : message;
    const text = `no connection: ${told}\n  ${remedy}\n  with ${connection.sources}`;
    throw new ClientError(error.code, text, { reason, cause: error });
  }
}

async function readContext(
  wanted: string | undefined,
  env: NodeJS.ProcessEnv,
): Promise<{ source: string; parts: Parts }> {
  const file = configFile(env);
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    if (wanted === undefined) return undefined;
    throw new SettingError(`context ${wanted}: ${file}: ${why(error)}`, { cause: error });
  });
  if (text === undefined) return { source: file, parts: {} };
  const config = parseJson(text, file);
  const contexts = isRecord(config) && isRecord(config["contexts"]) ? config["contexts"] : {};
  const current = isRecord(config) && typeof config["current"] === "string" ? config["current"] : undefined;
  const name = wanted ?? current;
  if (name === undefined) return { source: file, parts: {} };
  const context = Object.hasOwn(contexts, name) ? contexts[name] : undefined;
  if (!isRecord(context)) {
    const known = Object.keys(contexts).join(", ") || "none";
    throw new SettingError(`${file}: no context ${JSON.stringify(name)}; it has ${known}`);
  }
  const read = parts((part) => {
    const value = context[part];
    if (value === undefined || typeof value === "string") return value;
    throw new SettingError(`${file}: contexts.${name}.${part} must be a string`);
  });
  // A file's name counts from where it is written.
  const files = parts((part) => (part === "server" || !read[part] ? read[part] : resolve(dirname(file), read[part])));
  return { source: `context ${name}`, parts: files };
}

function configFile(env: NodeJS.ProcessEnv): string {
  return join(env["XDG_CONFIG_HOME"] || join(homedir(), ".config"), "jobs", "config.json");
}

function parts(value: (part: Part) => string | undefined): Parts {
  const found: Partial<Record<Part, string>> = {};
  for (const part of PARTS) {
    const given = value(part);
    if (given) found[part] = given;
  }
  return found;
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingError(`${file}: ${why(error)}`, { cause: error });
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null;
}

/** "no such file or directory" of "ENOENT: no such file or directory, open 'x'". */
function why(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.replace(/^E[A-Z]+: |, \w+( '.*')?$/gs, "");
}
