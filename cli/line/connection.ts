import type { X509Certificate } from "node:crypto";
import { userInfo } from "node:os";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { meaningOf, reasonOf } from "../../src/os/errno.ts";
import type { Credentials } from "../../src/client/client.ts";
import { readPrivate, readSmall } from "../../src/x509/file.ts";
import { parseTls, PemError, type TlsFiles, type TlsPem } from "../../src/x509/pem.ts";
import { UsageError } from "./parse.ts";
import type { Given } from "./program.ts";

const PARTS = ["server", "ca", "cert", "key"] as const;
type Part = (typeof PARTS)[number];
type Parts = Readonly<Partial<Record<Part, string>>>;

/** A server to connect to, the files to connect with, and where these were found. */
export interface Connection extends Readonly<Record<Part, string>> {
  readonly sources: string;
}

/** A person's files or settings are not as they must be. */
export class SettingError extends Error {
  override readonly name = "SettingError";
}

/** One place that gives a connection. */
interface Place {
  readonly source: string;
  readonly parts: Parts;
}

/**
 * Returns the connection of one place: the command line, or else the environment, or else the current context of
 * config.json. Throws UsageError when that place lacks a part, or when two places are mixed; SettingError when config.json
 * is wrong.
 */
export async function findConnection(given: Pick<Given, "text">, env: NodeJS.ProcessEnv): Promise<Connection> {
  const place = await findPlace(given, env);
  const { source, parts: found } = place;
  const missing = PARTS.filter((part) => !found[part]);
  if (missing.length > 0) throw await incomplete(missing, place, env);
  const { server = "", ca = "", cert = "", key = "" } = found;
  const list = PARTS.map((part) => `${part} ${found[part]}`).join(", ");
  return { server, ca, cert, key, sources: `${list} (${source})` };
}

/** Returns the first place that says anything. A place that names a context says nothing else. */
async function findPlace(given: Pick<Given, "text">, env: NodeJS.ProcessEnv): Promise<Place> {
  const places = [
    { source: "the command line", nameOf: flagOf, value: (name: string) => given.text(name) },
    { source: "the environment", nameOf: variableOf, value: (name: string) => env[variableOf(name)] },
  ];
  for (const { source, nameOf, value } of places) {
    const context = value("context") || undefined;
    const found = parts(value);
    const names = PARTS.filter((part) => found[part]).map(nameOf);
    if (context === undefined && names.length > 0) return { source, parts: found };
    if (context === undefined) continue;
    if (names.length === 0) return readContext(context, env);
    throw new UsageError(
      `${names.join(", ")} of ${source} and ${nameOf("context")} ${context} of config.json are not mixed: give one of the two`,
    );
  }
  return readContext(undefined, env);
}

/** Says what is missing, and which other place has it and was not mixed in. */
async function incomplete(missing: readonly Part[], place: Place, env: NodeJS.ProcessEnv): Promise<UsageError> {
  const flags = missing.map(flagOf).join(" ");
  const lacks = `no ${missing.join(", ")}`;
  const has = PARTS.filter((part) => place.parts[part]);
  const others = await othersWith(missing, place, env);
  if (has.length > 0 && others.length > 0)
    return new UsageError(
      `${lacks}: ${place.source} gives ${has.join(", ")} alone, and is not mixed with ${others.join(", ")}; ` +
        "give all four in one place",
    );
  const variables = missing.map(variableOf).join(" ");
  return new UsageError(`${lacks}: give ${flags}, or set ${variables}, or ${contextHint(env)}`);
}

/** Returns the names of what has some of these parts in places other than `place`. */
async function othersWith(wanted: readonly Part[], place: Place, env: NodeJS.ProcessEnv): Promise<string[]> {
  const variables = wanted.map(variableOf).filter((name) => env[name]);
  const named = env[variableOf("context")] ? [variableOf("context")] : [];
  const current = await readContext(undefined, env).catch(() => undefined);
  const has = current !== undefined && wanted.some((part) => current.parts[part]);
  return [
    ...(place.source === "the environment" ? [] : [...variables, ...named]),
    ...(has && current.source !== place.source ? [`the file's current ${current.source}`] : []),
  ];
}

function flagOf(name: string): string {
  return `--${name}`;
}

function variableOf(name: string): string {
  return `JOBS_${name.toUpperCase()}`;
}

function contextHint(env: NodeJS.ProcessEnv): string {
  const place = configFile(env);
  if ("file" in place) return `name a context in ${place.file}`;
  return `name a context in config.json, which is nowhere: ${place.nowhere}`;
}

/** Credentials, and the one of their certificates that is the caller's own. */
export interface OwnCredentials extends Credentials {
  readonly own: X509Certificate;
}

/** Reads the files of a connection. Throws PemError that begins with the file's name. */
export async function readCredentials({ server, ...files }: Connection): Promise<OwnCredentials> {
  const { pem, own } = await parsedFiles(files);
  return { server, own, ...pem };
}

/** Reads what TLS is to be given, by the files' names. Returns it as PEM again. Throws PemError, led by a file's name. */
export async function readTlsFiles(files: TlsFileNames): Promise<TlsFiles["pem"]> {
  return (await parsedFiles(files)).pem;
}

type TlsFileNames = { readonly [part in keyof TlsPem]: string };

async function parsedFiles(files: TlsFileNames): Promise<TlsFiles> {
  const given = { ca: await readSmall(files.ca), cert: await readSmall(files.cert), key: await readPrivate(files.key) };
  const { ca, cert, key } = files;
  return parseTls(given, { ca, cert, key });
}

async function readContext(wanted: string | undefined, env: NodeJS.ProcessEnv): Promise<Place> {
  const place = configFile(env);
  const asked = wanted === undefined ? "" : `context ${wanted}: `;
  if ("nowhere" in place) {
    if (wanted === undefined) return { source: "", parts: {} };
    throw new SettingError(`${asked}there is no config.json: ${place.nowhere}`);
  }
  const { file } = place;
  const bytes = await readSmall(file).catch((error: unknown) => {
    const missing = error instanceof PemError && isMissing(error.cause);
    if (missing && wanted === undefined) return undefined;
    throw new SettingError(`${asked}${reasonOf(error)}`, { cause: error });
  });
  if (bytes === undefined) return { source: file, parts: {} };
  const { contexts, current } = configIn(bytes, file);
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

/** Returns where config.json is, or why it is nowhere. It is never looked for in the current directory. */
function configFile(env: NodeJS.ProcessEnv): { readonly file: string } | { readonly nowhere: string } {
  const [given, home] = [env["XDG_CONFIG_HOME"], env["HOME"]];
  if (given) {
    if (isAbsolute(given)) return { file: join(given, "jobs", "config.json") };
    return { nowhere: `XDG_CONFIG_HOME is ${JSON.stringify(given)}, which is not an absolute path` };
  }
  if (home !== undefined && !isAbsolute(home)) {
    return { nowhere: `HOME is ${home === "" ? "empty" : `${JSON.stringify(home)}, which is not an absolute path`}` };
  }
  try {
    return { file: join(home ?? userInfo().homedir, ".config", "jobs", "config.json") };
  } catch (error) {
    return { nowhere: `HOME is not set, and this user has no home directory (${meaningOf(error)})` };
  }
}

/** Reads config.json. Throws SettingError that says what the file is instead. */
function configIn(
  bytes: Uint8Array,
  file: string,
): { readonly contexts: Readonly<Record<string, unknown>>; readonly current: string | undefined } {
  const config = parseJson(bytes, file);
  if (!isRecord(config)) throw new SettingError(`${file}: must be an object with "contexts", and "current" at will`);
  const { contexts = {}, current } = config;
  if (!isRecord(contexts)) throw new SettingError(`${file}: contexts must be an object of contexts by name`);
  if (current !== undefined && typeof current !== "string") {
    throw new SettingError(`${file}: current must be the name of a context`);
  }
  return { contexts, current };
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}

function parts(value: (part: Part) => string | undefined): Parts {
  const found: Partial<Record<Part, string>> = {};
  for (const part of PARTS) {
    const given = value(part);
    if (given) found[part] = given;
  }
  return found;
}

function parseJson(bytes: Uint8Array, file: string): unknown {
  const text = textOf(bytes, file);
  if (text.trim() === "") throw new SettingError(`${file}: is empty; {} is an empty one`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingError(`${file}: is not JSON: ${reasonOf(error)}`, { cause: error });
  }
}

/** Returns a file's text, without a byte order mark. Throws SettingError, led by the file's name, for what is not UTF-8. */
export function textOf(bytes: Uint8Array, file: string): string {
  if (bytes[0] === 0xff || bytes[0] === 0xfe) throw new SettingError(`${file}: is UTF-16; save it as UTF-8`);
  try {
    // TextDecoder leaves a byte order mark out.
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw new SettingError(`${file}: is not UTF-8`, { cause: error });
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
