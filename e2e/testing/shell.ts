import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";

/** A shell of root in a container, which stays for all commands: to enter a container takes as long as fifty of them. */
export interface Shell extends AsyncDisposable {
  /** Runs a command with nothing on stdin and resolves to its stdout. Throws with its stderr when it fails. */
  run(command: readonly string[]): Promise<string>;
  /** Writes a file with a mode, as in 0o644; makes its directory. */
  write(path: string, content: string | Buffer, mode: number): Promise<void>;
}

/** @param container the container's id, for the engine that DOCKER_HOST names */
export function openShell(container: string): Shell {
  const child = spawn("docker", ["exec", "--interactive", container, "sh"], { stdio: ["pipe", "pipe", "pipe"] });
  const closed = once(child, "close");
  const said = { stdout: "", stderr: "" };
  let look = (): void => {};
  for (const name of ["stdout", "stderr"] as const)
    child[name].setEncoding("utf8").on("data", (text: string) => {
      said[name] += text;
      look();
    });
  child.stdin.on("error", () => {});
  let last: Promise<unknown> = Promise.resolve();

  /** What the lines of a script write, up to a mark on both streams. */
  async function tell(script: string): Promise<{ code: number; stdout: string; stderr: string }> {
    const mark = randomUUID();
    const ended = new RegExp(`${mark} (\\d+)\\n$`);
    const told = Promise.withResolvers<void>();
    look = () => {
      if (ended.test(said.stdout) && ended.test(said.stderr)) told.resolve();
    };
    child.stdin.write(`${script}\ncode=$?; echo "${mark} $code"; echo "${mark} $code" >&2\n`);
    await Promise.race([told.promise, closed]);
    const { stdout, stderr } = said;
    said.stdout = said.stderr = "";
    const code = ended.exec(stdout)?.[1];
    if (code === undefined) throw new Error(`the shell in the container has ended: ${stderr}`);
    return { code: Number(code), stdout: stdout.replace(ended, ""), stderr: stderr.replace(ended, "") };
  }

  /** One at a time. */
  function inTurn<Result>(what: () => Promise<Result>): Promise<Result> {
    const result = last.then(what);
    last = result.catch(() => {});
    return result;
  }

  return {
    run: (command) =>
      inTurn(async () => {
        const { code, stdout, stderr } = await tell(`${command.map(quoted).join(" ")} </dev/null`);
        if (code !== 0) throw new Error(`${command.join(" ")}: exited with ${code}: ${stderr}`);
        return stdout;
      }),
    write: (path, content, mode) =>
      inTurn(async () => {
        const [file, base64] = [quoted(path), Buffer.from(content).toString("base64")];
        const lines = base64.replace(/.{76}/g, "$&\n");
        const script = `mkdir -p "$(dirname ${file})" && base64 -d >${file} <<'END' && chmod ${mode.toString(8)} ${file}\n${lines}\nEND`;
        const { code, stderr } = await tell(script);
        if (code !== 0) throw new Error(`${path} was not written: ${stderr}`);
      }),
    async [Symbol.asyncDispose]() {
      child.kill();
      await closed;
    },
  };
}

/** As sh reads it as one word. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
