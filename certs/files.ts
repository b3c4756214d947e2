import { randomBytes } from "node:crypto";
import { link, lstat, open, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { makeDirectory } from "../src/os/directory.ts";
import { codeOf, meaningOf } from "../src/os/errno.ts";
import { readSmall } from "../src/x509/file.ts";
import { PemError } from "../src/x509/pem.ts";
import { CertError, type CertErrorCode } from "./error.ts";

/** The files of a CA. */
export interface CaFiles {
  readonly crt: string;
  readonly key: string;
  /** The index of what the CA has signed: ca-index.ts. */
  readonly index: string;
  /** The list of what it has revoked. */
  readonly crl: string;
}

/** The files of a CA that is given by its certificate, or by a directory with ca.crt. */
export async function caFiles(ca: string, caKey?: string): Promise<CaFiles> {
  const isDirectory = await stat(ca).then(
    (found) => found.isDirectory(),
    () => false,
  );
  const crt = isDirectory ? join(ca, "ca.crt") : ca;
  const named = (ending: string): string => crt.replace(/(\.(crt|pem|cer))?$/, ending);
  return { crt, key: caKey ?? named(".key"), index: named(".index"), crl: named(".crl") };
}

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
  const staged = files.map((file) => ({ ...file, temporary: `${file.path}.${randomBytes(6).toString("hex")}.tmp` }));
  try {
    for (const { path, temporary, text, mode } of staged) {
      await makeParent(path);
      await writeTemporary(temporary, text, mode).catch(named("unwritable", path));
    }
    await placeAll(staged, force);
  } finally {
    await Promise.all(staged.map(({ temporary }) => rm(temporary, { force: true })));
  }
}

/** Gives files their names: all of them or, without `force`, none. */
async function placeAll(
  staged: readonly { readonly path: string; readonly temporary: string }[],
  force: boolean,
): Promise<void> {
  // Unlike rename, link fails when the name is taken, even by a file made since the look before.
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

async function makeParent(path: string): Promise<void> {
  try {
    makeDirectory(dirname(path));
  } catch (error) {
    named("unwritable", dirname(path))(error);
  }
}

/** Throws CertError `exists` when one of the paths is taken. Called before a key, which is slow, is made for it. */
export async function refuseExisting(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const found = await lstat(path).catch((error: unknown) => {
      if (codeOf(error) === "ENOENT") return undefined;
      return named("unwritable", path)(error);
    });
    if (found) throw alreadyThere(path);
  }
}

/**
 * Reads a file and what `parse` finds in it. Throws CertError `unreadable`, and `refused` where others may read a
 * private key.
 */
export async function readFrom<Value>(
  path: string,
  parse: (contents: Buffer, from: string) => Value | Promise<Value>,
  read: (path: string) => Promise<Buffer> = readSmall,
): Promise<Value> {
  try {
    return await parse(await read(path), path);
  } catch (error) {
    if (!(error instanceof PemError)) throw error;
    throw new CertError(error.code === "exposed" ? "refused" : "unreadable", error.message, error);
  }
}

async function writeTemporary(path: string, text: string, mode: number): Promise<void> {
  await using file = await open(path, "wx", mode);
  // The umask removes bits from the mode that open is given.
  await file.chmod(mode);
  await file.writeFile(text);
  await file.sync();
}

/** Turns a failed system call into a CertError that names the file. */
function named(code: CertErrorCode, path: string): (error: unknown) => never {
  return (error) => {
    const errno = codeOf(error);
    if (errno === "EEXIST" && code === "unwritable") throw alreadyThere(path, error);
    throw new CertError(code, `${path}: ${meaningOf(error)}`, error);
  };
}

function alreadyThere(path: string, cause?: unknown): CertError {
  return new CertError("exists", `${path}: already exists; --force to replace it`, cause);
}
