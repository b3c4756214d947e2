import { CONFIG, type Setting, wanted } from "../cli/daemon/config.ts";
import type { Command, Flag, Program } from "../cli/line/program.ts";

/* Manual pages in man(7)'s macros, from the tables that the programs read their command lines by. */

/** Returns jobsctl(1). */
export function jobsctlPage(program: Program, date: Date): string {
  const commands = program.commands.flatMap((command) => [
    `.SS ${quoted(synopsis(program, command))}`,
    ...(command.alias ? [`${bold(command.alias)} is the same.`, ".br"] : []),
    ...command.about.flatMap((line) => [roff(line), ".br"]),
    ...flagsOf(command.flags),
    ...(command.examples ?? []).flatMap((example) => [".P", "Example:"].concat(code(`${program.name} ${example}`))),
  ]);
  return page(program, 1, date, {
    NAME: ["jobsctl \\- client of jobsd, which runs jobs on Linux machines"],
    SYNOPSIS: [`${bold("jobsctl")} ${italic("command")} [${italic("flags")}] [${italic("operands")}]`],
    DESCRIPTION: [
      "Starts, stops, queries and streams jobs on a worker, where",
      `${bold("jobsd")}(8) runs them, over mutual TLS 1.3.`,
      "The flags of a connection go with each command that talks to a worker:",
      ...flagsOf(program.flags),
    ],
    COMMANDS: commands,
    "EXIT STATUS": terms({
      "0": "done; for run and wait: the job exited with 0",
      "1": "the worker refused, or the job is not there",
      "124": "run, wait: the job's time limit ended it",
      "125": "the command line is wrong; start, run, wait, doctor: jobsctl failed, and not a job",
      "126, 127": "start, run: the program cannot be executed, or is not there",
      "128+N": "signal N ended the job, or this program",
    }),
    ENVIRONMENT: [
      "What the command line gives of a connection counts; if it gives nothing, these variables do; if there are none, the",
      "current context of the configuration. Two of these places are never mixed.",
      ...terms({
        "JOBS_SERVER, JOBS_CA, JOBS_CERT, JOBS_KEY": "as --server, --ca, --cert and --key",
        JOBS_CONTEXT: "as --context",
      }),
    ],
    FILES: terms({ "~/.config/jobs/config.json": "contexts: workers by name, and the certificates for them" }),
    "SEE ALSO": [`${bold("jobsd")}(8)`],
  });
}

/** Returns jobsd(8). */
export function jobsdPage(program: Program, date: Date): string {
  const [command] = program.commands;
  return page(program, 8, date, {
    NAME: ["jobsd \\- runs jobs on this machine for people and programs elsewhere"],
    SYNOPSIS: [`${bold("jobsd")} [${italic("flags")}]`],
    DESCRIPTION: [
      "Runs each command that a client starts as a job in a cgroup of its own, with limits, and serves its state and its",
      "output over mutual TLS 1.3.",
      ...(command?.about ?? []).flatMap((line) => [".P", roff(line)]),
    ],
    FLAGS: flagsOf(command?.flags ?? []),
    EXAMPLES: (command?.examples ?? []).flatMap((example) => code(`${program.name} ${example}`)),
    "SYSTEMD UNITS": terms({
      "jobsd.service": "the daemon. A restart ends no job.",
      "jobs.service": "holds the cgroups of jobs. To stop it stops the daemon, and ends all jobs.",
      "jobs.slice": "bounds all jobs together: systemctl set-property jobs.slice MemoryMax=80%",
    }),
    FILES: terms({
      [CONFIG]: "the configuration",
      "/etc/jobs/ca.crt": "certificates of the authorities that sign clients",
      "/etc/jobs/worker.crt, /etc/jobs/worker.key": "the worker's certificate and its private key",
      "/var/lib/jobs": "jobs, their records and output, and the audit log",
      "/run/jobs": "sockets",
    }),
    "SEE ALSO": [`${bold("jobsctl")}(1), ${bold("jobsd.toml")}(5), ${bold("systemctl")}(1), ${bold("cgroups")}(7)`],
  });
}

/** Returns jobsd.toml(5). */
export function configurationPage({ version }: Program, settings: readonly Setting[], date: Date): string {
  const keys = settings.filter(({ once }) => !once);
  return page({ name: "jobsd.toml", version }, 5, date, {
    NAME: ["jobsd.toml \\- configuration of jobsd"],
    DESCRIPTION: [
      `${bold("jobsd")}(8) reads ${italic(CONFIG)} where it exists, or the file that ${bold("--config")} names. It is TOML.`,
      "Each flag is a key. A flag on the command line goes before a variable of the environment (JOBSD_LISTEN), and that",
      "before the file. A relative path counts from the file's directory. An unknown key, or a value that is wrong, is an",
      "error that names its line.",
      ".P",
      `On SIGHUP (${bold("systemctl reload jobsd")}) the file is read anew. If it is right, each change of a key that says`,
      "so below is taken, and the log names those that need a restart; otherwise all stays as it was.",
    ],
    KEYS: keys.flatMap((key) => [
      ".TP",
      `${bold(key.name)} = ${italic(key.value ?? "true|false")}`,
      roff(`${key.about}.`),
      roff(`The value is ${wanted(key)}.${key.reloads ? " Taken on reload." : ""}`),
    ]),
    EXAMPLE: [
      'listen = "0.0.0.0:7443"',
      'state = "/var/lib/jobs"',
      'allow-user = ["jobs", "2000-2999"]',
      'log-limit = "1G"',
      "max-jobs = 200",
    ].flatMap(code),
    "SEE ALSO": [`${bold("jobsd")}(8)`],
  });
}

function page(
  { name, version }: Pick<Program, "name" | "version">,
  section: number,
  date: Date,
  sections: Readonly<Record<string, readonly string[]>>,
): string {
  const head = `.TH ${name.toUpperCase()} ${section} ${date.toISOString().slice(0, 10)} ${quoted(`jobs ${version}`)}`;
  const lines = Object.entries(sections).flatMap(([title, body]) => [[`.SH ${quoted(title)}`], body].flat());
  return `${[head, ...lines].join("\n")}\n`;
}

/** `jobsctl start [flags] -- CMD ARGS...` */
function synopsis({ name: program }: Program, { name, operands, takesCommand, flags }: Command): string {
  const words = [program, name, flags.length > 0 ? "[flags]" : "", operands, takesCommand ? "-- CMD ARGS..." : ""];
  return words.filter(Boolean).join(" ");
}

function flagsOf(flags: readonly Flag[]): string[] {
  return flags.flatMap(({ name, short, value, about }) => [
    ".TP",
    [short && bold(`-${short}`), bold(`--${name}`)].filter(Boolean).join(", ") + (value ? ` ${italic(value)}` : ""),
    roff(about),
  ]);
}

function terms(of: Readonly<Record<string, string>>): string[] {
  return Object.entries(of).flatMap(([term, about]) => [".TP", bold(term), roff(about)]);
}

function code(line: string): string[] {
  return [".P", ".RS 4", ".nf", roff(line), ".fi", ".RE"];
}

const bold = (text: string): string => `\\fB${roff(text)}\\fR`;
const italic = (text: string): string => `\\fI${roff(text)}\\fR`;

/** A macro's argument that is one word to it. */
function quoted(text: string): string {
  return `"${roff(text).replaceAll('"', "\\(dq")}"`;
}

/** Text that stands for itself in roff: groff_char(7). */
function roff(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("~", "\\(ti")
    .replaceAll("^", "\\(ha")
    .replaceAll("`", "\\(ga")
    .replace(/[^\0-\x7e]/gu, (letter) => `\\[u${letter.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}]`)
    .replace(/^([.'])/, "\\&$1");
}
