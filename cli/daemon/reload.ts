import type { Logger } from "pino";
import { reasonOf } from "../../src/os/errno.ts";
import type { Served } from "../../src/server/server.ts";
import { readTlsFiles } from "../line/connection.ts";
import type { Settings } from "./settings.ts";

/**
 * Reads the certificates' files anew, and has the server go on with them. With a file that is wrong it goes on as it is;
 * the log has the reason.
 */
export async function renewTls(server: Served, files: Settings["tlsFiles"], log: Logger): Promise<void> {
  try {
    server.renew({ tls: await readTlsFiles(files) })();
    log.info(files, "the certificates' files have been read anew");
  } catch (error) {
    log.error({ reason: reasonOf(error) }, "the certificates' files could not be read anew: all stays as it was");
  }
}

/** Makes a function that does `work`, once more after it where it is asked to meanwhile, and never twice at once. */
export function oneByOne(work: () => Promise<void>): () => void {
  let asked = 0;
  return () => {
    if (asked++ > 0) return;
    void (async () => {
      while (asked > 0) {
        asked = 1;
        await work();
        asked--;
      }
    })();
  };
}
