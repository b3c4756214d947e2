import { parseArgs } from "node:util";
import { CertError } from "./error.ts";
import { formatIssued, issueAll } from "./issue.ts";

const USAGE = `Usage: npm run certs -- --out DIR [--host NAME]… [--days N] [--bits N] [--force]

Makes a CA and certificates of a worker, a writer and a reader in DIR: NAME.crt and NAME.key.

  --out DIR    where to; made when it is not there
  --host NAME  another DNS name or address that the worker is reached by; may be repeated
  --days N     life of the certificates, 1 to 3650 (90); the CA lives 10 years
  --bits N     size of the RSA keys, 2048 to 8192 (4096)
  --force      replace files that are there
`;

process.exitCode = await main(process.argv.slice(2));

/** Resolves to the exit code: 0, 1 when the files could not be made, 2 when the command line is wrong. */
async function main(args: string[]): Promise<number> {
  try {
    const { values } = parseArgs({
      args,
      options: {
        out: { type: "string" },
        host: { type: "string", multiple: true },
        days: { type: "string" },
        bits: { type: "string" },
        force: { type: "boolean" },
        help: { type: "boolean", short: "h" },
      },
    });
    if (values.help) return say(process.stdout, USAGE, 0);
    if (!values.out) return say(process.stderr, `--out: missing; name the directory for the files\n\n${USAGE}`, 2);
    const { out, host: hosts, force } = values;
    if (process.stderr.isTTY) process.stderr.write("making four RSA keys…");
    const made = issueAll({ out, hosts, force, days: number(values.days), bits: number(values.bits) });
    const issued = await made.finally(() => process.stderr.isTTY && process.stderr.write("\r\x1b[K"));
    return say(process.stdout, `${formatIssued(issued).join("\n")}\n`, 0);
  } catch (error) {
    if (error instanceof CertError) return say(process.stderr, `${error.message}\n`, error.code === "invalid" ? 2 : 1);
    if (error instanceof TypeError && "code" in error) return say(process.stderr, `${error.message}\n\n${USAGE}`, 2);
    throw error;
  }
}

/** Returns NaN for text that is not a number; issueAll refuses it by the option's name. */
function number(text: string | undefined): number | undefined {
  return text === undefined ? undefined : Number(text);
}

function say(stream: NodeJS.WriteStream, text: string, exitCode: number): number {
  stream.write(text);
  return exitCode;
}
