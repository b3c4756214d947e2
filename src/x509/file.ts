import { type FileHandle, open } from "node:fs/promises";
import { meaningOf } from "../os/errno.ts";
import { PemError } from "./pem.ts";

/** A bundle of dozens of RSA 8192 certificates fits; a device or a log given by mistake does not. */
const LIMIT_BYTES = 256 * 1024;

/** A file's bytes, at most 256 KiB of them. Throws PemError `unreadable`, led by the path. */
export function readSmall(path: string): Promise<Buffer> {
  return read(path);
}

/** Reads like readSmall. Throws PemError `exposed`, too, when others than its owner may read or write the file. */
export function readPrivate(path: string): Promise<Buffer> {
  return read(path, async (file) => {
    const found = await file.stat();
    // A directory is told of by the read that follows, and not by its mode. Windows has access control lists, and no modes.
    if (found.isDirectory() || (found.mode & 0o077) === 0 || process.platform === "win32") return;
    const octal = (found.mode & 0o7777).toString(8).padStart(4, "0");
    throw new PemError("exposed", `${path}: others can read this private key (mode ${octal}): chmod 600 ${path}`);
  });
}

async function read(path: string, check?: (file: FileHandle) => Promise<void>): Promise<Buffer> {
  await using file = await open(path, "r").catch(unreadable(path));
  await check?.(file);
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of file.createReadStream({ end: LIMIT_BYTES, autoClose: false })) chunks.push(chunk);
  } catch (error) {
    return unreadable(path)(error);
  }
  const bytes = Buffer.concat(chunks);
  if (bytes.length <= LIMIT_BYTES) return bytes;
  throw new PemError("unreadable", `${path}: is over ${LIMIT_BYTES / 1024} KiB; no such file is so large`);
}

function unreadable(path: string): (error: unknown) => never {
  return (error) => {
    throw new PemError("unreadable", `${path}: ${meaningOf(error)}`, error);
  };
}
