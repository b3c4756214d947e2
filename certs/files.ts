import { randomBytes } from "node:crypto";
import { type FileHandle, link, lstat, mkdir, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { getSystemErrorMap } from "node:util";
import { CertError, type CertErrorCode } from "./error.ts";

/** A bundle of dozens of RSA 8192 certificates fits; a device or a log given by mistake does not. */
const LIMIT_BYTES = 256 * 1024;

export interface NewFile {
  readonly path: string;
  readonly text: string;
  /** 0o600 for a private key, 0o644 for what anyone may see. */
  readonly mode: 0o600 | 0o644;
}

/**
 * Writes all the files or none, each under a temporary name first, so that nobody ever sees half a file and a key is
 * never readable by others. Makes missing directories 0700. `force` replaces files that are there.
 * Throws CertError `exists` or `unwritable`.
 */
export async function writeFiles(files: readonly NewFile[], force = false): Promise<void> {
  if (!force) await refuseExisting(files.map((file) => file.path));
  await using cleanup = new AsyncDisposableStack();
  const staged: { readonly path: string; readonly temporary: string }[] = [];
  for (const { path, text, mode } of files) {
    const temporary = `${path}.${randomBytes(6).toString("hex")}.tmp`;
    cleanup.defer(() => rm(temporary, { force: true }));
    await mkdir(dirname(path), { recursive: true, mode: 0o700 }).catch(named("unwritable", dirname(path)));
    await writeTemporary(temporary, text, mode).catch(named("unwritable", path));
    staged.push({ path, temporary });
  }
  // Unlike rename, link fails when the name is taken, even by a file made since the look above.
  const place = force ? rename : link;
  const placed: string[] = [];
  try {
    for (const { path, temporary } of staged) {
      await place(temporary, path).catch(named("unwritable", path));
      placed.push(path);
    }
  } catch (error) {
    if (!force) await Promise.all(placed.map((path) => rm(path, { force: true })));
    throw error;
  }
}

/** Throws CertError `exists` when one of the paths is taken: to be asked before a slow key is made for it. */
export async function refuseExisting(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const found = await lstat(path).catch((error: unknown) => {
      if (errnoOf(error) === "ENOENT") return undefined;
      return named("unwritable", path)(error);
    });
    if (found) throw alreadyThere(path);
  }
}

/**
 * The first PEM block of a file, `-----BEGIN label-----` to `-----END label-----`.
 * Throws CertError `unreadable`; when the block is of another kind it says which.
 */
export async function readPem(path: string, label: "CERTIFICATE" | "CERTIFICATE REQUEST"): Promise<string> {
  const block = firstPem(await readText(path), path);
  if (block.label === label) return block.pem;
  throw new CertError("unreadable", `${path}: holds a ${block.label}; a PEM ${label} is needed`);
}

/** As readPem, of any kind. */
export async function readAnyPem(path: string): Promise<{ readonly label: string; readonly pem: string }> {
  return firstPem(await readText(path), path);
}

/** The text of a private key's file. Throws CertError `unreadable`, and `refused` when others may read the file. */
export function readPrivate(path: string): Promise<string> {
  return readText(path, requireOwnersOnly);
}

async function readText(path: string, check?: (file: FileHandle, path: string) => Promise<void>): Promise<string> {
  await using file = await open(path, "r").catch(named("unreadable", path));
  await check?.(file, path);
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of file.createReadStream({ end: LIMIT_BYTES, autoClose: false })) chunks.push(chunk);
  } catch (error) {
    return named("unreadable", path)(error);
  }
  const bytes = Buffer.concat(chunks);
  if (bytes.length > LIMIT_BYTES) {
    throw new CertError("unreadable", `${path}: is over ${LIMIT_BYTES / 1024} KiB; no PEM file is so large`);
  }
  return bytes.toString("latin1");
}

async function requireOwnersOnly(file: FileHandle, path: string): Promise<void> {
  const { mode } = await file.stat();
  if ((mode & 0o077) === 0) return;
  const octal = (mode & 0o777).toString(8).padStart(4, "0");
  throw new CertError("refused", `${path}: its mode ${octal} lets others at the key; chmod 600 ${path}`);
}

function firstPem(text: string, path: string): { readonly label: string; readonly pem: string } {
  const [pem, label] = /-----BEGIN ([A-Z0-9 ]+)-----\r?\n[^-]*-----END \1-----/.exec(text) ?? [];
  if (pem && label) return { label, pem };
  throw new CertError("unreadable", `${path}: no PEM in it (a block from -----BEGIN … to -----END …)`);
}

async function writeTemporary(path: string, text: string, mode: number): Promise<void> {
  await using file = await open(path, "wx", mode);
  // The umask takes from the mode that open is given.
  await file.chmod(mode);
  await file.writeFile(text);
  await file.sync();
}

/** Turns a failed system call into a CertError that names the file. */
function named(code: CertErrorCode, path: string): (error: unknown) => never {
  return (error) => {
    const errno = errnoOf(error);
    if (errno === "EEXIST" && code === "unwritable") throw alreadyThere(path, error);
    const reason = [...getSystemErrorMap().values()].find(([name]) => name === errno)?.[1] ?? String(error);
    throw new CertError(code, `${path}: ${reason}`, error);
  };
}

function alreadyThere(path: string, cause?: unknown): CertError {
  return new CertError("exists", `${path}: already exists; --force to replace it`, cause);
}

function errnoOf(error: unknown): unknown {
  return error instanceof Error && "code" in error ? error.code : undefined;
}
