import { once } from "node:events";
import { lstat, rm } from "node:fs/promises";
import { connect } from "node:net";
import { codeOf } from "./errno.ts";

/**
 * Removes a UNIX socket that nobody listens on: a killed process left it. Throws for anything else at `path`, and leaves it.
 *
 * @param flag the flag that gave the path, which the message names
 */
export async function removeStale(path: string, flag: string): Promise<void> {
  // A symbolic link is not followed, because it may name anything.
  const found = await lstat(path).catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  });
  if (!found) return;
  if (!found.isSocket())
    throw new Error(`what is there is no socket, and was left as it is: remove it, or give another ${flag}`);
  if (await isAnswered(path)) throw new Error(`another process listens on it: end that one, or give another ${flag}`);
  await rm(path, { force: true });
}

async function isAnswered(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return true;
  } catch (error) {
    if (["ECONNREFUSED", "ENOENT"].includes(codeOf(error))) return false;
    // EAGAIN means that the listener's queue is full.
    if (codeOf(error) === "EAGAIN") return true;
    throw error;
  } finally {
    socket.destroy();
  }
}
